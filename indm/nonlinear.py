r"""The nonlinear diffusion of the data, :math:`dx = f_\varphi\,dt + G_\varphi\,dw`, that a flow and a linear SDE imply.

With z = h(x) and J = [∂h/∂x]⁻¹ = ∂h⁻¹/∂z, Itô's formula for x_t = h⁻¹(z_t), dz = f z dt + g dw, gives

.. math:: f_\varphi = J\,(f z) + \tfrac12 g^2 \Delta h^{-1}(z), \qquad G_\varphi = g\,J, \qquad
          \Delta h^{-1}(z) = -J\,E_v\big[D^2h(x)[Jv, Jv]\big],\ v \sim (0, I).

Everything is J times a velocity of the latent, so a step costs one product with J, and one more for each probe v. No
Jacobian is ever formed: h is linearised once at x, and J v is the solution of (∂h/∂x) y = v.

Itô's formula asks for h ∈ C². Residual and affine flows are smooth; rational-quadratic splines are C¹ with bounded
second derivatives, for which the formula still holds along a nondegenerate diffusion (Krylov), D²h being taken almost
everywhere.

Source: Kim et al. 2022, "Maximum Likelihood Training of Implicit Nonlinear Diffusion Models", §3,
https://arxiv.org/abs/2205.13699.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from indm.flows.base import Flow, require_one_map
from indm.ode import basis, rademacher
from indm.rng import randn_like
from indm.sampling import follow_flow, log_snr_grid, reverse_diffusion_step
from indm.sde.linear import LinearSDE
from indm.tensors import evaluation_mode, event_size, expand_like

Batch = Float[Tensor, "batch *event"]
Times = Float[Tensor, " batch"]
Grid = Float[Tensor, " times"]
Path = Float[Tensor, "times batch *event"]
Increments = Float[Tensor, "steps batch *event"]
Map = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4  # of ‖(∂h/∂x) y − v‖/‖v‖: what single precision reaches where h is badly conditioned
MEMORY = 256  # directions kept by the Krylov solver
CYCLES = 4  # of so many directions, before it gives up
STEPS = 100  # of a simulation, where no times are given


@dataclass(frozen=True)
class Operator:
    """A linear map of each sample by its products: ``A @ v`` and ``A.mT @ u``, all (B, *event)."""

    product: Map
    transposed: Map

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v.detach())

    @property
    def mT(self) -> "Operator":
        """The transpose."""
        return Operator(self.transposed, self.product)


def linearize(h: Map, x: Batch) -> tuple[Batch, Operator]:
    """h(x) and ∂h(x)/∂x, from one evaluation of h.

    u ↦ Aᵀu is linear, and its own reverse pass is v ↦ A v: both products go through one graph.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attentions cannot be differentiated twice
        x = x.detach().requires_grad_()
        z = h(x)
        u = torch.zeros_like(z, requires_grad=True)
        (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)
    return z.detach(), Operator(
        lambda v: torch.autograd.grad(pulled, u, v, retain_graph=True)[0],
        lambda v: torch.autograd.grad(z, x, v, retain_graph=True)[0],
    )


