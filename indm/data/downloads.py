"""Data sets that torchvision downloads."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from indm.data.cache import cache_folder
from indm.messages import reason

T = TypeVar("T")


def download_root(root: str | Path | None) -> Path:
    """The folder ``root``, or where downloads are cached."""
    return Path(root).expanduser() if root else cache_folder()


def from_torchvision(name: str, dataset: Callable[..., T], *args, **kwargs) -> T:
    """``dataset(*args, **kwargs)``, where every failure to find or to download the files is a ``ValueError``.

    Its message says what helps, on the command line and in Python.
    """
    try:
        return dataset(*args, **kwargs)
    except (RuntimeError, OSError, ImportError) as error:
        cause = reason(error).removesuffix(". You can use download=True to download it")
        raise ValueError(f"{name} could not be loaded ({cause}); {where_to_look(args[0])}") from error


def where_to_look(root: object) -> str:
    """What to give where the files of a data set were not found in ``root``, or could not be downloaded to it."""
    return (
        f"they were looked for in {root}: --data.root FOLDER or $INDM_DATA names another; where there is a network, "
        "indm train downloads them, and so does indm evaluate with --data.download true "
        '(in Python: root="FOLDER", download=True)'
    )
