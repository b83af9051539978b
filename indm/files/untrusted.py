"""Files whose maker is not known: JSON, arrays, weights, and the description of a model.

Nothing in them is run, and what a header or a description claims is checked before memory is taken for it. Every
failure is a ValueError that names the file, except in :func:`checkpoint`.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules import module as registered

from indm.checks import brief, reason, require
from indm.files import check_plain, text

COPIES = 3  # copies of a file's numbers in memory at one time: as they are read, in the type of the model, and split
LARGEST_EVENT = 2**24  # numbers of an event, unless the weights have more
SPARE, SPARE_PARTS = 2**14, 2**10  # numbers, and tensors and modules, that a model may have beside its weights
MOST_AXES = 8  # most axes of an event
LARGEST_HEADER = 2**22  # bytes of the names and shapes of weights, some 40,000 tensors
AFFINE = ("scaling.shift", "scaling.scale", "score.sde.prior_mean")  # tensors that are broadcast over an event
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Every failure inside is a ValueError that names ``path``."""
    try:
        check_plain(path)
        yield
    except Exception as error:  # damaged files surface as almost anything
        raise ValueError(f"{path} cannot be read as {what}: {reason(error)}") from error


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where it holds another kind of value or cannot be read."""
    with _reading(path, "JSON"):
        content = json.loads(text(path), parse_float=_finite, parse_constant=_finite)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, where an object must be")
        return content


def _finite(word: str) -> float:
    """The number that ``word`` is; ValueError of NaN, Infinity and 1e400, which nothing here writes."""
    number = float(word)
    require(math.isfinite(number), "a number", word, "finite")
    return number


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one in each line; a line that holds none, as one that was cut off, is passed over."""
    found = []
    with _reading(path, "lines of JSON"):
        for line in text(path, "replace").splitlines():
            with suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [content for content in found if isinstance(content, dict)]


def array_names(path: Path) -> list[str] | None:
    """The names of the arrays in an .npz file; None for an .npy file, which holds one without a name."""
    with _reading(path, ".npy or .npz"):
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


def array(path: Path, name: str | None = None) -> np.ndarray:
    """The array in an .npy file, or the one called ``name`` in an .npz file: numbers, never objects.

    Its header may claim no more than the file holds, and than memory can.
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
    if (names := array_names(path)) is None:
        raise ValueError(f"{path} is not an .npz file")
    return {name: array(path, name) for name in names}


def _array(file: Any, size: int) -> np.ndarray:
    """The array in the ``size`` bytes of ``file``, which is open for reading."""
    check_memory(COPIES * size)
    array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"it must hold numbers, got {array.dtype}")
    return array


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose header must fit its size, and its size this machine's memory."""
    with _reading(path, "weights"):
        check_memory(COPIES * path.stat().st_size)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > LARGEST_HEADER:
            raise ValueError(f"its header claims {header:,} bytes, and may have {LARGEST_HEADER:,}")
        return load_file(path)


def checkpoint(path: Path, known: Mapping[str, Callable] | None = None) -> Any:
    """The content of a file by ``torch.save``: tensors, numbers, text and containers of them, and ``known`` names.

    PyTorch's weights-only reader runs no pickled code. Tensors of stride 0 may claim more than is stored: call
    :func:`check_stored` before computing with them. ValueError where the pickle asks for more than is known or the file
    holds, MemoryError where it has not enough memory; nearly any error for a damaged file.
    """
    if path.exists() and not path.is_dir():  # the errors of both say what they are
        check_plain(path)
    claimed = held = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    require(claimed <= held, "the unpacked size", claimed, f"at most the {held} bytes that the file holds")
    check_memory(claimed)
    try:
        with torch.serialization.safe_globals([(made, name) for name, made in (known or {}).items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            "it is damaged, or has more than tensors, numbers and texts: no pickled code is run"
        ) from error


def check_stored(state: Mapping[str, Tensor], held: int) -> None:
    """ValueError unless all tensors are dense, and their numbers are stored, in ``held`` bytes together."""
    for name, tensor in state.items():
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        require(kind == "torch.strided on cpu", brief(name), kind, "a plain tensor of numbers")
        stored = min(held, tensor.untyped_storage().nbytes())
        require(tensor.nbytes <= stored, brief(name), tensor.nbytes, f"of at most the {stored} bytes stored for it")
        held -= tensor.nbytes


def check_event(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """ValueError unless a model is of one event, no weight is complex, and :data:`AFFINE` fit the event and are
    finite."""
    shape, levels = description["shape"], description["levels"]
    most = max(LARGEST_EVENT, sum(tensor.numel() for tensor in state.values()))
    is_shape = 1 <= len(shape) <= MOST_AXES and all(type(side) is int and side > 0 for side in shape)
    wanted = f"1 to {MOST_AXES} whole numbers above 0, whose product is at most {most:,}"
    require(is_shape and math.prod(shape) <= most, "shape", shape, wanted)
    require(levels is None or type(levels) is int, "levels", levels, "a whole number, or null for continuous data")
    for name, tensor in state.items():
        is_real = tensor.dtype in (torch.float32, torch.float64) if name in AFFINE else not tensor.is_complex()
        require(is_real, brief(name), tensor.dtype, "of float32 or float64")
        if name in AFFINE:
            fits = all(side in (1, s) for side, s in zip(reversed(tensor.shape), reversed(shape), strict=False))
            require(fits and tensor.ndim <= len(shape), name, list(tensor.shape), f"of a shape that fits {shape}")
            require(bool(tensor.isfinite().all()), name, tensor[~tensor.isfinite()][:1].tolist(), "finite")


def build_described(make: Callable[[], Module], state: Mapping[str, Tensor]) -> Module:
    """Build what ``make`` builds, which must be no larger than the weights ``state``, already read.

    It is built without numbers first, so that no large tensor is made; parts of other packages may need numbers.
    """
    held = sum(tensor.numel() for tensor in state.values())
    bounds = 2 * held + SPARE, 4 * len(state) + SPARE_PARTS
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"), _at_most(*bounds):
        make()
    with _at_most(*bounds):
        return make()


@contextmanager
def _at_most(numbers: int, parts: int) -> Iterator[None]:
    """ValueError as soon as the modules that are built inside hold more numbers, or tensors and modules."""
    left = [numbers, parts]

    def count(module: nn.Module, name: str, part: Any) -> None:
        left[:] = left[0] - (part.numel() if isinstance(part, Tensor) else 0), left[1] - 1
        if min(left) < 0:
            raise ValueError("the description is of a larger model than the weights")

    kinds = ("parameter", "buffer", "module")
    hooks = [getattr(registered, f"register_module_{kind}_registration_hook")(count) for kind in kinds]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # Linux's control groups of this process
FILES_OF_LIMITS = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def check_memory(claimed: int) -> None:
    """MemoryError where ``claimed`` bytes do not fit into what this process can have."""
    free = free_memory()
    if claimed > free:
        raise MemoryError(f"it claims {claimed:,} bytes, and this process can have {free:,} bytes of memory")


def free_memory() -> int:
    """Bytes of memory that this process can have: free on the machine, and within the limits of its control groups."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Bytes left to each control group around this process, as in a container; both versions of Linux's interface."""
    try:
        lines = PROCESS.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, kind, place = line.split(":", 2)
        if kind not in FILES_OF_LIMITS:
            continue
        limit, used = FILES_OF_LIMITS[kind]
        home = CGROUPS / kind
        group = home / place.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(home):
                break
            with suppress(OSError, ValueError):  # no such file, or "max", which is no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stated = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield left + int(stated["inactive_file"])  # pages of files are given back when memory is short
