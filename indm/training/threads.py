"""How many threads a training runs on, and a warning where its steps become slow.

On a machine that others use too, more threads can be far slower than one: at each of its many small operations a step
waits for all threads, and so for the one whose core another process has.
"""

import math
import os
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from indm.runs.devices import on_cpu
from indm.runs.provenance import threads_of
from indm.training.trainer import Trainer

ENVIRONMENT = "OMP_NUM_THREADS"
LOOK = 0.3  # seconds for which "auto" looks at what other processes take of the cores

WINDOW_SECONDS, WINDOW_STEPS = 5.0, 10  # training steps whose median is compared with earlier ones: at least both
SLOW = 3.0  # times the usual


def choose(trainer: Trainer, resumed: Path | None = None) -> int:
    """The number of threads that ``trainer`` shall run on.

    That is ``train.threads``, where it is a number. Where it is "auto", it is what PyTorch has now if OMP_NUM_THREADS
    says so, on an accelerator and in several processes; else that of the last part of the run in the folder
    ``resumed``, at most what PyTorch has now; else the share of these that other processes leave idle, at least one.
    """
    wanted, own, accelerator = trainer.options.threads, torch.get_num_threads(), trainer.accelerator
    if wanted != "auto":
        return wanted
    if os.environ.get(ENVIRONMENT) or accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        return own
    if resumed is None:
        return max(1, round(own * (1 - psutil.cpu_percent(LOOK) / 100)))
    before = threads_of(resumed) or own
    if before > own:
        warnings.warn(
            f"{resumed} was trained on {before} threads, and there are {own} here: the last bits of its weights "
            "will differ from those of a run that nothing interrupted",
            stacklevel=3,
        )
    return min(before, own)


@contextmanager
def in_use(threads: int) -> Iterator[None]:
    """Inside, PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SlowSteps:
    """Notices, once, that steps take three times as long as they did in the same process.

    Steps of one kind are compared, those with the same terms: a step that trains the flow takes longer than one that
    does not. What counts is the median of at least ten steps and five seconds, so that a slow one now and then does not
    matter, such as the first of an epoch or one that is compiled. The first median of each kind is left out.
    """

    def __init__(self) -> None:
        self.kinds: dict[frozenset[str], _Kind] = {}
        self.noticed = False

    def notice(self, step: int, kind: frozenset[str], seconds: float) -> str | None:
        """Take in the time of a step; what to say about it if it is the one that shows that steps are slow."""
        usual, now = self.kinds.setdefault(kind, _Kind()).add(seconds)
        if self.noticed or now <= SLOW * usual:
            return None
        self.noticed = True
        return (
            f"at step {step}, steps take {now:.2g} s, where {usual:.2g} s were usual; most often other processes use "
            f"the same cores{_load()}, or the data come slowly{_advice()}"
        )


@dataclass
class _Kind:
    """The times of the steps of one kind."""

    times: list[float] = field(default_factory=list)  # since the last median
    spent: float = 0.0
    usual: float | None = None  # the least median; infinite while there is only the first

    def add(self, seconds: float) -> tuple[float, float]:
        """Take in a time; the usual one, and the newest median: (∞, 0) where there is none to compare with it."""
        self.times.append(seconds)
        self.spent += seconds
        if len(self.times) < WINDOW_STEPS or self.spent < WINDOW_SECONDS:
            return math.inf, 0.0
        now, usual = statistics.median(self.times), self.usual
        self.times, self.spent = [], 0.0
        self.usual = math.inf if usual is None else min(usual, now)
        return math.inf if usual is None else usual, now


def _load() -> str:
    return f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)" if hasattr(os, "getloadavg") else ""


def _advice() -> str:
    """What helps a training on the CPU that has several threads."""
    threads = torch.get_num_threads()
    if threads == 1 or not on_cpu():
        return ""
    return (
        f". Each operation waits for the slowest of {threads} threads: stop, and continue with --resume --threads 1 "
        "(in Python: resume=True, and 1 as train.threads of the recipe)"
    )
