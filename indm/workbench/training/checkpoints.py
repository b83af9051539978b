"""Training states on disk: damage is recognised, the newest intact state is used, and old ones are
removed.

``checkpoints/STEP.pt`` are the last few states. A state is a zip archive; the CRC-32 of every
member is compared before it is used.
"""

import warnings
import zipfile
from pathlib import Path

import torch

from indm.checks import reason
from indm.files import atomic, check_plain, untrusted

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
    """The newest intact state in ``run``, and its file; damaged ones that are newer are set aside
    as ``….damaged``.

    Raises:
        FileNotFoundError: there is none.
        OSError, RuntimeError, MemoryError: one cannot be read now, which does not say that it is
            damaged.
    """
    for path in numbered(run):
        try:
            return path, read(path)
        except ValueError as error:
            warnings.warn(
                f"{path} is damaged ({error}) and set aside; an older one takes its place",
                stacklevel=2,
            )
            path.replace(path.with_name(path.name + DAMAGED))
    raise FileNotFoundError(
        f"resume must be false: {run} holds no intact checkpoint; move it away and start anew"
    )


def read(path: Path) -> dict:
    """The state in ``path``; ValueError where it is damaged, by its checksums, or is not the state
    of a run.
    """
    check_plain(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # a damaged archive surfaces as almost anything
        raise ValueError(reason(error)) from error
    if damaged is not None:
        raise ValueError(f"the checksum of its {damaged} is wrong")
    state = untrusted.checkpoint(path)
    if not (isinstance(state, dict) and isinstance(state.get("step"), int) and state["step"] >= 0):
        raise ValueError("it is not the state of a run")
    return state
