"""Fashion-MNIST."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2 import functional as F

from indm.data.base import Data, events_of_shape, pooled
from indm.data.downloads import download_root, from_torchvision, where_to_look
from indm.data.raw import height_and_width, words_of
from indm.data.splits import describe_split, renumbered, selected, split
from indm.files.memory import check_memory
from indm.files.plain import check_plain
from indm.messages import reason
from indm.scaling import Scaling

MOST_PACKED = 1032  # bytes to which one byte of a deflated stream can unpack
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An array of a gzip-compressed IDX file (LeCun's format of MNIST); its ``magic`` number and size are checked."""
    try:
        check_plain(path)
        with gzip.open(path) as file:
            first, *shape = np.frombuffer(file.read(4 * (1 + magic % 256)), dtype=">u4", count=1 + magic % 256).tolist()
            claimed = math.prod(shape)
            if first != magic:
                raise ValueError(f"its magic number is {first}, not {magic}")
            if claimed > MOST_PACKED * path.stat().st_size:
                raise ValueError(f"its header says {shape}, more than a file of its size can hold")
            check_memory(claimed)
            content = file.read(claimed + 1)
    except Exception as error:  # damaged streams surface as almost anything
        raise ValueError(f"{path} cannot be read as gzip-compressed IDX: {reason(error)}") from error
    if len(content) != claimed:
        held = len(content) if len(content) < claimed else "more"
        raise ValueError(f"{path} is damaged: its header says {shape}, it holds {held} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _fashion_mnist_folder(root: str | Path | None, download: bool) -> Path:
    """Where the four files lie: under ``root``, else $INDM_DATA, else Debian's; else where they are downloaded to."""
    home = download_root(root)
    places = [home, home / "FashionMNIST" / "raw"] + ([] if root else [DEBIAN_FASHION_MNIST])
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    if not download:
        raise ValueError(f"fashion-mnist could not be loaded; {where_to_look(', '.join(map(str, places)))}")
    from_torchvision("fashion-mnist", FashionMNIST, str(home), download=True)
    return home / "FashionMNIST" / "raw"


@events_of_shape(lambda options: (1, *height_and_width(options["size"])))
def load_fashion_mnist(
    *,
    size: int | str | list[int] = 28,
    root: str | Path | None = None,
    download: bool = True,
    valid: int = 5000,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    label: int | list[int] | None = None,
) -> Data:
    """Fashion-MNIST: 1×28×28, 256 levels, the standard 10,000 test images; ``valid`` of the 60,000 others held out.

    Args:
        size: side in pixels, or height x width as "16x24"; below 28 (16 is usual) by an antialiased bilinear resize,
            rounded to grey levels again.
        root: folder of the files; by default $INDM_DATA, or ~/.cache/indm.
        download: whether to fetch files that are missing.
        valid: images of the validation split.
        seed: of the split into training and validation.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        label: keeps the images of this class alone, or of these, in the same splits: 0 T-shirt, 1 trouser, 2 pullover,
            3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.
    """
    sides = height_and_width(size)
    if max(sides) > 28:
        raise ValueError(f"size must be at most the 28 of Fashion-MNIST, got {words_of(sides)}")
    folder = _fashion_mnist_folder(root, download)
    images, labels = (
        [torch.from_numpy(read_idx(folder / f"{part}-{kind}-ubyte.gz", magic)) for part in ("train", "t10k")]
        for kind, magic in (("images-idx3", 2051), ("labels-idx1", 2049))
    )
    if any(i.shape != (len(y), 28, 28) for i, y in zip(images, labels, strict=True)):
        raise ValueError(f"the files in {folder} are not Fashion-MNIST: images must be 28×28 with one label each")
    n = len(images[0])
    parts = split(n, valid=valid, seed=seed) | {"test": torch.arange(n, n + len(images[1]))}
    parts = selected(parts, torch.cat(labels), label, limit)
    pool = torch.cat(images)[:, None]
    if min(sides) < 28:
        pool = torch.cat(
            [F.resize(x.float(), list(sides), antialias=True).round().clamp(0, 255).byte() for x in pool.split(4096)]
        )
    notes = [f"read from {folder}", describe_split(parts, seed)]
    notes += [f"resized from 28 to {words_of(sides)} (bilinear, antialiased, rounded)"] if min(sides) < 28 else []
    numbers, classes = renumbered(torch.cat(labels).long(), CLASSES, label)
    fields, scaling = pooled(pool, parts, numbers), Scaling.images(256, centered)
    return Data(name="fashion-mnist", scaling=scaling, classes=classes, flip=flip, notes=notes, **fields)
