r"""Importance weights whose numbers state their errors: evidence, expectations, and the share of
draws that count.

Draws x_i of q and an unnormalised target p̃ give w_i = p̃(x_i)/q(x_i), so that

.. math:: Z = E_q[w], \qquad E_p[f] = E_q[w f]/Z, \qquad \text{share} = E_q[w]^2/E_q[w^2].

A mean of weights is decided by the largest ones, of which few are drawn. So their tail is fitted by
a generalised Pareto law. Intervals come from a posterior of its shape k and scale (Zhang & Stephens
2009), of the share of draws in the tail, and of the mean of the other draws. Where k is too large
for the number of draws, there is a refusal in place of a number.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import NLL_ERROR, counted, require
from indm.files import atomic
from indm.sampling.drawing import sample_with_log_prob
from indm.tensors import event_size

LEAST_TAIL = 25  # draws in the tail from which its shape is fitted
PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5  # weight and value of the weak prior of k
POSTERIOR = 4000  # draws of the posterior of a tail
LARGEST_SHAPE = 0.7  # of weights whose mean converges in any number of draws that is practical
# k below which E[w], E[w²] and the error of E[w²] exist
FIRST_MOMENT, SECOND_MOMENT, ITS_ERROR = 1.0, 0.5, 0.25
# share of these to which draws of k are cut, so that moments are large in place of infinite
CLOSEST = 0.99
MOST_VARIANCE = 0.1  # of the noise in log q up to which it is corrected
INTERVAL = (0.025, 0.975)
LIMIT = 4.0  # standard errors beyond which two means of the same number disagree
PAIRS = 256  # draws whose log q is estimated twice, for the variance of the estimate
# options that a model's draws and its log_prob share
OF_BOTH = ("c", "eps", "exact", "probes", "reference")
Floats = NDArray[np.float64]
Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval from ``low`` to ``high``, or the reason why there is none.

    ``value`` is NaN where it is refused, and ``note`` says why. ``at_most``: only the upper end is
    known.

    >>> print(Interval(0.5, 0.4, 0.6)), print(Interval(0.3, 0.0, 0.4, at_most=True))
    0.5 (0.4 to 0.6)
    at most 0.4
    (None, None)
    """

    value: float
    low: float
    high: float
    note: str = ""
    at_most: bool = False

    @property
    def refused(self) -> bool:
        """Whether these draws give no number."""
        return math.isnan(self.value)

    def __str__(self) -> str:
        """The number with its interval, "at most" where only the upper end is known, or the
        refusal.
        """
        if self.refused:
            return f"refused: {self.note}"
        if self.at_most:
            return f"at most {self.high:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def refusal(note: str) -> Interval:
    """No number, and why."""
    return Interval(math.nan, -math.inf, math.inf, note)


@dataclass(frozen=True)
class Tail:
    """The generalised Pareto law of the ``size`` values above ``start``, as draws of its posterior.

    Values are given by their logarithm, and numbers here are in units of exp(``unit``).

    Attributes:
        shape: k̂, of the fit with the weak prior; −∞ where the largest values are all alike, ∞
            where too few values are above the start for a fit.
        shapes, scales: draws of the posterior of k and of the scale.
        size, unit, start, body: the number of values in the tail, the logarithm of the largest
            value, the largest value below the tail, and the values up to it, with their signs,
            ascending in size.
    """

    shape: float
    shapes: Floats
    scales: Floats
    size: int
    unit: float
    start: float
    body: Floats

    def first(self) -> Floats:
        """E[value] in the tail, for each draw of the posterior."""
        k = np.minimum(self.shapes, CLOSEST * FIRST_MOMENT)
        return self.start + self.scales / (1 - k)

    def second(self) -> Floats:
        """E[value²] in the tail."""
        k = np.minimum(self.shapes, CLOSEST * SECOND_MOMENT)
        above = 2 * self.start * self.scales / (1 - k) + 2 * self.scales**2 / (
            (1 - k) * (1 - 2 * k)
        )
        return self.start**2 + above

    def share(self, rng: np.random.Generator) -> Floats:
        """The probability of the tail."""
        if self.size == 0:
            return np.zeros(POSTERIOR)
        return rng.beta(self.size, len(self.body) + 1, len(self.shapes))


