"""The U-Net of the DDPM++ family."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import check_counts
from indm.nets.base import Backbone
from indm.nets.embedding import ConditionOfImages, LevelEmbedding, seen, with_waves
from indm.tensors import PerSample, zeroed

FEW_TOKENS = 128  # tokens up to which the formula is the quicker one in bfloat16 on a CPU


def attend(
    query: Float[Tensor, "batch heads tokens features"],
    key: Float[Tensor, "batch heads tokens features"],
    value: Float[Tensor, "batch heads tokens features"],
) -> Float[Tensor, "batch heads tokens features"]:
    """softmax(query keyᵀ/√features) value.

    PyTorch's fused kernel is slow for few tokens in bfloat16 on CPUs. The formula is written out
    for them.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or query.shape[2] > FEW_TOKENS:
        return F.scaled_dot_product_attention(query, key, value)
    scores = query @ (key / math.sqrt(key.shape[3])).transpose(2, 3)
    return scores.float().softmax(3).to(value.dtype) @ value


SKIP_SCALE = math.sqrt(0.5)
SMALLEST_SIDE = 8


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide ``channels``, at most 32, of at least 4 channels."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 4 * g))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """The residual block (shortcut(r(h)) + conv(silu(norm(conv(r(silu(norm(h)))) + level)))) · scale.

    ``resample`` is r, the identity if None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        scale: float = SKIP_SCALE,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        self.scale = scale
        self.norm1 = group_norm(inputs)
        self.resample = nn.Identity() if resample is None else resample
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.level = nn.Linear(embedding, outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and resample is None
            else nn.Conv2d(inputs, outputs, 1)
        )

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        update = (
            self.conv1(self.resample(F.silu(self.norm1(h))))
            + self.level(embedding)[:, :, None, None]
        )
        update = self.conv2(self.dropout(F.silu(self.norm2(update))))
        return (self.shortcut(self.resample(h)) + update) * self.scale


class Attention(nn.Module):
    """Self-attention over the pixels of an image, with one head.

    It computes (h + project(attend(norm(h)))) · scale.
    """

    def __init__(self, channels: int, scale: float = SKIP_SCALE):
        super().__init__()
        self.scale = scale
        self.norm = group_norm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.project = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        pixels = self.norm(h).flatten(2).transpose(1, 2)
        query, key, value = self.query_key_value(pixels)[:, None].chunk(3, dim=-1)
        mixed = self.project(attend(query, key, value)[:, 0])
        return (h + mixed.transpose(1, 2).reshape(h.shape)) * self.scale


