"""Data sets that torchvision downloads."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from indm.data.cache import cache_folder

T = TypeVar("T")


def download_root(root: str | Path | None) -> Path:
    """The folder ``root``, or where downloads are cached."""
    return Path(root).expanduser() if root else cache_folder()


def from_torchvision(name: str, dataset: Callable[..., T], *args, **kwargs) -> T:
    """``dataset(*args, **kwargs)``, where every failure to find or to download the files is a ``ValueError``."""
    try:
        return dataset(*args, **kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        raise ValueError(f"{name} could not be loaded ({error}); pass root= or download=True") from error