class _LayerNormFromParts(TorchFunctionMode):
    """torch's own has a wrong second derivative in forward mode, https://github.com/pytorch/pytorch/issues/196700."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_layer_norm if func is F.layer_norm else func)(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, normalized_shape, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt() * weight + bias


def second_derivative(h: Map, x: Batch, v: Batch) -> Batch:
    """D²h(x)[v, v], by forward mode over forward mode."""
    # Without gradients torch takes a fused slope of SiLU, which it cannot differentiate.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _LayerNormFromParts():
        return torch.func.jvp(lambda x: torch.func.jvp(h, (x,), (v,))[1], (x,), (v,))[1].detach()


def solve(A: Operator, b: Batch, tol: float, guess: Operator | None = None) -> Batch:
    """y with A y = b to ‖A y − b‖ ≤ ``tol`` ‖b‖ in every sample, by GMRES from y = ``guess`` @ b (or 0).

    Raises:
        RuntimeError: naming the samples that did not converge.
    """
    y = torch.zeros_like(b) if guess is None else guess @ b
    scale = b.flatten(1).norm(dim=1)
    for cycle in range(CYCLES + 1):
        r = b - A @ y
        residual = r.flatten(1).norm(dim=1)
        converged = residual <= tol * scale
        if bool(converged.all()):
            return y
        if cycle < CYCLES:
            y = y + _gmres_cycle(A, r, tol * scale)
    failed = (~converged).nonzero().flatten()
    shown = ", ".join(str(i) for i in failed[:10].tolist()) + (", …" if len(failed) > 10 else "")
    raise RuntimeError(
        f"J = [∂h/∂x]⁻¹ did not reach tol={tol:g} for {len(failed)} of {len(b)} samples (indices {shown}; largest "
        f"relative residual {(residual / scale).max().item():.2g}); allow a larger tol or compute in float64"
    )


def _gmres_cycle(A: Operator, r: Batch, goal: Times) -> Batch:
    """y that minimises ‖A y − r‖ over a growing Krylov space, each sample until that is at most its ``goal``.

    The images q of the directions p are kept orthonormal, so that a step is one projection. The next direction is the
    residual where that has just fallen, and the last image where it has not: it then is as good as new.

    Source: Jiránek & Rozložník 2010, "Adaptive version of Simpler GMRES", https://doi.org/10.1007/s11075-009-9311-3.
    """
    shape, r = r.shape, r.flatten(1)
    memory, tiny = min(r.shape[1], MEMORY), torch.finfo(r.dtype).tiny
    P, Q = (r.new_empty(len(r), memory, r.shape[1]) for _ in range(2))
    y, direction, norm = torch.zeros_like(r), r, r.norm(dim=1, keepdim=True)
    for k in range(memory):
        active = norm > goal[:, None]  # a sample that is not a number never will be one
        if not bool(active.any()):
            break
        p = direction / direction.norm(dim=1, keepdim=True).clamp_min(tiny)
        q = (A @ p.reshape(shape)).flatten(1)
        for _ in range(2):  # once more, against rounding
            along = torch.einsum("bkd,bd->bk", Q[:, :k], q)
            p, q = (v - torch.einsum("bk,bkd->bd", along, V[:, :k]) for v, V in ((p, P), (q, Q)))
        length = q.norm(dim=1, keepdim=True).clamp_min(tiny)
        P[:, k], Q[:, k] = p / length, q / length
        step = active * (Q[:, k] * r).sum(1, keepdim=True)
        y, r = y + step * P[:, k], r - step * Q[:, k]
        before, norm = norm, r.norm(dim=1, keepdim=True)
        direction = torch.where(norm <= 0.9 * before, r, Q[:, k])
    return y.reshape(shape)


def _inverse_linearization(flow: Flow, z: Tensor) -> Operator | None:
    """∂h⁻¹(z)/∂z where the inverse is a formula that can be differentiated."""
    if not flow.inverse_is_formula:
        return None
    return linearize(lambda z: flow.solve_inverse(z)[0], z)[1]


@dataclass(frozen=True)
class _Here:
    """What a step from x at t needs: z = h(x), the operator J, and f(t), g(t) shaped to multiply z."""

    x: Tensor
    t: Tensor
    z: Tensor
    J: Operator
    f: Tensor
    g: Tensor


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


def _evaluated(method):
    """The method in the model's evaluation mode, without gradients."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with evaluation_mode(self.model):
            return method(self, *args, **kwargs)

    return wrapped


