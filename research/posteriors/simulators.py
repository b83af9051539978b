"""Simulators x | θ of three posteriors p(θ|x): one Gaussian, one in closed form, one sampled by Markov chains.

They are the benchmark problems of Lueckmann et al. 2021 ("Benchmarking simulation-based inference"). Rows are samples;
x is one observation where a posterior is asked for. Logs are nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

Array = np.ndarray
Numbers = np.random.Generator


class Simulator(ABC):
    """A prior, and the law of x given θ."""

    bound: float = math.inf  # |θ| of the prior, at most

    @abstractmethod
    def prior(self, n: int, numbers: Numbers) -> Array:
        """``n`` draws of θ."""

    @abstractmethod
    def simulated(self, theta: Array, numbers: Numbers) -> Array:
        """A draw of x for each row of θ."""

    @abstractmethod
    def log_likelihood(self, theta: Array, x: Array) -> Array:
        """log p(x|θ) of each row of θ, for one x or one for each."""

    @abstractmethod
    def posterior(self, x: Array, n: int, numbers: Numbers) -> Array:
        """``n`` draws of p(θ|x)."""

    def pairs(self, n: int, numbers: Numbers) -> tuple[Array, Array]:
        """``n`` draws of (θ, x)."""
        theta = self.prior(n, numbers)
        return theta, self.simulated(theta, numbers)

    def inside(self, theta: Array) -> Array:
        """Whether rows are in the support of the prior."""
        return (np.abs(theta) <= self.bound).all(1)


class LinearGaussian(Simulator):
    """θ ~ N(0, v I), x ~ N(θ, v I), v = 0.1, so p(θ|x) = N(x/2, v/2 I): ten numbers each."""

    size, std = 10, math.sqrt(0.1)

    def prior(self, n: int, numbers: Numbers) -> Array:
        return self.std * numbers.standard_normal((n, self.size))

    def simulated(self, theta: Array, numbers: Numbers) -> Array:
        return theta + self.std * numbers.standard_normal(theta.shape)

    def log_likelihood(self, theta: Array, x: Array) -> Array:
        return norm.logpdf(x, theta, self.std).sum(1)

    def posterior(self, x: Array, n: int, numbers: Numbers) -> Array:
        return x / 2 + self.std / math.sqrt(2) * numbers.standard_normal((n, self.size))

    def log_posterior(self, theta: Array, x: Array) -> Array:
        return norm.logpdf(theta, x / 2, self.std / math.sqrt(2)).sum(1)


class TwoMoons(Simulator):
    """x = p + y(θ): p on a thin half circle, y = (−|θ₁ + θ₂|, θ₂ − θ₁)/√2, θ uniform in [−1, 1]².

    y is a rotation of θ but for a sign, so p(θ|x) is the law of p, turned, at both signs, within the prior.
    """

    bound, radius, std, centre = 1.0, 0.1, 0.01, np.array([0.25, 0.0])

    def prior(self, n: int, numbers: Numbers) -> Array:
        return numbers.uniform(-1, 1, (n, 2))

    def crescent(self, n: int, numbers: Numbers) -> Array:
        """Draws of p."""
        angle, r = numbers.uniform(-math.pi / 2, math.pi / 2, n), numbers.normal(self.radius, self.std, n)
        return self.centre + r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)

    def simulated(self, theta: Array, numbers: Numbers) -> Array:
        return self.crescent(len(theta), numbers) + self.shift(theta)

    @staticmethod
    def shift(theta: Array) -> Array:
        """y(θ)."""
        return np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)

    def log_likelihood(self, theta: Array, x: Array) -> Array:
        p = x - self.shift(theta) - self.centre
        r = np.linalg.norm(p, axis=1)
        return np.where(p[:, 0] > 0, norm.logpdf(r, self.radius, self.std) - np.log(math.pi * r), -np.inf)

    def posterior(self, x: Array, n: int, numbers: Numbers) -> Array:
        found = np.zeros((0, 2))
        while len(found) < n:
            found = np.concatenate([found, self._inverted(x, 2 * n, numbers)])
        return found[:n]

    def _inverted(self, x: Array, n: int, numbers: Numbers) -> Array:
        """θ from ``n`` draws of p and of a sign, without those outside the prior."""
        y = x - self.crescent(n, numbers)
        total = np.where(numbers.random(n) < 0.5, -1, 1) * y[:, 0]
        theta = np.stack([total - y[:, 1], total + y[:, 1]], 1) / math.sqrt(2)
        return theta[(y[:, 0] <= 0) & self.inside(theta)]

    def log_posterior(self, theta: Array, x: Array, draws: int = 200_000) -> Array:
        """log p(θ|x); the share of the crescents within the prior is estimated from ``draws``."""
        share = len(self._inverted(x, draws, np.random.default_rng(0))) / draws
        log_p = self.log_likelihood(theta, x) - math.log(2 * share)
        return np.where(self.inside(theta), log_p, -np.inf)


class SLCP(Simulator):
    """Simple likelihood, complex posterior: x is four points of N(m, S), and θ five numbers, uniform in [−3, 3].

    m = (θ₁, θ₂), the deviations are θ₃² and θ₄², and the correlation is tanh θ₅. The signs of θ₃ and θ₄ make four
    modes of one law.
    """

    bound = 3.0

    def prior(self, n: int, numbers: Numbers) -> Array:
        return numbers.uniform(-3, 3, (n, 5))

    def simulated(self, theta: Array, numbers: Numbers) -> Array:
        noise, correlation = numbers.standard_normal((2, len(theta), 4)), np.tanh(theta[:, 4:])
        second = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1]
        points = np.stack([noise[0], second], 2) * theta[:, None, 2:4] ** 2 + theta[:, None, :2]
        return points.reshape(len(theta), 8)

    def log_likelihood(self, theta: Array, x: Array) -> Array:
        deviation, correlation = theta[:, None, 2:4] ** 2, np.tanh(theta[:, 4:])
        u, v = np.moveaxis((x.reshape(-1, 4, 2) - theta[:, None, :2]) / deviation, 2, 0)
        rest = 1 - correlation**2
        square = (u**2 - 2 * correlation * u * v + v**2) / rest
        log_volume = np.log(deviation).sum(2) + 0.5 * np.log(rest) + math.log(2 * math.pi)
        return -(0.5 * square + log_volume).sum(1)

    def posterior(self, x: Array, n: int, numbers: Numbers, steps: int = 5000, spread: float = 1.0) -> Array:
        """The walkers of an ensemble after ``steps`` moves.

        They walk where θ₃ and θ₄ are positive, and get signs at the end. They start in the prior, shrunk by ``spread``.
        """

        def log_density(theta: Array) -> Array:
            with np.errstate(all="ignore"):  # outside of the prior
                inside = self.inside(theta) & (theta[:, 2:4] > 0).all(1)
                return np.where(inside, self.log_likelihood(theta, x), -np.inf)

        start = spread * self.prior(n, numbers)
        start[:, 2:4] = np.abs(start[:, 2:4]) + 3 * (1 - spread)
        theta = ensemble(log_density, start, steps, numbers)
        theta[:, 2:4] *= numbers.choice([-1, 1], (n, 2))
        return theta


SIMULATORS: dict[str, Simulator] = {"linear-gaussian": LinearGaussian(), "two-moons": TwoMoons(), "slcp": SLCP()}


def ensemble(log_density: Callable[[Array], Array], start: Array, steps: int, numbers: Numbers) -> Array:
    """Walkers (n, d), n even, after ``steps`` stretch moves, half of them at a time (Goodman and Weare 2010).

    A walker at θ moves to θ′ + s (θ − θ′), θ′ being one of the other half and s ∈ [1/2, 2] of density ∝ s^{−1/2}.
    """
    walkers, value, half, d = start.copy(), log_density(start), len(start) // 2, start.shape[1]
    for _ in range(steps):
        for own, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            stretch = (1 + numbers.random(half)) ** 2 / 2
            other = walkers[others][numbers.integers(half, size=half)]
            proposed = other + stretch[:, None] * (walkers[own] - other)
            new = log_density(proposed)
            moves = np.log(numbers.random(half)) < (d - 1) * np.log(stretch) + new - value[own]
            walkers[own][moves], value[own][moves] = proposed[moves], new[moves]
    return walkers