def tail_of(log_values: Floats, rng: np.random.Generator, signs: Floats | None = None) -> Tail:
    """Fit the tail of values given by their logarithms, −∞ for 0.

    Of n values that are not 0, min(n/5, 3√n) are in the tail, or fewer where some are equal to the
    largest below it.

    Source: Zhang & Stephens 2009, "A New and Efficient Estimation Method for the Generalized Pareto
    Distribution", for the fit; Vehtari et al. 2024, "Pareto Smoothed Importance Sampling",
    https://arxiv.org/abs/1507.02646, for M and the weak prior of k.

    Example: values exp(a E) with E exponential have a tail of shape a.

        >>> rng = np.random.default_rng(0)
        >>> round(tail_of(0.4 * rng.exponential(size=20_000), rng).shape, 1)
        0.4
    """
    n = int(np.isfinite(log_values).sum())
    size = math.floor(min(n / 5, 3 * math.sqrt(n)))
    order = np.argsort(log_values, kind="stable")
    unit = float(log_values[order[-1]]) if n else 0.0
    values = np.exp(log_values[order] - unit)
    start = float(values[-size - 1])
    above = values[values > start] - start
    size = len(above)
    body = values[: len(values) - size]
    if signs is not None:
        body = body * signs[order[: len(body)]]
    if size == 0 or above[0] == above[-1]:  # equal weights, or an atom at the largest one
        shape = -math.inf if n >= LEAST_TAIL else math.inf
        zeros = np.zeros(POSTERIOR)
        return Tail(shape, zeros, zeros, size, unit, float(values[-1]), body)
    if size < LEAST_TAIL:
        return Tail(
            math.inf, np.zeros(POSTERIOR), np.full(POSTERIOR, above.mean()), size, unit, start, body
        )
    points = _pareto_points(above)
    b = float(points.weights @ points.b)
    k = float(np.log1p(-b * above).mean())
    chosen = rng.choice(len(points.b), POSTERIOR, p=points.weights)
    # Given b the logarithms log(1 − b x) are exponential with mean k, so that k has a gamma
    # posterior.
    shapes = points.k[chosen] * size / rng.gamma(size, size=POSTERIOR)
    scales = -shapes / points.b[chosen]
    return Tail(_with_prior(k, size), _with_prior(shapes, size), scales, size, unit, start, body)


@dataclass(frozen=True)
class _Points:
    """Points of b = −k/scale with the k that goes with each, and their posterior weights."""

    b: Floats
    k: Floats
    weights: Floats


def _pareto_points(x: Floats) -> _Points:
    """Zhang & Stephens' grid of b for ascending positive ``x``, weighted by the profile likelihood."""
    n = len(x)
    m = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-b[:, None] * x).mean(1)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    return _Points(b, k, weights / weights.sum())


def _with_prior(k: Any, n: int) -> Any:
    return (n * k + PRIOR_DRAWS * PRIOR_SHAPE) / (n + PRIOR_DRAWS)


def largest_shape(n: int) -> float:
    """k̂ above which n draws give no mean: min(1 − 1/log₁₀ n, 0.7), by Vehtari et al. 2024.

    >>> round(largest_shape(1000), 3), largest_shape(10**6)
    (0.667, 0.7)
    """
    return min(1 - 1 / math.log10(n), LARGEST_SHAPE)


def _logistic(x: Floats) -> Floats:
    """1/(1 + exp(−x)), at any x."""
    return np.exp(-np.logaddexp(0.0, -x))


def _normal(values: Floats, rng: np.random.Generator) -> Floats:
    """Draws of the mean of values without a heavy tail."""
    return rng.normal(values.mean(), values.std() / math.sqrt(len(values)), POSTERIOR)


def log_means(log_values: Floats, rng: np.random.Generator) -> tuple[Tail, Floats]:
    """The tail of positive values, and draws of the posterior of the logarithm of their mean."""
    tail = tail_of(log_values, rng)
    share = tail.share(rng)
    mean = (1 - share) * _normal(tail.body, rng) + share * tail.first()
    return tail, np.log(np.maximum(mean, 1e-300)) + tail.unit


