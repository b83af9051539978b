"""Raw values as users have them, arrays, tensors or images: checked, and brought to one type and one layout."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from indm.messages import brief
from indm.scaling import check_levels

MIN_SIZE = 8  # pixels
Size = int | str | Sequence[int]  # of images: a side of squares, "24x48" or (24, 48), height before width


def height_and_width(size: Size) -> tuple[int, int]:
    """What a ``size`` stands for.

    Raises:
        ValueError: it is none, or one of images that are smaller than the networks can take.

    >>> height_and_width(32), height_and_width("24x48"), height_and_width([24, 48])
    ((32, 32), (24, 48), (24, 48))
    """
    words = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", size.strip()) if isinstance(size, str) else None
    sides = [size] if isinstance(size, int) else [int(w) for w in words.groups() if w] if words else size
    whole = not isinstance(sides, str) and all(isinstance(side, int) for side in sides)
    if not whole or len(sides) not in (1, 2):
        raise ValueError(
            f'size must be a side of squares, or height x width as "24x48" or [24, 48], got {brief(repr(size))}'
        )
    height, width = (*sides, *sides)[:2]
    check_size(height, width)
    return height, width


def words_of(sides: Sequence[int]) -> str:
    """Height and width as ``size`` takes them, 32 for a square and "24x48", and as messages say them."""
    height, width = sides
    return str(height) if height == width else f"{height}x{width}"


def check_size(*sides: int) -> None:
    """ValueError for images that are smaller than the networks can take."""
    if min(sides) < MIN_SIZE:
        got = "×".join(map(str, sides))
        raise ValueError(f"images must be at least {MIN_SIZE} pixels high and wide, got a size of {got}")


def to_array(values: object, where: str | Path) -> np.ndarray:
    """A tensor, an image of PIL or anything that NumPy reads as an array of floats or integers; memory is shared.

    Raises:
        ValueError: naming ``where``, for everything else.
    """
    if isinstance(values, Image.Image) and values.mode not in ("L", "RGB"):
        raise ValueError(f'{where} is an image of mode {values.mode}; convert it to "L" or "RGB"')
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        else:
            array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} cannot be read as an array of numbers: {brief(error)}") from error
    if array.dtype.kind not in "fiu":
        kind = "" if isinstance(values, np.ndarray) else f" ({type(values).__name__})"
        raise ValueError(f"{where} holds {array.dtype}{kind} of shape {array.shape}; floats or integers would do")
    return array


def events(values: object, levels: int | None, where: str | Path) -> tuple[np.ndarray, int | None]:
    """``values`` (N, …) as float32 (N, *event), or as grey levels (N, D) or (N, C, H, W), and the number of levels.

    Args:
        values: floats; or integers 0 … ``levels`` − 1 of shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W).
        levels: of integers, by default 256 for uint8 images; None for floats.
        where: what messages call the values.

    Raises:
        ValueError: naming ``where``.
    """
    array = to_array(values, where)
    floats = array.dtype.kind == "f"
    if array.ndim < 2 or 0 in array.shape or (array.ndim > 4 and not floats):
        raise ValueError(f"{where} has shape {array.shape}; (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) would do")
    if not floats:
        return grey_levels(array, levels, where)
    if levels is not None:
        raise ValueError(f"levels are for integer data; {where} holds {array.dtype}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    broken = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(broken):
        raise ValueError(f"{where}: {len(broken)} of {len(array)} rows hold NaN or inf, first row {broken[0]}")
    return array, None


def grey_levels(array: np.ndarray, levels: int | None, where: str | Path) -> tuple[np.ndarray, int]:
    """Integers checked against ``levels``, images brought to (N, C, H, W); see :func:`events`."""
    if levels is None and (array.dtype != np.uint8 or array.ndim == 2):
        raise ValueError(f"{where} holds {array.dtype}: pass levels= (for values 0 … levels − 1), or store floats")
    levels = 256 if levels is None else levels
    check_levels(levels)
    if array.min() < 0 or array.max() >= levels:
        raise ValueError(
            f"{where} holds values {array.min()} … {array.max()}, not 0 … {levels - 1}; pass other levels="
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] < MIN_SIZE <= array.shape[1]:  # the short axis is the channels
        array = np.moveaxis(array, -1, 1)
    if array.ndim == 4:
        check_size(*array.shape[2:])
    return np.ascontiguousarray(array, dtype=np.uint8 if levels <= 256 else np.int32), levels
