"""The images of the study, raw, in three splits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from indm.workbench.data.base import Data, load_data, stack
from research.data.cifar10 import Packed
from research.data.emoji import load_emoji

# dimensions of an image
DIMS = {"clothes-16": 256, "cifar10-16": 768, "digits-8": 64, "emoji-32": 3_072}
VALID, TEST = 2_000, 2_000  # images of these splits, the first ones, or all where there are fewer


@dataclass(frozen=True, eq=False)
class Images:
    """Raw images, uint8 (N, C, H, W).

    Args:
        train, valid, test: the images of a split.
        levels: of grey.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    levels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])


def halved(images: Tensor) -> Tensor:
    """The means of 2×2 pixels, rounded to whole levels, halves to even ones.

    >>> halved(torch.tensor([[[[0, 1], [2, 4]]]], dtype=torch.uint8))
    tensor([[[[2]]]], dtype=torch.uint8)
    """
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


@cache
def load(name: str, root: Path | None = None) -> Images:
    """The images of a study.

    Args:
        name: "cifar10-16" (means of 2×2 pixels), "cifar10-32", "clothes-16", "digits-8" or
            "emoji-32".
        root: the folder of ``cifar10.npz`` (:mod:`research.data.cifar10`) and ``emoji``
            (:mod:`research.data.emoji`).

    Raises:
        ValueError: another name.
    """
    sources: dict[str, Callable[[], Data]] = {
        "cifar10-16": lambda: Packed(root=root).data(),
        "cifar10-32": lambda: Packed(root=root).data(),
        "clothes-16": lambda: load_data("fashion-mnist", size=16),
        "digits-8": lambda: load_data("digits"),
        "emoji-32": lambda: load_emoji(path=(root or Path()) / "emoji"),
    }
    if name not in sources:
        raise ValueError(f"name must be one of {', '.join(sources)}, got {name!r}")
    data = sources[name]()
    counts = {"train": None, "valid": VALID, "test": TEST}
    parts = {split: stack(getattr(data, split), n) for split, n in counts.items()}
    if name == "cifar10-16":
        parts = {split: halved(images) for split, images in parts.items()}
    return Images(**parts, levels=data.scaling.levels)