@dataclass(frozen=True)
class Forward:
    """Numbers that draws of the target give, which see where q has next to nothing.

    Attributes:
        ess: E_q[w]/E_p[w], the share of the proposal.
        log_z: −log E_p[1/w], plus the logarithm of the share of q's draws that have a weight.
        deviation: of two means that are equal if both kinds of draws belong to their densities, in
            standard errors: E_p[1/(1 + w/Z)] and E_q[w/(Z + w)]. What the stated errors of log q
            explain is subtracted.

    Example: draws and log q of N(0, 1), for that law itself.

        >>> law = torch.distributions.Normal(0.0, 1.0)
        >>> x, y = law.sample((500,)), law.sample((500,))
        >>> found = reweight(law.log_prob, draws=x, log_q=law.log_prob, target_draws=y, progress=False)
        >>> found.forward.disagrees
        False
    """

    ess: Interval
    log_z: Interval
    deviation: float

    @property
    def disagrees(self) -> bool:
        """Whether q misses a part of the target, log q is wrong, or draws are not from where they
        are said to be.

        A constant factor that log q lacks moves both means alike: only an audit of q's mass sees
        it.
        """
        return abs(self.deviation) > LIMIT


@dataclass(frozen=True)
class Weights:
    """Importance weights of draws, and what they say with which error; made by :func:`reweight`.

    Attributes:
        draws: (n, …), as they were given.
        log_weights: (n,) log p̃ − log q, nats, float64; −∞ where the target has no mass.
        target_log_weights: the same at draws of the target; None where there are none.
        probe_variance: variance of the noise in each log q, nats².
        solver_error: largest error of log q, nats. It is as good as its source: an ODE solver's is
            an estimate.

    Example: half of the draws are where the target has no mass.

        >>> found = Weights(np.arange(400), np.where(np.arange(400) < 200, 0.0, -np.inf))
        >>> round(found.effective), found.k, round(found.mean(lambda x: x).value, 1)
        (200, -inf, 99.5)
    """

    draws: Any
    log_weights: Floats
    target_log_weights: Floats | None = None
    probe_variance: float = 0.0
    solver_error: float = 0.0

    @cached_property
    def _log_z_draws(self) -> tuple[Tail, Floats]:
        return log_means(self.log_weights, np.random.default_rng(0))

    @property
    def k(self) -> float:
        """k̂, the shape of the tail of the weights: they have 1/k moments. −∞ where the largest are
        all alike.
        """
        return self._log_z_draws[0].shape

    @property
    def effective(self) -> float:
        """The effective number of *these* draws, (Σw)²/Σw². It is no property of q, see
        :attr:`ess`.
        """
        w = self.normalised
        return float(1 / np.square(w).sum())

    @property
    def normalised(self) -> Floats:
        """The weights with sum 1, (n,)."""
        w = np.exp(self.log_weights - self.log_weights.max())
        return w / w.sum()

    def _refused(self, tail: Tail, n: int) -> str:
        """Why no mean can be given, and what would help; "" where one can."""
        most = largest_shape(n)
        if tail.shape <= most:
            return ""
        if tail.shape == math.inf:
            return f"fewer than {LEAST_TAIL} draws are in the tail of the weights; take more draws"
        said = f"k̂ = {tail.shape:.2f} of the weights is above {most:.2f}"
        if tail.shape < LARGEST_SHAPE:
            return f"{said}; take {math.ceil(10 ** (1 / (1 - tail.shape))):,} draws or more"
        return f"{said}; more draws do not help, take a model nearer to the target"

    def _noise(self) -> str:
        if self.probe_variance <= MOST_VARIANCE:
            return ""
        found = f"noise of variance {self.probe_variance:.2g} in log q"
        return f"{found} is above {MOST_VARIANCE}; use the exact divergence"

    @cached_property
    def log_z(self) -> Interval:
        """log Z = log ∫p̃, nats."""
        tail, log_z = self._log_z_draws
        why = self._refused(tail, len(self.log_weights)) or self._noise()
        return refusal(why) if why else self._shifted(log_z, -self.probe_variance / 2)

    def _shifted(self, log_means: Floats, shift: float) -> Interval:
        """Posterior draws as an estimate, widened by the error of the solver."""
        low, middle, high = np.quantile(log_means, (INTERVAL[0], 0.5, INTERVAL[1])) + shift
        return Interval(
            float(middle), float(low) - self.solver_error, float(high) + self.solver_error
        )

    @cached_property
    def ess(self) -> Interval:
        """The share E[w]²/E[w²] of the proposal's draws that count, for n → ∞."""
        rng = np.random.default_rng(1)
        tail, log_z = self._log_z_draws
        why = self._refused(tail, len(self.log_weights)) or self._noise()
        if not why and tail.shape >= SECOND_MOMENT:
            why = f"k̂ = {tail.shape:.2f}: the weights have no second moment, so the share falls to 0 with more draws"
        if why:
            return refusal(why)
        body = np.square(tail.body)
        share = tail.share(rng)
        square = (1 - share) * _normal(body, rng) + share * tail.second()
        shares = np.exp(2 * (log_z - tail.unit)) / square
        shares = math.exp(self.probe_variance) * np.minimum(shares, 1.0)
        low, middle, high = np.quantile(shares, (INTERVAL[0], 0.5, INTERVAL[1]))
        wide = math.exp(4 * self.solver_error)
        one_sided = tail.shape >= ITS_ERROR
        low = 0.0 if one_sided else float(low) / wide
        return Interval(
            min(float(middle), 1.0), low, min(float(high) * wide, 1.0), at_most=one_sided
        )

    def mean(self, f: Function | Any) -> Interval:
        """E_p[f], by normalised weights.

        Args:
            f: a function of the draws that returns (n,), or these values.

        Returns:
            The mean with its interval; refused where the weights, or those times f − E[f], have too
            heavy a tail. Noise in log q that does not depend on x cancels; a solver's error widens
            the interval.
        """
        values = _numbers(f(self.draws) if callable(f) else f, "f", len(self.log_weights))
        is_finite = bool(np.isfinite(values).all())
        require(is_finite, "f", "NaN or an infinite number", "finite at all draws")
        tail, log_z = self._log_z_draws
        why = self._refused(tail, len(values))
        if why:
            return refusal(why)
        w = self.normalised
        mean = float(w @ values)
        off = values - mean
        if not (w * off).any():
            return Interval(mean, mean, mean)
        rng = np.random.default_rng(2)
        with np.errstate(divide="ignore"):
            log_off = self.log_weights + np.log(np.abs(off))
        signs = np.sign(off)
        tail = tail_of(log_off, rng, signs)
        why = self._refused(tail, len(values))
        if why:
            return refusal(f"of f: {why}")
        largest = signs[np.argsort(log_off, kind="stable")[len(off) - tail.size :]]
        up = rng.beta((largest > 0).sum() + 0.5, (largest < 0).sum() + 0.5, POSTERIOR)
        share = tail.share(rng)
        shift = (1 - share) * _normal(tail.body, rng) + share * tail.first() * (2 * up - 1)
        means = mean + shift * np.exp(tail.unit - log_z)
        low, high = np.quantile(means, INTERVAL)
        error = 1.96 * math.sqrt(np.square(w * off).sum())
        of_solver = 0.5 * math.expm1(2 * self.solver_error) * float(w @ np.abs(off))
        low, high = min(float(low), mean - error), max(float(high), mean + error)
        return Interval(mean, low - of_solver, high + of_solver)

    def resample(self, n: int, seed: int = 0) -> Any:
        """n of the draws, each with probability in proportion to its weight: draws of the target,
        with repetitions.

        Raises:
            ValueError: where the weights are so heavy that this is refused, see :attr:`log_z`.
        """
        why = self._refused(self._log_z_draws[0], len(self.log_weights))
        if why:
            raise ValueError(f"weights cannot be resampled: {why}")
        rows = np.random.default_rng(seed).choice(len(self.log_weights), n, p=self.normalised)
        is_tensor = isinstance(self.draws, Tensor)
        return self.draws[torch.from_numpy(rows) if is_tensor else rows]

    @cached_property
    def forward(self) -> Forward | None:
        """What draws of the target say; None where none were given."""
        at_target = self.target_log_weights
        if at_target is None:
            return None
        rng = np.random.default_rng(3)
        n = len(at_target)
        inverse, log_inverse = log_means(-at_target, rng)
        outside = float(np.isinf(at_target).mean())
        if outside:
            ess = refusal(f"q has no density at {outside:.1%} of target_draws")
        else:
            ess = self._forward_ess(at_target, rng)
        why = self._refused(inverse, n) or self._noise()
        counts = int(np.isfinite(self.log_weights).sum())
        without = len(self.log_weights) - counts
        log_support = np.log(rng.beta(counts + 0.5, without + 0.5, POSTERIOR)) if without else 0.0
        log_z = self._shifted(log_support - log_inverse, self.probe_variance / 2)
        return Forward(ess, refusal(why) if why else log_z, self._deviation(at_target))

    def _forward_ess(self, at_target: Floats, rng: np.random.Generator) -> Interval:
        tail, log_z = self._log_z_draws
        above, log_mean = log_means(at_target, rng)
        why = self._refused(tail, len(self.log_weights)) or self._refused(above, len(at_target))
        if why:
            return refusal(why)
        shares = np.exp(np.minimum(log_z - log_mean, 0.0))
        low, middle, high = np.quantile(shares, (INTERVAL[0], 0.5, INTERVAL[1]))
        wide = math.exp(2 * self.solver_error)
        return Interval(float(middle), float(low) / wide, min(float(high) * wide, 1.0))

    def _deviation(self, at_target: Floats) -> float:
        """Of two equal means, in standard errors, see :class:`Forward`."""
        log_z = self._log_z_draws[1] - self.probe_variance / 2
        middle = float(np.median(log_z))
        ours = _logistic(self.log_weights - middle)
        theirs = _logistic(middle - at_target)
        error = math.hypot(ours.std() / math.sqrt(len(ours)), theirs.std() / math.sqrt(len(theirs)))
        # Z is itself a mean of these weights: an error of log Z moves the two means apart by
        # ``ours`` times it.
        error = math.hypot(error, ours.mean() * float(np.quantile(log_z, 0.84) - middle))
        # By the second derivative of the means in log q; the next order is at most the square of
        # the variance.
        of_noise = 0.5 * self.probe_variance * float((ours * (1 - 2 * ours)).mean())
        error = math.hypot(error, self.probe_variance**2 / 16)
        apart = float(ours.mean() - theirs.mean()) - of_noise
        of_solver = 2 * float(ours.mean()) * self.solver_error
        return math.copysign(max(abs(apart) - of_solver, 0.0), apart) / max(error, 1e-12)

    @property
    def verdict(self) -> str:
        """One sentence: whether the numbers hold, or why they are refused and what would help."""
        if self.forward is not None and self.forward.disagrees:
            return (
                "wrong: draws of the target do not agree with these weights "
                f"({abs(self.forward.deviation):.0f} standard errors): q misses a part of the target, "
                "log q is wrong or noisier than stated, or the draws are not from q"
            )
        if self.log_z.refused:
            return f"refused: {self.log_z.note}"
        holds = f"log Z and means hold (k̂ = {self.k:.2f})"
        if self.forward is not None:
            return holds
        return f"{holds}; without draws of the target nothing can find a mode that q misses"

    def __str__(self) -> str:
        """The numbers, one a line, and the verdict."""
        lines = [
            f"draws      {len(self.log_weights):,}, of which {self.effective:,.0f} count",
            f"log Z      {self.log_z}",
            f"share      {self.ess}",
        ]
        if self.forward is not None:
            lines.append(f"log Z      {self.forward.log_z}, by draws of the target")
            lines.append(f"share      {self.forward.ess}, by draws of the target")
        if self.solver_error or self.probe_variance:
            lines.append(
                f"log q      solver's error up to {self.solver_error:.2g}, noise {self.probe_variance:.2g} nats²"
            )
        return "\n".join([*lines, self.verdict])

    def save(self, path: str | Path) -> None:
        """Write draws and weights into one .npz file; read it by :meth:`load`."""
        draws = self.draws
        arrays: dict[str, Any] = {
            "draws": draws.detach().cpu().numpy() if isinstance(draws, Tensor) else draws,
            "log_weights": self.log_weights,
            "probe_variance": np.array(self.probe_variance),
            "solver_error": np.array(self.solver_error),
        }
        if self.target_log_weights is not None:
            arrays["target_log_weights"] = self.target_log_weights
        atomic.whole(Path(path), atomic.arrays_into(arrays))

    @classmethod
    def load(cls, path: str | Path) -> "Weights":
        """Weights that :meth:`save` wrote; draws are a NumPy array."""
        with np.load(path, allow_pickle=False) as file:
            target = file.get("target_log_weights")
            numbers = {name: float(file[name]) for name in ("probe_variance", "solver_error")}
            return cls(file["draws"], file["log_weights"], target, **numbers)


