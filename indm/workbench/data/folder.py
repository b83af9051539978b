"""Folders of images, whose paths are listed in little memory."""

import hashlib
import os
import threading
import warnings
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm.checks import brief, counted, reason
from indm.workbench.data.base import Data
from indm.workbench.data.image_files import ImageOptions
from indm.workbench.data.images import SUFFIXES, read_image, read_kind

KINDS = (None, "L", "RGB")  # of a file: no image that can be used, grey, colour
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


def list_files(folder: Path) -> Files:
    """All files below ``folder`` in sorted order, hidden ones apart. Links to files are followed, to folders not."""
    start, names = len(os.path.join(os.fsencode(folder), b"")), list[bytes]()
    for place, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        paths = [os.path.join(place, name) for name in files if not name.startswith(b".")]
        names += [path[start:].replace(os.fsencode(os.sep), b"/") for path in paths if os.path.isfile(path)]
    return Files(folder, np.array(sorted(names, key=lambda name: name.split(b"/")), dtype="S"))


def kinds_of(files: Files, whole: bool = False) -> np.ndarray:
    """The positions in :data:`KINDS` of files, by their headers or, with ``whole``, from all of each."""
    kinds = array("B")
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(files), AT_ONCE):
            kinds.extend(pool.map(_decoded_kind if whole else _kind, files[first : first + AT_ONCE]))
    return np.frombuffer(kinds, np.uint8)


def _kind(path: Path, whole: bool = False) -> int:
    if path.suffix.lower() not in SUFFIXES:
        return 0
    try:
        return KINDS.index(read_image(path).mode if whole else read_kind(path))
    except (ValueError, OSError):
        return 0


def _decoded_kind(path: Path) -> int:
    with DECODING:
        return _kind(path, whole=True)


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
    classes: bool | list[str] = False,
) -> Data:
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    The header of every file is read here. What is no image is skipped and counted. An image whose damage shows only
    when it is decoded is replaced by the next, see :class:`ImageFiles`.

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
        files, (n_grey, n_colour), notes = find_images(folder)
        names, labels = [], classes_of(files) if classes else []
    else:
        names = classes
        files, (n_grey, n_colour), notes, labels = find_classes(folder, names)
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


def find_classes(folder: Path, names: Sequence[str]) -> tuple[Files, tuple[int, int], list[str], list[str]]:
    """What :func:`find_images` finds in the folders ``names`` below ``folder``, and the name for each file."""
    if len(set(names)) < 2:
        raise ValueError(f"data.classes must be true, false or two different folders or more, got {list(names)}")
    parts, kinds, notes = {}, np.zeros(2, int), []
    for name in names:
        parts[name], found, more = find_images(folder / name)
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


def find_images(folder: Path, *, whole: bool = False) -> tuple[Files, tuple[int, int], list[str]]:
    """The images under a folder in sorted order, hidden files apart, how many are grey and in colour, and notes.

    ``whole`` decodes every file in place of reading its header.
    """
    if not folder.is_dir():
        what = f"a file; its folder is '{folder.parent}'" if folder.exists() else "not there"
        raise ValueError(f"path '{folder}' must be a folder, and it is {what}")
    files = list_files(folder)
    kinds = kinds_of(files, whole)
    bad, grey, colour = np.bincount(kinds, minlength=3).tolist()
    notes = [f"read from {folder}, listed by {'decoding each' if whole else 'the header of each'}"]
    count = counted(len(files), "file")
    if not grey + colour:
        raise ValueError(f"no readable images in '{folder}' ({count}); png, jpeg, webp, bmp, … would do")
    if bad:
        first = f"the first is {_first_bad(files[int(np.argmin(kinds))])}"
        notes.append(f"skipped {bad} of {count}, unreadable as images; {first}")
        warnings.warn(notes[-1], stacklevel=3)
    return files.select(np.flatnonzero(kinds)), (grey, colour), notes


def _first_bad(path: Path) -> str:
    """A file that is no image, and why."""
    if path.suffix.lower() not in SUFFIXES:
        return f"{path}: not an image by its name"
    try:
        read_image(path)
    except (ValueError, OSError) as error:
        return f"{path}: {reason(error)}"
    return f"{path}: it has changed since it was looked at"
