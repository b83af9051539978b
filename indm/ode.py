"""ODE integration in torch, and the divergence of a vector field."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from indm.tensors import event_size, expand_like

State = tuple[Tensor, ...]

# Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", table 2.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
FIRST_STEP = 1 / 20  # as a share of the whole interval
FEWEST, MOST = 64, 256  # equal steps of :func:`solve`


def integrate(
    field: Callable[..., State],
    state: State,
    start: float,
    end: float,
    *,
    context: tuple[Tensor, ...] = (),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[State, Tensor]:
    """Dormand–Prince 5(4) from ``start`` to ``end`` in either direction; every sample has its own steps.

    A sample's solution does not depend on the others. Samples that have reached ``end`` are no longer evaluated.

    Args:
        field: (t (b,), state, *context) → d state/dt, for the b samples that have not reached ``end``; every tensor
            has the batch as its first axis, and t is in float64.
        state: at ``start``.
        context: further tensors that the field needs for each sample, constant in t.
        rtol, atol: a sample's step is accepted if, in every tensor, the root mean square of
            error/(atol + rtol·|state|) is at most 1.

    Returns:
        The state at ``end`` and the number of evaluations of the field for each sample, (B,).

    Raises:
        RuntimeError: ``max_steps`` or the precision does not suffice, or the field is not finite.
    """
    span, like = end - start, state[0]
    nfe = torch.zeros(len(like), dtype=torch.long, device=like.device)
    if span == 0.0 or len(like) == 0:
        return state, nfe
    result = tuple(part.clone() for part in state)
    rows = torch.arange(len(like), device=like.device)
    t = torch.full((len(like),), start, dtype=torch.float64, device=like.device)
    step = torch.full_like(t, FIRST_STEP * span)
    slope = field(t, state, *context)
    nfe += 1
    for _ in range(max_steps):
        last = step.abs() >= (end - t).abs()
        step = torch.where(last, end - t, step)
        slopes = [slope]
        for node, row in zip(_NODES[1:], _STAGES, strict=True):
            trial = tuple(s + d for s, d in zip(state, _combine(step, row, slopes), strict=True))
            slopes.append(field(t + node * step, trial, *context))
        nfe[rows] += len(_STAGES)
        error = _error_norm(_combine(step, _ERROR, slopes), state, trial, rtol, atol)
        _require(torch.isfinite(error), "the ODE's field or state became non-finite", t, step)
        accepted = error <= 1.0
        t = torch.where(accepted, t + step, t)
        state, slope = _where(accepted, trial, state), _where(accepted, slopes[-1], slope)
        step = step * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
        arrived = accepted & last
        if bool(arrived.any()):
            for whole, part in zip(result, state, strict=True):
                whole[rows[arrived]] = part[arrived]
            going = ~arrived
            rows, t, step = rows[going], t[going], step[going]
            if len(rows) == 0:
                return result, nfe
            state, slope, context = (tuple(part[going] for part in parts) for parts in (state, slope, context))
        advice = f"; allow a larger rtol and atol (now {rtol:g}, {atol:g}) or compute in float64"
        _require(step.abs() >= 1e-9 * abs(span), "the ODE's step became too small", t, step, advice)
    raise RuntimeError(
        f"the ODE did not reach t = {end:g} in max_steps = {max_steps} steps for {len(rows)} of {len(like)} samples "
        f"(stopped at {t[0]:.3g})"
    )


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
    context: tuple[Tensor, ...] = (),
) -> tuple[State, int, list[Tensor]]:
    """Adams–Bashforth–Moulton in equal steps.

    A step extrapolates the field by the polynomial through its last ``order`` values. It is then repeated with the
    value at its end added. The first steps use the values there are, and go from the start each time.

    Without ``drift`` the field is not evaluated again after that: one evaluation a step, and one at the end. Where the
    field pulls solutions together at a rate above 0.16 per step, errors then grow. With ``drift`` the value that is
    added is that of ``drift``, and the field is evaluated at the repeated step: two evaluations, up to a rate of 0.95.

    Args:
        field: as in :func:`integrate`.
        state: at ``start``.
        steps: equal steps from ``start`` to ``end``.
        drift: the field of the first parts of the state, which must not depend on the others: (t, parts, *context).
        watch: a number of each sample to keep along the way, of the state and its slope.
        context: as in :func:`integrate`.

    Returns:
        The state at ``end``, the evaluations of the field and ``drift``, and what ``watch`` gave at each of the
        ``steps`` + 1 points.
    """
    grid = np.linspace(start, end, steps + 1).tolist()
    path, trial, watched = _Quadrature(state, start, order), state, []
    for i, t in enumerate(grid):
        times = torch.full((len(state[0]),), t, dtype=torch.float64, device=state[0].device)
        if drift is not None and i > 0:
            led = path.extended(t, drift(times, trial, *context))
            trial = (*led, *trial[len(led) :])
        slope = field(times, trial, *context)
        path.add(t, slope)
        if watch is not None:
            watched.append(watch(trial, slope))
        if i < steps:
            trial = _advance(path.state, path.points[:order], t, grid[i + 1])
    nfe = steps + 1 + (0 if drift is None else steps)
    return path.state, nfe, watched


class _Quadrature:
    """The state as far as its slope is known, by the polynomials through the last ``order`` + 1 slopes."""

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
    weights = [(end - start) * w for w in interpolatory_weights([t for t, _ in points], start, end, moments)]
    slopes = [slope for _, slope in points]
    return tuple(
        part + sum(weight * slope[k] for weight, slope in zip(weights, slopes, strict=True))
        for k, part in enumerate(state)
    )


def unresolved(rates: Float[Tensor, "points batch"], step: float) -> Float[Tensor, " batch"]:
    """An estimate of the error of Σ step·rates as ∫ rates: three times the deviation that fourth differences show.

    Fourth differences remove what is smooth, and of white noise of variance v they have 70 v. Structure that the steps
    do not resolve, such as a network's ripples in t, errs like such noise. What is left of smooth rates falls quickly
    with the step and hardly errs; the estimate is therefore reduced by twice the ratio to that of every second point,
    where that is below 1.

    Args:
        rates: at ``step`` distance of each other, 9 points or more.
    """

    def deviation(rates: Tensor, step: float) -> Tensor:
        return step * (rates.double().diff(n=4, dim=0).square().sum(0) / 70).sqrt()

    fine, coarse = deviation(rates, step), deviation(rates.flip(0)[::2], 2 * step)
    return 3 * fine * (2 * fine / coarse.clamp_min(1e-300)).clamp_max(1.0)


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes:
        state: at the end.
        error: (B,), the estimate of its error.
        steps: (B,), the equal steps in which each sample was solved at last.
        nfe: (B,), evaluations, those of fewer steps included.
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
    steps: int = FEWEST,
    most: int = MOST,
) -> Solution:
    """:func:`adams` in as many equal steps as each sample needs for an error of ``tol`` in the integral of ``watch``.

    The error is that of :func:`unresolved`. Samples that are above ``tol`` are solved again in twice as many steps, up
    to ``most``, and keep their error where that is not enough. A sample's solution does not depend on the others.

    Args:
        field, state, start, end, watch, drift, context: as in :func:`adams`.
        tol: largest error.
        steps, most: to begin with, and at most.

    Raises:
        RuntimeError: the field or the state is not finite.
    """
    result = tuple(part.clone() for part in state)
    error = state[0].new_full((len(state[0]),), math.inf, dtype=torch.float64)
    taken, nfe = (torch.zeros_like(error, dtype=torch.long) for _ in range(2))
    rows = torch.arange(len(error), device=error.device)
    while len(rows):
        begin, given = (tuple(part[rows] for part in parts) for parts in (state, context))
        found, evaluations, rates = adams(
            field, begin, start, end, steps=steps, drift=drift, watch=watch, context=given
        )
        for whole, part in zip(result, found, strict=True):
            whole[rows] = part
        error[rows] = unresolved(torch.stack(rates), abs(end - start) / steps).nan_to_num(math.inf)
        taken[rows], nfe[rows] = steps, nfe[rows] + evaluations
        rows = rows[error[rows] > tol] if 2 * steps <= most else rows[:0]
        steps *= 2
    if not bool(error.isfinite().all()):
        i = int((~error.isfinite()).nonzero()[0])
        raise RuntimeError(f"the ODE's field or state became non-finite in sample {i}, in {int(taken[i])} steps")
    return Solution(result, error, taken, nfe)


def interpolatory_weights(nodes: list[float], start: float, end: float, moments: list[float]) -> list[float]:
    """w with Σ_i w_i u_i^j = moments_j for u = (nodes − start)/(end − start), as many moments as nodes."""
    powers = np.vander((np.array(nodes) - start) / (end - start), increasing=True)
    return np.linalg.solve(powers.T, moments).tolist()


def _require(holds: Tensor, complaint: str, t: Tensor, step: Tensor, advice: str = "") -> None:
    if not bool(holds.all()):
        i = int((~holds).nonzero()[0])
        raise RuntimeError(f"{complaint} near t = {t[i]:.3g} (step {step[i]:.2g}){advice}")


def _combine(step: Tensor, row: tuple[float, ...], slopes: list[State]) -> State:
    """step Σ row_i slopes_i."""
    result = []
    for parts in zip(*slopes, strict=True):
        total = sum(weight * part for weight, part in zip(row, parts, strict=False) if weight)
        result.append(expand_like(step.to(total.dtype), total) * total)
    return tuple(result)


def _where(condition: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(expand_like(condition, a), a, b) for a, b in zip(new, old, strict=True))


def _error_norm(error: State, old: State, new: State, rtol: float, atol: float) -> Tensor:
    """(b,): the largest over tensors of the root mean square of error/(atol + rtol·|state|)."""
    ratios = [
        (e / (atol + rtol * a.abs().maximum(b.abs()))).reshape(len(e), -1).square().mean(1).sqrt()
        for e, a, b in zip(error, old, new, strict=True)
    ]
    return torch.stack(ratios).amax(0).double()


def value_and_divergence(
    field: Callable[[Tensor], Tensor], z: Float[Tensor, "batch *event"], probes: Float[Tensor, "batch probes *event"]
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    """field(z) and the Hutchinson estimate of its divergence (B,), from one evaluation and one product a probe.

    With :func:`rademacher` probes it is unbiased; with :func:`basis` probes (and their sum) it is exact.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = field(z)
        divergence = z.new_zeros(len(z))
        for i, v in enumerate(probes.unbind(1), start=1):
            (product,) = torch.autograd.grad(value, z, v, retain_graph=i < probes.shape[1], materialize_grads=True)
            divergence = divergence + (product * v).flatten(1).sum(1)
    return value.detach(), divergence


def rademacher(z: Tensor, probes: int, generator: torch.Generator | None = None) -> Tensor:
    """Probes ±1/√probes, (B, probes, *event): their quadratic forms *sum* to the estimate of a trace."""
    shape = (len(z), probes, *z.shape[1:])
    bits = torch.randint(0, 2, shape, generator=generator, device=z.device, dtype=torch.int8)
    return (2 * bits - 1).to(z.dtype) / math.sqrt(probes)


def basis(z: Tensor) -> Tensor:
    """The standard basis, (B, d, *event): the quadratic forms sum to the trace exactly."""
    d = event_size(z)
    return torch.eye(d, dtype=z.dtype, device=z.device).reshape(1, d, *z.shape[1:]).expand(len(z), d, *z.shape[1:])
