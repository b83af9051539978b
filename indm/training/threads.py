"""How many threads a training runs on, measured where nobody says, and a warning where its steps become slow.

On a machine that others use too, more threads can be far slower than one: at each of its many small operations a step
waits for all threads, and so for the one whose core another process has.
"""

import itertools
import math
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from indm.runs.devices import on_cpu
from indm.runs.provenance import threads_of
from indm.training.trainer import Trainer

ENVIRONMENT = "OMP_NUM_THREADS"
SECONDS = 1.0  # of measuring for each number of threads
SHARE = 0.02  # of a run's time that the measuring takes at most, two passes for each number of threads apart
FEWEST_STEPS = 60  # of a run that is measured: those passes take a tenth of its time at most
TURN = 0.05  # seconds for which one number of threads is measured before it is the next one's turn

WINDOW_SECONDS, WINDOW_STEPS = 5.0, 10  # training steps whose median is compared with earlier ones: at least both
SLOW = 3.0  # times the usual


@dataclass(frozen=True)
class Choice:
    """How many threads a run has.

    Attributes:
        threads: the number.
        seconds: of a step's passes, forward and backward, by number of threads; empty where they were not measured.
    """

    threads: int
    seconds: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        measured = ", ".join(f"{seconds:.3g} s a step with {n}" for n, seconds in self.seconds.items())
        return f"threads: {self.threads} ({measured}; --threads {self.threads} repeats this run)"

    def record(self) -> dict:
        """What the provenance of the run has of it; a resumed run takes its ``threads``."""
        return {"threads": self.threads} | ({"seconds_by_threads": self.seconds} if self.seconds else {})

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, PyTorch computes on so many threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def choose(trainer: Trainer, resumed: Path | None = None) -> Choice:
    """The number of threads that ``trainer`` shall run on.

    That is ``train.threads``, where it is a number. Where it is "auto", it is what PyTorch has now if OMP_NUM_THREADS
    says so, on an accelerator and in several processes; else that of the last part of the run in the folder
    ``resumed``, at most what PyTorch has now; else the fastest, measured, of one, half and all of these, unless the run
    is too short for that.
    """
    wanted, own, accelerator = trainer.options.threads, torch.get_num_threads(), trainer.accelerator
    if wanted != "auto":
        return Choice(wanted)
    if os.environ.get(ENVIRONMENT) or accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        return Choice(own)
    if resumed is not None:
        before = threads_of(resumed) or own
        if before > own:
            warnings.warn(
                f"{resumed} was trained on {before} threads, and there are {own} here: the last bits of its weights "
                "will differ from those of a run that nothing interrupted",
                stacklevel=3,
            )
        return Choice(min(before, own))
    steps, seconds_left = trainer.options.steps - trainer.step, trainer.options.seconds - trainer.seconds
    if own == 1 or steps < FEWEST_STEPS:
        return Choice(own)
    with Choice(own).in_use(), passes_without_trace(trainer) as run_pass:
        seconds = measure(run_pass, sorted({1, own // 2, own}), steps, seconds_left)
    return Choice(min(seconds, key=seconds.__getitem__, default=own), seconds)


def measure(run_pass: Callable[[], None], numbers: Sequence[int], steps: float, seconds: float) -> dict[int, float]:
    """Seconds of a call of ``run_pass`` by number of threads: the median of rounds in which each has its turn.

    So what else the machine does meanwhile meets all of them alike.

    Args:
        run_pass: the passes of one step.
        numbers: of threads; the first calls, which show how long a pass is, have the last of them.
        steps, seconds: left of the run. Where it is too short, one pass with the first number is compared with one with
            the last, and the result is empty unless it takes half the time: a busy machine is slow with many threads.
    """

    def seconds_of_a_pass(threads: int, at_least: float) -> float:
        torch.set_num_threads(threads)
        started, passes, spent = time.perf_counter(), 0, 0.0
        while not passes or spent < at_least:
            run_pass()
            passes, spent = passes + 1, time.perf_counter() - started
        return spent / passes

    for _ in range(2):  # the first one also prepares kernels and memory
        usual = seconds_of_a_pass(numbers[-1], 0.0)
    steps = min(steps, seconds / usual)
    if steps < FEWEST_STEPS:
        one = seconds_of_a_pass(numbers[0], 0.0)
        return {numbers[0]: one, numbers[-1]: usual} if one < usual / 2 else {}
    limit = min(SECONDS * len(numbers), SHARE * steps * usual)
    end, turn = time.perf_counter() + limit, min(TURN, limit / (2 * len(numbers)))
    rounds: list[list[float]] = []
    while len(rounds) < 2 or time.perf_counter() < end:
        rounds.append([seconds_of_a_pass(n, turn) for n in numbers])
    return {n: statistics.median(values) for n, *values in zip(numbers, *rounds, strict=True)}


@contextmanager
def passes_without_trace(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """What makes the passes of a step, forward and backward; afterwards all is as before.

    They are :meth:`Trainer.forward_backward` on a batch of the coming step, behind the flow that trains. The average
    of the weights, the optimizer and the place in the run stay as they are; random states are put back, and what the
    passes change in the network: buffers (power iterations, batch norms), parameters that the first pass sets.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), unchanged(trainer.network):
            batches = itertools.repeat(next(trainer.batches()))

            def run_pass() -> None:
                conditions = trainer.conditions()
                if "behind" in conditions:
                    conditions["behind"] = "joint"
                trainer.forward_backward(batches, conditions)
                trainer.network.zero_grad(set_to_none=True)

            yield run_pass
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Afterwards each module has the parameters, buffers and attributes that it had, and these tensors their values.

    What a list or an object among the attributes holds is not put back.
    """
    tables = [
        (table, dict(table))
        for module in network.modules()
        for table in (vars(module), module._parameters, module._buffers)
    ]
    values = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    try:
        yield
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        with torch.no_grad():
            for tensor, before in values:
                tensor.copy_(before)


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
