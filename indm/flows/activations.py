"""Activations of residual blocks, of slope at most 1; a constant factor in them can be moved into the weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Activation(nn.Module):
    """φ(v) = value(ωv)/ω for the ``frequency`` ω, φ′(v) = slope(ωv) in [−1, 1]; blocks take ω into their weights."""

    frequency = 1.0

    def value(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        """Derivative of :meth:`value`."""
        raise NotImplementedError

    def forward(self, v: Tensor) -> Tensor:
        """φ(v)."""
        return self.value(self.frequency * v) / self.frequency


class Sin(Activation):
    """sin(2πv)/(2π)."""

    frequency = 2 * math.pi

    def value(self, u: Tensor) -> Tensor:
        return u.sin()

    def slope(self, u: Tensor) -> Tensor:
        return u.cos()


class Softplus(Activation):
    """log(1 + eᵛ)."""

    def value(self, u: Tensor) -> Tensor:
        return F.softplus(u)

    def slope(self, u: Tensor) -> Tensor:
        return u.sigmoid()


class ELU(Activation):
    """v above 0, eᵛ − 1 below."""

    def value(self, u: Tensor) -> Tensor:
        return F.elu(u)

    def slope(self, u: Tensor) -> Tensor:
        return u.clamp(max=0.0).exp()


class Swish(Activation):
    """v sigmoid(bv)/1.1 with a learned b = softplus(β) > 0.

    Source: Chen et al. 2019, "Residual Flows", §3.3 (LipSwish), https://arxiv.org/abs/1906.02735.
    """

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def value(self, u: Tensor) -> Tensor:
        return u * (F.softplus(self.beta) * u).sigmoid() / 1.1

    def slope(self, u: Tensor) -> Tensor:
        bu = F.softplus(self.beta) * u
        gate = bu.sigmoid()
        return gate * (1 + bu * (1 - gate)) / 1.1


class Cube(Activation):
    """v³/3 between −1 and 1, continued with slope 1."""

    def value(self, u: Tensor) -> Tensor:
        inner = u.clamp(-1.0, 1.0)
        return u - inner + inner**3 / 3

    def slope(self, u: Tensor) -> Tensor:
        return u.clamp(-1.0, 1.0).square()


class ReLU(Activation):
    """max(v, 0). A flow with it is not smooth, so :class:`~indm.NonlinearDiffusion` cannot use it."""

    def value(self, u: Tensor) -> Tensor:
        return u.relu()

    def slope(self, u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)


class Linear(Activation):
    """v itself."""

    def value(self, u: Tensor) -> Tensor:
        return u

    def slope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


ACTIVATIONS: dict[str, type[Activation]] = {
    "sin": Sin,
    "softplus": Softplus,
    "elu": ELU,
    "swish": Swish,
    "lcube": Cube,
    "relu": ReLU,
    "identity": Linear,
}
