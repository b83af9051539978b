"""Resampling of feature maps by a factor of two: by filters of finite impulse response (FIR), or plainly."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def upfirdn2d(
    x: Float[Tensor, "batch channels height width"],
    kernel: Float[Tensor, "taps taps"],
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Put ``up`` − 1 zeros after every sample, pad with zeros, convolve with ``kernel``, keep every ``down``-th sample.

    Args:
        x: images; every channel is filtered apart, in both directions alike.
        kernel: a true convolution's, so that the image of a single point is the kernel as it stands.
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
    """The common part of the resampling layers: a low-pass filter that keeps means, or none."""

    def __init__(self, taps: tuple[float, ...] = ()):
        super().__init__()
        self.taps = tuple(taps)
        if self.taps and (len(self.taps) < 2 or sum(self.taps) <= 0):
            raise ValueError(
                f"fir must be two taps or more of positive sum, or empty for no filter, got {self.taps}; "
                "(1, 3, 3, 1) is usual"
            )
        kernel = torch.outer(torch.tensor(self.taps), torch.tensor(self.taps)).float()
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    @staticmethod
    def margins(surplus: int) -> tuple[int, int]:
        """``surplus`` zeros, half of them before and half after; an odd one goes before."""
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
    """(B, inputs, H, W) → (B, outputs, H/2, W/2): a 3×3 convolution of stride 2 of what the filter leaves."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...] = ()):
        super().__init__(taps)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        if not self.taps:
            return self.conv(F.pad(h, (0, 1, 0, 1)))
        return self.conv(upfirdn2d(h, self.kernel, padding=self.margins(len(self.taps))))
