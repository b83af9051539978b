"""Checkpoints of a run: the last few ``checkpoints/STEP.pt``, of which the newest intact is used.

Each is a zip archive; the CRC-32 of every member is checked before it is used.
"""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from indm.checks import reason
from indm.files import atomic, check_plain, untrusted
from indm.workbench.runs.devices import by_main_process
from indm.workbench.training.trainer import Trainer

FOLDER = "checkpoints"
DAMAGED = ".damaged"  # suffix of those that are set aside


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a ``run``, of which the last ``keep`` stay."""

    run: Path
    keep: int = 2

    def numbered(self) -> list[Path]:
        """``checkpoints/STEP.pt``, the newest first."""
        steps = [path for path in (self.run / FOLDER).glob("*.pt") if path.stem.isdecimal()]
        return sorted(steps, key=lambda path: int(path.stem), reverse=True)

    def save(self, trainer: Trainer, log: dict[str, Any] | None = None) -> None:
        """Write the state of ``trainer`` and of its ``log``, and its averaged model. Collective."""
        state = trainer.state() | {"log": log or {}}
        if trainer.accelerator.is_main_process:
            self.write(state)
            trainer.ema.model.save(self.run)
        trainer.accelerator.wait_for_everyone()

    def load(self, trainer: Trainer) -> dict[str, Any]:
        """Load the newest intact state into ``trainer``; the state of the log. Collective.

        Raises:
            ValueError: it is of another model.
            FileNotFoundError: none is intact.
            OSError, RuntimeError, MemoryError: it cannot be read now.
        """
        path = by_main_process(lambda: self.newest()[0])
        state = read(path)
        try:
            trainer.load(state)
            return state["log"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a checkpoint of this recipe: {reason(error)}"
            ) from error

    def write(self, state: dict[str, Any]) -> None:
        """Write ``state`` under its ``step``, and remove all but the last few.

        Raises:
            OSError: it cannot be written; earlier checkpoints are not changed.
        """
        path = self.run / FOLDER / f"{state['step']}.pt"
        for half_written in path.parent.glob(atomic.HALF_WRITTEN):
            half_written.unlink()
        atomic.whole(path, lambda beside: torch.save(state, beside))
        for old in self.numbered()[self.keep :]:
            old.unlink()

    def newest(self) -> tuple[Path, dict[str, Any]]:
        """The newest intact state and its file; damaged ones are renamed to ``….damaged``.

        Raises:
            FileNotFoundError: there is none.
            OSError, RuntimeError, MemoryError: one cannot be read now, but need not be damaged.
        """
        for path in self.numbered():
            try:
                return path, read(path)
            except ValueError as error:
                warnings.warn(
                    f"{path} is damaged ({error}) and set aside; an older one takes its place",
                    stacklevel=2,
                )
                path.replace(path.with_name(path.name + DAMAGED))
        raise FileNotFoundError(
            f"resume must be false: {self.run} holds no intact checkpoint; move it away and start again"
        )


def read(path: Path) -> dict[str, Any]:
    """The state in ``path``; ValueError if it is damaged by its checksums, or not such a file."""
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
    return untrusted.checkpoint(path)
