"""The command that the arguments ask for, or one line that says what is wrong with them."""

import contextlib
import io
import itertools
import re
import sys
from pathlib import Path

import tyro

from indm.cli import listing
from indm.cli.commands import COMMANDS, find, flags
from indm.cli.common import Common
from indm.cli.tables import take_tables
from indm.config.parts import check_is_here
from indm.config.recipes import OPTION_TABLES
from indm.messages import did_you_mean, nearest

UNKNOWN, MISSING = "Unrecognized options: ", "Missing from "  # as tyro says
CONFIG = (tyro.conf.FlagCreatePairsOff,)
TOPICS = {"-h": ["help"], "--help": ["help"], "--version": ["help", "version"]}  # of what stands before any command


def parse(arguments: list[str]) -> Common:
    """The command that the arguments ask for.

    Raises:
        ValueError: what is wrong with the arguments, in one line.
        SystemExit: the help of a command was asked for, and shown.
    """
    name, *options = TOPICS.get(arguments[0], arguments) if arguments else ["help"]
    if name.startswith("-"):
        raise ValueError(f"a command must come before {name}{nearest(name.lstrip('-'), COMMANDS)}")
    kind = find(name)
    for option in options:
        if option.startswith("--"):
            check_is_here(option[2:].partition("=")[0].partition(".")[0])
    options, values = take_tables(options, kind.tables)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(kind, prog=f"indm {name}", args=options, config=CONFIG)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise ValueError(in_one_line(name, complaint.getvalue())) from None
        if kind.tables:
            print(listing.of_tables(kind.tables))
        sys.stdout.flush()  # so that a reader who has enough is no error at the very end
        raise
    command.table_values = values
    return command


def show_help(name: str) -> None:
    """What ``indm COMMAND --help`` shows."""
    with contextlib.suppress(SystemExit):
        parse([name, "--help"])


def in_one_line(command: str, complaint: str) -> str:
    """What tyro says about a mistake in boxes of several lines."""
    _, *lines = (re.sub(r"[─-╿|+]|-{3,}", " ", line).strip() for line in complaint.splitlines())
    said = itertools.takewhile(lambda line: not line.startswith(("Argument helptext", "For full helptext")), lines)
    first, *others = [line for line in said if line]
    if first.startswith(MISSING):
        argument, *sentence = [line.removesuffix("(required)").strip() for line in others]
        return f"indm {command} needs {argument}: {' '.join(sentence).strip()}"
    if not first.startswith(UNKNOWN):
        return " ".join([first, *others]).removeprefix("Error parsing ").partition(" Got errors:")[0]
    unknown = first.removeprefix(UNKNOWN).split(", ")[0]
    if not unknown.startswith("-"):
        given = f"; data are given as --data.path {unknown}" if command == "train" and Path(unknown).exists() else ""
        return f"{unknown} is one argument too many{given}"
    return f"{unknown} is no option of indm {command}{meant(command, unknown)}"


def meant(command: str, unknown: str) -> str:
    """What an unknown option of a command may have meant."""
    keys = [f"--{table}.{key.name}" for table in find(command).tables if table in OPTION_TABLES
            for key in listing.keys_of_options(table)]  # fmt: skip
    near = did_you_mean(unknown.partition("=")[0], [*flags(command), *keys])
    return near or f'; "indm {command} --help" lists its options'
