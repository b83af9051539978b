"""The parts that the commands of studies of tables share: options, one thread, and seconds of the
processor.
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from threadpoolctl import threadpool_limits

from research.records import RECORDS


def parser(
    command: str, text: str | None, seconds: float, **repeats: Sequence[int]
) -> argparse.ArgumentParser:
    """A parser of ``--seconds`` of a fit, ``--records``, and the options ``repeats``, numbers such
    as seeds.
    """
    made = argparse.ArgumentParser(
        f"python -m research.{command}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--seconds", type=float, default=seconds, help="CPU seconds of a fit, at most"
    )
    made.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    for name, numbers in repeats.items():
        made.add_argument(f"--{name}", type=int, nargs="+", default=list(numbers))
    return made


def parsed(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; from here on there is one thread."""
    found = made.parse_args(arguments)
    torch.set_num_threads(1)
    threadpool_limits(1)
    return found


@contextmanager
def cpu_clock() -> Iterator[None]:
    """Limits of time count seconds of the processor, and warnings are silent."""
    with warnings.catch_warnings(), mock.patch.object(time, "perf_counter", time.process_time):
        warnings.simplefilter("ignore")
        yield
