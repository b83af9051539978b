"""Likelihoods with error bars: the NLL of the probability-flow ODE and the NELBO, in nats and in bits per dimension.

The NELBO bounds the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from indm.dequantization import Uniform, from_data
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
        log_q: (B,), log q(x|raw), see :func:`indm.dequantization.from_data`: −log_prob + log_q is of the raw data.
        nfe: evaluations of the ODE's field, the mean over samples (each has its own steps) rounded up.
        settings: ε, tolerances, divergence.
        dims: dimensions of one event.
        levels: grey levels of the data; None of continuous data, whose table has no bits/dim.
    """

    log_prob: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    log_q: Float[Tensor, " batch"]
    nfe: int
    settings: dict
    dims: int
    levels: int | None = None

    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return self.log_q - self.log_prob

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
    log_q: Float[Tensor, " batch"] | None = None,
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
        log_q: log q(x|raw), the second result of ``model.from_data(raw)``; needed where grey levels get other noise
            than uniform, of which it is a constant.

    Raises:
        ValueError: an option out of range, or no ``log_q``.
        RuntimeError: where the adaptive solver did not reach T.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> report = log_likelihood(indm.build_model(tables, (2,)), torch.zeros(100, 2))  # latents N(0, I)
        >>> abs(report.bits_per_dim() - 0.5 * math.log2(2 * math.pi)) < 0.1
        True
    """
    _check_solver(probes, steps, rtol, atol)
    log_q = constant_log_q(model, x) if log_q is None else log_q
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
    return LikelihoodReport(log_prob, reconstruction, log_q, nfe, settings, event_size(x), model.scaling.levels)


def log_probability(
    model,
    raw: Num[Tensor, "batch *event"],
    *,
    draws: int = 8,
    exact: bool | None = True,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    **solver: Any,
) -> LikelihoodReport:
    r"""The importance-weighted bound of log P(raw), from ``draws`` K of the noise of grey levels and of z_ε.

    .. math:: \log P(\text{raw}) \ge E \log \frac1K \sum_{k=1}^K \frac{p(x_k)}{q(x_k|\text{raw})}

    It rises with K. Of continuous data it is one of log p(raw).

    Args:
        model: an INDM.
        raw: data in data units.
        draws: K.
        exact: the exact divergence, by d products for each evaluation. An estimate of it (False), as one of
            log|det|, adds noise to each log-weight; noise of variance v makes the bound up to v/2 nats too good.
        batch_size: draws at a time.
        **solver: ``probes``, ``rtol``, ``atol``, ``steps``, ``eps`` and ``reference``, as in :func:`log_likelihood`.

    Returns:
        ``nats()`` are −log P(raw) of each image. ``log_prob`` and ``reconstruction`` are means over the draws, by their
        weights.

    Raises:
        ValueError: an option out of range.
        RuntimeError: where the adaptive solver did not reach T.

    Source: Burda et al. 2016, "Importance Weighted Autoencoders", https://arxiv.org/abs/1509.00519.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (1, 2, 2), indm.Scaling.images(256))
        >>> raw = torch.full((3, 1, 2, 2), 128)
        >>> log_probability(model, raw, draws=4).nats().shape
        torch.Size([3])
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}; 8 is usual")
    reports = []
    for part in raw.repeat_interleave(draws, dim=0).split(batch_size):
        with evaluation_mode(model):
            x, log_q = from_data(model, part, generator=generator)
        reports.append(log_likelihood(model, x, exact=exact, log_q=log_q, generator=generator, **solver))
    log_prob, reconstruction, log_q = (
        torch.cat([getattr(report, name) for report in reports]).unflatten(0, (len(raw), draws))
        for name in ("log_prob", "reconstruction", "log_q")
    )
    log_weights = log_prob - log_q
    bound, shares = log_weights.logsumexp(1) - math.log(draws), log_weights.softmax(1)
    log_prob, reconstruction = ((shares * values).sum(1) for values in (log_prob, reconstruction))
    nfe = math.ceil(sum(report.nfe for report in reports) / len(reports))
    settings = reports[0].settings | {"draws": draws}
    return LikelihoodReport(
        log_prob, reconstruction, log_prob - bound, nfe, settings, math.prod(raw.shape[1:]), model.scaling.levels
    )


def constant_log_q(model, x: Tensor) -> Float[Tensor, " batch"]:
    """log q(x|raw) of uniform noise, or of continuous data, which does not depend on the raw data, nats (B,).

    Raises:
        ValueError: the model has other noise.
    """
    noise = getattr(model, "dequantization", None)
    if not isinstance(noise, Uniform | None):
        raise ValueError(
            f"log_q must be given for {type(noise).__name__} noise: x, log_q = model.from_data(raw), then "
            "log_likelihood(model, x, log_q=log_q)"
        )
    return x.new_full((len(x),), -model.scaling.log_volume(x.shape[1:]), dtype=torch.float64)


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
            x, _ = from_data(model, batch.to(model.scaling.scale.device), generator=generator)
            latents.append(model.flow.latent(x, generator=generator))
    return torch.cat(latents)


def latent_reference(
    model, raw: Tensor, *, batch_size: int = 256, seed: int = 0, most: int = 10_000
) -> GaussianReference:
    """The Gaussian law of the latents of the first ``most`` samples: the control variate of their NELBO."""
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    return GaussianReference.fit(latents_of(model, raw[:most], batch_size=batch_size, generator=generator))
