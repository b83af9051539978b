"""The ``indm`` program: its commands, its arguments, and its exit status.

A command is a class, which is imported when it is needed.
"""

import contextlib
import dataclasses
import io
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import get_type_hints

import tyro

import indm
from indm import names
from indm.checks import did_you_mean, nearest, one_line
from indm.workbench.cli.common import DEFECT, DONE, INTERRUPTED, MISTAKE, NOBODY_READS, Common
from indm.workbench.recipes.recipe import NAMED_TABLES, OPTION_TABLES, OPTIONAL_TABLES

GROUPS = {
    "Train": {
        "train": "train:Train",
        "train-pair": "train:TrainPair",
        "train-bridge": "train:TrainBridge",
    },
    "Look at a run": {
        "sample": "draw:Sample",
        "evaluate": "runs:Evaluate",
        "fid": "draw:Fid",
        "compare": "runs:Compare",
        "app": "runs:App",
        "translate": "draw:Translate",
    },
    "More": {"list": "listing:List", "convert": "runs:Convert"},
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}
TITLE = "Log-likelihoods of diffusion models, with error bars: yours, or one trained here."
MORE = """To begin:      indm list recipes     indm train digits     indm sample runs/digits
To know more:  indm COMMAND --help     indm list"""
CONFIG = (tyro.conf.FlagCreatePairsOff,)
MISTAKES = (ValueError, OSError, MemoryError, ModuleNotFoundError)  # errors with exit status 2


def command_of(name: str) -> type[Common]:
    """The command of that name; ValueError with the nearest name if there is none."""
    if name not in COMMANDS:
        raise ValueError(f"{one_line(name)} is not a command of indm{nearest(name, COMMANDS)}")
    return pkgutil.resolve_name(f"indm.workbench.cli.{COMMANDS[name]}")


def overview() -> str:
    """All commands on one screen."""
    lines = ["usage: indm COMMAND …", TITLE, ""]
    for title, group in GROUPS.items():
        lines.append(title)
        for name in group:
            lines.append(f"  {name:14}{str(command_of(name).__doc__).splitlines()[0]}")
    return "\n".join([*lines, "", MORE])


def parse(arguments: list[str]) -> Common:
    """The command of the arguments.

    Raises:
        ValueError: a mistake in the arguments.
        SystemExit: help, or a mistake that tyro found, was shown.
    """
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(f"indm {indm.__version__}" if name == "--version" else overview())
        raise SystemExit
    kind = command_of(name)
    options, values = take_tables(options, kind.tables)
    command, unknown = tyro.cli(
        kind, prog=f"indm {name}", args=options, config=CONFIG, return_unknown_args=True
    )
    if unknown:
        raise ValueError(complaint(name, kind, unknown[0]))
    command.table_values = values
    return command


def take_tables(arguments: list[str], tables: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without those of the recipe's tables, and the latter by ``table.key`` or ``table``.

    They are ``--train.steps 500``, ``--flow coupling``, ``--flow.width 64``. tyro cannot know them,
    because the keys of a part come from its class. The recipe is checked later.
    """
    others, taken = [], {}
    named = {*tables} & {*NAMED_TABLES, *OPTIONAL_TABLES}
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        table, dot, _ = name.partition(".")
        if not flag.startswith("--") or table not in (tables if dot else named):
            others.append(argument)
            continue
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise ValueError(f"{flag} needs a value")
        taken[name] = value
    return others, taken


def complaint(name: str, kind: type[Common], unknown: str) -> str:
    """The error message for an argument that the command does not take."""
    if not unknown.startswith("-"):
        meant = ""
        if name == "train" and Path(unknown).exists():
            meant = f"; data are given as --data.path {unknown}"
        return f"{unknown} is one argument too many{meant}"
    keys = [f"--{table}.{f.name}" for table in kind.tables if table in OPTION_TABLES
            for f in dataclasses.fields(OPTION_TABLES[table])]  # fmt: skip
    near = did_you_mean(unknown.partition("=")[0], [*flags(kind), *keys])
    hint = near or f'; "indm {name} --help" lists its options'
    return f"{unknown} is not an option of indm {name}{hint}"


def flags(options: type) -> Iterator[str]:
    """The flags of a command, except those of tables."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        if isinstance(hints[field.name], type) and dataclasses.is_dataclass(hints[field.name]):
            yield from flags(hints[field.name])
        else:
            yield f"--{field.name.replace('_', '-')}"


def flag_of(error: Exception, command: Common | None) -> str:
    """The flag of the argument in an error, or the package to trust or to install; "" without."""
    if isinstance(error, names.Untrusted):
        return f" (--trust {error.package})"
    if isinstance(error, ModuleNotFoundError):
        return f" (pip install {str(error.name).replace('_', '-')})"
    argument = str(error).partition(" ")[0]
    flag = f"--{argument.replace('_', '-')}"
    return f" ({flag})" if command is not None and flag in flags(type(command)) else ""


@contextlib.contextmanager
def trusting(packages: list[str]) -> Iterator[None]:
    """Allow code of these packages, which may also be in the current folder."""
    if not packages:
        yield
        return
    here = os.getcwd()
    sys.path.append(here)  # last, so that no file there replaces a library
    try:
        with names.trust(*packages):
            yield
    finally:
        sys.path.remove(here)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status, see docs/reliability.md. Errors go to standard error."""
    # None if it was closed before the program started
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    warnings.formatwarning = lambda message, *_: f"indm: warning: {one_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    command: Common | None = None
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        with trusting(command.trusted()), command.computing():
            status = command.run()
            sys.stdout.flush()
            return status
    except SystemExit as stop:  # the help of a command, or what tyro says of a mistake
        sys.stdout.flush()
        return MISTAKE if stop.code else DONE
    except KeyboardInterrupt:
        print("indm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except Exception as error:
        if command is not None and command.debug:
            traceback.print_exc()
        kind, text = type(error), one_line(error)
        is_torch = kind is RuntimeError or kind.__name__ == "OutOfMemoryError"
        if is_torch or isinstance(error, MISTAKES):
            print(f"indm: error: {text or kind.__name__}{flag_of(error, command)}", file=sys.stderr)
            return MISTAKE
        more = "(the same command with --debug shows where)"
        print(f"indm: error: unexpected {kind.__name__}: {text} {more}", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(main())
