"""Atomic writing: a file is written under another name in its folder, and then renamed."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

Write = Callable[[Path], object]  # makes a file of that name
HALF_WRITTEN = ".*.new"  # pattern of the files that a killed process leaves behind


def whole(path: Path, write: Write) -> None:
    """Write one file, see :func:`together`."""
    together({path: write})


def together(writes: Mapping[Path, Write], old: Sequence[Path] = ()) -> None:
    """Write files under other names, remove the ``old`` files, and rename the new ones in order.

    Folders are made if needed. If writing fails, the old files stay and no new one is left.

    Raises:
        OSError: a file cannot be written.
    """
    beside = {path: _beside(path) for path in writes}
    try:
        for path, write in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
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
    """The name under which ``path`` is written first."""
    return path.with_name(f".{path.name}.new")


def _write_beside(path: Path, beside: Path, write: Write) -> None:
    beside.unlink(missing_ok=True)
    try:
        write(beside)
    except OSError as error:
        if error.errno is not None:  # a full disk does not say of which file
            error.filename = error.filename or str(path)
        raise
    except (RuntimeError, SafetensorError) as error:
        raise OSError(
            f"{path} cannot be written, perhaps because the disk is full: {error}"
        ) from error
    with beside.open("r+b") as file:  # Windows forces out only what is open for writing
        os.fsync(file.fileno())


def arrays_into(arrays: Mapping[str, np.ndarray]) -> Write:
    """The function that writes ``arrays`` as ``.npz``."""
    named: dict[str, Any] = dict(arrays)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **named)

    return write


def table_into(names: Sequence[str], rows: Iterable[Sequence[float]]) -> Write:
    """The function that writes ``rows`` of single-precision numbers as CSV, below ``names``."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([f"{value:.9g}" for value in row] for row in rows)

    return write


def json_into(value: Mapping) -> Write:
    """The function that writes ``value`` as JSON; ValueError for NaN and infinity."""
    content = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return lambda path: path.write_text(content, "utf-8")


def weights_into(state: Mapping[str, Tensor]) -> Write:
    """The function that writes ``state`` as safetensors.

    It goes through memory, because safetensors' own leaves temporary files.
    """
    return lambda path: path.write_bytes(
        safetensors.torch.save({k: v.cpu().contiguous() for k, v in state.items()})
    )


def text(path: Path, content: str) -> None:
    """Write ``content`` as UTF-8."""
    whole(path, lambda beside: beside.write_text(content, "utf-8"))


def json_object(path: Path, value: Mapping) -> None:
    """Write ``value`` as JSON, see :func:`json_into`."""
    whole(path, json_into(value))
