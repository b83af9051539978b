"""The command line: one class a command, ``indm COMMAND --help``."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator

import tyro

from indm.cli.common import DEFECT, INTERRUPTED, MISTAKE, NOBODY_READS
from indm.cli.convert import Convert
from indm.cli.evaluate import Evaluate
from indm.cli.recipes import Recipes
from indm.cli.report import Compare, Inspect, Report
from indm.cli.reproduce import Reproduce
from indm.cli.sample import Fid, Sample
from indm.cli.train import Train, TrainBridge, TrainPair
from indm.cli.translate import Translate
from indm.messages import one_line
from indm.runs.signals import end_at_once

ABOUT = """Implicit nonlinear diffusion models: train one, report its likelihood, sample from it.

  indm recipes                            what can be trained as it is
  indm train digits --out runs/digits     train; Ctrl-C saves, --resume goes on
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
  1    some examples failed and are named on standard error, the others are done
  2    a mistake, which one line on standard error names
  3    an error that should not be; the same command with --debug shows where it came from
  130  interrupted: Ctrl-C ends a training when its step is saved, all else as soon as may be, the second time at once
  141  nobody reads the output any more, as in "indm recipes | head"

No file is written over without --overwrite.
"""
DOTTED = re.compile(r"--((?:[\w-]+\.[\w.-]+)|data|data[-_]b|flow|sde|net|train|evaluate)(?:=(.*))?", re.DOTALL)

# The commands that take the dotted changes of a recipe or of a sampler, and all of them.
Changing = Train | TrainPair | TrainBridge | Convert | Sample | Fid
Command = Changing | Evaluate | Translate | Compare | Inspect | Report | Reproduce | Recipes
CHANGING = ("train", "train-pair", "train-bridge", "convert", "sample", "fid")


def parse(arguments: list[str]) -> tuple[Command, dict[str, str]]:
    """The command, and the dotted changes of a recipe."""
    changes: dict[str, str] = {}
    rest = list(arguments)
    if arguments and arguments[0] in CHANGING:
        rest, changes = split_changes(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Command, prog="indm", description=ABOUT, args=rest, config=(tyro.conf.FlagCreatePairsOff,)
            ), changes
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        _, *lines = (re.sub(r"[─-╿|+]|-{3,}", " ", line).strip() for line in complaint.getvalue().splitlines())
        raise ValueError("; ".join(line for line in lines if line).replace(":;", ":")) from None


def split_changes(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take the ``--table.key value`` and ``--table name`` pairs out of the arguments."""
    rest, changes = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        match = DOTTED.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(remaining, None)
        if value is None:
            raise ValueError(f"{argument} needs a value")
        changes[match[1].replace("-", "_")] = value
    return rest, changes


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
    """The first Ctrl-C is a KeyboardInterrupt, the second ends the process at once."""
    if not is_ctrl_c_free():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> int:
    """:func:`main` where nothing comes after it: Ctrl-C then ends Python at once, whatever still has to be put away."""
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
    for name in ("stdout", "stderr"):  # what was closed before it began
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    warnings.formatwarning = lambda message, *_: f"indm: warning: {one_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    command: Command | None = None
    try:
        with interruptible():
            command, changes = parse(sys.argv[1:] if arguments is None else arguments)
            trains = isinstance(command, Changing)
            status = command.run(changes) if trains else command.run()
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
        said = f"unexpected {kind.__name__}: {one_line(error)}"
        print(f"indm: error: {said} (the same command with --debug shows where)", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(program())
