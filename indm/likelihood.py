"""Likelihoods with error bars: the NLL of the probability-flow ODE and the NELBO, in nats and in bits per dimension.

The NELBO bounds the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.gaussian import GaussianReference
from indm.objective import reconstruction_term
from indm.ode import adams, basis, integrate, rademacher, value_and_divergence
from indm.rng import randn_like
from indm.score import probability_flow
from indm.tensors import evaluation_mode, event_size, event_sum, expand_like

SMALL = 16  # dimensions of a vector up to which the divergence is exact by default


@dataclass(frozen=True)
class LikelihoodReport:
    """Log-likelihoods of a batch, in nats of model units.

    Attributes:
        log_prob: (B,), with the reconstruction term: an estimate of a lower bound of log p(x).
        reconstruction: (B,), that term; ``log_prob + reconstruction`` is the number without it, no likelihood of x.
        nfe: evaluations of the ODE's field, the mean over samples (each has its own steps) rounded up.
        settings: ε, tolerances, divergence.
        log_volume: what :meth:`indm.Scaling.log_volume` says of one event, nats.
        dims: dimensions of one event.
        levels: grey levels of the data; None of continuous data, whose table has no bits/dim.
    """

    log_prob: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    nfe: int
    settings: dict
    log_volume: float
    dims: int
    levels: int | None = None

    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return -(self.log_prob + self.log_volume)

    def bits_per_dim(self) -> float:
        """Mean over the batch of −log₂ p of the raw data, per dimension."""
        return self.nats().mean().item() / (self.dims * math.log(2))

    def standard_error(self) -> float:
        """Standard error over the batch of :meth:`bits_per_dim`."""
        if len(self.log_prob) < 2:
            raise ValueError("standard_error needs at least 2 samples, got 1")
        return (self.nats().std() / math.sqrt(len(self.log_prob))).item() / (self.dims * math.log(2))

    def __str__(self) -> str:
        """The mean of −log p over the batch with its standard error, as a small table."""
        n = len(self.log_prob)
        units = {"nats": 1.0} | ({"bits/dim": self.dims * math.log(2)} if self.levels else {})
        lines = [" " * 24 + "".join(f"{unit:>12}{'±':>10}" for unit in units)]
        rows = {"-log p": self.nats(), "without reconstruction": self.nats() - self.reconstruction}
        for name, nats in rows.items():
            mean, error = nats.mean().item(), nats.std().item() / math.sqrt(n) if n > 1 else math.nan
            lines.append(f"{name:24}" + "".join(f"{mean / u:12.4f}{error / u:10.4f}" for u in units.values()))
        return "\n".join([*lines, f"{n} samples of {self.dims} dimensions, {self.nfe} evaluations of the ODE's field"])


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

    The ODE is integrated over the clock −log SNR in the coordinate of :func:`indm.score.probability_flow`, and its
    divergence per dimension, so that ``atol`` is in nats per dimension; every sample has its own steps.

    Args:
        model: an INDM.
        x: data in model units.
        probes: Rademacher probes for the divergence, the same all along the path.
        exact: compute the exact divergence, by d products in place of ``probes``; default: where that is cheaper
            (d ≤ ``probes``), in two dimensions, and for vectors of up to 16, of which a probe leaves nats of noise.
        rtol, atol: tolerances of the adaptive solver.
        steps: equal steps instead, without error control; 24 take a third of the time.
        eps: truncation, at least the SDE's own, which is the default.
        reference: a Gaussian law of the latents, for ``steps``: its probability flow is solved exactly, and only the
            difference from it in steps; default N(0, I).

    Raises:
        ValueError: an option out of range.
        RuntimeError: where the adaptive solver did not reach T.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> report = log_likelihood(indm.build_model(tables, (2,)), torch.zeros(100, 2))  # latents N(0, I)
        >>> abs(report.bits_per_dim() - 0.5 * math.log2(2 * math.pi)) < 0.1
        True
    """
    _check_solver(probes, steps, rtol, atol)
    score = model.score
    with evaluation_mode(model), score.sde.truncated(eps) as sde:
        exact = event_size(x) <= max(probes, SMALL if x.ndim == 2 else 2) if exact is None else exact
        # Drawn before the flow's own probes, so that models compared at one seed share them.
        noise = randn_like(x, generator)
        probe = x.new_zeros(len(x)) if exact else rademacher(x, probes, generator)
        z, log_det = model.encode(x, generator=generator)
        reconstruction = reconstruction_term(score, z, noise)
        start, end = (sde.marginal_std(t) for t in sde.endpoints(z))  # of z in the coordinate w = z/std
        state = (sde.perturb(z, sde.endpoints(z)[0], noise) / expand_like(start, z), torch.zeros_like(log_det))
        field, span = _flow_and_divergence(score, exact), sde.clock_span()
        if steps is None:
            settings: dict[str, Any] = {"rtol": rtol, "atol": atol}
            (w, integral), evaluations = integrate(field, state, *span, context=(probe,), **settings)
            nfe = math.ceil(evaluations.double().mean().item())
        else:
            settings = {"steps": steps}
            law = GaussianReference.standard(z) if reference is None else reference
            (w, integral), nfe = _whitened_adams(field, state, probe, law, span, steps)
        growth = event_size(z) * integral + event_sum((end / start).log(), z)
        log_prob = log_det + sde.prior_log_prob(expand_like(end, z) * w) + growth - reconstruction
        divergence = "exact" if exact else f"Hutchinson, {probes} Rademacher probe(s)"
        settings |= {"eps": sde.eps, "divergence": divergence}
    log_volume = model.scaling.log_volume(x.shape[1:])
    levels = model.scaling.levels
    return LikelihoodReport(log_prob, reconstruction, nfe, settings, log_volume, event_size(x), levels)


