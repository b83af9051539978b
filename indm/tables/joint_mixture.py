"""Gaussian mixtures of all columns of a table with missing entries and categories, by expectation maximisation."""

import time
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.cluster import KMeans

from indm.tables.mixture import EM_STEPS, PER_COMPONENT, best_of, log_gaussians

COMPONENTS, FLOORS = (1, 2, 3, 5, 8, 12, 20), (1e-2, 1e-3)  # that are tried; of the covariances
CHANGE = 1e-3  # nats of a row between two steps, below which a fit ends
COUNT = 1.0  # of each category in each component before any row is seen

Array = np.ndarray


@dataclass(frozen=True)
class JointMixture:
    r"""A mixture of K components: numbers are N(mean_k, covariance_k), categories independent of them and each other.

    Args:
        weight: (K,).
        mean: (K, d).
        covariance: (K, d, d).
        log_share: (K, m), log of the probability of each value of each column of categories, one column after another.

    Example: the density of the first number alone is that of its own marginal.

        >>> law = JointMixture(np.ones(1), np.zeros((1, 2)), np.array([[[1.0, 0.9], [0.9, 1.0]]]), np.zeros((1, 0)))
        >>> law.log_prob(np.array([[0.0, np.nan]]), np.zeros((1, 0))).round(4)  # −½ log 2π
        array([-0.9189])
    """

    weight: Array
    mean: Array
    covariance: Array
    log_share: Array

    @classmethod
    def fitted(
        cls,
        z: Array,
        categories: Array,
        sizes: tuple[int, ...],
        components: int,
        floor: float,
        seed: int,
        until: float = np.inf,
    ) -> "JointMixture":
        """The mixture for numbers ``z`` (n, d) with NaN where they are missing, and one-hot ``categories`` (n, m).

        A row of ``categories`` has zeros for a missing one. ``sizes`` are the numbers of values of the columns of
        categories. ``floor`` is added to the variances. It ends at ``until`` of the clock, at the latest.
        """
        share = _clusters(z, categories, components, seed)
        filled = np.where(np.isnan(z), 0.0, z)[None].repeat(components, 0)
        rest = np.zeros((components, z.shape[1], z.shape[1]))
        law, before = cls._most_likely(share, filled, rest, categories, sizes, floor), -np.inf
        for _ in range(EM_STEPS):
            share, filled, rest, value = law._expected(z, categories)
            if value - before < CHANGE or time.perf_counter() > until:
                break
            before, law = value, cls._most_likely(share, filled, rest, categories, sizes, floor)
        return law

    @classmethod
    def _most_likely(
        cls, share: Array, filled: Array, rest: Array, categories: Array, sizes: tuple[int, ...], floor: float
    ) -> "JointMixture":
        """The mixture whose rows have the ``share`` (n, K) of components and the expected values ``filled`` (K, n, d).

        ``rest`` (K, d, d) is what the missing entries add to the scatter of each component.
        """
        count = share.sum(0) + 1e-9
        mean = np.einsum("nk,knd->kd", share, filled) / count[:, None]
        offset = filled - mean[:, None]
        scatter = np.matmul((offset * share.T[:, :, None]).swapaxes(1, 2), offset)
        covariance = (scatter + rest) / count[:, None, None] + floor * np.eye(filled.shape[2])
        found, seen = np.zeros((len(count), categories.shape[1])), share.T @ categories
        for part in _blocks(sizes):
            total = seen[:, part] + COUNT * categories[:, part].mean(0) + 1e-3
            found[:, part] = np.log(total / total.sum(1, keepdims=True))
        return cls(count / count.sum(), mean, covariance, found)

    def _expected(self, z: Array, categories: Array) -> tuple[Array, Array, Array, float]:
        """Shares, expected values and scatter of :meth:`_most_likely`, and the mean log p of the rows."""
        n, d = z.shape
        components = len(self.weight)
        filled, log_prob = np.zeros((components, n, d)), np.zeros((n, components))
        spread: list[tuple[Array, Array]] = []
        for there, rows in _patterns(z):
            known, missing = np.flatnonzero(there), np.flatnonzero(~there)
            log_prob[rows] = log_gaussians(z[np.ix_(rows, known)], self.mean[:, known], _part(self.covariance, known))
            across = self.covariance[:, known][:, :, missing]
            slope = np.linalg.solve(_part(self.covariance, known), across)
            offset = z[np.ix_(rows, known)] - self.mean[:, None, known]
            filled[:, rows[:, None], known] = z[np.ix_(rows, known)]
            filled[:, rows[:, None], missing] = self.mean[:, None, missing] + offset @ slope
            left = np.zeros((components, d, d))
            left[:, missing[:, None], missing] = _part(self.covariance, missing) - across.swapaxes(1, 2) @ slope
            spread.append((rows, left))
        log_prob += np.log(self.weight) + categories @ self.log_share.T
        total = logsumexp(log_prob, axis=1)
        share = np.exp(log_prob - total[:, None])
        rest = sum(share[rows].sum(0)[:, None, None] * left for rows, left in spread)
        return share, filled, rest, total.mean()

    def log_prob(self, z: Array, categories: Array) -> Array:
        """log p of what each row has, nats (n,): missing numbers are NaN, and missing categories zeros."""
        log_prob = np.zeros((len(z), len(self.weight)))
        for there, rows in _patterns(z):
            known = np.flatnonzero(there)
            log_prob[rows] = log_gaussians(z[np.ix_(rows, known)], self.mean[:, known], _part(self.covariance, known))
        return logsumexp(log_prob + np.log(self.weight) + categories @ self.log_share.T, axis=1)


def best_joint_mixture(
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    sizes: tuple[int, ...],
    most: int,
    seed: int,
    until: float,
) -> JointMixture:
    """The mixture of the best validation among those that can be fitted before ``until``, of ``most`` components."""
    most = min(most, len(training[0]) // PER_COMPONENT)
    ladder = [(k, floor) for k in COMPONENTS if k == 1 or k <= most for floor in FLOORS]

    def fit(components: int, floor: float) -> JointMixture:
        is_first = (components, floor) == ladder[0]
        return JointMixture.fitted(*training, sizes, components, floor, seed, np.inf if is_first else until)

    return best_of(ladder, fit, validation, until)


def _clusters(z: Array, categories: Array, components: int, seed: int) -> Array:
    """The rows' first shares of the components (n, K), by clusters of rows whose missing numbers are 0."""
    rows = np.concatenate([np.where(np.isnan(z), 0.0, z), categories], 1)
    labels = KMeans(components, n_init=1, random_state=seed).fit(rows).labels_ if components > 1 else np.zeros(len(z))
    return np.equal.outer(labels, np.arange(components)).astype(float)


def _blocks(sizes: tuple[int, ...]) -> list[slice]:
    """Where the values of each column of categories stand."""
    ends = np.cumsum(sizes, dtype=int)
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _patterns(z: Array) -> list[tuple[Array, Array]]:
    """Each set of columns that rows have, as a mask (d,), and the indices of these rows."""
    masks, index = np.unique(~np.isnan(z), axis=0, return_inverse=True)
    order = np.argsort(index, kind="stable")
    ends = np.cumsum(np.bincount(index, minlength=len(masks)))[:-1]
    return list(zip(masks, np.split(order, ends), strict=True))


def _part(matrices: Array, columns: Array) -> Array:
    return matrices[:, columns[:, None], columns]
