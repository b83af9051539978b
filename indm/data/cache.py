"""Where files are kept that can be made or downloaded again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$INDM_DATA, or ~/.cache/indm.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()
