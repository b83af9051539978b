r"""The NELBO term by term, the two training losses built on it, and the flow's own likelihood.

For every linear SDE here, :math:`d\log(\sigma^2/\alpha^2) = (g^2/\sigma^2)\,dt`, so with a
denoising error
:math:`D(t) = \tfrac12\|n + \sigma_t s_\theta(\alpha_t z_0 + \sigma_t n, t)\|^2` the score term is the integral of E[D]
over the log-SNR clock, and the reconstruction term is D(ε) − ½‖n‖² − d log α_ε. Training therefore
draws its times from the clock *extended by one unit at ε*: one pass of the score serves both terms.
The same holds at any truncation τ ≥ ε, which is how soft truncation keeps a bound that the flow can
be trained on.

Source: Kim et al. 2022, "Maximum Likelihood Training of Implicit Nonlinear Diffusion Models",
https://arxiv.org/abs/2205.13699.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.checks import require
from indm.dequantization import constant_log_q, decoder_of
from indm.gaussian import STANDARD, GaussianReference
from indm.protocols import Model, Score
from indm.score import base_of, context_of, noise_parts, unguided, with_context
from indm.sde.linear import Kernel, LinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    check_units,
    double,
    event_size,
    event_sum,
    expand_like,
    gradient_weighted,
    randn_like,
    squared_norm,
    strata,
    widest,
)

Losses = tuple[Float[Tensor, ""], dict[str, Tensor]]
# The share of the likelihood weighting that the score also sees in FID mode: at ε its own weighting
# has no mass.
LIKELIHOOD_SHARE = 1e-3
NOISE_LEVELS = 8  # equal parts of the log-SNR clock, in which the score term is reported
# fewest for a control variate: with fewer it adds more error than it removes
ROWS_PER_COEFFICIENT = 5


@dataclass(frozen=True)
class NELBO:
    """The terms of −log p(x) ≤ flow + score + constant + prior + reconstruction, nats in model
    units, each (B,).

    :attr:`nats` and :attr:`bits_per_dim` are of the raw data.

    Attributes:
        flow, score, constant, prior, reconstruction: the terms.
        log_q: (B,), log q(x|raw), see :func:`indm.dequantization.from_data`.
        dims: dimensions of one event.
        by_noise_level: (B, 8), ``score`` in equal parts of the log-SNR clock from ε to T; None for
            discrete steps.

    Example: the identity changes no volume, and the prior term is the entropy of z_T ~ N(0, I).

        >>> import indm
        >>> terms = nelbo(indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,)), torch.randn(3, 2))
        >>> terms.flow.abs().tolist(), torch.allclose(terms.prior, torch.tensor(math.log(2 * math.pi) + 1), atol=1e-2)
        ([0.0, 0.0, 0.0], True)
        >>> torch.equal(terms.total, terms.without_reconstruction + terms.reconstruction)
        True
    """

    flow: Tensor
    score: Tensor
    constant: Tensor
    prior: Tensor
    reconstruction: Tensor
    log_q: Tensor
    dims: int
    by_noise_level: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The bound of −log p(x), nats in model units, (B,)."""
        return self.without_reconstruction + self.reconstruction

    @property
    def nats(self) -> PerSample:
        """The bound of −log p of the raw data, nats per sample."""
        return self.log_q + self.total

    @property
    def bits_per_dim(self) -> float:
        """Mean over the batch of the bound of −log₂ p of the raw data, per dimension."""
        return self.nats.mean().item() / (self.dims * math.log(2))

    @property
    def without_reconstruction(self) -> Tensor:
        """The first four terms, (B,): not a bound of −log p(x), for comparison with numbers
        published so.
        """
        return self.flow + self.score + self.constant + self.prior


def prior_term(sde: LinearSDE, z: Float[Tensor, "batch *event"]) -> PerSample:
    """E[−log π(z_T) | z_0 = z] in closed form, nats."""
    kernel = sde.kernel(sde.endpoints(z)[1])
    mean = expand_like(kernel.alpha, z) * z
    spread = (squared_norm(mean - sde.prior_mean.to(z)) + event_sum(kernel.sigma**2, z)) / (
        2 * sde.prior_std**2
    )
    return spread + event_size(z) * (math.log(sde.prior_std) + 0.5 * math.log(2 * math.pi))