def reweight(
    log_target: Function,
    model: Any = None,
    *,
    n: int = 10_000,
    draws: Any = None,
    log_q: Any = None,
    target_draws: Any = None,
    target_log_q: Any = None,
    probe_variance: float | None = None,
    solver_error: float | None = None,
    nll_error: float = NLL_ERROR,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **solver: Any,
) -> Weights:
    r"""Weights of draws of a model, or of anybody's draws with their log q, for an unnormalised
    target density.

    Give ``model``, or ``draws`` and ``log_q``. Weights tell nothing of places where q draws
    nothing: give ``target_draws`` (of a chain, say) to see those. No check here sees a log q that
    lacks a constant factor; without ``target_draws``, none sees draws that are not from q:
    :func:`indm.audit` looks for both.

    Args:
        log_target: log p̃ of rows (B, *event), nats, (B,); −∞ where the target has no mass. It gets
            what ``draws`` are, tensors or NumPy arrays, and draws of a model in model units.
        model: an :class:`indm.INDM`, of which ``n`` rows are drawn together with their log q.
        n: draws of the model.
        draws, log_q: independent draws (n, *event) and log q of each, nats (n,), or the function
            that gives it. What is no tensor becomes a NumPy array.
        target_draws: independent draws (m, *event) of the target, 125 or more: thin a chain.
        target_log_q: log q of these, (m,), −∞ outside of q; not needed where ``log_q`` is a
            function, or with a model.
        probe_variance: variance of the noise in each log q, nats². Of a model it is measured.
        solver_error: largest error of each log q, nats. Of a model it is ``nll_error``.
        nll_error, **solver: of the model's ODE, as in :func:`indm.sample_with_log_prob`;
            ``exact=True`` for an exact divergence, ``c`` for one condition of all draws.
        batch_size: rows at a time.
        generator: of the model's draws.
        progress: show bars.

    Raises:
        ValueError: an argument that does not fit, NaN, fewer than 125 draws, draws that are all
            alike, or weights that are all 0.

    Example: the integral of exp(−‖x‖²) by draws of N(0, I) is π.

        >>> q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
        >>> x = q.sample((2000,))
        >>> found = reweight(lambda x: -x.square().sum(1), draws=x, log_q=q.log_prob, progress=False)
        >>> found.log_z.low < math.log(math.pi) < found.log_z.high
        True

    Source: Vehtari et al. 2024, "Pareto Smoothed Importance Sampling",
    https://arxiv.org/abs/1507.02646.
    """
    is_one = (model is None) != (draws is None)
    got = "both" if model is not None else "neither"
    require(is_one, "model or draws", got, "given, one of the two")
    if model is not None:
        density = _ModelDensity(model, nll_error, solver)
        draws, log_q = density.sample(n, batch_size, generator, progress)
        if probe_variance is None:
            probe_variance = density.variance(draws)
        if solver_error is None:
            solver_error = nll_error * event_size(draws) * math.log(2)
        if target_log_q is None:
            target_log_q = density
    elif target_log_q is None and callable(log_q):
        target_log_q = log_q
    log_weights_of = _LogWeights(log_target, batch_size, progress)
    draws = _rows(draws, "draws")
    require(bool((draws[1:] != draws[:1]).any()), "draws", "the same row everywhere", "different")
    log_weights = log_weights_of(draws, log_q, "log_q")
    has_mass = bool(np.isfinite(log_weights).any())
    require(has_mass, "log_target", "−∞ at all draws", "finite somewhere")
    at_target = None
    if target_draws is not None:
        target_draws = _rows(target_draws, "target_draws")
        at_target = log_weights_of(target_draws, target_log_q, "target_log_q")
        has_mass = bool((at_target > -math.inf).all())
        require(has_mass, "target_draws", "rows without target density", "draws of the target")
    return Weights(draws, log_weights, at_target, probe_variance or 0.0, solver_error or 0.0)


