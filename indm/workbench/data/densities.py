r"""Two-dimensional densities with exact log-densities and known entropies.

A model's negative log-likelihood on samples of ``p`` minus the entropy of ``p`` estimates KL(p ‖
model). All densities lie within a few units of the origin.
"""

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from indm.scaling import Scaling
from indm.workbench.data.base import Data
from indm.workbench.data.examples import InMemory

Points = Float[Tensor, "batch 2"]
Values = Float[Tensor, " batch"]


class Density(ABC):
    """A density on the plane, with exact samples and log-density, and known entropy, in nats."""

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Points:
        """``n`` independent points, (n, 2) float32."""

    @abstractmethod
    def log_prob(self, x: Points) -> Values:
        """log p(x) in nats, −∞ outside the support; computed in float64, in the dtype of ``x``."""

    def entropy(self) -> float:
        """−E log p(x) in nats; without a closed form, by :func:`quadrature_entropy`."""
        return quadrature_entropy(self)


@functools.cache
def quadrature_entropy(density: Density, half_width: float = 2.0, step: float = 0.02) -> float:
    """−∫ p log p over the square [−half_width, half_width]² in nats, by the trapezoidal rule.

    For a smooth density that has decayed at the border the rule converges faster than any power of
    ``step``. Half the step changes no entropy here by 1e-6 nats.
    """
    axis = torch.arange(-half_width, half_width + step / 2, step, dtype=torch.float64)
    log_p = density.log_prob(torch.cartesian_prod(axis, axis))
    return -(log_p.exp() * log_p).sum().item() * step**2


def circle(angle: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 2"]:
    """Points of the unit circle at ``angle`` radians."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def log_gaussian_mixture(
    x: Points, centres: Float[Tensor, "k 2"], weights: Float[Tensor, " k"], std: float
) -> Values:
    """log Σ_k w_k N(x; c_k, std² I), in slices of ``x`` so that memory stays small; float64."""
    log_weights = weights.double().log() - math.log(2 * math.pi * std**2)
    parts = []
    for part in x.double().split(256):
        distance = torch.cdist(part, centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(torch.logsumexp(log_weights - 0.5 * (distance / std) ** 2, dim=1))
    return torch.cat(parts).to(x.dtype)


@dataclass(frozen=True)
class Checkerboard(Density):
    """Uniform on the 8 of the 16 squares of [−1, 1]² whose row and column have an even sum.

    The support has area 2, so the entropy is exactly log 2.
    """

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Points:
        row = torch.randint(4, (n,), generator=generator)
        column = 2 * torch.randint(2, (n,), generator=generator) + row % 2
        # on a grid of 2^20 midpoints, which float32 has exactly, no point is rounded onto a border
        inside = (torch.randint(2**20, (n, 2), generator=generator) + 0.5) / 2**20
        return (torch.stack([row, column], dim=1) + inside) / 2 - 1

    def log_prob(self, x: Points) -> Values:
        cell = torch.floor(2 * (x.double() + 1))
        inside = ((cell >= 0) & (cell < 4)).all(1) & (cell.sum(1) % 2 == 0)
        return torch.where(inside, -math.log(2), -math.inf).to(x.dtype)

    def entropy(self) -> float:
        return math.log(2)


@dataclass(frozen=True)
class EightGaussians(Density):
    """Equal mixture of eight isotropic Gaussians on a circle."""

    radius: float = 1.0
    std: float = 0.1

    @property
    def centres(self) -> Float[Tensor, "8 2"]:
        return self.radius * circle(torch.arange(8, dtype=torch.float64) * math.pi / 4)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Points:
        centre = self.centres.float()[torch.randint(8, (n,), generator=generator)]
        return centre + self.std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Points) -> Values:
        return log_gaussian_mixture(x, self.centres, torch.full((8,), 1 / 8), self.std)


@dataclass(frozen=True)
class TwoSpirals(Density):
    r"""Two interleaved Archimedean spirals,
    :math:`c(u) = ±\sqrt{u}\,(\cos Θ\sqrt{u}, \sin Θ\sqrt{u})`, u ~ U(0, 1).

    Plus Gaussian noise of ``std``; Θ = 2π ``turns``; √u spreads the points almost evenly along the
    arms. The density is the 1-D integral of the noise along the curve, by Gauss–Legendre quadrature
    in θ = √u (du = 2θ dθ) with ``nodes`` nodes an arm: relative error below 1e-9.
    """

    turns: float = 1.5
    std: float = 0.03
    nodes: int = 384

    def curve(self, root: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        """The arm with the + sign at θ = ``root`` in [0, 1]."""
        return root[:, None] * circle(2 * math.pi * self.turns * root)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Points:
        arm = self.curve(torch.rand(n, generator=generator).sqrt())
        sign = 2 * torch.randint(2, (n, 1), generator=generator) - 1
        return sign * arm + self.std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Points) -> Values:
        node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(self.nodes))
        root = (node + 1) / 2
        # the two arms share ∫ 2θ dθ = 1; dθ = weight / 2
        arm, mass = self.curve(root), weight * root / 2
        return log_gaussian_mixture(x, torch.cat([arm, -arm]), torch.cat([mass, mass]), self.std)


DENSITIES = {
    "checkerboard": Checkerboard(),
    "eight-gaussians": EightGaussians(),
    "two-spirals": TwoSpirals(),
}


def load_density(
    name: str,
    /,
    *,
    samples: int = 100_000,
    valid_samples: int = 5000,
    test_samples: int = 20_000,
    seed: int = 0,
) -> Data:
    """Samples of a density of this module; the test set does not depend on ``samples``.

    Args:
        samples: of the training split.
        valid_samples: of the validation split.
        test_samples: of the test split.
        seed: of all splits.
    """
    density, generator = DENSITIES[name], torch.Generator().manual_seed(seed)
    counts = {"test": test_samples, "valid": valid_samples, "train": samples}
    parts: dict[str, Any] = {
        part: InMemory(density.sample(n, generator=generator)) for part, n in counts.items()
    }
    notes = [f"samples drawn with seed {seed}"]
    return Data(
        name=name, scaling=Scaling(), shape=(2,), entropy=density.entropy(), notes=notes, **parts
    )


load_checkerboard = functools.partial(load_density, "checkerboard")
load_eight_gaussians = functools.partial(load_density, "eight-gaussians")
load_two_spirals = functools.partial(load_density, "two-spirals")
