"""Gaussian mixtures where a fit starts: of rows at conditions, and of rows with categories and
gaps, by EM.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

MIXTURE_SIZES = (1, 2, 3, 5, 8, 12, 20, 32, 50)  # numbers of components that are tried
# floors of the covariances that are tried; steps of a fit, at most
FLOORS, EM_STEPS = (1e-2, 1e-3, 1e-1), 50
NARROW_FLOORS = (1e-4, 1e-5, 1e-6)  # floors that are tried after these, while they help
ROWS_PER_COMPONENT = 5  # rows, at least
# with categories or gaps a fit takes longer
JOINT_COMPONENTS, JOINT_FLOORS = MIXTURE_SIZES[:7], FLOORS[:2]
LAW_ENTRIES = 2e7  # numbers of the laws of a batch, at most
LEAST_CHANGE = 1e-3  # nats of a row between two steps, below which a fit ends
MOST_GAIN = 10.0  # nats by which a row counts in a choice between models
COUNT = 1.0  # count of each category in each component before any row is seen

Array = np.ndarray
Law = TypeVar("Law", bound=Any)  # it has log_prob


@dataclass(frozen=True)
class Mixture:
    r"""A Gaussian mixture of z (d columns) and c (k columns), and the law of z at c that follows
    from it.

    Args:
        weight: (K,).
        mean: (K, d + k), z's columns first.
        covariance: (K, d + k, d + k).
        d: columns of z.

    Example: x = c + noise of deviation 1, c ~ N(0, 1); at c = 2 that is N(2, 1).

        >>> law = Mixture(np.ones(1), np.zeros((1, 2)), np.array([[[2.0, 1.0], [1.0, 1.0]]]), 1)
        >>> law.log_prob(np.array([[2.0]]), np.array([[2.0]])).round(4)  # −½ log 2π
        array([-0.9189])
    """

    weight: Array
    mean: Array
    covariance: Array
    d: int

    @classmethod
    def fitted(cls, z: Array, c: Array, components: int, floor: float, seed: int) -> "Mixture":
        """A mixture fitted by expectation maximisation, with ``floor`` added to the variances.

        With several components, one more Gaussian covers all rows. It has the weight of one row,
        and is for rows that are far from each component.
        """
        mixture = GaussianMixture(components, reg_covar=floor, max_iter=EM_STEPS, random_state=seed)
        rows = np.concatenate([z, c], 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(rows)
        found = cls(mixture.weights_, mixture.means_, mixture.covariances_, z.shape[1])
        return found if components == 1 else found.with_gaussian(rows, floor)

    def with_gaussian(self, rows: Array, floor: float) -> "Mixture":
        """This mixture with one more component: the Gaussian of ``rows`` (n, d + k), with the
        weight of one row.
        """
        weight = np.append(self.weight * len(rows), 1.0) / (len(rows) + 1)
        whole = np.cov(rows.T, bias=True) + floor * np.eye(rows.shape[1])
        mean = np.vstack([self.mean, rows.mean(0)])
        covariance = np.concatenate([self.covariance, whole[None]])
        return Mixture(weight, mean, covariance, self.d)

    def log_prob(self, z: Array, c: Array) -> Array:
        """log p(z|c) of each row, nats (n,)."""
        both, of_c = np.concatenate([z, c], 1), slice(self.d, None)
        joint = log_gaussians(both, self.mean, self.covariance)
        alone = log_gaussians(c, self.mean[:, of_c], self.covariance[:, of_c, of_c])
        log_weight = np.log(self.weight)
        return logsumexp(joint + log_weight, axis=1) - logsumexp(alone + log_weight, axis=1)


def log_gaussians(rows: Array, mean: Array, covariance: Array) -> Array:
    """log N(row; mean, covariance) of each row and Gaussian, (n, K)."""
    found = np.zeros((len(rows), len(mean)))
    for k, (centre, matrix) in enumerate(zip(mean, covariance, strict=True)):
        root = np.linalg.cholesky(matrix)
        square = np.zeros(len(rows))
        if len(centre):
            square = (solve_triangular(root, (rows - centre).T, lower=True) ** 2).sum(0)
        found[:, k] = (
            -0.5 * (square + len(centre) * np.log(2 * np.pi)) - np.log(root.diagonal()).sum()
        )
    return found


def best_mixture(
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    most: int,
    seed: int,
    until: float,
    draws: int = 1,
) -> Mixture:
    """The :class:`Mixture` of the best validation, of up to ``most`` components, see
    :func:`best_of`.
    """
    most = min(most, len(training[0]) // ROWS_PER_COMPONENT)
    ladder = [(k, floor) for k in MIXTURE_SIZES if k == 1 or k <= most for floor in FLOORS]

    def fit(k: int, floor: float) -> Mixture:
        return Mixture.fitted(*training, k, floor, seed)

    best = best_of(ladder, fit, validation, until, draws)
    for floor in NARROW_FLOORS:  # where columns nearly follow from each other
        components = max(1, len(best.weight) - 1)  # without the one of all rows
        narrower = best_of([(components, floor)], fit, validation, until, draws, best)
        if narrower is best:
            break
        best = narrower
    return best


def with_one_gaussian(
    mixture: Mixture,
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    seed: int,
    draws: int,
) -> list[Mixture]:
    """A mixture, and the best single Gaussian if the mixture has several components."""
    if len(mixture.weight) == 1:
        return [mixture]
    return [mixture, best_mixture(training, validation, 1, seed, np.inf, draws)]


def best_of(
    ladder: Sequence[tuple[int, float]],
    fit: Callable[[int, float], Law],
    validation: tuple[Array, Array],
    until: float,
    draws: int = 1,
    best: Law | None = None,
) -> Law:
    """The law of the best validation among those that can be fitted before ``until``, and ``best``.

    Without a ``best``, the first is fitted in any case. ``fit`` makes the law for a number of
    components and a floor of the ``ladder``. ``validation`` are the arguments of its ``log_prob``,
    with each row of the table ``draws`` times.
    """
    if best is None:
        best, ladder = fit(*ladder[0]), ladder[1:]
    value = best.log_prob(*validation)
    for components, floor in ladder:
        if time.perf_counter() < until:
            law = fit(components, floor)
            other = law.log_prob(*validation)
            if bounded(other - value, draws).mean() > 0:
                best, value = law, other
    return best


def bounded(gains: Array, draws: int = 1) -> Array:
    """Gains of rows, nats, each the mean of ``draws``, clipped to ±:data:`MOST_GAIN`: the tails count,
    but a row far from all others decides next to nothing.
    """
    return gains.reshape(-1, draws).mean(1).clip(-MOST_GAIN, MOST_GAIN)


@dataclass(frozen=True)
class JointMixture:
    r"""A mixture of K components: numbers are N(mean_k, covariance_k), categories independent of
    them and each other.

    Args:
        weight: (K,).
        mean: (K, d).
        covariance: (K, d, d).
        log_share: (K, m), log of the probability of each value of each column of categories, one
            column after another.

    Example: the density of the first number alone is its marginal, N(0, 1).

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
        """The mixture for numbers ``z`` (n, d) with NaN where they are missing, and one-hot
        ``categories`` (n, m).

        A row of ``categories`` has zeros for a missing one. ``sizes`` are the numbers of values of
        the columns of categories. ``floor`` is added to the variances. It ends at ``until`` of the
        clock, at the latest.
        """
        share = _clusters(z, categories, components, seed)
        filled = np.where(np.isnan(z), 0.0, z)[None].repeat(components, 0)
        rest = np.zeros((components, z.shape[1], z.shape[1]))
        law, before = cls._most_likely(share, filled, rest, categories, sizes, floor), -np.inf
        parts = patterns(z, components)
        for _ in range(EM_STEPS):
            share, filled, rest, value = law._expected(z, categories, parts)
            if value - before < LEAST_CHANGE or time.perf_counter() > until:
                break
            before, law = value, cls._most_likely(share, filled, rest, categories, sizes, floor)
        return law

    @classmethod
    def _most_likely(
        cls,
        share: Array,
        filled: Array,
        rest: Array,
        categories: Array,
        sizes: tuple[int, ...],
        floor: float,
    ) -> "JointMixture":
        """The mixture whose rows have the ``share`` (n, K) of components and the expected values
        ``filled`` (K, n, d).

        ``rest`` (K, d, d) is what the missing entries add to the scatter of each component.
        """
        count = share.sum(0) + 1e-9
        mean = np.einsum("nk,knd->kd", share, filled) / count[:, None]
        offset = filled - mean[:, None]
        scatter = np.matmul((offset * share.T[:, :, None]).swapaxes(1, 2), offset)
        covariance = (scatter + rest) / count[:, None, None] + floor * np.eye(filled.shape[2])
        found, seen = np.zeros((len(count), categories.shape[1])), share.T @ categories
        # each column of categories
        for part in np.split(np.arange(seen.shape[1]), np.cumsum(sizes, dtype=int)[:-1]):
            total = seen[:, part] + COUNT * categories[:, part].mean(0) + 1e-3
            found[:, part] = np.log(total / total.sum(1, keepdims=True))
        return cls(count / count.sum(), mean, covariance, found)

    def _expected(
        self, z: Array, categories: Array, parts: list["Patterns"]
    ) -> tuple[Array, Array, Array, float]:
        """Shares, expected values and scatter of :meth:`_most_likely`, and the mean log p of the
        rows.
        """
        share, filled = np.empty((len(z), len(self.weight))), np.empty((len(self.weight), *z.shape))
        rest, total = np.zeros_like(self.covariance), np.empty(len(z))
        for rows, known, sizes in parts:
            log_prob, filled[:, rows], left = self._completed(z[rows], known, sizes)
            log_prob += np.log(self.weight) + categories[rows] @ self.log_share.T
            total[rows] = logsumexp(log_prob, axis=1)
            share[rows] = np.exp(log_prob - total[rows, None])
            of_patterns = np.add.reduceat(share[rows], np.cumsum(sizes) - sizes)
            rest += np.einsum("uk,kuij->kij", of_patterns, left)
        return share, filled, rest, total.mean()

    def _completed(self, z: Array, known: Array, sizes: Array) -> tuple[Array, Array, Array]:
        """Log density and expected missing numbers of rows ``z`` (n, d) of :class:`Patterns`, for
        each component.

        Returns log p of the numbers that rows have (n, K), rows with expected values of the missing
        ones (K, n, d), and the covariance of the latter for each set of missing columns (K, U, d,
        d).
        """
        n, d = z.shape
        components = len(self.weight)
        ends = np.cumsum(sizes)[:-1]
        both, one = known[:, :, None] & known[:, None], known[:, :, None] & ~known[:, None]
        none = ~(known[:, :, None] | known[:, None])
        filled, log_prob = np.empty((components, n, d)), np.empty((n, components))
        left = np.empty((components, *both.shape))
        for k, (mean, covariance) in enumerate(zip(self.mean, self.covariance, strict=True)):
            own, across = np.where(both, covariance, np.eye(d)), np.where(one, covariance, 0.0)
            inverse = np.linalg.inv(own)
            slope = inverse @ across
            left[k] = np.where(none, covariance, 0.0) - across.swapaxes(1, 2) @ slope
            offset = np.nan_to_num(z - mean)
            parts = zip(np.split(offset, ends), np.concatenate([inverse, slope], 2), strict=True)
            scaled, shift = np.split(
                np.concatenate([rows @ maps for rows, maps in parts]), 2, axis=1
            )
            filled[k] = np.where(np.isnan(z), mean + shift, z)
            constant = np.linalg.slogdet(own)[1] + known.sum(1) * np.log(2 * np.pi)
            log_prob[:, k] = -0.5 * ((scaled * offset).sum(1) + np.repeat(constant, sizes))
        return log_prob, filled, left

    def log_prob(self, z: Array, categories: Array) -> Array:
        """log p of what each row has, nats (n,): missing numbers are NaN, and missing categories
        zeros.
        """
        log_prob = np.empty((len(z), len(self.weight)))
        for rows, known, sizes in patterns(z, len(self.weight)):
            log_prob[rows] = self._completed(z[rows], known, sizes)[0]
        return logsumexp(log_prob + np.log(self.weight) + categories @ self.log_share.T, axis=1)


