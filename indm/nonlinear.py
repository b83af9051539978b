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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from indm.conditions import repeated
from indm.flows.base import Flow, require_one_map
from indm.linearization import Map, Operator, inverse_linearization, linearize, second_derivative, solve
from indm.ode import basis, rademacher
from indm.tensors import Batch, PerSample, evaluation_mode, event_size, expand_like, full_precision

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
    are functions of :mod:`indm.paths`.

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
        require_one_map(model.flow, "a diffusion on the data space")
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
