r"""Schedules of each entry of the latent that depend on a code c of z_0.

Given c this is a variance-preserving linear diffusion, entry i of which ages on a clock of its own,

.. math:: \gamma_i(c, \Lambda) = \Lambda_\epsilon + (\Lambda_T - \Lambda_\epsilon)\,
          \frac{\int_0^p s_i(c, u)\,du}{\int_0^1 s_i(c, u)\,du}, \qquad s_i > 0,

with p ∈ [0, 1] the place on the common clock Λ; α_i² = sigmoid(−γ_i) and σ_i² = sigmoid(γ_i). All entries agree at both
ends. The bound is that given c ~ q(c|z_0), plus KL(q(c|z_0) ‖ p(c)), and the network of the score sees c.
"""

import functools
import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.objective import legendre
from indm.rng import rand_like, randn_like
from indm.sde.linear import VPSDE, Kernel, LinearSDE, Times
from indm.tensors import Batch, PerSample, double, expand_like, image_or_vector, zeroed
from research.forward.base import Linear

LARGEST_COEFFICIENT = 3.0  # of a slope
MOST_TERMS = 16  # up to which the nodes give integrals of slopes to 1e-8
Codes = Float[Tensor, "batch code"]


@functools.cache
def quadrature(terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1] for integrals of slopes of ``terms`` with the largest coefficients; and what takes
    the values of a function at the nodes to the coefficients of its Legendre series, (nodes, nodes)."""
    x, weights = np.polynomial.legendre.leggauss(max(24, 20 * terms - 44))
    polynomials = np.polynomial.legendre.legvander(x, len(x) - 1)
    projection = (np.arange(len(x)) + 0.5)[:, None] * (polynomials * weights[:, None]).T
    return 0.5 * (1 + x), 0.5 * weights, projection


class ScheduledVP(LinearSDE):
    """The variance-preserving SDE at given codes, whose coefficients are (B, *event) at times (B,).

    Args:
        base: a VP diffusion, for the common clock and the prior.
        coefficients: (B, terms, *event), of the slopes.
        slope: "polynomial" or "network", see :class:`Coded`.
    """

    def __init__(self, base: LinearSDE, coefficients: Tensor, slope: str):
        super().__init__(base.eps)
        self.base, self.coefficients, self.slope = base, coefficients, slope
        self.prior_mean = base.prior_mean

    def log_snr(self, t: Times) -> Times:
        return self.base.log_snr(t)

    def time(self, log_snr: Times) -> Times:
        return self.base.time(log_snr)

    def kernel(self, t: Times) -> Kernel:
        """All from one integral of the slopes."""
        clock, rate = self._clock(t)
        return Kernel((-0.5 * F.softplus(clock)).to(t), (-0.5 * F.softplus(-clock)).exp().to(t), rate.to(t))

    def log_alpha(self, t: Times) -> Tensor:
        return self.kernel(t).log_alpha

    def sigma(self, t: Times) -> Tensor:
        return self.kernel(t).sigma

    def marginal_std(self, t: Times) -> Tensor:
        """1 at all times, entries and codes."""
        return torch.ones_like(t).reshape(*t.shape, *(1 for _ in self.coefficients.shape[2:]))

    def drift(self, t: Times) -> Tensor:
        return -0.5 * self.diffusion(t) ** 2

    def diffusion(self, t: Times) -> Tensor:
        clock, rate = self._clock(t)
        speed = (self.base.diffusion(double(t)) / self.base.sigma(double(t))) ** 2
        return (clock.sigmoid() * rate * expand_like(speed, rate)).sqrt().to(t)

    def clock_rate(self, t: Times) -> Tensor:
        return self.kernel(t).rate

    def _clock(self, t: Times) -> tuple[Tensor, Tensor]:
        """γ_i, and its derivative along the common clock, in float64."""
        start, end = self.base.clock_span()
        place = self.base.place(self.base.clock(t)).clamp(0, 1)
        share, slope = self._share(place)
        return start + (end - start) * share, slope

    def _share(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """∫_0^p s du / ∫_0^1 s du, and its derivative."""
        place = place.expand(len(self.coefficients))
        weights = weights_to(place, self.coefficients.shape[1])
        part = torch.einsum("bn,bn...->b...", weights, self._at_nodes)
        return part / self._whole, self._slope(place[:, None])[:, 0] / self._whole

    @functools.cached_property
    def _at_nodes(self) -> Tensor:
        """s at the nodes, which give all its integrals."""
        nodes = torch.from_numpy(quadrature(self.coefficients.shape[1])[0])
        return self._slope(nodes.to(double(self.coefficients)).expand(len(self.coefficients), -1))

    @functools.cached_property
    def _whole(self) -> Tensor:
        """∫_0^1 s du."""
        weights = torch.from_numpy(quadrature(self.coefficients.shape[1])[1])
        return torch.einsum("n,bn...->b...", weights.to(self._at_nodes), self._at_nodes)

    def _slope(self, places: Float[Tensor, "batch places"]) -> Float[Tensor, "batch places *event"]:
        """s at ``places``."""
        polynomials = legendre(places, self.coefficients.shape[1])
        series = torch.einsum("bnk,bk...->bn...", polynomials, double(self.coefficients))
        return (1 + series).square() + 1e-3 if self.slope == "polynomial" else series.exp()


def weights_to(place: Float[Tensor, " batch"], terms: int) -> Float[Tensor, "batch nodes"]:
    r"""Of the nodes for ∫_0^p s du: of the polynomial through the values of s there, whose Legendre series is known.

    ∫_0^p P_k(2u − 1) du is p for k = 0 and (P_{k+1} − P_{k−1})/(2(2k + 1)) at 2p − 1 for others.
    """
    projection = torch.from_numpy(quadrature(terms)[2]).to(place)
    count = len(projection)
    P, factors = legendre(place, count + 1), 2.0 * torch.arange(1, count).to(place) + 1
    integrals = torch.cat([place[:, None], (P[:, 2:] - P[:, :-2]) / (2 * factors)], 1)
    return integrals @ projection


class Code(nn.Module, ABC):
    """q(c|z_0), a learned prior p(c), and draws of both; q is p at first.

    Args:
        shape: event shape of z_0.
        size: numbers of a code.
        width: hidden channels of the encoder.
    """

    numbers = 1  # of q, for each number of the code

    def __init__(self, shape: tuple[int, ...], size: int, width: int):
        super().__init__()
        if len(shape) == 3:
            sides = [-(-side // 4) for side in shape[1:]]
            layers = [nn.Conv2d(shape[0], width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 2, 1), nn.SiLU()]
        else:
            sides, layers = [], [nn.Linear(math.prod(shape), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        output = zeroed(nn.Linear(width * math.prod(sides), self.numbers * size))
        self.encoder = nn.Sequential(*layers, nn.Flatten(), output)
        self.prior = nn.Parameter(torch.zeros(self.numbers, size))

    def posterior(self, z: Batch) -> Float[Tensor, "numbers batch code"]:
        """The numbers of q(c|z)."""
        return (self.encoder(z).unflatten(1, (self.numbers, -1)) + self.prior).transpose(0, 1)

    @abstractmethod
    def draw(self, numbers: Float[Tensor, "numbers batch code"], generator: torch.Generator | None) -> Codes:
        """A draw, in which ``numbers`` have a gradient."""

    @abstractmethod
    def kl(self, numbers: Float[Tensor, "numbers batch code"]) -> PerSample:
        """KL(q ‖ p), nats."""

    @abstractmethod
    def log_prob(self, code: Codes, numbers: Float[Tensor, "numbers batch code"]) -> PerSample:
        """The logarithm of the law of those ``numbers`` at a code, nats."""


class GaussianCode(Code):
    """Independent Gaussians: the numbers are means and logarithms of the deviations."""

    numbers = 2

    def draw(self, numbers: Tensor, generator: torch.Generator | None) -> Codes:
        mean, log_std = numbers
        return mean + log_std.exp() * randn_like(mean, generator)

    def kl(self, numbers: Tensor) -> PerSample:
        (mean, log_std), (prior_mean, prior_log_std) = numbers, self.prior
        ratio = 2 * (log_std - prior_log_std)
        return 0.5 * (ratio.exp() - 1 - ratio + ((mean - prior_mean) / prior_log_std.exp()) ** 2).sum(1)

    def log_prob(self, code: Codes, numbers: Tensor) -> PerSample:
        mean, log_std = numbers
        return (-0.5 * ((code - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(1)


class BinaryCode(Code):
    """Independent bits, −1 or 1: the numbers are logits.

    The gradient of a draw is that of its mean (straight-through), which is biased; the bound is not.
    """

    def draw(self, numbers: Tensor, generator: torch.Generator | None) -> Codes:
        (logit,) = numbers
        mean = logit.sigmoid()
        bit = (rand_like(mean, generator) < mean).to(mean)
        return 2 * (bit + (mean - mean.detach())) - 1

    def kl(self, numbers: Tensor) -> PerSample:
        (logit,), (prior,) = numbers, self.prior
        on = logit.sigmoid() * (F.logsigmoid(logit) - F.logsigmoid(prior))
        return (on + (-logit).sigmoid() * (F.logsigmoid(-logit) - F.logsigmoid(-prior))).sum(1)

    def log_prob(self, code: Codes, numbers: Tensor) -> PerSample:
        (logit,) = numbers
        return F.logsigmoid(code * logit).sum(1)


CODES: dict[str, type[Code]] = {"gaussian": GaussianCode, "binary": BinaryCode}


class Coded(Linear):
    """A schedule of each entry that depends on a code of z_0; given the code the diffusion is linear.

    Args:
        shape: event shape, (C, H, W) or (D,).
        code: "gaussian" or "binary".
        code_size: numbers of a code.
        slope: "polynomial", (1 + Σ_k a_k P_k)² + 0.001, or "network", exp(Σ_k a_k P_k): of the clock of an entry,
            P_k the Legendre polynomials of the place on the common clock. Their integral is monotone whatever the
            network c → a makes, as that of an unconstrained monotonic network, https://arxiv.org/abs/1908.05164.
        terms: of the sum, 2 to 16: the first one alone changes no clock.
        width: hidden channels of the encoder and of the network c → a.

    Source: Sahoo et al. 2024, "Diffusion Models With Learned Adaptive Noise", https://arxiv.org/abs/2312.13236.

    Example: given a code it is variance preserving; each entry has a clock of its own, and they agree at the ends.

        >>> process, sde = Coded((3,), code_size=4), VPSDE()
        >>> _ = nn.init.normal_(process.schedule[-1].weight)
        >>> code, kl, _ = process.encoded(torch.randn(5, 3))
        >>> given, t = process.sde_at(sde, code), torch.full((5,), 0.5)
        >>> given.sigma(t).shape, torch.allclose(given.alpha(t) ** 2 + given.sigma(t) ** 2, torch.ones(5, 3))
        (torch.Size([5, 3]), True)
        >>> torch.allclose(given.sigma(2 * t), sde.sigma(2 * t)[:, None].expand(5, 3))
        True
    """

    any_truncation = False  # its schedules are pinned at ε and T

    def __init__(
        self,
        shape: tuple[int, ...],
        code: Literal["gaussian", "binary"] = "gaussian",
        code_size: int = 16,
        slope: Literal["polynomial", "network"] = "network",
        terms: int = 3,
        width: int = 32,
    ):
        super().__init__()
        shape = image_or_vector(shape)
        if code not in CODES:
            raise ValueError(f"code must be one of {', '.join(CODES)}, got {code!r}")
        if slope not in ("polynomial", "network"):
            raise ValueError(f'slope must be "polynomial" or "network", got {slope!r}')
        if min(code_size, width) < 1 or not 2 <= terms <= MOST_TERMS:
            raise ValueError(
                f"code_size and width must be at least 1 and terms from 2 to {MOST_TERMS}, got {code_size}, {width} "
                f"and {terms}; 16, 32 and 3 are usual"
            )
        self.shape, self.code, self.code_size, self.slope = shape, code, code_size, slope
        self.terms, self.width = terms, width
        self.law = CODES[code](shape, code_size, width)
        output = zeroed(nn.Linear(width, terms * math.prod(shape)))
        self.schedule = nn.Sequential(nn.Linear(code_size, width), nn.SiLU(), output)

    @property
    def seen_shape(self) -> tuple[int, ...]:
        return (self.code_size,)

    def is_scalar(self, sde: LinearSDE) -> bool:
        return False

    def encoded(self, z: Batch, generator: torch.Generator | None = None) -> tuple[Codes, PerSample, PerSample]:
        numbers = self.law.posterior(z)
        code = self.law.draw(numbers, generator)
        ratio = self.law.log_prob(code, numbers) - self.law.log_prob(code, self.law.prior[:, None])
        return code, self.law.kl(numbers), ratio

    def drawn(self, z: Batch, generator: torch.Generator | None = None) -> Codes:
        return self.law.draw(self.law.prior[:, None].expand(-1, len(z), -1), generator)

    def sde_at(self, base: LinearSDE, code: Codes) -> ScheduledVP:
        """The SDE given codes.

        Raises:
            ValueError: the model's SDE is not VP.
        """
        if not isinstance(base, VPSDE):
            raise ValueError(f"sde must be vp for a coded forward process, got {type(base).__name__}")
        values = self.schedule(code).unflatten(1, (self.terms, *self.shape))
        return ScheduledVP(base, LARGEST_COEFFICIENT * (values / LARGEST_COEFFICIENT).tanh(), self.slope)
