r"""The nonlinear diffusion of the data, :math:`dx = f_\varphi\,dt + G_\varphi\,dw`, that a flow and a linear SDE imply.

With z = h(x) and J = [∂h/∂x]⁻¹ = ∂h⁻¹/∂z, Itô's formula for x_t = h⁻¹(z_t), dz = f z dt + g dw, gives

.. math:: f_\varphi = J\,(f z) + \tfrac12 g^2 \Delta h^{-1}(z), \qquad G_\varphi = g\,J, \qquad
          \Delta h^{-1}(z) = -J\,E_v\big[D^2h(x)[Jv, Jv]\big],\ v \sim (0, I).

Everything is J times a velocity of the latent, so a step costs one product with J, and one more for each probe v. No
Jacobian is ever formed: h is linearised once at x, and J v is the solution of (∂h/∂x) y = v.

Itô's formula asks for h ∈ C². Residual and affine flows are smooth; rational-quadratic splines are C¹ with bounded
second derivatives, for which the formula still holds along a nondegenerate diffusion (Krylov), D²h being taken almost
everywhere.

Paths are in both spaces: z_t of the linear SDE by its exact transitions with every frame decoded, which is exact in law
and cheap; and x_t simulated on the data space by its own coefficients, which shows that both are one diffusion.

Source: Kim et al. 2022, "Maximum Likelihood Training of Implicit Nonlinear Diffusion Models", §3,
https://arxiv.org/abs/2205.13699.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from indm.conditions import repeated
from indm.flows.base import Flow
from indm.linearization import Map, Operator, inverse_linearization, linearize, second_derivative, solve
from indm.ode import basis, rademacher
from indm.rng import randn_like
from indm.sampling import FLOW_TOLERANCE, follow_flow, log_snr_grid, reverse_diffusion_step
from indm.sde.linear import LinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    double,
    evaluation_mode,
    event_size,
    expand_like,
    float64_device,
    full_precision,
)

Grid = Float[Tensor, " times"]
Path = Float[Tensor, "times batch *event"]
Increments = Float[Tensor, "steps batch *event"]

STEPS = 100  # of a path, where no times are given
TOLERANCE = 1e-4  # of ‖(∂h/∂x) y − v‖/‖v‖: what single precision reaches where h is badly conditioned


@dataclass(frozen=True)
class Point:
    """Points x at times t, with what the coefficients there are made of.

    Attributes:
        flow: h.
        z: h(x).
        J: ∂h⁻¹/∂z at z.
        f, g: f(t) and g(t) of the linear SDE, shaped to multiply z.
    """

    x: Tensor
    t: Tensor
    flow: Flow
    z: Tensor
    J: Operator
    f: Tensor
    g: Tensor

    @property
    def G(self) -> Operator:
        """J diag(g)."""
        return Operator(lambda v: self.J @ (self.g * v), lambda u: self.g * (self.J.mT @ u))


Method = TypeVar("Method", bound=Callable[..., Any])


def _evaluated(method: Method) -> Method:
    """The method in the model's evaluation mode, without gradients."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with evaluation_mode(self.model):
            return method(self, *args, **kwargs)

    return cast(Method, wrapped)


