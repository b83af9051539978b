"""Whether posteriors are as wide as they should be: ranks of true parameters, and expected coverage
by TARP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chisquare
from sklearn.utils import check_consistent_length, check_random_state

from indm.tables.columns import Array
from indm.tables.pictures import plot_calibration

MOST_BINS, LEAST_IN_BIN = 10, 10  # bins of the test of uniformity, at most; ranks in each, at least

OWN = 1804_06788  # second seed: a user's simulations may be drawn from the same first one


@dataclass(frozen=True)
class Calibration:
    r"""Ranks of true parameters among posterior draws, which are uniform where the posteriors are
    right.

    The rank of a parameter is the number of draws below its true value (Talts et al. 2018,
    "Validating Bayesian Inference Algorithms with Simulation-Based Calibration"). TARP ranks all
    parameters at once: it counts the draws that are nearer to a random reference point than the
    true θ is (Lemos et al. 2023, "Sampling-Based Accuracy Testing of Posterior Estimators for
    General Inference"). Draws that equal the true θ are on either side at random.

    The prior itself passes both tests. Compare the mean log p to tell a better posterior from it.

    Attributes:
        ranks: of each parameter in each pair, 0 … ``draws``, (pairs, d).
        tarp: the number of draws that are nearer to the reference than the true θ, 0 … ``draws``,
            (pairs,).
        draws: of each posterior.

    Example: draws of deviation 1 and of deviation 1.5, for truths of deviation 1.

        >>> rng = np.random.default_rng(0)
        >>> theta, draws = rng.normal(size=(500, 1)), rng.normal(size=(500, 99, 1))
        >>> right, wide = Calibration.of(theta, draws), Calibration.of(theta, 1.5 * draws)
        >>> bool(right.p_values.min() > 0.05), bool(wide.p_values.max() < 1e-6)
        (True, True)
    """

    ranks: Array
    tarp: Array
    draws: int

    @classmethod
    def of(
        cls,
        theta: Array,
        draws: Array,
        *,
        latents: tuple[Array, Array] | None = None,
        seed: int = 0,
    ):
        """Compare true ``theta`` (pairs, d) with ``draws`` of their posteriors (pairs, draws, d),
        of any method.

        Args:
            theta, draws: parameters.
            latents: both in the coordinates in which TARP measures distances, where references are
                N(0, I). They may depend on x. By default columns are standardised by the true ones.
            seed: of the references, and of ranks among equal draws.
        """
        rng = np.random.default_rng([seed, OWN])
        truth = np.expand_dims(theta, 1)
        equal = draws == truth
        ranks = (draws < truth).sum(1) + rng.integers(0, equal.sum(1) + 1)
        if latents is None:
            mean, std = theta.mean(0), theta.std(0)
            std[std == 0] = 1.0
            latents = (theta - mean) / std, (draws - mean) / std
        references = rng.normal(size=latents[0].shape)
        distance = np.linalg.norm(latents[0] - references, axis=1)
        as_near = equal.all(2)  # the true θ itself, whatever rounding makes of its latents
        nearer = (
            np.linalg.norm(latents[1] - references[:, None], axis=2) < distance[:, None]
        ) & ~as_near
        tarp = nearer.sum(1) + rng.integers(0, as_near.sum(1) + 1)
        return cls(ranks, tarp, draws.shape[1])

    @property
    def p_values(self) -> Array:
        """p-values of the hypothesis that the ranks of a parameter are uniform, (d,)."""
        return np.array([self._p_value(ranks) for ranks in self.ranks.T])

    @property
    def tarp_p_value(self) -> float:
        """The p-value of the hypothesis that the expected coverage is right at all levels."""
        return self._p_value(self.tarp)

    @property
    def p_value(self) -> float:
        """The p-value of both hypotheses, uniform ranks and right coverage, with Bonferroni's
        correction.
        """
        each = [*self.p_values, self.tarp_p_value]
        return min(1.0, len(each) * min(each))

    def coverage(self, level: Any) -> Array:
        """The expected coverage by TARP at levels from 0 to 1, which should be ``level``."""
        return self.below(self.tarp, level)

    def below(self, ranks: Array, level: Any) -> Array:
        """The share of ``ranks`` below each level, ranks being spread evenly over their cell of
        1/(draws + 1).
        """
        edges = np.arange(self.draws + 2) / (self.draws + 1)
        counts = np.bincount(ranks, minlength=self.draws + 1)
        return np.interp(level, edges, np.concatenate([[0], counts.cumsum()]) / len(ranks))

    def _p_value(self, ranks: Array) -> float:
        """The p-value of uniform ranks, by the χ² test of equal bins."""
        bins = max(2, min(MOST_BINS, len(ranks) // LEAST_IN_BIN, self.draws + 1))
        bin_of = np.arange(self.draws + 1) * bins // (self.draws + 1)
        expected = np.bincount(bin_of) / (self.draws + 1) * len(ranks)
        return float(chisquare(np.bincount(bin_of[ranks], minlength=bins), expected).pvalue)

    def __str__(self) -> str:
        """The p-values, first the one of all tests together, and the coverage at three levels."""
        lines = [
            f"p = {self.p_value:.2g} of all tests together; below 0.05 the posterior is not calibrated"
        ]
        lines += [f"θ{i}: p = {p:.2g} of uniform ranks" for i, p in enumerate(self.p_values)]
        levels = ", ".join(f"{self.coverage(level):.3f} at {level}" for level in (0.5, 0.8, 0.95))
        lines += [f"expected coverage {levels}: p = {self.tarp_p_value:.2g}"]
        return "\n".join([*lines, f"{len(self.ranks)} pairs, {self.draws} draws each"])

    def plot(self, path: str | Path, names: Sequence[str] | None = None) -> None:
        """Write a PNG: the expected coverage, and the shares of ranks of each parameter below a
        level.

        Of calibrated posteriors 95 % of the curves stay in the grey band at all levels
        (Kolmogorov's test). Ranks of posteriors that are too wide are below the diagonal under ½
        and above it over ½.
        """
        plot_calibration(self, path, names)


def calibrated(posterior: Any, theta: Any, x: Any, n: int, random_state: Any) -> Calibration:
    """See :meth:`indm.PosteriorEstimator.calibration`."""
    theta = posterior._parameters(theta)
    rows, _ = posterior._observed(x)
    check_consistent_length(theta, rows)
    rng = check_random_state(random_state)
    c = posterior._numbers(rows)
    draws = posterior._sample(n, c, rng)
    c = posterior._density.standardised(c, len(c))
    flat = draws.reshape(len(theta) * n, -1)
    of_draws = posterior._latents(flat, np.repeat(c, n, axis=0))
    latents = posterior._latents(theta, c), of_draws.reshape(len(theta), n, -1)
    parameters = posterior.prior_.parameters
    seed = rng.randint(2**31 - 1)
    return Calibration.of(parameters(theta), parameters(draws), latents=latents, seed=seed)
