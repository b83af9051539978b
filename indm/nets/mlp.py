"""A residual multilayer perceptron for vectors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.embedding import LevelEmbedding


class MLPBlock(nn.Module):
    """h ↦ h + W₂ silu(W₁ silu(h) + level)."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.level = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return h + self.outer(F.silu(self.inner(F.silu(h)) + self.level(embedding)))


class MLP(nn.Module):
    def __init__(self, shape, width: int = 256, depth: int = 4, fourier: int = 0):
        super().__init__()
        self.shape = tuple(shape)
        self.width, self.depth, self.fourier = width, depth, fourier
        d = math.prod(self.shape)
        self.register_buffer("omega", math.pi / 2 * 2.0 ** torch.arange(fourier), persistent=False)
        self.embedding = LevelEmbedding(width)
        self.input = nn.Linear(d * (1 + 2 * fourier), width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.output = nn.Linear(width, d)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, z, c):
        embedding = self.embedding(c)
        x = z.flatten(1)
        if self.fourier:
            phase = (x[:, :, None] * self.omega).flatten(1)
            x = torch.cat((x, phase.sin(), phase.cos()), dim=1)
        h = self.input(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.output(F.silu(h)).reshape(z.shape)
