r"""Audit of the log p of any library: does it integrate to 1, do draws follow it, are its gradients
right?

With draws of p (``sample``) and of a mixture q fitted to others of them, w = p/q and any f between
−1 and 1,

.. math:: 1 = E_q[w], \qquad E_p\Big[\frac{f}{1 + w}\Big] = E_q\Big[\frac{f\,w}{1 + w}\Big].

The values of the second equation lie between −1 and 1, so its error is known however badly q fits.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from tqdm.auto import tqdm

from indm.checks import reason, require
from indm.tensors import outside_inference

# standard errors from which a deviation is a fault: right values of a normal law exceed it once in
# 16,000
LIMIT = 4.0
# most components of the mixture; fewest draws for each of their dimensions
COMPONENTS, PER_COMPONENT = 8, 10
# variance of components, variance and share of the one that covers the tails
WIDER, WIDE, TAIL_SHARE = 1.2, 9.0, 0.1
EFFECTIVE = 0.1  # share of effective draws from which the error of a mean of weights is reliable
# weight to which larger ones are cut where it is not; float64 ends at e^709
LARGEST_WEIGHT, LARGEST_LOG = 100.0, 600.0
# trees of the classifier; mean of p/(p + q) or q/(p + q) from which draws are compared
TREES, OVERLAP = 50, 0.01
QUADRATURE_POINTS = {1: 1025, 2: 129, 3: 33}  # points of a quadrature along each axis, by dimension
# share by which its box is wider than the draws; error from which it says nothing
BOX_MARGIN, ROUGH = 0.25, 0.1
# rows whose log p is compared with the same in other calls, and of them rows alone
AGAIN, ONE_BY_ONE = 64, 4
# step of a finite difference in deviations, and the relative error of a gradient
NEAR_DEVIATIONS, SLOPE = 1e-2, 0.05
OTHER_ROWS = 20 * AGAIN  # rows of the other checks, about
# factor between the units, and the share of d log(scale) that may be missing
SCALE, OF_JACOBIAN = 10.0, 0.05
Function = Callable[[Any], Any]
Scored = tuple[Tensor, Tensor]  # x and log p, or log p/q, in float64


@dataclass(frozen=True)
class AuditRow:
    """One check: a ``value`` with its standard ``error``, which should lie from ``low`` to ``high``.

    ``passed`` is None where nothing could be checked.
    """

    check: str
    value: float
    error: float
    low: float
    high: float
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """The checks of a density by :func:`indm.audit`, one row each; ``print`` shows a table."""

    rows: tuple[AuditRow, ...]

    @property
    def wrong(self) -> bool:
        """Whether a check failed."""
        return any(row.passed is False for row in self.rows)

    @property
    def verdict(self) -> str:
        """The failed checks, or how many passed."""
        failed = [row.check for row in self.rows if row.passed is False]
        unknown = [row.check for row in self.rows if row.passed is None]
        if failed:
            return f"wrong: {', '.join(failed)}"
        rest = f"; not checked: {', '.join(unknown)}" if unknown else ""
        return f"nothing wrong found by {len(self.rows) - len(unknown)} checks{rest}"

    def __str__(self) -> str:
        """A table, a row for each check, and the verdict."""
        lines = [f"{'check':27}{'result':11}{'value':>9}{'error':>10}{'from':>10}{'to':>10}"]
        words = {True: "pass", False: "FAIL", None: "not checked"}
        for r in self.rows:
            numbers = f"{r.value:9.4g}{r.error:10.2g}{r.low:10.3g}{r.high:10.3g}"
            numbers = "" if r.passed is None else numbers
            lines.append(f"{r.check:27}{words[r.passed]:11}{numbers}  {r.note}".rstrip())
        return "\n".join([*lines, self.verdict])


@outside_inference
def audit(
    log_prob: Function,
    sample: Callable[[int], Any] | None = None,
    law: Any = None,
    *,
    x: Any = None,
    rescaled: Callable[[float], Function] | None = None,
    parameters: Iterable[Tensor] = (),
    draws: int = 2000,
    tolerance: float = 0.01,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    r"""Check a density of any library, given as functions of arrays, and list the checks it fails.

    Give ``sample`` if you can: without draws of p, a normalized density of the wrong column looks
    right. docs/audit.md says when each check fails.

    Args:
        log_prob: log p of (B, *event), nats, (B,). It gets tensors or NumPy arrays, in the dtype of
            the draws.
        sample: sample(n) draws (n, *event) of p.
        law: the law of the data, if it is known: ``sample((n,))`` and ``log_prob``, as in
            ``torch.distributions``.
        x: data (N, *event), at least 64 rows, for a density that has neither ``sample`` nor
            ``law``.
        rescaled: rescaled(k) is the log_prob of the same model, made for data multiplied by k.
        parameters: tensors in which log p should have gradients.
        draws: n of each mean. ``log_prob`` is called for some 4 n rows, and 17,000 to 36,000 more
            in 2 or 3 dimensions.
        tolerance: a deviation of masses, probabilities and nats that is not a fault, such as an ODE
            solver's. A check fails beyond ``tolerance`` and 4 standard errors, and misses smaller
            faults.
        batch_size: rows at a time.
        seed: of the mixture's draws.
        progress: show a bar of the rows of ``log_prob``, with the time that the rest will take.

    Raises:
        ValueError: neither ``sample`` nor ``law`` nor ``x``; fewer than 64 draws; draws that are
            not finite floating-point numbers, or that are constant in an entry; a log p that is not
            (B,).

    Example: N(0, I), and the same without its constant.

        >>> law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
        >>> audit(law.log_prob, lambda n: law.sample((n,)), draws=500).wrong
        False
        >>> audit(lambda x: -0.5 * x.square().sum(1), lambda n: law.sample((n,)), draws=500).verdict[:44]
        'wrong: total mass, total mass by quadrature,'
    """
    given, name = _given(sample, law, x, 2 * draws)
    _check_rows(given, name)
    d = math.prod(given.shape[1:])
    total = len(given) + 2 * draws + QUADRATURE_POINTS.get(d, 0) ** d + OTHER_ROWS
    with tqdm(total=total, desc="audit, rows", disable=not progress) as bar:
        density = _Density(log_prob, given, batch_size, bar)
        wide, own = _Mixture(given, seed), density(given)
        others = density(wide.sample(2 * draws).reshape(2 * draws, *own[0].shape[1:]))
        finite = _finite(own[1], others[1])
        if not finite.passed:
            return Audit((finite,))
        log_w, log_w_of_others = (log_p - wide.log_prob(rows) for rows, log_p in (own, others))
        rows = [finite, _mass(log_w_of_others[draws:], tolerance)]
        rows += _quadrature(density, wide, own[0], tolerance)
        if sample is not None:
            rows += _compared((own[0], log_w), (others[0], log_w_of_others), tolerance, seed)
        if law is not None:
            drawn = given if sample is None else law.sample((2 * draws,))
            rows.append(_above_entropy(density, law, drawn, tolerance))
        first = own[0][:AGAIN], own[1][:AGAIN]
        if rescaled is not None:
            rows.append(_units(replace(density, log_prob=rescaled(SCALE)), *first))
        rows += _calls(density, *first, tolerance)
        rows += _gradients(density, *first, list(parameters))
    return Audit(tuple(rows))


def _given(sample: Any, law: Any, x: Any, n: int) -> tuple[Any, str]:
    """Draws of p, or data, and what the caller calls them."""
    if sample is not None:
        return sample(n), "sample(n)"
    if law is not None:
        return law.sample((n,)), "law.sample((n,))"
    require(x is not None, "sample, law or x", None, "given; x are rows of data")
    return x, "x"


def _check_rows(given: Any, name: str) -> None:
    """ValueError unless a mixture of densities can be fitted to the rows ``given``, which the
    caller calls ``name``.
    """
    rows = torch.as_tensor(given).detach().cpu()
    require(len(rows) >= AGAIN, name, f"{len(rows)} rows", f"at least {AGAIN} rows")
    kind = str(rows.dtype).removeprefix("torch.")
    hint = "integers have no density"
    require(rows.is_floating_point(), name, kind, "of floating-point numbers", hint)
    flat = rows.reshape(len(rows), -1)
    bad = (~flat.isfinite()).any(1).nonzero()
    if len(bad):
        got = f"NaN or infinity in {len(bad)} rows, first in row {int(bad[0])}"
        raise ValueError(f"{name} must be finite, got {got}; leave such rows out")
    fitted = flat[: len(flat) // 2]
    same = (fitted == fitted[0]).all(0).nonzero()
    if len(same):
        value = fitted[0, same[0]].item() + 0.0  # not -0
        got = f"{value:g} in each row of entry {int(same[0])}"
        raise ValueError(f"{name} must vary in every entry, got {got}; leave it out")


def _judged(
    check: str, value: float, error: float, low: float, high: float, note: str = ""
) -> AuditRow:
    """A row that passes within :data:`LIMIT` errors of the interval; NaN fails."""
    passed = low - LIMIT * error <= value <= high + LIMIT * error
    return AuditRow(check, value, error, low, high, passed, note)


def _unknown(check: str, note: str) -> AuditRow:
    return AuditRow(check, math.nan, math.nan, math.nan, math.nan, None, note)


def _mean(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


@dataclass(frozen=True)
class _Density:
    """x and log p in float64, of rows like ``given``, ``batch_size`` at a time, counted by ``bar``."""

    log_prob: Function
    given: Any
    batch_size: int
    bar: tqdm

    def like(self, x: Any) -> Tensor:
        """``x`` in the dtype and on the device of ``given``."""
        return torch.as_tensor(x).detach().to(torch.as_tensor(self.given))

    def call(self, x: Tensor) -> Tensor:
        """log p of a tensor as it is, with its graph."""
        found = torch.as_tensor(self.log_prob(x if isinstance(self.given, Tensor) else x.numpy()))
        is_one_each = found.shape == (len(x),)
        require(is_one_each, "log_prob(x)", tuple(found.shape), f"of shape ({len(x)},)")
        self.bar.update(len(x))
        return found

    def __call__(self, x: Any) -> Scored:
        x = self.like(x)
        log_p = [self.call(part).detach().double().cpu() for part in x.split(self.batch_size)]
        return x.double().cpu(), torch.cat(log_p)


class _Mixture:
    """A Gaussian mixture of the first half of some draws, a little wider than they are, with one
    wide component.
    """

    def __init__(self, given: Any, seed: int):
        from sklearn.mixture import GaussianMixture

        x = torch.as_tensor(given).detach().double().cpu().reshape(len(given), -1)
        x = x[: len(x) // 2]
        self.generator = torch.Generator().manual_seed(seed)
        self.mean, self.std = x.mean(0), x.std(0)
        unit, d = (x - self.mean) / self.std, x.shape[1]
        components = max(1, min(COMPONENTS, len(x) // (PER_COMPONENT * d)))
        fitted = GaussianMixture(components, random_state=seed).fit(unit)
        law = fitted.weights_, fitted.means_, fitted.covariances_
        shares, means, covs = map(torch.as_tensor, law)
        self.cov = unit.T.cov().reshape(d, d) + 1e-6 * torch.eye(d)
        self.shares = torch.cat([(1 - TAIL_SHARE) * shares, shares.new_tensor([TAIL_SHARE])])
        means = torch.cat([means, 0 * means[:1]])
        covs = torch.cat([WIDER * covs, WIDE * self.cov[None]])
        self.parts = MultivariateNormal(means, covs)

    @property
    def axes(self) -> Tensor:
        """The principal axes of the draws, as columns."""
        return torch.linalg.eigh(self.cov).eigenvectors

    def sample(self, n: int) -> Tensor:
        """Draws, (n, d)."""
        which = self.shares.multinomial(n, replacement=True, generator=self.generator)
        unit = torch.randn(n, len(self.mean), dtype=torch.float64, generator=self.generator)
        # one after the other: all would take n matrices
        for number, factor in enumerate(self.parts.scale_tril):
            rows = which == number
            unit[rows] = self.parts.mean[number] + unit[rows] @ factor.T
        return self.mean + self.std * unit

    def log_prob(self, x: Tensor) -> Tensor:
        unit = (x.reshape(len(x), -1) - self.mean) / self.std
        law = MixtureSameFamily(Categorical(self.shares), self.parts)
        return law.log_prob(unit) - self.std.log().sum()


def _finite(own: Tensor, others: Tensor) -> AuditRow:
    """log p is finite at draws of p, and finite or −∞ elsewhere."""
    bad = (~own.isfinite()).sum() + (others.isnan() | (others == math.inf)).sum()
    return _judged("finite", bad.item(), 0, 0, 0, "rows that are not")


def _mass(log_w: Tensor, tolerance: float) -> AuditRow:
    """E_q[w]; where few draws count, its error is unknown, but a mean of cut weights above 1 is
    wrong.
    """
    check = "total mass"
    w = log_w.clamp_max(LARGEST_LOG).exp()
    effective = (w.sum().square() / w.square().sum().clamp_min(1e-300)).item() / len(w)
    if effective >= EFFECTIVE:
        return _judged(check, *_mean(w), 1 - tolerance, 1 + tolerance)
    cut = _mean(w.clamp_max(LARGEST_WEIGHT))
    row = _judged(check, *cut, -math.inf, 1 + tolerance, "at least")
    if not row.passed:
        return row
    return _unknown(check, f"{effective:.1%} of the mixture's draws count")


def _quadrature(
    density: _Density, wide: _Mixture, x: Tensor, tolerance: float
) -> Iterator[AuditRow]:
    """The trapezoidal rule in a box along the principal axes; the sum over half the points bounds
    its error.
    """
    check, d = "total mass by quadrature", len(wide.mean)
    if d not in QUADRATURE_POINTS:
        return
    axes = wide.axes
    flat = (x.reshape(len(x), -1) - wide.mean) / wide.std @ axes
    low, size = flat.amin(0), flat.amax(0) - flat.amin(0)
    ticks = torch.linspace(-BOX_MARGIN, 1 + BOX_MARGIN, QUADRATURE_POINTS[d], dtype=torch.float64)
    grid = low + size * torch.cartesian_prod(*[ticks] * d).reshape(-1, d)
    p = density((wide.mean + wide.std * (grid @ axes.T)).reshape(-1, *x.shape[1:]))[1].exp()
    p = p.reshape([QUADRATURE_POINTS[d]] * d)
    cell = ((ticks[1] - ticks[0]) * size * wide.std).prod()
    fine = (p.sum() * cell).item()
    coarse = (p[(slice(None, None, 2),) * d].sum() * cell * 2**d).item()
    row = _judged(check, fine, abs(fine - coarse) / LIMIT, 1 - tolerance, 1 + tolerance)
    if row.passed and abs(fine - coarse) > ROUGH:
        row = _unknown(check, f"half of the points: {coarse:.2g} in place of {fine:.2g}")
    yield row


def _compared(own: Scored, others: Scored, tolerance: float, seed: int) -> Iterator[AuditRow]:
    """E_p[f/(1 + w)] − E_q[f w/(1 + w)] on the second halves, for f = 1 and for a classifier of the
    first halves.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    xs = [x.reshape(len(x), -1).chunk(2) for x, _ in (own, others)]
    shares = [(sign * log_w).sigmoid().chunk(2) for sign, (_, log_w) in ((-1, own), (1, others))]
    if max(tested.mean().item() for _, tested in shares) < OVERLAP:
        yield _unknown("draws follow log p", "no mixture overlaps with the draws")
        return
    labels = torch.cat([torch.full((len(x),), label) for label, (x, _) in enumerate(xs)])
    classifier = HistGradientBoostingClassifier(max_iter=TREES, random_state=seed)
    weights = torch.cat([weight for weight, _ in shares])
    classifier.fit(torch.cat([x for x, _ in xs]), labels, weights)
    outputs = [2 * torch.as_tensor(classifier.predict_proba(x)[:, 1]) - 1 for _, x in xs]
    largest = torch.cat(outputs).abs().max().clamp_min(1e-12)
    checks = {
        "draws follow log p": [torch.ones_like(f) for f in outputs],
        "draws, by a classifier": [f / largest for f in outputs],
    }
    for check, f in checks.items():
        means = [_mean(share * weight) for (_, share), weight in zip(shares, f, strict=True)]
        (a, of_a), (b, of_b) = means
        # a share moves ¼ as log w
        yield _judged(check, a - b, math.hypot(of_a, of_b), -tolerance / 4, tolerance / 4)