@dataclass(frozen=True)
class _ModelDensity:
    """log q of a model at any rows; ``solver`` has options of its ODE."""

    model: Any
    nll_error: float
    solver: Mapping[str, Any]

    def sample(
        self, n: int, batch_size: int, generator: torch.Generator | None, progress: bool
    ) -> tuple[Tensor, Tensor]:
        """n draws, and log q of each."""
        return sample_with_log_prob(
            self.model,
            n,
            nll_error=self.nll_error,
            batch_size=batch_size,
            generator=generator,
            progress=progress,
            **self.solver,
        )

    def __call__(self, x: Tensor, steps: int = 256) -> Tensor:
        options = {name: self.solver[name] for name in OF_BOTH if name in self.solver}
        with torch.no_grad():
            return self.model.log_prob(x, steps=steps, **options)

    def variance(self, draws: Tensor) -> float:
        """Variance of the noise in log q, from two estimates for some of ``draws``; 0 where the
        divergence is exact.
        """
        if self.solver.get("exact"):
            return 0.0
        with warnings.catch_warnings():
            # The error of these few steps is the same in both, so it leaves their difference.
            warnings.simplefilter("ignore", RuntimeWarning)
            first, again = (self(draws[:PAIRS], steps=32) for _ in range(2))
        return float((first - again).double().square().mean() / 2)