class NonlinearDiffusion:
    r"""dx = f_φ(x, t) dt + G_φ(x, t) dw on the data space, and its reverse; in model units.

    .. math:: dx = \big[f_\varphi - \nabla\!\cdot(G_\varphi G_\varphi^\top)
              - G_\varphi G_\varphi^\top \nabla_x \log p_t\big]\,dt + G_\varphi\,d\bar w

    Args:
        model: an INDM; coefficients of its SDE may differ from entry to entry.
        tol: of every product with J, relative.
        probes: Rademacher probes v of the second derivative: exact (the basis) where d ≤ max(2, ``probes``), else drawn
            anew each time and unbiased; in a simulation that adds an error of strong order ½, like its own.

    Points x are (B, *event), times t (B,). All methods compute in evaluation mode and without gradients.

    Raises:
        ValueError: ``tol`` or ``probes`` that is not positive, or a flow that draws its map anew in every call.
        RuntimeError: from any method, naming the samples for which a product with J did not reach ``tol``.
    """

    def __init__(self, model, *, tol: float = TOLERANCE, probes: int = 1):
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}; {TOLERANCE:g} is usual")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        require_one_map(model.flow, "a diffusion on the data space")
        self.model, self.tol, self.probes = model, tol, probes

    @_evaluated
    def drift(self, x: Batch, t: Times, *, generator: torch.Generator | None = None) -> Batch:
        """f_φ(x, t) = f J h(x) + ½ g² Δh⁻¹(h(x)), (B, *event)."""
        here = self._at(x, t)
        return here.J @ self._forward(here, generator)

    @_evaluated
    def diffusion(self, x: Batch, t: Times) -> Operator:
        """G_φ(x, t) = J diag(g), an operator with products ``G @ v`` and ``G.mT @ u``."""
        return _volatility(self._at(x, t))

    @_evaluated
    def dense_diffusion(self, x: Batch, t: Times) -> Float[Tensor, "batch d d"]:
        """G_φ(x, t) as matrices (B, d, d), column by column; for small d."""
        G = _volatility(self._at(x, t))
        return torch.stack([(G @ v).flatten(1) for v in basis(x).unbind(1)], dim=2)

    @_evaluated
    def divergence(self, x: Batch, t: Times, *, generator: torch.Generator | None = None) -> Batch:
        """div(G_φ G_φᵀ)_k = Σ_j ∂_j (G_φ G_φᵀ)_kj, as g² (Δh⁻¹ − J Jᵀ ∇ₓ log|det ∂h/∂x|), (B, *event)."""
        here = self._at(x, t)
        gradient = self._pull_back(torch.zeros_like, x, generator)
        return -(here.J @ (self._bend(here, generator) + here.g**2 * (here.J.mT @ gradient)))

    @_evaluated
    def score(self, x: Batch, t: Times, *, generator: torch.Generator | None = None) -> Batch:
        """∇ₓ log p_t(x) = (∂h/∂x)ᵀ s_θ(h(x), t) + ∇ₓ log|det ∂h/∂x|, (B, *event).

        ``generator`` feeds a stochastic log-determinant (residual flows above 64 dimensions), which stays unbiased.
        """
        return self._pull_back(lambda z: self.model.score(z, t), x, generator)

    @_evaluated
    def generative_drift(self, x: Batch, t: Times, *, generator: torch.Generator | None = None) -> Batch:
        """f_φ − div(G_φ G_φᵀ) − G_φ G_φᵀ ∇ₓ log p_t in its simple form J(f z − g² s_θ) − ½ g² Δh⁻¹(z), (B, *event)."""
        here = self._at(x, t)
        return here.J @ self._generative(here, generator)

    @_evaluated
    def probability_flow(self, x: Batch, t: Times) -> Batch:
        """dx/dt = J(f z − ½ g² s_θ) of the deterministic path with the same marginals, (B, *event)."""
        here = self._at(x, t)
        return here.J @ self._deterministic(here)

    @_evaluated
    def perturb(self, x: Batch, t: Times, noise: Batch) -> Batch:
        """x_t = h⁻¹(α_t h(x) + σ_t noise) for data x: the kernel's draw, where simulations start (at t = ε)."""
        return self.model.decode(self.model.sde.perturb(self.model.flow.latent(x), t, noise))

    @_evaluated
    def forward_sde(
        self,
        x: Batch,
        times: Grid | None = None,
        *,
        increments: Increments | None = None,
        generator: torch.Generator | None = None,
    ) -> Path:
        """Euler–Maruyama for the forward SDE on the data space, from x at times[0]; strong order ½.

        Args:
            x: (B, *event), such as :meth:`perturb` gives at ε.
            times: increasing; default: 100 steps from ε to T, equal in log-SNR.
            increments: of the Brownian motion, (times − 1, B, *event); default: drawn.
            generator: of the increments and the probes.

        Returns:
            x_t at all ``times``, (times, B, *event).
        """
        times = _forward_times(self.model.sde, times)
        return self._euler_maruyama(self._forward, x, times, increments, generator)

    @_evaluated
    def generative_sde(
        self,
        x: Batch,
        times: Grid | None = None,
        *,
        increments: Increments | None = None,
        generator: torch.Generator | None = None,
    ) -> Path:
        """Euler–Maruyama for the generative SDE on the data space, from x at times[0] (such as h⁻¹ of a prior draw).

        ``times`` decrease (default: from T to ε); else as :meth:`forward_sde`.
        """
        times = _backward_times(self.model.sde, times)
        return self._euler_maruyama(self._generative, x, times, increments, generator)

    @_evaluated
    def probability_flow_ode(self, x: Batch, times: Grid | None = None) -> Path:
        """Heun's rule for the probability flow on the data space, from x at times[0]; order 2.

        ``times`` go either way; default: from T to ε, 100 steps equal in log-SNR.
        """
        times = _check_times(self.model.sde, _backward_times(self.model.sde, None) if times is None else times)
        path = [x]
        for t, s in itertools.pairwise(times.to(x)):
            slope = self.probability_flow(x, t.expand(len(x)))
            x = x + 0.5 * (s - t) * (slope + self.probability_flow(x + (s - t) * slope, s.expand(len(x))))
            path.append(x)
        return torch.stack(path)

    @_evaluated
    def paths(self, x: Batch, times: Grid | None = None, *, generator: torch.Generator | None = None) -> Paths:
        """One Brownian path from data x, as z_t, as h⁻¹(z_t), and as the simulation on the data space.

        ``times`` as in :meth:`forward_sde`. The two on the data space differ by the error of that simulation.
        """
        times = _forward_times(self.model.sde, times)
        latent, increments = _latent_from_data(self.model, x, times, generator)
        decoded = _decode(self.model, latent)
        simulated = self.forward_sde(decoded[0], times, increments=increments, generator=generator)
        return Paths(times, latent, decoded, simulated)

    def _at(self, x: Tensor, t: Tensor) -> _Here:
        flow, sde = self.model.flow, self.model.sde
        z, A = linearize(flow.latent, x)
        guess = _inverse_linearization(flow, z)
        J = Operator(
            lambda v: solve(A, v, self.tol, guess),
            lambda u: solve(A.mT, u, self.tol, None if guess is None else guess.mT),
        )
        return _Here(x, t, z, J, expand_like(sde.drift(t), z), expand_like(sde.diffusion(t), z))

    def _forward(self, here: _Here, generator) -> Tensor:
        """J⁻¹ f_φ."""
        return here.f * here.z - 0.5 * self._bend(here, generator)

    def _generative(self, here: _Here, generator) -> Tensor:
        """J⁻¹ of the generative drift."""
        reverse = here.f * here.z - here.g**2 * self.model.score(here.z, here.t)
        return reverse + 0.5 * self._bend(here, generator)

    def _deterministic(self, here: _Here) -> Tensor:
        """J⁻¹ of the probability flow."""
        return here.f * here.z - 0.5 * here.g**2 * self.model.score(here.z, here.t)

    def _bend(self, here: _Here, generator) -> Tensor:
        """Σ_i D²h[G e_i, G e_i] = −J⁻¹ g² Δh⁻¹, exactly or by probes."""
        exact = event_size(here.x) <= max(2, self.probes)
        probes = basis(here.x) if exact else rademacher(here.x, self.probes, generator)
        G, count = _volatility(here), probes.shape[1]
        directions = torch.stack([G @ v for v in probes.unbind(1)], dim=1).flatten(0, 1)
        bends = second_derivative(self.model.flow.latent, here.x.repeat_interleave(count, dim=0), directions)
        return bends.unflatten(0, (-1, count)).sum(1)

    def _pull_back(self, covector: Map, x: Tensor, generator) -> Tensor:
        """(∂h/∂x)ᵀ covector(z) + ∇ₓ log|det ∂h/∂x|."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, log_det = self.model.flow(x, generator=generator)
            with torch.no_grad():
                s = covector(z)
            return torch.autograd.grad((s * z).sum() + log_det.sum(), x)[0]

    def _euler_maruyama(self, velocity, x: Tensor, times: Tensor, increments: Tensor | None, generator) -> Tensor:
        """x ← x + J (velocity (s − t) + g (w_s − w_t)) from each time t to the next s, either way."""
        increments = brownian_increments(times, x, generator=generator) if increments is None else increments
        if increments.shape != (len(times) - 1, *x.shape):
            raise ValueError(
                f"increments must have shape {(len(times) - 1, *x.shape)}, one for each step and entry of x, got "
                f"{tuple(increments.shape)}; brownian_increments(times, x) would do"
            )
        path = [x]
        for (t, s), dw in zip(itertools.pairwise(times.to(x)), increments, strict=True):
            here = self._at(x, t.expand(len(x)))
            x = x + here.J @ ((s - t) * velocity(here, generator) + here.g * dw)
            path.append(x)
        return torch.stack(path)


def _volatility(here: _Here) -> Operator:
    """G = J diag(g)."""
    return Operator(lambda v: here.J @ (here.g * v), lambda u: here.g * (here.J.mT @ u))


def brownian_increments(times: Grid, x: Batch, *, generator: torch.Generator | None = None) -> Increments:
    """w at each of ``times`` less w at the one before, (times − 1, B, *event) for x (B, *event), times either way."""
    root = times.diff().abs().sqrt().to(x)
    return torch.stack([r * randn_like(x, generator) for r in root])


def latent_path(sde: LinearSDE, z: Batch, times: Grid, increments: Increments) -> Path:
    r"""z_t of dz = f z dt + g dw from z at times[0], by its exact transitions, with noise from Brownian increments.

    .. math:: z_s = a z_t + \sqrt{\sigma_s^2 - a^2\sigma_t^2}\,\frac{w_s - w_t}{\sqrt{s-t}}, \qquad
              a = \alpha_s/\alpha_t

    Exact in law for any increasing ``times``; as a function of the path w it has strong order 1.
    """
    times, path = times.to(z.device, torch.float64), [z]
    for t, s, dw in zip(times[:-1, None], times[1:, None], increments, strict=True):
        ratio, std = (expand_like(v, z).to(z) for v in sde.transition(t, s))
        z = ratio * z + std * dw / (s - t).sqrt().to(z)
        path.append(z)
    return torch.stack(path)


def forward_path(model, x: Batch, times: Grid, *, generator: torch.Generator | None = None) -> Path:
    """x_t = h⁻¹(z_t) along one Brownian path from data x, at increasing ``times``, (times, B, *event).

    Exact in law and cheap, for any number of frames: the latent makes exact transitions and each frame is decoded.

    Raises:
        ValueError: ``times`` that do not increase within [ε, T], or a flow that draws its map anew in every call.
        RuntimeError: where the flow's inverse did not converge.
    """
    require_one_map(model.flow, "a path on the data space")
    with evaluation_mode(model):
        times = _forward_times(model.sde, times)
        return _decode(model, _latent_from_data(model, x, times, generator)[0])


def generative_path(model, x: Batch, times: Grid, *, generator: torch.Generator | None = None) -> Path:
    """x_t = h⁻¹(z_t) along the generative SDE from x at times[0], at decreasing ``times``, (times, B, *event).

    One step of reverse diffusion between successive times: for its accuracy take many. Raises as :func:`forward_path`.
    """
    require_one_map(model.flow, "a path on the data space")
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(_backward_times(model.sde, times).to(x)):
            path.append(reverse_diffusion_step(model.score, path[-1], t.expand(len(x)), s.expand(len(x)), generator))
        return _decode(model, torch.stack(path))


def probability_flow_path(model, x: Batch, times: Grid, *, tol: float = 1e-5) -> Path:
    """x_t = h⁻¹(z_t) along the probability flow from x at times[0], ``times`` either way, (times, B, *event).

    The latent's ODE is solved to ``tol`` between successive times. Raises as :func:`forward_path`.
    """
    require_one_map(model.flow, "a path on the data space")
    with evaluation_mode(model):
        times = _check_times(model.sde, times)
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(times.tolist()):
            path.append(follow_flow(model.score, path[-1], t, s, tol=tol)[0])
        return _decode(model, torch.stack(path))


def _latent_from_data(model, x: Tensor, times: Tensor, generator) -> tuple[Tensor, Tensor]:
    """z_t from the kernel's draw at times[0] on, for data x, and the Brownian increments behind it."""
    start = times[:1].to(x).expand(len(x))
    z = model.sde.perturb(model.flow.latent(x), start, randn_like(x, generator))
    increments = brownian_increments(times, x, generator=generator)
    return latent_path(model.sde, z, times, increments), increments


