"""ODE integration in torch, and the divergence of a vector field."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from indm.sde import event_size

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


def integrate(
    field: Callable[[float, State], State],
    state: State,
    start: float,
    end: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> tuple[State, int]:
    """Dormand–Prince 5(4) with a step common to the batch, from ``start`` to ``end`` in either direction.

    Args:
        field: (t, state) → d state/dt; every tensor has the batch as its first axis.
        state: at ``start``.
        rtol, atol: a step is accepted where, in every sample and tensor, the root mean square of
            error/(atol + rtol·|state|) is at most 1.

    Returns:
        The state at ``end`` and the number of evaluations of ``field``.

    Raises:
        RuntimeError: where ``max_steps`` or the precision does not suffice, or the field is not finite.
    """
    t, span = start, end - start
    if span == 0.0:
        return state, 0
    slope, nfe = field(t, state), 1
    step = span / 100
    for _ in range(max_steps):
        last = abs(step) >= abs(end - t)
        step = end - t if last else step
        slopes = [slope]
        for node, row in zip(_NODES[1:], _STAGES, strict=True):
            trial = _combine(state, step, row, slopes)
            slopes.append(field(t + node * step, trial))
        nfe += 6
        error = _combine(None, step, _ERROR, slopes)
        ratio = _error_norm(error, state, trial, rtol, atol)
        if not math.isfinite(ratio):
            raise RuntimeError(f"the ODE's field or state became non-finite near t = {t:.3g} (step {step:.2g})")
        if ratio <= 1.0:
            t, state, slope = t + step, trial, slopes[-1]
            if last:
                return state, nfe
        step *= min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
        if abs(step) < 1e-9 * abs(span):
            raise RuntimeError(
                f"the ODE's step shrank to {abs(step):.1g} near t = {t:.3g}; allow a larger rtol and atol "
                f"(now {rtol:g}, {atol:g}) or compute in float64"
            )
    raise RuntimeError(f"the ODE did not reach t = {end:g} in max_steps = {max_steps} steps (stopped at {t:.3g})")


def _combine(state: State | None, step: float, row: tuple[float, ...], slopes: list[State]) -> State:
    """state + step Σ row_i slopes_i."""
    result = []
    for i in range(len(slopes[0])):
        total = sum(weight * slope[i] for weight, slope in zip(row, slopes, strict=True) if weight)
        result.append(step * total if state is None else state[i] + step * total)
    return tuple(result)


def _error_norm(error: State, old: State, new: State, rtol: float, atol: float) -> float:
    ratios = [
        (e / (atol + rtol * a.abs().maximum(b.abs()))).reshape(len(e), -1).square().mean(1).sqrt().max()
        for e, a, b in zip(error, old, new, strict=True)
    ]
    return torch.stack(ratios).max().item()


def value_and_divergence(
    field: Callable[[Tensor], Tensor], z: Float[Tensor, "batch *event"], probes: Float[Tensor, "probes batch *event"]
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    """field(z) and the Hutchinson estimate of its divergence (B,), from one evaluation and one product a probe.

    With :func:`rademacher` probes it is unbiased; with :func:`basis` probes (and their sum) it is exact.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = field(z)
        divergence = z.new_zeros(len(z))
        for i, v in enumerate(probes):
            (product,) = torch.autograd.grad(value, z, v, retain_graph=i + 1 < len(probes), materialize_grads=True)
            divergence = divergence + (product * v).flatten(1).sum(1)
    return value.detach(), divergence


def rademacher(z: Tensor, probes: int, generator: torch.Generator | None = None) -> Tensor:
    """Probes ±1/√probes, (probes, B, *event): their quadratic forms *sum* to the estimate of a trace."""
    bits = torch.randint(0, 2, (probes, *z.shape), generator=generator, device=z.device, dtype=torch.int8)
    return (2 * bits - 1).to(z.dtype) / math.sqrt(probes)


def basis(z: Tensor) -> Tensor:
    """The standard basis, (d, B, *event): the quadratic forms sum to the trace exactly."""
    d = event_size(z)
    return torch.eye(d, dtype=z.dtype, device=z.device).reshape(d, 1, *z.shape[1:]).expand(d, *z.shape)