def _above_entropy(density: _Density, law: Any, drawn: Any, tolerance: float) -> AuditRow:
    """The mean of log p at draws of the law of the data, which is highest for that law itself."""
    gain = density(drawn)[1] - torch.as_tensor(law.log_prob(drawn)).detach().double().cpu()
    return _judged("above the law's entropy", *_mean(gain), -math.inf, tolerance)


def _units(scaled: _Density, x: Tensor, log_p: Tensor) -> AuditRow:
    """Where data are multiplied by a factor, log p falls by the log of the Jacobian."""
    jacobian = x[0].numel() * math.log(SCALE)
    off = (scaled(SCALE * x)[1] - log_p) / jacobian + 1
    return _judged("change of units", *_mean(off), -OF_JACOBIAN, OF_JACOBIAN, "of the Jacobian")


def _calls(density: _Density, x: Tensor, log_p: Tensor, tolerance: float) -> Iterator[AuditRow]:
    """The largest difference of log p in other calls; noise between equal calls is the error of the
    rest.
    """
    x = density.like(x)

    def off(other: Tensor) -> float:
        expected = log_p[: len(other)]
        difference = (other.detach().double().cpu() - expected).abs()
        return (difference / (1 + 0.01 * expected.abs())).max().item()

    noise = off(density.call(x))
    yield _judged("same call", noise, 0, 0, tolerance)
    yield _judged("order of rows", off(density.call(x.flip(0)).flip(0)), noise, 0, tolerance)
    alone = torch.cat([density.call(row) for row in x[:ONE_BY_ONE].split(1)])
    yield _judged("rows alone", off(alone), noise, 0, tolerance)
    other = torch.float32 if x.dtype == torch.float64 else torch.float64
    try:
        yield _judged("other float", off(density.call(x.to(other))), noise, 0, tolerance)
    except Exception as error:  # a refusal, whatever its class, is not a wrong number
        yield _unknown("other float", f"{other} is refused: {reason(error)[:60]}")


