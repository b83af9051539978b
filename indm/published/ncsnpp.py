"""The published score networks DDPM++ and NCSN++, as one U-Net with named parts, and their score."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import check_counts, check_word
from indm.nets.base import Backbone
from indm.nets.embedding import ConditionOfImages, seen
from indm.nets.unet import SKIP_SCALE, Attention, ResBlock, group_norm
from indm.score import ScoreModel, called
from indm.sde.linear import VESDE, VPSDE, LinearSDE, SubVPSDE
from indm.tensors import Batch, PerSample, double, expand_like, zeroed

Images = Float[Tensor, "batch channels height width"]
TIME_EMBEDDINGS = ("positional", "fourier")
INPUT_PYRAMIDS = ("none", "residual")
# the published level at T under VP, the last of 1000 discrete steps counted from 0
LARGEST_LEVEL = 999
POSITIONAL_PERIOD = 10_000  # in radians, of the positional embedding
CAUTIOUS_GAIN = math.sqrt(0.1)  # gain of the 1×1 maps that start small in the original


class PublishedScore(ScoreModel):
    r"""The score as Song et al. publish it.

    It is −backbone(z_t, 999 t)/σ_t under VP and sub-VP, and backbone(z_t, σ_t) under VE.

    Args:
        backbone: :class:`~indm.NCSNpp`, or another network (z (B, *event), level (B,)) → (B,
            *event).
        sde: VP, sub-VP or VE, kept as ``.sde``. Its ε must leave noise in single precision; 1e-5 is
            usual.

    The published σ_t of VP and sub-VP is the root of 1 − e^{−B}, whose subtraction is 0.6 % off in
    single precision at t = 1e-5 under β = 0.1 … 20. The networks were trained and evaluated with
    it, so :meth:`published_sigma` repeats it.

    Raises:
        ValueError: another SDE.

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs",
    https://arxiv.org/abs/2011.13456.

    Example: a backbone that returns its level, 999 t under VP.

        >>> class Level(nn.Module):
        ...     def forward(self, z, level):
        ...         return level[:, None].expand_as(z)
        >>> sde, t = VPSDE(), torch.tensor([0.5])
        >>> score = PublishedScore(Level(), sde)(torch.zeros(1, 2), t)
        >>> torch.allclose(-sde.sigma(t) * score, torch.full((1, 2), 499.5), rtol=1e-4)
        True
    """

    def __init__(self, backbone: nn.Module, sde: LinearSDE):
        if not isinstance(sde, VPSDE | SubVPSDE | VESDE):
            got = f"{type(sde).__name__}; unet and mlp take any"
            raise ValueError(f"sde must be vp, subvp or ve for a published network, got {got}")
        super().__init__(backbone, sde)

    base = None  # the network gives the noise itself

    def published_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """σ_t as the original computes it."""
        if isinstance(self.sde, VESDE):
            return self.sde.sigma_min * (self.sde.sigma_max / self.sde.sigma_min) ** t
        decay = double(2 * self.sde.log_alpha(t)).exp().to(t)  # rounded alike on all machines
        variance = 1 - decay
        return variance if isinstance(self.sde, SubVPSDE) else variance.sqrt()

    @property
    def is_smooth(self) -> bool:
        """No: 999 t turns the phase of a sinusoid hundreds of times."""
        return False

    def forward(self, z_t: Batch, t: PerSample, c: Tensor | None = None) -> Batch:
        sigma = self.published_sigma(t)
        if isinstance(self.sde, VESDE):
            return called(self.backbone, z_t, sigma, c).to(z_t.dtype)
        noise = called(self.backbone, z_t, LARGEST_LEVEL * t, c).to(z_t.dtype)
        return -noise / expand_like(sigma, z_t)


class Positional(nn.Module):
    """sin and cos of ω · level for ``features``/2 frequencies ω from 1 down to 1/10000.

    An odd number of features has a zero at the end.
    """

    def __init__(self, features: int):
        super().__init__()
        half = features // 2
        omega = torch.exp(-math.log(POSITIONAL_PERIOD) / (half - 1) * torch.arange(half))
        self.features = features
        self.register_buffer("omega", omega, persistent=False)

    def forward(self, level: PerSample) -> Float[Tensor, "batch features"]:
        phase = level[:, None] * self.omega
        return F.pad(torch.cat((phase.sin(), phase.cos()), dim=1), (0, self.features % 2))


class Fourier(nn.Module):
    """sin and cos of 2π ω log level for ``features``/2 random frequencies ω ~ N(0, ``scale``²)."""

    def __init__(self, features: int, scale: float):
        super().__init__()
        self.register_buffer("omega", scale * torch.randn(features // 2))

    def forward(self, level: PerSample) -> Float[Tensor, "batch features"]:
        phase = 2 * math.pi * (level.log()[:, None] * self.omega)
        return torch.cat((phase.sin(), phase.cos()), dim=1)


def upfirdn2d(
    x: Float[Tensor, "batch channels height width"],
    kernel: Float[Tensor, "taps taps"],
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Images put through a resampling filter.

    It puts ``up`` − 1 zeros after every sample, pads with zeros, convolves with ``kernel``, and
    keeps every ``down``-th sample, in both directions.

    Args:
        x: images; every channel is filtered alone.
        kernel: of a true convolution: the result of a single point is the kernel itself.
        padding: zeros before and after, on both axes; negative numbers crop.

    Returns:
        Images of side (side · up + Σ padding − taps) // down + 1.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN",
    https://arxiv.org/abs/1912.04958.
    """
    batch, channels, *_ = x.shape
    x = x.flatten(0, 1)[:, None]
    if up > 1:
        x = F.conv_transpose2d(x, x.new_ones(1, 1, 1, 1), stride=up, output_padding=up - 1)
    x = F.pad(x, 2 * padding)
    x = F.conv2d(x, kernel.flip(0, 1).to(x.dtype)[None, None], stride=down)
    return x.unflatten(0, (batch, channels))[:, :, 0]


