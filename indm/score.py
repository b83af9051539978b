"""The score s_θ(z_t, t) from a backbone and an SDE, and what follows from it: the probability flow and the denoiser."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.sde.linear import VESDE, VPSDE, LinearSDE, SubVPSDE
from indm.tensors import Batch, PerSample, expand_like

LARGEST_LEVEL = 999  # the published level at T under VP, the last of 1000 discrete steps counted from 0


class ScoreModel(nn.Module):
    r"""s_θ(z_t, t) = −ε̂/σ_t, with ε̂ = σ_t/√(α_t² + σ_t²) · y + backbone(y, log(σ_t/α_t)), y = z_t/√(α_t² + σ_t²).

    Args:
        backbone: forward(z (B, *event), level (B,)) → (B, *event), see :mod:`indm.nets`; level is log(σ_t/α_t).
        sde: the linear SDE on the latent, kept as ``.sde``.

    For latents of unit variance y has unit variance under every SDE (under VP it is z_t). A backbone that returns 0
    gives the exact score of latents distributed as N(0, I), so it learns the difference from that.
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        super().__init__()
        self.backbone, self.sde = backbone, sde

    def forward(self, z_t: Batch, t: PerSample) -> Batch:
        sigma, std = self.sde.sigma(t), self.sde.marginal_std(t)
        y = z_t / expand_like(std, z_t)
        noise = expand_like(sigma / std, z_t) * y + self.backbone(y, -0.5 * self.sde.log_snr(t)).to(z_t.dtype)
        return -noise / expand_like(sigma, z_t)


class PublishedScore(ScoreModel):
    r"""The score as Song et al. publish it: −backbone(z_t, 999 t)/σ_t under VP and sub-VP, backbone(z_t, σ_t) under VE.

    Args:
        backbone: :class:`~indm.nets.NCSNpp`, or another with forward(z (B, *event), level (B,)) → (B, *event).
        sde: VP, sub-VP or VE, kept as ``.sde``.

    The published σ_t of VP and sub-VP comes from 1 − e^{−B} by subtraction, which in single precision is 0.6 % off at
    t = 1e-5 under β = 0.1 … 20. The networks were trained and evaluated with it, so :meth:`published_sigma` repeats it.

    Raises:
        ValueError: another SDE, or one whose ε is so small that the published σ_ε is 0.

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs", https://arxiv.org/abs/2011.13456.
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        if not isinstance(sde, VPSDE | SubVPSDE | VESDE):
            raise ValueError(
                f"sde must be vp, subvp or ve for a published network, got {type(sde).__name__}; "
                "the unet and the mlp take any"
            )
        super().__init__(backbone, sde)
        eps = torch.tensor(sde.eps, device="cpu")  # has a value even while the model is built on the meta device
        if not self.published_sigma(eps) > 0:
            raise ValueError(f"sde.eps must leave noise in single precision, got {sde.eps}; 1e-5 is usual")

    def published_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """σ_t as the original computes it."""
        if isinstance(self.sde, VESDE):
            return self.sde.sigma_min * (self.sde.sigma_max / self.sde.sigma_min) ** t
        decay = (2 * self.sde.log_alpha(t)).double().exp().to(t.dtype)  # rounded alike on all machines
        variance = 1 - decay
        return variance if isinstance(self.sde, SubVPSDE) else variance.sqrt()

    def forward(self, z_t: Batch, t: PerSample) -> Batch:
        sigma = self.published_sigma(t)
        if isinstance(self.sde, VESDE):
            return self.backbone(z_t, sigma).to(z_t.dtype)
        return -self.backbone(z_t, LARGEST_LEVEL * t).to(z_t.dtype) / expand_like(sigma, z_t)


def score_for(backbone: nn.Module) -> type[ScoreModel]:
    """The score that goes with a network: the one that its ``parameterization`` names, :class:`ScoreModel` by default.

    Raises:
        ValueError: it names none.
    """
    name = getattr(backbone, "parameterization", "noise")
    if name not in PARAMETERIZATIONS:
        known = ", ".join(map(repr, PARAMETERIZATIONS))
        raise ValueError(f"parameterization of {type(backbone).__name__} must be one of {known}, got {name!r}")
    return PARAMETERIZATIONS[name]


# How a network says what it sees and gives: its attribute ``parameterization``.
PARAMETERIZATIONS: dict[str, type[ScoreModel]] = {"noise": ScoreModel, "published": PublishedScore}


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
        t = sde.time(-clock.double()).clamp(sde.eps, sde.T).to(w.dtype)
        sigma, std = expand_like(sde.sigma(t), w), expand_like(sde.marginal_std(t), w)
        q = sigma / std
        return -0.5 * expand_like(sde.clock_rate(t), w) * q * (sigma * score(std * w, t) + q * w)

    return velocity


def denoise(score: nn.Module, z_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """E[z_0 | z_t] = (z_t + σ_t² s)/α_t, by Tweedie's formula; ``s`` is the score s_θ(z_t, t) if already known."""
    s = score(z_t, t) if s is None else s
    alpha, sigma = expand_like(score.sde.alpha(t), z_t), expand_like(score.sde.sigma(t), z_t)
    return (z_t + sigma**2 * s) / alpha
