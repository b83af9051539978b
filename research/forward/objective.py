r"""The bound of a model with a forward process, its training, and what even the best scores leave of it.

With e of :mod:`research.forward.base` in place of the noise, all is as in :mod:`indm.objective`. Where a process has a
code c, the bound is that given c ~ q(c|z_0), plus KL(q(c|z_0) ‖ p(c)), which is in the term ``flow``.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

import indm
from indm.dequantization import constant_log_q
from indm.gaussian import GaussianReference
from indm.objective import ancestral_step, as_objective, control_variate, extended_clock, stratified_times
from indm.rng import randn_like, strata
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, event_size, event_sum, expand_like, squared_norm
from research.forward.base import LINEAR, ForwardProcess, Noised
from research.forward.model import ForwardINDM, build_forward, check_truncation
from research.forward.scores import encoded, law_score

Moments = tuple[Batch, Tensor]  # mean and standard deviation of z_T given z_0
FITTED_SHARE = 0.25  # of a batch: rows in which the score of the law is fitted, where there are two scores


def prior_term(sde: LinearSDE, z: Float[Tensor, "batch *event"], end: Moments | None = None) -> PerSample:
    """E[−log π(z_T) | z_0 = z] in closed form, nats; ``end``: mean and deviation of z_T, by default linear."""
    mean, std = LINEAR.moments(sde, z, sde.endpoints(z)[1]) if end is None else end
    spread = (squared_norm(mean - sde.prior_mean.to(z)) + event_sum(std**2, z)) / (2 * sde.prior_std**2)
    return spread + event_size(z) * (math.log(sde.prior_std) + 0.5 * math.log(2 * math.pi))


def constant_term(
    sde: LinearSDE, z: Float[Tensor, "batch *event"], eps: Tensor | None = None, end: Moments | None = None
) -> PerSample:
    """−½ ∫ (g² d/σ² + 2 d f) dt over [eps, T] = −d log(σ_T/σ_ε), nats; the deviation of ``end`` in place of σ_T."""
    start, T = sde.endpoints(z)
    std = sde.sigma(T) if end is None else end[1]
    return event_sum(sde.sigma(start if eps is None else eps).log(), z) - event_sum(std.log(), z)


def reconstruction_term(score, z: Float[Tensor, "batch *event"], noise: Float[Tensor, "batch *event"]) -> PerSample:
    """log q(z_ε|z_0) − log p(z_0|z_ε), nats, at the one z_ε = α_ε z + σ_ε noise."""
    eps, _ = score.sde.endpoints(z)
    error = denoising_error(law_score(score), z, eps, noise)
    return error - 0.5 * squared_norm(noise) - event_sum(score.sde.log_alpha(eps), z)


def denoising_error(
    score, z: Tensor, t: Tensor, noise: Tensor, rate: Tensor | None = None, process: ForwardProcess = LINEAR
) -> Tensor:
    """D(t) = ½‖e + σ_t s_θ(z_t, t)‖², (B,), entries weighted by ``rate`` where given.

    Of the linear diffusion e is the noise; of others, see :class:`~research.forward.base.Noised`.
    """
    return _error_at(score, process.at(score.sde, z, t, noise), t, rate)


def _error_at(score, noised: Noised, t: PerSample, rate: Tensor | None) -> PerSample:
    """:func:`denoising_error` of latents that are noised already."""
    return _error(noised.target + expand_like(noised.kernel.sigma, noised.z_t) * score(noised.z_t, t), rate)


def _error(difference: Tensor, rate: Tensor | None) -> PerSample:
    """½‖difference‖²; entries weighted by ``rate`` where given."""
    return 0.5 * squared_norm(difference if rate is None else expand_like(rate, difference).sqrt() * difference)


def nelbo(
    model: ForwardINDM,
    x: Float[Tensor, "batch *event"],
    *,
    times: int = 1,
    ancestral: int | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> indm.NELBO:
    """As :func:`indm.nelbo`, of a model with a forward process; ``reference`` where that is linear, given its code."""
    n, process = len(x), model.process
    parts = [n] if reference is None else [n // 2, n - n // 2]  # control_variate needs independent halves
    clocks = [stratified_times(model.sde, rows, times, generator, x.device) for rows in parts]
    clock = torch.cat(clocks, 1).to(x.dtype)
    noises = [randn_like(x, generator) for _ in range(times + 1)]
    z, log_det = model.encode(x, generator=generator)
    score, kl, _ = encoded(model.score, process, z, generator)
    sde, pairs = score.sde, list(zip(clock, noises, strict=False))
    if ancestral is None:
        places = ((t, process.at(sde, z, t, noise)) for t, noise in pairs)
        drawn = [_error_at(score, noised, t, noised.kernel.rate) for t, noised in places]
    else:
        steps = [(_step_around(sde, t, ancestral), noise) for t, noise in pairs]
        pairs = [(t, noise) for (t, _), noise in steps]
        drawn = [step_divergence(score, z, t, s, noise, process) for (t, s), noise in steps]
        drawn = [divergence * ancestral / sde.log_snr_range() for divergence in drawn]  # per unit of the clock
    errors, end = torch.stack(drawn), process.moments(sde, z, sde.endpoints(z)[1])
    if reference is not None:
        excess = torch.stack([reference.excess(sde, z, t, noise) for t, noise in pairs])
        errors = errors - control_variate(errors, sde.place(sde.clock(clock)), excess)[0]
    return indm.NELBO(
        flow=kl - log_det,
        score=sde.log_snr_range() * errors.mean(0),
        constant=constant_term(sde, z, end=end),
        prior=prior_term(sde, z, end),
        reconstruction=reconstruction_term(score, z, noises[-1]),
        log_q=constant_log_q(model, x) if log_q is None else log_q,
        dims=event_size(x),
    )


def step_divergence(
    score, z: Batch, t: PerSample, s: PerSample, noise: Batch, process: ForwardProcess = LINEAR
) -> PerSample:
    r"""KL(q(z_s|z_t, z_0) ‖ p(z_s|z_t)) of one step from t to s < t of :class:`indm.sampling.Ancestral`, nats, (B,).

    q is the Gaussian of :meth:`~research.forward.base.ForwardProcess.correlation`. For the linear diffusion it is
    :math:`(e^{\Delta\Lambda} - 1)` times the denoising error at t.
    """
    (mean_t, std_t), (mean_s, std_s) = (process.moments(score.sde, z, time) for time in (t, s))
    std_t, std_s, kappa = expand_like(std_t, z), expand_like(std_s, z), process.correlation(score.sde, z, t, s)
    step_mean, step_std = ancestral_step(score, mean_t + std_t * noise, t, s)
    spread = std_s * (1 - kappa**2).sqrt() / step_std
    offset = (mean_s + std_s * kappa * noise - step_mean) / step_std
    return 0.5 * (spread**2 - 1 - 2 * spread.log() + offset**2).flatten(1).sum(1)


def _step_around(sde: LinearSDE, t: PerSample, steps: int) -> list[PerSample]:
    """The ends, the later one first, of those of ``steps`` steps of equal length on the clock in which ``t`` lie."""
    start, end = sde.clock_span()
    number = (sde.place(sde.clock(t)) * steps).floor().clamp(0, steps - 1)
    clocks = [start + (number + i) / steps * (end - start) for i in (1, 0)]
    return [sde.time(-clock).clamp(sde.eps, sde.T).to(t) for clock in clocks]


@torch.no_grad()
def irreducible_gap(
    model, x: Float[Tensor, "batch *event"], *, times: int = 1, generator: torch.Generator | None = None
) -> PerSample:
    r"""A draw of how far the bound is from −log p even at the best scores, nats, (B,); 0 of a process with one score,
    given its code where it has one: then KL(q(c) ‖ p(c)) comes beside it.

    .. math:: \tfrac12\int E\|e - n/R + \sigma(s_\theta - \hat s)\|^2\,d\Lambda,
              \qquad -\sigma(s_\theta - \hat s) \approx E[e - n/R | z_t]

    With scores that are not the best ones it is too large.

    Args:
        model: one with a forward process.
        x: data in model units.
        times: evaluations for each sample.
        generator: of times and noise.
    """
    sde, process = model.sde, model.process
    if process.is_tight:
        return x.new_zeros(len(x))
    z, _ = model.encode(x, generator=generator)
    draws = []
    for t in stratified_times(sde, len(x), times, generator, x.device).to(x.dtype):
        noised = process.at(sde, z, t, randn_like(x, generator))
        drift, law = model.score.both(noised.z_t, t)
        excess = noised.target - noised.noise + expand_like(noised.kernel.sigma, z) * (drift - law)
        draws.append(_error(excess, noised.kernel.rate))
    return sde.log_snr_range() * torch.stack(draws).mean(0)


@as_objective(build=build_forward)
def mle(
    model: ForwardINDM, x: Tensor, *, eps: float | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Flow, scores and process all minimise the bound, with reconstruction; as :func:`indm.mle_loss`.

    The score of the law of z_t, where it is another one than that of the drift, is fitted in the same pass.
    """
    process = model.process
    check_truncation(model, eps)
    eps = model.sde.truncation(eps)
    z, log_det = model.encode(x, generator=generator)
    t, length = extended_clock(model.sde, len(z), eps, generator=generator, device=z.device)
    noise = randn_like(z, generator)
    score, kl, _ = encoded(model.score, process, z, generator)
    sde = score.sde
    at_end, t = t <= eps, t.to(z.dtype)  # the reconstruction: each entry once
    noised = process.at(sde, z, t, noise)
    rate = torch.where(expand_like(at_end, noised.kernel.rate), 1.0, noised.kernel.rate)
    if process.is_tight:
        error, fit = _error_at(score, noised, t, rate), torch.zeros_like(log_det)
    else:
        chosen = strata(len(z), generator=generator, device=z.device) < FITTED_SHARE
        error, fit = _two_errors(score, noised, t, rate, at_end, chosen)
    end, start = process.moments(sde, z, sde.endpoints(z)[1]), z.new_full((1,), eps)
    denoising, prior = length * error, prior_term(sde, z, end)
    constants = constant_term(sde, z, start, end) - event_sum(sde.log_alpha(start) + 0.5, z)
    bound = (denoising + kl - log_det + prior + constants).mean()
    loss = (bound + length * fit.mean()) / event_size(z)
    terms = {"nelbo": bound, "flow": kl - log_det, "denoising": denoising, "prior": prior}
    return loss, {name: term.detach().mean() for name, term in terms.items()}


def _two_errors(
    score, noised: Noised, t: PerSample, rate: Tensor, at_end: PerSample, chosen: Tensor
) -> tuple[PerSample, PerSample]:
    """D of s_θ, where ``at_end`` of ŝ, and the denoising error by which ŝ is fitted, in one pass of the network.

    Fitting ŝ must move nothing but the network. So ŝ is fitted in the ``chosen`` rows, in which no gradient reaches z_t
    and the SDE through the network, and in the other rows that of D is larger by as much as they are fewer. ŝ has one
    row's weight in each of its rows: with as much weight as s_θ in all, the noise of its few rows would keep the shared
    network from learning s_θ.
    """
    weight = chosen.logical_not().to(noised.z_t) / (1 - FITTED_SHARE)
    sigma = expand_like(noised.kernel.sigma, noised.z_t)
    of_drift, of_law = (sigma * s for s in score.both(noised.z_t, t, weight=weight))
    difference = torch.where(expand_like(at_end, noised.z_t), noised.noise + of_law, noised.target + of_drift)
    fit = _error(noised.noise.detach() + of_law, rate.detach())
    return _error(difference, rate), torch.where(chosen, fit, torch.zeros_like(fit))