def _decode(model, latent: Tensor) -> Tensor:
    """h⁻¹ of each frame."""
    return torch.stack([model.decode(z) for z in latent])


def _forward_times(sde: LinearSDE, times: Tensor | None) -> Tensor:
    return _check_times(sde, log_snr_grid(sde, STEPS).flip(0) if times is None else times, "increase")


def _backward_times(sde: LinearSDE, times: Tensor | None) -> Tensor:
    return _check_times(sde, log_snr_grid(sde, STEPS) if times is None else times, "decrease")


def _check_times(sde: LinearSDE, times: Tensor, way: str = "increase or decrease") -> Tensor:
    """``times`` in float64, strictly monotone in [ε, T] (but for the rounding of single precision)."""
    times = times.double()
    allowed = {"increase": [{1.0}], "decrease": [{-1.0}]}.get(way, [{1.0}, {-1.0}])
    inside = (times >= sde.eps * (1 - 1e-6)) & (times <= sde.T * (1 + 1e-6))
    if set(times.diff().sign().tolist()) not in allowed or not bool(inside.all()):
        raise ValueError(
            f"times must be at least 2 and {way} strictly within [{sde.eps:g}, {sde.T:g}], got {times.tolist()[:10]}; "
            "indm.sampling.log_snr_grid gives such times (they decrease: flip them to go forward)"
        )
    return times.clamp(sde.eps, sde.T)
