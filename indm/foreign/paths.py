r"""Paths x_τ = α(τ) x_0 + σ(τ) n from data to noise, in the units of τ of other libraries."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from indm.checks import did_you_mean, require

Times = Tensor  # τ in float64, (B,)
PATH_ENDS = 1e-4  # distance from the ends of a path on [0, 1] that has no noise, or no data, there
PATH_POINTS = 257  # at which a path is checked
HALVINGS = 60  # halvings of an interval, to find τ: below float64's rounding
# steps of Newton's method, which reach the rounding of float64 on the usual schedules
NEWTON = 6
ROUNDED_INDEX = 1e-4  # largest error of a whole k, from log(σ/α) rounded to float32
MOST_LEVEL = 0.5 * math.log(1e12)  # log(σ/α) from which no signal is left


class Coefficients(NamedTuple):
    """α and σ of a path, and their derivatives in τ, which broadcast against x.

    Attributes:
        alpha, sigma: the scale of the data, and the deviation of the noise.
        d_alpha, d_sigma: dα/dτ and dσ/dτ, which a velocity alone needs; NaN by default.
    """

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor = torch.tensor(math.nan)
    d_sigma: Tensor = torch.tensor(math.nan)


def _noise_from_data(f: Tensor, x: Tensor, p: Coefficients) -> Tensor:
    return (x - p.alpha * f) / p.sigma


def _noise_from_v(f: Tensor, x: Tensor, p: Coefficients) -> Tensor:
    """v = α n − σ x_0."""
    return (p.sigma * x + p.alpha * f) / (p.alpha**2 + p.sigma**2)


def _noise_from_velocity(f: Tensor, x: Tensor, p: Coefficients) -> Tensor:
    """u = α′ x_0 + σ′ n."""
    return (p.alpha * f - p.d_alpha * x) / (p.alpha * p.d_sigma - p.d_alpha * p.sigma)


# The noise n̂ from the output f of a network of each kind, and x_τ.
PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, Coefficients], Tensor]] = {
    "noise": lambda f, x, p: f,
    "data": _noise_from_data,
    "v": _noise_from_v,
    "score": lambda f, x, p: -p.sigma * f,
    "velocity": _noise_from_velocity,
}


class Path(ABC):
    """A path x_τ = α(τ) x_0 + σ(τ) n.

    Attributes:
        range: the τ of the least noise and the τ where sampling starts; either may be larger.
        prior_std: deviation of the normal law at the start of sampling, in units of x.
        is_table: whether it is a table of steps.
    """

    is_table = False
    range: tuple[float, float]
    prior_std: float

    @abstractmethod
    def alpha(self, tau: Times) -> Tensor:
        """The scale of the data."""

    @abstractmethod
    def sigma(self, tau: Times) -> Tensor:
        """The deviation of the noise."""

    def level(self, tau: Times) -> Tensor:
        """log(σ/α)."""
        return self.sigma(tau).log() - self.alpha(tau).log()

    def time(self, level: Tensor) -> Times:
        """The inverse of :meth:`level`, by bisection."""
        low, high = (torch.full_like(level, end) for end in self.range)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            above = self.level(middle) > level
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)

    def slopes(self, tau: Times) -> tuple[Tensor, Tensor]:
        """dα/dτ and dσ/dτ."""
        with torch.inference_mode(False), torch.enable_grad():
            tau = tau.detach().clone().requires_grad_()
            values = (self.alpha(tau) + 0 * tau, self.sigma(tau) + 0 * tau)
            alpha, sigma = (torch.autograd.grad(value.sum(), tau)[0] for value in values)
        return alpha, sigma

    def others(self) -> Iterator[tuple[str, "Path", Any]]:
        """Other descriptions to try: words, a path, and the network's second argument for τ."""
        yield from (
            (f"path={name!r}", path, torch.clone)
            for name, path in NAMED.items()
            if 0 < path.range[0] < 1
        )
        yield "τ counted from the other end", self, lambda tau: sum(self.range) - tau
        yield "1000 τ as the network's time", self, lambda tau: 1000 * tau

    def whole_levels(self) -> Tensor:
        """log(σ/α) of each step, (K,), the least noise first; ValueError if there are no steps."""
        raise ValueError(
            "path must be a table of steps, {'betas': …} or {'alphas_bar': …}, for a bound of its steps"
        )