def constant_term(
    sde: LinearSDE, z: Float[Tensor, "batch *event"], eps: Tensor | None = None
) -> PerSample:
    """−½ ∫ (g² d/σ² + 2 d f) dt over [eps, T] = −d log(σ_T/σ_ε), nats."""
    start, T = sde.endpoints(z)
    return event_sum(sde.sigma(start if eps is None else eps).log(), z) - event_sum(
        sde.sigma(T).log(), z
    )


def reconstruction(model: Model, z: Batch, noise: Batch) -> PerSample:
    """log q(z_ε|z_0) − log p(raw|z_ε), nats, at the one z_ε = α_ε z + σ_ε noise, by the decoder
    that the model has.
    """
    decoder = decoder_of(model)
    if decoder is None:
        return reconstruction_term(model.score, z, noise)
    return decoder.reconstruction(model.scaling, kernel_at_eps(model.score.sde, z), z, noise)


def mean_reconstruction(model: Model, z: Batch, noise: Batch) -> PerSample:
    """:func:`reconstruction`, or its mean over the noise where that has a closed form."""
    decoder = decoder_of(model)
    if decoder is None:
        return reconstruction_term(model.score, z, noise)
    return decoder.mean_reconstruction(model.scaling, kernel_at_eps(model.score.sde, z), z)


def kernel_at_eps(sde: LinearSDE, z: Batch) -> Kernel:
    """The kernel of z_ε, at one time for all samples."""
    return sde.kernel(z.new_full((1,), sde.eps))


def reconstruction_term(score: Score, z: Batch, noise: Batch) -> PerSample:
    """log q(z_ε|z_0) − log p(z_0|z_ε), nats, at the one z_ε = α_ε z + σ_ε noise, by Tweedie's
    formula.
    """
    eps, _ = score.sde.endpoints(z)
    error = denoising_error(score, z, eps, noise)
    return error - 0.5 * squared_norm(noise) - event_sum(score.sde.log_alpha(eps), z)


