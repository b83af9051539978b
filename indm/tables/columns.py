"""Rows of a table as latents of a density model: columns made symmetric, standardised and
decorrelated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import boxcox1p, expit, inv_boxcox1p, ndtr, ndtri
from sklearn.covariance import OAS

# deviation that conditions leave a column, at least, as a share of the column's own
LEAST_REST = 1e-6
POWER_ROWS, MAP_ROWS = 5_000, 100_000  # rows on which powers are fitted, and maps, at most
LARGEST_X = 1e300  # largest number allowed, so that differences do not overflow
# ratio of a column's deviation to the one of most rows, above which a few rows decide it
FAR = 10.0
BEND = 3.0  # deviations of most rows beyond which far values are brought near
EDGES = (0.3, 0.03)  # weights of the logit that are tried in addition to the quantile
NEWTON_STEPS = 20  # from below, of a concave function; eight are enough for these weights
# relative difference up to which the values of a column are the same
ROUNDING_OF_VALUES = 8 * np.finfo(np.float64).eps
# share of the rows on either side of most: the width of most of N(0, 1)
SHARES = {0.05: 3.290, 0.01: 4.653}

Array = np.ndarray


@dataclass(frozen=True)
class Columns:
    r"""The invertible map z = (ψ(a((b(x) − centre)/scale)) − mean − c @ slope) @ whitening of rows
    x at conditions c.

    b maps the interval of a column onto the line: log(x − low) or −log(high − x); without bounds
    b(x) = x. Between two bounds, with u = (x − low)/(high − low), it is the normal quantile of u or
    2u − 1 + e logit(u): :func:`best_edges` chooses. a(u) = 3 asinh(u/3) in columns where a few
    values are far from all others; else a(u) = u. ψ is the power of Yeo and Johnson (2000), one λ a
    column:

    .. math:: \psi_\lambda(u) = \frac{(1+u)^\lambda - 1}{\lambda}\ (u \ge 0), \qquad
              \psi_\lambda(u) = -\frac{(1-u)^{2-\lambda} - 1}{2-\lambda}\ (u < 0)

    λ in [0, 2] maps the line onto the line. Where ψ is convex away from 0, it is its tangent beyond
    the fitted rows.

    Args:
        centre, scale, power, far: of each column, (columns,); ``power`` is λ, and ``far`` says
            where a is asinh.
        mean: of ψ, (columns,).
        slope: what ψ takes on with each standardised condition, (k, columns).
        whitening: (columns, columns).
        interval: low and high of each column, (2, columns), infinite where there is no bound.
        reach: the least and the largest argument of ψ that was fitted, (2, columns).
        edge: e of each column, (columns,), NaN for the quantile.

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
    far: Array
    mean: Array
    slope: Array
    whitening: Array
    interval: Array
    edge: Array
    reach: Array

    @classmethod
    def fitted(
        cls,
        X: Array,
        c: Array,
        skewed: Array,
        far: Array | None = None,
        interval: Array | None = None,
        edge: Array | None = None,
    ) -> "Columns":
        """The map for rows ``X`` (n, columns) at conditions ``c`` (n, k).

        Columns of the indices ``skewed`` get the power that is most likely if ψ is normal; the
        others keep λ = 1. The columns that ``far`` marks, by default none, are measured by most of
        their rows. What is linear in c is taken away, and correlations of the rest are shrunk where
        rows are few. Of many rows some, evenly, are enough.
        """
        X, c = thinned(X, MAP_ROWS), thinned(c, MAP_ROWS)
        far = np.zeros(X.shape[1], dtype=bool) if far is None else far
        interval = (
            np.array([[-np.inf], [np.inf]]).repeat(X.shape[1], 1) if interval is None else interval
        )
        edge = best_edges(X, c, interval) if edge is None else edge
        X = to_line(X, interval, edge)
        centre, scale = np.where(far, moments_of_most(X), moments(X)) if far.any() else moments(X)
        u = _near((X - centre) / scale, far)
        power = np.ones(X.shape[1])
        power[skewed] = [most_likely_power(v) for v in thinned(u, POWER_ROWS).T[skewed]]
        y, reach = _psi(u, power), np.stack([u.min(0), u.max(0)])
        mean = y.mean(0)
        penalty = np.eye(c.shape[1])  # the weight of one more row
        slope = np.linalg.solve(c.T @ c + penalty, c.T @ (y - mean))
        rest = y - mean - c @ slope
        spread = np.maximum(rest.std(0), LEAST_REST * y.std(0))
        correlation = OAS(assume_centered=True).fit(rest / spread).covariance_
        whitening = np.linalg.inv(np.linalg.cholesky(correlation)).T / spread[:, None]
        return cls(centre, scale, power, far, mean, slope, whitening, interval, edge, reach)

    @classmethod
    def joined(cls, maps: Sequence["Columns"], n_conditions: int) -> "Columns":
        """The map of several columns, of the map of each alone; conditions move none of them."""
        return cls(
            np.concatenate([one.centre for one in maps]),
            np.concatenate([one.scale for one in maps]),
            np.concatenate([one.power for one in maps]),
            np.concatenate([one.far for one in maps]),
            np.concatenate([one.mean for one in maps]),
            np.zeros((n_conditions, len(maps))),
            np.diag([one.whitening.item() for one in maps]),
            np.concatenate([one.interval for one in maps], 1),
            np.concatenate([one.edge for one in maps]),
            np.concatenate([one.reach for one in maps], 1),
        )

    def latents(self, X: Array, c: Array) -> Array:
        """The latents z of rows; missing entries of c add nothing."""
        u = _near((to_line(X, self.interval, self.edge) - self.centre) / self.scale, self.far)
        inside = self._inside(u)
        y = _psi(inside, self.power) + np.exp(_log_rise(inside, self.power)) * (u - inside)
        return (y - self.mean - np.nan_to_num(c) @ self.slope) @ self.whitening

    def rows(self, z: Array, c: Array) -> Array:
        """The inverse of :meth:`latents`."""
        y = z @ np.linalg.inv(self.whitening) + self.mean + np.nan_to_num(c) @ self.slope
        v = np.sign(y) * inv_boxcox1p(np.abs(y), _exponent(y, self.power))
        inside = self._inside(v)
        with np.errstate(all="ignore"):  # where v is infinite
            tangent = inside + (y - _psi(inside, self.power)) / np.exp(
                _log_rise(inside, self.power)
            )
        v = np.where(v == inside, v, tangent)
        u = np.where(self.far, BEND * np.sinh(np.where(self.far, v, 0) / BEND), v)
        return from_line(u * self.scale + self.centre, self.interval, self.edge)

    def log_volume(self, X: Array) -> Array:
        """log|det ∂z/∂x| at rows of x: (n,)."""
        line = to_line(X, self.interval, self.edge)
        u = (line - self.centre) / self.scale
        v = _near(u, self.far)
        slopes = _log_rise(self._inside(v), self.power) - np.log(self.scale)
        slopes -= np.where(self.far, np.log(np.hypot(1, u / BEND)), 0)
        slopes += log_slope(X, self.interval, self.edge)
        return slopes.sum(1) + np.linalg.slogdet(self.whitening)[1]

    def _inside(self, u: Array) -> Array:
        """The place nearest to u where ψ is itself, not its tangent."""
        return np.where(_exponent(u, self.power) > 1, u.clip(*self.reach), u)


