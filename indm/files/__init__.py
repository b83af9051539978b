"""Files: read without trust if their maker is unknown, written whole or not at all.

Here are checks of what may be opened: regular files, and text of a sensible size. It is read before
PyTorch is loaded.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

LARGEST_TEXT = 2**25  # bytes of JSON or TOML; what they say takes up to thirty times that in memory
LARGEST_TOML = 2**20  # bytes of TOML


def check_plain(path: Path) -> None:
    """ValueError unless ``path`` is a regular file: a named pipe would be waited for, and a device
    may not end.
    """
    if not path.is_file():
        raise ValueError("it is not a file" if path.exists() else "there is no such file")


def text(path: Path, errors: str = "strict", largest: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a regular file of at most ``largest`` bytes; what is not UTF-8 may be
    "replace"d.
    """
    check_plain(path)
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"it holds {size:,} bytes, and a file of this kind may hold {largest:,}")
    return path.read_text("utf-8", errors)


def toml(content: str) -> dict[str, Any]:
    """The tables in a text of TOML, which may have :data:`LARGEST_TOML` characters; ValueError of
    another text.
    """
    if len(content) > LARGEST_TOML:
        raise ValueError(
            f"it holds {len(content):,} characters, and a text of this kind may hold {LARGEST_TOML:,}"
        )
    try:
        return tomllib.loads(content)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def cache_folder() -> Path:
    """The folder of files that can be made or downloaded again: $INDM_DATA, or ~/.cache/indm."""
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()