def denoising_error(score: Score, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """D(t) = ½‖noise + σ_t s_θ(α_t z + σ_t noise, t)‖², (B,)."""
    return half_square(noise_error(score, score.sde.kernel(t), z, t, noise))


def half_square(error: Batch) -> PerSample:
    """½‖error‖², (B,)."""
    return 0.5 * squared_norm(error)


def noise_error(score: Score, kernel: Kernel, z: Batch, t: PerSample, noise: Batch) -> Batch:
    """noise + σ_t s_θ(α_t z + σ_t noise, t), under the kernel at ``t``: the noise minus the score's
    guess at it.
    """
    return noise + expand_like(kernel.sigma, z) * score(kernel.perturb(z, noise), t)


def nelbo(
    model: Model,
    x: Float[Tensor, "batch *event"],
    *,
    c: Any = None,
    times: int = 1,
    ancestral: int | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> NELBO:
    """An unbiased draw of the NELBO of each sample, with importance-sampled times, stratified over
    the batch.

    Args:
        model: an INDM, used in the mode in which it is.
        x: data in model units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: the terms of −log
            p(x|c).
        times: score evaluations for each sample, one in each of that many equal strata of the
            log-SNR clock.
        ancestral: the bound of samples of :class:`indm.sampling.Ancestral` in that many steps, in
            place of samples of the generative SDE; with more steps it falls towards the SDE's
            bound.
        reference: a Gaussian law of the latents, for :func:`control_variate`: the same mean, a
            fraction of the noise. Times are then stratified in each half of the batch by itself.
        log_q: log q(x|raw), the second result of ``model.from_data(raw)``; needed where it differs
            between samples.
        generator: of times, noise and the flow's probes; by default the global one.

    Returns:
        The five terms.

    Raises:
        ValueError: an option out of range, or no ``log_q``.

    Example: N(0, I) and its exact score, for which the bound is −log p, on average over the noise.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> bound = nelbo(indm.build_model(tables, (2,)), x, times=64).total
        >>> exact = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> bool((bound - exact).mean().abs() < 0.5)  # nats; its noise has a deviation of 0.1
        True
    """
    require(times >= 1, "times", times, "at least 1 score evaluation for each sample")
    is_possible = ancestral is None or ancestral >= 1
    require(
        is_possible, "ancestral", ancestral, "at least 1 step, or None for the bound of the SDE"
    )
    check_units(x)
    log_q = constant_log_q(model, x) if log_q is None else log_q
    model = unguided(model).given(c, len(x))
    score, sde, n = model.score, model.score.sde, len(x)
    # Everything but the flow's own probes is drawn first, so that models compared at one seed share
    # it.
    # control_variate needs independent halves
    parts = [n] if reference is None else [n // 2, n - n // 2]
    drawn_times = torch.cat(
        [stratified_times(sde, rows, times, generator, x.device) for rows in parts], 1
    ).to(x.dtype)
    noises = [randn_like(x, generator) for _ in range(times + 1)]
    z, log_det = model.encode(x, generator=generator)
    pairs = list(zip(drawn_times, noises, strict=False))
    if ancestral is None:
        drawn = [denoising_error(score, z, t, noise) for t, noise in pairs]
    else:
        steps = [(_step_around(sde, t, ancestral), noise) for t, noise in pairs]
        pairs = [(t, noise) for (t, _), noise in steps]
        drawn = [step_divergence(score, z, t, s, noise) for (t, s), noise in steps]
        # per unit of the clock
        drawn = [divergence * ancestral / sde.log_snr_range() for divergence in drawn]
    errors, position = torch.stack(drawn), sde.clock_fraction(sde.clock(drawn_times))
    trend = errors.new_zeros(n, NOISE_LEVELS)
    if reference is not None:
        excess = torch.stack([reference.excess(sde, z, t, noise) for t, noise in pairs])
        fitted, trend = control_variate(errors, position, excess)
        errors = errors - fitted
    return NELBO(
        flow=-log_det,
        score=sde.log_snr_range() * errors.mean(0),
        constant=constant_term(sde, z),
        prior=prior_term(sde, z),
        reconstruction=mean_reconstruction(model, z, noises[-1]),
        log_q=log_q,
        dims=event_size(x),
        by_noise_level=sde.log_snr_range() * by_noise_level(errors, position, trend),
    )


def step_divergence(score: Score, z: Batch, t: PerSample, s: PerSample, noise: Batch) -> PerSample:
    r"""KL(q(z_s|z_t, z_0) ‖ p(z_s|z_t)) of one step from t to s < t of
    :class:`indm.sampling.Ancestral`, nats, (B,).

    It is :math:`(e^{\Delta\Lambda} - 1)` times the denoising error at t, Λ = log σ²/α², as both
    deviations are equal.
    """
    log_ratio = [
        score.sde.sigma(time).log() - score.sde.log_alpha(time) for time in (double(t), double(s))
    ]
    weight = expand_like((2 * (log_ratio[0] - log_ratio[1])).expm1().to(z), z)
    return half_square(weight.sqrt() * noise_error(score, score.sde.kernel(t), z, t, noise))


def ancestral_step(score: Score, z_t: Batch, t: PerSample, s: PerSample) -> tuple[Batch, Tensor]:
    r"""Mean :math:`(z_t + v^2 s_\theta)/r` and deviation :math:`v\sigma_s/\sigma_t` of z_s, for the
    kernel
    N(r z_s, v² I) from s to t > s: q(z_s|z_t, z_0) of the linear diffusion at z_0 = (z_t + σ²
    s_θ)/α.
    """
    ratio, variance = (expand_like(v, z_t) for v in score.sde.transition_moments(s, t))
    sigmas = expand_like(score.sde.sigma(s) / score.sde.sigma(t), z_t)
    return (z_t + variance * score(z_t, t)) / ratio, variance.sqrt() * sigmas


def _step_around(sde: LinearSDE, t: PerSample, steps: int) -> tuple[PerSample, PerSample]:
    """The ends, the later one first, of the step around each ``t``, where the clock has ``steps``
    equal steps.
    """
    start, end = sde.clock_span()
    number = (sde.clock_fraction(sde.clock(t)) * steps).floor().clamp(0, steps - 1)
    later, earlier = ((start + (number + i) / steps * (end - start)) for i in (1, 0))
    return tuple(sde.time(-clock).clamp(sde.eps, sde.T).to(t) for clock in (later, earlier))  # type: ignore[return-value]


def stratified_times(
    sde: LinearSDE, n: int, times: int, generator, device
) -> Float[Tensor, "times n"]:
    """The clock is cut into ``times`` equal parts and each into ``n`` strata; row k has one time of
    each in part k.
    """
    if n == 0:
        return torch.zeros(times, 0, device=device)
    t = (
        sde.sample_time(n * times, importance=True, generator=generator, device=device)[0]
        .sort()
        .values
    )
    return torch.stack(
        [part[torch.randperm(n, generator=generator, device=device)] for part in t.split(n)]
    )


def control_variate(
    errors: Float[Tensor, "times n"],
    position: Float[Tensor, "times n"],
    excess: Float[Tensor, "times n"],
) -> tuple[Float[Tensor, "times n"], Float[Tensor, "n levels"]]:
    """The part of ``errors`` that follows from their times and a Gaussian's errors on the same
    noise; its mean is 0.

    It combines Legendre polynomials of the ``position`` (the mean trend of the error) with
    ``excess`` times such polynomials, all of mean 0, in as many terms as the rows of a half can
    determine. Each half of the batch has the coefficients that fit the other half best, so the
    halves need independent times and noise, as in :func:`nelbo`.

    The second result is the fitted mean trend, with its constant, integrated over equal parts of
    the clock, for :func:`by_noise_level`; 0 without coefficients.
    """
    fitted, half = torch.zeros_like(position), errors.shape[1] // 2
    trend = position.new_zeros(errors.shape[1], NOISE_LEVELS)
    controls = _controls(position, double(excess))[: errors.shape[0] * half // ROWS_PER_COEFFICIENT]
    # a model that diverges, and its bound must show it
    if not controls or not errors.isfinite().all():
        return fitted.to(errors), trend.to(errors)
    stacked, integrals = torch.stack(controls, dim=-1), _integrals(len(controls)).to(position)
    for own, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        design = nn.functional.pad(stacked[:, other].flatten(0, 1), (1, 0), value=1.0)
        scale = design.norm(dim=0).clamp_min(1e-12)
        solution = torch.linalg.lstsq(
            design / scale, double(errors[:, other]).reshape(-1, 1)
        ).solution
        coefficients = solution[:, 0] / scale
        fitted[:, own], trend[own] = stacked[:, own] @ coefficients[1:], integrals @ coefficients
    return fitted.to(errors), trend.to(errors)


def by_noise_level(
    errors: Float[Tensor, "times n"],
    position: Float[Tensor, "times n"],
    trend: Float[Tensor, "n levels"],
) -> Float[Tensor, "n levels"]:
    """The mean of ``errors`` over times, divided among equal parts of the clock by their
    ``position``.

    ``trend`` is the expected share of each part (:func:`control_variate`); a draw adds only its
    difference from that.
    """
    level = (position * NOISE_LEVELS).long().clamp(0, NOISE_LEVELS - 1).to(errors.device)
    beyond = errors - trend.sum(1)
    return trend + torch.zeros_like(trend).scatter_add(1, level.T, beyond.T) / len(errors)


def legendre(place: Float[Tensor, "..."], terms: int) -> Float[Tensor, "... terms"]:
    """P_k(2p − 1), k < ``terms``, of places p ∈ [0, 1] on the clock."""
    x = 2 * place - 1
    values = [torch.ones_like(x), x]
    for k in range(1, terms - 1):
        values.append(((2 * k + 1) * x * values[k] - k * values[k - 1]) / (k + 1))
    return torch.stack(values[:terms], -1)


def _controls(position: Tensor, excess: Tensor) -> list[Tensor]:
    """P_k(position), k = 1 … 7, and excess · P_k, k = 0 … 3, the most useful first."""
    polynomials = legendre(position, 8).unbind(-1)
    trend, gaussian = polynomials[1:], [p * excess for p in polynomials[:4]]
    return [
        trend[0], gaussian[0], *trend[1:3], gaussian[1], *trend[3:5], gaussian[2], *trend[5:], gaussian[3]
    ]  # fmt: skip


def _integrals(controls: int) -> Float[Tensor, "levels coefficients"]:
    """Integrals of 1 and the first ``controls`` of :func:`_controls` over each part of the clock,
    at mean excess 0.
    """
    # exact: the degree is ≤ 7
    nodes, weights = (torch.from_numpy(v) / 2 for v in np.polynomial.legendre.leggauss(4))
    position = (torch.arange(NOISE_LEVELS)[:, None] + 0.5 + nodes) / NOISE_LEVELS
    values = [
        torch.ones_like(position),
        *_controls(position, torch.zeros_like(position))[:controls],
    ]
    return torch.stack(values, -1).mul(weights[:, None]).sum(1) / NOISE_LEVELS


def extended_clock(
    sde: LinearSDE, n: int, eps: float, *, unit: float = 1.0, generator=None, device=None
) -> tuple[Tensor, float]:
    """Stratified times (n,) for the score and reconstruction terms together, and the length R + 1
    of that clock.

    A time is ε itself with probability 1/(R + 1) and uniform in log-SNR otherwise. With ``unit`` 0
    it is the clock of the score term alone.
    """
    length = sde.log_snr_range(eps) + unit
    position = strata(n, generator=generator, device=device) * length - unit
    return time_at(sde, position, eps).to(device, torch.float32), length


def time_at(sde: LinearSDE, position: Float[Tensor, "..."], eps: float) -> Float[Tensor, "..."]:
    """The time at a ``position`` of :func:`extended_clock`: below 0 it is ε, then falls in log-SNR
    from there.
    """
    start = sde.log_snr(torch.full_like(position, eps))
    return sde.time(start - position.clamp_min(0.0)).clamp(eps, sde.T)


def constant_part(sde: LinearSDE, z: Tensor, eps: float) -> Tensor:
    """The constant term, and from the reconstruction term −d log α and the mean −d/2 of −½‖noise‖²,
    (B,) or (1,).
    """
    start = z.new_full((1,), eps)
    return constant_term(sde, z, start) - event_sum(sde.log_alpha(start) + 0.5, z)


def _constants(model: Model, z: Tensor, eps: float) -> Tensor:
    """:func:`constant_part`, or where grey levels are decoded the constant term and all of the
    reconstruction.
    """
    sde, decoder, start = model.score.sde, decoder_of(model), z.new_full((1,), eps)
    if decoder is None:
        return constant_part(sde, z, eps)
    return constant_term(sde, z, start) + decoder.mean_reconstruction(
        model.scaling, sde.kernel(start), z
    )


def reconstruction_units(model: Model) -> float:
    """Units that the reconstruction term adds to :func:`extended_clock`: 0 where it does not use
    the score.
    """
    return 1.0 if decoder_of(model) is None else 0.0


@dataclass(frozen=True)
class Objective:
    """The loss that training minimises, and the facts about it that the trainer needs.

    Attributes:
        loss: ``loss(model, x)`` → the loss, a scalar, and its mean terms by name, which are logged.
            It is called in training mode. Where its signature has them, it is also given ``eps``
            (the truncation of this step, or None) and ``progress`` (the fraction of the run that is
            over).
        trains_score, trains_flow: whether these parameters get a gradient; if not, they must have
            none.
        truncates: whether ``loss`` stays an objective at any truncation ``eps``, as soft truncation
            needs.
        shown: names of the terms beside the progress bar.
        frozen_terms: names of the terms that mean the same behind a frozen flow.

    A function is an objective with the default attributes; :func:`as_objective` gives it others.

    Example: the likelihood of the flow alone.

        >>> import indm
        >>> def of_flow(model, x):
        ...     nats = flow_nll(model, x).mean()
        ...     return nats / event_size(x), {"nelbo": nats.detach()}
        >>> objective = Objective(of_flow, trains_score=False, truncates=False)
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> loss, terms = objective(indm.build_model(tables, (2,)), torch.zeros(1, 2))
        >>> objective.takes("eps"), round(terms["nelbo"].item(), 4)  # log 2π
        (False, 1.8379)
    """

    loss: Callable[..., Losses]
    trains_score: bool = True
    trains_flow: bool = True
    truncates: bool = True
    shown: tuple[str, ...] = ("flow", "denoising", "prior")
    frozen_terms: tuple[str, ...] = ("denoising",)

    def __call__(self, model: nn.Module, x: Tensor, **step_arguments: Any) -> Losses:
        return self.loss(model, x, **step_arguments)

    def takes(self, argument: str) -> bool:
        """Whether the loss has an argument of that name."""
        return argument in inspect.signature(self.loss).parameters


def as_objective(**attributes: Any) -> Callable[[Callable[..., Losses]], Callable[..., Losses]]:
    """Decorates a loss with the attributes of its :class:`Objective`; the function itself stays as
    it is.

    >>> @as_objective(trains_score=False, truncates=False)
    ... def likelihood(model, x):
    ...     nats = flow_nll(model, x).mean()
    ...     return nats, {"nelbo": nats.detach()}
    >>> objective_of(likelihood).trains_score
    False
    """

    def decorate(loss: Callable[..., Losses]) -> Callable[..., Losses]:
        loss.objective = Objective(loss, **attributes)  # type: ignore[attr-defined]
        return loss

    return decorate


def objective_of(part: Any) -> Objective:
    """The :class:`Objective` that ``part`` is or makes: an objective, a loss, or a class, called
    without options.
    """
    if isinstance(part, type):
        part = part()
    if isinstance(part, Objective):
        return part
    require(callable(part), "objective", part, "a function of (model, x), an Objective, or a name")
    return getattr(part, "objective", None) or Objective(part)


def mle_loss(
    model: Model,
    x: Tensor,
    *,
    eps: float | None = None,
    pairs: bool = False,
    noise_levels: Any = None,
    generator: torch.Generator | None = None,
) -> Losses:
    r"""Flow and score both minimise the NELBO (with reconstruction, at truncation ``eps``).

    ε̂ of a :class:`indm.ScoreModel` is f plus the noise that a known law B of the latents expects,
    such as N(0, I) (:func:`indm.score.base_of`). The bound under B's own score has a closed form N,
    at the SDE's own ε it is −log B, and noise is drawn only for what f changes. With R the length
    of the log-SNR clock, and one more unit at ε:

    .. math:: -\log|\det \partial h/\partial x| + N(h(x)) + (R + 1)\, E[\tfrac12\|f\|^2 - \langle f, a\rangle],
              \qquad a = n - E_B[n|z_t]

    Where no law is known, or grey levels are decoded, noise is drawn for the whole error of the
    network:

    .. math:: -\log|\det \partial h/\partial x| + E[-\log\pi(z_T)] + (R + 1)\, E[\tfrac12\|n + \sigma_t s(z_t, t)\|^2]
              + \text{constants}

    A decoder of grey levels has its own reconstruction term in place of the unit at ε.

    Args:
        model: an INDM.
        x: (B, *event), data in model units.
        eps: a truncation above the SDE's own, for soft truncation.
        pairs: use the noises n and −n of each row. At small noise their gradients nearly cancel, so
            that the mean has less noise; the network is evaluated twice a row.
        noise_levels: :class:`indm.training.NoiseLevels`, which draws times where gradients are
            large; by default times are even on the clock.
        generator: of times, noise and the flow's own draws.

    Returns:
        The loss in nats per dimension, and the mean terms in nats per sample by name: ``nelbo``,
        ``flow``, ``denoising`` (score and reconstruction), ``prior``, and ``correction``, what the
        network changes of the bound under its known law, where there is one.

    Example: N(0, I) and its exact score, for which it is the entropy.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(20_000, 2, generator=generator)
        >>> loss, terms = mle_loss(indm.build_model(tables, (2,)), x, generator=generator)
        >>> abs(loss.item() - 0.5 * math.log(2 * math.pi * math.e)) < 0.02  # nats per dimension
        True
        >>> sorted(terms)
        ['correction', 'denoising', 'flow', 'nelbo', 'prior']
    """
    sde = model.score.sde
    eps = sde.checked_truncation(eps)
    z, log_det = model.encode(x, generator=generator)
    base = None if decoder_of(model) else base_of(model.score)
    start = None if base is None else base.denoising(sde, z, eps)
    if noise_levels is None:
        t, length = extended_clock(
            sde, len(z), eps, unit=reconstruction_units(model), generator=generator, device=z.device
        )
        weight, cell = t.new_full((len(z),), length), t
    else:
        whole = eps == sde.eps and reconstruction_units(model) == 1
        require(whole, "noise_levels", noise_levels, "None where the bound is truncated or decoded")
        t, weight, cell = (part.to(z.device) for part in noise_levels.draw(len(z), generator))
    noise, t, weight = randn_like(z, generator), t.to(z.dtype), weight.to(z.dtype)
    drawn, error = drawn_error(model.score, start is not None, z, t, noise, pairs)
    if noise_levels is not None:
        noise_levels.measure(cell, error.detach())
    change = weight * drawn
    denoising, prior = change if start is None else start + change, prior_term(sde, z)
    bound = (denoising - log_det + prior + _constants(model, z, eps)).mean()
    terms = {} if start is None else {"correction": change}
    return bound / event_size(z), _means(
        nelbo=bound, flow=-log_det, denoising=denoising, prior=prior, **terms
    )


def drawn_error(
    score: Any, is_known: bool, z: Batch, t: PerSample, noise: Batch, pairs: bool
) -> tuple[PerSample, PerSample]:
    """The denoising error at times t, (B,), by the noise or by ``pairs`` of it, minus the error of
    the score's base where that ``is_known``; and ‖n − ε̂‖², the squared size of a gradient.
    """
    if pairs:
        noise, z, t, *context = in_pairs(noise, z, t, *context_of(score))
        score = with_context(score, tuple(context))
    kernel = score.sde.kernel(t)
    if is_known:
        known, added = noise_parts(score, kernel.perturb(z, noise), t)
        error = noise - known
        value, error = event_sum(added * (0.5 * added - error), z), error - added
    else:
        error = noise_error(score, kernel, z, t, noise)
        value = half_square(error)
    if pairs:
        value, error = value.unflatten(0, (2, -1)).mean(0), error.unflatten(0, (2, -1)).mean(0)
    return value, squared_norm(error)


def in_pairs(noise: Batch, *rows: Tensor) -> list[Tensor]:
    """n and −n of each row of ``noise``, (2 B, …), and ``rows`` (B, …) for both."""
    return [torch.cat([noise, -noise]), *(torch.cat([part, part]) for part in rows)]


def fid_loss(
    model: Model, x: Tensor, *, eps: float | None = None, generator: torch.Generator | None = None
) -> Losses:
    """The flow minimises the NELBO, the score the variance-weighted loss (λ = σ², t uniform): one
    pass serves both.

    Times come from an equal mixture of the two laws; each loss has its own weight at each time, and
    the gradient that reaches z_t is rescaled by the ratio of the weights. Returns as
    :func:`mle_loss`, with the score's own loss as ``variance_weighted``.

    Example: its ``nelbo`` estimates the same bound as in ``mle_loss``, here for N(0, I) and its
    exact score.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(20_000, 2, generator=generator)
        >>> loss, terms = fid_loss(indm.build_model(tables, (2,)), x, generator=generator)
        >>> abs(terms["nelbo"].item() - math.log(2 * math.pi * math.e)) < 0.6  # nats, the entropy
        True
        >>> "variance_weighted" in terms
        True
    """
    sde = model.score.sde
    eps = sde.checked_truncation(eps)
    z, log_det = model.encode(x, generator=generator)
    n, noise = len(z), randn_like(z, generator)

    clock, length = extended_clock(
        sde, n, eps, unit=reconstruction_units(model), generator=generator, device=z.device
    )
    uniform, span = sde.sample_time(
        n, importance=False, eps=eps, generator=generator, device=z.device
    )
    from_clock = strata(n, generator=generator, device=z.device).to(z.device, torch.float32) < 0.5
    t = torch.where(from_clock, clock, uniform)
    atom = t <= eps
    rate = torch.where(atom, torch.ones_like(t), (sde.diffusion(t) / sde.sigma(t)) ** 2)
    uniform_density = torch.where(atom, torch.zeros_like(t), 1 / span)
    mixture = 0.5 * (rate / length + uniform_density)
    flow_weight = (rate / mixture).to(z.dtype)
    score_weight = (uniform_density / mixture).to(z.dtype) + LIKELIHOOD_SHARE * flow_weight

    z_seen = gradient_weighted(z, flow_weight / score_weight)
    error = denoising_error(model.score, z_seen, t.to(z.dtype), noise)
    # The noise is added to h(x) unscaled: only the gradient into z carries the ratio.
    prior = prior_term(sde, z)
    surrogate = (score_weight * error - log_det + prior).mean()
    denoising = (flow_weight * error).detach()
    bound = (denoising - log_det + prior + _constants(model, z, eps)).mean()
    terms = _means(
        nelbo=bound,
        flow=-log_det,
        denoising=denoising,
        prior=prior,
        variance_weighted=score_weight * error,
    )
    return surrogate / event_size(z), terms


def flow_nll(model: Model, x: Tensor, *, generator: torch.Generator | None = None) -> PerSample:
    """−log π(h(x)) − log|det ∂h/∂x| in nats, (B,): minus the log-density of x_T ~ h⁻¹#π, π the
    prior of the SDE.
    """
    z, log_det = model.encode(x, generator=generator)
    return -model.sde.prior_log_prob(z) - log_det


@as_objective(trains_score=False, truncates=False)
def flow_loss(
    model: Model, x: Tensor, *, eps: float | None = None, generator: torch.Generator | None = None
) -> Losses:
    """The flow alone maximises its exact likelihood: E[−log B(h(x)) − log|det ∂h/∂x|].

    B is the law to whose score the network adds, :attr:`indm.ScoreModel.base`, N(0, I) where none
    is known. The score is not trained. ``eps`` changes nothing. Returns as :func:`mle_loss`, with
    ``denoising`` 0 and −log B as ``prior``.

    Example: z = 2x, whose x has the law N(0, I/4).

        >>> import indm
        >>> tables = {"flow": {"name": "actnorm", "channels": 2}, "sde": "vp", "net": "zero"}
        >>> model, x = indm.build_model(tables, (2,)), torch.randn(5, 2)
        >>> _ = model.flow.log_scale.data.fill_(math.log(2))
        >>> loss, terms = flow_loss(model, x)
        >>> torch.allclose(loss, -torch.distributions.Normal(0.0, 0.5).log_prob(x).mean(), atol=1e-5)
        True
    """
    model.sde.checked_truncation(eps)
    z, log_det = model.encode(x, generator=generator)
    prior, flow = -(base_of(model.score) or STANDARD).log_prob(z), -log_det
    nll = (prior + flow).mean()
    return nll / event_size(x), _means(
        nelbo=nll, flow=flow, denoising=torch.zeros_like(flow), prior=prior
    )


def soft_truncation(
    sde: LinearSDE, k: float = 1.2, *, generator: torch.Generator | None = None
) -> float:
    """A truncation τ in [ε, T] with density ∝ τ^(−k), to be drawn once for a batch.

    Source: Kim et al. 2022, "Soft Truncation", https://arxiv.org/abs/2106.05527.

    Example: k = 1 is uniform in log τ, here from 1e-5 to 1.

        >>> from indm.sde import VPSDE
        >>> taus = [soft_truncation(VPSDE(), k=1.0) for _ in range(1000)]
        >>> 1e-5 <= min(taus) < max(taus) < 1
        True
        >>> abs(sum(map(math.log10, taus)) / 1000 + 2.5) < 0.3  # of a mean whose deviation is 0.05
        True
    """
    require(k > 0, "k", k, "positive", "1.2 is usual")
    device = None if generator is None else generator.device
    u = torch.rand((), generator=generator, device=device, dtype=widest(device)).item()
    low, high = math.log(sde.eps), math.log(sde.T)
    if abs(k - 1.0) < 1e-9:
        log_tau = low + u * (high - low)
    else:
        a, b = math.exp((1 - k) * low), math.exp((1 - k) * high)
        log_tau = math.log(a + u * (b - a)) / (1 - k)
    return min(max(math.exp(log_tau), sde.eps), sde.T * (1 - 1e-6))


def _means(**terms: Tensor) -> dict[str, Tensor]:
    return {name: term.detach().mean() for name, term in terms.items()}
