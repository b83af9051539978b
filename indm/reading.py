"""Files whose maker is not known: nothing in them is run, and what they claim is checked before memory is taken."""

import io
import json
import math
import os
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickletools import genops
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

LONGEST_HEADER = 2**16  # bytes of an array's header, which are a hundred
LARGEST_COUNT = 2**24  # a whole number in a description, where the weights hold fewer numbers than that
SPARE = 2**14  # numbers that a model may have beside its weights
LONGEST_VALUE = 200  # characters of what a message quotes from a file
MOST_LISTED = 40  # problems that one message lists
CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # of a group, in version 2 and version 1


def one_line(text: object) -> str:
    """``text`` on one line, with nothing in it that a terminal would obey: names of files may hold either."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def brief(value: object) -> str:
    """The beginning of ``value`` for a message, on one line: what a file holds may be of any length."""
    text = one_line(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def listed(problems: Sequence[object]) -> str:
    """The first so many of them, see :func:`brief`, and how many more there are."""
    more = len(problems) - MOST_LISTED
    return "; ".join(map(brief, problems[:MOST_LISTED])) + (f"; and {more} more" if more > 0 else "")


def reason(error: Exception) -> str:
    """What went wrong, on one line; decoders raise errors of all kinds, some of them without a word."""
    said = one_line(error)[:300]
    return f"{said} is missing" if isinstance(error, KeyError) else said or type(error).__name__


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


# ── Arrays ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── Weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── Checkpoints of torch ────────────────────────────────────────────────────────────────────────────────────────────

ZIP = b"PK\x03\x04"  # how torch tells its two formats apart
PICKLES = 5  # in a file of old: two marks, the system, what was saved, the keys of its storages
STORAGES = {
    f"torch {kind}Storage"
    for kind in (
        "Float", "Double", "Half", "BFloat16", "ComplexFloat", "ComplexDouble", "Byte", "Char", "Short", "Int", "Long",
        "Bool",
    )
}  # fmt: skip
# What torch.save asks for, and the steps by which it does so: what else is made of it could take any amount of memory
# (an OrderedDict of a long list, again and again; bytes whose hexadecimal is encoded in turn). None is any text.
ASKED_FOR: dict[str, tuple] = {
    "collections OrderedDict": (("EMPTY_TUPLE", None), ("REDUCE", None)),
    "_codecs encode": (("BINUNICODE", None), ("BINUNICODE", "latin1"), ("TUPLE2", None), ("REDUCE", None)),
    "torch._utils _rebuild_tensor_v2": (),
    "torch._utils _rebuild_parameter": (),
} | dict.fromkeys(STORAGES, ())
# A storage is named by a number: the archive's members are found whatever the case of a name.
STORED = re.compile(r"MARK BINUNICODE GLOBAL BINUNICODE BINUNICODE (BININT[12]?|LONG1) (NONE )?TUPLE BINPERSID$")
Step = tuple[str, Any]  # an operation of a pickle, and its argument


def checkpoint(path: Path, known: Mapping[str, Callable] | None = None) -> Any:
    """What ``torch.save`` wrote of tensors, numbers, strings and containers of them; a pickle of more is an error.

    Args:
        path: a file, of torch's own kind, or a zip file as torch writes since 1.6.
        known: what else may be asked for, by its full name, and what is called in its place.

    Raises:
        ValueError: also for what else a pickle asks for, which it names.
        OSError, RuntimeError, pickle.UnpicklingError, …: nearly anything for a damaged file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # a named pipe would be waited for
        raise ValueError("it is no file")
    known = known or {}
    claimed = held = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    if claimed > held:  # torch stores its records as they are, so that packed ones can only be a trick
        raise ValueError(f"it claims {claimed:,} bytes and holds {held:,}")
    check_memory(claimed)
    _check_pickles(path, known)
    with torch.serialization.safe_globals([(made, name) for name, made in known.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_pickles(path: Path, known: Mapping[str, Callable]) -> None:
    """ValueError for a pickle that asks for more than ``torch.save`` does, see :func:`_check_pickle`."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # the one that torch will take
            return _check_pickle(io.BytesIO(record), known)
        file.seek(0)
        for _ in range(PICKLES):
            _check_pickle(file, known)


def _check_pickle(file: io.BufferedIOBase, known: Mapping[str, Callable]) -> None:
    """ValueError naming what a pickle asks for beside what ``torch.save`` and ``known`` do, or in another way."""
    due: list[Step] = []
    asked, steps = "", deque[Step](maxlen=9)
    for step in _steps(file):
        steps.append(step)
        name, argument = step
        if due and not _is_due(step, due.pop(0)):
            raise ValueError(f"it asks for {brief(asked)} as torch.save does not, and pickled code is not run")
        if name == "GLOBAL":
            asked = argument.replace(" ", ".")
            if argument not in ASKED_FOR and asked not in known:
                raise ValueError(f"it asks for {brief(asked)}, and pickled code is not run")
            due = list(ASKED_FOR.get(argument, ()))
        if name == "BINPERSID" and not _is_storage(list(steps)):
            raise ValueError("it asks for a storage as torch.save does not")


def _is_due(step: Step, wanted: Step) -> bool:
    return step == wanted or (wanted[1] is None and step[0] == wanted[0])


def _is_storage(steps: list[Step]) -> bool:
    """Whether the last steps name a storage by its kind and its number."""
    asks = STORED.search(" ".join(name for name, _ in steps))
    if asks is None:
        return False
    _, tag, kind, number, *_ = steps[-len(asks[0].split()) :]
    return tag[1] == "storage" and kind[1] in STORAGES and number[1].isdecimal()


def _steps(file: io.BufferedIOBase) -> Iterator[Step]:
    """The operations of a pickle; a name or a text that was put aside stands where it is taken up again."""
    aside: dict[int, Step] = {}
    last: Step = ("", None)
    try:
        for operation, argument, _ in genops(file):
            if operation.name in ("BINPUT", "LONG_BINPUT"):
                aside[argument] = last if last[0] in ("GLOBAL", "BINUNICODE") else ("taken up", None)
                continue
            taken = operation.name in ("BINGET", "LONG_BINGET")
            last = aside.get(argument, ("taken up", None)) if taken else (operation.name, argument)
            yield last
    except ValueError as error:
        raise ValueError("damaged, or of another kind") from error


def check_held(state: Mapping[str, Tensor], held: int) -> None:
    """See that tensors are made of numbers that a file of ``held`` bytes can hold.

    Raises:
        ValueError: for one that is sparse or holds no numbers, or that claims more of them than are stored (as one
            whose strides are 0 can) or than the file has left beside the others.
    """
    left = held
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise ValueError(f"{brief(name)} must be a plain tensor of numbers, got a {kind} one")
        claimed = tensor.numel() * tensor.element_size()
        stored = min(left, tensor.untyped_storage().nbytes())
        if claimed > stored:
            shape = brief(tuple(tensor.shape))
            raise ValueError(f"{brief(name)} claims {shape}, {claimed:,} bytes, and {stored:,} are stored for it")
        left -= claimed
