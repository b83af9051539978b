"""The backbone that predicts nothing."""

import torch
from torch import nn

from indm.tensors import Batch, PerSample


class Zero(nn.Module):
    """(z, level) → 0: with :class:`~indm.score.ScoreModel` the exact score of latents distributed as N(0, I).

    It makes an INDM a plain normalizing flow: as the latents stay N(0, I) at all times, the NELBO is the flow's own
    −log N(h(x); 0, I) − log|det ∂h/∂x|, up to what truncation at ε and the prior at T leave.

    Example: behind it the bound of a model is the likelihood of its flow, here of z = 2x.

        >>> import indm
        >>> tables = {"flow": {"name": "actnorm", "channels": 2}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> _ = model.flow.log_scale.data.fill_(0.6931)  # log 2
        >>> round(model.log_prob(torch.zeros(1, 2)).item(), 3)  # of N(0, I/4): log(4/2π)
        -0.452
    """

    is_smooth = True  # in the level

    def forward(self, z: Batch, level: PerSample) -> Batch:
        return torch.zeros_like(z)