def _gradients(
    density: _Density, x: Tensor, log_p: Tensor, parameters: list[Tensor]
) -> Iterator[AuditRow]:
    """Gradients that are missing; in x the median error of steps up or down, against central
    differences.
    """
    if not isinstance(density.given, Tensor):
        yield _unknown("gradient in x", "log_prob takes NumPy arrays")
        return
    asked = [density.like(x).requires_grad_(), *parameters]
    total = density.call(asked[0]).sum()
    found: Any = [None] * len(asked)
    if total.requires_grad:
        found = torch.autograd.grad(total, asked, allow_unused=True)
    is_missing = [slope is None or not slope.isfinite().all() for slope in found]
    if is_missing[0]:
        yield AuditRow("gradient in x", math.nan, 0, 0, SLOPE, False, "None or not finite")
    else:
        yield _slope(density, x, found[0].double().cpu())
    if parameters:
        missing = sum(is_missing[1:])
        note = f"of {len(parameters)} missing"
        yield _judged("gradient in parameters", missing, 0, 0, 0, note)


def _slope(density: _Density, x: Tensor, in_x: Tensor) -> AuditRow:
    """The median error of the gradient ``in_x`` in steps up or down, by central differences."""
    signs = 1 - 2 * (torch.arange(len(x)) % 2)
    step = NEAR_DEVIATIONS * x.std(0) * signs.reshape(-1, *[1] * (x.ndim - 1))
    wide, near = ((density(x + h)[1] - density(x - h)[1]) / 2 for h in (step, step / 4))
    along = (in_x * step).reshape(len(x), -1).sum(1)
    size = wide.abs().median().clamp_min(1e-300).item()
    off, error = ((4 * near - other).abs().median().item() / size for other in (along, wide))
    return _judged("gradient in x", off, error, 0, SLOPE, "relative error")
