"""Training states on disk: damage is recognised, the newest intact state is used, and old ones are removed.

``checkpoints/STEP.pt`` are the last few states. A state is a zip archive; the CRC-32 of every member is compared before
it is used.
"""

import errno
import warnings
import zipfile
from pathlib import Path

import torch

from indm import checks
from indm.files import atomic, check_plain, untrusted
from indm.files.untrusted import causes, raise_if_out_of_memory

FOLDER = "checkpoints"
DAMAGED = ".damaged"  # suffix of states that are set aside


def numbered(run: Path) -> list[Path]:
    """``checkpoints/STEP.pt``, the newest first."""
    steps = [path for path in (run / FOLDER).glob("*.pt") if path.stem.isdecimal()]
    return sorted(steps, key=lambda path: int(path.stem), reverse=True)


def write(run: Path, state: dict, keep: int) -> None:
    """Write ``state`` under its ``step``, and remove all but the last ``keep`` states in ``run``.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    path = run / FOLDER / f"{state['step']}.pt"
    for half_written in path.parent.glob(atomic.HALF_WRITTEN):
        half_written.unlink()
    atomic.whole(path, lambda beside: torch.save(state, beside))
    for old in numbered(run)[keep:]:
        old.unlink()


def newest(run: Path) -> tuple[Path, dict]:
    """The newest intact state in ``run``, and its file; damaged ones that are newer are set aside as ``….damaged``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none is intact.
        OSError, MemoryError: one cannot be read now, which does not say that it is damaged.
    """
    complaints: dict[Path, str] = {}
    for path in numbered(run):
        try:
            state = read(path)
        except Exception as error:  # a damaged archive surfaces as almost anything
            raise_if_out_of_memory(path, error)
            for cause in causes(error):  # zipfile has one answer to all that goes wrong at the end of a file
                if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
                    raise OSError(cause.errno, cause.strerror, str(path)) from error
            complaints[path] = checks.reason(error)
            continue
        for damaged, reason in complaints.items():
            warnings.warn(f"{damaged} is damaged ({reason}); going on from {path}, the newest intact one", stacklevel=2)
            damaged.replace(damaged.with_name(damaged.name + DAMAGED))
        return path, state
    if not complaints:
        raise FileNotFoundError(f"resume must be false: {run} holds no checkpoint; move it away and start anew")
    path, reason = next(iter(complaints.items()))
    raise ValueError(f"{path} cannot be read as a checkpoint: {reason}; nor can any older one in {run}")


def read(path: Path) -> dict:
    """The state in ``path``.

    Raises:
        ValueError: a member of the archive is not what was written, or it is not the state of a run. Other damage
            raises what zipfile or torch do.
    """
    check_plain(path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its {damaged} is wrong")
    state = untrusted.checkpoint(path)
    if not (isinstance(state, dict) and isinstance(state.get("step"), int) and state["step"] >= 0):
        raise ValueError("it is not the state of a run")
    return state