def thinned(rows: Array, most: int) -> Array:
    """Every row, or every second, and so on: ``most`` of them, or fewer."""
    return rows[:: max(1, -(-len(rows) // most))]


def are_near(X: Array, value: Array | float) -> Array:
    """Mask of the entries that equal ``value`` up to rounding."""
    return np.abs(X - value) <= ROUNDING_OF_VALUES * np.abs(value)


def is_inside(X: Array, interval: Array, is_whole: Array | bool = False) -> Array:
    """Mask of the entries inside the interval of their column; whole numbers may be on its lower
    end.
    """
    low, high = interval
    return (high > X) & ((low < X) | (low == X) & is_whole)


def to_line(X: Array, interval: Array, edge: Array | float = np.nan) -> Array:
    """b(x) of :class:`Columns`: rows whose columns are in ``interval``, as numbers of the whole
    line.
    """
    found = X.astype(float)
    columns, x, interval, edge = _with_a_bound(X, interval, edge)
    (low, high), (u, rest) = interval, _shares(x, interval)
    with np.errstate(all="ignore"):  # in columns of another kind
        quantile = np.where(u < 0.5, ndtri(u), -ndtri(rest))
        logit = u - rest + edge * (np.log(u) - np.log(rest))
        found[:, columns] = np.select(
            _kinds(interval, edge), [quantile, logit, np.log(x - low), -np.log(high - x)]
        )
    return found


def from_line(line: Array, interval: Array, edge: Array | float = np.nan) -> Array:
    """The inverse of :func:`to_line`; between two bounds it is inside of them, also where that
    takes rounding.
    """
    found = line.astype(float)
    columns, z, interval, edge = _with_a_bound(line, interval, edge)
    low, high = interval
    with np.errstate(all="ignore"):
        inner = np.nextafter(low, high), np.nextafter(high, low)
        v = _logit_of(z, edge)
        share, rest = np.stack([ndtr(z), expit(v)]), np.stack([ndtr(-z), expit(-v)])
        quantile, logit = np.where(
            share < 0.5, low + (high - low) * share, high - (high - low) * rest
        ).clip(*inner)
        found[:, columns] = np.select(
            _kinds(interval, edge), [quantile, logit, low + np.exp(z), high - np.exp(-z)]
        )
    return found


def log_slope(X: Array, interval: Array, edge: Array | float = np.nan) -> Array:
    """log db/dx, (n, columns)."""
    found = np.zeros(X.shape)
    columns, x, interval, edge = _with_a_bound(X, interval, edge)
    (low, high), (u, rest) = interval, _shares(x, interval)
    with np.errstate(all="ignore"):
        quantile = 0.5 * (to_line(x, interval) ** 2 + np.log(2 * np.pi)) - np.log(high - low)
        logit = np.log(2 + edge / (u * rest)) - np.log(high - low)
        found[:, columns] = np.select(
            _kinds(interval, edge), [quantile, logit, -np.log(x - low), -np.log(high - x)]
        )
    return found


@np.errstate(all="ignore")  # a gain that is not a number is none
def best_edges(X: Array, c: Array, interval: Array) -> Array:
    """e of each column with two bounds, (columns,), NaN where the quantile is best, and of the
    others.

    One row in five says how likely a column is that is Gaussian after b, with a mean that is linear
    in c; a gain must be above its standard error.
    """
    if not np.isfinite(interval).all(0).any():
        return np.full(X.shape[1], np.nan)
    is_valid, found = np.arange(len(X)) % 5 == 0, np.full(X.shape[1], np.nan)
    log_prob = _gaussian_log_prob(X, c, interval, found, is_valid)
    for edge in EDGES:
        other = _gaussian_log_prob(X, c, interval, np.full(X.shape[1], edge), is_valid)
        gain = other - log_prob
        better = gain.mean(0) > gain.std(0) / np.sqrt(len(gain))
        found, log_prob = np.where(better, edge, found), np.where(better, other, log_prob)
    return found


def _gaussian_log_prob(X: Array, c: Array, interval: Array, edge: Array, is_valid: Array) -> Array:
    """Log p of each column in the rows of validation, fitted to the others, up to a constant: (n,
    columns).
    """
    c, line = np.column_stack([np.ones(len(X)), c]), to_line(X, interval, edge)
    gram = c[~is_valid].T @ c[~is_valid] + np.eye(c.shape[1])  # with a penalty of one row more
    rest = line - c @ np.linalg.solve(gram, c[~is_valid].T @ line[~is_valid])
    spread = rest[~is_valid].std(0)
    return (-0.5 * (rest / spread) ** 2 - np.log(spread) + log_slope(X, interval, edge))[is_valid]


def _with_a_bound(
    X: Array, interval: Array, edge: Array | float
) -> tuple[Array, Array, Array, Array]:
    """Mask of the columns with a bound, and of these alone the rows, the interval and e: others
    cost nothing.
    """
    columns = np.isfinite(interval).any(0)
    return columns, X[:, columns], interval[:, columns], np.broadcast_to(edge, X.shape[1:])[columns]


def _shares(X: Array, interval: Array) -> tuple[Array, Array]:
    """u and 1 − u, each to its own last digit."""
    low, high = interval
    with np.errstate(all="ignore"):
        return (X - low) / (high - low), (high - X) / (high - low)


def _logit_of(line: Array, edge: Array | float) -> Array:
    """v of tanh(v/2) + e v = line, by Newton's method from bounds below a concave function."""
    y = np.abs(line)
    v = np.maximum((y - 1) / edge, y / (0.5 + edge))
    for _ in range(NEWTON_STEPS):
        part = np.tanh(v / 2)
        v = v + (y - part - edge * v) / (0.5 * (1 - part**2) + edge)
    return np.copysign(v, line)


def _kinds(interval: Array, edge: Array | float) -> list[Array]:
    """Masks of the columns with two bounds and the quantile, two and a logit, only a lower one,
    only an upper one.
    """
    (low, high), quantile = np.isfinite(interval), np.isnan(edge)
    return [low & high & quantile, low & high & ~quantile, low & ~high, high & ~low]


def moments(X: Array) -> tuple[Array, Array]:
    """Mean and deviation of each column, whose squares neither overflow nor vanish."""
    # a power of two, so that nothing is rounded
    unit = np.ldexp(1.0, np.frexp(np.abs(X).max(0))[1] - 1)
    return unit * (X / unit).mean(0), unit * (X / unit).std(0)


def moments_of_most(X: Array) -> tuple[Array, Array]:
    """The median of each column, and the deviation of the normal law with its quantiles of 5 and 95
    %, or 1 and 99 % where these are equal, or else the deviation of all rows.
    """
    _, scale = moments(X)
    for share, distance in reversed(SHARES.items()):
        low, high = np.quantile(X, [share, 1 - share], axis=0)
        scale = np.where(high > low, (high - low) / distance, scale)
    return np.median(X, axis=0), scale


def far_columns(X: Array) -> Array:
    """Whether a few rows decide the deviation of each column, (columns,)."""
    return moments(X)[1] > FAR * moments_of_most(X)[1]


def _near(u: Array, far: Array) -> Array:
    return np.where(far, BEND * np.arcsinh(u / BEND), u)


def _exponent(u: Array, power: Array) -> Array:
    return np.where(u >= 0, power, 2 - power)


def _psi(u: Array, power: Array) -> Array:
    size = np.abs(u)
    return np.sign(u) * boxcox1p(size, _exponent(u, power), where=power != 1, out=size)


def _log_rise(u: Array, power: Array) -> Array:
    """log ∂ψ/∂u."""
    return (_exponent(u, power) - 1) * np.log1p(np.abs(u))


def most_likely_power(u: Array) -> float:
    """λ of the highest likelihood, where ψ(u) is normal: −½ log var ψ(u) + (λ − 1) mean sign(u)
    log(1 + |u|).
    """
    slope = (np.sign(u) * np.log1p(np.abs(u))).mean()

    def loss(power: float) -> float:
        return 0.5 * np.log(_psi(u, np.array(power)).var()) - (power - 1) * slope

    return minimize_scalar(loss, bounds=(0, 2), method="bounded").x
