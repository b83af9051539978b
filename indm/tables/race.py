"""The course of trainings of a table: until validation no longer improves, then at a falling rate;
several race for the seconds.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from indm.tables.fit import FLOW_SHARE, INTERRUPT, MARKS, Validated, is_gain
from indm.tables.mixture import bounded
from indm.training import learning_rate_factor, progress_until

CHECK_EVERY = 50  # steps, at least
# epochs and steps without a gain, until the batch grows and then the rate falls: twice as many where
# nothing has been gained, as a network may stand at zero for a thousand steps, and then learn
PATIENCE, LEAST_STEPS = 15, 500
# the batch: factor at a plateau, most of the rows, most rows
GROWTH, LARGEST_SHARE, LARGEST_BATCH = 4, 0.25, 2_048
ANNEAL = 0.3  # steps of the falling rate, as a share of those before; its share of the seconds
WARMUP = 50  # steps
RACE_STEPS = 1_000  # steps of each training in a race, at most
RACE_SHARE = 0.5, 0.3  # share of the seconds, at most, of a race of two, and of three
Rows = Callable[[Tensor], tuple[Any, ...]]  # indices ↦ a batch of Training.update
One = TypeVar("One", bound="Validated")


@dataclass
class Plateau:
    """At a plateau of validation the batch grows; at the next, which takes half the patience, the
    rate falls to 0.
    """

    rows: int  # in the training data
    batch: int  # rows at a time
    since = 0  # step of the last plateau or better validation
    # the step at which the rate starts to fall, and the steps that this takes
    fall: tuple[int, int] | None = None

    def __post_init__(self):
        self.first, most = self.batch, min(LARGEST_BATCH, int(LARGEST_SHARE * self.rows))
        self.grown = min(GROWTH * self.first, max(self.first, most))
        self.indices = batches(self.rows, self.batch)

    @property
    def epoch(self) -> int:
        """Steps, at least one."""
        return max(1, self.rows // self.batch)

    def rate(self, step: int) -> float:
        """The share of the rate that is left."""
        return 1.0 if self.fall is None else 1 - (step - self.fall[0]) / self.fall[1]

    def is_reached(self, step: int, has_gained: bool) -> bool:
        """Whether the patience is over, before the rate falls."""
        patience = max(PATIENCE * self.epoch, LEAST_STEPS) * (1 if has_gained else 2)
        return self.fall is None and step - self.since >= patience // (
            2 if self.batch > self.first else 1
        )

    def leave(self, step: int, has_new_parts: bool) -> None:
        """Let the batch grow, or else the rate fall, but first give new parts their time."""
        self.since = step
        if self.batch < self.grown:
            self.batch, self.indices = self.grown, batches(self.rows, self.grown)
        elif not has_new_parts:
            self.fall = step, max(CHECK_EVERY, int(ANNEAL * step))


def train(
    training: Validated, rows: Rows, n: int, batch_size: int, max_steps: int, deadline: float
) -> Iterator[None]:
    """Train on ``rows`` of n until validation no longer improves, yielding at each validation.

    At the first :class:`Plateau` the MLP of single columns starts, too. The rate also falls when
    the seconds are nearly over. ``training.ended`` says what ended it.
    """
    plateau = Plateau(n, min(training.own_batch or batch_size, n))
    for spent in progress_until(deadline=deadline):
        if training.step >= max_steps:
            training.ended = "max_steps"
            break
        if spent >= training.alone:
            training.start_columns()
        if spent >= (*MARKS, math.inf)[len(training.marks)]:
            training.marks.append(training.lowest)
        factor = learning_rate_factor(
            training.step - training.began, 0.0, WARMUP, 0.0
        ) * plateau.rate(training.step)
        factor *= min(1.0, (1 - spent) / ANNEAL, (max_steps - training.step) / (ANNEAL * max_steps))
        if factor <= 0:
            training.ended = "plateau"
            break
        if training.update(rows(next(plateau.indices)), factor):
            training.back()
        if training.step % max(CHECK_EVERY, min(plateau.epoch, 10 * CHECK_EVERY)) == 0:
            if training.validate():
                plateau.since = training.step
            if factor == 1:
                training.revive()
            if plateau.is_reached(training.step, is_gain(*training.gain())):
                training.back()
                plateau.leave(training.step, has_new_parts=training.start_columns())
            yield
    else:
        training.ended = "max_seconds"
    training.validate()


def batches(rows: int, size: int) -> Iterator[Tensor]:
    """Indices of batches without end, of at most ``size`` rows; each pass has every row at most
    once.
    """
    size = min(size, rows)
    while True:
        yield from torch.randperm(rows)[: rows // size * size].split(size)


def race(
    trainings: Sequence[One], rows: Rows, n: int, size: int, max_steps: int, deadline: float
) -> One:
    """:func:`train` several in turn, the worst pausing after each round, and the best to its end;
    the best of them all.

    If the best ends at a plateau, the best of another kind gets the rest of the time, and the last
    part of it only if it leads by then. Exact densities decide between two kinds. An interrupt ends
    the race and keeps the best so far.
    """
    now = time.perf_counter()
    seconds = deadline - now
    runs = {
        one: train(one, rows, n, size, max_steps, now + one.share * seconds) for one in trainings
    }
    try:
        _race_in_rounds(runs, now, seconds)
        first = functools.reduce(_better, trainings)
        for _ in runs[first]:
            pass
        if first.ended == "plateau":
            _race_on(first, runs, now + FLOW_SHARE * seconds)
    except KeyboardInterrupt:
        best = functools.reduce(_better, trainings)
        best.ended = INTERRUPT
        return best
    return _best(trainings)


def _race_in_rounds(runs: Mapping[One, Iterator[None]], now: float, seconds: float) -> None:
    """Train all in turn; after each round the worst of them pauses, until one is left."""
    going, rounds = list(runs), len(runs) - 1
    share = RACE_SHARE[len(runs) > 2]
    for i in range(rounds):
        while going and time.perf_counter() < now + share * seconds * (i + 1) / rounds:
            going = [
                one for one in going if one.step < RACE_STEPS and next(runs[one], "ended") is None
            ]
        going = [one for one in going if one is not functools.reduce(_worse, going)]


def _race_on(first: One, runs: Mapping[One, Iterator[None]], until: float) -> None:
    """Train the best of another kind than ``first``, which has ended; after ``until`` only if it
    leads by then.
    """
    rivals = [one for one in runs if one.kind != first.kind]
    for _ in runs[functools.reduce(_better, rivals)] if rivals else ():
        if time.perf_counter() > until:
            if _best(list(runs)) is first:
                break
            until = math.inf


def _best(trainings: Sequence[One]) -> One:
    """The best of each kind by validation, and of these the best by exact densities."""
    kinds = {one.kind for one in trainings}
    of_kinds = [
        functools.reduce(_better, [one for one in trainings if one.kind == kind])
        for kind in sorted(kinds)
    ]
    return functools.reduce(
        lambda a, b: b if bounded((a.exact() - b.exact()).numpy()).mean() > 0 else a, of_kinds
    )


def _better(a: One, b: One) -> One:
    return b if b.is_lower(b.lowest, a.lowest) else a


def _worse(a: One, b: One) -> One:
    return a if _better(a, b) is b else b