class NonlinearDiffusion:
    r"""dx = f_φ(x, t) dt + G_φ(x, t) dw on the data space, and its reverse; in model units.

    .. math:: dx = \big[f_\varphi - \nabla\!\cdot(G_\varphi G_\varphi^\top)
              - G_\varphi G_\varphi^\top \nabla_x \log p_t\big]\,dt + G_\varphi\,d\bar w

    Args:
        model: an INDM; coefficients of its SDE may differ from entry to entry.
        tol: of every product with J, relative.
        probes: Rademacher probes v of the second derivative: exact (the basis) where d ≤ max(2, ``probes``), else drawn
            anew each time and unbiased; in a simulation that adds an error of strong order ½, like its own.

    Points x are (B, *event), times t (B,). All methods compute in evaluation mode and without gradients. Simulations
    are functions of this module.

    Raises:
        ValueError: ``tol`` or ``probes`` that is not positive, a flow that draws its map anew in every call, or a model
            of p(x|c) without c.
        RuntimeError: from any method, naming the samples for which a product with J did not reach ``tol``.

    Example: with the identity for h it is the linear diffusion.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> x, t = torch.randn(3, 2), torch.full((3,), 0.5)
        >>> diffusion = NonlinearDiffusion(model)
        >>> torch.allclose(diffusion.drift(x, t), model.sde.drift(t)[:, None] * x, atol=1e-5)
        True
        >>> torch.allclose(diffusion.diffusion(x, t) @ x, model.sde.diffusion(t)[:, None] * x, atol=1e-5)
        True
    """

    def __init__(self, model, *, tol: float = TOLERANCE, probes: int = 1):
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}; {TOLERANCE:g} is usual")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        if getattr(model, "condition", None) is not None:
            raise ValueError(
                "model must be at given conditions for a diffusion on the data space, got one of p(x|c): give "
                "model.given(c)"
            )
        model.flow.check_one_map("a diffusion on the data space")
        self.model, self.tol, self.probes = model, tol, probes

    def flow_at(self, t: Tensor) -> Flow:
        """h at times ``t``: the model's flow at all of them. A subclass may have another."""
        return self.model.flow

    @_evaluated
    def decode(self, z: Batch, t: PerSample) -> Batch:
        """x_t = h⁻¹(z_t)."""
        with full_precision(z.device):
            return self.flow_at(t).inverse(z)

    @_evaluated
    def drift(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """f_φ(x, t) = f J h(x) + ½ g² Δh⁻¹(h(x)), (B, *event)."""
        here = self.at(x, t)
        return here.J @ self.forward_velocity(here, generator)

    @_evaluated
    def diffusion(self, x: Batch, t: PerSample) -> Operator:
        """G_φ(x, t) = J diag(g), an operator with products ``G @ v`` and ``G.mT @ u``."""
        return self.at(x, t).G

    @_evaluated
    def dense_diffusion(self, x: Batch, t: PerSample) -> Float[Tensor, "batch d d"]:
        """G_φ(x, t) as matrices (B, d, d), column by column; for small d."""
        G = self.at(x, t).G
        return torch.stack([(G @ v).flatten(1) for v in basis(x).unbind(1)], dim=2)

    @_evaluated
    def divergence(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """div(G_φ G_φᵀ)_k = Σ_j ∂_j (G_φ G_φᵀ)_kj, as g² (Δh⁻¹ − J Jᵀ ∇ₓ log|det ∂h/∂x|), (B, *event)."""
        here = self.at(x, t)
        gradient = self._pull_back(torch.zeros_like, here.flow, x, generator)
        return -(here.J @ (self._bend(here, generator) + here.g**2 * (here.J.mT @ gradient)))

    @_evaluated
    def score(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """∇ₓ log p_t(x) = (∂h/∂x)ᵀ s_θ(h(x), t) + ∇ₓ log|det ∂h/∂x|, (B, *event).

        ``generator`` feeds a stochastic log-determinant (residual flows above 64 dimensions), which stays unbiased.
        """
        return self._pull_back(lambda z: self.model.score(z, t), self.flow_at(t), x, generator)

    @_evaluated
    def generative_drift(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """f_φ − div(G_φ G_φᵀ) − G_φ G_φᵀ ∇ₓ log p_t in its simple form J(f z − g² s_θ) − ½ g² Δh⁻¹(z), (B, *event)."""
        here = self.at(x, t)
        return here.J @ self.generative_velocity(here, generator)

    @_evaluated
    def probability_flow(self, x: Batch, t: PerSample) -> Batch:
        """dx/dt = J(f z − ½ g² s_θ) of the deterministic path with the same marginals, (B, *event)."""
        here = self.at(x, t)
        return here.J @ self.flow_velocity(here)

    @_evaluated
    def perturb(self, x: Batch, t: PerSample, noise: Batch) -> Batch:
        """x_t = h⁻¹(α_t h(x) + σ_t noise) for data x: the kernel's draw, where simulations start (at t = ε)."""
        return self.decode(self.model.sde.perturb(self.model.flow.latent(x), t, noise), t)

    @_evaluated
    def at(self, x: Batch, t: PerSample) -> Point:
        """h linearised at x, from which all coefficients at (x, t) are made."""
        flow, sde = self.flow_at(t), self.model.sde
        z, A = linearize(flow.latent, x)
        guess = inverse_linearization(flow, z)
        J = Operator(
            lambda v: solve(A, v, self.tol, guess),
            lambda u: solve(A.mT, u, self.tol, None if guess is None else guess.mT),
        )
        f, g = (expand_like(v, z) for v in (sde.drift(t), sde.diffusion(t)))
        return Point(x, t, flow, z, J, f, g)

    @_evaluated
    def forward_velocity(self, here: Point, generator: torch.Generator | None = None) -> Tensor:
        """J⁻¹ f_φ."""
        return here.f * here.z - 0.5 * self._bend(here, generator)

    @_evaluated
    def generative_velocity(self, here: Point, generator: torch.Generator | None = None) -> Tensor:
        """J⁻¹ of the generative drift."""
        reverse = here.f * here.z - here.g**2 * self.model.score(here.z, here.t)
        return reverse + 0.5 * self._bend(here, generator)

    def flow_velocity(self, here: Point) -> Tensor:
        """J⁻¹ dx/dt of the probability flow."""
        return here.f * here.z - 0.5 * here.g**2 * self.model.score(here.z, here.t)

    def _bend(self, here: Point, generator) -> Tensor:
        """Σ_i D²h[G e_i, G e_i] = −J⁻¹ g² Δh⁻¹, exactly or by probes."""
        exact = event_size(here.x) <= max(2, self.probes)
        probes = basis(here.x) if exact else rademacher(here.x, self.probes, generator)
        count = probes.shape[1]
        directions = torch.stack([here.G @ v for v in probes.unbind(1)], dim=1).flatten(0, 1)
        flow = repeated(here.flow, count)
        bends = second_derivative(flow.latent, here.x.repeat_interleave(count, dim=0), directions)
        return bends.unflatten(0, (-1, count)).sum(1)

    def _pull_back(self, covector: Map, flow: Flow, x: Tensor, generator) -> Tensor:
        """(∂h/∂x)ᵀ covector(z) + ∇ₓ log|det ∂h/∂x|."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, log_det = flow(x, generator=generator)
            with torch.no_grad():
                s = covector(z)
            return torch.autograd.grad((s * z).sum() + log_det.sum(), x)[0]


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
        RuntimeError: see :class:`~indm.diffusion.NonlinearDiffusion`.
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
    model.flow.check_one_map("a path on the data space")
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
    model.flow.check_one_map("a path on the data space")
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(_backward_times(model.sde, times).to(x)):
            path.append(reverse_diffusion_step(model.score, path[-1], t.expand(len(x)), s.expand(len(x)), generator))
        return _decode(model, torch.stack(path))


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
    model.flow.check_one_map("a path on the data space")
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
