"""The score network: a backbone that predicts the noise, and the SDE that turns the noise into a score."""

from jaxtyping import Float
from torch import Tensor, nn

from indm.sde import LinearSDE, expand_like


class ScoreModel(nn.Module):
    r"""s_θ(z_t, t) = −ε̂/σ_t, with ε̂ = backbone(z_t/√(α_t² + σ_t²), log(σ_t/α_t)).

    Args:
        backbone: (z (B, *event), c (B,)) → (B, *event), where c is the log noise level.
        sde: the linear SDE on the latent, kept as ``.sde``.

    The input has unit variance for latents of unit variance under every SDE (under VP the factor is 1).
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        super().__init__()
        self.backbone, self.sde = backbone, sde

    def forward(self, z_t: Float[Tensor, "batch *event"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch *event"]:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        noise = self.backbone(z_t / expand_like((alpha**2 + sigma**2).sqrt(), z_t), sigma.log() - alpha.log())
        return -noise.to(z_t.dtype) / expand_like(sigma, z_t)


def denoise(score: nn.Module, z_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """E[z_0 | z_t] = (z_t + σ_t² s)/α_t, by Tweedie's formula; ``s`` is the score there, where it is known already."""
    s = score(z_t, t) if s is None else s
    alpha, sigma = expand_like(score.sde.alpha(t), z_t), expand_like(score.sde.sigma(t), z_t)
    return (z_t + sigma**2 * s) / alpha
