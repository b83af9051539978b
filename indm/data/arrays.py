"""Arrays in .npy and .npz files."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indm.data.base import Data
from indm.data.splits import MIN_SIZE, check_size, counts, describe_split, pooled, split
from indm.files import untrusted
from indm.messages import brief, nearest
from indm.scaling import Scaling, check_levels


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
    parts = split(len(array), **counts(len(array), valid, test), seed=seed, limit=limit)
    _check_room(array, path)
    fields = pooled(torch.from_numpy(array), parts) | {"fingerprint": hashlib.sha256(array).hexdigest()}
    del array
    scaling = Scaling.images(levels, centered) if levels else Scaling.standardise(fields["train"].tensor)
    notes = [f"read from {path}" + (f", key {key}" if key else ""), describe_split(parts, seed)]
    return Data(name="array", scaling=scaling, flip=flip, notes=notes, **fields)


def _check_room(array: np.ndarray, path: str | Path) -> None:
    """ValueError where there is no memory for the splits of an array beside it."""
    try:
        untrusted.check_memory(2 * array.nbytes)
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
        check_size(*array.shape[2:])
    return np.ascontiguousarray(array, dtype=np.uint8 if levels <= 256 else np.int32), levels
