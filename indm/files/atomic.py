"""Files that are whole or not there: written beside their place first, whatever ends the writing."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

Write = Callable[[Path], object]  # makes a file of that name
HALF_WRITTEN = ".*.new"  # names of what a process that was killed has left
LONGEST = 64  # bytes of a name that is part of the name of the file beside it


def whole(path: Path, write: Write) -> None:
    """``write`` to a file beside ``path``, then put it in its place: at no time is ``path`` half written.

    See :func:`together` for what is raised.
    """
    together({path: write})


def together(writes: Mapping[Path, Write], old: Sequence[Path] = ()) -> None:
    """Write files beside their places; when all are whole, remove the ``old`` ones and put the new in place, in order.

    Where writing fails, what was there stays, and nothing is left of the new: on a full disk a half-written file would
    keep the rest from being saved.

    Raises:
        OSError: also where torch or safetensors have another name for a full disk.
    """
    beside = {path: _beside(path) for path in writes}
    try:
        for path, write in writes.items():
            _write_beside(path, beside[path], write)
        for path in old:
            path.unlink(missing_ok=True)
        for path, new in beside.items():
            os.replace(new, path)
    except BaseException:
        for new in beside.values():
            new.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """Where ``path`` is written first: of a long name, as it may be the longest that the file system has, its hash."""
    name = os.fsencode(path.name)
    return path.with_name(f".{path.name if len(name) <= LONGEST else hashlib.sha256(name).hexdigest()}.new")


def _write_beside(path: Path, beside: Path, write: Write) -> None:
    beside.unlink(missing_ok=True)
    try:
        write(beside)
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written, what was there before is as it was: {error}") from error
    with beside.open("rb") as file:
        os.fsync(file.fileno())


def arrays_into(arrays: dict[str, np.ndarray]) -> Write:
    """What writes ``arrays`` as ``.npz``."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    return write


def json_into(value: dict) -> Write:
    """What writes ``value`` as JSON."""
    content = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return lambda path: path.write_text(content, "utf-8")


def weights_into(state: Mapping[str, Tensor]) -> Write:
    """What writes ``state`` as safetensors, through memory: its own way to write a file leaves others behind."""
    return lambda path: path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))


def text(path: Path, content: str) -> None:
    whole(path, lambda beside: beside.write_text(content, "utf-8"))


def json_object(path: Path, value: dict) -> None:
    whole(path, json_into(value))