def check_tolerances(rtol: float, atol: float) -> None:
    """ValueError naming a tolerance that is not positive and finite."""
    for name, tolerance in {"rtol": rtol, "atol": atol}.items():
        if not 0 < tolerance < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {tolerance}; 1e-4 is usual")


def _check_solver(probes: int, steps: int | None, rtol: float, atol: float) -> None:
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, or None for the adaptive solver, got {steps}; 24 is usual")
    check_tolerances(rtol, atol)


def _flow_and_divergence(score: nn.Module, exact: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """The field of (w, ∫ divergence/d): the probability flow, and its divergence per dimension by ``probe``."""

    def field(clock: Tensor, state: tuple[Tensor, ...], probe: Tensor) -> tuple[Tensor, Tensor]:
        w = state[0]
        velocity, divergence = value_and_divergence(probability_flow(score, clock), w, basis(w) if exact else probe)
        return velocity, divergence / event_size(w)

    return field


def _whitened_adams(
    field: Callable[..., tuple[Tensor, Tensor]],
    state: tuple[Tensor, Tensor],
    probe: Tensor,
    law: GaussianReference,
    span: tuple[float, float],
    steps: int,
) -> tuple[tuple[Tensor, Tensor], int]:
    """:func:`indm.ode.adams` for the state (w, integral), in the coordinate in which ``law`` does not move."""
    w, integral = state

    def whitened(clock: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        here = law.colour(state[0], clock).reshape(w.shape)
        velocity, divergence = field(clock, (here,), probe)
        return law.whitened_velocity(state[0], here, velocity, clock), divergence

    begin, end = (torch.full_like(integral, clock) for clock in span)
    (v, integral), nfe = adams(whitened, (law.whiten(w, begin), integral), *span, steps=steps)
    return (law.colour(v, end).reshape(w.shape), integral), nfe


def latents_of(
    model, raw: Tensor, *, batch_size: int = 256, generator: torch.Generator | None = None
) -> Float[Tensor, "n *event"]:
    """h(x) of data in data units (n, *event), encoded ``batch_size`` at a time; dequantized by ``generator``."""
    latents = []
    with evaluation_mode(model):
        for batch in raw.split(batch_size):
            x = model.scaling.to_model(batch.to(model.scaling.scale.device), generator=generator)
            latents.append(model.flow.latent(x, generator=generator))
    return torch.cat(latents)


def latent_reference(
    model, raw: Tensor, *, batch_size: int = 256, seed: int = 0, most: int = 10_000
) -> GaussianReference:
    """The Gaussian law of the latents of the first ``most`` samples: the control variate of their NELBO."""
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    return GaussianReference.fit(latents_of(model, raw[:most], batch_size=batch_size, generator=generator))
