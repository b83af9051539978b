"""What all commands share: their options, their exit statuses, what they say."""

import os
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path

DONE, SOME_FAILED, MISTAKE, DEFECT, INTERRUPTED, NOBODY_READS = 0, 1, 2, 3, 130, 141


@dataclass(kw_only=True)
class Common:
    """What every command takes."""

    debug: bool = False
    """Also show where in the program an error came from."""


def say(text: str, file: TextIOBase | None = None) -> None:
    """Print what all processes know, once."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text, file=file)


def name_of(source: str) -> str:
    """What a run of a recipe or on a folder is called: one name, which never leads out of the folder of runs."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() else path.stem).lstrip(".") or "run"
