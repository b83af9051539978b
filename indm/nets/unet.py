"""The U-Net of the DDPM++ family."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import require
from indm.nets.base import Backbone
from indm.nets.embedding import ConditionOfImages, LevelEmbedding, seen, with_waves
from indm.tensors import PerSample, zeroed

FEW_TOKENS = 128  # tokens up to which the formula is the quicker one in bfloat16 on a CPU


def attend(
    query: Float[Tensor, "batch heads tokens features"],
    key: Float[Tensor, "batch heads tokens features"],
    value: Float[Tensor, "batch heads tokens features"],
) -> Float[Tensor, "batch heads tokens features"]:
    """softmax(query keyᵀ/√features) value; written out for few tokens in bfloat16 on CPUs, where
    the fused one is slow.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or query.shape[2] > FEW_TOKENS:
        return F.scaled_dot_product_attention(query, key, value)
    scores = query @ (key / math.sqrt(key.shape[3])).transpose(2, 3)
    return scores.float().softmax(3).to(value.dtype) @ value


SKIP_SCALE = math.sqrt(0.5)
SMALLEST_SIDE = 8


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups, at most 32, that divide ``channels`` and hold 4 channels or
    more each.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 4 * g))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Residual block (shortcut(r(h)) + conv(silu(norm(conv(r(silu(norm(h)))) + level)))) · scale; r
    may resample.
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
    """Self-attention over the pixels of one image, one head: (h + project(attend(norm(h)))) ·
    scale.
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


class UNet(Backbone):
    """U-Net (z, level) → an output of z's shape for images; its output convolution, and so its
    output, starts at zero.

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
            The middle,
            at the lowest resolution, always has one.
        dropout: probability of dropping a feature inside the residual blocks, in training.
        fourier: frequencies k of sin(πkz) and cos(πkz), which the input gets beside z: for L grey
            levels in [−1, 1] choose L/2 and L, as in "Variational Diffusion Models",
            https://arxiv.org/abs/2107.00630.
        condition: shape of what it sees of a condition,
            :attr:`indm.conditions.Condition.seen_shape`; () for none.

    Raises:
        ValueError: ``shape`` is not an image with sides of at least 8, or there is no level or no
            block.

    Source: DDPM++ of Song et al. 2021, https://arxiv.org/abs/2011.13456, with one skip per block
    and resampling without weights between the blocks.

    Example: sides that do not halve evenly are padded; the output has the shape of z and starts at
    zero.

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
        self.shape, self.multipliers, self.attention = (
            tuple(shape),
            tuple(multipliers),
            tuple(attention),
        )
        self.channels, self.blocks, self.dropout, self.fourier = (
            channels,
            blocks,
            dropout,
            tuple(fourier),
        )
        if len(self.shape) != 3 or min(self.shape[1:]) < SMALLEST_SIDE:
            sides = f"(channels, height, width) with height and width at least {SMALLEST_SIDE}"
            raise ValueError(f"shape must be {sides}, got {self.shape}; the MLP takes vectors")
        require(
            len(self.multipliers) > 0,
            "multipliers",
            multipliers,
            "one or more, one for each resolution",
        )
        require(blocks >= 1, "blocks", blocks, "at least 1")
        resolutions = len(self.multipliers)
        self.multiple = 2 ** (resolutions - 1)
        widths = [channels * m for m in self.multipliers]
        height = -(-self.shape[1] // self.multiple) * self.multiple
        attends = [height // 2**k in self.attention for k in range(resolutions)]
        embedding = 4 * channels

        def stage(inputs: int, k: int, attention: bool) -> Stage:
            return Stage(inputs, widths[k], embedding, dropout, attention)

        self.embedding = LevelEmbedding(embedding)
        self.stem = nn.Conv2d(self.shape[0] * (1 + 2 * len(self.fourier)), channels, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        width = channels
        for k in range(resolutions):
            inputs = [width] + [widths[k]] * (blocks - 1)
            self.encoder.append(nn.ModuleList(stage(i, k, attends[k]) for i in inputs))
            width = widths[k]
        self.middle = nn.ModuleList(
            [stage(width, resolutions - 1, True), stage(width, resolutions - 1, False)]
        )
        for k in reversed(range(resolutions)):
            inputs = [width + widths[k]] + [2 * widths[k]] * (blocks - 1)
            self.decoder.append(nn.ModuleList(stage(i, k, attends[k]) for i in inputs))
            width = widths[k]
        self.norm = group_norm(width)
        self.output = zeroed(nn.Conv2d(width, self.shape[0], 3, padding=1))
        self.condition, self.takes_condition = tuple(condition), bool(condition)
        if self.condition:
            self.condition_input = ConditionOfImages(self.condition, embedding, channels)

    def forward(
        self,
        z: Float[Tensor, "batch channels height width"],
        level: PerSample,
        c: Tensor | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The output for images ``z`` at log noise levels ``level`` = log(σ/α), (B,), and
        conditions ``c``.
        """
        height, width = z.shape[2:]
        embedding = self.embedding(level)
        z = with_waves(z, self.fourier)
        h = self.stem(
            F.pad(z, (0, -width % self.multiple, 0, -height % self.multiple)).contiguous()
        )
        if (c := seen(self, c, z)) is not None:
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
