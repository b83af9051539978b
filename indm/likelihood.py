"""Likelihoods with error bars: the NLL of the probability-flow ODE and the NELBO, in nats and in bits per dimension.

The NELBO bounds the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from indm.gaussian import GaussianReference
from indm.objective import reconstruction_term
from indm.ode import adams, basis, integrate, rademacher, value_and_divergence
from indm.rng import randn_like
from indm.score import probability_flow
from indm.tensors import evaluation_mode, event_size, event_sum, expand_like


@dataclass(frozen=True)
class LikelihoodReport:
    """Log-likelihoods of a batch, in nats of model units.

    Attributes:
        log_prob: (B,), with the reconstruction term: an estimate of a lower bound of log p(x).
        reconstruction: (B,), that term; ``log_prob + reconstruction`` is the number without it, no likelihood of x.
        nfe: evaluations of the ODE's field, the mean over samples (each has its own steps) rounded up.
        settings: ε, tolerances, divergence.
        log_scale: Σ log of the data scaling over one event, nats.
        dims: dimensions of one event.
    """

    log_prob: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    nfe: int
    settings: dict = dataclasses.field(default_factory=dict)
    log_scale: float = 0.0
    dims: int = 1

    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return self.log_scale - self.log_prob

    def bits_per_dim(self) -> float:
        """Mean over the batch of −log₂ p of the raw data, per dimension."""
        return self.nats().mean().item() / (self.dims * math.log(2))

    def standard_error(self) -> float:
        """Standard error over the batch of :meth:`bits_per_dim`."""
        if len(self.log_prob) < 2:
            raise ValueError("standard_error needs at least 2 samples, got 1")
        return (self.nats().std() / math.sqrt(len(self.log_prob))).item() / (self.dims * math.log(2))


def log_likelihood(
    model,
    x: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    steps: int | None = None,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> LikelihoodReport:
    r"""log p(x) by the probability-flow ODE on the latent, from one draw of z_ε for each sample.

    .. math:: \log|\det \partial h/\partial x| + \log\pi(z_T) + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt
              - \log q(z_\epsilon|z_0) + \log p(z_0|z_\epsilon)

    Args:
        model: an INDM.
        x: data in model units.
        probes: Rademacher probes for the divergence, fixed along the path.
        exact: exact divergence (d products in place of ``probes``); default: where that is cheaper, d ≤ ``probes``,
            and in two dimensions.
        rtol, atol: tolerances of the adaptive solver.
        steps: solve in so many equal steps instead, without control of the error: a third of the time at 24.
        eps: truncation, at least the SDE's own, which is the default.
        reference: a Gaussian law of the latents, whose probability flow is then solved exactly; default N(0, I).

    The ODE is integrated over the clock −log SNR in the coordinate of :func:`indm.score.probability_flow`, and its
    divergence per dimension, so that ``atol`` is in nats per dimension; every sample has its own steps.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, or None for the adaptive solver, got {steps}; 24 is usual")
    _check_tolerances(rtol, atol)
    score = model.score
    with evaluation_mode(model), score.sde.truncated(eps) as sde:
        exact = event_size(x) <= max(2, probes) if exact is None else exact
        # Drawn before the flow's own probes, so that models compared at one seed share them.
        noise = randn_like(x, generator)
        probe = x.new_zeros(len(x)) if exact else rademacher(x, probes, generator)
        z, log_det = model.encode(x, generator=generator)
        d, (eps, T) = event_size(z), sde.endpoints(z)
        reconstruction = reconstruction_term(score, z, noise)

        def field(clock: Tensor, state: tuple[Tensor, ...], probe: Tensor) -> tuple[Tensor, ...]:
            probe = basis(state[0]) if exact else probe
            velocity, divergence = value_and_divergence(probability_flow(score, clock), state[0], probe)
            return velocity, divergence / d

        spreads, span = [sde.marginal_std(t) for t in (eps, T)], sde.clock_span()
        state = (sde.perturb(z, eps, noise) / expand_like(spreads[0], z), torch.zeros_like(log_det))
        if steps is None:
            (w, integral), evaluations = integrate(field, state, *span, context=(probe,), rtol=rtol, atol=atol)
            nfe = math.ceil(evaluations.double().mean().item())
            settings: dict[str, Any] = {"rtol": rtol, "atol": atol}
        else:
            law = GaussianReference.standard(z) if reference is None else reference
            (w, integral), nfe = _whitened_adams(field, state, probe, law, span, steps)
            settings = {"steps": steps}
        growth = d * integral + event_sum((spreads[1] / spreads[0]).log(), z)
        log_prob = log_det + sde.prior_log_prob(expand_like(spreads[1], z) * w) + growth - reconstruction
        settings |= {
            "eps": sde.eps,
            "divergence": "exact" if exact else f"Hutchinson, {probes} Rademacher probe(s)",
        }
    return LikelihoodReport(log_prob, reconstruction, nfe, settings, model.scaling.log_scale(x.shape[1:]), d)


def _check_tolerances(rtol: float, atol: float) -> None:
    for name, tolerance in {"rtol": rtol, "atol": atol}.items():
        if not 0 < tolerance < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {tolerance}; 1e-4 is usual")


def _whitened_adams(field, state, probe: Tensor, law: GaussianReference, span: tuple[float, float], steps: int):
    """:func:`indm.ode.adams` for the state (w, integral), in the coordinate in which ``law`` rests."""
    w, integral = state

    def whitened(clock: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        here = law.colour(state[0], clock).reshape(w.shape)
        velocity, divergence = field(clock, (here,), probe)
        return law.whitened_velocity(state[0], here, velocity, clock), divergence

    begin, end = (torch.full_like(integral, clock) for clock in span)
    (v, integral), nfe = adams(whitened, (law.whiten(w, begin), integral), *span, steps=steps)
    return (law.colour(v, end).reshape(w.shape), integral), nfe


def latent_reference(
    model, raw: Tensor, *, batch_size: int = 256, seed: int = 0, most: int = 10_000
) -> GaussianReference:
    """The Gaussian law of (up to ``most`` of) these samples' latents: the control variate of their NELBO."""
    device, latents = model.scaling.scale.device, []
    generator = torch.Generator(device).manual_seed(seed)
    with evaluation_mode(model):
        for batch in raw[:most].split(batch_size):
            x = model.scaling.to_model(batch.to(device), generator=generator)
            latents.append(model.flow.latent(x, generator=generator))
    return GaussianReference.fit(torch.cat(latents))
