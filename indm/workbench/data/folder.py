"""Folders of images. Paths are listed in little memory, and once, where there are very many."""

import contextlib
import hashlib
import os
import stat
import threading
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm.files import atomic
from indm.files.plain import cache_folder
from indm.messages import brief, counted, reason
from indm.workbench.data.base import Data
from indm.workbench.data.image_files import ImageOptions
from indm.workbench.data.images import SUFFIXES, read_image, read_kind

KINDS = (None, "L", "RGB")  # of a file: no image that can be used, grey, colour
UNKNOWN = len(KINDS)  # a kind that is yet to be found out
CACHED_FROM = 1000  # files
AT_ONCE = 4096  # files whose headers are read side by side
DECODING = threading.BoundedSemaphore(os.cpu_count() or 1)  # one image may take a gigabyte to decode


class Files(Sequence[Path]):
    """Paths below ``folder`` in as many bytes as the longest has: a million need some 30 MB, not a gigabyte.

    Args:
        folder: which it is.
        names: the paths below it, as the file system encodes them, an array of bytes.
        chosen: positions in ``names``; all by default.
    """

    def __init__(self, folder: Path, names: np.ndarray, chosen: np.ndarray | None = None):
        self.folder, self.names = folder, names
        self.chosen = np.arange(len(names)) if chosen is None else chosen

    @classmethod
    def joined(cls, folder: Path, parts: Mapping[str, "Files"]) -> "Files":
        """The files of several folders, which lie at these paths below ``folder``."""
        names = [os.fsencode(place) + b"/" + files.name(i) for place, files in parts.items() for i in range(len(files))]
        return cls(folder, np.array(names, dtype="S"))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self.folder / os.fsdecode(self.name(index))

    def name(self, index: int) -> bytes:
        """The path below the folder, as the file system encodes it."""
        return self.names[self.chosen[index]]

    def select(self, index: np.ndarray) -> "Files":
        """Those at the positions ``index``."""
        return Files(self.folder, self.names, self.chosen[index])

    def fingerprint(self) -> str:
        """SHA-256 of the paths below the folder, in the order of ``names`` whatever that of ``chosen``."""
        names = self.names[np.sort(self.chosen)].tolist()
        lengths = np.array([len(name) for name in names], np.int64)
        return hashlib.sha256(lengths.tobytes() + b"".join(names)).hexdigest()


@dataclass(frozen=True)
class Index:
    """The files below a folder, hidden ones apart, in sorted order, and what is known of each."""

    files: Files
    stats: np.ndarray  # bytes, and nanoseconds of the last change, (n, 2) int64
    kinds: np.ndarray  # positions in KINDS, or UNKNOWN, uint8

    def copy_kinds(self, path: Path) -> None:
        """Take the kinds of files whose name, size and time are as cached in ``path``."""
        try:
            with np.load(path, allow_pickle=False) as cached:
                names, stats, kinds = (cached[key] for key in ("names", "stats", "kinds"))
        except Exception:  # there is none, or it is damaged
            return
        if np.array_equal(names, self.files.names) and np.array_equal(stats, self.stats):
            self.kinds[:] = kinds
            return
        known = dict(zip(_identities(names, stats), kinds.tolist(), strict=True))
        self.kinds[:] = [known.get(key, UNKNOWN) for key in _identities(self.files.names, self.stats)]

    def cache(self, path: Path) -> None:
        """Write what :meth:`copy_kinds` reads."""
        atomic.whole(path, atomic.arrays_into({"names": self.files.names, "stats": self.stats, "kinds": self.kinds}))


def _identities(names: np.ndarray, stats: np.ndarray) -> Iterator[tuple[bytes, int, int]]:
    """By what files are known again."""
    return zip(names.tolist(), *stats.T.tolist(), strict=True)


