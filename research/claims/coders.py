"""Encoders and decoders of a VAE: convolutional ones for images, perceptrons for vectors.

A coder is a module with ``latent``, the dimensions of z, and two methods: ``encode(x)`` gives the mean and the log
deviation of z given x, and ``decode(z)`` those of x given z.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.unet import SMALLEST_SIDE, group_norm
from indm.tensors import zeroed

# Mean and log deviation of z given x, and of x given z.
Encoded = tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]
Decoded = tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]


class Residual(nn.Module):
    """h ↦ h + conv(silu(norm(conv(silu(norm(h)))))); starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))


class ConvCoder(nn.Module):
    """Encoder and decoder of images: twice half the side, residual blocks of ``width`` and then 2 · ``width`` channels.

    Args:
        shape: (channels, height, width) of an image, height and width at least 8.
        width: feature channels at full resolution.
        latent: dimensions of z.

    Raises:
        ValueError: for a ``shape`` that is no image of side 8 or more, no channel, or no latent.
    """

    def __init__(self, shape, width: int = 32, latent: int = 32):
        super().__init__()
        self.shape, self.width, self.latent = tuple(shape), width, latent
        if len(self.shape) != 3 or min(self.shape[1:]) < SMALLEST_SIDE:
            raise ValueError(
                f"shape must be (channels, height, width) with height and width at least {SMALLEST_SIDE}, got "
                f"{self.shape}; use MLPCoder for vectors"
            )
        _check_sizes(width, latent)
        channels, wide = self.shape[0], 2 * width
        small = [-(-side // 4) for side in self.shape[1:]]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            Residual(width),
            nn.Conv2d(width, wide, 3, stride=2, padding=1),
            Residual(wide),
            nn.Conv2d(wide, wide, 3, stride=2, padding=1),
            Residual(wide),
            group_norm(wide),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(wide * math.prod(small), 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, wide * math.prod(small)),
            nn.Unflatten(1, (wide, *small)),
            Residual(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, wide, 3, padding=1),
            Residual(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, width, 3, padding=1),
            Residual(width),
            group_norm(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * channels, 3, padding=1),
        )

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m and log s, (B, latent) each."""
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ and log σ before it is bounded, (B, *event) each."""
        mean, log_std = self.decoder(z)[:, :, : self.shape[1], : self.shape[2]].chunk(2, dim=1)
        return mean, log_std


class MLPCoder(nn.Module):
    """Encoder and decoder of vectors: multilayer perceptrons.

    Args:
        shape: the event shape, any number of axes.
        width: hidden width.
        latent: dimensions of z.
        depth: hidden layers of each.

    Raises:
        ValueError: for no unit, no latent, or no layer.
    """

    def __init__(self, shape, width: int = 128, latent: int = 2, depth: int = 3):
        super().__init__()
        self.shape, self.width, self.latent, self.depth = tuple(shape), width, latent, depth
        _check_sizes(width, latent)
        if depth < 1:
            raise ValueError(f"depth must be at least 1 hidden layer, got {depth}")
        d = math.prod(self.shape)
        self.encoder = _perceptron(d, width, 2 * latent, depth)
        self.decoder = _perceptron(latent, width, 2 * d, depth)

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m and log s, (B, latent) each."""
        mean, log_std = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_std

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ and log σ before it is bounded, (B, *event) each."""
        mean, log_std = self.decoder(z).unflatten(1, (2, *self.shape)).unbind(1)
        return mean, log_std


def _perceptron(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _check_sizes(width: int, latent: int) -> None:
    if min(width, latent) < 1:
        raise ValueError(f"width and latent must be at least 1, got {width} and {latent}")