class Patterns(NamedTuple):
    """Rows of few sets of missing columns, in the order of these sets."""

    rows: Array  # indices (n,)
    known: Array  # the columns that are not missing, of each set, (U, d)
    sizes: Array  # numbers of rows of each set, (U,)


def patterns(z: Array, components: int) -> list[Patterns]:
    """All rows of ``z``, in parts for which the covariances of all sets and ``components`` fit into
    memory.
    """
    known, index, count = np.unique(~np.isnan(z), axis=0, return_inverse=True, return_counts=True)
    most = int(max(1, LAW_ENTRIES / (components * max(1, z.shape[1]) ** 2)))
    cuts = np.arange(most, len(count), most)
    rows = np.split(np.argsort(index.reshape(-1), kind="stable"), np.cumsum(count)[cuts - 1])
    return [
        Patterns(*part)
        for part in zip(rows, np.split(known, cuts), np.split(count, cuts), strict=True)
    ]


def best_joint_mixture(
    training: tuple[Array, Array],
    validation: tuple[Array, Array],
    sizes: tuple[int, ...],
    most: int,
    seed: int,
    until: float,
) -> JointMixture:
    """The mixture of the best validation among those that can be fitted before ``until``, of
    ``most`` components.
    """
    most = min(most, len(training[0]) // ROWS_PER_COMPONENT)
    ladder = [(k, floor) for k in JOINT_COMPONENTS if k == 1 or k <= most for floor in JOINT_FLOORS]

    def fit(components: int, floor: float) -> JointMixture:
        is_first = (components, floor) == ladder[0]
        return JointMixture.fitted(
            *training, sizes, components, floor, seed, np.inf if is_first else until
        )

    return best_of(ladder, fit, validation, until)


def _clusters(z: Array, categories: Array, components: int, seed: int) -> Array:
    """The rows' first shares of the components (n, K), by clusters of rows whose missing numbers
    are 0.
    """
    rows = np.concatenate([np.where(np.isnan(z), 0.0, z), categories], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than components
        means = KMeans(components, n_init=1, random_state=seed)
        labels = means.fit_predict(rows) if components > 1 else np.zeros(len(z))
    return np.equal.outer(labels, np.arange(components)).astype(float)
