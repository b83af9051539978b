"""The ``indm`` program: one command, run to its exit status."""

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator

from indm import names
from indm.checks import one_line
from indm.workbench.cli.commands import parse
from indm.workbench.cli.common import DEFECT, DONE, INTERRUPTED, MISTAKE, NOBODY_READS, Common


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
    """Run one command; failures are explained on standard error and by the exit status, see docs/reliability.md."""
    for name in ("stdout", "stderr"):  # closed before the program started
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
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
            words = re.sub(r"allow it by indm\.trust\('(\w+)'\)", r"add --trust \1", one_line(error))
            print(f"indm: error: {words or kind.__name__}", file=sys.stderr)
            return MISTAKE
        message = f"unexpected {kind.__name__}: {one_line(error)}"
        print(f"indm: error: {message} (the same command with --debug shows where)", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(main())
