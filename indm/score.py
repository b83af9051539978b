"""The score s_θ(z_t, t) from a backbone and an SDE, and what follows from it: the probability flow and the denoiser."""

import copy
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from indm.forward.base import LINEAR, ForwardProcess
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, double, expand_like, gradient_weighted


class ScoreModel(nn.Module):
    r"""s_θ(z_t, t) = −ε̂/σ_t, with ε̂ = σ_t/√(α_t² + σ_t²) · y + backbone(y, log(σ_t/α_t)), y = z_t/√(α_t² + σ_t²).

    Args:
        backbone: forward(z (B, *event), level (B,)) → (B, *event), see :mod:`indm.nets`; level is log(σ_t/α_t). One
            that sees a condition is forward(z, level, c), c what :class:`indm.conditions.Condition` shows networks.
        sde: the linear SDE on the latent, kept as ``.sde``.

    For latents of unit variance y has unit variance under every SDE (under VP it is z_t). A backbone that returns 0
    gives the exact score of latents distributed as N(0, I), so it learns the difference from that.

    Example: with a backbone that gives 0, the score of N(0, I), which is the law of z_t at all times under VP.

        >>> from indm.nets import Zero
        >>> from indm.sde import VPSDE
        >>> score = ScoreModel(Zero(), VPSDE())
        >>> z_t, t = torch.randn(3, 2), torch.tensor([0.01, 0.5, 1.0])
        >>> torch.allclose(score(z_t, t), -z_t, atol=1e-4)
        True
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        super().__init__()
        self.backbone, self.sde = backbone, sde

    @property
    def is_smooth(self) -> bool:
        """Whether the backbone says that it varies slowly along its level, without ripples of an embedding."""
        return getattr(self.backbone, "is_smooth", False)

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        sigma, std = self.sde.sigma(t), self.sde.marginal_std(t)
        y = z_t / expand_like(std, z_t)
        output = called(self.backbone, y, -0.5 * self.sde.log_snr(t), c)
        noise = expand_like(sigma / std, z_t) * y + output.to(z_t.dtype)
        return -noise / expand_like(sigma, z_t)


def called(network: nn.Module, z: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
    """The output of a score or its backbone, which gets no c where there is none."""
    return network(z, t) if c is None else network(z, t, c)


class TwoScores(ScoreModel):
    r"""Two scores by one network: s_θ of the generative SDE, and ŝ of the law of z_t, which differ where z_t given z_0
    follow no linear SDE (:mod:`indm.forward`).

    .. math:: dz = (fz - g^2 s_\theta)\,dt + g\,d\bar w, \qquad
              dz = \big(fz - \tfrac12 g^2 (2s_\theta - \hat s)\big)\,dt

    With q = σ/√(α² + σ²) and outputs o₁ and o₂ of the network, −σŝ is q y + o₁ as of one score, and −σs_θ is that plus
    q o₂: the processes here start as the linear diffusion, so that the two scores agree near ε.

    A call gives s_θ; :attr:`of_law` is ŝ, and :attr:`of_flow` is 2s_θ − ŝ, which has the place of the score in the
    probability flow. With them all that is written for one score is as it was.

    Args:
        backbone: a network for twice the channels, axis 1, which sees z twice; see :class:`ScoreModel`.
        sde: the linear SDE on the latent, kept as ``.sde``.

    Example: a backbone that gives other numbers for the two.

        >>> from indm.sde import VPSDE
        >>> class Sine(nn.Module):
        ...     def forward(self, z, level):
        ...         return torch.cat([z.chunk(2, 1)[0].sin(), z.chunk(2, 1)[1].cos()], 1)
        >>> scores, z_t, t = TwoScores(Sine(), VPSDE()), torch.randn(3, 2), torch.full((3,), 0.5)
        >>> s, law = scores.both(z_t, t)
        >>> torch.equal(scores(z_t, t), s), torch.allclose(scores.of_flow(z_t, t), 2 * s - law, atol=1e-5)
        (True, True)
    """

    heads = 2

    def both(
        self, z_t: Batch, t: PerSample, c: Tensor | None = None, weight: PerSample | None = None
    ) -> tuple[Batch, Batch]:
        """s_θ and ŝ; a row's ``weight`` is that of the gradient which reaches z_t and the SDE through −σs_θ and −σŝ."""
        sigma, std = expand_like(self.sde.sigma(t), z_t), expand_like(self.sde.marginal_std(t), z_t)
        y, q = z_t / std, sigma / std
        if weight is not None:
            y, q = gradient_weighted(y, weight), gradient_weighted(q, weight)
        outputs = called(self.backbone, torch.cat([y, y], 1), -0.5 * self.sde.log_snr(t), c).to(z_t.dtype).chunk(2, 1)
        noise = q * y + outputs[0]
        return -(noise + q * outputs[1]) / sigma, -noise / sigma

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        return self.both(z_t, t, c)[0]

    @property
    def of_law(self) -> nn.Module:
        """ŝ, the score of the law of z_t: for E[z_0|z_ε], Langevin steps and ∇log p_t."""
        return _Combined(self, 0.0, 1.0)

    @property
    def of_flow(self) -> nn.Module:
        """2s_θ − ŝ: with it in the place of the score, the probability flow has the marginals of the generative SDE."""
        return _Combined(self, 2.0, -1.0)