@dataclass(frozen=True)
class _LogWeights:
    """log p̃ − log q of rows, (n,), evaluated ``batch_size`` rows at a time."""

    log_target: Function
    batch_size: int
    progress: bool

    def __call__(self, rows: Any, log_q: Any, name: str) -> Floats:
        """``log_q``, called ``name`` in messages, are values or a function of rows."""
        log_p = self._evaluated(self.log_target, rows, "log_target")
        if callable(log_q):
            log_q = self._evaluated(log_q, rows, name)
        log_q = _numbers(log_q, name, len(rows))
        is_known = bool((log_p < math.inf).all())
        require(is_known, "log_target", "NaN or ∞", "finite, or −∞ for no mass")
        may_miss = name == "target_log_q"  # a draw of q always has a density
        is_known = bool(((log_q < math.inf) & (may_miss | (log_q > -math.inf))).all())
        wanted = "finite, or −∞ for no density" if may_miss else "finite at each draw of q"
        require(is_known, name, "a number that is not", wanted)
        return log_p - log_q

    def _evaluated(self, function: Function, rows: Any, name: str) -> Floats:
        starts = range(0, len(rows), self.batch_size)
        is_quiet = not self.progress or len(starts) == 1
        parts = []
        with torch.no_grad():
            for start in tqdm(starts, desc=name, disable=is_quiet):
                part = rows[start : start + self.batch_size]
                parts.append(_numbers(function(part), name, len(part)))
        return np.concatenate(parts)


def _rows(draws: Any, name: str) -> Any:
    """``draws`` as a tensor or an array; ValueError for too few to fit a tail."""
    draws = draws if isinstance(draws, Tensor) else np.asarray(draws)
    least = 5 * LEAST_TAIL
    got = counted(len(draws), "row")
    require(len(draws) >= least, name, got, f"at least {least}", "fewer have no tail to fit")
    return draws


def _numbers(values: Any, name: str, n: int) -> Floats:
    """Values (n,) of any library in float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    found = np.asarray(values, dtype=np.float64)
    is_one_each = found.shape == (n,)
    require(is_one_each, name, f"the shape {found.shape}", f"of the shape ({n},), one number a row")
    return found
