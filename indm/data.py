"""Data sets as raw tensors in data units, with the scaling that makes them model inputs.

:func:`load_data` is the only door: a name from :data:`LOADERS` and the options of that loader. Items are
uint8 grey levels (C, H, W) or float32 vectors (D,); nothing is scaled, flipped or dequantized here beforehand.
Every split is a function of its seed. Everything that cannot be used is a ``ValueError`` that says why.
"""

import functools
import gzip
import hashlib
import inspect
import math
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Num, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10, CelebA, FashionMNIST
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from indm import images, reading
from indm.densities import DENSITIES
from indm.draws import for_rows
from indm.images import ImageFiles
from indm.model import nearest
from indm.recipes import check_whole_number
from indm.scaling import Scaling, check_levels

MIN_SIZE = 8
MOST_PACKED = 1032  # bytes that one of a deflated stream can stand for
RESIZE_MODES = [mode.value for mode in InterpolationMode if mode.value != "nearest-exact"]  # Pillow has no such mode
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint data sets and what is known about them.

    Attributes:
        train, valid, test: items in data units, each ``shape``, with ``len``.
        scaling: data units to model units; ``scaling.levels`` are the grey levels, None for continuous data.
        shape: of one item, (C, H, W) or (D,).
        entropy: of the data in total nats (data units), where it is known.
        flip: whether training should flip images horizontally at random.
        labels: class labels (n,) int64 of each split, in its order, where the data have them.
        notes: where the data came from and what was done to them, one sentence each.
        fingerprint: SHA-256 of what decides, beside the options, which example is in which split; "" where that never
            changes.
    """

    name: str
    train: Dataset
    valid: Dataset
    test: Dataset
    scaling: Scaling
    shape: tuple[int, ...]
    entropy: float | None = None
    flip: bool = False
    labels: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""


class InMemory(Dataset):
    """The rows of ``tensor`` (N, *event). A training loop may index ``.tensor`` directly."""

    def __init__(self, tensor: Shaped[Tensor, "n *event"]):
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch at once; ``DataLoader`` calls it."""
        return self.tensor[indices]


# ── Using data sets ─────────────────────────────────────────────────────────────────────────────────────────────────


def stack(dataset: Dataset, n: int | None = None) -> Tensor:
    """The first ``n`` items (all by default) as one tensor (n, *event)."""
    if isinstance(dataset, InMemory):
        return dataset.tensor[:n]
    return torch.stack([dataset[i] for i in range(len(dataset))[:n]])


