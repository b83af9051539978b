"""Scores of forward processes: two by one network, and the score and SDE at codes."""

import copy

import torch
from torch import Tensor, nn

import indm
from indm.score import GivenScore, called
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, expand_like, gradient_weighted
from research.forward.base import ForwardProcess


class TwoScores(indm.ScoreModel):
    r"""Two scores by one network: s_θ of the generative SDE, and ŝ of the law of z_t, which differ where z_t given z_0
    follow no linear SDE (:mod:`research.forward.base`).

    .. math:: dz = (fz - g^2 s_\theta)\,dt + g\,d\bar w, \qquad
              dz = \big(fz - \tfrac12 g^2 (2s_\theta - \hat s)\big)\,dt

    With q = σ/√(α² + σ²) and outputs o₁ and o₂ of the network, −σŝ is q y + o₁ as of one score, and −σs_θ is that plus
    q o₂: the processes here start as the linear diffusion, so that the two scores agree near ε.

    A call gives s_θ; :attr:`of_law` is ŝ, and :attr:`of_flow` is 2s_θ − ŝ, which has the place of the score in the
    probability flow. With them all that is written for one score is as it was.

    Args:
        backbone: a network for twice the channels, axis 1, which sees z twice; see :class:`indm.ScoreModel`.
        sde: the linear SDE on the latent, kept as ``.sde``.

    Example: a backbone that gives other numbers for the two.

        >>> from indm.sde import VPSDE
        >>> class Sine(nn.Module):
        ...     def forward(self, z, level):
        ...         return torch.cat([z.chunk(2, 1)[0].sin(), z.chunk(2, 1)[1].cos()], 1)
        >>> scores, z_t, t = TwoScores(Sine(), indm.VPSDE()), torch.randn(3, 2), torch.full((3,), 0.5)
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


def law_score(score: nn.Module) -> nn.Module:
    """The score of the law of z_t: ``score`` itself, unless it is one of two."""
    return getattr(score, "of_law", score)


def flow_score(score: nn.Module) -> nn.Module:
    """What has the place of the score in the probability flow: ``score`` itself, unless it is one of two."""
    return getattr(score, "of_flow", score)


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
