"""Gaussian mixtures of rows and their conditions, whose law of rows at c has a closed form: where a fit starts."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 32, 50)  # that are tried
FLOORS, EM_STEPS = (1e-2, 1e-3, 1e-1), 50  # of the covariances; of a fit, at most
PER_COMPONENT = 5  # rows, at least

Array = np.ndarray
Law = TypeVar("Law", bound=Any)  # it has log_prob


@dataclass(frozen=True)
class Mixture:
    r"""A Gaussian mixture of z (d columns) and c (k columns), and the law of z at c that follows from it.

    Args:
        weight: (K,).
        mean: (K, d + k), that of z first.
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
        """By expectation maximisation, with ``floor`` added to the variances."""
        mixture = GaussianMixture(components, reg_covar=floor, max_iter=EM_STEPS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(np.concatenate([z, c], 1))
        return cls(mixture.weights_, mixture.means_, mixture.covariances_, z.shape[1])

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
        square = (solve_triangular(root, (rows - centre).T, lower=True) ** 2).sum(0) if len(centre) else 0.0
        found[:, k] = -0.5 * (square + len(centre) * np.log(2 * np.pi)) - np.log(root.diagonal()).sum()
    return found


def best_mixture(
    training: tuple[Array, Array], validation: tuple[Array, Array], most: int, seed: int, until: float
) -> Mixture:
    """The :class:`Mixture` of the best validation among those that can be fitted before ``until``.

    Numbers of components rise up to ``most``, each with several floors.
    """
    most = min(most, len(training[0]) // PER_COMPONENT)
    ladder = [(k, floor) for k in COMPONENTS if k == 1 or k <= most for floor in FLOORS]
    return best_of(ladder, lambda k, floor: Mixture.fitted(*training, k, floor, seed), validation, until)


def best_of(
    ladder: Sequence[tuple[int, float]], fit: Callable[[int, float], Law], validation: tuple[Array, Array], until: float
) -> Law:
    """The law of the best validation among those that can be fitted before ``until``; the first one in any case.

    Args:
        ladder: numbers of components and floors of the covariances.
        fit: makes the law of each.
        validation: the arguments of its ``log_prob``.
    """
    found: list[tuple[float, Law]] = []
    for components, floor in ladder:
        if not found or time.perf_counter() < until:
            law = fit(components, floor)
            found.append((law.log_prob(*validation).mean(), law))
    return max(found, key=lambda pair: pair[0])[1]
