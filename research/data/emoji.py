"""Emoji of the npm packages emoji-datasource-google and emoji-datasource-twitter: small drawings in
colour.

Many emoji are one drawing in several skin tones and genders. A *concept* is what such variants have
in common, and each concept lies in one split.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from indm.checks import brief
from indm.workbench.data.base import Data, describe_split
from indm.workbench.data.folder import fingerprint_of, list_images
from indm.workbench.data.images import ImageFiles, data_of_images

SIDE = 64  # pixels of the files
VALID, TEST = 0.1, 0.2  # shares of the concepts
# skin, gender, joiner, style
VARIANTS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "2640", "2642", "200d", "fe0f"}
PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman → adult
# → child, older adult
PEOPLE |= {"1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3"}
MIRRORED = "-27a1"  # at the end of a name: facing right
# concepts that one package or both draw as another one, within 3 grey levels (RMS at 32×32)
ALIKE = {
    "1f46a": "1f9d1-1f9d1-1f9d2", "1f471": "1f9d1", "1f64e": "1f64d",  # family, blond, pouting
    # flags of territories
    "1f1ed-1f1f2": "1f1e6-1f1fa", "1f1e7-1f1fb": "1f1f3-1f1f4", "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1e8-1f1f5": "1f1eb-1f1f7", "1f1f2-1f1eb": "1f1eb-1f1f7", "1f1e9-1f1ec": "1f1ee-1f1f4",
    "1f1ea-1f1e6": "1f1ea-1f1f8", "1f1fa-1f1f2": "1f1fa-1f1f8", "1f1e8-1f1f6": "1f1f8-1f1e6",
}  # fmt: skip
NAME = re.compile(r"[0-9a-f]{4,5}(-[0-9a-f]{4,5})*")
# two regional indicators, or tags
FLAG = re.compile(r"(1f1(e[6-9a-f]|f[0-9a-f])-?){2}|1f3f4(-e00[0-9a-f]{2})+")
HOW = "npm pack emoji-datasource-google@16.0.0 (or emoji-datasource-twitter), then tar xzf on the file it leaves"


def load_emoji(
    *,
    path: str | Path,
    size: int = 32,
    flags: Literal["without", "only", "with"] = "without",
    background: str = "white",
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
) -> Data:
    """Emoji as RGB, split by concept: 70 % of the concepts to train, 10 % to validate, 20 % to
    test.

    The training split has all images of its concepts, the others have one image a concept. Which
    concept is in which split, and which image stands for it, follow from the names and ``seed``
    alone: the packages have the same splits.

    Args:
        path: the unpacked package (``npm pack emoji-datasource-google@16.0.0``), or a folder of its
            PNGs (64×64 with alpha, named by their code points).
        size: side in pixels, 64 or 32; 32 takes the mean of 2×2 pixels.
        flags: of countries, territories and regions: "without" them, "only" these, or "with" all
            other emoji.
        background: behind transparent pixels, see :func:`indm.workbench.data.images.colour_of`.
        seed: of the split.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random: some concepts are others' mirror
            images.

    Raises:
        ValueError: the folder is missing, has several sets of images or files of other names, or
            too few.
    """
    if size not in (SIDE // 2, SIDE):
        raise ValueError(f"size must be {SIDE // 2} or {SIDE}, got {size}")
    folder = image_folder(Path(path).expanduser())
    files = list_images(folder)
    notes = [f"read from {folder}"]
    unknown = [file for file in files if not NAME.fullmatch(file.stem)]
    if unknown:
        raise ValueError(
            f"path must hold images named by code points, as 1f600.png, got {brief(unknown[0])}"
        )
    files = [file for file in files if flags == "with" or is_flag(file.stem) == (flags == "only")]
    names = [file.stem for file in files]
    parts = split_by_concept(names, seed, limit)
    shape = (3, size, size)
    sets = {
        part: ImageFiles([files[i] for i in chosen], shape, resize="box", background=background)
        for part, chosen in parts.items()
    }
    notes += [
        f"{flags} flags, on {background}"
        + (f", mean of 2×2 pixels of {SIDE}" if size < SIDE else "")
    ]
    concepts = len(set(map(concept, names)))
    notes += [describe_split(parts, seed, f"of {len(names)} images of {concepts} concepts ")]
    return data_of_images(
        "emoji", sets, centered, flip, notes=notes, fingerprint=fingerprint_of(files, folder)
    )


def image_folder(path: Path) -> Path:
    """The folder of the images in an unpacked package, else ``path`` itself."""
    if not path.is_dir():
        raise ValueError(f"path '{path}' is not a folder; to get the images: {HOW}")
    found = [*path.glob(f"img/*/{SIDE}"), *path.glob(f"package/img/*/{SIDE}")]
    if len(found) > 1:
        raise ValueError(
            f"path '{path}' holds {len(found)} sets of images: name one of them, such as {min(found)}"
        )
    return found[0] if found else path


def concept(name: str) -> str:
    """The subject of an emoji, whatever the skin tone and the gender, from the name of its file
    without the suffix.

    >>> concept("1f468-1f3fe-200d-1f33e"), concept("1f9d1-200d-1f33e")
    ('1f9d1-1f33e', '1f9d1-1f33e')
    """
    kept = "-".join(PEOPLE.get(code, code) for code in name.split("-") if code not in VARIANTS)
    kept = kept.removesuffix(MIRRORED)
    return ALIKE.get(kept, kept)


def is_flag(name: str) -> bool:
    """Whether it is the flag of a country, a territory or a region: no pirates', rainbow, white or
    chequered flag.
    """
    return FLAG.fullmatch(name) is not None


def split_by_concept(
    names: Sequence[str], seed: int = 0, limit: int | None = None
) -> dict[str, Tensor]:
    """The positions of the names of each split, see :func:`load_emoji`; ``limit`` keeps the first
    training ones.
    """
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    seen = set()
    for position in sorted(range(len(names)), key=lambda i: _hashed(names[i], seed)):
        shown = concept(names[position])
        place = _hashed(shown, seed)
        part = "test" if place < TEST else "valid" if place < TEST + VALID else "train"
        if part == "train" or shown not in seen:
            parts[part].append(position)
        seen.add(shown)
    empty = [part for part, positions in parts.items() if not positions]
    if empty:
        raise ValueError(
            f"{len(seen)} concepts are too few: none is in the split {empty[0]}; the packages have 1,700"
        )
    parts["train"] = parts["train"][:limit]
    return {part: torch.tensor(positions) for part, positions in parts.items()}


def _hashed(text: str, seed: int) -> float:
    """A number in [0, 1) that looks drawn at random."""
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8]) / 2**64
