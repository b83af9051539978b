"""Arrays that are larger than memory: read from their file as rows are asked for."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from indm.data.raw import events
from indm.files.plain import check_plain
from indm.messages import reason
from indm.scaling import Scaling

AT_ONCE = 2**24  # numbers that are read at once for a mean


def mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory and not read.

    Raises:
        ValueError: it is no such file, or one of objects.
    """
    try:
        check_plain(path)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be mapped into memory, as an .npy file of numbers can: {reason(error)}"
        ) from error


class Mapped(Dataset):
    """Rows of ``array``, each read, checked and brought to the layout of all others when it is asked for.

    Args:
        array: (N, …), see :func:`indm.data.raw.events`.
        levels: number of grey levels of integers; by default 256 for images of uint8.
        where: what messages call the array.
        chosen: positions of the rows, in this order; all by default.

    Raises:
        ValueError: the first row cannot be used; on reading, another.
    """

    def __init__(self, array: np.ndarray, levels: int | None, where: str | Path, chosen: Tensor | None = None):
        self.array, self.where = array, where
        self.chosen = torch.arange(len(array)) if chosen is None else chosen
        first, self.levels = events(array[:1], levels, where)
        self.shape = tuple(first.shape[1:])

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch at once; ``DataLoader`` calls it."""
        return self._read(self.chosen[indices])

    def _read(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(events(self.array[positions.numpy()], self.levels, self.where)[0])

    def select(self, index: Tensor) -> "Mapped":
        """The rows at the positions ``index``."""
        return Mapped(self.array, self.levels, self.where, self.chosen[index])

    def fingerprint(self) -> str:
        """SHA-256 of shape and type: the numbers would all have to be read."""
        return hashlib.sha256(f"{self.array.shape} {self.array.dtype}".encode()).hexdigest()

    def standardised(self) -> Scaling:
        """The scaling to zero mean and unit variance in each dimension; reads every row once, in the file's order."""
        parts = self.chosen.sort().values.split(max(1, AT_ONCE // math.prod(self.shape)))
        return Scaling.standardise_parts(self._read(part) for part in parts)
