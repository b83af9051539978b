"""The score s_θ(z_t, t) from a backbone and an SDE, and what follows from it: the probability flow
and the denoiser.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import check_call, require
from indm.gaussian import STANDARD
from indm.nets.base import Backbone, declared
from indm.protocols import Score, Smooth, TakesCondition
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, double, expand_like


class ScoreModel(nn.Module):
    r"""s_θ(z_t, t) = −ε̂/σ_t, with ε̂ = σ_t/√(α_t² + σ_t²) · y + backbone(y, log(σ_t/α_t)), y =
    z_t/√(α_t² + σ_t²).

    Args:
        backbone: forward(z (B, *event), level (B,)) → (B, *event), see :mod:`indm.nets`; level is
            log(σ_t/α_t). One that sees a condition is forward(z, level, c), c what
            :class:`indm.conditions.Condition` shows networks.
        sde: the linear SDE on the latent, kept as ``.sde``.

    For latents of unit variance y has unit variance under every SDE (under VP it is z_t). A
    backbone that returns 0 gives the exact score of latents distributed as N(0, I), so it learns
    the difference from that.

    For another parameterization, such as v or data prediction, override ``forward`` and nothing
    else: it returns s_θ(z_t, t). Losses, likelihoods and samples all follow from it.

    Example: with a backbone that gives 0, the score of N(0, I), which is the law of z_t at all
    times under VP.

        >>> from indm.nets import Zero
        >>> from indm.sde import VPSDE
        >>> score = ScoreModel(Zero(), VPSDE())
        >>> z_t, t = torch.randn(3, 2), torch.tensor([0.01, 0.5, 1.0])
        >>> torch.allclose(score(z_t, t), -z_t, atol=1e-4)
        True
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        super().__init__()
        self.backbone: Any = backbone
        self.sde = sde
        check_call(backbone, "network", "z", "level", *(("c",) if self.takes_condition else ()))

    @property
    def is_smooth(self) -> bool:
        """Whether the backbone says that it varies slowly along its level."""
        return declared(self.backbone).is_smooth

    @property
    def takes_condition(self) -> bool:
        """Whether the backbone says that it takes a condition, as forward(z, level, c)."""
        return declared(self.backbone).takes_condition

    @property
    def base(self) -> Any:
        """The law of latents whose exact score the backbone adds to: its attribute ``base``, by
        default N(0, I).

        A subclass may set it to None. Its likelihood is then trained by the network's whole error,
        see :func:`indm.objective.mle_loss`.
        """
        return declared(self.backbone).base

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        standard, y, level = self._standard(z_t, t)
        noise = standard + called(self.backbone, y, level, c).to(z_t.dtype)
        return -noise / expand_like(self.sde.sigma(t), z_t)

    def _standard(self, z_t: Batch, t: PerSample) -> tuple[Batch, Batch, PerSample]:
        """The noise that N(0, I) expects at z_t, and what the backbone sees: z_t of unit variance,
        and its level.
        """
        sigma, std = self.sde.sigma(t), self.sde.marginal_std(t)
        y = z_t / expand_like(std, z_t)
        return expand_like(sigma / std, z_t) * y, y, -0.5 * self.sde.log_snr(t)


