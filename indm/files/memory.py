"""How much memory this process can have, asked before any is taken for what a file claims."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from indm.checks import reason

CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # of a control group, in version 2 and version 1
COPIES = 3  # of the numbers of a file, in memory at one time: as they are read, in the type of the model, and split


def most_memory() -> int:
    """The bytes of this machine's memory, or of what a container leaves of it."""
    return min([psutil.virtual_memory().total, *_limits()])


def check_memory(claimed: int) -> None:
    """ValueError where ``claimed`` bytes do not fit into what is free."""
    memory = min(psutil.virtual_memory().available, most_memory() - psutil.Process().memory_info().rss)
    if claimed > memory:
        raise ValueError(f"it claims {claimed:,} bytes, and this process can have {memory:,} bytes of memory")


def _limits() -> Iterator[int]:
    """The limits in bytes of the control groups that this process is in, as containers set them."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for _, kinds, group in (line.split(":", 2) for line in lines):
        if kinds not in LIMIT_FILES:
            continue
        folder = CONTROL_GROUPS / kinds / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # there is no such file, or it says "max"
                yield int((place / LIMIT_FILES[kinds]).read_text())


@contextmanager
def counting(numbers: float, error: Exception, tensors: float = math.inf) -> Iterator[None]:
    """Raise ``error`` inside as soon as the modules that are built hold more ``numbers`` or more ``tensors``."""
    counts = [0, 0]

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            counts[:] = counts[0] + tensor.numel(), counts[1] + 1
        if counts[0] > numbers or counts[1] > tensors:
            raise error

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
