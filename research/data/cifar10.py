"""CIFAR-10 without loss from PNG files: ``python -m research.data.cifar10 FOLDER OUT``, then
:class:`Packed`.

The files are in ``demos/datasets/cifar`` of the repository ml4a/ml4a.github.io. Each
``cifar10_batch_N.png`` holds 1,000 images, one a row: 32×32 RGB pixels, row by row. Batches 0 to 49
are the training images in their original order, batch 50 is the first 1,000 test images.
``cifar10_labels.json`` has the classes of all.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tyro.conf import Positional, arg

from indm.checks import brief, reason
from indm.files import atomic, check_plain, untrusted
from indm.workbench.cli.common import DONE, Common
from indm.workbench.data.standard import CIFAR10
from research.command import main

CLASSES = range(10)
SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Packed(CIFAR10):
    """CIFAR-10 of the file ``cifar10.npz`` in ``root``, which :func:`convert` writes; it may have
    fewer test images.
    """

    def read(self) -> tuple[Tensor, Tensor, int, str]:
        path = self.home / "cifar10.npz"
        x, labels, sizes = (
            torch.from_numpy(untrusted.array(path, name)) for name in ("x", "labels", "sizes")
        )
        n, of_test = sizes.tolist()
        return x, labels.long(), n, f"CIFAR-10 read from {path}, first {of_test:,} test images"


def read_batch(path: Path, rows: int = 1000) -> np.ndarray:
    """The images of one file, uint8 (``rows``, 3, 32, 32).

    Raises:
        ValueError: naming the file; it is not an RGB image in PNG of this many rows.
    """
    wanted = ("RGB", (SIDE * SIDE, rows))
    try:
        check_plain(path)
        with Image.open(path, formats=["PNG"]) as image:
            if (image.mode, image.size) != wanted:
                found = f"{image.mode} of {image.width}×{image.height}"
                raise ValueError(f"it must be RGB of {SIDE * SIDE}×{rows} pixels, got {found}")
            pixels = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(
            f"{path} cannot be read as a batch of CIFAR-10: {reason(error)}"
        ) from error
    return pixels.reshape(rows, SIDE, SIDE, 3).transpose(0, 3, 1, 2)


def read_labels(path: Path, count: int) -> np.ndarray:
    """The classes of ``count`` images, uint8.

    Raises:
        ValueError: naming the file; it holds another number of labels, or one that is not a class.
    """
    labels: Any = untrusted.json_object(path).get("labels")
    wrong = (
        [label for label in labels if label not in CLASSES]
        if isinstance(labels, list)
        else [labels]
    )
    if wrong or len(labels) != count:
        found = f"{brief(wrong[0])} among them" if wrong else f"{len(labels):,}"
        raise ValueError(
            f'{path}: "labels" must be {count:,} numbers 0 … {CLASSES[-1]}, one an image, got {found}'
        )
    return np.array(labels, np.uint8)


def convert(folder: Path, out: Path, *, training: int = 50, rows: int = 1000) -> Path:
    """Write ``out/cifar10.npz``, which :class:`Packed` reads, from the files in ``folder``.

    Its arrays are ``x``, uint8 (N, 3, 32, 32), ``labels`` (N,), and ``sizes``, the numbers of
    training and test images; the training images come first.

    Args:
        folder: of the PNG files and the labels.
        out: where to write; made if need be.
        training: files of training images; one of test images follows.
        rows: images a file.

    Raises:
        ValueError: naming a file that is missing or does not fit.
    """
    sizes = [training * rows, rows]
    labels = read_labels(folder / "cifar10_labels.json", sum(sizes))
    x = np.concatenate(
        [read_batch(folder / f"cifar10_batch_{i}.png", rows) for i in range(training + 1)]
    )
    path = out / "cifar10.npz"
    atomic.whole(path, atomic.arrays_into({"x": x, "labels": labels, "sizes": np.array(sizes)}))
    return path


@dataclass
class Cifar10(Common):
    """Make cifar10.npz of the PNG files of ml4a: 50,000 training images and the first 1,000 test
    images.
    """

    module: ClassVar[str] = "research.data.cifar10"

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder with cifar10_batch_0.png … cifar10_batch_50.png and cifar10_labels.json."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Where to write cifar10.npz."""

    def run(self) -> int:
        print(convert(self.folder, self.out))
        return DONE


if __name__ == "__main__":
    sys.exit(main(Cifar10))
