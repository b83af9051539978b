"""A residual multilayer perceptron for vectors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.base import Backbone
from indm.nets.embedding import ConditionEmbedding, LevelEmbedding, seen
from indm.tensors import Batch, PerSample, zeroed


class MLPBlock(nn.Module):
    """h ↦ h + W₂ silu((1 + a) · W₁ norm(h) + b) with a and b linear in the embedding (FiLM)."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.level = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(width, width)

    def forward(
        self, h: Float[Tensor, "batch width"], embedding: Float[Tensor, "batch width"]
    ) -> Tensor:
        scale, shift = self.level(embedding).chunk(2, dim=1)
        return h + self.outer(
            self.dropout(F.silu(torch.addcmul(shift, 1 + scale, self.inner(self.norm(h)))))
        )


class MLP(Backbone):
    """A residual MLP, (z, level) → an output of z's shape, which is zero before training.

    Args:
        shape: the event shape, any number of axes.
        width: hidden width, also of the noise level's embedding.
        depth: number of residual blocks.
        fourier: the first layer also sees sin(ωz) and cos(ωz) of every entry for ω = 2ᵏπ/2, k <
            ``fourier``, because a plain MLP is slow to learn sharp edges.
        condition: :attr:`indm.conditions.Condition.seen_shape` of its condition; () for none. It is
            in the embedding and in the first layer.
        condition_blocks: of :class:`indm.nets.embedding.ConditionEmbedding`; None for a condition
            in the first layer alone.
        dropout: share of the hidden units of blocks that are dropped in training.

    Example: it starts at zero, for events of any shape.

        >>> net = MLP((2, 3), width=8)
        >>> output = net(torch.randn(5, 2, 3), torch.zeros(5))
        >>> output.shape, output.abs().max().item()
        (torch.Size([5, 2, 3]), 0.0)
    """

    is_smooth = True  # in the level, by its embedding
    shortest_period = 1.0  # shortest period of the level's embedding

    def __init__(
        self,
        shape,
        width: int = 256,
        depth: int = 4,
        fourier: int = 4,
        condition: tuple[int, ...] = (),
        condition_blocks: int | None = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.width, self.depth, self.fourier = width, depth, fourier
        self.condition_blocks, self.dropout = condition_blocks, dropout
        d = math.prod(self.shape)
        self.register_buffer("omega", math.pi / 2 * 2.0 ** torch.arange(fourier), persistent=False)
        self.embedding = LevelEmbedding(width, shortest=self.shortest_period)
        self.input = nn.Linear(d * (1 + 2 * fourier), width)
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(depth))
        self.output = zeroed(nn.Linear(width, d))
        self.condition, self.takes_condition = tuple(condition), bool(condition)
        if self.condition:
            if condition_blocks is not None:
                self.condition_embedding = ConditionEmbedding(
                    self.condition, width, condition_blocks, dropout
                )
            self.condition_input = nn.Linear(math.prod(self.condition), width, bias=False)

    def features(self, z: Batch) -> Float[Tensor, "batch features"]:
        """The entries of z, and their sines and cosines, (B, d (1 + 2 · fourier))."""
        z = z.flatten(1)
        phase = (z[:, None] * self.omega[:, None]).flatten(1)
        return torch.cat((z, phase.sin(), phase.cos()), dim=1)

    def forward(self, z: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        """The output for inputs ``z`` at levels log(σ/α), (B,), and conditions ``c``."""
        embedding, h = self.embedding(level), self.input(self.features(z))
        if (c := seen(self, c, z)) is not None:
            h = h + self.condition_input(c.flatten(1))
            if self.condition_blocks is not None:
                embedding = embedding + self.condition_embedding(c)
        for block in self.blocks:
            h = block(h, embedding)
        return self.output(F.silu(h)).reshape(z.shape)


class Zero(Backbone):
    """The network (z, level) → 0, which gives the exact score of latents N(0, I).

    With it an INDM is a plain normalizing flow, whose NELBO is −log N(h(x); 0, I) − log|det ∂h/∂x|,
    up to ε and T.

    Example: the likelihood of a model is that of its flow, here of z = 2x.

        >>> import indm
        >>> model = indm.build_model({"flow": {"name": "actnorm", "channels": 2}, "sde": "vp", "net": "zero"}, (2,))
        >>> _ = model.flow.log_scale.data.fill_(0.6931)  # log 2
        >>> round(model.log_prob(torch.zeros(1, 2)).item(), 3)  # of N(0, I/4): log(4/2π)
        -0.452
    """

    is_smooth = True  # in the level

    def forward(self, z: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        return torch.zeros_like(z)
