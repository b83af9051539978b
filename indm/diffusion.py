r"""The nonlinear diffusion of the data, :math:`dx = f_\varphi\,dt + G_\varphi\,dw`, that a flow and
a linear SDE imply.

With z = h(x) and J = [∂h/∂x]⁻¹ = ∂h⁻¹/∂z, Itô's formula for x_t = h⁻¹(z_t), dz = f z dt + g dw,
gives

.. math:: f_\varphi = J\,(f z) + \tfrac12 g^2 \Delta h^{-1}(z), \qquad G_\varphi = g\,J, \qquad
          \Delta h^{-1}(z) = -J\,E_v\big[D^2h(x)[Jv, Jv]\big],\ v \sim (0, I).

Everything is J times a velocity of the latent. No Jacobian is ever formed: h is linearised once at
x, and J v is the solution of (∂h/∂x) y = v.

Itô's formula asks for h ∈ C². Rational-quadratic splines are C¹ with bounded second derivatives,
for which it still holds along a nondegenerate diffusion (Krylov), D²h being taken almost
everywhere.

Paths are drawn in the latent space, and every frame is decoded: exact in law and cheap.

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

from indm.checks import require
from indm.conditions import given, rows_of
from indm.flows.base import Flow
from indm.linearization import Operator, inverse_linearization, linearize, second_derivative, solve
from indm.ode import basis, rademacher
from indm.protocols import Model
from indm.sampling import FLOW_TOLERANCE, follow_flow, reverse_diffusion_step
from indm.sde.linear import LinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    double,
    evaluation_mode,
    event_size,
    expand_like,
    float64_device,
    randn_like,
)

Grid = Float[Tensor, " times"]
Path = Float[Tensor, "times batch *event"]

# largest ‖(∂h/∂x) y − v‖/‖v‖: within reach of single precision where h is badly conditioned
DRIFT_TOLERANCE = 1e-4
Method = TypeVar("Method", bound=Callable[..., Any])


def _evaluated(method: Method) -> Method:
    """The method in the model's evaluation mode, without gradients."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with evaluation_mode(self.model):
            return method(self, *args, **kwargs)

    return cast(Method, wrapped)


@dataclass(frozen=True)
class Point:
    """z = h(x) and J = ∂h⁻¹/∂z of points x, with f(t) and g(t) shaped to multiply z."""

    x: Tensor
    z: Tensor
    J: Operator
    f: Tensor
    g: Tensor

    @property
    def G(self) -> Operator:
        """J diag(g)."""
        return Operator(lambda v: self.J @ (self.g * v), lambda u: self.g * (self.J.mT @ u))