class _Combined(nn.Module):
    """a s_θ + b ŝ, used like a score."""

    def __init__(self, scores: TwoScores, a: float, b: float):
        super().__init__()
        self.scores, self.weights = scores, (a, b)

    @property
    def sde(self) -> LinearSDE:
        return self.scores.sde

    @property
    def backbone(self) -> nn.Module:
        return self.scores.backbone

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        first, second = self.scores.both(z_t, t, c)
        return self.weights[0] * first + self.weights[1] * second


def is_smooth(score: nn.Module) -> bool:
    """Whether a score is known to vary slowly along the log-SNR clock, so that its ODE takes few steps."""
    parts = [part for part in score.modules() if isinstance(part, ScoreModel)]
    return bool(parts) and all(part.is_smooth for part in parts)


def may_ripple(score: nn.Module) -> bool:
    """Whether a score has a network that is not known to be smooth, so that few equal steps may miss its ripples."""
    return any(isinstance(part, ScoreModel) and not part.is_smooth for part in score.modules())


def law_score(score: nn.Module) -> nn.Module:
    """The score of the law of z_t: ``score`` itself, unless it is one of two."""
    return getattr(score, "of_law", score)


def flow_score(score: nn.Module) -> nn.Module:
    """What has the place of the score in the probability flow: ``score`` itself, unless it is one of two."""
    return getattr(score, "of_flow", score)


class GivenScore(nn.Module):
    r"""s_θ(z_t, t | c) at given rows c, called like a score without a condition; with guidance w

    .. math:: s_\theta(z_t, t | c') + w\,(s_\theta(z_t, t | c) - s_\theta(z_t, t | c')).

    With w = 1 it is the model. For another w these are not the scores of one diffusing law: samples have no likelihood.

    Args:
        score: forward(z_t, t, c).
        c: what networks see of the condition, one row a sample.
        guidance: w. Where it is not 1 a call evaluates the score for both.
        away_from: c', alike; None hides it, so that guidance leads away from p(x).

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598.
    """

    def __init__(self, score: nn.Module, c: Tensor, guidance: float = 1.0, away_from: Tensor | None = None):
        super().__init__()
        self.score, self.c, self.guidance, self.away_from = score, c, guidance, away_from

    @property
    def sde(self) -> LinearSDE:
        """The linear SDE on the latent."""
        return self.score.sde

    @property
    def backbone(self) -> nn.Module:
        """The network of the score."""
        return self.score.backbone

    @property
    def of_law(self) -> "GivenScore":
        """See :func:`law_score`."""
        return self._of(law_score(self.score))

    @property
    def of_flow(self) -> "GivenScore":
        """See :func:`flow_score`."""
        return self._of(flow_score(self.score))

    def _of(self, score: nn.Module) -> "GivenScore":
        return self if score is self.score else GivenScore(score, self.c, self.guidance, self.away_from)

    def both(self, z_t: Batch, t: PerSample, *, weight: PerSample | None = None) -> tuple[Batch, Batch]:
        """s_θ and ŝ at the rows c, of :class:`TwoScores`; without guidance, which changes no forward process."""
        return self.score.both(z_t, t, self.c, weight)

    @property
    def context(self) -> tuple[Tensor, ...]:
        """See :func:`context_of`."""
        return (self.c,) if self.away_from is None else (self.c, self.away_from)

    def at(self, c: Tensor, *away_from: Tensor) -> "GivenScore":
        """The same at other rows, those of :attr:`context`."""
        return GivenScore(self.score, c, self.guidance, *away_from)

    def forward(self, z_t: Batch, t: PerSample) -> Batch:
        if self.guidance == 1:
            return self.score(z_t, t, self.c)
        both = torch.cat([self.c, torch.zeros_like(self.c) if self.away_from is None else self.away_from])
        wanted, other = self.score(z_t.repeat(2, *(1 for _ in z_t.shape[1:])), t.repeat(2), both).chunk(2)
        return other + self.guidance * (wanted - other)


