"""Readers of files of unknown makers: JSON, arrays, weights.

Nothing in them is run, and they are read only if memory can hold them. Every failure is a
ValueError that names the file, except in :func:`checkpoint`.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from indm.checks import reason
from indm.files import check_plain, text

# copies of a file's numbers in memory at one time: as they are read, in the type of the model, and
# split
COPIES = 3


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn every failure inside into a ValueError that names ``path``."""
    try:
        check_plain(path)
        yield
    except Exception as error:  # damaged files surface as almost anything
        raise ValueError(f"{path} cannot be read as {what}: {reason(error)}") from error


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if it has another value or cannot be read."""
    with _reading(path, "JSON"):
        content = json.loads(text(path))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, where an object must be")
        return content


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file with one a line; other lines, such as a cut-off one, are skipped."""
    found = []
    with _reading(path, "lines of JSON"):
        for line in text(path, "replace").splitlines():
            with suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [content for content in found if isinstance(content, dict)]


def array_names(path: Path) -> list[str] | None:
    """The names of the arrays in an .npz file; None for an .npy file."""
    with _reading(path, ".npy or .npz"):
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return _names(archive)


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def array(path: Path, name: str | None = None) -> np.ndarray:
    """The array in an .npy file, or the one called ``name`` in an .npz file.

    Its header may claim no more than the file has and memory can hold. Objects are refused.
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
    with _reading(path, ".npz"), zipfile.ZipFile(path) as archive:
        names = _names(archive)
    return {name: array(path, name) for name in names}


def _array(file: Any, size: int) -> np.ndarray:
    """The array in the ``size`` bytes of ``file``, which is open for reading."""
    check_memory(COPIES * size)
    return np.lib.format.read_array(file, allow_pickle=False)


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose size must fit this machine's memory."""
    with _reading(path, "weights"):
        check_memory(COPIES * path.stat().st_size)
        return load_file(path)


def checkpoint(path: Path, known: Mapping[str, Callable] | None = None) -> Any:
    """The content of a file by ``torch.save``: tensors, numbers, text and containers of them.

    PyTorch's weights-only reader runs no pickled code, except the ``known`` functions by name.

    Raises:
        ValueError: the pickle asks for other code.
        MemoryError: it does not fit into memory. A damaged file may raise nearly any error.
    """
    if path.exists() and not path.is_dir():  # the errors of both say what they are
        check_plain(path)
    check_memory(path.stat().st_size)
    try:
        with torch.serialization.safe_globals(
            [(made, name) for name, made in (known or {}).items()]
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            "it is damaged, or has more than tensors, numbers and texts: no pickled code is run"
        ) from error


def check_memory(claimed: int) -> None:
    """MemoryError if ``claimed`` bytes are more than the free memory of this machine."""
    free = psutil.virtual_memory().available
    if claimed > free:
        raise MemoryError(f"it claims {claimed:,} bytes, and {free:,} bytes of memory are free")
