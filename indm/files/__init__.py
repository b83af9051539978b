"""Files of unknown makers are read safely, and files are written whole or not at all.

This module checks what may be opened: regular files, and text of a sensible size. It does not need
PyTorch.
"""

import os
from pathlib import Path

LARGEST_TEXT = 2**25  # bytes of JSON or TOML, which may take thirty times that in memory


def check_plain(path: Path) -> None:
    """ValueError unless ``path`` is a regular file: reading a pipe or a device may never end."""
    if not path.is_file():
        raise ValueError("it is not a file" if path.exists() else "there is no such file")


def text(path: Path, errors: str = "strict") -> str:
    """The UTF-8 text of a regular file of at most :data:`LARGEST_TEXT` bytes.

    ``errors`` says what happens to other bytes, see :meth:`bytes.decode`.
    """
    check_plain(path)
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise ValueError(f"it holds {size:,} bytes, and a text may hold {LARGEST_TEXT:,}")
    return path.read_text("utf-8", errors)


def cache_folder() -> Path:
    """The folder for downloads and for what can be computed again: $INDM_DATA, or ~/.cache/indm."""
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()
