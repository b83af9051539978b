"""Arrays in .npy and .npz files, and tables of numbers in text files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm.checks import brief, nearest, reason
from indm.files import untrusted
from indm.files.untrusted import check_plain
from indm.workbench.data import tables
from indm.workbench.data.base import Data, as_data
from indm.workbench.data.raw import Mapped, grey_levels


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
    x: str | tuple[str, ...] = (),
    c: str | tuple[str, ...] = (),
    mmap: bool = False,
) -> Data:
    """An array of a .npy or .npz file, or a table of a .csv, .tsv or .txt file.

    Floats (N, D) are vectors, standardised by the training split. Integers are grey levels 0 … ``levels`` − 1:
    images (N, H, W), (N, H, W, C) or (N, C, H, W), or vectors (N, D). For tables see
    :func:`indm.workbench.data.tables.read_columns`; they are floats without ``levels``, and integers with them.

    Args:
        path: the file.
        key: name of the array in an .npz; by default ``samples``, ``x`` or the only one.
        levels: number of grey levels of integers; by default 256 if they are uint8.
        valid: fraction of the examples for validation.
        test: fraction of the examples for the test.
        seed: of the split.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        x: columns of a table by name; by default all but ``c``.
        c: what the condition of each example is: columns of a table by name, the key of another array of an .npz, or
            another .npy file by its path from the same folder. One column of words or whole numbers is one of class
            labels.
        mmap: leave the numbers of a .npy file on disk, and read rows as training asks for them: for more than memory
            holds.
    """
    place, columns = Path(path).expanduser(), (c,) if isinstance(c, str) and c else tuple(c)
    if mmap:
        beside = untrusted.array(place.parent / columns[0]) if c else None
        arrays: list[Any] = [Mapped(_mapped_array(place), levels, place), beside]
    else:
        arrays = _with_conditions(place, key, levels, (x,) if isinstance(x, str) else tuple(x), columns)
    conditions = arrays.pop()
    data = as_data(
        arrays.pop(),  # so that nobody else holds it
        name="array", levels=levels, valid=valid, test=test, seed=seed, limit=limit, centered=centered, flip=flip,
        where=path, c=False if conditions is None else conditions,
    )  # fmt: skip
    return replace(data, notes=[f"read from {path}" + (f", key {key}" if key else ""), *data.notes])


def _mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory and not read; ValueError where it is another file, or of objects."""
    try:
        check_plain(path)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        what = "cannot be mapped into memory, as an .npy file of numbers can"
        raise ValueError(f"{path} {what}: {reason(error)}") from error


def _with_conditions(
    path: Path, key: str | None, levels: int | None, x: tuple[str, ...], c: tuple[str, ...]
) -> list[Any]:
    """The array of a file, and the conditions that ``c`` names in it or beside it, None without."""
    if path.suffix.lower() in tables.SUFFIXES | tables.PARQUET:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a table is one array without a name")
        values, conditions = tables.read_columns(path, x, c)
        is_whole = levels is not None and np.array_equal(values, np.floor(values))
        return [values.astype(np.int64) if is_whole else values, conditions]
    if x or len(c) > 1:
        raise ValueError(f"{path} has no named columns: data.x and several data.c are for tables, got {(*x, *c)}")
    array = _read_array(path, key)
    if array.dtype.kind == "f" and array.ndim > 2:  # grey levels that were most likely lost
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; float vectors or uint8 images would do")
    if not c:
        return [array, None]
    is_beside = untrusted.array_names(path) is None
    return [array, untrusted.array(path.parent / c[0]) if is_beside else _read_array(path, c[0])]


def read_events(path: Path, levels: int | None) -> Tensor:
    """The events of a .npy, .npz (the only array, or ``samples``) or .csv file, in data units, (N, *event)."""
    array, _ = _with_conditions(path, None, levels, (), ())
    if 0 in array.shape:
        raise ValueError(f"{path} holds no events: its shape is {array.shape}")
    if (levels is None) != (array.dtype.kind == "f"):
        wanted = "floats" if levels is None else f"integers 0 … {levels - 1}"
        raise ValueError(f"{path} must hold {wanted}, as the model has them, got {array.dtype}")
    events = array.astype(np.float32, copy=False) if levels is None else grey_levels(array, levels, path)[0]
    return torch.from_numpy(events)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    if path.is_dir():
        raise ValueError(f'{path} is a folder: a .npy, .npz or .csv file would do, and "--data folder" reads images')
    if path.is_file() and path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path} is not a .npy, .npz, .csv or .parquet file: write it as one of these")
    names = untrusted.array_names(path)
    if names is None:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a .npy file holds one array without a name")
        return untrusted.array(path)
    if not names:
        raise ValueError(f"{path} holds no arrays; one with an array of the data would do")
    usual = [name for name in ("samples", "x") if name in names] or names
    if key is None and (len(usual) == 1 or usual is not names):
        key = usual[0]
    if key is None:
        raise ValueError(f"{path} holds several arrays; pass key= one of {brief(', '.join(names))}")
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}{nearest(key, map(brief, names))}")
    return untrusted.array(path, key)
