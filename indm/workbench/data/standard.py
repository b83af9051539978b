"""Standard data sets of images: digits, CIFAR-10, CelebA and Fashion-MNIST."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from indm.checks import reason
from indm.files import untrusted
from indm.files.untrusted import cache_folder, check_plain
from indm.scaling import Scaling
from indm.workbench.data.base import Data
from indm.workbench.data.image_files import ImageFiles, data_of_images
from indm.workbench.data.raw import check_size, height_and_width, words_of
from indm.workbench.data.splits import describe_split, limited, pooled, renumbered, selected, split

MOST_UNPACKED = 2**26  # bytes that are read of a file, at most: 60,000 images of 28×28 have 47 million
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load_digits(
    *,
    seed: int = 0,
    centered: bool = True,
    limit: int | None = None,
    label: int | list[int] | None = None,
    negative: bool = False,
) -> Data:
    """The 1797 handwritten digits that scikit-learn bundles: 1×8×8, 17 grey levels; 180 valid, 360 test, stratified.

    Args:
        seed: of the split.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        limit: training examples to keep, the first ones; all by default.
        label: keeps the images of this class alone, or of these, in the same splits.
        negative: whether they are their negatives, 16 − x: the truth of a translation that is known.
    """
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    images, labels = bundled(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=seed, stratify=labels)
    train, valid = train_test_split(rest, test_size=180, random_state=seed, stratify=labels[rest])
    parts = {"train": torch.from_numpy(train), "valid": torch.from_numpy(valid), "test": torch.from_numpy(test)}
    parts = selected(parts, torch.from_numpy(labels), label, limit)
    pool = torch.from_numpy(images.astype(np.uint8)).reshape(-1, 1, 8, 8)
    pool = 16 - pool if negative else pool
    notes = ["scikit-learn's bundled digits", describe_split(parts, seed, "within classes ")]
    numbers, classes = renumbered(torch.from_numpy(labels), tuple(map(str, range(10))), label)
    fields = pooled(pool, parts, numbers)
    return Data(name="digits", scaling=Scaling.images(17, centered), classes=classes, notes=notes, **fields)


def load_cifar10(
    *,
    root: str | Path | None = None,
    download: bool = True,
    valid: int = 5000,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = True,
) -> Data:
    """CIFAR-10: 3×32×32, 256 levels; ``valid`` of the 50,000 training images are held out.

    It is read from ``cifar10.npz``, which may hold fewer test images, where ``root`` has one, else by torchvision.

    Args:
        root: folder of the files; by default $INDM_DATA, or ~/.cache/indm.
        download: whether to fetch files that are missing.
        valid: images of the validation split.
        seed: of the split into training and validation.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
    """
    packed = download_root(root) / "cifar10.npz"
    if packed.is_file():
        pool, labels, n = _packed_cifar10(packed)
        source = f"CIFAR-10 read from {packed}, first {len(pool) - n:,} test images"
    else:
        home, source = str(download_root(root)), "torchvision's CIFAR-10"
        train, test = (from_torchvision("cifar10", "CIFAR10", home, train=t, download=download) for t in (True, False))
        pool = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
        labels, n = torch.tensor(train.targets + test.targets), len(train.data)
    parts = split(n, valid=valid, seed=seed, limit=limit) | {"test": torch.arange(n, len(pool))}
    notes, scaling = [source, describe_split(parts, seed)], Scaling.images(256, centered)
    return Data(name="cifar10", scaling=scaling, flip=flip, notes=notes, **pooled(pool, parts, labels))


def _packed_cifar10(path: Path) -> tuple[Tensor, Tensor, int]:
    """Images (N, 3, 32, 32), their labels, and how many of them, the first ones, are for training."""
    x, labels, sizes = (untrusted.array(path, name) for name in ("x", "labels", "sizes"))
    fits = x.shape[1:] == (3, 32, 32) and labels.shape == x.shape[:1] and x.dtype == labels.dtype == np.uint8
    whole = sizes.shape == (2,) and sizes.dtype.kind in "iu" and sizes.min() > 0
    if not fits or not whole or sum(sizes.tolist()) != len(x):
        got = ", ".join(f"{array.dtype} {array.shape}" for array in (x, labels, sizes))
        raise ValueError(
            f"{path} must hold x, uint8 (N, 3, 32, 32), labels, uint8 (N,), and sizes, two numbers of training and "
            f"test images whose sum is N, got {got}"
        )
    return torch.from_numpy(x), torch.from_numpy(labels).long(), int(sizes[0])


def load_celeba(
    *,
    size: int | str | list[int] = 64,
    crop: int = 140,
    root: str | Path | None = None,
    download: bool = True,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = True,
) -> Data:
    """CelebA by torchvision, in its standard splits: centre crop, antialiased bilinear resize; read from disk.

    Args:
        size: side in pixels, or height x width: "24x48" or [24, 48].
        crop: shorter side of what is cut out of the middle of each image before, with the aspect ratio of ``size``.
        root: folder of the files; by default $INDM_DATA, or ~/.cache/indm.
        download: whether to fetch files that are missing.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
    """
    check_size(crop)
    shape = (3, *height_and_width(size))
    home = str(download_root(root))
    parts: dict[str, Any] = {}
    for part in ("train", "valid", "test"):
        dataset = from_torchvision("celeba", "CelebA", home, split=part, download=download)
        files = [Path(dataset.root, dataset.base_folder, "img_align_celeba", name) for name in dataset.filename]
        parts[part] = ImageFiles(limited(files, limit if part == "train" else None), shape, crop=crop)
    resized = f"centre crop {crop}, then bilinear resize to {words_of(shape[1:])}"
    return data_of_images("celeba", parts, centered, flip, notes=["torchvision's CelebA, standard splits", resized])


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An array of a gzip-compressed IDX file (LeCun's format of MNIST); its ``magic`` number and size are checked.

    torchvision reads unpacked files alone.
    """
    try:
        check_plain(path)
        with gzip.open(path) as file:
            content = np.frombuffer(file.read(MOST_UNPACKED), np.uint8)
    except Exception as error:  # damaged streams surface as almost anything
        raise ValueError(f"{path} cannot be read as gzip-compressed IDX: {reason(error)}") from error
    start = 4 * (1 + magic % 256)
    first, *shape = np.resize(content[:start], start).view(">u4").tolist()
    if first != magic or math.prod(shape) != len(content) - start:
        raise ValueError(
            f"{path} is damaged: it must have the magic number {magic} and what its header says, got {first} and "
            f"{len(content):,} bytes of shape {shape}"
        )
    return content[start:].reshape(shape).copy()


