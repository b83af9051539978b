"""Images that lie inside other files, shards or tables, as a data set."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from indm.data.base import Data, condition_fields
from indm.data.folder import checked_sides
from indm.data.image_files import ImageFiles
from indm.data.images import Stored, read_kind
from indm.data.raw import Size, words_of
from indm.data.splits import counts, describe_split, split
from indm.scaling import Scaling

LOOKED_AT = 32  # images whose headers decide on colour


def stored_images(
    images: Sequence[Stored],
    labels: Sequence[str] | np.ndarray,
    name: str,
    where: str | Path,
    fingerprint: str,
    *,
    size: Size,
    channels: int | None,
    resize: str,
    crop: bool | int,
    background: str,
    valid: float,
    test: float,
    seed: int,
    limit: int | None,
    centered: bool,
    flip: bool,
) -> Data:
    """``images``, read when asked for, with a class for each where there are ``labels``.

    The options are those of :func:`indm.data.folder.load_folder`; colour is decided by the first images.

    Raises:
        ValueError: an option out of range, or no images.
    """
    if not len(images):
        raise ValueError(f"{where} holds no images")
    sides = checked_sides(size, channels, resize, crop, background)
    if channels is None:
        looked_at = np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int)
        channels = 3 if "RGB" in _kinds(images[i] for i in looked_at.tolist()) else 1
    shape = (channels, *sides)
    parts = split(len(images), **counts(len(images), valid, test), seed=seed, limit=limit)
    sets = {
        part: ImageFiles(Subset(images, index.tolist()), shape, resize, crop, background)  # type: ignore[arg-type]
        for part, index in parts.items()
    }
    how = "squashed" if crop is False else "centre-cropped"
    notes = [f"{len(images)} images of {where}, {how}, resized to {words_of(sides)} ({resize}), on {background}"]
    about: dict[str, Any] = {"shape": shape, "flip": flip, "fingerprint": fingerprint}
    about["notes"] = [*notes, describe_split(parts, seed)]
    about |= condition_fields(labels, parts, where) if len(labels) else {}
    return Data(name=name, scaling=Scaling.images(256, centered), **about | sets)


def _kinds(images: Iterable[Stored]) -> set[str]:
    """The kinds of the images, see :func:`read_kind`; :class:`ImageFiles` reports those that cannot be read."""
    kinds = set()
    for image in images:
        with contextlib.suppress(ValueError, OSError):
            kinds.add(read_kind(image))
    return kinds