def called(network: Callable[..., Tensor], z: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
    """The output of a score or its backbone, which gets no c where there is none."""
    return network(z, t) if c is None else network(z, t, c)


def adds_output(score: Any) -> bool:
    """Whether ε̂ is the noise that N(0, I) expects plus the backbone's output: no subclass
    overrides ``forward``.
    """
    return isinstance(score, ScoreModel) and type(score).forward is ScoreModel.forward


def base_of(score: Score) -> Any:
    """The law of latents whose exact noise :func:`noise_parts` takes from that of ``score``; None
    where it takes none.

    It is :attr:`ScoreModel.base` where the backbone's output is added to that noise, and N(0, I)
    for a subclass with another parameterization.
    """
    if isinstance(score, GivenScore):
        base = base_of(score.score) if score.guidance == 1 else None
        return None if base is None else base.given(score.c)
    if not isinstance(score, ScoreModel) or score.base is None:
        return None
    return score.base if adds_output(score) else STANDARD


def noise_parts(
    score: Any, z_t: Batch, t: PerSample, c: Tensor | None = None
) -> tuple[Batch, Batch]:
    """ε̂ = −σ_t s_θ in two parts: the noise that the law of :func:`base_of` expects at z_t, and the
    rest.

    The rest is the network's output where that is added, and otherwise the difference.
    """
    if isinstance(score, GivenScore) and score.guidance == 1:
        return noise_parts(score.score, z_t, t, score.c)
    # guided away from a condition it is no longer the base and the network's output
    inner = score.score if isinstance(score, GivenScore) else score
    standard, y, level = inner._standard(z_t, t)
    if not adds_output(score):
        noise = -expand_like(score.sde.sigma(t), z_t) * called(score, z_t, t, c)
        return standard, noise - standard
    if score.base is STANDARD:
        return standard, called(score.backbone, y, level, c).to(z_t.dtype)
    beyond, added = score.backbone.noise_parts(y, level, c)
    return standard + beyond.to(z_t.dtype), added.to(z_t.dtype)


def has_kinks(score: Score) -> bool:
    """Whether a network of a score says by ``has_kinks`` that its slope in t jumps."""
    return any(part.has_kinks for part in backbones(score))


def is_smooth(score: Score) -> bool:
    """Whether a score and its networks, where they say anything, say that they vary slowly in t."""
    if isinstance(score, GivenScore):
        return is_smooth(score.score)
    said = [part.is_smooth for part in backbones(score)]
    if isinstance(score, Smooth):
        said.append(score.is_smooth)
    return bool(said) and all(said)


def backbones(score: Score) -> list[Backbone]:
    """The networks in a score that describe themselves."""
    return [part for part in score.modules() if isinstance(part, Backbone)]


def described(score: Score) -> Any:
    """The network of a score that can examine its own description on data, by ``examine``; None of
    others.
    """
    return next((part for part in backbones(score) if part.examine is not None), None)


class GivenScore(nn.Module):
    r"""s_θ(z_t, t | c) at given rows c, called like a score without a condition; with guidance w

    .. math:: s_\theta(z_t, t | c') + w\,(s_\theta(z_t, t | c) - s_\theta(z_t, t | c')).

    With w = 1 it is the model. For another w these are not the scores of one diffusing law: samples
    have no likelihood.

    Args:
        score: forward(z_t, t, c).
        c: what networks see of the condition, one row a sample.
        guidance: w. Where it is not 1 a call evaluates the score for both.
        away_from: c', alike; None hides it, so that guidance leads away from p(x).

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance",
    https://arxiv.org/abs/2207.12598.
    """

    def __init__(
        self, score: nn.Module, c: Tensor, guidance: float = 1.0, away_from: Tensor | None = None
    ):
        super().__init__()
        self.score, self.c, self.guidance, self.away_from = score, c, guidance, away_from

    @property
    def sde(self) -> LinearSDE:
        return self.score.sde

    @property
    def backbone(self) -> nn.Module:
        return self.score.backbone

    @property
    def context(self) -> tuple[Tensor, ...]:
        """See :func:`context_of`."""
        return (self.c,) if self.away_from is None else (self.c, self.away_from)

    def at(self, c: Tensor, *away_from: Tensor) -> "GivenScore":
        """The same score given other rows of :attr:`context`."""
        return GivenScore(self.score, c, self.guidance, *away_from)

    def forward(self, z_t: Batch, t: PerSample) -> Batch:
        if self.guidance == 1:
            return self.score(z_t, t, self.c)
        both = torch.cat(
            [self.c, torch.zeros_like(self.c) if self.away_from is None else self.away_from]
        )
        wanted, other = self.score(
            z_t.repeat(2, *(1 for _ in z_t.shape[1:])), t.repeat(2), both
        ).chunk(2)
        return other + self.guidance * (wanted - other)


def takes_condition(score: Score) -> bool:
    """Whether a score says by its attribute ``takes_condition`` that it is called as score(z_t, t,
    c).
    """
    return isinstance(score, TakesCondition) and score.takes_condition


def unguided(model: Any) -> Any:
    """``model``, of which a likelihood is asked; ValueError where it is guided, as no diffusion has
    those samples.
    """
    guidance = getattr(getattr(model, "score", None), "guidance", 1)
    require(guidance == 1, "guidance", guidance, "1 for a likelihood", "guided samples have none")
    return model


def context_of(score: Score) -> tuple[Tensor, ...]:
    """The rows of c that a score was given, for what solves a part of a batch by
    :func:`with_context`.
    """
    return score.context if isinstance(score, GivenScore) else ()


def with_context(score: Any, context: tuple[Tensor, ...]) -> Any:
    """``score`` at the rows ``context`` of :func:`context_of`."""
    return score.at(*context) if context else score


def score_for(backbone: nn.Module) -> type[ScoreModel]:
    """The score that goes with a network: its ``parameterization``, by default :class:`ScoreModel`."""
    kind = declared(backbone).parameterization or ScoreModel
    is_score = isinstance(kind, type) and issubclass(kind, ScoreModel)
    require(
        is_score,
        f"parameterization of {type(backbone).__name__}",
        kind,
        "a subclass of indm.ScoreModel",
    )
    return kind


def probability_flow(score: Score, clock: PerSample) -> Callable[[Tensor], Tensor]:
    r"""The probability flow at ``clock`` = −log SNR, for latents in the coordinate w = z_t/√(α_t² +
    σ_t²).

    .. math:: \frac{dw}{d\Lambda} = \tfrac12 q\,(\hat\epsilon - q\,w), \qquad
              q = \sigma/\sqrt{\alpha^2+\sigma^2}, \quad \hat\epsilon = -\sigma\,s_\theta(z_t, t)

    It is the same for every linear SDE, except for the ends of the clock, and 0 where latents are
    N(0, I).
    """
    sde = score.sde

    def velocity(w: Batch) -> Batch:
        t = sde.time(-double(clock)).clamp(sde.eps, sde.T).to(w)
        sigma, std = expand_like(sde.sigma(t), w), expand_like(sde.marginal_std(t), w)
        q = sigma / std
        return -0.5 * q * (sigma * score(std * w, t) + q * w)

    return velocity


def closed_flow(
    score: Any, clock: PerSample
) -> Callable[[Tensor], tuple[Tensor, PerSample]] | None:
    r""":func:`probability_flow` with its exact divergence (B,), without gradients; None where no
    closed form is known.

    A :class:`ScoreModel` has ε̂ = q w + output, so that the velocity is ½ q output. Its backbone
    may have ``with_divergence(w, level)``, which also takes c where there is one: the output and
    its divergence.
    """
    given: tuple[Tensor, ...] = ()
    if isinstance(score, GivenScore) and score.guidance == 1:
        score, given = score.score, (score.c,)
    closed = declared(score.backbone).with_divergence if adds_output(score) else None
    if closed is None:
        return None

    def velocity(w: Batch) -> tuple[Batch, PerSample]:
        half_q = 0.5 * clock.sigmoid().sqrt().to(w)
        output, divergence = closed(w, (0.5 * clock).to(w), *given)
        return expand_like(half_q, w) * output, half_q * divergence

    return velocity


def denoise(score: Score, z_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """E[z_0 | z_t] = (z_t + σ_t² s)/α_t, by Tweedie's formula; ``s`` is the score s_θ(z_t, t) if
    already known.

    Example: for z_0 ~ N(0, I) under VP it is α_t z_t.

        >>> from indm.nets import Zero
        >>> from indm.sde import VPSDE
        >>> score, z_t, t = ScoreModel(Zero(), VPSDE()), torch.randn(3, 2), torch.tensor([0.01, 0.2, 0.5])
        >>> torch.allclose(denoise(score, z_t, t), score.sde.alpha(t)[:, None] * z_t, atol=1e-4)
        True
    """
    s = score(z_t, t) if s is None else s
    alpha, sigma = expand_like(score.sde.alpha(t), z_t), expand_like(score.sde.sigma(t), z_t)
    return (z_t + sigma**2 * s) / alpha