class CodedScore(GivenScore):
    """The score and the SDE of a model whose forward process has a code, at given rows of it.

    Args:
        score: forward(z_t, t, c), with the SDE that the process changes.
        c: codes, one row a sample.
        process: the forward process.
    """

    def __init__(self, score: nn.Module, c: Tensor, process: ForwardProcess):
        view = copy.copy(score)
        view._modules = dict(score._modules)
        view.sde = process.sde_at(score.sde, c)
        super().__init__(view, c)
        self.whole, self.process = score, process

    def at(self, c: Tensor, *away_from: Tensor) -> "CodedScore":
        return CodedScore(self.whole, c, self.process)


def encoded(
    score: nn.Module, process: ForwardProcess, z: Batch, generator: torch.Generator | None = None
) -> tuple[nn.Module, PerSample, PerSample]:
    """The score at codes from q(c|z_0 = z), their KL from the prior, and log q(c|z_0)/p(c); both 0 without a code."""
    if not process.seen_shape:
        return score, z.new_zeros(len(z)), z.new_zeros(len(z))
    c, kl, ratio = process.encoded(z, generator)
    return CodedScore(score, c, process), kl, ratio


def with_drawn_code(
    score: nn.Module, process: ForwardProcess, z_T: Batch, generator: torch.Generator | None = None
) -> nn.Module:
    """The score at codes from their prior, one for each sample; ``score`` where there is no code."""
    return CodedScore(score, process.drawn(z_T, generator), process) if process.seen_shape else score


def takes_condition(score: nn.Module) -> bool:
    """Whether a score, or its network, has an argument c."""
    return "c" in inspect.signature(getattr(score, "backbone", score).forward).parameters


def context_of(score: nn.Module) -> tuple[Tensor, ...]:
    """The rows of c that a score was given, for what solves a part of a batch by :func:`with_context`."""
    return score.context if isinstance(score, GivenScore) else ()


def with_context(score: nn.Module, context: tuple[Tensor, ...]) -> nn.Module:
    """``score`` at the rows ``context`` of :func:`context_of`."""
    return score.at(*context) if context else score


def score_for(backbone: nn.Module, process: ForwardProcess = LINEAR) -> type[ScoreModel]:
    """The score that goes with a network: its ``parameterization``, by default :class:`ScoreModel`.

    Where the forward process needs two scores, it is :class:`TwoScores`.

    Raises:
        ValueError: its ``parameterization`` is no :class:`ScoreModel`, or another one where two are needed.
    """
    kind = getattr(backbone, "parameterization", ScoreModel)
    if not (isinstance(kind, type) and issubclass(kind, ScoreModel)):
        raise ValueError(
            f"parameterization of {type(backbone).__name__} must be a subclass of indm.ScoreModel, got {kind!r}"
        )
    if process.is_tight:
        return kind
    if kind is not ScoreModel:
        raise ValueError(
            f"forward {type(process).__name__} needs a net that gives noise, got {type(backbone).__name__} with "
            f"parameterization {kind.__name__}; unet and mlp do"
        )
    return TwoScores


def probability_flow(score: nn.Module, clock: PerSample) -> Callable[[Tensor], Tensor]:
    r"""The probability flow at ``clock`` = −log SNR, for latents in the coordinate w = z_t/√(α_t² + σ_t²).

    .. math:: \frac{dw}{d\Lambda} = \tfrac12 q\,(\hat\epsilon - q\,w), \qquad
              q = \sigma/\sqrt{\alpha^2+\sigma^2}, \quad \hat\epsilon = -\sigma\,s_\theta(z_t, t)

    This ODE is the same for every linear SDE, except for the ends of the clock. Its velocity is 0 where latents are
    N(0, I).

    Returns:
        The velocity as a function of w (B, *event).
    """
    sde = score.sde

    def velocity(w: Batch) -> Batch:
        t = sde.time(-double(clock)).clamp(sde.eps, sde.T).to(w)
        sigma, std = expand_like(sde.sigma(t), w), expand_like(sde.marginal_std(t), w)
        q = sigma / std
        return -0.5 * expand_like(sde.clock_rate(t), w) * q * (sigma * score(std * w, t) + q * w)

    return velocity


def denoise(score: nn.Module, z_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """E[z_0 | z_t] = (z_t + σ_t² s)/α_t, by Tweedie's formula; ``s`` is the score s_θ(z_t, t) if already known.

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
