"""Draws of a density that is known up to a constant, by proposals that are fitted to it in rounds."""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from indm.tables.columns import Array
from indm.tables.mixture import Mixture

# rounds, and Gaussians of a proposal, at most; effective draws of each Gaussian
ROUNDS, MODES, ROWS_OF_MODE = 5, 4, 25
# candidates of a round, at least: of very few draws a first proposal would decide their law
FEWEST_CANDIDATES = 100
TAILS = 5.0  # degrees of freedom of proposals
VARIANCE_FLOOR = 1e-2  # variance that is added to a mixture
# and to the draws that it is fitted to, relative: scipy calls a covariance singular below 2e-10
LEAST_VARIANCE = 1e-6


class Proposal:
    """A mixture of multivariate t laws of ``weight`` (K,), ``mean`` (K, d) and scale matrix
    ``covariance`` (K, d, d).
    """

    def __init__(self, weight: Array, mean: Array, covariance: Array):
        self.weight = weight
        self.laws = [multivariate_t(*law, df=TAILS) for law in zip(mean, covariance, strict=True)]

    @classmethod
    def fitted(cls, u: Array, weight: Array, rng: np.random.RandomState) -> "Proposal":
        """The proposal fitted to rows (n, d) with weights (n,)."""
        mean = weight @ u
        covariance = (u - mean).T @ ((u - mean) * weight[:, None])
        root = np.linalg.cholesky(
            covariance + LEAST_VARIANCE * (1 + np.trace(covariance)) * np.eye(len(mean))
        )
        v = np.linalg.solve(root, (u[rng.choice(len(u), len(u), p=weight)] - mean).T).T
        components = int(np.clip(effective_number(weight) / ROWS_OF_MODE, 1, MODES))
        law = Mixture.fitted(v, v[:, :0], components, VARIANCE_FLOOR, rng.randint(2**31 - 1))
        return cls(law.weight, mean + law.mean @ root.T, root @ law.covariance @ root.T)

    def draws(self, n: int, rng: np.random.RandomState) -> Array:
        """(n, d)."""
        counts = zip(self.laws, rng.multinomial(n, self.weight), strict=True)
        return np.concatenate(
            [law.rvs(k, random_state=rng).reshape(k, -1) for law, k in counts if k]
        )

    def log_prob(self, u: Array) -> Array:
        """Nats, (n,)."""
        each = np.stack([np.atleast_1d(law.logpdf(u)) for law in self.laws])
        return logsumexp(each, axis=0, b=self.weight[:, None])


def effective_number(weight: Array) -> float:
    """(Σw)²/Σw²: how many draws of equal weight are as good."""
    return float(weight.sum() ** 2 / np.square(weight).sum())


def resampled(
    log_target: Callable[[Array], Array], first: Proposal, n: int, rng: np.random.RandomState
) -> tuple[Array, float]:
    """``n`` draws (n, d) of a density ∝ exp ``log_target``, and their effective number.

    Each round has n candidates, at least 100. All so far are weighted by the target over the mean
    density of the proposals so far, to which the next proposal is fitted. It ends when they are as
    good as n draws, or after five rounds.

    Source: Cornuet et al. 2012, "Adaptive Multiple Importance Sampling",
    https://arxiv.org/abs/0907.1254.
    """
    laws = [first]
    u = np.zeros((0, len(first.laws[0].loc)))
    target = np.zeros(0)
    while True:
        fresh = laws[-1].draws(max(n, FEWEST_CANDIDATES), rng)
        u = np.concatenate([u, fresh])
        target = np.append(target, log_target(fresh))
        log_weight = target - logsumexp([law.log_prob(u) for law in laws], axis=0)
        weight = np.exp(log_weight - logsumexp(log_weight))
        effective = effective_number(weight)
        if effective >= n or len(laws) == ROUNDS:
            return u[rng.choice(len(u), n, p=weight)], effective
        laws.append(Proposal.fitted(u, weight, rng))
