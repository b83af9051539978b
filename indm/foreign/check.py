r"""Checks of a network trained elsewhere: its denoising error on data shows a wrong description.

If the error e = E‖n − n̂‖²/d is larger by Δ over a part of the clock Λ = log(σ²/α²) of width w, the
NELBO is larger by ½ Δ w nats a dimension; at the least noise it is larger by another ½ Δ, by the
reconstruction term. The least possible error has three upper bounds: the error of the best linear
predictor, the error of the best combination a f + b x_τ + c of output and input, and one from a
level with more noise. For the latter, log(e/(1 − e)) rises at most as fast as Λ falls, by Stam's
inequality for the Fisher information (1 − e)/σ² of x_0 + σ n.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Num
from scipy.optimize import minimize_scalar
from torch import Tensor

from indm.checks import require
from indm.dequantization import check_raw, from_data
from indm.foreign.paths import PREDICTIONS, Path
from indm.foreign.schedules import nearest
from indm.gaussian import GaussianReference
from indm.likelihood import check_gradient
from indm.objective import NOISE_LEVELS, reconstruction_units
from indm.protocols import Model
from indm.score import context_of, described, unguided
from indm.tensors import evaluation_mode, randn_like

if TYPE_CHECKING:
    from indm.foreign.denoiser import Denoiser

ENTRIES = 2**13  # numbers of data that make the errors of vectors precise enough; images have more
AT_ONCE = 2**12  # least numbers of data in a call of the network, in comparisons
# rows: at least, at least for other descriptions, and at most for the linear fit
ROWS, OTHERS, MOST_FITTED = 256, 32, 10_000
# bits/dim from which a loss is a finding, and from which other descriptions are tried
LOST, TRIED = 0.05, 0.02
# bits/dim that other times may gain; the estimate from a few levels may be less than 0.02
FITTED = 0.015
EXPLAINED = 0.5  # least share of the loss that a named description explains
# shares of the loss beyond the least noise, and of a loss above 1 bit/dim, that it may leave
REST, OF_MUCH = 0.2, 0.05
WEAK = 1.5  # ratio of a level's error to the linear predictor's from which it is mentioned
SIGNIFICANT = 3.0  # standard errors by which an estimate may be wrong
# distances in log(σ/α) of other times that are tried for a level
OFFSETS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
LEFT = 0.02  # share of its gain that a description may still gain at other times
SAME_GAIN = 0.005  # bits/dim within which two descriptions are equally good
WIDEST = 3.0  # log of the largest ratio of a fitted sigma_data to the given one
# most unit squares that a fit of three coefficients removes: χ² of 3
TAKEN = 3 + SIGNIFICANT * 6**0.5
# the verdict on a loss for which no description was found
UNEXPLAINED = (
    "it was trained too little there, or for other data than these, or with noise coupled to the data, or as none of "
    "these descriptions says. If the noise was coupled, the likelihood of the probability flow and its samples hold, "
    "the NELBO is loose, and SDE samplers, inpainting and classification do not apply"
)


class Inputs(NamedTuple):
    """What the network is called with: rows at each noise level.

    Attributes:
        x: data in model units, (rows, *event).
        context: what the network sees of the condition, each (rows, …); () for none.
        levels: log(σ/α), (levels,).
        batch_size: rows at a time.
    """

    x: Tensor
    context: tuple[Tensor, ...]
    levels: Tensor
    batch_size: int


@dataclass(frozen=True)
class DenoiserCheck:
    """The error of a denoiser on data, by noise level.

    Attributes:
        levels: log(σ/α), (levels,): eight, evenly on the clock; before them the least one, if the
            reconstruction uses the network there.
        errors: E‖n − n̂‖²/d at each level, (levels,), by kind of prediction.
        linear: error of the best linear predictor of these data, (levels,).
        lost: least loss of the network at each level, bits per dimension, (levels,).
        predicts: the kind of prediction in the description.
        verdict: a sentence that follows from the rows.
        wrong: whether the network loses 0.05 bits per dimension or more, or another description
            fits it better. If it is False, no monotone curve of the network's time in log(σ/α)
            gains 0.02 bits per dimension.

    Example:
        >>> zero = torch.zeros(1)
        >>> print(DenoiserCheck(zero, {"noise": zero}, zero, zero, "noise", "nothing looks wrong", False))
        error of n̂ as       noise    linear bits lost
        σ/α          1           0         0         0
        nothing looks wrong
    """

    levels: Float[Tensor, " levels"]
    errors: dict[str, Float[Tensor, " levels"]]
    linear: Float[Tensor, " levels"]
    lost: Float[Tensor, " levels"]
    predicts: str
    verdict: str
    wrong: bool

    def __str__(self) -> str:
        """A table, a row for each noise level, and the verdict."""
        first = {self.predicts: self.errors[self.predicts]}
        columns = first | self.errors | {"linear": self.linear, "bits lost": self.lost}
        lines = ["error of n̂ as".ljust(16) + "".join(f"{name:>10}" for name in columns)]
        for noise, *values in zip(
            self.levels.exp().tolist(), *(c.tolist() for c in columns.values()), strict=True
        ):
            lines.append(f"σ/α {noise:10.4g}  " + "".join(f"{value:10.3g}" for value in values))
        return "\n".join([*lines, self.verdict])


def check_denoiser(
    model: Model,
    raw: Num[Tensor, "batch *event"],
    *,
    c: Any = None,
    batch_size: int = 64,
    generator=None,
) -> DenoiserCheck:
    r"""Check the description of a model of :func:`indm.from_denoiser` by its denoising error on data.

    The network is also called at other times, up to a factor e^3.2 of σ/α away: the best monotone
    curve of times shows a wrong schedule by its gain. If that is large, or if 0.02 bits per
    dimension are lost, other predictions, paths, schedules, scalings and values of ``sigma_data``
    are tried. :func:`indm.evaluate` calls this once, and warns if the description is ``wrong``.

    Args:
        model: what :func:`indm.from_denoiser` made.
        raw: data in data units, at least 2 rows. The network is called at half of them, at most at
            256 images; the rest gives "linear". Other times take 13 evaluations at each level, of
            32 images or 8,192 numbers, whichever are more rows.
        c: their conditions, for a model that has one.
        batch_size: rows at a time; 4,096 numbers if that is more, at other times.
        generator: for the noise of grey levels.

    Raises:
        ValueError: another model, or fewer rows.

    Example: v = 0 is exact for N(0, I), and is described as the noise here.

        >>> import indm
        >>> model = indm.from_denoiser(lambda x, tau: 0 * x, predicts="noise", path="linear", shape=(2,))
        >>> indm.check_denoiser(model, torch.randn(512, 2, generator=torch.Generator().manual_seed(0))).verdict[:40]
        "predicts='v' fits the network better, by"
    """
    denoiser = denoiser_of(model)
    check_raw(model, raw)
    require(len(raw) >= 2, "raw", len(raw), "at least 2 rows")
    c = model.rows(c, len(raw))
    # classes may come one by one
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))
    most = min(max(2, len(raw) // 2), max(ROWS, ENTRIES // math.prod(model.shape)))
    ours, others = order[:most], order[len(raw) // 2 :][:MOST_FITTED]
    levels, bits = _levels_and_bits(model)
    with evaluation_mode(model):
        x, rest = (from_data(model, raw[rows], generator=generator)[0] for rows in (ours, others))
        score = unguided(model).given(c, rows=ours).score
        check_gradient(score, x)
        inputs = Inputs(x, context_of(score), levels, batch_size)
        by_row, of_linear, least = _errors_and_bounds(denoiser, inputs, GaussianReference.fit(rest))
        errors = {kind: error.mean(1) for kind, error in by_row.items()}
        linear, error = of_linear.mean(1), errors[denoiser.predicts]
        possible = _least_possible(levels, by_row[denoiser.predicts], torch.minimum(least, linear))
        lost = bits * (error - possible).clamp_min(0)
        few = _few(inputs)
        fit = _fit_of_times(denoiser, few, bits)
        best = _Best()
        if lost.sum() >= TRIED or fit.gain >= FITTED:
            best = _best(denoiser, few, bits, fit)
    verdict, wrong = _Findings(levels, lost, error / linear, fit.gain, best).verdict()
    return DenoiserCheck(levels, errors, linear, lost, denoiser.predicts, verdict, wrong)


def _levels_and_bits(model: Model) -> tuple[Tensor, Tensor]:
    """The levels log(σ/α) of a check, and the bits/dim that a unit of error costs at each."""
    start, width = model.sde.clock_span()[0], model.sde.log_snr_range() / NOISE_LEVELS
    unit = reconstruction_units(model)
    first = [(0.0, unit)] if unit else []
    parts = [(width * (i + 0.5), width) for i in range(NOISE_LEVELS)]
    clock, widths = torch.tensor(first + parts).double().T
    return 0.5 * (start + clock), 0.5 * widths / math.log(2)


def _least_possible(levels: Tensor, error: Tensor, bound: Tensor) -> Tensor:
    """The least possible error, (levels,), by ``bound`` and by Stam's inequality at the next level.

    ``error``, (levels, rows), of the network bounds it at that level; three standard errors are
    added.
    """
    noise = SIGNIFICANT * error.std(1) / error.shape[1] ** 0.5
    above = (torch.minimum(bound, error.mean(1)) + noise)[1:].clamp(1e-12, 1 - 1e-9)
    by_stam = (above.logit() + 2 * levels.diff()).sigmoid() + noise[:-1]
    return torch.cat([torch.minimum(bound[:-1], by_stam), bound[-1:]])


def denoiser_of(model: Model) -> "Denoiser":
    """The network of a model of :func:`indm.from_denoiser`; ValueError for another model."""
    if (network := described(model.score)) is None:
        raise ValueError(
            f"model must come from from_denoiser, got one with {type(model.score).__name__}"
        )
    return network


def _outputs(
    denoiser: "Denoiser", inputs: Inputs, scale: float = 1.0, shift: float = 0.0
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Number of the level, rows, noise, x_τ, τ and output, for ``scale`` x + ``shift``.

    The noise is the same in every call.
    """
    x, context, levels, batch_size = inputs
    generator = torch.Generator(x.device).manual_seed(0)
    for i, level in enumerate(levels.tolist()):
        for rows in torch.arange(len(x)).split(batch_size):
            z, std = x[rows], math.exp(level)
            noise = randn_like(z, generator)
            at_level = z.new_full((len(z),), level + math.log(scale))
            y = (scale * z + shift + scale * std * noise) / math.hypot(1, scale * std)
            yield i, rows, noise, *denoiser.output(y, at_level, *(part[rows] for part in context))