class Stage(nn.Module):
    """A residual block and, where asked for, self-attention after it."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool):
        super().__init__()
        self.residual = ResBlock(inputs, outputs, embedding, dropout)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(h, embedding))


def inputs_down(channels: int, widths: Sequence[int], blocks: int) -> list[list[int]]:
    """The input channels of each block on the way down, by level."""
    before = [channels, *widths[:-1]]
    return [[b] + [w] * (blocks - 1) for b, w in zip(before, widths, strict=True)]


def inputs_up(widths: Sequence[int], blocks: int) -> list[list[int]]:
    """The input channels of each block on the way up, by level, with one skip connection each."""
    below = [*widths[1:], widths[-1]]
    return [[b + w] + [2 * w] * (blocks - 1) for b, w in zip(below, widths, strict=True)]


class UNet(Backbone):
    """A U-Net for images, (z, level) → an output of z's shape, which is zero before training.

    Each level halves the side by average pooling. Images whose sides do not halve evenly are padded
    with zeros at the bottom and the right. Activations have the memory format of the weights:
    ``channels_last`` is faster on GPUs.

    Args:
        shape: (channels, height, width) of an image, any number of channels, height and width at
            least 8.
        channels: feature channels of the first level; the noise level's embedding has four times as
            many.
        multipliers: for each level, its feature channels as a multiple of ``channels``.
        blocks: residual blocks of a level, on each way.
        attention: feature-map heights, after padding, whose blocks are followed by self-attention.
            The middle, at the lowest resolution, always has one.
        dropout: probability of dropping a feature inside the residual blocks, in training.
        fourier: frequencies k of sin(πkz) and cos(πkz), further inputs. For L grey levels in
            [−1, 1] choose L/2 and L, as in "Variational Diffusion Models",
            https://arxiv.org/abs/2107.00630.
        condition: :attr:`indm.conditions.Condition.seen_shape` of its condition; () for none.

    Raises:
        ValueError: ``shape`` is not an image with sides of at least 8, or there is no block.

    Source: DDPM++ of Song et al. 2021, https://arxiv.org/abs/2011.13456. Here each block has one
    skip connection, and resampling between blocks has no weights.

    Example: sides that do not halve evenly are padded.

        >>> net = UNet((3, 10, 9), channels=8)
        >>> output = net(torch.randn(2, 3, 10, 9), torch.zeros(2))
        >>> output.shape, output.abs().max().item()
        (torch.Size([2, 3, 10, 9]), 0.0)
    """

    is_smooth = True  # in the level, by its embedding

    def __init__(
        self,
        shape,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (8,),
        dropout: float = 0.0,
        fourier: tuple[float, ...] = (),
        condition: tuple[int, ...] = (),
    ):
        super().__init__()
        self.shape, self.multipliers = tuple(shape), tuple(multipliers)
        self.channels, self.blocks, self.dropout = channels, blocks, dropout
        self.attention, self.fourier = tuple(attention), tuple(fourier)
        self.condition, self.takes_condition = tuple(condition), bool(condition)
        self._check()
        widths = [channels * m for m in self.multipliers]
        embedding = 4 * channels

        def stages(k: int, inputs: Sequence[int], attentions: Sequence[bool]) -> nn.ModuleList:
            pairs = zip(inputs, attentions, strict=True)
            return nn.ModuleList(Stage(i, widths[k], embedding, dropout, a) for i, a in pairs)

        attends = [[height in self.attention] * blocks for height in self.heights]
        down, up = inputs_down(channels, widths, blocks), inputs_up(widths, blocks)
        self.embedding = LevelEmbedding(embedding)
        self.stem = nn.Conv2d(self.shape[0] * (1 + 2 * len(self.fourier)), channels, 3, padding=1)
        self.encoder = nn.ModuleList(map(stages, range(len(widths)), down, attends))
        # registered before the middle, which is drawn first: weights of a seed depend on the order
        self.decoder = nn.ModuleList()
        self.middle = stages(-1, [widths[-1]] * 2, [True, False])
        for k in reversed(range(len(widths))):
            self.decoder.append(stages(k, up[k], attends[k]))
        self.norm = group_norm(widths[0])
        self.output = zeroed(nn.Conv2d(widths[0], self.shape[0], 3, padding=1))
        if self.condition:
            self.condition_input = ConditionOfImages(self.condition, embedding, channels)

    def _check(self) -> None:
        """ValueError for a shape that is no image, or for no block."""
        check_counts(blocks=self.blocks)
        if len(self.shape) != 3 or min(self.shape[1:]) < SMALLEST_SIDE:
            sides = f"(channels, height, width) with height and width at least {SMALLEST_SIDE}"
            raise ValueError(f"shape must be {sides}, got {self.shape}; the MLP takes vectors")

    @property
    def multiple(self) -> int:
        """The number that divides the sides of padded images."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def heights(self) -> list[int]:
        """The height of the feature maps of each level, from the finest."""
        padded = -(-self.shape[1] // self.multiple) * self.multiple
        return [padded // 2**k for k in range(len(self.multipliers))]

    def forward(
        self,
        z: Float[Tensor, "batch channels height width"],
        level: PerSample,
        c: Tensor | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The output for images ``z`` at levels log(σ/α), (B,), and conditions ``c``."""
        height, width = z.shape[2:]
        embedding = self.embedding(level)
        z = with_waves(z, self.fourier)
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        h = self.stem(F.pad(z, padding).contiguous())
        c = seen(self, c, z)
        if c is not None:
            embedding, h = self.condition_input(c, embedding, h)
        skips = []
        for i, stages in enumerate(self.encoder):
            if i > 0:
                h = F.avg_pool2d(h, 2)
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(h, embedding)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for i, stages in enumerate(self.decoder):
            if i > 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(torch.cat((h, skips.pop()), dim=1), embedding)
        return self.output(F.silu(self.norm(h)))[:, :, :height, :width]
