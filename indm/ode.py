"""ODE integration in torch, and the divergence of a vector field."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from indm.tensors import double, event_size, float64_device, widest

State = tuple[Tensor, ...]
Spacing = Callable[[float, float, int], list[float]]
Attempt = tuple[State, Tensor, int]  # the state at the end, its error, evaluations

# Steps of the ODE by default. The second of two numbers is for fields without ripples in t.
# nll at first, log_prob and grad_log_prob: stated errors hold, see bench/solver_error.py
FEWEST_STEPS, FEWEST_SMOOTH = 64, 32
# nll, where its error needs so many
MOST_SOLVED = 256
# the fewest that nll takes on request: fewer leave no fourth differences
FEWEST_WITH_ERROR = 8
# evaluate, of hundreds of examples: a subset corrects the mean error
COARSE, COARSE_SMOOTH = 16, 12
# sample and inpaint: 0.02 grey levels, see bench/ripples.py
SAMPLED, SAMPLED_SMOOTH = 400, 25
# numbers of steps in which ripples are looked for: fewer resolve too little, more err by rounding
LEAST_SMOOTH, MOST_SMOOTH = 24, 96
PROBED = 8  # steps of which one is looked into, between its ends: an eighth more evaluations
# its multiples, modulo 1, fill [0, 1) most evenly and have no period
GOLDEN = (math.sqrt(5) - 1) / 2
MOST_CONVERGED = 1536  # most steps of :func:`converge`: 12 steps, doubled seven times
WHITE = 70.0  # variance of fourth differences of white noise of variance 1: 1 + 16 + 36 + 16 + 1
OUT_OF_REACH = "the ODE's stated error is up to"  # how the warning begins
ROUNDING_UNITS = 8  # units in the last place: a sum of 64 terms, each rounded by one, is off by √64
# the same of ∫ |rates|, whose terms, a network's, are themselves off by some four units
ROUNDING_OF_RATES = 32


class Integration(NamedTuple):
    """What :func:`adams` returns.

    Attributes:
        state: at the end.
        evaluations: of the field, and of its drift.
        watched: what ``watch`` gave at each of the points.
        between: what it gave between them.
    """

    state: State
    evaluations: int
    watched: list[Tensor]
    between: list[Tensor]


def equal_steps(start: float, end: float, steps: int) -> list[float]:
    """The points of ``steps`` equal steps."""
    return np.linspace(start, end, steps + 1).tolist()


def adams(
    field: Callable[..., State],
    state: State,
    start: float,
    end: float,
    *,
    steps: int,
    order: int = 4,
    drift: Callable[..., State] | None = None,
    watch: Callable[[State, State], Tensor] | None = None,
    between: Mapping[int, float] = MappingProxyType({}),
    context: tuple[Tensor, ...] = (),
    points: Spacing = equal_steps,
) -> Integration:
    """Adams–Bashforth–Moulton, by default in equal steps.

    A step extrapolates the field by the polynomial through its last ``order`` values, and is
    repeated with the value at its end added. Without ``drift`` that is one evaluation a step,
    stable up to a rate of 0.16 per step; with it, two, up to 0.95: the value of ``drift`` is added,
    and the field is evaluated at the repeated step.

    Args:
        field: (t (B,), state, *context) → d state/dt; all tensors have the batch as their first
            axis, t is in float64, on the CPU where the device of the state has none.
        drift: the field of the first parts of the state, which must not depend on the others: (t,
            parts, *context).
        watch: a number of each sample to keep along the way, of the state and its slope.
        between: the steps, counted from 1, in which it is also taken between the points, and at
            which share of them.
        context: further tensors that the field needs for each sample, constant in t.
        points: (start, end, steps) → the ``steps`` + 1 points between which it steps.

    """
    grid = points(start, end, steps)
    path, trial, watched, others = _Quadrature(state, start, order), state, [], []

    def clock(t: float) -> Tensor:
        return torch.full(
            (len(state[0]),), t, dtype=torch.float64, device=float64_device(state[0].device)
        )

    for i, t in enumerate(grid):
        times, before = clock(t), path.state
        if drift is not None and i > 0:
            led = path.extended(t, drift(times, trial, *context))
            trial = (*led, *trial[len(led) :])
        slope = field(times, trial, *context)
        path.add(t, slope)
        if watch is not None:
            watched.append(watch(trial, slope))
        if watch is not None and i in between:
            middle = grid[i - 1] + between[i] * (t - grid[i - 1])
            with torch.no_grad():
                inside = _advance(before, path.points, grid[i - 1], middle)
                others.append(watch(inside, field(clock(middle), inside, *context)))
        if i < steps:
            trial = _advance(path.state, path.points[:order], t, grid[i + 1])
    evaluations = steps + 1 + len(others) + (0 if drift is None else steps)
    return Integration(path.state, evaluations, watched, others)


class _Quadrature:
    """The state as far as its slope is known, by the polynomials through the last ``order`` + 1
    slopes.
    """

    def __init__(self, state: State, start: float, order: int):
        self.state, self.order = state, order
        self.points: list[tuple[float, State]] = []  # (t, slope), newest first
        self._from = state, start  # where the next polynomial is integrated from

    def extended(self, t: float, slope: State) -> State:
        """The parts of the state at ``t`` that ``slope`` is given of."""
        state, before = self._from
        return _advance(state[: len(slope)], [(t, slope), *self.points[: self.order]], before, t)

    def add(self, t: float, slope: State) -> None:
        self.state = self.extended(t, slope)
        self.points = [(t, slope), *self.points[: self.order]]
        if len(self.points) > self.order:
            self._from = self.state, t


def _advance(state: State, points: list[tuple[float, State]], start: float, end: float) -> State:
    """state + ∫ of the polynomial through ``points`` from ``start`` to ``end``."""
    if start == end:
        return state
    moments = [1 / (j + 1) for j in range(len(points))]
    weights = [
        (end - start) * w
        for w in interpolatory_weights([t for t, _ in points], start, end, moments)
    ]
    slopes = [slope for _, slope in points]
    return tuple(
        part + sum(weight * slope[k] for weight, slope in zip(weights, slopes, strict=True))
        for k, part in enumerate(state)
    )


def unresolved(
    rates: Float[Tensor, "points batch"], step: float, smooth: bool = False, kinks: bool = False
) -> Float[Tensor, " batch"]:
    """An estimate of the error of Σ step·rates as ∫ rates, of 9 rates or more.

    It is three standard deviations of the fourth differences, which remove what is smooth;
    structure that the steps do not resolve errs like white noise. In fewer than 64 steps of a field
    that may have ripples, or with ``kinks``, six deviations are stated. Smooth rates hardly err:
    without kinks the estimate is reduced by twice its ratio to the estimate from every second point
    (1/√2 for white noise, 2^−4.5 for smooth rates), and of a ``smooth`` field by its power 3/2.
    """

    def deviation(rates: Tensor, step: float) -> Tensor:
        return step * (double(rates).diff(n=4, dim=0).square().sum(0) / WHITE).sqrt()

    fine, coarse = deviation(rates, step), deviation(rates.flip(0)[::2], 2 * step)
    if kinks:
        return 6 * deviation(rates, step)
    power = 1.5 if smooth and LEAST_SMOOTH <= len(rates) - 1 <= MOST_SMOOTH else 1.0
    deviations = 3 if smooth or len(rates) > FEWEST_STEPS else 6
    return deviations * fine * (2 * fine / coarse.clamp_min(1e-300)).clamp_max(1.0) ** power


def offsets(steps: int) -> dict[int, float]:
    """One step of every eight, counted from 1, and a share of it, by multiples of the golden
    section.
    """
    places = [PROBED * (m + (m + 0.5) * GOLDEN % 1) for m in range(steps // PROBED)]
    return {int(place) + 1: place % 1 for place in places}


def unseen(
    rates: Float[Tensor, "points batch"], others: Float[Tensor, "offsets batch"], step: float
) -> Float[Tensor, " batch"]:
    """An estimate of the error of Σ step·rates by ``others``, rates at the :func:`offsets` between
    the points.

    Ripples with the same period as the steps look smooth at their points. So rates are compared
    with the polynomials through six points, and twice the part of their mean distance that two
    standard deviations of the fourth differences do not explain is stated, times the span.
    """
    rates, steps = double(rates), len(rates) - 1
    off = torch.zeros_like(rates[0])
    for (i, share), other in zip(offsets(steps).items(), double(others), strict=True):
        first = min(max(i - 3, 0), steps - 5)
        place = i - 1 + share - first
        weights = interpolatory_weights(
            [float(k) for k in range(6)], 0.0, 1.0, [place**j for j in range(6)]
        )
        off = off + (other - rates.new_tensor(weights) @ rates[first : first + 6]).abs() / len(
            others
        )
    seen = (rates.diff(n=4, dim=0).square().mean(0) / WHITE).sqrt()
    return 2 * step * steps * (off - 2 * seen).clamp_min(0.0)


def error_of_integral(
    rates: Float[Tensor, "points batch"],
    others: Float[Tensor, "offsets batch"],
    step: float,
    dtype: torch.dtype,
    smooth: bool,
    kinks: bool = False,
) -> Float[Tensor, " batch"]:
    """:func:`unresolved`, :func:`unseen`, and the rounding of rates that come from a network in
    ``dtype``; infinite where not finite.
    """
    rounding = ROUNDING_OF_RATES * torch.finfo(dtype).eps * step * double(rates).abs().sum(0)
    error = unresolved(rates, step, smooth, kinks) + unseen(rates, others, step) + rounding
    return error.nan_to_num(math.inf, posinf=math.inf)


@dataclass(frozen=True)
class Solution:
    """The state at the end, the estimate of its error (B,), the steps in which each sample was
    solved at last, (B,), and its evaluations, including the solves in fewer steps.
    """

    state: State
    error: Float[Tensor, " batch"]
    steps: Tensor
    nfe: Tensor


def solve(
    field: Callable[..., State],
    state: State,
    start: float,
    end: float,
    *,
    watch: Callable[[State, State], Tensor],
    tol: float,
    drift: Callable[..., State],
    context: tuple[Tensor, ...] = (),
    steps: int | None = None,
    most: int = MOST_SOLVED,
    smooth: bool = False,
    kinks: bool = False,
) -> Solution:
    """:func:`adams` in as many equal steps as each sample needs for an error of ``tol`` in the
    integral of ``watch``.

    The stated error is an estimate, :func:`error_of_integral`, and not a bound. Samples above
    ``tol`` are solved again in twice as many steps, up to ``most``. A sample's solution does not
    depend on the others.

    Args:
        field, state, start, end, watch, drift, context: as in :func:`adams`.
        tol: largest stated error; a RuntimeWarning says where it is out of reach, as soon as the
            errors show it.
        steps, most: the first and the largest number of them.
        smooth: whether the field is known to have no ripples in t; it then begins with fewer steps.
        kinks: whether its slope in t jumps, as between the steps of a table.

    Raises:
        RuntimeError: the field or the state is not finite.
    """
    stated = double(state[0].new_full((len(state[0]),), math.inf))  # errors in half as many steps

    def attempt(rows: Tensor, steps: int, before: State, spent: int) -> Attempt:
        begin, given = (tuple(part[rows] for part in parts) for parts in (state, context))
        options: dict[str, Any] = {
            "drift": drift,
            "watch": watch,
            "between": offsets(steps),
            "context": given,
        }
        found, evaluations, watched, between = adams(
            field, begin, start, end, steps=steps, **options
        )
        rates, inside = torch.stack(watched), torch.stack(between)
        step = abs(end - start) / steps
        error = error_of_integral(rates, inside, step, state[0].dtype, smooth, kinks)
        doublings, known = int(math.log2(most / steps)), stated[rows].isfinite()
        if doublings and bool(known.all()):
            foreseen = error * (error / stated[rows]).clamp_max(1.0) ** doublings
            _warn_above(tol, error, foreseen, steps, spent + evaluations, doublings, unit=" nats")
        stated[rows] = error
        return found, error, evaluations

    first = FEWEST_SMOOTH if smooth else FEWEST_STEPS
    return _in_doubled_steps(attempt, state, tol, first if steps is None else steps, most)


def converge(
    field: Callable[..., State],
    state: State,
    start: float,
    end: float,
    *,
    tol: float,
    context: tuple[Tensor, ...] = (),
    first: int = 8,
    most: int = MOST_CONVERGED,
    order: int = 4,
    points: Spacing = equal_steps,
) -> Solution:
    r""":func:`adams` in as many steps as each sample needs for an error of ``tol`` of its state.

    A sample is solved in ``first`` steps, and again in twice as many while its error is above
    ``tol``, up to ``most``. From the last two changes δ of its state (root mean squares over the
    entries) the error is taken to be

    .. math:: \delta_n \max(1, \min(3, 6\,\delta_n/\delta_{n/2}))

    and not below the rounding of the dtype. Where solutions converge by their order that is some
    fifteen times the true error; where ripples are not resolved, three of the changes are stated.

    Args:
        field, state, start, end, context, order, points: as in :func:`adams`.
        tol: largest error of each part of the state; a RuntimeWarning says where it is out of
            reach.
        first, most: steps of the first and the last solution.

    Raises:
        RuntimeError: the field or the state is not finite.
    """
    change = double(state[0].new_zeros(len(state[0])))  # 0 where none is known
    floor = ROUNDING_UNITS * torch.finfo(state[0].dtype).eps
    if start == end:
        nothing = torch.zeros_like(change, dtype=torch.long)
        return Solution(state, change, nothing, nothing)

    def attempt(rows: Tensor, steps: int, before: State, spent: int) -> Attempt:
        begin, given = (tuple(part[rows] for part in parts) for parts in (state, context))
        options: dict[str, Any] = {"context": given, "order": order, "points": points}
        found, evaluations, _, _ = adams(field, begin, start, end, steps=steps, **options)
        changes = (
            double(a - b).flatten(1).square().mean(1).sqrt()
            for a, b in zip(found, before, strict=True)
        )
        new = torch.stack([root.nan_to_num(math.inf, posinf=math.inf) for root in changes]).amax(0)
        ratio = (new / change[rows].clamp_min(1e-300)).clamp_max(1.0)
        error = (new * (6 * ratio).clamp(1.0, 3.0)).clamp_min(floor)
        change[rows] = torch.where(new.isfinite(), new, 0.0)
        doublings = int(math.log2(most / steps))
        if steps >= 16 * first or not doublings:
            # changes shrink faster the finer the steps are
            foreseen = error * ratio ** (2 * doublings)
            _warn_above(tol, error, foreseen, steps, spent + evaluations, doublings)
        return found, error, evaluations

    return _in_doubled_steps(attempt, state, tol, first, most)


class NotFinite(RuntimeError):
    """An ODE has no finite solution in the samples that ``failed`` masks, (B,)."""

    def __init__(self, message: str, failed: Tensor):
        super().__init__(message)
        self.failed = failed


def _in_doubled_steps(
    attempt: Callable[[Tensor, int, State, int], Attempt],
    state: State,
    tol: float,
    steps: int,
    most: int,
) -> Solution:
    """Solve all samples in ``steps``, and those above ``tol`` in twice as many, up to ``most``.

    ``attempt`` takes rows, steps, the state before and the evaluations of the worst sample so far.
    """
    result = tuple(part.clone() for part in state)
    error = double(state[0].new_full((len(state[0]),), math.inf))
    taken, nfe = (torch.zeros_like(error, dtype=torch.long) for _ in range(2))
    rows = torch.arange(len(error), device=error.device)
    while len(rows):
        before = tuple(part[rows] for part in result)
        found, error[rows], evaluations = attempt(rows, steps, before, int(nfe.max()))
        for whole, part in zip(result, found, strict=True):
            whole[rows] = part
        taken[rows], nfe[rows] = steps, nfe[rows] + evaluations
        rows = rows[error[rows] > tol] if 2 * steps <= most else rows[:0]
        steps *= 2
    if not bool((finite := error.isfinite()).all()):
        i = int((~finite).nonzero()[0])
        message = (
            f"the ODE's field or state became non-finite in sample {i}, in {int(taken[i])} steps"
        )
        raise NotFinite(message, ~finite)
    device = state[0].device
    return Solution(result, error.to(device, widest(device)), taken.to(device), nfe.to(device))


def _warn_above(
    tol: float,
    error: Tensor,
    foreseen: Tensor,
    steps: int,
    nfe: int,
    doublings: int,
    unit: str = "",
) -> None:
    """RuntimeWarning where an error is foreseen to stay above ``tol``."""
    if above := int((foreseen > tol).sum()):
        most = (
            f"up to {2**doublings * steps} steps are tried" if doublings else "these are the most"
        )
        warnings.warn(
            f"{OUT_OF_REACH} {error.max():.1g}{unit} after {nfe} evaluations, the last of them in {steps} steps, "
            f"and will hardly come below {tol:.2g}{unit} for {above} of {len(error)} samples; {most}",
            RuntimeWarning,
            stacklevel=2,
        )


def interpolatory_weights(
    nodes: list[float], start: float, end: float, moments: list[float]
) -> list[float]:
    """w with Σ_i w_i u_i^j = moments_j for u = (nodes − start)/(end − start), as many moments as
    nodes.
    """
    powers = np.vander((np.array(nodes) - start) / (end - start), increasing=True)
    return np.linalg.solve(powers.T, moments).tolist()


def value_and_divergence(
    field: Callable[[Tensor], Tensor],
    z: Float[Tensor, "batch *event"],
    probes: Float[Tensor, "batch probes *event"],
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    """field(z) and the estimate of its divergence (B,) by :func:`rademacher` probes, or exactly by
    :func:`basis`, from one evaluation and one product a probe.
    """
    on = torch.is_grad_enabled()
    with torch.enable_grad():
        z = z if on and z.requires_grad else z.detach().requires_grad_()
        value = field(z)
        divergence = z.new_zeros(len(z))
        for i, v in enumerate(probes.unbind(1), start=1):
            retain = on or i < probes.shape[1]
            # given v as an argument, PyTorch would load a library of half a second
            pulled = (value * v).sum()
            (product,) = torch.autograd.grad(
                pulled, z, retain_graph=retain, create_graph=on, materialize_grads=True
            )
            divergence = divergence + (product * v).flatten(1).sum(1)
    return value if on else value.detach(), divergence


def rademacher(z: Tensor, probes: int, generator: torch.Generator | None = None) -> Tensor:
    """Probes ±1/√probes, (B, probes, *event): their quadratic forms *sum* to the estimate of a
    trace.
    """
    shape = (len(z), probes, *z.shape[1:])
    bits = torch.randint(0, 2, shape, generator=generator, device=z.device, dtype=torch.int8)
    return (2 * bits - 1).to(z.dtype) / math.sqrt(probes)


def basis(z: Tensor) -> Tensor:
    """The standard basis, (B, d, *event): the quadratic forms sum to the trace exactly."""
    d = event_size(z)
    return (
        torch.eye(d, dtype=z.dtype, device=z.device)
        .reshape(1, d, *z.shape[1:])
        .expand(len(z), d, *z.shape[1:])
    )
