"""A transformer of patches, and an MLP-mixer of patches."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.embedding import ConditionOfImages, LevelEmbedding, seen, with_waves
from indm.nets.unet import attend
from indm.tensors import PerSample, zeroed

MIXING = ("attention", "mlp")
Tokens = Float[Tensor, "batch tokens width"]


class SelfAttention(nn.Module):
    """Every token takes a mean of what all tokens offer, in ``heads`` ways at once."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, h: Tokens) -> Tokens:
        parts = self.query_key_value(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(attend(*parts).transpose(1, 2).flatten(2))


class TokenMixing(nn.Module):
    """An MLP over the tokens, the same for every feature: each place has weights of its own."""

    def __init__(self, tokens: int):
        super().__init__()
        self.mlp = feed_forward(tokens, 2 * tokens)

    def forward(self, h: Tokens) -> Tokens:
        return self.mlp(h.transpose(1, 2)).transpose(1, 2)


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class DiTBlock(nn.Module):
    """h + gate · mix(norm(h)), then h + gate · MLP(norm(h)); the level scales and shifts what is normed.

    The gates are linear in the level's embedding and start at 0, so that a block starts as the identity.
    """

    def __init__(self, mix: nn.Module, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mix, self.mlp = mix, feed_forward(width, 4 * width)
        self.level = zeroed(nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tokens, embedding: Float[Tensor, "batch width"]) -> Tokens:
        scale, shift, gate, scale2, shift2, gate2 = self.level(embedding)[:, None].chunk(6, dim=2)
        h = h + gate * self.dropout(self.mix(torch.addcmul(shift, 1 + scale, self.norm(h))))
        return h + gate2 * self.dropout(self.mlp(torch.addcmul(shift2, 1 + scale2, self.norm(h))))


class DiT(nn.Module):
    """Transformer (z, level) → an output of z's shape for images, whose tokens are patches; it starts at zero output.

    Sides that ``patch`` does not divide are padded with zeros at the bottom and the right, and the output is cropped.
    The cost of a step grows with the number of tokens, that is with 1/``patch``²; attention, with its square.

    Args:
        shape: (channels, height, width) of an image.
        width: features of a token, a multiple of ``heads``.
        depth: blocks.
        heads: of the attention.
        patch: side of a square of pixels that is one token.
        mixing: "attention", or "mlp": an MLP over the tokens in its place, an MLP-mixer. It is as quick on few tokens.
        dropout: probability of dropping a feature that a block adds, in training.
        fourier: frequencies k of sin(πkz) and cos(πkz), which the input gets beside z, see :class:`indm.UNet`.
        condition: shape of what it sees of a condition, :attr:`indm.conditions.Condition.seen_shape`; () for none.

    Raises:
        ValueError: ``shape`` is not an image, ``width`` no multiple of ``heads``, or an option is out of its range.

    Example:
        >>> net = DiT((3, 10, 9), width=16, depth=1, heads=2, patch=4)
        >>> net(torch.randn(5, 3, 10, 9), torch.zeros(5)).shape
        torch.Size([5, 3, 10, 9])

    Source: Peebles, Xie 2023, https://arxiv.org/abs/2212.09748; of the mixing by MLPs Tolstikhin et al. 2021,
    https://arxiv.org/abs/2105.01601.
    """

    is_smooth = True  # in the level, by its embedding

    def __init__(
        self,
        shape,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        patch: int = 2,
        mixing: str = "attention",
        dropout: float = 0.0,
        fourier: tuple[float, ...] = (),
        condition: tuple[int, ...] = (),
    ):
        super().__init__()
        self.shape, self.width, self.depth, self.heads, self.patch = tuple(shape), width, depth, heads, patch
        self.mixing, self.dropout, self.fourier, self.condition = mixing, dropout, tuple(fourier), tuple(condition)
        if len(self.shape) != 3:
            raise ValueError(f"shape must be (channels, height, width), got {self.shape}; use the MLP for vectors")
        if min(width, depth, heads, patch) < 1:
            raise ValueError(
                f"width, depth, heads and patch must be at least 1, got {width}, {depth}, {heads} and {patch}"
            )
        if mixing not in MIXING:
            raise ValueError(f"mixing must be one of {', '.join(MIXING)}, got {mixing!r}")
        if mixing == "attention" and width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}; {heads * 32} will do")
        channels, height, columns = self.shape
        self.grid = -(-height // patch), -(-columns // patch)
        tokens = math.prod(self.grid)
        self.embedding = LevelEmbedding(width)
        self.input = nn.Conv2d(channels * (1 + 2 * len(self.fourier)), width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(
            DiTBlock(SelfAttention(width, heads) if mixing == "attention" else TokenMixing(tokens), width, dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.level = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, channels * patch**2))
        if self.condition:
            self.condition_input = ConditionOfImages(self.condition, width, width, patch)

    def forward(
        self, z: Float[Tensor, "batch channels height width"], level: PerSample, c: Tensor | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """The output for images ``z`` at log noise levels ``level`` = log(σ/α), (B,), and conditions ``c``."""
        height, columns = z.shape[2:]
        embedding = self.embedding(level)
        z = with_waves(z, self.fourier)
        h = self.input(F.pad(z, (0, -columns % self.patch, 0, -height % self.patch)))
        if (c := seen(self, c, z)) is not None:
            embedding, h = self.condition_input(c, embedding, h)
        h = (h.flatten(2).transpose(1, 2) + self.place).to(z.dtype)  # the sum over blocks is not rounded to bfloat16
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.level(embedding)[:, None].chunk(2, dim=2)
        patches = self.output(torch.addcmul(shift, 1 + scale, self.norm(h))).transpose(1, 2)
        padded = tuple(self.patch * side for side in self.grid)
        return F.fold(patches, padded, self.patch, stride=self.patch)[:, :, :height, :columns]
