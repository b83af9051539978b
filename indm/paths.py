"""Paths of the diffusion in both spaces: z_t of the linear SDE, x_t = h⁻¹(z_t), and x_t simulated on the data space.

Stepping the latent and decoding every frame is exact in law and cheap. The simulations take the coefficients of
:class:`~indm.nonlinear.NonlinearDiffusion` instead, and show that both are one diffusion.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from indm.flows.base import require_one_map
from indm.nonlinear import NonlinearDiffusion
from indm.rng import randn_like
from indm.sampling import FLOW_TOLERANCE, Sampler, follow_flow, log_snr_grid, reverse_diffusion_step
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, double, evaluation_mode, expand_like, float64_device

Grid = Float[Tensor, " times"]
Path = Float[Tensor, "times batch *event"]
Increments = Float[Tensor, "steps batch *event"]

STEPS = 100  # of a path, where no times are given


@dataclass(frozen=True)
class Paths:
    """One Brownian path seen in both spaces.

    Attributes:
        times: (times,), increasing.
        latent: z_t of the linear SDE, by its exact transitions.
        decoded: h⁻¹(z_t).
        simulated: x_t of the nonlinear SDE, by Euler–Maruyama on the data space from the same start.
    """

    times: Grid
    latent: Path
    decoded: Path
    simulated: Path


def paired_paths(
    diffusion: NonlinearDiffusion, x: Batch, times: Grid | None = None, *, generator: torch.Generator | None = None
) -> Paths:
    """One Brownian path from data x, as z_t, as h⁻¹(z_t), and as the simulation on the data space.

    ``times`` as in :func:`simulate_forward`. The two on the data space differ by the error of that simulation.

    Example: behind z = 2x all three are one path, but for the steps of the simulation.

        >>> import indm
        >>> tables = {"flow": {"name": "actnorm", "channels": 2}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> _ = model.flow.log_scale.data.fill_(0.6931)  # log 2
        >>> paths = paired_paths(NonlinearDiffusion(model), torch.zeros(5, 2))
        >>> torch.allclose(paths.decoded, paths.latent / 2, atol=1e-3)
        True
        >>> bool((paths.simulated - paths.decoded).abs().max() < 0.3)
        True
    """
    model = diffusion.model
    with evaluation_mode(model):
        times = _forward_times(model.sde, times)
        latent, increments = _latent_from_data(model, x, times, generator)
        decoded = _decoded(diffusion, latent, times)
    simulated = simulate_forward(diffusion, decoded[0], times, increments=increments, generator=generator)
    return Paths(times, latent, decoded, simulated)


# ── simulations on the data space ────────────────────────────────────────────────────────────────────────────────


def simulate_forward(
    diffusion: NonlinearDiffusion,
    x: Batch,
    times: Grid | None = None,
    *,
    increments: Increments | None = None,
    generator: torch.Generator | None = None,
) -> Path:
    """Euler–Maruyama for the forward SDE on the data space, from x at times[0]; strong order ½.

    Args:
        x: (B, *event), such as ``diffusion.perturb`` gives at ε.
        times: increasing; default: 100 steps from ε to T, equal in log-SNR.
        increments: of the Brownian motion, (times − 1, B, *event); default: drawn.
        generator: of the increments and the probes.

    Returns:
        x_t at all ``times``, (times, B, *event).

    Raises:
        ValueError: ``times`` that do not increase within [ε, T], or ``increments`` of another shape.
        RuntimeError: see :class:`~indm.nonlinear.NonlinearDiffusion`.
    """
    times = _forward_times(diffusion.model.sde, times)
    return _euler_maruyama(diffusion, diffusion.forward_velocity, x, times, increments, generator)


def simulate_generative(
    diffusion: NonlinearDiffusion,
    x: Batch,
    times: Grid | None = None,
    *,
    increments: Increments | None = None,
    generator: torch.Generator | None = None,
) -> Path:
    """Euler–Maruyama for the generative SDE on the data space, from x at times[0] (such as h⁻¹ of a prior draw).

    ``times`` decrease (default: from T to ε); else as :func:`simulate_forward`.
    """
    times = _backward_times(diffusion.model.sde, times)
    return _euler_maruyama(diffusion, diffusion.generative_velocity, x, times, increments, generator)


def simulate_probability_flow(diffusion: NonlinearDiffusion, x: Batch, times: Grid | None = None) -> Path:
    """Heun's rule for the probability flow on the data space, from x at times[0]; order 2.

    ``times`` increase or decrease; default: from T to ε, 100 steps equal in log-SNR.
    """
    sde, path = diffusion.model.sde, [x]
    times = _check_times(sde, _backward_times(sde, None) if times is None else times)
    for t, s in itertools.pairwise(times.to(x)):
        slope = diffusion.probability_flow(x, t.expand(len(x)))
        x = x + 0.5 * (s - t) * (slope + diffusion.probability_flow(x + (s - t) * slope, s.expand(len(x))))
        path.append(x)
    return torch.stack(path)


def _euler_maruyama(
    diffusion: NonlinearDiffusion,
    velocity: Callable[..., Tensor],
    x: Tensor,
    times: Tensor,
    increments: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """x ← x + J (velocity (s − t) + g (w_s − w_t)) from each time t to the next s, in either direction."""
    increments = brownian_increments(times, x, generator=generator) if increments is None else increments
    if increments.shape != (len(times) - 1, *x.shape):
        raise ValueError(
            f"increments must have shape {(len(times) - 1, *x.shape)}, one for each step and entry of x, got "
            f"{tuple(increments.shape)}; brownian_increments(times, x) would do"
        )
    path = [x]
    with evaluation_mode(diffusion.model):
        for (t, s), dw in zip(itertools.pairwise(times.to(x)), increments, strict=True):
            here = diffusion.at(x, t.expand(len(x)))
            x = x + here.J @ ((s - t) * velocity(here, generator) + here.g * dw)
            path.append(x)
    return torch.stack(path)


# ── paths of the latent ──────────────────────────────────────────────────────────────────────────────────────────


def brownian_increments(times: Grid, x: Batch, *, generator: torch.Generator | None = None) -> Increments:
    """w at each of ``times`` less w at the one before, (times − 1, B, *event) for x (B, *event).

    ``times`` increase or decrease.
    """
    root = times.diff().abs().sqrt().to(x)
    return torch.stack([r * randn_like(x, generator) for r in root])


def latent_path(sde: LinearSDE, z: Batch, times: Grid, increments: Increments) -> Path:
    r"""z_t of dz = f z dt + g dw from z at times[0], by its exact transitions, with noise from Brownian increments.

    .. math:: z_s = a z_t + \sqrt{\sigma_s^2 - a^2\sigma_t^2}\,\frac{w_s - w_t}{\sqrt{s-t}}, \qquad
              a = \alpha_s/\alpha_t

    Exact in law for any increasing ``times``; as a function of the path w it has strong order 1.
    """
    times, path = times.to(float64_device(z.device), torch.float64), [z]
    for t, s, dw in zip(times[:-1, None], times[1:, None], increments, strict=True):
        ratio, std = (expand_like(v, z).to(z) for v in sde.transition(t, s))
        z = ratio * z + std * dw / (s - t).sqrt().to(z)
        path.append(z)
    return torch.stack(path)


def forward_path(model, x: Batch, times: Grid, *, generator: torch.Generator | None = None) -> Path:
    """x_t = h⁻¹(z_t) along one Brownian path from data x, at increasing ``times``, (times, B, *event).

    Exact in law and cheap, for any number of frames: the latent makes exact transitions and each frame is decoded.

    Raises:
        ValueError: ``times`` that do not increase within [ε, T], or a flow that draws a code.
        RuntimeError: where the flow's inverse did not converge.

    Example: from one point, through the identity, to the prior N(0, I) of VP.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model, x = indm.build_model(tables, (2,)), torch.ones(2000, 2)
        >>> path = forward_path(model, x, torch.tensor([1e-5, 0.1, 1.0]))
        >>> path.shape, torch.allclose(path[0], x, atol=0.1), abs(path[-1].std().item() - 1) < 0.1
        (torch.Size([3, 2000, 2]), True, True)
    """
    require_one_map(model.flow, "a path on the data space")
    with evaluation_mode(model):
        return _decode(model, _latent_from_data(model, x, _forward_times(model.sde, times), generator)[0])


def generative_path(model, x: Batch, times: Grid, *, generator: torch.Generator | None = None) -> Path:
    """x_t = h⁻¹(z_t) along the generative SDE from x at times[0], at decreasing ``times``, (times, B, *event).

    One step of reverse diffusion between successive times: for its accuracy take many. Raises as :func:`forward_path`.

    Example: N(0, I) and its exact score, whose law stays what it is.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> path = generative_path(model, torch.randn(2000, 2), log_snr_grid(model.sde, 100))
        >>> path.shape, abs(path[-1].std().item() - 1) < 0.1
        (torch.Size([101, 2000, 2]), True)
    """
    require_one_map(model.flow, "a path on the data space")
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(_backward_times(model.sde, times).to(x)):
            path.append(reverse_diffusion_step(model.score, path[-1], t.expand(len(x)), s.expand(len(x)), generator))
        return _decode(model, torch.stack(path))


def samples_of_one_path(
    score,
    z_T: Batch,
    sampler: Sampler,
    steps: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[int, Batch]:
    """z_ε of a stochastic sampler in each number of ``steps``, all from z_T along one Brownian path.

    What few steps lose is then seen sample by sample, against many steps through the same noise.

    Args:
        sampler: one that :attr:`~indm.sampling.Sampler.follows_a_path`.
    """
    sampler.check(score.sde)
    grids = {n: sampler.grid(score.sde, n).to(z_T) for n in dict.fromkeys(steps)}
    z, done = dict.fromkeys(grids, z_T), dict.fromkeys(grids, 0)
    w = dict.fromkeys(grids, torch.zeros_like(z_T))  # of the path, since the last step
    times = torch.cat(list(grids.values())).unique().flip(0)
    pairs = itertools.pairwise(times)
    for t, s in tqdm(pairs, total=len(times) - 1, desc="one path", leave=False, disable=not progress):
        increment = (t - s).sqrt() * randn_like(z_T, generator)
        for n, grid in grids.items():
            w[n] = w[n] + increment
            start, end = grid[done[n] : done[n] + 2]
            if s == end:
                noise = w[n] / (start - end).sqrt()
                z[n] = sampler.driven_step(score, z[n], start.expand(len(z_T)), end.expand(len(z_T)), noise)
                w[n], done[n] = torch.zeros_like(z_T), done[n] + 1
    return z


def probability_flow_path(model, x: Batch, times: Grid, *, tol: float = FLOW_TOLERANCE) -> Path:
    """x_t = h⁻¹(z_t) along the probability flow from x at times[0], ``times`` in either direction, (times, B, *event).

    The latent's ODE is solved to ``tol`` between successive times. Raises as :func:`forward_path`.

    Example: N(0, I) and its exact score, for which nothing moves.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model, x = indm.build_model(tables, (2,)), torch.randn(5, 2)
        >>> path = probability_flow_path(model, x, torch.tensor([1e-5, 0.1, 1.0]))
        >>> path.shape, torch.allclose(path, x.expand_as(path), atol=1e-3)
        (torch.Size([3, 5, 2]), True)
    """
    require_one_map(model.flow, "a path on the data space")
    times = _check_times(model.sde, times)
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(times.tolist()):
            path.append(follow_flow(model.score, path[-1], t, s, tol=tol)[0])
        return _decode(model, torch.stack(path))


def path_length(path: Path) -> Float[Tensor, " batch"]:
    """Σ ‖x_s − x_t‖ over successive frames, (B,).

    Example:

        >>> corner = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 2.0]]])
        >>> path_length(corner)
        tensor([3.])
    """
    return path.diff(dim=0).flatten(2).norm(dim=2).sum(0)


def path_curvature(path: Path) -> Float[Tensor, " batch"]:
    """The sum of the angles between successive steps, radians, (B,): ∫ κ ds of a smooth path in many frames.

    It is 0 for a straight path and 2π for once around a circle, whatever the speed. Frames that are equal count for 0.

    >>> corner = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 2.0]]])
    >>> path_curvature(corner)
    tensor([1.5708])
    """
    step = path.diff(dim=0).flatten(2)
    before, after = step[:-1], step[1:]
    length, other = before.norm(dim=2, keepdim=True), after.norm(dim=2, keepdim=True)
    apart, along = before * other - after * length, before * other + after * length  # Kahan's form: exact when small
    return (2 * torch.atan2(apart.norm(dim=2), along.norm(dim=2))).sum(0)


def _latent_from_data(model, x: Tensor, times: Tensor, generator) -> tuple[Tensor, Tensor]:
    """z_t from the kernel's draw at times[0] on, for data x, and the Brownian increments behind it."""
    start = times[:1].to(x).expand(len(x))
    z = model.sde.perturb(model.flow.latent(x), start, randn_like(x, generator))
    increments = brownian_increments(times, x, generator=generator)
    return latent_path(model.sde, z, times, increments), increments


