"""Masked autoregressive flows of vectors: the curve of each number depends on those before it.

The map takes one pass of a network, and its inverse one pass for each number.

Sources: Germain et al. 2015, "MADE", https://arxiv.org/abs/1502.03509; Papamakarios et al. 2017,
"Masked Autoregressive Flow for Density Estimation", https://arxiv.org/abs/1705.07057; Durkan et al.
2019, "Neural Spline Flows", https://arxiv.org/abs/1906.04032.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import check_counts, require
from indm.conditions import Conditioned, features_of
from indm.flows.base import Compose, ExactFlow, Mapped
from indm.flows.coupling import Affine, Transform, TransformName, transform_of, usual_bound
from indm.tensors import Batch, zeroed


@dataclass(frozen=True)
class Chained:
    """The composition of two transforms, ``first`` and then ``second``."""

    first: Transform
    second: Transform

    @property
    def size(self) -> int:
        return self.first.size + self.second.size

    def __call__(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.first(y, raw[:, : self.first.size])
        z, more = self.second(y, raw[:, self.first.size :])
        return z, log_slope + more

    def inverse(self, z: Tensor, raw: Tensor) -> Tensor:
        """y that is mapped to z."""
        return self.first.inverse(
            self.second.inverse(z, raw[:, self.first.size :]), raw[:, : self.first.size]
        )


class MaskedLinear(nn.Linear):
    """A dense layer whose units of degree i see inputs of degree ≤ i, or < i if ``strict``."""

    def __init__(self, inputs: Tensor, outputs: Tensor, strict: bool = False):
        super().__init__(len(inputs), len(outputs))
        sees = inputs < outputs[:, None] if strict else inputs <= outputs[:, None]
        self.register_buffer("mask", sees.to(self.weight.dtype), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class MaskedStep(Conditioned, ExactFlow):
    """x_i ↦ T(x_i; θ_i(x_1 … x_{i−1}, c)) for all i at once.

    Args:
        d: numbers in x.
        width, depth: units of a hidden layer, and hidden layers.
        transform: T, which acts on each number.
        flip: reverse the order.
        features: numbers of the condition that θ sees.
    """

    def __init__(
        self,
        d: int,
        width: int,
        depth: int,
        transform: Transform,
        flip: bool = False,
        features: int = 0,
    ):
        super().__init__()
        self.transform, self.features = transform, features
        self.order = list(reversed(range(d))) if flip else list(range(d))
        # units of degree −1 see c alone, so that the first number depends on it, too
        least = -1 if features else 0
        degree = torch.tensor(self.order)
        hidden = least + torch.arange(width) % max(1, d - 1 - least)
        self.layers = nn.ModuleList(
            MaskedLinear(degree if i == 0 else hidden, hidden) for i in range(depth)
        )
        self.output = zeroed(MaskedLinear(hidden, degree.repeat(transform.size), strict=True))
        if features:
            self.condition = nn.Linear(features, width, bias=False)

    def _raw(self, x: Tensor) -> Tensor:
        """Raw parameters of the transform, (B, size, d)."""
        h, c = self.layers[0](x), self.seen(x)
        h = h if c is None else h + self.condition(c)
        for layer in self.layers[1:]:
            h = layer(F.silu(h))
        return self.output(F.silu(h)).unflatten(1, (self.transform.size, -1))

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        z, log_slope = self.transform(x, self._raw(x))
        return z, log_slope.sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        x = torch.zeros_like(z)
        for i in self.order:
            is_next = torch.arange(z.shape[1], device=z.device) == i
            x = torch.where(is_next, self.transform.inverse(z, self._raw(x)), x)
        return x


class MaskedFlow(Compose):
    """A masked autoregressive flow of vectors; each step reverses the order of the one before.

    With splines it is the autoregressive neural spline flow, with affine maps MAF. It starts at the
    identity.

    Args:
        shape: (D,).
        depth: number of steps.
        width, layers: units of a hidden layer, and hidden layers of the network of a step.
        transform: "spline", an affine map and then a rational-quadratic spline, or "affine".
        bins, bound: of the spline, which acts on [−bound, bound].
        condition: (features,) of the condition that the networks see; () for none.

    Example:

        >>> flow, x = MaskedFlow((3,), depth=2, width=16), torch.randn(5, 3)
        >>> z, log_det = flow(x)
        >>> torch.allclose(z, x, atol=1e-5), log_det.shape, torch.allclose(flow.inverse(z), x, atol=1e-4)
        (True, torch.Size([5]), True)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        depth: int = 3,
        width: int = 64,
        layers: int = 2,
        transform: TransformName = "spline",
        bins: int = 8,
        bound: float | None = None,
        condition: tuple[int, ...] = (),
    ):
        shape, features = tuple(shape), features_of(condition)
        require(len(shape) == 1, "shape", shape, "(D,)", "CouplingFlow takes images")
        check_counts(shape=shape[0], depth=depth, width=width, layers=layers)
        bound = usual_bound(shape) if bound is None else bound
        kind: Transform = transform_of(transform, bins, bound, max_log_scale=1.0)
        kind = Chained(Affine(), kind) if transform == "spline" else kind
        super().__init__(
            [MaskedStep(shape[0], width, layers, kind, i % 2 == 1, features) for i in range(depth)]
        )
        self.shape, self.depth, self.width, self.layers = shape, depth, width, layers
        self.transform, self.bins, self.bound = transform, bins, bound
        self.condition = tuple(condition)
