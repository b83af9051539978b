r"""The likelihood bound of a K-step model (DDPM), at the steps of its training."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.checks import check_word, require
from indm.dequantization import constant_log_q
from indm.foreign.check import denoiser_of
from indm.foreign.denoiser import STEP_VARIANCES, Denoiser
from indm.gaussian import GaussianReference
from indm.objective import NELBO, constant_term, mean_reconstruction, prior_term
from indm.protocols import Model
from indm.score import context_of, unguided
from indm.tensors import (
    Batch,
    PerSample,
    check_units,
    double,
    event_size,
    expand_like,
    randn_like,
    strata,
)

SAME = 1e-9  # difference of log(σ/α) up to which two levels are one step: they are rounded


def discrete_nelbo(
    model: Model,
    x: Float[Tensor, "batch *event"],
    *,
    c=None,
    times: int = 1,
    variance: str | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> NELBO:
    r"""An unbiased draw of the bound of a K-step model (DDPM) at random steps k, by sample.

    .. math:: -\log P \le E_q\Big[KL(q(x_{K-1}|x_0) \| \pi) + \sum_{k \ge 1} KL(q(x_{k-1}|x_k, x_0) \| p_\theta)
              - \log P(x|x_{k=0})\Big]

    The network is called at whole k only. The bound is that of samples drawn in all K steps. With
    the variance β_k its excess over −log p is small for an exact network; with the posterior's it
    can be half a nat a dimension.

    Args:
        model: what :func:`indm.from_denoiser` made with a table of steps.
        x: data in model units.
        c: the condition, of a model that has one.
        times: steps drawn for each sample, one in each of that many strata.
        variance: of p(x_{k−1}|x_k): "large" β_k, "small" as in q(x_{k−1}|x_k, x_0), or "learned" by
            the network; by default that of the model.
        reference: a Gaussian law of the data, see :func:`indm.likelihood.latent_reference`. Steps
            are then drawn as often as they count under it, so that the draw has less noise.
        log_q: as in :func:`indm.nelbo`.
        generator: for k and the noise.

    Returns:
        The terms of :func:`indm.nelbo`; ``score`` is the sum of the KL divergences.

    Raises:
        ValueError: the model has no steps, or no learned variance.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 5,
    https://arxiv.org/abs/2006.11239; Nichol & Dhariwal 2021, "Improved DDPM", eq. 15,
    https://arxiv.org/abs/2102.09672.

    Example: data N(0, I) and their exact network.

        >>> import indm
        >>> betas = torch.linspace(1e-3, 0.2, 100)
        >>> sigma = (1 - (1 - betas).cumprod(0)).sqrt()
        >>> model = indm.from_denoiser(lambda x, k: sigma[k.long()][:, None] * x, predicts="noise",
        ...                            path={"betas": betas}, shape=(2,))
        >>> x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> bound = discrete_nelbo(model, x, times=4, generator=torch.Generator().manual_seed(1)).nats.mean()
        >>> entropy = 1 + torch.tensor(2 * torch.pi).log()
        >>> 0 < (bound - entropy).item() < 0.2
        True
    """
    denoiser = denoiser_of(model)
    check_units(x)
    log_q = constant_log_q(model, x) if log_q is None else log_q
    model = unguided(model).given(c, len(x))
    sde, variance = model.score.sde, denoiser.variance if variance is None else variance
    check_word("variance", variance, STEP_VARIANCES)
    whole, start = denoiser.noises.whole_levels(), 0.5 * sde.clock_span()[0]
    # The first step leads to ε, which may lie between two k. The network is called at the start of
    # a step, which is a whole k.
    levels = nn.functional.pad(whole[whole > start + SAME], (1, 0), value=start).to(x.device)
    draws = _drawn_steps(_shares(levels, x, reference), len(x), times, generator)
    noises = [randn_like(x, generator) for _ in range(times + 1)]
    seen = context_of(model.score)
    terms = [
        divergence_of_step(denoiser, x, levels[k - 1], levels[k], noise, variance, *seen) / share
        for (k, share), noise in zip(draws, noises, strict=False)
    ]
    return NELBO(
        flow=x.new_zeros(len(x)),
        score=torch.stack(terms).mean(0),
        constant=constant_term(sde, x),
        prior=prior_term(sde, x),
        reconstruction=mean_reconstruction(model, x, noises[-1]),
        log_q=log_q,
        dims=event_size(x),
    )


def _shares(levels: Tensor, x: Batch, reference: GaussianReference | None) -> Tensor:
    """The probability of each step k ≥ 1, by its share of the bound under ``reference``."""
    law = GaussianReference.standard(x[:1]) if reference is None else reference
    variance, r = double(law.variance), (2 * levels[1:, None]).exp()
    clock = 2 * levels.diff()
    added = clock.expm1() * (variance / (variance + r)).mean(1)
    return 0.9 * added / added.sum() + 0.1 * clock / clock.sum()


def _drawn_steps(
    shares: Tensor, n: int, times: int, generator: torch.Generator | None
) -> list[tuple[Tensor, PerSample]]:
    """``times`` draws of n steps k ≥ 1 and their shares; a sample has one step in each stratum."""
    ends = shares.cumsum(0) / shares.sum()
    u = strata(n * times, generator=generator, device=shares.device).to(ends).sort().values
    parts = [part[torch.randperm(n, generator=generator, device=u.device)] for part in u.split(n)]
    numbers = [torch.searchsorted(ends, part).clamp_max(len(ends) - 1) for part in parts]
    return [(k + 1, shares[k]) for k in numbers]


def divergence_of_step(
    denoiser: Denoiser,
    x: Batch,
    before: PerSample,
    level: PerSample,
    noise: Batch,
    variance: str,
    *c: Tensor,
) -> PerSample:
    """KL(q(x_{k−1}|x_k, x_0) ‖ p_θ(x_{k−1}|x_k)), nats, (B,), at x_k = α_k x + σ_k noise.

    ``before`` and ``level`` are log(σ/α) of the steps k − 1 and k, (B,); ``variance`` names the
    variance of p_θ.
    """
    alpha2, sigma2 = (-2 * level).sigmoid(), (2 * level).sigmoid()
    ratio = alpha2 / (-2 * before).sigmoid()  # 1 − β_k
    beta = -torch.expm1((before - level) * 2) * sigma2  # β_k = σ_k² (1 − SNR_k/SNR_{k−1})
    small = beta * (2 * before).sigmoid() / sigma2
    alpha, sigma = (expand_like(v.sqrt().to(x), x) for v in (alpha2, sigma2))
    x_k, tau, f = denoiser.output(alpha * x + sigma * noise, level, *c)
    log_large, log_small = (expand_like(v.log().to(x), x) for v in (beta, small))
    own = _log_variance(f[:, x.shape[1] :], log_large, log_small, variance)
    predicted = denoiser.noise_from(denoiser.predicts, f, x_k, tau)
    off = expand_like((beta.square() / (sigma2 * ratio)).to(x), x) * (predicted - noise).square()
    gap = log_small - own  # log of the ratio of both variances
    return 0.5 * (gap.expm1() - gap + off * (-own).exp()).flatten(1).sum(1)


def _log_variance(given: Tensor, large: Tensor, small: Tensor, variance: str) -> Tensor:
    """log of the variance of p_θ; a learned one is between the logs of ``large`` and ``small``."""
    if variance == "large":
        return large
    if variance == "small":
        return small
    is_given = given.shape[1] > 0
    require(is_given, "variance", variance, "'large' or 'small', as the network gives none")
    share = 0.5 * (given + 1)
    return share * large + (1 - share) * small
