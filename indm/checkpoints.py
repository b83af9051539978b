"""Training states on disk: each whole or known not to be, the newest that is whole, and how many of them stay.

``checkpoints/STEP.pt`` are the last few states. ``checkpoint.pt`` is the newest of them under a name that does not
change: the same file where the file system has hard links, else a copy. A state is a zip archive; the CRC-32 of every
member is compared before it is used.
"""

import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from indm import reading, runs

NEWEST, FOLDER, DAMAGED = "checkpoint.pt", "checkpoints", ".damaged"


def begun(run: Path) -> bool:
    """Whether there is any state in ``run``, whole or not."""
    return bool(found(run))


def found(run: Path) -> list[Path]:
    """The states in ``run``, the newest first; ``checkpoint.pt`` where the newest belongs."""
    steps = numbered(run)
    newest = [path for path in [run / NEWEST] if path.exists() and not (steps and path.samefile(steps[0]))]
    return [*steps[:1], *newest, *steps[1:]]


def numbered(run: Path) -> list[Path]:
    """``checkpoints/STEP.pt``, the newest first."""
    steps = [path for path in (run / FOLDER).glob("*.pt") if path.stem.isdecimal()]
    return sorted(steps, key=lambda path: int(path.stem), reverse=True)


def write(run: Path, state: dict, keep: int) -> None:
    """Write ``state`` as that of its ``step``, and leave the last ``keep`` states in ``run``.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    path = run / FOLDER / f"{state['step']}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_whole(path, lambda beside: torch.save(state, beside))
    _name_newest(run, path)
    for old in numbered(run)[keep:]:
        old.unlink()


def restore(run: Path, use: Callable[[dict], None]) -> None:
    """Give ``use`` the newest whole state in ``run``; what is newer and damaged is set aside as ``….damaged``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none is whole, or none is one that ``use`` can take.
    """
    complaints: dict[Path, str] = {}
    for path in found(run):
        try:
            use(read(path))
        except Exception as error:  # a damaged archive surfaces as almost anything
            complaints[path] = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if complaints:
            _pass_over(run, complaints, path)
        return
    if not complaints:
        raise FileNotFoundError(
            f"{run / NEWEST} is missing, so there is nothing to resume; move {run} away and start without --resume"
        )
    path, reason = next(iter(complaints.items()))
    raise ValueError(f"{path} cannot be read as a checkpoint of this recipe: {reason}; nor can any older one in {run}")


def read(path: Path) -> dict:
    """The state in ``path``.

    Raises:
        ValueError: a member of the archive is not what was written. Other damage raises what zipfile or torch do.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its {damaged} is wrong")
    return reading.checkpoint(path)


def drop_newest(run: Path) -> None:
    """Set the newest state aside, if there is an older one."""
    newest, *older = numbered(run)
    if older:
        newest.replace(newest.with_name(newest.name + DAMAGED))
        _name_newest(run, older[0])


def mebibytes(run: Path) -> float:
    """What the states in ``run`` take of the disk."""
    return sum(path.stat().st_size for path in numbered(run)) / 2**20


def _pass_over(run: Path, complaints: dict[Path, str], whole: Path) -> None:
    for path, reason in complaints.items():
        warnings.warn(f"{path} is damaged ({reason}); going on from {whole}, the newest that is whole", stacklevel=3)
        path.replace(path.with_name(path.name + DAMAGED))
    if whole.name != NEWEST:
        _name_newest(run, whole)


def _name_newest(run: Path, path: Path) -> None:
    runs.write_whole(run / NEWEST, lambda beside: _link(path, beside))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
