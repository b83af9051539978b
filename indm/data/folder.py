"""Folders of images."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm.data.base import Data
from indm.data.folder_index import Files, Index, index
from indm.data.image_files import WholeImages, image_loader
from indm.data.images import SUFFIXES, read_image
from indm.messages import brief, counted, reason


@image_loader(WholeImages)
def load_folder(
    options: WholeImages,
    *,
    path: str | Path,
    grey: bool | list[str] = False,
    strict: bool = False,
    classes: bool | list[str] = False,
) -> Data:
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    The header of every file is read here, once for folders of many files (see :mod:`indm.data.folder_index`). What is
    no image is skipped and counted. An image whose damage shows only when it is decoded is replaced by the next, see
    :class:`ImageFiles`. With ``strict`` every file is decoded here, and either is an error.

    Images are turned upright as their EXIF data say.

    Args:
        path: the folder.
        grey: whether images are made grey whatever the channels, or those of which classes. What is translated into
            them is written in grey.
        strict: decode every file now, and take none that is no image or damaged.
        classes: whether each folder in it is a class, called like that folder; or those folders in it that are, and
            then no other is read.
    """
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