def index(folder: Path, whole: bool = False) -> Index:
    """List the images below ``folder`` by reading the header of each."""
    listing, cached_at = _list_files(folder), None
    if len(listing.files) >= CACHED_FROM and not whole:
        with contextlib.suppress(RuntimeError):  # a user without a home
            cached_at = index_file(folder)
            listing.copy_kinds(cached_at)
    unknown = np.flatnonzero(listing.kinds == UNKNOWN)
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(unknown), AT_ONCE):
            part = unknown[first : first + AT_ONCE]
            listing.kinds[part] = list(pool.map(_decoded_kind if whole else _kind, listing.files.select(part)))
    if cached_at is not None and len(unknown):
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
            listing.cache(cached_at)
    return listing


def index_file(folder: Path) -> Path:
    """Where the index of ``folder`` is cached."""
    return cache_folder() / "indexes" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.npz"


def _kind(path: Path, whole: bool = False) -> int:
    """The position in :data:`KINDS` of a file, by its header or from all of it."""
    if path.suffix.lower() not in SUFFIXES:
        return 0
    try:
        return KINDS.index(read_image(path).mode if whole else read_kind(path))
    except (ValueError, OSError):
        return 0


def _decoded_kind(path: Path) -> int:
    with DECODING:
        return _kind(path, whole=True)


def _list_files(folder: Path) -> Index:
    """All files below ``folder``, of unknown kinds. Links to files are followed, links to folders not."""
    names, stats = list[bytes](), array("q")
    waiting = [""]
    while waiting:
        name = waiting.pop()
        path = os.path.join(folder, name)
        status = os.lstat(path) if name else None
        if status is not None and stat.S_ISLNK(status.st_mode):
            status = os.stat(path) if os.path.isfile(path) else status
        if status is None or stat.S_ISDIR(status.st_mode):
            below = sorted((n for n in os.listdir(path) if not n.startswith(".")), reverse=True)
            waiting += [f"{name}/{n}" if name else n for n in below]
        elif stat.S_ISREG(status.st_mode):
            names.append(os.fsencode(name))
            stats.extend((status.st_size, status.st_mtime_ns))
    files = Files(folder, np.array(names, dtype="S"))
    return Index(files, np.array(stats, np.int64).reshape(-1, 2), np.full(len(names), UNKNOWN, np.uint8))


# ── Folders as data ───────────────────────────────────────────────────────────────────────────────────────────────────


