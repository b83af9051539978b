"""The embeddings of the noise level and of a condition."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.tensors import PerSample, zeroed

LONGEST_PERIOD = 32.0


class LevelEmbedding(nn.Module):
    r"""Sinusoidal features of the log noise level log(σ/α), then a two-layer MLP.

    The periods of the ``frequencies`` fall geometrically from 32, more than twice the range [−8, 6]
    of the level, to ``shortest``. Shorter periods make the network less smooth in the level, so
    that its ODE needs more steps.

    Source: the sinusoidal embedding of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    def __init__(self, width: int, frequencies: int = 32, shortest: float = 1.0):
        super().__init__()
        self.width, self.frequencies, self.shortest = width, frequencies, shortest
        ladder = torch.linspace(
            math.log(1 / LONGEST_PERIOD), math.log(1 / shortest), frequencies
        ).exp()
        self.register_buffer("omega", 2 * math.pi * ladder, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def features(self, level: PerSample) -> Float[Tensor, "batch features"]:
        """sin and cos of ω level over all frequencies ω, (B, 2 · frequencies)."""
        phase = level[:, None] * self.omega
        return torch.cat((phase.sin(), phase.cos()), dim=1)

    def forward(self, level: PerSample) -> Float[Tensor, "batch width"]:
        return self.mlp(self.features(level))


def with_waves(z: Tensor, frequencies: Sequence[float]) -> Tensor:
    """z (B, C, …) with sin(πkz) and cos(πkz) for each k of ``frequencies`` as further channels."""
    angles = [math.pi * k * z for k in frequencies]
    return torch.cat([z, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))], 1)


class ConditionEmbedding(nn.Module):
    """The embedding of c (B, *seen_shape), by ``blocks`` residual blocks; it starts at 0."""

    def __init__(
        self, seen_shape: tuple[int, ...], width: int, blocks: int = 0, dropout: float = 0.0
    ):
        super().__init__()
        residual = [EmbeddingBlock(width, dropout) for _ in range(blocks)]
        norm = [nn.LayerNorm(width)] if blocks else []
        layers = [
            nn.Linear(math.prod(seen_shape), width),
            *residual,
            *norm,
            nn.SiLU(),
            zeroed(nn.Linear(width, width)),
        ]
        self.mlp = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, c: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch width"]:
        return self.mlp(c)


class EmbeddingBlock(nn.Module):
    """h ↦ h + W₂ silu(W₁ norm(h)), with dropout before W₂."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        first = nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()
        self.mlp = nn.Sequential(*first, nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return h + self.mlp(h)


class ConditionOfImages(nn.Module):
    """The input of c to a network of images.

    A vector is added to the level's embedding, of ``width`` numbers. An image is added to the first
    features, of ``channels`` channels, by a 3×3 convolution, or for ``patch`` above 1 by one of
    squares of that side.
    """

    def __init__(self, seen_shape: tuple[int, ...], width: int, channels: int, patch: int = 1):
        super().__init__()
        self.is_image, self.patch = len(seen_shape) == 3, patch
        if self.is_image:
            kernel, padding = (3, 1) if patch == 1 else (patch, 0)
            self.layer: nn.Module = zeroed(
                nn.Conv2d(seen_shape[0], channels, kernel, patch, padding)
            )
        else:
            self.layer = ConditionEmbedding(seen_shape, width)

    def forward(
        self,
        c: Tensor,
        embedding: Float[Tensor, "batch features"],
        h: Float[Tensor, "batch channels rows columns"],
    ) -> tuple[Tensor, Tensor]:
        """The embedding and the first features, which may be padded, with c."""
        if not self.is_image:
            return embedding + self.layer(c), h
        padding = (0, self.patch * h.shape[3] - c.shape[3], 0, self.patch * h.shape[2] - c.shape[2])
        return embedding, h + self.layer(F.pad(c, padding))


def seen(network: nn.Module, c: Tensor | None, z: Tensor) -> Tensor | None:
    """The condition that ``network`` sees: ``c``, zeros if it is hidden, None without a condition."""
    shape = tuple(network.condition)
    if not shape and c is None:
        return None
    c = z.new_zeros(len(z), *shape) if c is None else c.to(z.dtype)
    if not shape or tuple(c.shape) != (len(z), *shape):
        name, wanted = type(network).__name__, (len(z), *shape)
        raise ValueError(
            f"c must have shape {wanted}, as {name} has condition {shape}, got {tuple(c.shape)}"
        )
    return c
