"""Folders of images."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm.data.base import Data, condition_fields, events_of_shape
from indm.data.folder_index import Files, Index, index
from indm.data.image_files import ImageFiles
from indm.data.images import RESIZE_MODES, SUFFIXES, colour_of, read_image
from indm.data.raw import Size, check_size, height_and_width, words_of
from indm.data.splits import counts, describe_split, split
from indm.files.memory import most_memory
from indm.messages import brief, counted, nearest, reason
from indm.scaling import Scaling


@events_of_shape(lambda options: (options["channels"], *height_and_width(options["size"])))
def load_folder(
    *,
    path: str | Path,
    size: int | str | list[int],
    channels: int | None = None,
    grey: bool | list[str] = False,
    resize: str = "bilinear",
    crop: bool | int = True,
    background: str = "white",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    classes: bool | list[str] = False,
) -> Data:
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    The header of every file is read here, once for folders of many files (see :mod:`indm.data.folder_index`). What is
    no image is skipped and counted. An image whose damage shows only when it is decoded is replaced by the next, see
    :class:`ImageFiles`. With ``strict`` every file is decoded here, and either is an error.

    Images are turned upright as their EXIF data say.

    Args:
        path: the folder.
        size: side in pixels of the square to which all images are brought, or height x width: "24x48" or [24, 48].
        channels: 1 (grey) or 3 (RGB), by default 3 where any file is in colour.
        grey: whether images are made grey whatever the channels, or those of which classes. What is translated into
            them is written in grey.
        resize: how: "bilinear", "bicubic", "lanczos", …; antialiased.
        crop: true cuts out the largest rectangle in the middle with the aspect ratio of ``size``, a number the one with
            that shorter side; false squeezes.
        background: behind transparent pixels: "white", "black", "#rrggbb" or a colour that Pillow's ImageColor knows.
        valid: fraction of the images for validation.
        test: fraction of the images for the test.
        seed: of the split.
        strict: decode every file now, and take none that is no image or damaged.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        classes: whether each folder in it is a class, called like that folder; or those folders in it that are, and
            then no other is read.
    """
    folder = Path(path).expanduser()
    sides = checked_sides(size, channels, resize, crop, background)
    if isinstance(classes, bool):
        files, (n_grey, n_colour), notes = find_images(folder, strict=strict)
        names, labels = [], classes_of(files) if classes else []
    else:
        names = classes
        files, (n_grey, n_colour), notes, labels = find_classes(folder, names, strict=strict)
    how = "squashed" if crop is False else "centre-cropped"
    notes.append(f"{how}, resized to {words_of(sides)} ({resize}), on {background}")
    if channels is None and n_grey and n_colour:
        notes.append(f"RGB, as {n_colour} images are in colour and {n_grey} are grey; data.channels 1 makes all grey")
    shape = (channels or (3 if n_colour else 1), *sides)
    made_grey = _made_grey(grey, labels, len(files))
    parts = split(len(files), **counts(len(files), valid, test), seed=seed, limit=limit)
    sets = {
        part: ImageFiles(files.select(chosen.numpy()), shape, resize, crop, background, made_grey[chosen])
        for part, chosen in parts.items()
    }
    notes.append(describe_split(parts, seed))
    scaling = Scaling.images(256, centered)
    about: dict[str, Any] = {"shape": shape, "flip": flip, "notes": notes, "fingerprint": files.fingerprint()}
    about |= condition_fields(labels, parts, folder, names) if labels else {}
    return Data(name="folder", scaling=scaling, **about | sets)


def classes_of(files: Files) -> list[str]:
    """The folder of the main one in which each file is.

    Raises:
        ValueError: a file is in none.
    """
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
    """Which of ``n`` files are made grey, as ``grey`` says.

    Raises:
        ValueError: it names a class that there is not.
    """
    if isinstance(grey, bool):
        return torch.full((n,), grey)
    unknown = sorted(set(grey) - set(labels))
    if unknown:
        classes = ", ".join(sorted(set(labels))) or "none: data.classes is false"
        raise ValueError(f"grey must be true, false or names of classes ({classes}), got {brief(unknown[0])!r}")
    return torch.tensor([label in grey for label in labels])


def checked_sides(size: Size, channels: int | None, resize: str, crop: bool | int, background: str) -> tuple[int, int]:
    """Height and width of the images that these options of :func:`load_folder` give.

    Raises:
        ValueError: an option out of range.
    """
    sides = height_and_width(size)
    check_decoded((channels or 3, *sides))
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    if resize not in RESIZE_MODES:
        raise ValueError(f"unknown resize {resize!r}{nearest(resize, RESIZE_MODES)}")
    if crop is not True and crop is not False:
        check_size(crop)
    colour_of(background)
    return sides


def check_decoded(shape: tuple[int, int, int]) -> None:
    """ValueError where memory cannot hold one image, as Pillow has it (4 bytes a pixel), as bytes and as floats."""
    channels, *sides = shape
    needed, most = math.prod(sides) * (4 + 5 * channels), most_memory()
    if needed > most:
        raise ValueError(
            f"size must be such that memory holds an image: {'×'.join(map(str, sides))} pixels take "
            f"{needed / 2**30:,.1f} GiB, and there are {most / 2**30:,.1f} GiB"
        )


def find_images(folder: Path, *, whole: bool = False, strict: bool = False) -> tuple[Files, tuple[int, int], list[str]]:
    """The images under a folder (recursive, hidden files apart) in sorted order, how many are grey and colour, notes.

    Args:
        folder: where to look; files that are no image are skipped and counted.
        whole: decode every file in place of reading its header, so that damaged ones are skipped too.
        strict: decode every file, and let one that is skipped be an error.

    Raises:
        ValueError: no folder, or none with images.
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