def _fashion_mnist_folder(root: str | Path | None, download: bool) -> Path:
    """Where the four files lie: under ``root``, else $INDM_DATA, else Debian's; else where they are downloaded to."""
    home = download_root(root)
    places = [home, home / "FashionMNIST" / "raw"] + ([] if root else [DEBIAN_FASHION_MNIST])
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    if not download:
        raise ValueError(f"fashion-mnist could not be loaded; {where_to_look(', '.join(map(str, places)))}")
    from_torchvision("fashion-mnist", "FashionMNIST", str(home), download=True)
    return home / "FashionMNIST" / "raw"


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
        resized = (F.interpolate(x.float(), sides, mode="bilinear", antialias=True) for x in pool.split(4096))
        pool = torch.cat([x.round().clamp(0, 255).byte() for x in resized])
    notes = [f"read from {folder}", describe_split(parts, seed)]
    notes += [f"resized from 28 to {words_of(sides)} (bilinear, antialiased, rounded)"] if min(sides) < 28 else []
    numbers, classes = renumbered(torch.cat(labels).long(), CLASSES, label)
    fields, scaling = pooled(pool, parts, numbers), Scaling.images(256, centered)
    return Data(name="fashion-mnist", scaling=scaling, classes=classes, flip=flip, notes=notes, **fields)


def download_root(root: str | Path | None) -> Path:
    """The folder ``root``, or where downloads are cached."""
    return Path(root).expanduser() if root else cache_folder()


def from_torchvision(name: str, kind: str, *args: Any, **kwargs: Any) -> Any:
    """A data set of torchvision, where every failure to find or to download the files is a ``ValueError``."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(*args, **kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        cause = reason(error).removesuffix(". You can use download=True to download it")
        raise ValueError(f"{name} could not be loaded ({cause}); {where_to_look(args[0])}") from error


def where_to_look(root: object) -> str:
    """What to give where the files of a data set were not found in ``root``, or could not be downloaded to it."""
    return (
        f"they were looked for in {root}: --data.root FOLDER or $INDM_DATA names another; where there is a network, "
        "indm train downloads them, and so does indm evaluate with --data.download true "
        '(in Python: root="FOLDER", download=True)'
    )
