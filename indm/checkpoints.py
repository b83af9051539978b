"""Training states on disk: each whole or known not to be, the newest that is whole, and how many of them stay.

``checkpoints/STEP.pt`` are the last few states. ``checkpoint.pt`` is the newest of them under a name that does not
change: the same file where the file system has hard links, else a copy. A state is a zip archive; the CRC-32 of every
member is compared before it is used.
"""

import errno
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import torch

from indm import reading, runs

NEWEST, FOLDER = "checkpoint.pt", "checkpoints"
DAMAGED, DIVERGED = ".damaged", ".diverged"  # of states that are set aside


def begun(run: Path) -> bool:
    """Whether there is any state in ``run``, whole or not."""
    return bool(found(run))


def nothing_saved(run: Path) -> bool:
    """Whether ``run`` was ended before it saved anything at all."""
    return not begun(run) and not any((run / name).exists() for name in runs.WEIGHTS)


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
    for half_written in path.parent.glob(runs.HALF_WRITTEN):
        half_written.unlink()
    runs.write_whole(path, lambda beside: torch.save(state, beside))
    _name_newest(run, path)
    for old in numbered(run)[keep:]:
        old.unlink()


def newest(run: Path) -> tuple[Path, dict]:
    """The newest whole state in ``run``, and its file; what is newer and damaged is set aside as ``….damaged``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none is whole.
        OSError, MemoryError: one cannot be read now, which does not say that it is damaged.
    """
    complaints: dict[Path, str] = {}
    for path in found(run):
        try:
            state = read(path)
        except Exception as error:  # a damaged archive surfaces as almost anything
            if reading.is_out_of_memory(error):
                raise MemoryError(f"{path} takes more memory than there is: {reading.reason(error)}") from error
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise OSError(error.errno, error.strerror, str(path)) from error
            complaints[path] = reading.reason(error)
            continue
        if complaints:
            _pass_over(run, complaints, path)
        return path, state
    if not complaints:
        raise FileNotFoundError(
            f"{run / NEWEST} is missing, so there is nothing to resume; move {run} away and start without --resume"
        )
    path, reason = next(iter(complaints.items()))
    raise ValueError(f"{path} cannot be read as a checkpoint: {reason}; nor can any older one in {run}")


def read(path: Path) -> dict:
    """The state in ``path``.

    Raises:
        ValueError: a member of the archive is not what was written. Other damage raises what zipfile or torch do.
    """
    if not path.is_file():  # a named pipe would be waited for
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its {damaged} is wrong")
    return reading.checkpoint(path)


def drop_newest(run: Path) -> None:
    """Set the newest state aside as ``….diverged``, if there is an older one."""
    steps = numbered(run)
    if len(steps) > 1:
        steps[0].replace(steps[0].with_name(steps[0].name + DIVERGED))
        _name_newest(run, steps[1])


def mebibytes(run: Path) -> float:
    """What the states in ``run`` take of the disk, those set aside with them."""
    return sum(path.stat().st_size for path in (run / FOLDER).iterdir()) / 2**20


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
