"""The ``indm`` program: one command, run to its exit status."""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from indm import names
from indm.messages import one_line
from indm.workbench.cli.commands import parse
from indm.workbench.cli.common import DEFECT, DONE, INTERRUPTED, MISTAKE, NOBODY_READS, Common
from indm.workbench.runs.signals import end_at_once


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


def interrupt(number: int, frame: object) -> None:
    """A handler of signals: the first is a KeyboardInterrupt, the second ends the process at once."""
    signal.signal(number, end_at_once)
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(afterwards: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside, the first Ctrl-C is a KeyboardInterrupt, the second ends the process at once, unless others handle it."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    is_free = usual and threading.current_thread() is threading.main_thread()
    if is_free:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if is_free:
            signal.signal(signal.SIGINT, afterwards)


def program() -> int:
    """:func:`main` as a program of its own: once it is over, Ctrl-C ends Python at once, without its clean-up."""
    with interruptible(end_at_once):
        return main()


def main(arguments: list[str] | None = None) -> int:
    """Run one command; failures are explained on standard error and by the exit status, see docs/reliability.md."""
    for name in ("stdout", "stderr"):  # closed before the program started
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    warnings.formatwarning = lambda message, *_: f"indm: warning: {one_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    command: Common | None = None
    try:
        with interruptible(signal.default_int_handler):
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
            print(f"indm: error: {one_line(error) or kind.__name__}", file=sys.stderr)
            return MISTAKE
        message = f"unexpected {kind.__name__}: {one_line(error)}"
        print(f"indm: error: {message} (the same command with --debug shows where)", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(program())
