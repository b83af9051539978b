"""How a backbone is told the noise level."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

LONGEST_PERIOD = 32.0
SHORTEST_PERIOD = 1.0


class LevelEmbedding(nn.Module):
    r"""Sinusoidal features of the log noise level :math:`c = \log(\sigma/\alpha)`, then a two-layer MLP.

    The periods are a geometric ladder from 32, more than twice the range [−8, 6] of c so that no two levels
    look alike, down to 1, at which a difference of 0.05 turns the phase by a twentieth of a circle; nothing
    shorter, so that the network stays smooth in c.

    Args:
        width: the length of the embedding.
        frequencies: the number of rungs, at least 2; each gives a sine and a cosine.

    Source: the sinusoidal embedding of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, on another clock.
    """

    def __init__(self, width: int, frequencies: int = 32):
        super().__init__()
        self.width, self.frequencies = width, frequencies
        ladder = torch.linspace(math.log(1 / LONGEST_PERIOD), math.log(1 / SHORTEST_PERIOD), frequencies).exp()
        self.register_buffer("omega", 2 * math.pi * ladder, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def features(self, c: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """sin and cos of ω c over the ladder, (B, 2 · frequencies)."""
        phase = c[:, None] * self.omega
        return torch.cat((phase.sin(), phase.cos()), dim=1)

    def forward(self, c: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        return self.mlp(self.features(c))
