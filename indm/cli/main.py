"""The command line: one class a command, ``indm COMMAND --help``."""

import contextlib
import io
import itertools
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Union, cast

import tyro

from indm.cli.common import DEFECT, INTERRUPTED, MISTAKE, NOBODY_READS, Common
from indm.cli.convert import Convert
from indm.cli.evaluate import Evaluate
from indm.cli.parts import Parts
from indm.cli.recipes import Recipes
from indm.cli.report import Compare, Inspect, Report
from indm.cli.reproduce import Reproduce
from indm.cli.sample import Fid, Sample
from indm.cli.tables import take_tables
from indm.cli.train import Train, TrainBridge, TrainPair
from indm.cli.translate import Translate
from indm.config import parts
from indm.config.migrations import check_flag_is_current
from indm.messages import nearest, one_line
from indm.runs.signals import end_at_once

ABOUT = """Implicit nonlinear diffusion models: train one, report its likelihood, sample from it.

  indm recipes                            what can be trained as it is
  indm parts                              flows, SDEs, networks, … and the options of each
  indm train digits --out runs/digits     train; Ctrl-C saves, --resume continues
  indm evaluate runs/digits               NELBO and NLL of the test split, with error bars
  indm sample runs/digits -n 64           a grid of samples
  indm fid runs/cifar10                   FID, Inception score, KID, precision and recall
  indm report runs/digits runs/linear     runs side by side on one page
  indm train-pair cats dogs               two image folders, to translate one into the other
  indm translate runs/cats-dogs cats --out as-dogs
  indm reproduce --fast                   the paper's claims, each with a number and a verdict
  indm convert FILE --recipe NAME --out RUN   a checkpoint of the paper's code, as a run

Exit status:

  0    all is done
  1    some examples failed, which standard error names; the others are done
  2    a mistake of yours, which one line on standard error explains
  3    an error in this program; the same command with --debug shows where it came from
  130  interrupted: training ends when its step is saved, other commands end soon; a second Ctrl-C ends at once
  141  the reader of the output has closed it, as in "indm recipes | head"

No file is overwritten without --overwrite.
"""

COMMANDS = {
    "train": Train,
    "train-pair": TrainPair,
    "train-bridge": TrainBridge,
    "convert": Convert,
    "evaluate": Evaluate,
    "sample": Sample,
    "fid": Fid,
    "translate": Translate,
    "compare": Compare,
    "inspect": Inspect,
    "report": Report,
    "reproduce": Reproduce,
    "recipes": Recipes,
    "parts": Parts,
}
UNKNOWN = "Unrecognized options: "  # as tyro says
CONFIG = (tyro.conf.FlagCreatePairsOff,)
ANY_COMMAND = Union[  # noqa: UP007
    tuple(
        Annotated[kind, tyro.conf.subcommand(name, description=str(kind.__doc__).splitlines()[0])]
        for name, kind in COMMANDS.items()
    )
]


def parse(arguments: list[str]) -> Common:
    """The command that the arguments ask for.

    Raises:
        ValueError: what is wrong with the arguments, in one line.
        SystemExit: the help was asked for, and shown.
    """
    kind: type[Common] | None = None
    if arguments and not arguments[0].startswith("-"):
        name, *options = arguments
        if name not in COMMANDS:
            raise ValueError(f"{one_line(name)} is no command of indm{nearest(name, COMMANDS)}")
        for option in options:
            check_flag_is_current(name, option)
        kind = COMMANDS[name]
        options, values = take_tables(options, kind.tables, kind.named)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if kind is None:
                return tyro.cli(cast(Any, ANY_COMMAND), prog="indm", description=ABOUT, args=arguments, config=CONFIG)
            command = tyro.cli(kind, prog=f"indm {arguments[0]}", args=options, config=CONFIG)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ValueError(in_one_line(complaint.getvalue())) from None
    command.table_values = values
    return command


def in_one_line(complaint: str) -> str:
    """What tyro says about a mistake in boxes of several lines."""
    _, *lines = (re.sub(r"[─-╿|+]|-{3,}", " ", line).strip() for line in complaint.splitlines())
    said = itertools.takewhile(lambda line: not line.startswith(("Argument helptext", "For full helptext")), lines)
    first, *others = [line for line in said if line]
    if not first.startswith(UNKNOWN):
        return "; ".join([first, *others]).replace(":;", ":")
    unknown = first.removeprefix(UNKNOWN).split(", ")[0]
    if not unknown.startswith("-"):
        return f"{unknown} is one argument too many"
    similar = [line.split()[0] for line in others if line.startswith("-")]
    return f"{unknown} is no known option" + (f"; did you mean {similar[0]!r}?" if similar else "")


@contextlib.contextmanager
def trusting(packages: list[str]) -> Iterator[None]:
    """Code of these packages may be run; it is found where Python looks, and in the current folder."""
    if not packages:
        yield
        return
    here = os.getcwd()
    sys.path.append(here)  # the last place, so that no file there stands for a library
    try:
        with parts.trust(*packages):
            yield
    finally:
        sys.path.remove(here)


def interrupt(number: int, frame: object) -> None:
    """A handler of signals: the first is a KeyboardInterrupt, the second ends the process at once."""
    signal.signal(number, end_at_once)
    raise KeyboardInterrupt


def is_ctrl_c_free() -> bool:
    """Whether nobody else decides what Ctrl-C means."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return usual and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first Ctrl-C is a KeyboardInterrupt, and the second ends the process at once."""
    if not is_ctrl_c_free():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> int:
    """:func:`main` as a program of its own: once it is over, Ctrl-C ends Python at once, without its clean-up."""
    free = is_ctrl_c_free()
    if free:
        signal.signal(signal.SIGINT, interrupt)
    status = main()
    if free:
        signal.signal(signal.SIGINT, end_at_once)
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Whether an accelerator has no memory left."""
    torch = sys.modules.get("torch")  # not loaded, it has raised nothing
    return torch is not None and type(error) is torch.OutOfMemoryError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and an exit status, see "indm --help"."""
    for name in ("stdout", "stderr"):  # closed before the program started
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    warnings.formatwarning = lambda message, *_: f"indm: warning: {one_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    command: Common | None = None
    try:
        with interruptible():
            command = parse(sys.argv[1:] if arguments is None else arguments)
            with trusting(command.trusted()):
                status = command.run()
            sys.stdout.flush()
            return status
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
        if issubclass(kind, ValueError | OSError) or kind in (RuntimeError, MemoryError) or is_out_of_memory(error):
            print(f"indm: error: {one_line(error) or kind.__name__}", file=sys.stderr)
            return MISTAKE
        message = f"unexpected {kind.__name__}: {one_line(error)}"
        print(f"indm: error: {message} (the same command with --debug shows where)", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(program())
