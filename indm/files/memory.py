"""A check of the memory that this process can have, made before any is taken for the claims of a file."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from indm.checks import reason

COPIES = 3  # copies of a file's numbers in memory at one time: as they are read, in the type of the model, and split


def check_memory(claimed: int) -> None:
    """ValueError where ``claimed`` bytes do not fit into what this machine has free."""
    free = psutil.virtual_memory().available
    if claimed > free:
        raise ValueError(f"it claims {claimed:,} bytes, and this process can have {free:,} bytes of memory")


def raise_if_out_of_memory(path: Path, error: Exception) -> None:
    """MemoryError where ``error``, raised while ``path`` was read, comes from a want of memory.

    A file that cannot be read for that reason is not damaged. PyTorch's allocator for the CPU raises a RuntimeError.
    """
    for cause in causes(error):
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(cause):
            raise MemoryError(f"{path} takes more memory than there is: {reason(error)}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors from which it was raised or during whose handling it arose."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
