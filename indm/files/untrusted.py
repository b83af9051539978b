"""Files whose maker is not known: nothing in them is run, and what they claim is checked before memory is taken."""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from indm.messages import reason

LONGEST_HEADER = 2**16  # bytes of an array's header, which are a hundred
LARGEST_COUNT = 2**24  # a whole number in a description, where the weights hold fewer numbers than that
SPARE = 2**14  # numbers that a model may have beside its weights
CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # of a group, in version 2 and version 1


def check_memory(claimed: int) -> None:
    """ValueError where so many bytes are more than this machine's memory, or than a container leaves of it."""
    memory = min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits()])
    if claimed > memory:
        raise ValueError(f"it claims {claimed:,} bytes, and this process can have {memory:,} bytes of memory")


def _memory_limits() -> Iterator[int]:
    """The limits in bytes of the control groups that this process is in, as containers set them."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for _, kinds, group in (line.split(":", 2) for line in lines):
        folder = CONTROL_GROUPS / kinds / group.lstrip("/")
        for place in (folder, *folder.parents) if kinds in MEMORY_LIMITS else ():
            with suppress(OSError, ValueError):  # it is not there, or it is "max"
                yield int((place / MEMORY_LIMITS[kinds]).read_text())


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from or in the handling of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_memory_was_had(path: Path, error: Exception) -> None:
    """MemoryError where ``error``, in reading ``path``, is one of those; torch's allocator has a RuntimeError."""
    for cause in causes(error):
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(cause):
            raise MemoryError(f"{path} takes more memory than there is: {reason(error)}") from error


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Every failure inside is a ValueError that names ``path``."""
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise ValueError("it is no file" if path.exists() else "there is no such file")
        yield
    except Exception as error:  # damaged files surface as almost anything
        raise ValueError(f"{path} cannot be read as {what}: {reason(error)}") from error


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: naming the file; for whatever else is in it, too.
    """
    with _reading(path, "JSON"):
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, where an object must be")
        return content


def array_names(path: Path) -> list[str] | None:
    """The names of the arrays in an .npz file; None of an .npy file, which holds one without a name."""
    with _reading(path, ".npy or .npz"):
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


def array(path: Path, name: str | None = None) -> np.ndarray:
    """The array in an .npy file, or that of this ``name`` in an .npz file: numbers, never objects.

    Raises:
        ValueError: naming the file; a header that claims more than the file holds or memory can is one, too.
    """
    with _reading(path, ".npy or .npz"), path.open("rb") as file:
        if name is None:
            return _array(file, path.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                return _array(member, info.file_size)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name, see :func:`array`."""
    return {name: array(path, name) for name in array_names(path) or []}


def _array(file, size: int) -> np.ndarray:
    head = io.BytesIO(file.read(LONGEST_HEADER))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its version must be 1.0 or 2.0, got {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(head)
    if dtype.kind not in "biufc":
        raise ValueError(f"it must hold numbers, got {dtype}; objects are not read, as they could run code")
    claimed, held = math.prod(shape) * dtype.itemsize, size - head.tell()
    if min(shape, default=0) < 0 or claimed > held:
        raise ValueError(f"its header claims {shape} of {dtype}, {claimed:,} bytes, and it holds {held:,}")
    check_memory(claimed)
    content = np.empty(claimed, np.uint8)
    begun = head.readinto(content.data)
    while begun < claimed:
        more = file.readinto(content.data[begun:])
        if not more:
            raise ValueError(f"it ends after {begun:,} of {claimed:,} bytes")
        begun += more
    values = content.view(dtype)
    return values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


def weights(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose header must fit its size, and its size this machine's memory."""
    with _reading(path, "weights"):
        check_memory(path.stat().st_size)
        return load_file(path, device=device)


def check_described(make: Callable[[], nn.Module], description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Make what is described without taking memory for it, and see that the weights are of that size.

    Args:
        make: builds the module from ``description``.
        description: from which ``make`` takes its sizes; no number in it may be out of all proportion.
        state: the weights read.

    Raises:
        ValueError: the description is of a larger module than the weights.
    """
    held, counted = sum(tensor.numel() for tensor in state.values()), 0
    larger = ValueError(f"the description is of a larger model than the weights, which hold {held:,} numbers")

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal counted
        counted += 0 if tensor is None else max(1, tensor.numel())
        if counted > 2 * held + SPARE:  # stops a loop of a million layers, too
            raise larger

    largest = max(_whole_numbers(description), default=0)
    if largest > max(held, LARGEST_COUNT):
        raise larger
    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        with torch.device("meta"):
            make()
    except (NotImplementedError, RuntimeError):  # what needs values has sides, whose products are in the weights
        if largest**2 > 4 * held + LARGEST_COUNT:
            raise larger from None
    finally:
        for hook in hooks:
            hook.remove()


def _whole_numbers(value: object) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield abs(value)
