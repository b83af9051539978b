"""Rows of a table as latents of a density model: columns made symmetric, standardised and decorrelated."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import boxcox1p, inv_boxcox1p
from scipy.stats import yeojohnson_llf
from sklearn.covariance import OAS

LEAST_REST = 1e-6  # of a column's deviation, what c leaves of it at least
POWER_ROWS = 5_000  # on which powers are fitted, at most

Array = np.ndarray


@dataclass(frozen=True)
class Columns:
    r"""The invertible map z = (ψ((x − centre)/scale) − mean − c @ slope) @ whitening of rows x at conditions c.

    ψ is the power of Yeo and Johnson (2000), one λ a column:

    .. math:: \psi_\lambda(u) = \frac{(1+u)^\lambda - 1}{\lambda}\ (u \ge 0), \qquad
              \psi_\lambda(u) = -\frac{(1-u)^{2-\lambda} - 1}{2-\lambda}\ (u < 0)

    It makes skewed columns symmetric and long tails shorter. For λ in [0, 2] it maps the line onto the line, and λ = 1
    is the identity.

    Args:
        centre, scale, power: of each column, (columns,); ``power`` is λ.
        mean: of ψ, (columns,).
        slope: what ψ takes on with each standardised condition, (k, columns).
        whitening: (columns, columns).

    Example:

        >>> import numpy as np
        >>> x = np.exp(np.random.default_rng(0).normal(size=(500, 2)))
        >>> columns = Columns.fitted(x, np.zeros((500, 0)), skewed=np.array([0, 1]))
        >>> columns.power.round(1)  # near 0, which is a logarithm
        array([0., 0.])
        >>> z = columns.latents(x, np.zeros((500, 0)))
        >>> bool(np.allclose(columns.rows(z, np.zeros((500, 0))), x))
        True
    """

    centre: Array
    scale: Array
    power: Array
    mean: Array
    slope: Array
    whitening: Array

    @classmethod
    def fitted(cls, X: Array, c: Array, skewed: Array) -> "Columns":
        """The map for rows ``X`` (n, columns) at conditions ``c`` (n, k).

        Columns of the indices ``skewed`` get the power that is most likely if ψ is normal; the others keep λ = 1. What
        is linear in c is taken away, and correlations of the rest are shrunk where rows are few.
        """
        centre, scale = X.mean(0), X.std(0)
        power = np.ones(X.shape[1])
        sparse = X[:: max(1, len(X) // POWER_ROWS)]
        power[skewed] = [_most_likely_power(u) for u in ((sparse - centre) / scale).T[skewed]]
        y = _psi((X - centre) / scale, power)
        mean = y.mean(0)
        penalty = np.eye(c.shape[1])  # that of one row more
        slope = np.linalg.solve(c.T @ c + penalty, c.T @ (y - mean))
        rest = y - mean - c @ slope
        spread = np.maximum(rest.std(0), LEAST_REST * y.std(0))
        correlation = OAS(assume_centered=True).fit(rest / spread).covariance_
        whitening = np.linalg.inv(np.linalg.cholesky(correlation)).T / spread[:, None]
        return cls(centre, scale, power, mean, slope, whitening)

    def latents(self, X: Array, c: Array) -> Array:
        return (_psi((X - self.centre) / self.scale, self.power) - self.mean - c @ self.slope) @ self.whitening

    def rows(self, z: Array, c: Array) -> Array:
        """The inverse of :meth:`latents`."""
        y = z @ np.linalg.inv(self.whitening) + self.mean + c @ self.slope
        return _psi_inverse(y, self.power) * self.scale + self.centre

    def log_volume(self, X: Array) -> Array:
        """log|det ∂z/∂x| at rows of x: (n,)."""
        u = (X - self.centre) / self.scale
        slopes = (_exponent(u, self.power) - 1) * np.log1p(np.abs(u)) - np.log(self.scale)
        return slopes.sum(1) + np.linalg.slogdet(self.whitening)[1]

    def unit(self, index: Array) -> Array:
        """What 1 more in each column of ``index`` is to the latents, where these have λ = 1: (len(index), columns)."""
        return self.whitening[index] / self.scale[index, None]


def _exponent(u: Array, power: Array) -> Array:
    return np.where(u >= 0, power, 2 - power)


def _psi(u: Array, power: Array) -> Array:
    return np.sign(u) * boxcox1p(np.abs(u), _exponent(u, power))


def _psi_inverse(y: Array, power: Array) -> Array:
    return np.sign(y) * inv_boxcox1p(np.abs(y), _exponent(y, power))


def _most_likely_power(u: Array) -> float:
    return minimize_scalar(lambda power: -yeojohnson_llf(power, u), bounds=(0, 2), method="bounded").x
