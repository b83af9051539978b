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
from indm.config.recipes import OPTION_TABLES
from indm.messages import did_you_mean, nearest

UNKNOWN, MISSING = "Unrecognized options: ", "Missing from "  # as tyro says
CONFIG = (tyro.conf.FlagCreatePairsOff,)
TOPICS = {"-h": ["help"], "--help": ["help"], "--version": ["help", "version"]}  # of what stands before any command
WRONG = r"Error parsing \S*?--([\w-]+): .*"
IN_OUR_WORDS = {  # of what tyro says on one line
    WRONG + r"invalid literal for int.*: ('.*')": r"\1 must be a whole number, got \2",
    WRONG + r"could not convert string to float: ('.*')": r"\1 must be a number, got \2",
    WRONG + r"parse for arguments: \[(.*)\]": r"\1 must be whole numbers, got \2",
    WRONG + r"from \[\]\..* argument count (\d+) .*": r"--\1 needs \2 values",
    WRONG + r"from \[(.+?)\]\..* argument count (\d+) .*": r"--\1 needs \3 values, got \2",
    r"Missing value for argument .*?--([\w-]+)\W.* Expected 1 values\.": r"--\1 needs a value",
    r"invalid choice ('.*') for argument '\S*?--([\w-]+)'.* of \((.*)\) ?\.": r"\2 must be one of \3, got \1",
}


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
        return in_our_words(" ".join([first, *others]))
    unknown = first.removeprefix(UNKNOWN).split(", ")[0]
    if not unknown.startswith("-"):
        given = f"; data are given as --data.path {unknown}" if command == "train" and Path(unknown).exists() else ""
        return f"{unknown} is one argument too many{given}"
    return f"{unknown} is no option of indm {command}{meant(command, unknown)}"


def in_our_words(said: str) -> str:
    """A sentence of tyro's as the checks of this package say it."""
    matches = ((re.fullmatch(pattern, said), words) for pattern, words in IN_OUR_WORDS.items())
    return next((match.expand(words) for match, words in matches if match), said)


def meant(command: str, unknown: str) -> str:
    """What an unknown option of a command may have meant."""
    flag, tables = unknown.partition("=")[0].replace("_", "-"), find(command).tables
    table, dot, _ = flag.removeprefix("--").partition(".")
    if dot:
        others = [name for name in COMMANDS if table in find(name).tables]
        return _of_others(others) or did_you_mean(table, tables) or f'; "indm {command} --help" lists its options'
    keys = [f"--{table}.{key.name}" for table in OPTION_TABLES if table in tables
            for key in listing.keys_of_options(table)]  # fmt: skip
    same = [key for key in keys if key.partition(".")[2].replace("_", "-") == flag.removeprefix("--")]
    if same:
        return f"; did you mean {same[0]!r}?"
    others = [name for name in COMMANDS if flag in flags(name)]
    near = did_you_mean(flag, [*flags(command), *keys])
    by_table = f"; keys of the recipe are given as --TABLE.KEY, see indm {command} --help" if tables else ""
    return _of_others(others) or near or by_table or f'; "indm {command} --help" lists its options'


def _of_others(commands: list[str]) -> str:
    return f"; {', '.join(commands)} {'has' if len(commands) == 1 else 'have'} it" if commands else ""
