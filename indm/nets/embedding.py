"""The embedding of the noise level."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.tensors import PerSample

LONGEST_PERIOD = 32.0
SHORTEST_PERIOD = 1.0


class LevelEmbedding(nn.Module):
    r"""Sinusoidal features of the log noise level :math:`\log(\sigma/\alpha)`, then a two-layer MLP.

    The periods go down geometrically from 32, more than twice the range [−8, 6] of the level, so that no two levels
    look alike, to 1, at which a difference of 0.05 turns the phase by a twentieth of a circle. Shorter periods would
    make the network less smooth in the level.

    Args:
        width: the length of the embedding.
        frequencies: the number of periods, at least 2; each gives a sine and a cosine.

    Source: the sinusoidal embedding of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, of another variable.
    """

    def __init__(self, width: int, frequencies: int = 32):
        super().__init__()
        self.width, self.frequencies = width, frequencies
        ladder = torch.linspace(math.log(1 / LONGEST_PERIOD), math.log(1 / SHORTEST_PERIOD), frequencies).exp()
        self.register_buffer("omega", 2 * math.pi * ladder, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def features(self, level: PerSample) -> Float[Tensor, "batch features"]:
        """sin and cos of ω level over all frequencies ω, (B, 2 · frequencies)."""
        phase = level[:, None] * self.omega
        return torch.cat((phase.sin(), phase.cos()), dim=1)

    def forward(self, level: PerSample) -> Float[Tensor, "batch width"]:
        return self.mlp(self.features(level))
