"""What all commands share: options, exit statuses, printing."""

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from indm import names

RunFolder = Annotated[
    Positional[Path],
    arg(metavar="RUN", help="The run folder, or a model of the hub by its name there, user/name."),
]
# see docs/reliability.md
DONE, SOME_FAILED, MISTAKE, DEFECT, INTERRUPTED, NOBODY_READS = 0, 1, 2, 3, 130, 141


@dataclass(kw_only=True)
class Common(ABC):
    """Options of every command, which is a dataclass with ``run() -> exit status``."""

    tables: ClassVar[tuple[str, ...]] = ()
    """Tables of flags ``--table.key value`` and ``--table name``, see
    :func:`indm.workbench.cli.main.take_tables`.
    """

    table_values: Annotated[dict[str, str], Suppress] = field(default_factory=dict)
    """The values of these flags, as TOML texts."""
    trust: Annotated[
        tuple[str, ...], UseAppendAction, arg(metavar="PACKAGE", help_behavior_hint="(repeatable)")
    ] = ()
    """Let files name code of this package, which is then imported and run: package.module:Class."""
    debug: bool = False
    """Also show where in the program an error came from."""

    def named(self) -> list[str]:
        """Names of parts on this command line: their code may be run."""
        return []

    def trusted(self) -> list[str]:
        """The packages whose code may be run."""
        places = (place for name in self.named() for place in names.outside_places(name))
        return [*self.trust, *places]

    def computing(self) -> AbstractContextManager[None]:
        """Compute on the device of the command."""
        return nullcontext()

    @abstractmethod
    def run(self) -> int:
        """Run the command; the exit status."""


@dataclass(kw_only=True)
class Computes(Common):
    """A command that computes with a model."""

    device: Annotated[str, arg(metavar="auto|cpu|cuda|cuda:1|mps")] = "auto"
    """The device; auto is the GPU if there is one."""

    def computing(self) -> AbstractContextManager[None]:
        if self.device == "auto":
            return nullcontext()
        from indm.workbench.runs.devices import computing_on

        return computing_on(self.device)


@dataclass(kw_only=True)
class ShowsProgress(Computes):
    """A command that takes long enough for a progress bar."""

    quiet: bool = False
    """No progress bar."""

    @property
    def progress(self) -> bool:
        """Whether to show one."""
        return not self.quiet


def say(text: str, file: Any = None) -> None:
    """Print in the main process only."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text, file=file)


def run_name(source: str) -> str:
    """The name of a run for a recipe or a folder: a single name, inside the folder of runs."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() else path.stem).lstrip(".") or "run"