def load_folder(
    *,
    path: str | Path,
    size: int | str | list[int],
    channels: int | None = None,
    resize: str = "bilinear",
    background: str = "white",
    crop: bool | int = True,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    grey: bool | list[str] = False,
    strict: bool = False,
    classes: bool | list[str] = False,
) -> Data:
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    The header of every file is read here, once for folders of many files (see :mod:`indm.workbench.data.folder`). What
    is no image is skipped and counted. An image whose damage shows only when it is decoded is replaced by the next, see
    :class:`ImageFiles`. With ``strict`` every file is decoded here, and either is an error.

    Images are turned upright as their EXIF data say.

    Args:
        path: the folder.
        size: side in pixels of the square to which all images are brought, or height x width: "24x48" or [24, 48].
        channels: 1 (grey) or 3 (RGB), by default 3 where any image is in colour.
        resize: how: "bilinear", "bicubic", "lanczos", …; antialiased.
        background: behind transparent pixels: "white", "black", "#rrggbb" or a colour that Pillow's ImageColor knows.
        crop: true cuts out the largest rectangle in the middle with the aspect ratio of ``size``, a number the one with
            that shorter side; false squeezes.
        valid: fraction of the images for validation.
        test: fraction of the images for the test.
        seed: of the split.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        grey: whether images are made grey whatever the channels, or those of which classes. What is translated into
            them is written in grey.
        strict: decode every file now, and take none that is no image or damaged.
        classes: whether each folder in it is a class, called like that folder; or those folders in it that are, and
            then no other is read.

    Raises:
        ValueError: an option out of range, an image that memory cannot hold, or a folder without images.
    """
    options = ImageOptions(
        size=size, channels=channels, resize=resize, background=background, crop=crop, valid=valid, test=test,
        seed=seed, limit=limit, centered=centered, flip=flip,
    )  # fmt: skip
    folder = Path(path).expanduser()
    if isinstance(classes, bool):
        files, (n_grey, n_colour), notes = find_images(folder, strict=strict)
        names, labels = [], classes_of(files) if classes else []
    else:
        names = classes
        files, (n_grey, n_colour), notes, labels = find_classes(folder, names, strict=strict)
    notes.append(options.note)
    if options.channels is None and n_grey and n_colour:
        notes.append(f"RGB, as {n_colour} images are in colour and {n_grey} are grey; data.channels 1 makes all grey")
    made_grey = _made_grey(grey, labels, len(files))
    return options.data_of("folder", folder, files, n_colour > 0, notes, labels, names, made_grey)


def classes_of(files: Files) -> list[str]:
    """The folder of the main one in which each file is."""
    names = [os.fsdecode(files.name(i)) for i in range(len(files))]
    for name in names:
        if "/" not in name:
            raise ValueError(
                f"data.classes must be false, or each image in the folder of its class: {name!r} is in none"
            )
    return [name.split("/")[0] for name in names]


def find_classes(
    folder: Path, names: Sequence[str], *, strict: bool = False
) -> tuple[Files, tuple[int, int], list[str], list[str]]:
    """What :func:`find_images` finds in the folders ``names`` below ``folder``, and the name for each file."""
    if len(set(names)) < 2:
        raise ValueError(f"data.classes must be true, false or two different folders or more, got {list(names)}")
    parts, kinds, notes = {}, np.zeros(2, int), []
    for name in names:
        parts[name], found, more = find_images(folder / name, strict=strict)
        kinds += found
        notes += more
    labels = [name for name, files in parts.items() for _ in files]
    grey, colour = kinds.tolist()
    return Files.joined(folder, parts), (grey, colour), notes, labels


def _made_grey(grey: bool | Sequence[str], labels: Sequence[str], n: int) -> Tensor:
    """Which of ``n`` files are made grey, as ``grey`` says."""
    if isinstance(grey, bool):
        return torch.full((n,), grey)
    unknown = sorted(set(grey) - set(labels))
    if unknown:
        classes = ", ".join(sorted(set(labels))) or "none: data.classes is false"
        raise ValueError(f"grey must be true, false or names of classes ({classes}), got {brief(unknown[0])!r}")
    return torch.tensor([label in grey for label in labels])


def find_images(folder: Path, *, whole: bool = False, strict: bool = False) -> tuple[Files, tuple[int, int], list[str]]:
    """The images under a folder in sorted order, hidden files apart, how many are grey and in colour, and notes.

    ``whole`` decodes every file in place of reading its header; ``strict`` too, and then none may be skipped.
    """
    if not folder.is_dir():
        what = f"a file; its folder is '{folder.parent}'" if folder.exists() else "not there"
        raise ValueError(f"path '{folder}' must be a folder, and it is {what}")
    listing = index(folder, whole=whole or strict)
    files = listing.files
    bad, grey, colour = np.bincount(listing.kinds, minlength=3).tolist()
    notes = [f"read from {folder}, listed by {'decoding each' if whole or strict else 'the header of each'}"]
    count = counted(len(files), "file")
    if not grey + colour:
        raise ValueError(f"no readable images in '{folder}' ({count}); png, jpeg, webp, bmp, … would do")
    if bad:
        first = f"the first is {_first_bad(listing)}"
        if strict:
            raise ValueError(f"strict: {bad} of {count} cannot be read as images; {first}")
        notes.append(f"skipped {bad} of {count}, unreadable as images; {first}")
        warnings.warn(notes[-1], stacklevel=3)
    return files.select(np.flatnonzero(listing.kinds)), (grey, colour), notes


def _first_bad(listing: Index) -> str:
    """The first file that is no image, and why."""
    path = listing.files[int(np.argmin(listing.kinds))]
    if path.suffix.lower() not in SUFFIXES:
        return f"{path}: not an image by its name"
    try:
        read_image(path)
    except (ValueError, OSError) as error:
        return f"{path}: {reason(error)}"
    return f"{path}: it has changed since it was looked at"
