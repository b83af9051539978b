"""Files that may be opened: regular ones, and text of a sensible size. Where files are kept that can be made again."""

import os
from pathlib import Path

LARGEST_TEXT = 2**25  # bytes of JSON or TOML; what they say takes up to thirty times that in memory


def check_plain(path: Path) -> None:
    """See that ``path`` is a regular file: a named pipe would be waited for, and a device may not end.

    Raises:
        ValueError: it is not one, or there is none.
    """
    if not path.is_file():
        raise ValueError("it is no file" if path.exists() else "there is no such file")


def text(path: Path) -> str:
    """The UTF-8 text of a regular file of at most :data:`LARGEST_TEXT` bytes.

    Raises:
        ValueError: it is another kind of file, too large, or not UTF-8.
        OSError: it cannot be read.
    """
    check_plain(path)
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise ValueError(f"it holds {size:,} bytes, and a file of this kind may hold {LARGEST_TEXT:,}")
    return path.read_text("utf-8")


def cache_folder() -> Path:
    """Where files are kept that can be made or downloaded again: $INDM_DATA, or ~/.cache/indm.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()