def _decoded(diffusion: NonlinearDiffusion, latent: Tensor, times: Tensor) -> Tensor:
    """h⁻¹ of the frame at each time."""
    return torch.stack([diffusion.decode(z, t.expand(len(z))) for z, t in zip(latent, times.to(latent), strict=True)])


def _decode(model, latent: Tensor) -> Tensor:
    """h⁻¹ of each frame."""
    return torch.stack([model.decode(z) for z in latent])


def _forward_times(sde: LinearSDE, times: Tensor | None) -> Tensor:
    return _check_times(sde, log_snr_grid(sde, STEPS).flip(0) if times is None else times, "increase")


def _backward_times(sde: LinearSDE, times: Tensor | None) -> Tensor:
    return _check_times(sde, log_snr_grid(sde, STEPS) if times is None else times, "decrease")


def _check_times(sde: LinearSDE, times: Tensor, way: str = "increase or decrease") -> Tensor:
    """``times`` in float64, strictly monotone in [ε, T] (but for the rounding of single precision)."""
    times = double(times)
    allowed = {"increase": [{1.0}], "decrease": [{-1.0}]}.get(way, [{1.0}, {-1.0}])
    inside = (times >= sde.eps * (1 - 1e-6)) & (times <= sde.T * (1 + 1e-6))
    if set(times.diff().sign().tolist()) not in allowed or not bool(inside.all()):
        raise ValueError(
            f"times must be at least 2 and {way} strictly within [{sde.eps:g}, {sde.T:g}], got {times.tolist()[:10]}; "
            "indm.sampling.log_snr_grid gives such times (they decrease: flip them to go forward)"
        )
    return times.clamp(sde.eps, sde.T)