class NonlinearDiffusion:
    r"""dx = f_φ(x, t) dt + G_φ(x, t) dw on the data space, and its reverse; in model units.

    .. math:: dx = \big[f_\varphi - \nabla\!\cdot(G_\varphi G_\varphi^\top)
              - G_\varphi G_\varphi^\top \nabla_x \log p_t\big]\,dt + G_\varphi\,d\bar w

    Args:
        model: an INDM.
        tol: of every product with J, relative.
        probes: Rademacher probes v of the second derivative: exact (the basis) where d ≤ max(2,
            ``probes``), else drawn anew each time and unbiased.

    Points x are (B, *event), times t (B,). All methods compute in evaluation mode and without
    gradients.

    Raises:
        ValueError: ``tol`` or ``probes`` that is not positive, a flow without the log-determinant
            of one map, or a model of p(x|c) without c.
        RuntimeError: from any method, naming the samples for which a product with J did not reach
            ``tol``.

    Example: with the identity for h it is the linear diffusion.

        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
        >>> x, t = torch.randn(3, 2), torch.full((3,), 0.5)
        >>> diffusion = NonlinearDiffusion(model)
        >>> torch.allclose(diffusion.drift(x, t), model.sde.drift(t)[:, None] * x, atol=1e-5)
        True
        >>> torch.allclose(diffusion.diffusion(x, t) @ x, model.sde.diffusion(t)[:, None] * x, atol=1e-5)
        True
    """

    def __init__(self, model: Model, *, tol: float = DRIFT_TOLERANCE, probes: int = 1):
        require(tol > 0, "tol", tol, "positive", f"{DRIFT_TOLERANCE:g} is usual")
        require(probes >= 1, "probes", probes, "at least 1")
        at_c = model.condition.is_none
        require(
            at_c,
            "model",
            "one of p(x|c)",
            "at given conditions for a diffusion on the data space",
            "give model.given(c)",
        )
        model.flow.check_density("a diffusion on the data space")
        self.model, self.tol, self.probes = model, tol, probes

    @_evaluated
    def drift(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """f_φ(x, t) = f J h(x) + ½ g² Δh⁻¹(h(x)), (B, *event)."""
        here = self._at(x, t)
        return here.J @ (here.f * here.z - 0.5 * self._bend(here, generator))

    @_evaluated
    def diffusion(self, x: Batch, t: PerSample) -> Operator:
        """G_φ(x, t) = J diag(g), an operator with products ``G @ v`` and ``G.mT @ u``."""
        return self._at(x, t).G

    @_evaluated
    def dense_diffusion(self, x: Batch, t: PerSample) -> Float[Tensor, "batch d d"]:
        """G_φ(x, t) as matrices (B, d, d), column by column; for small d."""
        G = self._at(x, t).G
        return torch.stack([(G @ v).flatten(1) for v in basis(x).unbind(1)], dim=2)

    @_evaluated
    def divergence(
        self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None
    ) -> Batch:
        """div(G_φ G_φᵀ)_k = Σ_j ∂_j (G_φ G_φᵀ)_kj, as g² (Δh⁻¹ − J Jᵀ ∇ₓ log|det ∂h/∂x|), (B,
        *event).
        """
        here = self._at(x, t)
        gradient = self._pull_back(torch.zeros_like, x, generator)
        return -(here.J @ (self._bend(here, generator) + here.g**2 * (here.J.mT @ gradient)))

    @_evaluated
    def score(self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None) -> Batch:
        """∇ₓ log p_t(x) = (∂h/∂x)ᵀ s_θ(h(x), t) + ∇ₓ log|det ∂h/∂x|, (B, *event).

        ``generator`` feeds a stochastic log-determinant (residual flows above 64 dimensions), which
        stays unbiased.
        """
        return self._pull_back(lambda z: self.model.score(z, t), x, generator)

    @_evaluated
    def generative_drift(
        self, x: Batch, t: PerSample, *, generator: torch.Generator | None = None
    ) -> Batch:
        """f_φ − div(G_φ G_φᵀ) − G_φ G_φᵀ ∇ₓ log p_t in its simple form J(f z − g² s_θ) − ½ g²
        Δh⁻¹(z), (B, *event).
        """
        here = self._at(x, t)
        return here.J @ (
            here.f * here.z
            - here.g**2 * self.model.score(here.z, t)
            + 0.5 * self._bend(here, generator)
        )

    @_evaluated
    def probability_flow(self, x: Batch, t: PerSample) -> Batch:
        """dx/dt = J(f z − ½ g² s_θ) of the deterministic path with the same marginals, (B, *event)."""
        here = self._at(x, t)
        return here.J @ (here.f * here.z - 0.5 * here.g**2 * self.model.score(here.z, t))

    @_evaluated
    def perturb(self, x: Batch, t: PerSample, noise: Batch) -> Batch:
        """x_t = h⁻¹(α_t h(x) + σ_t noise) for data x: the kernel's draw, where paths start (at t =
        ε).
        """
        return self.model.decode(self.model.sde.perturb(self.model.flow.latent(x), t, noise))

    def _at(self, x: Tensor, t: Tensor) -> Point:
        """h linearised at x, from which all coefficients at (x, t) are made."""
        flow, sde = self.model.flow, self.model.sde
        z, A = linearize(flow.latent, x)
        guess = inverse_linearization(flow, z)
        J = Operator(
            lambda v: solve(A, v, self.tol, guess),
            lambda u: solve(A.mT, u, self.tol, None if guess is None else guess.mT),
        )
        return Point(x, z, J, *(expand_like(v, z) for v in (sde.drift(t), sde.diffusion(t))))

    def _bend(self, here: Point, generator: torch.Generator | None) -> Tensor:
        """Σ_i D²h[G e_i, G e_i] = −J⁻¹ g² Δh⁻¹, exactly or by probes."""
        exact = event_size(here.x) <= max(2, self.probes)
        probes = basis(here.x) if exact else rademacher(here.x, self.probes, generator)
        count = probes.shape[1]
        directions = torch.stack([here.G @ v for v in probes.unbind(1)], dim=1).flatten(0, 1)
        flow, c = cast(Flow, self.model.flow), rows_of(self.model.flow)
        flow = flow if c is None else given(flow, c.repeat_interleave(count, dim=0))
        bends = second_derivative(flow.latent, here.x.repeat_interleave(count, dim=0), directions)
        return bends.unflatten(0, (-1, count)).sum(1)

    def _pull_back(
        self, covector: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """(∂h/∂x)ᵀ covector(z) + ∇ₓ log|det ∂h/∂x|."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, log_det = self.model.flow(x, generator=generator)
            with torch.no_grad():
                s = covector(z)
            return torch.autograd.grad((s * z).sum() + log_det.sum(), x)[0]


# ── Paths ─────────────────────────────────────────────────────────────────────────────────────────


def forward_path(
    model: Model, x: Batch, times: Grid, *, generator: torch.Generator | None = None
) -> Path:
    """x_t = h⁻¹(z_t) along one Brownian path from data x, at increasing ``times``, (times, B,
    *event).

    Exact in law, for any number of frames: the latent makes exact transitions and each frame is
    decoded.

    Raises:
        ValueError: ``times`` that do not increase within [ε, T], or a flow without the
            log-determinant of one map.
        RuntimeError: where the flow's inverse did not converge.

    Example: from one point, through the identity, to the prior N(0, I) of VP.

        >>> import indm
        >>> model, x = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,)), torch.ones(2000, 2)
        >>> path = forward_path(model, x, torch.tensor([1e-5, 0.1, 1.0]))
        >>> path.shape, torch.allclose(path[0], x, atol=0.1), abs(path[-1].std().item() - 1) < 0.1
        (torch.Size([3, 2000, 2]), True, True)
    """
    sde, times = model.sde, _checked(model, times, {1.0}, "increase").to(float64_device(x.device))
    with evaluation_mode(model):
        path = [
            sde.perturb(
                model.flow.latent(x), times[:1].to(x).expand(len(x)), randn_like(x, generator)
            )
        ]
        for t, s in itertools.pairwise(times.split(1)):
            ratio, std = (expand_like(v, x).to(x) for v in sde.transition(t, s))
            path.append(ratio * path[-1] + std * randn_like(x, generator))
        return _decoded(model, path)


def generative_path(
    model: Model, x: Batch, times: Grid, *, generator: torch.Generator | None = None
) -> Path:
    """x_t = h⁻¹(z_t) along the generative SDE from x at times[0], at decreasing ``times``, (times,
    B, *event).

    One step of reverse diffusion between successive times: for its accuracy take many. Raises as
    :func:`forward_path`.

    Example: N(0, I) and its exact score, whose law stays what it is.

        >>> import indm
        >>> from indm.sampling import log_snr_grid
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
        >>> path = generative_path(model, torch.randn(2000, 2), log_snr_grid(model.sde, 100))
        >>> path.shape, abs(path[-1].std().item() - 1) < 0.1
        (torch.Size([101, 2000, 2]), True)
    """
    times = _checked(model, times, {-1.0}, "decrease").to(x)
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(times):
            path.append(
                reverse_diffusion_step(
                    model.score, path[-1], t.expand(len(x)), s.expand(len(x)), generator
                )
            )
        return _decoded(model, path)


def probability_flow_path(
    model: Model, x: Batch, times: Grid, *, tol: float = FLOW_TOLERANCE
) -> Path:
    """x_t = h⁻¹(z_t) along the probability flow from x at times[0], ``times`` in either direction,
    (times, B, *event).

    The latent's ODE is solved to ``tol`` between successive times. Raises as :func:`forward_path`.

    Example: N(0, I) and its exact score, for which nothing moves.

        >>> import indm
        >>> model, x = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,)), torch.randn(5, 2)
        >>> path = probability_flow_path(model, x, torch.tensor([1e-5, 0.1, 1.0]))
        >>> path.shape, torch.allclose(path, x.expand_as(path), atol=1e-3)
        (torch.Size([3, 5, 2]), True)
    """
    times = _checked(model, times, {1.0, -1.0}, "increase or decrease")
    with evaluation_mode(model):
        path = [model.flow.latent(x)]
        for t, s in itertools.pairwise(times.tolist()):
            path.append(follow_flow(model.score, path[-1], t, s, tol=tol)[0])
        return _decoded(model, path)


def _decoded(model: Model, latents: list[Tensor]) -> Tensor:
    return torch.stack([model.decode(z) for z in latents])


def _checked(model: Model, times: Tensor, signs: set[float], way: str) -> Tensor:
    """``times`` in float64, strictly monotone in [ε, T] but for the rounding of single precision."""
    model.flow.check_density("a path on the data space")
    sde: LinearSDE = model.sde
    times = double(times)
    inside = (times >= sde.eps * (1 - 1e-6)) & (times <= sde.T * (1 + 1e-6))
    directions = set(times.diff().sign().tolist())
    if len(directions) != 1 or not directions <= signs or not bool(inside.all()):
        raise ValueError(
            f"times must be at least 2 and {way} strictly within [{sde.eps:g}, {sde.T:g}], got {times.tolist()[:10]}; "
            "indm.sampling.log_snr_grid gives such times, which decrease"
        )
    return times.clamp(sde.eps, sde.T)
