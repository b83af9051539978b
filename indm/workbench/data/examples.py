"""Raw values: checked, brought to one layout, as data sets and in batches."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Num, Shaped
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from indm.checks import require
from indm.scaling import Scaling, check_levels

MIN_SIZE = 8  # pixels
# least deviation of a column in steps of single precision; below it a density describes the rounding
ULPS = 100
ROUNDING_OF_COLUMN = 1e-12  # largest relative spread of a constant column
# size of images: a side of squares, "24x48" or (24, 48), height before width
Size = int | str | Sequence[int]


def height_and_width(size: Size) -> tuple[int, int]:
    """Height and width of a ``size``.

    Raises:
        ValueError: it is not a size, or is too small for the networks.

    >>> height_and_width(32), height_and_width("24x48"), height_and_width([24, 48])
    ((32, 32), (24, 48), (24, 48))
    """
    sides: Any = [size] if isinstance(size, int) else size
    if isinstance(size, str):
        words = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", size.strip())
        sides = [int(w) for w in words.groups() if w] if words else size
    whole = not isinstance(sides, str) and all(isinstance(side, int) for side in sides)
    wanted = 'a side of squares, or height x width as "24x48" or [24, 48]'
    require(whole and len(sides) in (1, 2), "size", size, wanted)
    height, width = (*sides, *sides)[:2]
    check_size(height, width)
    return height, width


def words_of(sides: Sequence[int]) -> str:
    """Height and width in words: "32" for a square, else "24x48"."""
    height, width = sides
    return str(height) if height == width else f"{height}x{width}"


def check_size(*sides: int) -> None:
    """ValueError for images that are too small for the networks."""
    if min(sides) < MIN_SIZE:
        got = "×".join(map(str, sides))
        raise ValueError(
            f"images must be at least {MIN_SIZE} pixels high and wide, got a size of {got}"
        )


def to_array(values: object, where: str | Path) -> np.ndarray:
    """A tensor, an image of PIL or anything that NumPy can read, as floats or integers.

    Memory is shared if possible. ``where`` names the values in errors.
    """
    if isinstance(values, Image.Image) and values.mode not in ("L", "RGB"):
        raise ValueError(f'{where} is an image of mode {values.mode}; convert it to "L" or "RGB"')
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    else:
        array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        kind = "" if isinstance(values, np.ndarray) else f" ({type(values).__name__})"
        raise ValueError(
            f"{where} must hold floats or integers, got {array.dtype}{kind} of shape {array.shape}"
        )
    return array


def events(values: object, levels: int | None, where: str | Path) -> tuple[np.ndarray, int | None]:
    """``values`` (N, …) in one layout, and their number of grey levels, None for floats.

    Floats become float32 (N, *event). Integers 0 … ``levels`` − 1, by default 256 for uint8 images,
    may be (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W), and become (N, D) or (N, C, H, W).
    """
    array = to_array(values, where)
    floats = array.dtype.kind == "f"
    if array.ndim < 2 or 0 in array.shape or (array.ndim > 4 and not floats):
        raise ValueError(
            f"{where} must have shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W), got {array.shape}"
        )
    if not floats:
        return grey_levels(array, levels, where)
    if levels is not None:
        raise ValueError(f"levels are for integer data; {where} holds {array.dtype}")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, np.float32)
    broken = np.flatnonzero(~np.isfinite(single).reshape(len(array), -1).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{where}: {len(broken)} of {len(array)} rows hold NaN or inf, first row {broken[0]}"
        )
    lost = np.flatnonzero(are_lost(array))
    if len(lost):
        why = in_words_lost(array.reshape(len(array), -1)[:, lost[0]])
        raise ValueError(f"{where}: {why}, in column {lost[0]}")
    return single, None


def are_lost(array: np.ndarray) -> np.ndarray:
    """A mask of the entries of an event that vary by too few steps of single precision."""
    if array.dtype.itemsize <= 4:
        return np.zeros(array.shape[1:], dtype=bool)
    most, width = np.abs(array).max(0), np.ptp(array, axis=0)
    step = np.spacing(most.astype(np.float32))
    return (width > ROUNDING_OF_COLUMN * most) & (array.std(0) < ULPS * step)


def in_words_lost(column: np.ndarray) -> str:
    """What is wrong with a column of :func:`are_lost`, and how to correct it."""
    what = f"numbers near {np.abs(column).max():.6g} that vary by {column.std():.2g}"
    return f"{what} need more digits than single precision has; subtract a constant, such as the first one"


def grey_levels(array: np.ndarray, levels: int | None, where: str | Path) -> tuple[np.ndarray, int]:
    """Integers checked against ``levels``, images brought to (N, C, H, W); see :func:`events`."""
    if levels is None and (array.dtype != np.uint8 or array.ndim == 2):
        raise ValueError(
            f"{where} holds {array.dtype}: give levels (256: whole values from 0 to 255), or store floats"
        )
    levels = 256 if levels is None else levels
    check_levels(levels)
    if array.min() < 0 or array.max() >= levels:
        raise ValueError(
            f"{where} holds values {array.min()} … {array.max()}, not 0 … {levels - 1}; pass levels="
        )
    if array.ndim == 3:
        array = array[:, None]
    # the short axis is the channels
    elif array.ndim == 4 and array.shape[-1] < MIN_SIZE <= array.shape[1]:
        array = np.moveaxis(array, -1, 1)
    if array.ndim == 4:
        check_size(*array.shape[2:])
    return np.ascontiguousarray(array, dtype=np.uint8 if levels <= 256 else np.int32), levels


# ── Data sets


@runtime_checkable
class Examples(Protocol):
    """A map-style data set whose items are tensors of one shape, in data units."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class InMemory(Dataset):
    """The rows of ``tensor`` (N, *event). A training loop may index ``.tensor`` directly.

    Example:

        >>> examples = InMemory(torch.arange(6).reshape(3, 2))
        >>> len(examples), examples.shape, examples[1].tolist()
        (3, (2,), [2, 3])
        >>> examples.select(torch.tensor([2, 0])).tensor.tolist()
        [[4, 5], [0, 1]]
    """

    def __init__(self, tensor: Shaped[Tensor, "n *event"]):
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch at once; ``DataLoader`` calls it."""
        return self.tensor[indices]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item."""
        return tuple(self.tensor.shape[1:])

    def select(self, index: Tensor) -> "InMemory":
        """A copy of the rows at the positions ``index``."""
        return InMemory(self.tensor[index])

    def fingerprint(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(self.tensor.numpy().data).hexdigest()

    def standardised(self) -> Scaling:
        """The scaling to zero mean and unit variance in each dimension."""
        return Scaling.standardise(self.tensor)


class OnDemand(Dataset):
    """The items of a map-style data set, read and checked when they are needed.

    If items are tuples or lists, their first entries are used.
    """

    def __init__(
        self, source: Any, levels: int | None, where: str | Path, chosen: Tensor | None = None
    ):
        self.source, self.where = source, where
        self.chosen = torch.arange(len(source)) if chosen is None else chosen
        first, self.levels = self._row(0, levels)
        self.shape = first.shape

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        position = int(self.chosen[index])
        row, levels = self._row(position, self.levels)
        if (row.shape, levels) != (self.shape, self.levels):
            raise ValueError(
                f"all items must be of one shape and kind: item {position} of {self.where} is {row.dtype} of shape "
                f"{row.shape}, item 0 has shape {self.shape} and levels {self.levels}"
            )
        return torch.from_numpy(row)

    def _row(self, position: int, levels: int | None) -> tuple[np.ndarray, int | None]:
        """An item as :func:`events` lays it out, and the number of its levels."""
        item, where = self.source[position], f"item {position} of {self.where}"
        value = item[0] if isinstance(item, tuple | list) else item
        rows, levels = events(to_array(value, where)[None], levels, where)
        return rows[0], levels

    def select(self, index: Tensor) -> "OnDemand":
        """The items at the positions ``index``."""
        return OnDemand(self.source, self.levels, self.where, self.chosen[index])

    def fingerprint(self) -> str:
        """SHA-256 of the number of items: their contents would all have to be read."""
        return hashlib.sha256(f"{len(self)} items".encode()).hexdigest()

    def standardised(self) -> Scaling:
        """The scaling to zero mean and unit variance in each dimension; reads every item once."""
        return Scaling.standardise_parts(self[i][None] for i in range(len(self)))


class Paired(Dataset):
    """Pairs (x, c) of the examples of a data set and the rows of a tensor."""

    def __init__(self, examples: Examples, c: Tensor):
        self.examples, self.c = examples, c

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.examples[index], self.c[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once; ``DataLoader`` calls it."""
        at_once = getattr(self.examples, "__getitems__", None)
        items = at_once(indices) if at_once else [self.examples[i] for i in indices]
        return collate(items), self.c[indices]


# ── Batches


def flip_horizontally(raw: Num[Tensor, "batch c h w"]) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    flipped = torch.rand(len(raw), 1, 1, 1, device=raw.device) < 0.5
    return torch.where(flipped, raw.flip(-1), raw)


def collate(items: Any) -> Any:
    """The batch of a list of items; anything else is a batch already."""
    return torch.stack(items) if isinstance(items, list) else items


def loader(
    dataset: Examples | Paired,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader:
    """One epoch of batches (B, *event), in an order that depends only on ``seed`` and ``epoch``.

    To resume in the middle of an epoch, take the same epoch and skip the batches that were used
    (``accelerate.skip_first_batches`` does not read them).

    Example: an epoch has each example once, in an order that can be repeated.

        >>> examples = InMemory(torch.arange(10)[:, None])
        >>> epoch = [torch.cat(list(loader(examples, 4, shuffle=True, epoch=3))).flatten().tolist() for _ in range(2)]
        >>> sorted(epoch[0]) == list(range(10)), epoch[0] == epoch[1]
        (True, True)
        >>> [len(batch) for batch in loader(examples, 4, shuffle=False)]
        [4, 4, 2]
    """
    order: Sequence[int] = range(len(dataset))
    if shuffle:
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(
            len(dataset), generator=torch.Generator().manual_seed(state)
        ).tolist()
    return DataLoader(
        cast(Dataset, dataset),
        batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
