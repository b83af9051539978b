"""Flows of other libraries; see ``examples/zuko_flow.py`` and ``examples/normflows_flow.py``."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from indm.flows.base import TOLERANCE, Flow, Inverse, Mapped, measured_inverse
from indm.tensors import Batch, expand_like, full_precision


class ForeignFlow(Flow):
    """A flow of another library: a subclass says how to call its two directions.

    Every inverse is certified by one pass of h. If the library's log|det| is random, it draws from
    the global random state, not from our generators.

    Args:
        inverse_is_formula: whether the library's inverse is a formula that autograd can
            differentiate twice.

    Example: a transform of PyTorch's distributions.

        >>> class Transformed(ForeignFlow):
        ...     def __init__(self, transform):
        ...         super().__init__(inverse_is_formula=True)
        ...         self.transform = transform
        ...     def to_latent(self, x):
        ...         z = self.transform(x)
        ...         return z, self.transform.log_abs_det_jacobian(x, z).sum(1)
        ...     def to_data(self, z):
        ...         return self.transform.inv(z)
        >>> flow, x = Transformed(torch.distributions.SigmoidTransform()), torch.randn(5, 3)
        >>> torch.allclose(flow.inverse(flow(x)[0]), x, atol=1e-4)
        True
    """

    def __init__(self, inverse_is_formula: bool):
        super().__init__()
        self.inverse_is_formula = inverse_is_formula

    @abstractmethod
    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """z = h(x) and log|det ∂z/∂x|, (B,), or one number for all samples."""

    @abstractmethod
    def to_data(self, z: Tensor) -> Tensor:
        """The library's h⁻¹(z)."""

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        with full_precision(x.device):
            z, log_det = self.to_latent(x)
        if z.shape != x.shape:
            raise ValueError(
                f"flow must keep the shape {tuple(x.shape)}, but it makes it {tuple(z.shape)}"
            )
        return z, log_det + x.new_zeros(len(x))

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        finite = z.flatten(1).isfinite().all(1)
        # one sample that is not finite stops some flows for all
        z = torch.where(expand_like(finite, z), z, 0.0)
        x = self.to_data(z) if self.inverse_is_formula else self.to_data(z.detach()).detach()
        iterations = torch.zeros(len(z), dtype=torch.long, device=z.device)
        x, residual, iterations, converged = measured_inverse(self, x, z, iterations, tol)
        x = torch.where(expand_like(finite, x), x, math.nan)
        residual = torch.where(finite, residual, math.nan)
        return Inverse(x, residual, iterations, converged & finite)
