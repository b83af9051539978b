"""Arrays in .npy and .npz files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm.data.base import Data, as_data
from indm.data.raw import grey_levels
from indm.files import untrusted
from indm.messages import brief, nearest


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
    data = as_data(
        _vectors_or_grey_levels(Path(path).expanduser(), key),
        name="array", levels=levels, valid=valid, test=test, seed=seed, limit=limit, centered=centered, flip=flip,
        where=path,
    )  # fmt: skip
    return replace(data, notes=[f"read from {path}" + (f", key {key}" if key else ""), *data.notes])


def read_events(path: Path, levels: int | None) -> Tensor:
    """The events of a .npy or .npz file (there the only array, or ``samples``), in data units, (N, *event).

    Where ``levels`` is a number they are grey levels, laid out as for :func:`load_array`; where it is None, floats.
    """
    array = _read_array(path, None)
    if 0 in array.shape:
        raise ValueError(f"{path} holds no events: its shape is {array.shape}")
    if (levels is None) != (array.dtype.kind == "f"):
        wanted = "floats" if levels is None else f"integers 0 … {levels - 1}"
        raise ValueError(f"{path} must hold {wanted}, as the model has them, got {array.dtype}")
    events = array.astype(np.float32, copy=False) if levels is None else grey_levels(array, levels, path)[0]
    return torch.from_numpy(events)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    names = untrusted.array_names(path)
    if names is None:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a .npy file holds one array without a name")
        return untrusted.array(path)
    if not names:
        raise ValueError(f"{path} holds no arrays; one with an array of the data would do")
    if key is None and ("samples" in names or len(names) == 1):
        key = "samples" if "samples" in names else names[0]
    if key is None:
        raise ValueError(f"{path} holds several arrays; pass key= one of {brief(', '.join(names))}")
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}{nearest(key, map(brief, names))}")
    return untrusted.array(path, key)


def _vectors_or_grey_levels(path: Path, key: str | None) -> np.ndarray:
    """The array of a file; ValueError for images of floats, whose grey levels were most likely lost on the way."""
    array = _read_array(path, key)
    if array.dtype.kind == "f" and array.ndim > 2:
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; float vectors or uint8 images would do")
    return array
