"""A convolutional score network of signals on a circle, or of images on a torus."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.embedding import LevelEmbedding
from indm.tensors import zeroed

SAME = {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}
CONVOLUTIONS = {1: partial(nn.Conv1d, **SAME), 2: partial(nn.Conv2d, **SAME)}


class Block(nn.Module):
    """h + W₂ silu((1 + a) · W₁ norm(h) + b), W₁ and W₂ convolutions on a circle or torus, a and b
    by the level of noise.
    """

    def __init__(self, width: int, dilation: int, dimensions: int = 1):
        super().__init__()
        convolution = CONVOLUTIONS[dimensions]
        self.norm, self.level = nn.GroupNorm(4, width), nn.Linear(width, 2 * width)
        self.inner, self.outer = (convolution(width, width, dilation=dilation) for _ in range(2))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        level = self.level(embedding).reshape(*embedding.shape[:1], -1, *[1] * (h.ndim - 2))
        scale, shift = level.chunk(2, 1)
        return h + self.outer(F.silu(torch.addcmul(shift, 1 + scale, self.inner(self.norm(h)))))


class Convolutions(nn.Module):
    """(z (B, points), level) → (B, points), 0 at first: residual convolutions on a circle, in
    places of a few points.

    Args:
        width: channels, also of the level's embedding.
        fold: neighbouring points that are the channels of one place.
        dilations: of the blocks.
    """

    def __init__(self, width: int = 64, fold: int = 4, dilations: tuple[int, ...] = (1, 2, 4)):
        super().__init__()
        convolution = CONVOLUTIONS[1]
        self.fold, self.embedding = fold, LevelEmbedding(width)
        self.input, self.output = convolution(fold, width), zeroed(convolution(width, fold))
        self.blocks = nn.ModuleList(Block(width, dilation) for dilation in dilations)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        embedding, h = self.embedding(level), self.input(z.unflatten(1, (-1, self.fold)).mT)
        for block in self.blocks:
            h = block(h, embedding)
        return self.output(F.silu(h)).mT.flatten(1)


class TorusConvolutions(nn.Module):
    """(z (B, C, H, W), level) → (B, C, H, W), 0 at first: residual convolutions on a torus, in
    places of 2×2 pixels.

    Args:
        channels: of an image.
        width: channels of the network, also of the level's embedding.
        dilations: of the blocks.
    """

    def __init__(self, channels: int = 1, width: int = 64, dilations: tuple[int, ...] = (1, 2, 1)):
        super().__init__()
        convolution, folded = CONVOLUTIONS[2], 4 * channels
        self.embedding = LevelEmbedding(width)
        self.input, self.output = convolution(folded, width), zeroed(convolution(width, folded))
        self.blocks = nn.ModuleList(Block(width, dilation, 2) for dilation in dilations)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        embedding, h = self.embedding(level), self.input(F.pixel_unshuffle(z, 2))
        for block in self.blocks:
            h = block(h, embedding)
        return F.pixel_shuffle(self.output(F.silu(h)), 2)