def flip_horizontally(raw: Num[Tensor, "batch c h w"], generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    device = raw.device if generator is None else generator.device
    u = for_rows(len(raw), lambda n: torch.rand(n, 1, 1, 1, generator=generator, device=device))
    flipped = u.to(raw.device) < 0.5
    return torch.where(flipped, raw.flip(-1), raw)


def collate(items: Tensor | list[Tensor]) -> Tensor:
    """A batch from what a data set returned: already one, or a list of items."""
    return items if isinstance(items, Tensor) else torch.stack(items)


def loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader:
    """One epoch of batches (B, *event), in an order that depends on ``seed`` and ``epoch`` alone.

    A run that stopped in the middle of an epoch resumes by asking for the same epoch and skipping the batches
    it has seen (``accelerate.skip_first_batches`` skips them unread).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = range(len(dataset))
    if shuffle:
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(state)).tolist()
    return DataLoader(
        dataset,
        batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


# ── Shared by the loaders ───────────────────────────────────────────────────────────────────────────────────────────


def split(n: int, *, valid: int, test: int = 0, seed: int = 0, limit: int | None = None) -> dict[str, Tensor]:
    """Shuffle 0 … n−1 by ``seed`` into disjoint index tensors: ``test``, ``valid``, and the rest as ``train``.

    ``limit`` keeps only the first so many of the shuffled training indices. Without ``test`` there is no such key.
    """
    if valid < 1 or test < 0 or valid + test >= n:
        raise ValueError(f"{n} items cannot be split into {valid} for validation, {test} for testing and some to train")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = {"train": _limited(order[valid + test :], limit), "valid": order[test : test + valid]}
    return parts | ({"test": order[:test]} if test else {})


def _limited(items: Tensor | list[Path], limit: int | None) -> Tensor | list[Path]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 training item, or None for all, got {limit}")
    return items[:limit]


def _selected(parts: dict[str, Tensor], labels: Tensor, label: int | None, limit: int | None) -> dict[str, Tensor]:
    """The indices of ``parts`` whose label is ``label`` (None: all), of the training ones the first ``limit``."""
    if label is not None:
        if not bool((labels == label).any()):
            raise ValueError(f"label must be one of {labels.unique().tolist()}, or None for all classes, got {label}")
        parts = {part: index[labels[index] == label] for part, index in parts.items()}
    return parts | {"train": _limited(parts["train"], limit)}


def _counts(n: int, valid: float, test: float) -> dict[str, int]:
    """Fractions of ``n`` as counts of at least one."""
    for name, fraction in (("valid", valid), ("test", test)):
        if not 0 < fraction < 1:
            raise ValueError(f"{name} must be a fraction between 0 and 1 of the data, got {fraction}; 0.1 is usual")
    return {"valid": max(1, round(valid * n)), "test": max(1, round(test * n))}


def _describe(parts: dict[str, Tensor], seed: int, how: str = "") -> str:
    counts = ", ".join(f"{part} {len(index)}" for part, index in parts.items())
    return f"split {how}by seed {seed}: {counts}"


def _check_size(*sides: int) -> None:
    if min(sides) < MIN_SIZE:
        got = "×".join(map(str, sides))
        raise ValueError(f"images must be at least {MIN_SIZE} pixels high and wide, got a size of {got}")


def _pooled(tensor: Tensor, parts: dict[str, Tensor], labels: Tensor | None = None) -> dict:
    """The fields of :class:`Data` that one in-memory pool and index tensors into it determine."""
    by_part = {} if labels is None else {part: labels[index] for part, index in parts.items()}
    sets = {part: InMemory(tensor[index]) for part, index in parts.items()}
    return sets | {"shape": tuple(tensor.shape[1:]), "labels": by_part}


def _download_root(root: str | Path | None) -> Path:
    return Path(root).expanduser() if root else images.cache()


def _torchvision(name: str, dataset: Callable[..., Dataset], *args, **kwargs) -> Dataset:
    """``dataset(*args, **kwargs)``, where every failure to find or to download the files is a ``ValueError``."""
    try:
        return dataset(*args, **kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        raise ValueError(f"{name} could not be loaded ({error}); pass root= or download=True") from error


# ── Loaders: one function a data set; their keyword arguments are the options ───────────────────────────────────────


def load_density(
    name: str, /, *, samples: int = 100_000, valid_samples: int = 5000, test_samples: int = 20_000, seed: int = 0
) -> Data:
    """Samples of a density of :mod:`indm.densities`, drawn once; the test set does not depend on ``samples``."""
    if min(samples, valid_samples, test_samples) < 1:
        raise ValueError(f"{name}: samples, valid_samples and test_samples must each be at least 1")
    density, generator = DENSITIES[name], torch.Generator().manual_seed(seed)
    counts = {"test": test_samples, "valid": valid_samples, "train": samples}
    parts = {part: InMemory(density.sample(n, generator=generator)) for part, n in counts.items()}
    notes = [f"samples drawn with seed {seed}"]
    return Data(name=name, scaling=Scaling(), shape=(2,), entropy=density.entropy(), notes=notes, **parts)


def load_digits(*, seed: int = 0, centered: bool = True, limit: int | None = None, label: int | None = None) -> Data:
    """The 1797 handwritten digits that scikit-learn bundles: 1×8×8, 17 grey levels; 180 valid, 360 test, stratified.

    ``label`` keeps the images of one class alone, in the same splits.
    """
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    images, labels = bundled(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=seed, stratify=labels)
    train, valid = train_test_split(rest, test_size=180, random_state=seed, stratify=labels[rest])
    parts = {"train": torch.from_numpy(train), "valid": torch.from_numpy(valid), "test": torch.from_numpy(test)}
    parts = _selected(parts, torch.from_numpy(labels), label, limit)
    pool = torch.from_numpy(images.astype(np.uint8)).reshape(-1, 1, 8, 8)
    notes = ["scikit-learn's bundled digits", _describe(parts, seed, "within classes ")]
    fields = _pooled(pool, parts, torch.from_numpy(labels))
    return Data(name="digits", scaling=Scaling.images(17, centered), notes=notes, **fields)


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An array of a gzip-compressed IDX file (LeCun's format of MNIST); its ``magic`` number and size are checked."""
    try:
        with gzip.open(path) as file:
            found, *shape = np.frombuffer(file.read(4 * (1 + magic % 256)), dtype=">u4", count=1 + magic % 256).tolist()
            claimed = math.prod(shape)
            if found != magic:
                raise ValueError(f"its magic number is {found}, not {magic}")
            if claimed > MOST_PACKED * path.stat().st_size:
                raise ValueError(f"its header says {shape}, more than a file of its size can hold")
            reading.check_memory(claimed)
            content = file.read(claimed + 1)
    except Exception as error:  # damaged streams surface as almost anything
        raise ValueError(f"{path} cannot be read as gzip-compressed IDX: {reading.reason(error)}") from error
    if len(content) != claimed:
        held = len(content) if len(content) < claimed else "more"
        raise ValueError(f"{path} is damaged: its header says {shape}, it holds {held} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _fashion_mnist_folder(root: str | Path | None, download: bool) -> Path:
    """Where the four files lie: under ``root``, else $INDM_DATA, else Debian's; else where they are downloaded to."""
    home = _download_root(root)
    places = [home, home / "FashionMNIST" / "raw"] + ([] if root else [DEBIAN_FASHION_MNIST])
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    if not download:
        raise ValueError(f"fashion-mnist not found in {', '.join(map(str, places))}; pass root= or download=True")
    _torchvision("fashion-mnist", FashionMNIST, str(home), download=True)
    return home / "FashionMNIST" / "raw"


def load_fashion_mnist(
    *,
    size: int = 28,
    root: str | Path | None = None,
    download: bool = True,
    valid: int = 5000,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    label: int | None = None,
) -> Data:
    """Fashion-MNIST: 1×28×28, 256 levels, the standard 10,000 test images; ``valid`` of the 60,000 others held out.

    A ``size`` below 28 (16 is usual) is an antialiased bilinear resize, rounded to grey levels again. ``label`` keeps
    the images of one class alone, in the same splits: 0 T-shirt, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal,
    6 shirt, 7 sneaker, 8 bag, 9 ankle boot.
    """
    _check_size(size)
    if size > 28:
        raise ValueError(f"size must be at most the 28 of Fashion-MNIST, got {size}")
    folder = _fashion_mnist_folder(root, download)
    images, labels = (
        [torch.from_numpy(read_idx(folder / f"{part}-{kind}-ubyte.gz", magic)) for part in ("train", "t10k")]
        for kind, magic in (("images-idx3", 2051), ("labels-idx1", 2049))
    )
    if any(i.shape != (len(y), 28, 28) for i, y in zip(images, labels, strict=True)):
        raise ValueError(f"the files in {folder} are not Fashion-MNIST: images must be 28×28 with one label each")
    n = len(images[0])
    parts = split(n, valid=valid, seed=seed) | {"test": torch.arange(n, n + len(images[1]))}
    parts = _selected(parts, torch.cat(labels), label, limit)
    pool = torch.cat(images)[:, None]
    if size < 28:
        pool = torch.cat(
            [F.resize(x.float(), [size, size], antialias=True).round().clamp(0, 255).byte() for x in pool.split(4096)]
        )
    notes = [f"read from {folder}", _describe(parts, seed)]
    notes += [f"resized from 28 to {size} (bilinear, antialiased, rounded)"] if size < 28 else []
    fields = _pooled(pool, parts, torch.cat(labels).long())
    return Data(name="fashion-mnist", scaling=Scaling.images(256, centered), flip=flip, notes=notes, **fields)


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
    """CIFAR-10 by torchvision: 3×32×32, 256 levels, the standard 10,000 test images; ``valid`` of the 50,000 others."""
    home = str(_download_root(root))
    train, test = (_torchvision("cifar10", CIFAR10, home, train=t, download=download) for t in (True, False))
    n = len(train.data)
    parts = split(n, valid=valid, seed=seed, limit=limit) | {"test": torch.arange(n, n + len(test.data))}
    pool = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
    fields = _pooled(pool, parts, torch.tensor(train.targets + test.targets))
    notes = ["torchvision's CIFAR-10", _describe(parts, seed)]
    return Data(name="cifar10", scaling=Scaling.images(256, centered), flip=flip, notes=notes, **fields)


def load_celeba(
    *,
    size: int = 64,
    crop: int = 140,
    root: str | Path | None = None,
    download: bool = True,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = True,
) -> Data:
    """CelebA by torchvision, in its standard splits: centre crop, antialiased bilinear resize; read from disk."""
    _check_size(size, crop)
    home = str(_download_root(root))
    parts = {}
    for part in ("train", "valid", "test"):
        found = _torchvision("celeba", CelebA, home, split=part, download=download)
        files = [Path(found.root, found.base_folder, "img_align_celeba", name) for name in found.filename]
        parts[part] = ImageFiles(_limited(files, limit if part == "train" else None), size, 3, crop=crop)
    notes = ["torchvision's CelebA, standard splits", f"centre crop {crop}, then bilinear resize to {size}"]
    scaling = Scaling.images(256, centered)
    return Data(name="celeba", scaling=scaling, shape=(3, size, size), flip=flip, notes=notes, **parts)


def _first_bad(found: images.Index) -> str:
    """The first file that is no image, and why."""
    path = found.files[int(np.argmin(found.kinds))]
    if path.suffix.lower() not in images.SUFFIXES:
        return f"{path}: not an image by its name"
    try:
        images.read_image(path)
    except (ValueError, OSError) as error:
        return f"{path}: {reading.reason(error)}"
    return f"{path}: it has changed since it was looked at"


def find_images(
    folder: Path, *, whole: bool = False, strict: bool = False
) -> tuple[images.Files, tuple[int, int], list[str]]:
    """The images under a folder (recursive, hidden files apart) in sorted order, how many are grey and colour, notes.

    Args:
        folder: whose files are looked at, see :func:`indm.images.index`; those that are no image are skipped and
            counted.
        whole: decode every file, so that damaged ones are skipped too, in place of looking at its header.
        strict: decode every file, and let one that is skipped be an error.

    Raises:
        ValueError: no folder, or none with images.
    """
    if not folder.is_dir():
        raise ValueError(f"path '{folder}' is not a folder")
    found = images.index(folder, whole=whole or strict)
    files = found.files
    bad, grey, colour = np.bincount(found.kinds, minlength=3).tolist()
    notes = [f"read from {folder}, listed by {'decoding each' if whole or strict else 'the header of each'}"]
    if bad:
        problem = f"{bad} of {len(files)} files cannot be read as images; the first is {_first_bad(found)}"
        if strict:
            raise ValueError(f"strict: {problem}")
        warnings.warn(f"skipped {problem}", stacklevel=3)
        notes.append(f"skipped {problem}")
    if not grey + colour:
        raise ValueError(f"no readable images in '{folder}' ({len(files)} files); png, jpeg, webp, bmp, … would do")
    return files.select(np.flatnonzero(found.kinds)), (grey, colour), notes


def load_folder(
    *,
    path: str | Path,
    size: int,
    channels: int | None = None,
    resize: str = "bilinear",
    crop: bool | int = True,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
) -> Data:
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    The header of every file is looked at, once for folders of many files (see :func:`indm.images.index`): what is no
    image is skipped and counted. What shows to be damaged later is replaced, see :class:`ImageFiles`. With ``strict``
    every file is decoded here, and either is an error.

    ``channels`` is 1 (grey) or 3 (RGB), by default what the files have, if they agree. ``resize`` and ``crop``: see
    :class:`ImageFiles`. ``valid`` and ``test`` are fractions.
    """
    folder = Path(path).expanduser()
    _check_size(size)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if resize not in RESIZE_MODES:
        raise ValueError(f"unknown resize {resize!r}{nearest(resize, RESIZE_MODES)}")
    if crop is not True and crop is not False:
        _check_size(crop)
    good, (grey, colour), notes = find_images(folder, strict=strict)
    notes.append(f"{'squashed' if crop is False else 'centre-cropped'}, resized to {size} ({resize})")
    if channels is None and grey and colour:
        raise ValueError(f"mixed channels: {grey} grey and {colour} colour images; pass channels=1 or 3")
    channels = channels or (1 if grey else 3)
    parts = split(grey + colour, **_counts(grey + colour, valid, test), seed=seed, limit=limit)
    sets = {p: ImageFiles(good.select(chosen.numpy()), size, channels, resize, crop) for p, chosen in parts.items()}
    notes.append(_describe(parts, seed))
    scaling, shape = Scaling.images(256, centered), (channels, size, size)
    about = {"notes": notes, "fingerprint": good.fingerprint()}
    return Data(name="folder", scaling=scaling, shape=shape, flip=flip, **about, **sets)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    names = reading.array_names(path)
    if names is None:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a .npy file holds one array without a name")
        return reading.array(path)
    if not names:
        raise ValueError(f"{path} holds no arrays; one with an array of the data would do")
    if key is None and ("samples" in names or len(names) == 1):
        key = "samples" if "samples" in names else names[0]
    if key is None:
        raise ValueError(f"{path} holds several arrays; pass key= one of {reading.brief(', '.join(names))}")
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}{nearest(key, map(reading.brief, names))}")
    return reading.array(path, key)


def load_array(
    *,
    path: str | Path,
    key: str | None = None,
    levels: int | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
) -> Data:
    """An array of a .npy or .npz file, split by ``seed``; ``valid`` and ``test`` are fractions.

    In an .npz it is the one called ``key``, by default ``samples`` or the only one.

    Floats (N, D) are vectors, standardised by the training split. Integers are grey levels 0 … ``levels`` − 1:
    images (N, H, W), (N, H, W, C) or (N, C, H, W), of 256 levels by default if uint8, or vectors (N, D).
    """
    array = _read_array(Path(path).expanduser(), key)
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(f"{path} has shape {array.shape}; (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) would do")
    if array.dtype.kind not in "fiu" or (array.dtype.kind == "f" and array.ndim > 2):
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; float vectors or uint8 images would do")
    if array.dtype.kind == "f":
        if levels is not None:
            raise ValueError(f"levels are for integer data; {path} holds {array.dtype}")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, np.float32)
        broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(broken):
            raise ValueError(f"{path}: {len(broken)} of {len(array)} rows hold NaN or inf, first row {broken[0]}")
    else:
        array, levels = _grey_levels(array, levels, path)
    if flip and array.ndim == 2:
        raise ValueError(f"flip must be false for vectors: {path} holds no images but shape {array.shape}")
    parts = split(len(array), **_counts(len(array), valid, test), seed=seed, limit=limit)
    _check_room(array, path)
    fields = _pooled(torch.from_numpy(array), parts) | {"fingerprint": hashlib.sha256(array).hexdigest()}
    del array
    scaling = Scaling.images(levels, centered) if levels else Scaling.standardise(fields["train"].tensor)
    notes = [f"read from {path}" + (f", key {key}" if key else ""), _describe(parts, seed)]
    return Data(name="array", scaling=scaling, flip=flip, notes=notes, **fields)


def _check_room(array: np.ndarray, path: str | Path) -> None:
    """ValueError where there is no memory for the splits of an array beside it."""
    try:
        reading.check_memory(2 * array.nbytes)
    except ValueError as error:
        raise ValueError(f"{path} cannot be split, which takes as much memory again: {error}") from error


def read_events(path: Path, levels: int | None) -> Tensor:
    """The events of a .npy or .npz file (there the only array, or ``samples``), in data units, (N, *event).

    Images as :func:`load_array` takes them, of so many ``levels``; float vectors where ``levels`` is None.
    """
    array = _read_array(path, None)
    if 0 in array.shape:
        raise ValueError(f"{path} holds no events: its shape is {array.shape}")
    if (levels is None) != (array.dtype.kind == "f"):
        wanted = "floats" if levels is None else f"integers 0 … {levels - 1}"
        raise ValueError(f"{path} must hold {wanted}, as the model has them, got {array.dtype}")
    events = array.astype(np.float32, copy=False) if levels is None else _grey_levels(array, levels, path)[0]
    return torch.from_numpy(events)


def _grey_levels(array: np.ndarray, levels: int | None, path: str | Path) -> tuple[np.ndarray, int]:
    """Integers checked against ``levels``, images brought to (N, C, H, W)."""
    if levels is None and (array.dtype != np.uint8 or array.ndim == 2):
        raise ValueError(f"{path} holds {array.dtype}: pass levels= (for values 0 … levels − 1), or store floats")
    levels = 256 if levels is None else levels
    check_levels(levels)
    if array.min() < 0 or array.max() >= levels:
        raise ValueError(f"{path} holds values {array.min()} … {array.max()}, not 0 … {levels - 1}; pass other levels=")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] < MIN_SIZE <= array.shape[1]:  # the short axis is the channels
        array = np.moveaxis(array, -1, 1)
    if array.ndim == 4:
        _check_size(*array.shape[2:])
    return np.ascontiguousarray(array, dtype=np.uint8 if levels <= 256 else np.int32), levels


# ── The door ────────────────────────────────────────────────────────────────────────────────────────────────────────

LOADERS: dict[str, Callable[..., Data]] = {name: functools.partial(load_density, name) for name in DENSITIES} | {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "celeba": load_celeba,
    "folder": load_folder,
    "array": load_array,
}


def load_data(name: str, **options: object) -> Data:
    """Load the data set ``name`` with the options of its loader.

    Raises:
        ValueError: what :func:`check_data` raises, and for data that cannot be used.
    """
    check_data(name, **options)
    return LOADERS[name](**options)


def check_data(name: str, **options: object) -> None:
    """See that there is such a data set with such options, without looking for its files.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one), an option of the wrong type, and a
            missing one.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data {name!r}{nearest(name, LOADERS)}")
    parameters = inspect.signature(LOADERS[name]).parameters
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(f"data {name!r} has no option {option!r}{nearest(option, parameters)}")
        expected = parameters[option].annotation
        kinds = typing.get_args(expected) or (expected,)
        if not _fits(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise ValueError(f"option {option!r} of data {name!r} must be {wanted}, got {value!r}")
        check_whole_number(f"data.{option}", value)
    missing = [o for o, p in parameters.items() if p.default is inspect.Parameter.empty and o not in options]
    if missing:
        raise ValueError(f"data {name!r} needs the option {', '.join(missing)}")


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    """``isinstance``, but a bool is no number and an int is a float."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