class Filter(nn.Module):
    """Base of the resampling layers: a low-pass filter that keeps means, or none."""

    def __init__(self, taps: tuple[float, ...] = ()):
        super().__init__()
        self.taps = tuple(taps)
        kernel = torch.outer(torch.tensor(self.taps), torch.tensor(self.taps)).float()
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    @staticmethod
    def margins(surplus: int) -> tuple[int, int]:
        """Half of ``surplus`` zeros before, and half of them after; an odd one goes before."""
        return (surplus + 1) // 2, surplus // 2


class Up(Filter):
    """(B, C, H, W) → (B, C, 2H, 2W); without a filter every pixel becomes 2×2."""

    def forward(self, h: Tensor) -> Tensor:
        if not self.taps:
            return F.interpolate(h, scale_factor=2.0, mode="nearest")
        before, after = self.margins(len(self.taps) - 2)
        return upfirdn2d(h, 4 * self.kernel, up=2, padding=(before + 1, after))


class Down(Filter):
    """(B, C, H, W) → (B, C, H/2, W/2); without a filter the means of 2×2 pixels."""

    def forward(self, h: Tensor) -> Tensor:
        if not self.taps:
            return F.avg_pool2d(h, 2)
        return upfirdn2d(h, self.kernel, down=2, padding=self.margins(len(self.taps) - 2))


class StridedConv(Filter):
    """(B, inputs, H, W) → (B, outputs, H/2, W/2): the filter, then a 3×3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...] = ()):
        super().__init__(taps)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        if not self.taps:
            return self.conv(F.pad(h, (0, 1, 0, 1)))
        return self.conv(upfirdn2d(h, self.kernel, padding=self.margins(len(self.taps))))


class Inlet(nn.Module):
    """A level of the input pyramid of features: image ← (conv(image) + h) · scale, also the new h."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...], scale: float):
        super().__init__()
        self.scale = scale
        self.down = StridedConv(inputs, outputs, taps)

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        return (self.down(image) + h) * self.scale