def _errors(
    denoiser: "Denoiser",
    inputs: Inputs,
    kinds: Iterable[str],
    scale: float = 1.0,
    shift: float = 0.0,
) -> dict[str, Tensor]:
    """‖n − n̂‖²/d, (levels, rows), of each kind of prediction."""
    x, levels = inputs.x, inputs.levels
    errors = {kind: torch.zeros(len(levels), len(x)).double() for kind in kinds}
    for i, rows, noise, x_tau, tau, f in _outputs(denoiser, inputs, scale, shift):
        for kind, values in errors.items():
            values[i, rows] = _mean_square(denoiser.noise_from(kind, f, x_tau, tau) - noise)
    return errors


def _error(denoiser: "Denoiser", inputs: Inputs, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """‖n − n̂‖²/d of the description, (levels, rows)."""
    return _errors(denoiser, inputs, [denoiser.predicts], scale, shift)[denoiser.predicts]


def _mean_square(error: Tensor) -> Tensor:
    """‖error‖²/d, (B,)."""
    return error.square().flatten(1).mean(1).double().cpu()


def _errors_and_bounds(
    denoiser: "Denoiser", inputs: Inputs, reference: GaussianReference
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Errors by prediction, of the linear predictor, (levels, rows), and of a f + b x_τ + c."""
    x, levels = inputs.x, inputs.levels
    errors = {kind: torch.zeros(len(levels), len(x)).double() for kind in PREDICTIONS}
    linear = torch.zeros(len(levels), len(x)).double()
    products = torch.zeros(len(levels), 4, 4).double()
    for i, rows, noise, x_tau, tau, f in _outputs(denoiser, inputs):
        z, r = x[rows], math.exp(2 * levels[i].item())
        off = {kind: denoiser.noise_from(kind, f, x_tau, tau) - noise for kind in PREDICTIONS}
        for kind, values in errors.items():
            values[i, rows] = _mean_square(off[kind])
        known = reference.variance * reference.coordinates(noise) - r**0.5 * reference.offset(z)
        linear[i, rows] = _mean_square(known / (reference.variance + r))
        parts = torch.stack(
            [f[:, : z.shape[1]], x_tau, torch.ones_like(z), off[denoiser.predicts]]
        ).flatten(1)
        products[i] += (parts.double() @ parts.double().T).cpu()
    size = products.diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()
    unit = products / (size[:, :, None] * size[:, None]) + 1e-10 * torch.eye(4)
    least = size[:, 3] ** 2 / torch.linalg.inv(unit)[:, 3, 3] / max(x.numel() - TAKEN, 1)
    return errors, linear, least


def _few(inputs: Inputs) -> Inputs:
    """The first rows, as many as comparisons need; they are repeated if there are too few."""
    size = inputs.x[0].numel()
    rows = torch.arange(max(OTHERS, ENTRIES // size)) % len(inputs.x)
    return Inputs(
        inputs.x[rows],
        tuple(part[rows] for part in inputs.context),
        inputs.levels,
        max(inputs.batch_size, AT_ONCE // size),
    )


@dataclass(frozen=True)
class _Times:
    """The times of least error in each part of the clock."""

    gain: float  # bits/dim of these times, on rows that did not choose them
    levels: Tensor  # log(σ/α) in the middle of each part, (parts,)
    asked: Tensor  # log(σ/α) at which the path has the best time, (parts,)
    curvature: Tensor  # bits/dim for a unit of (asked − best)², (parts,); 0 if it is not known


def _fit_of_times(
    denoiser: "Denoiser", inputs: Inputs, bits: Tensor, scale: float = 1.0, shift: float = 0.0
) -> _Times:
    """The monotone curve of times in log(σ/α) that fits the network best, and what it gains.

    Each half of the rows judges the curve that the other half has chosen.
    """
    levels, bits = inputs.levels[-NOISE_LEVELS:], bits[-NOISE_LEVELS:]
    offsets = torch.tensor([*(-d for d in reversed(OFFSETS)), 0.0, *OFFSETS], dtype=torch.float64)
    within = inputs._replace(levels=levels)
    later = [denoiser.asking(_later(denoiser, offset)) for offset in offsets.tolist()]
    errors = torch.stack([_error(other, within, scale, shift) for other in later])
    costs = bits[:, None] * (errors - errors[len(OFFSETS)])  # (offsets, levels, rows)
    halves = costs[:, :, ::2], costs[:, :, 1::2]
    judged = []
    for half, other in (halves, halves[::-1]):
        best = _monotone(half.mean(2), offsets, levels)
        judged.append(other.gather(0, best[None, :, None].expand(1, -1, other.shape[2]))[0].sum(0))
    by_row = -torch.cat(judged)
    gain = by_row.mean().item()
    if gain < SIGNIFICANT * by_row.std().item() / len(by_row) ** 0.5:
        gain = 0.0
    best = _monotone(costs.mean(2), offsets, levels)
    found, curvature = _lowest(costs.mean(2), offsets, best)
    return _Times(gain, levels, levels + found, curvature)


def _later(denoiser: "Denoiser", offset: float) -> Callable[[Tensor], Tensor]:
    """The network's time at log(σ/α) + ``offset``, within the range of its path."""
    path = denoiser.noises
    low, high = sorted(path.range)

    def time(tau: Tensor) -> Tensor:
        later = path.time(path.level(tau[:1]) + offset).clamp(low, high)  # all rows have one level
        return denoiser.asked_at(later).expand(len(tau))

    return time


def _monotone(costs: Tensor, offsets: Tensor, levels: Tensor) -> Tensor:
    """The indices of the offsets of least total cost for which level + offset never falls."""
    asked = levels + offsets[:, None]
    total, before = costs[:, 0], []
    for i in range(1, len(levels)):
        allowed = asked[None, :, i - 1] <= asked[:, None, i]  # (offsets now, offsets before)
        least, number = torch.where(allowed, total[None], math.inf).min(1)
        total = costs[:, i] + least
        before.append(number)
    chosen = [int(total.argmin())]
    for number in reversed(before):
        chosen.append(int(number[chosen[-1]]))
    return torch.tensor(chosen[::-1])


def _lowest(costs: Tensor, offsets: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Offset and curvature of the minimum, by the parabola through the ``best`` cost."""
    middle, columns = best.clamp(1, len(offsets) - 2), torch.arange(len(best))
    at = torch.stack([offsets[middle + i] for i in (-1, 0, 1)])
    value = torch.stack([costs[middle + i, columns] for i in (-1, 0, 1)])
    slopes = value.diff(dim=0) / at.diff(dim=0)
    curvature = (slopes[1] - slopes[0]) / (at[2] - at[0])
    lowest = 0.5 * (at[0] + at[1]) - 0.5 * slopes[0] / curvature
    is_inside = (curvature > 0) & (best == middle) & lowest.isfinite()
    within = torch.minimum(torch.maximum(lowest, at[0]), at[2])
    return torch.where(is_inside, within, offsets[best]), torch.where(is_inside, curvature, 0.0)


@dataclass(frozen=True)
class _Other:
    """Another description: its network, the scaling and shift of x, and its gain in bits/dim."""

    words: str
    denoiser: "Denoiser"
    scale: float = 1.0
    shift: float = 0.0
    gain: float = 0.0


def _others(denoiser: "Denoiser", inputs: Inputs, bits: Tensor, fit: _Times) -> Iterator[_Other]:
    """Other descriptions that a user may have meant, the usual ones first."""
    x = inputs.x
    std = x.std().item() or 1.0
    for sigma_data in _values_of_sigma_data(denoiser, inputs, bits, std):
        yield _Other(f"sigma_data={sigma_data:g}", denoiser.preconditioned(sigma_data))
    a, b, mean = (v.item() for v in (x.min(), x.max(), x.mean()))
    scalings = {
        "[−1, 1]": ((b - a) / 2 or 1, (a + b) / 2),
        "[0, 1]": (b - a or 1, a),
        "deviation 1": (std, mean),
    }
    for name, (size, centre) in scalings.items():
        yield _Other(f"data of {name}", denoiser, 1 / size, -centre / size)
    for words, other, time in denoiser.noises.others():
        yield _Other(words, denoiser.asking(time, other))
    yield from _schedules(denoiser, fit)


def _schedules(denoiser: "Denoiser", fit: _Times) -> Iterator[_Other]:
    """The schedules nearest to the best times of a network with a table of steps."""
    path = denoiser.noises
    if path.is_table:
        count = round(path.range[1]) + 1
        steps = denoiser.asked_at(path.time(fit.asked))
        for words, other in nearest(steps, fit.levels, fit.curvature, count):
            yield _Other(
                f"path={{'alphas_bar': …}} of {words}", denoiser.asking(_time_of(other, path))
            )


def _time_of(other: Path, path: Path) -> Callable[[Tensor], Tensor]:
    """The step of one table that has the noise level of a step of another, or the nearest."""
    return lambda tau: other.time(path.level(tau).clamp(*other.whole_levels()[[0, -1]].tolist()))


def _values_of_sigma_data(
    denoiser: "Denoiser", inputs: Inputs, bits: Tensor, std: float
) -> list[float]:
    """Usual values of EDM's ``sigma_data``, and the best one; none for a network without it."""
    if denoiser.sigma_data is None:
        return []

    def cost(log: float) -> float:
        error = _error(denoiser.preconditioned(math.exp(log)), inputs)
        return (bits * error.mean(1))[-NOISE_LEVELS:].sum().item()

    centre = math.log(denoiser.sigma_data)
    found = minimize_scalar(
        cost, bounds=(centre - WIDEST, centre + WIDEST), method="bounded", options={"xatol": 0.005}
    )
    values = (0.5, 1.0, float(f"{std:.3g}"), float(f"{math.exp(found.x):.3g}"))
    return [value for value in values if value != denoiser.sigma_data]


@dataclass(frozen=True)
class _Best:
    """The best of other descriptions; None if none is better."""

    other: _Other | None = None
    left: float = 0.0  # bits/dim that its network still gains at other times
    tried: int = 0  # descriptions


def _best(denoiser: "Denoiser", inputs: Inputs, bits: Tensor, fit: _Times) -> _Best:
    """The best of other descriptions; ``bits`` are those of a unit of error at each level.

    At the least noise paths differ too much to be compared, so only other predictions count there.
    If the best one gains at other times, the schedules near to those are tried, too.
    """
    errors = _errors(denoiser, inputs, PREDICTIONS)
    given = errors.pop(denoiser.predicts)
    found = [
        _Other(
            f"predicts={kind!r}",
            denoiser.predicting(kind),
            gain=(bits * (given - error).mean(1)).sum().item(),
        )
        for kind, error in errors.items()
    ]

    def compare(others: Iterable[_Other]) -> None:
        for other in others:
            # networks may not accept such a call
            with suppress(IndexError, RuntimeError, ValueError):
                error = _error(other.denoiser, inputs, other.scale, other.shift)
                gain = bits * (given - error).mean(1)
                found.append(replace(other, gain=gain[-NOISE_LEVELS:].sum().item()))

    def left_by(other: _Other) -> _Times:
        return _fit_of_times(other.denoiser, inputs, bits, other.scale, other.shift)

    compare(_others(denoiser, inputs, bits, fit))
    best = _first_of_best(found)
    if best is None:
        return _Best(tried=len(found))
    left = left_by(best)
    if left.gain >= FITTED and best.scale == 1:
        also = "" if best.denoiser.predicts == denoiser.predicts else f"{best.words} and "
        compare(
            replace(other, words=also + other.words) for other in _schedules(best.denoiser, left)
        )
        better = _first_of_best(found)
        if better is not None and better.gain > best.gain:
            best, left = better, left_by(better)
    return _Best(best, left.gain, len(found))


def _first_of_best(others: list[_Other]) -> _Other | None:
    """The first description that gains as much as the best one; None if none gains."""
    highest = max((other.gain for other in others if math.isfinite(other.gain)), default=0.0)
    if highest <= 0:
        return None
    return next(other for other in others if other.gain >= highest - SAME_GAIN)


@dataclass(frozen=True)
class _Findings:
    """The findings of a check, and their :meth:`verdict`."""

    levels: Tensor  # log(σ/α), (levels,)
    lost: Tensor  # least loss of the network at each level, bits/dim, (levels,)
    ratio: Tensor  # its error divided by the linear predictor's, (levels,)
    by_times: float  # bits/dim that it gains at other times
    best: _Best  # of other descriptions

    def verdict(self) -> tuple[str, bool]:
        """A sentence that follows from the rows, and whether something is wrong."""
        total = self.lost.sum().item()
        gains_by_times = self.by_times >= FITTED
        if total < TRIED and not gains_by_times and self.ratio.max() < WEAK:
            return "nothing looks wrong", False
        losses = self.losses()
        other = self.best.other
        if other is not None and self.is_explained_by(other):
            better = f"{other.words} fits the network better, by {other.gain:.2g} bits/dim"
            return f"{better}: as described it {losses}", True
        text = losses + self.alternatives()
        if gains_by_times and self.by_times >= EXPLAINED * total:
            return (
                f"the network {text}: path is not that of its training, or it was trained too little",
                True,
            )
        if total < LOST and not gains_by_times:
            return f"the description looks right, but the network {text}", False
        return f"the network {text}: {UNEXPLAINED}", True

    def losses(self) -> str:
        """How much the network loses, and at which noise most."""
        most = self.lost >= 0.5 * self.lost.max()
        noise = ", ".join(f"{noise:.2g}" for noise in self.levels[most].exp().tolist())
        total = max(self.lost.sum().item(), self.by_times)
        text = f"loses at least {total:.2g} bits/dim, most at σ/α = {noise}"
        worst = self.ratio[most].max().item()
        if worst > WEAK:
            text += (
                f", where its error is up to {worst:.2g} times that of the best linear predictor"
            )
        return text

    def is_explained_by(self, other: _Other) -> bool:
        """Whether ``other`` gains most of the loss, and leaves little on the clock and by times."""
        total, on_clock = self.lost.sum().item(), self.lost[-NOISE_LEVELS:].sum().item()
        gains_enough = other.gain >= max(FITTED, EXPLAINED * total, self.by_times - FITTED)
        fits_in_time = self.best.left < max(FITTED, LEFT * other.gain)
        rest = max(on_clock, self.by_times) - other.gain
        allowed = max(TRIED, min(REST * on_clock, max(LOST, OF_MUCH * on_clock)))
        return gains_enough and fits_in_time and rest <= allowed

    def alternatives(self) -> str:
        """What other descriptions and other times gain."""
        best, text = self.best, ""
        if best.other is not None and best.other.gain >= TRIED:
            words = f"{best.other.words}, loses {best.other.gain:.2g} bits/dim less"
            text = f"; the best of {best.tried} other descriptions, {words}"
        elif best.tried:
            text = f"; none of {best.tried} other descriptions loses {TRIED} bits/dim less"
        if self.by_times >= FITTED:
            text += f"; asked at other times it loses {self.by_times:.2g} bits/dim less"
        return text