class Sigmas(Path):
    """α = 1 and σ = τ, from ``low`` to ``high``: EDM, and every VE diffusion."""

    def __init__(self, low: float = 0.002, high: float = 80.0):
        require(0 < low < high, "path sigmas", (low, high), "(low, high) with 0 < low < high")
        self.range, self.prior_std = (float(low), float(high)), float(high)

    def alpha(self, tau: Times) -> Tensor:
        return torch.ones_like(tau)

    def sigma(self, tau: Times) -> Tensor:
        return tau

    def time(self, level: Tensor) -> Times:
        return level.exp()

    def others(self) -> Iterator[tuple[str, "Path", Any]]:
        yield "¼ log σ as the network's time", self, lambda sigma: 0.25 * sigma.log()
        yield (
            "σ as the network's time, without ¼ log",
            self,
            lambda sigma: (4 * sigma).exp().clamp_max(1e38),
        )


class Steps(Path):
    """K steps τ = 0 … K − 1 with α² = ᾱ_k and σ² = 1 − ᾱ_k; log(σ/α) is a monotone cubic between.

    Steps at the end with ᾱ = 0 (zero terminal SNR) or nearly so are cut off, because log(σ/α) is
    infinite there.
    """

    is_table, prior_std = True, 1.0

    def __init__(self, alphas_bar: Tensor | Sequence[float]):
        table = torch.as_tensor(alphas_bar, dtype=torch.float64, device="cpu").flatten()
        levels = 0.5 * ((1 - table).log() - table.log())
        kept = int((levels < MOST_LEVEL).sum()) if bool((levels.diff() > 0).all()) else 0
        if kept < 2 or not bool(((table >= 0) & (table < 1)).all()):
            raise ValueError(
                "path alphas_bar must be at least 2 numbers of [0, 1) that fall from step to step (betas in (0, 1)), "
                f"got {len(table)} from {table[:1].tolist()} to {table[-1:].tolist()}"
            )
        if kept < len(table):
            words = f"the last {len(table) - kept} of {len(table)} steps has no signal (zero terminal SNR)"
            warnings.warn(
                f"{words}: the path ends at step {kept - 1}", RuntimeWarning, stacklevel=2
            )
        self.levels = levels[:kept]
        self.range = (0.0, float(kept - 1))
        slopes = PchipInterpolator(range(kept), self.levels.numpy()).derivative()(range(kept))
        self.rates = torch.as_tensor(slopes, device="cpu")  # d log(σ/α)/dk

    def level(self, tau: Times) -> Tensor:
        tau = tau.clamp(*self.range)
        below = tau.floor().clamp_max(len(self.levels) - 2).long()
        return _cubic(*self._ends(below), tau - below)[0]

    def _ends(self, below: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log(σ/α) and its slope at the steps ``below`` and at the next steps."""
        levels, rates = self.levels.to(below.device), self.rates.to(below.device)
        return levels[below], rates[below], levels[below + 1], rates[below + 1]

    def alpha(self, tau: Times) -> Tensor:
        return (-2 * self.level(tau)).sigmoid().sqrt()

    def sigma(self, tau: Times) -> Tensor:
        return (2 * self.level(tau)).sigmoid().sqrt()

    def time(self, level: Tensor) -> Times:
        levels = self.levels.to(level.device)
        below = torch.searchsorted(levels, level.contiguous()).clamp(1, len(levels) - 1) - 1
        ends = self._ends(below)
        share = ((level - ends[0]) / (ends[2] - ends[0])).clamp(0, 1)
        for _ in range(NEWTON):
            value, slope = _cubic(*ends, share)
            share = (share - (value - level) / slope).clamp(0, 1)
        tau = below + share
        return torch.where((tau - tau.round()).abs() < ROUNDED_INDEX, tau.round(), tau)

    def others(self) -> Iterator[tuple[str, "Path", Any]]:
        last = self.range[1]
        yield "k + 1 in place of k", self, lambda k: (k + 1).clamp_max(last)
        yield "k − 1 in place of k", self, lambda k: (k - 1).clamp_min(0)
        yield "k counted from the other end", self, lambda k: last - k
        yield "k/K as the network's time", self, lambda k: k / (last + 1)

    def whole_levels(self) -> Tensor:
        return self.levels


def _cubic(
    low: Tensor, low_rate: Tensor, high: Tensor, high_rate: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and slope at ``s`` of Hermite's cubic on [0, 1] with these values and slopes."""
    rise = high - low
    a, b = low_rate + high_rate - 2 * rise, 3 * rise - 2 * low_rate - high_rate
    return low + s * (low_rate + s * (b + s * a)), low_rate + s * (2 * b + 3 * s * a)


class _OfTheUnitInterval(Path):
    """A path on [0, 1] between data and noise; the noise is at τ = 1, or at 0 if ``reversed``."""

    def __init__(self, reversed: bool = False):
        self.reversed = reversed
        self.range = (1 - PATH_ENDS, PATH_ENDS) if reversed else (PATH_ENDS, 1 - PATH_ENDS)
        self.prior_std = float(self.sigma(torch.tensor(self.range[1], dtype=torch.float64)))

    def alpha(self, tau: Times) -> Tensor:
        return self.ramp(tau if self.reversed else 1 - tau)

    def sigma(self, tau: Times) -> Tensor:
        return self.ramp(1 - tau if self.reversed else tau)

    @staticmethod
    @abstractmethod
    def ramp(s: Tensor) -> Tensor:
        """α at the distance s from the noise."""


class Linear(_OfTheUnitInterval):
    """α = 1 − τ, σ = τ: flow matching and rectified flows; ``reversed``: α = τ, σ = 1 − τ."""

    @staticmethod
    def ramp(s: Tensor) -> Tensor:
        return s

    def time(self, level: Tensor) -> Times:
        return (-level if self.reversed else level).sigmoid()


class Trigonometric(_OfTheUnitInterval):
    """α = cos(πτ/2), σ = sin(πτ/2); ``reversed`` the other way round."""

    @staticmethod
    def ramp(s: Tensor) -> Tensor:
        return (0.5 * math.pi * s).sin()

    def time(self, level: Tensor) -> Times:
        return (2 / math.pi) * ((-level if self.reversed else level).exp()).atan()


class Given(Path):
    """The path of an object with ``alpha(τ)``, ``sigma(τ)`` and ``range``.

    It may have a ``prior_std``, by default σ at the start of sampling.
    """

    def __init__(self, path: Any):
        self.path = path
        first, last = (float(end) for end in path.range)
        self.range = (first, last)
        levels = self.level(torch.linspace(first, last, PATH_POINTS, dtype=torch.float64))
        if not bool(levels.isfinite().all()) or not bool((levels.diff() > 0).all()):
            where = f"range[0] = {first:g} to range[1] = {last:g}"
            got = f"{levels[0]:.3g} and {levels[-1]:.3g} there"
            raise ValueError(f"path must have a finite log(σ/α) that rises from {where}, got {got}")
        self.prior_std = float(
            getattr(path, "prior_std", self.sigma(torch.tensor(last, dtype=torch.float64)))
        )

    def alpha(self, tau: Times) -> Tensor:
        return self.path.alpha(tau) * torch.ones_like(tau)

    def sigma(self, tau: Times) -> Tensor:
        return self.path.sigma(tau) * torch.ones_like(tau)


NAMED: Mapping[str, Path] = {
    "edm": Sigmas(),
    "linear": Linear(),
    "linear-reversed": Linear(reversed=True),
    "trigonometric": Trigonometric(),
    "trigonometric-reversed": Trigonometric(reversed=True),
}
PATH_TABLES: Mapping[str, Any] = {
    "sigmas": lambda ends: Sigmas(*ends),
    "betas": lambda betas: Steps(
        (1 - torch.as_tensor(betas, dtype=torch.float64, device="cpu")).cumprod(0)
    ),
    "alphas_bar": Steps,
}


def path_of(path: Any) -> Path:
    """The path that ``path`` stands for: a name, a table of numbers, or an object.

    >>> path_of("edm").range, path_of({"betas": [0.1, 0.2, 0.3]}).range
    ((0.002, 80.0), (0.0, 2.0))
    """
    words = f"{', '.join(map(repr, NAMED))}, {', '.join(f'{{{name!r}: …}}' for name in PATH_TABLES)}, or an object"
    if isinstance(path, Path):
        return path
    if isinstance(path, str) and path in NAMED:
        return NAMED[path]
    if isinstance(path, Mapping) and len(path) == 1 and next(iter(path)) in PATH_TABLES:
        ((name, numbers),) = path.items()
        return PATH_TABLES[name](numbers)
    if not isinstance(path, str | Mapping) and all(
        hasattr(path, name) for name in ("alpha", "sigma", "range")
    ):
        return Given(path)
    hint = did_you_mean(path, NAMED) if isinstance(path, str) else ""
    raise ValueError(
        f"path must be one of {words} with alpha, sigma and range, got {path!r:.60}{hint}"
    )