class NCSNpp(Backbone):
    """The U-Net of Song et al., (z, level) → an output of z's shape; it starts at zero output.

    Its :class:`~indm.PublishedScore` calls it with the level 999 t for the noise under VP and
    sub-VP, and with σ_t for the score under VE.

    - DDPM++ has all defaults; with VP or sub-VP.
    - NCSN++ has embedding="fourier", fir=(1, 3, 3, 1), input_pyramid="residual",
      scale_by_sigma=True and centered=False, on data in [0, 1]; with VE.
    - "deep" ones have blocks=8.

    Args:
        shape: (channels, height, width); both sides divisible by 2^(levels − 1).
        channels: feature channels of the first level, at least 4; the noise level's embedding has
            four times as many.
        multipliers: for each level, its feature channels as a multiple of ``channels``.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention: heights at which self-attention follows every block on the way down, and the last
            on the way up. The middle always has one.
        dropout: probability of dropping a feature inside the residual blocks, in training.
        embedding: of the noise level: "positional", sinusoids of the level, or "fourier", random
            sinusoids of its log.
        fourier_scale: standard deviation of the random frequencies.
        fir: taps of the low-pass filter of all resampling, which is done in residual blocks
            (BigGAN's); empty for none.
        input_pyramid: "residual" puts the image into each level by a pyramid of strided
            convolutions; "none" does not.
        rescale: whether sums of two branches are divided by √2.
        centered: whether data lie in [−1, 1]; if not, in [0, 1], and the network maps z to 2z − 1.
        scale_by_sigma: whether the output is divided by the noise level, which is σ_t with the
            embedding "fourier".
        condition: :attr:`indm.conditions.Condition.seen_shape` of its condition; () for none.

    Raises:
        ValueError: sides that do not halve evenly, or an unknown embedding or pyramid.

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs",
    https://arxiv.org/abs/2011.13456.

    Example: a small NCSN++ of VE; its output starts at zero.

        >>> options = {"embedding": "fourier", "fir": (1, 3, 3, 1), "input_pyramid": "residual", "centered": False}
        >>> net = NCSNpp((3, 8, 8), 4, (1, 2), 1, scale_by_sigma=True, **options)
        >>> output = net(torch.rand(2, 3, 8, 8), torch.tensor([0.01, 50.0]))
        >>> output.shape, output.abs().max().item()
        (torch.Size([2, 3, 8, 8]), 0.0)
    """

    parameterization = PublishedScore  # see indm.score.score_for

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        fir: tuple[float, ...] = (),
        input_pyramid: str = "none",
        rescale: bool = True,
        centered: bool = True,
        scale_by_sigma: bool = False,
        condition: tuple[int, ...] = (),
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.multipliers = tuple(multipliers)
        self.attention = tuple(attention)
        self.channels = channels
        self.blocks = blocks
        self.dropout = dropout
        self.embedding = embedding
        self.fourier_scale = fourier_scale
        self.fir = tuple(fir)
        self.input_pyramid = input_pyramid
        self.rescale = rescale
        self.centered = centered
        self.scale_by_sigma = scale_by_sigma
        self.condition = tuple(condition)
        self.takes_condition = bool(condition)
        self._check()
        self._build()

    def _build(self) -> None:
        """Build the network of the arguments, which are attributes by now."""
        channels = self.channels
        self.widths = [channels * multiplier for multiplier in self.multipliers]
        self.scale = SKIP_SCALE if self.rescale else 1.0
        self.width = 4 * channels
        fourier = self.embedding == "fourier"
        self.features = (
            Fourier(2 * channels, self.fourier_scale) if fourier else Positional(channels)
        )
        self.level = nn.Sequential(
            nn.Linear(2 * channels if fourier else channels, self.width),
            nn.SiLU(),
            nn.Linear(self.width, self.width),
            nn.SiLU(),
        )
        self.stem = nn.Conv2d(self.shape[0], channels, 3, padding=1)
        self.encoder, self.encoder_attention = nn.ModuleList(), nn.ModuleList()
        self.downs, self.inlets = nn.ModuleList(), nn.ModuleList()
        self.decoder, self.decoder_attention = nn.ModuleList(), nn.ModuleList()
        self.ups = nn.ModuleList()
        self.norm = group_norm(self.widths[0])
        self.output = nn.Conv2d(self.widths[0], self.shape[0], 3, padding=1)
        skips = self._build_encoder()
        h = self.widths[-1]
        self.middle = nn.ModuleList([self._block(h, h), self._block(h, h)])
        self.middle_attention = Attention(h, self.scale)
        self._build_decoder(skips)
        self._initialise()
        if self.condition:
            self.condition_input = ConditionOfImages(self.condition, self.width, channels)

    def _check(self) -> None:
        """Check the arguments, which are attributes by now."""
        multiple = 2 ** (len(self.multipliers) - 1)
        if len(self.shape) != 3 or self.shape[1] % multiple or self.shape[2] % multiple:
            wanted = f"(channels, height, width) with sides divisible by {multiple}, for multipliers {self.multipliers}"
            raise ValueError(
                f"shape must be {wanted}, got {self.shape}; take fewer multipliers or other sides"
            )
        check_counts(multipliers=min(self.multipliers, default=0), blocks=self.blocks)
        check_word("embedding", self.embedding, TIME_EMBEDDINGS)
        check_word("input_pyramid", self.input_pyramid, INPUT_PYRAMIDS)
        if self.scale_by_sigma and self.embedding != "fourier":
            raise ValueError(
                'scale_by_sigma must be false with the embedding "positional", whose level is not σ'
            )

    def _build_encoder(self) -> list[int]:
        """Build the way down; the channels of its skip connections, in order."""
        h, image = self.channels, self.shape[0]
        skips = [h]
        for level, width in enumerate(self.widths):
            if level > 0:
                self.downs.append(self._block(h, h, Down(self.fir)))
                if self.input_pyramid == "residual":
                    self.inlets.append(Inlet(image, h, self.fir, self.scale))
                    image = h
                skips.append(h)
            inputs = [h] + [width] * (self.blocks - 1)
            self.encoder.append(nn.ModuleList(self._block(i, width) for i in inputs))
            self.encoder_attention.append(nn.ModuleList(self._attention(level) for _ in inputs))
            h = width
            skips += [h] * self.blocks
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
        """Build the way up, which takes the skip connections from the last to the first."""
        h = self.widths[-1]
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                self.ups.append(self._block(h, h, Up(self.fir)))
            inputs = [h] + [width] * self.blocks
            self.decoder.append(nn.ModuleList(self._block(i + skips.pop(), width) for i in inputs))
            self.decoder_attention.append(self._attention(level))
            h = width

    def _block(self, inputs: int, outputs: int, resampling: nn.Module | None = None) -> ResBlock:
        return ResBlock(inputs, outputs, self.width, self.dropout, self.scale, resampling)

    def _attention(self, level: int) -> nn.Module:
        attends = self.shape[1] // 2**level in self.attention
        return Attention(self.widths[level], self.scale) if attends else nn.Identity()

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases; zero last maps of all branches and the output."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, ResBlock):
                zeroed(module.conv2)
            elif isinstance(module, Attention):
                for part in module.query_key_value.weight.chunk(3):
                    nn.init.xavier_uniform_(part, gain=CAUTIOUS_GAIN)
                zeroed(module.project)
        zeroed(self.output)

    def forward(self, z: Images, level: PerSample, c: Tensor | None = None) -> Images:
        """The output for images ``z`` at noise levels ``level``, (B,), and conditions ``c``."""
        embedding = self.level(self.features(level))
        image = z if self.centered else 2 * z - 1
        h = self.stem(image)
        c = seen(self, c, z)
        if c is not None:
            embedding, h = self.condition_input(c, embedding, h)
        skips = [h]
        for i, (blocks, attentions) in enumerate(
            zip(self.encoder, self.encoder_attention, strict=True)
        ):
            if i > 0:
                h = self.downs[i - 1](h, embedding)
                if self.inlets:
                    h = image = self.inlets[i - 1](h, image)
                skips.append(h)
            for block, attention in zip(blocks, attentions, strict=True):
                h = attention(block(h, embedding))
                skips.append(h)
        h = self.middle[1](self.middle_attention(self.middle[0](h, embedding)), embedding)
        for i, (blocks, attention) in enumerate(
            zip(self.decoder, self.decoder_attention, strict=True)
        ):
            if i > 0:
                h = self.ups[i - 1](h, embedding)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat((h, skips.pop()), dim=1), embedding)
            h = attention(h)
        output = self.output(F.silu(self.norm(h)))
        return output / level[:, None, None, None] if self.scale_by_sigma else output
