"""The images of the study, in three splits, raw and with their classes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from indm.workbench.data.base import load_data, stack
from research.data.cifar10 import Packed

VALID, TEST = 2_000, 1_000  # images of these splits, the first ones


@dataclass(frozen=True)
class Images:
    """Raw images, uint8 (N, C, H, W), and their classes, int64 (N,).

    Args:
        train, valid, test: the images of a split.
        classes: of the images, by the name of the split.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    classes: dict[str, Tensor]

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
    """The images of a study: "cifar10-16" (means of 2×2 pixels), "cifar10-32" or "clothes-16".

    Args:
        name: of the study.
        root: the folder of ``cifar10.npz``, see :mod:`research.data.cifar10`.

    Raises:
        ValueError: another name.
    """
    if name not in ("cifar10-16", "cifar10-32", "clothes-16"):
        raise ValueError(f'name must be "cifar10-16", "cifar10-32" or "clothes-16", got {name!r}')
    data = load_data("fashion-mnist", size=16) if name == "clothes-16" else Packed(root=root).data()
    counts = {"train": None, "valid": VALID, "test": TEST}
    parts = {split: stack(getattr(data, split), n) for split, n in counts.items()}
    if name == "cifar10-16":
        parts = {split: halved(images) for split, images in parts.items()}
    return Images(**parts, classes={split: data.labels[split][: len(images)] for split, images in parts.items()})
