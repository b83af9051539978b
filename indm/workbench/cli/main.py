"""The ``indm`` program: its commands, the one that the arguments ask for, and that run to its exit
status.

A command is a class, imported when it is asked for.
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


def command_of(name: str) -> type[Common]:
    """The command of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in COMMANDS:
        raise ValueError(f"{one_line(name)} is not a command of indm{nearest(name, COMMANDS)}")
    return pkgutil.resolve_name(f"indm.workbench.cli.{COMMANDS[name]}")


def overview() -> str:
    """All commands on one screen."""
    lines = ["usage: indm COMMAND …", TITLE, ""]
    for title, group in GROUPS.items():
        lines += [
            title,
            *(f"  {name:14}{str(command_of(name).__doc__).splitlines()[0]}" for name in group),
        ]
    return "\n".join([*lines, "", MORE])


def parse(arguments: list[str]) -> Common:
    """The command that the arguments ask for.

    Raises:
        ValueError: what is wrong with the arguments.
        SystemExit: help was asked for, or tyro found a mistake; either was shown.
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
    """Take the values of the recipe's tables out of the arguments, which tyro has no fields for.

    They are ``--train.steps 500``, ``--flow coupling``, ``--flow.width 64``.
    The keys of a part come from its class, which may be anybody's; the recipe's checks reject a
    wrong one.

    Returns:
        The other arguments, and the values by ``table.key`` and ``table``.
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
    return f"{unknown} is not an option of indm {name}" + (
        near or f'; "indm {name} --help" lists its options'
    )


def flags(options: type) -> Iterator[str]:
    """The options of a command that are not in a table, as they are typed."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        if isinstance(hints[field.name], type) and dataclasses.is_dataclass(hints[field.name]):
            yield from flags(hints[field.name])
        else:
            yield f"--{field.name.replace('_', '-')}"


def flag_of(error: Exception, command: Common | None) -> str:
    """The flag of the argument that an error names first, or of the package that it asks to trust;
    "" of others.
    """
    if isinstance(error, names.Untrusted):
        return f" (--trust {error.package})"
    argument = str(error).partition(" ")[0]
    flag = f"--{argument.replace('_', '-')}"
    return f" ({flag})" if command is not None and flag in flags(type(command)) else ""


@contextlib.contextmanager
def trusting(packages: list[str]) -> Iterator[None]:
    """Code of these packages may be run; it is found where Python looks, and in the current folder."""
    if not packages:
        yield
        return
    here = os.getcwd()
    sys.path.append(here)  # the last place, so that no file there stands for a library
    try:
        with names.trust(*packages):
            yield
    finally:
        sys.path.remove(here)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; failures are explained on standard error and by the exit status, see
    docs/reliability.md.
    """
    # None where it was closed before the program started
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
        kind = type(error)
        known = kind is RuntimeError or kind.__name__ == "OutOfMemoryError"  # PyTorch's
        if known or issubclass(kind, ValueError | OSError | MemoryError):
            print(
                f"indm: error: {one_line(error) or kind.__name__}{flag_of(error, command)}",
                file=sys.stderr,
            )
            return MISTAKE
        message = f"unexpected {kind.__name__}: {one_line(error)}"
        print(
            f"indm: error: {message} (the same command with --debug shows where)", file=sys.stderr
        )
        return DEFECT


if __name__ == "__main__":
    sys.exit(main())
