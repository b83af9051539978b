"""Files that may be opened: regular ones, and text of a sensible size. It is read before PyTorch is loaded."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

LARGEST_TEXT = 2**25  # bytes of JSON or TOML; what they say takes up to thirty times that in memory
LONG_KEY = re.compile(r"""(\.[ \t]*([\w-]+|"(\\.|[^"\\\n])*"|'[^'\n]*')[ \t]*){20}""")  # tomllib keeps every part of it


def check_plain(path: Path) -> None:
    """ValueError unless ``path`` is a regular file: a named pipe would be waited for, and a device may not end."""
    if not path.is_file():
        raise ValueError("it is no file" if path.exists() else "there is no such file")


def text(path: Path, errors: str = "strict") -> str:
    """The UTF-8 text of a regular file of at most :data:`LARGEST_TEXT` bytes; what is not UTF-8 may be "replace"d."""
    check_plain(path)
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise ValueError(f"it holds {size:,} bytes, and a file of this kind may hold {LARGEST_TEXT:,}")
    return path.read_text("utf-8", errors)


def toml(path: Path) -> dict[str, Any]:
    """The tables in a TOML file, whose keys have at most twenty parts; ValueError of another file."""
    if LONG_KEY.search(content := text(path)):
        raise ValueError("a key must have at most 20 parts between dots")
    try:
        return tomllib.loads(content)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def cache_folder() -> Path:
    """Where files are kept that can be made or downloaded again: $INDM_DATA, or ~/.cache/indm."""
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()
