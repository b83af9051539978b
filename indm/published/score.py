"""The score as Song et al. publish it, of the networks that see their level of noise and give their output."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.score import ScoreModel, called
from indm.sde.linear import VESDE, VPSDE, LinearSDE, SubVPSDE
from indm.tensors import Batch, PerSample, double, expand_like

LARGEST_LEVEL = 999  # the published level at T under VP, the last of 1000 discrete steps counted from 0


class PublishedScore(ScoreModel):
    r"""The score as Song et al. publish it: −backbone(z_t, 999 t)/σ_t under VP and sub-VP, backbone(z_t, σ_t) under VE.

    Args:
        backbone: :class:`~indm.NCSNpp`, or another with forward(z (B, *event), level (B,)) → (B, *event).
        sde: VP, sub-VP or VE, kept as ``.sde``.

    The published σ_t of VP and sub-VP comes from 1 − e^{−B} by subtraction, which in single precision is 0.6 % off at
    t = 1e-5 under β = 0.1 … 20. The networks were trained and evaluated with it, so :meth:`published_sigma` repeats it.

    Raises:
        ValueError: another SDE, or one whose ε is so small that the published σ_ε is 0.

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs", https://arxiv.org/abs/2011.13456.

    Example: a backbone that gives the level that it sees, 999 t under VP.

        >>> class Level(nn.Module):
        ...     def forward(self, z, level):
        ...         return level[:, None].expand_as(z)
        >>> sde, t = VPSDE(), torch.tensor([0.5])
        >>> score = PublishedScore(Level(), sde)(torch.zeros(1, 2), t)
        >>> torch.allclose(-sde.sigma(t) * score, torch.full((1, 2), 499.5), rtol=1e-4)
        True
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        if not isinstance(sde, VPSDE | SubVPSDE | VESDE):
            raise ValueError(
                f"sde must be vp, subvp or ve for a published network, got {type(sde).__name__}; unet and mlp take any"
            )
        super().__init__(backbone, sde)
        eps = torch.tensor(sde.eps, device="cpu")  # has a value even while the model is built on the meta device
        if not self.published_sigma(eps) > 0:
            raise ValueError(f"sde.eps must leave noise in single precision, got {sde.eps}; 1e-5 is usual")

    def published_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """σ_t as the original computes it."""
        if isinstance(self.sde, VESDE):
            return self.sde.sigma_min * (self.sde.sigma_max / self.sde.sigma_min) ** t
        decay = double(2 * self.sde.log_alpha(t)).exp().to(t)  # rounded alike on all machines
        variance = 1 - decay
        return variance if isinstance(self.sde, SubVPSDE) else variance.sqrt()

    @property
    def is_smooth(self) -> bool:
        """No: 999 t turns the phase of a sinusoid hundreds of times."""
        return False

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        sigma = self.published_sigma(t)
        if isinstance(self.sde, VESDE):
            return called(self.backbone, z_t, sigma, c).to(z_t.dtype)
        return -called(self.backbone, z_t, LARGEST_LEVEL * t, c).to(z_t.dtype) / expand_like(sigma, z_t)
