"""The examples that are to be translated: image files, folders, glob patterns and arrays."""

import functools
import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from indm.data import tables
from indm.data.arrays import read_events
from indm.data.images import SUFFIXES, fitted, part, read_alpha, read_image
from indm.model import INDM

ARRAY_SUFFIXES = {".npz", ".npy"}
SHEET = "sheet"  # a picture beside the results, so that an image of that name keeps its suffix


class Example(NamedTuple):
    """What was read.

    Attributes:
        pixels: (C, H, W) or (D,) in data units.
        note: what was done to them; "" for nothing.
        sides: height and width of what they show in the pixels of its file; None of no image file.
        alpha: how opaque that is, an image of mode "L"; None where it is opaque, or nobody asked.
    """

    pixels: Num[Tensor, "*event"]
    note: str = ""
    sides: tuple[int, int] | None = None
    alpha: Image.Image | None = None


@dataclass(frozen=True)
class Item:
    """One example to be translated.

    Attributes:
        name: of its result, without suffix.
        source: the file that it is in.
        read: reads the example.
        row: of an array; None of an image file.
    """

    name: str
    source: Path
    read: Callable[[], Example]
    row: int | None = None


def find(
    sources: Sequence[Path], model: INDM, data: dict, *, grey: bool = False, strict: bool = False, alpha: bool = False
) -> list[Item]:
    """The examples in files, folders (searched recursively), glob patterns, ``.npz`` and ``.npy`` arrays, and tables of
    vectors in ``.csv`` files (those of folders apart).

    Args:
        model: whose shape and grey levels they must have.
        data: the ``[data]`` table of a run on a folder: how images of another size are cut and resized, by default by
            the largest centred part of the model's aspect ratio, and the ``background`` of those with transparency, by
            default white.
        grey: make images grey, whatever the channels of the model.
        strict: an image of another size, or a file that is not an image, is an error.
        alpha: also read how opaque images are.

    Raises:
        ValueError: nothing found, an array of another shape, an image where the model has no images, or two results of
            one name.
    """
    items: list[Item] = []
    as_arrays = ARRAY_SUFFIXES | tables.SUFFIXES if len(model.shape) == 1 else ARRAY_SUFFIXES
    for file, name in found_in(sources):
        if file.suffix.lower() in as_arrays:
            items += _rows(file, name, model)
        elif len(model.shape) != 3 or model.shape[0] not in (1, 3):
            raise ValueError(f"{file}: events of shape {model.shape} are no image files; .npz, .npy or .csv would do")
        else:
            items.append(Item(name, file, image_reader(file, model, data, grey, strict, alpha)))
    return _with_names_apart(items)


def _with_names_apart(items: list[Item]) -> list[Item]:
    """The items, where two images of one name keep their suffixes; a ValueError where two results still have one."""
    names = Counter(item.name for item in items if item.row is None) + Counter([SHEET])
    items = [
        replace(item, name=f"{item.name}{item.source.suffix}") if item.row is None and names[item.name] > 1 else item
        for item in items
    ]
    written = Counter(f"{folder}{item.name}" for item in items for folder in ("", "cycle/", "strips/"))
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} names of results come twice, such as {twice[0]!r}; translate them apart")
    return items


def found_in(sources: Sequence[Path]) -> list[tuple[Path, str]]:
    """:func:`files_of` all sources; a ValueError where one of them has none."""
    found = []
    for source in sources:
        files = files_of(source)
        if not files:
            raise ValueError(f"no image or array found in '{source}'; png, jpeg, webp, … and npz, npy, csv would do")
        found += files
    return found


def files_of(source: Path) -> list[tuple[Path, str]]:
    """Files and the names of their results, without suffix: in a folder, with the path below it."""
    if source.is_dir():
        known = SUFFIXES | ARRAY_SUFFIXES
        below = sorted(path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in known)
        below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
        return [(source / path, str(path.with_suffix(""))) for path in below if (source / path).is_file()]
    if source.is_file():
        return [(source, source.stem)]
    return [(path, path.stem) for path in map(Path, sorted(_matching(source))) if path.is_file()]


def _matching(pattern: Path) -> set[str]:
    """What a glob pattern matches; its ``**`` follows no links, which may lead in circles."""
    if "**" not in pattern.parts:
        return set(glob.glob(str(pattern)))
    at, matches = pattern.parts.index("**"), set()
    below = Path(*pattern.parts[at + 1 :] or ("*",))
    for top in glob.glob(str(Path(*pattern.parts[:at]))):
        for folder, inner, _ in os.walk(top):
            inner[:] = [name for name in inner if not name.startswith(".")]
            matches |= _matching(Path(glob.escape(folder)) / below)
    return matches


def _rows(file: Path, name: str, model: INDM) -> list[Item]:
    array = read_events(file, model.scaling.levels)
    if tuple(array.shape[1:]) != model.shape:
        raise ValueError(f"{file} must hold events of shape {model.shape}, got {tuple(array.shape[1:])}")
    return [
        Item(f"{name}-{row:05d}", file, functools.partial(Example, pixels), row) for row, pixels in enumerate(array)
    ]


def image_reader(
    file: Path, model: INDM, data: dict, grey: bool = False, strict: bool = False, alpha: bool = False
) -> Callable[[], Example]:
    """What reads an image file as an example of ``model``; the arguments are those of :func:`find`."""
    channels, height, width = model.shape

    def read() -> Example:
        image, crop = read_image(file, data.get("background", "white")), data.get("crop", True)
        size, note = f"{image.width}×{image.height}", ""
        if image.size == (width, height):
            crop = False
        elif strict:
            raise ValueError(f"{size} pixels, and the model has {width}×{height}")
        else:
            note = f"resized from {size}"
        shown = part(image.convert("L") if grey else image, (height, width), crop)
        pixels = fitted(shown, (channels, height, width), data.get("resize", "bilinear"), crop=False)
        pixels = (pixels.double() * (cast(int, model.scaling.levels) - 1) / 255).round().to(torch.uint8)
        opaque = read_alpha(file) if alpha else None
        return Example(pixels, note, shown.size[::-1], opaque and part(opaque, (height, width), crop))

    return read
