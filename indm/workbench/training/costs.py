"""Seconds of training steps, and budgets of equal cost.

Wall-clock time also depends on other processes. So ``like`` gives a run a number of steps: a step
of each run is measured in turns, in one process, and the new run gets as many as cost the same.
"""

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from indm.workbench.data.base import without_download
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import AnyTables, Recipe
from indm.workbench.runs.devices import by_main_process, make_accelerator
from indm.workbench.runs.folder import FREE_ON_RESUME, end_of, recipe_of
from indm.workbench.runs.provenance import last_part
from indm.workbench.training.parts import read
from indm.workbench.training.trainer import Trainer

TIMED_ROUNDS = 6
TURN = 0.4  # seconds of a trainer in a round, about, but at least one cycle of steps


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Let PyTorch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved_seconds(
    trainers: Mapping[Any, Trainer],
    threads: Mapping[Any, int],
    *,
    rounds: int,
    steps: int | None = None,
    progress: bool = True,
) -> dict[Any, list[float]]:
    """Seconds of a training step of each trainer by round, measured in turns. Collective.

    In each round a trainer makes whole cycles of steps with and without the flow: at least
    ``steps``, by default as many as take :data:`TURN`. Before the first round it makes two cycles,
    to prepare kernels and memory. If a run begins with one part alone (``train.first``), its step
    is the mean over the run. The trainers are changed.
    """
    batches = {name: trainer.batches() for name, trainer in trainers.items()}

    def seconds_of(name: Any, cycles: int) -> float:
        schedule = trainers[name].schedule
        count = cycles * schedule.flow_update_every
        seconds = 0.0
        with on_threads(threads[name]):
            for share, is_opening in ((schedule.alone, True), (1 - schedule.alone, False)):
                if not share:
                    continue
                schedule.place.opening = is_opening
                started = time.perf_counter()
                for _ in range(count):
                    terms = trainers[name].train_step(batches[name])
                float(terms["skipped"])  # waits for the device
                seconds += share * (time.perf_counter() - started) / count
        return seconds

    def cycles_of(name: Any) -> int:
        seconds = [seconds_of(name, 1) for _ in range(2)][-1]
        cycle = trainers[name].schedule.flow_update_every
        wanted = math.ceil(steps / cycle) if steps else round(TURN / seconds / cycle)
        return by_main_process(lambda: max(1, wanted))

    cycles = {name: cycles_of(name) for name in trainers}
    shown = tqdm(range(rounds), desc="cost of a step", disable=not progress)
    rows = [{name: seconds_of(name, cycles[name]) for name in trainers} for _ in shown]
    return by_main_process(lambda: {name: [row[name] for row in rows] for name in trainers})


def trainer_of(
    recipe: Recipe,
    trainer: type[Trainer] = Trainer,
    *,
    model: Any = None,
    data: Any = None,
    objective: Any = None,
) -> Trainer:
    """A trainer at the start of an endless run of that recipe and of parts from Python."""
    endless = replace(recipe, train=replace(recipe.train, steps=10**9, seconds=math.inf))
    _, parts = read(endless, make_accelerator(recipe.train), model, data, objective)
    return trainer(parts)


def threads_for(run: Path) -> int:
    """The threads of ``run``, at most as many as PyTorch has now."""
    own = torch.get_num_threads()
    threads = last_part(run).get("threads")
    return min(threads, own) if type(threads) is int and threads >= 1 else own


def have_equal_steps(recipe: Recipe, other: Recipe) -> bool:
    """Whether a step of both costs the same: they differ only in seed, budget and log."""
    differing = recipes.differing_keys(other, recipes.absolute(recipe))
    return all(
        key in {"train.seed", *FREE_ON_RESUME} or key.startswith(("evaluate.", "sample."))
        for key in differing
    )


def budget_like(
    recipe: AnyTables,
    like: Path,
    model: Any = None,
    data: Any = None,
    objective: Any = None,
    *,
    trainer: type[Trainer] = Trainer,
    progress: bool = True,
) -> tuple[Recipe, str]:
    """The full ``recipe`` with as many steps as cost what ``like`` has spent, and a note. Collective.

    Both use the same number of threads. A step of both is measured, unless the recipes show that it
    costs the same. The median over rounds of the ratio of costs is used, as other processes slow
    both down in a round.

    Raises:
        ValueError: ``like`` has not come to an end.
    """
    other = recipe_of(like)
    steps = end_of(like)["steps"]
    whole = recipes.resolve(recipes.as_continued(recipe, like))
    threads = {"like": threads_for(like), "out": whole.train.threads or threads_for(like)}
    ratio = 1.0
    if not have_equal_steps(whole, other):
        tables = [table for table in recipes.DATA_TABLES if table in other]
        kept = other | {table: without_download(other[table]) for table in tables}
        given = {"model": copy.deepcopy(model), "data": data, "objective": objective}
        with torch.random.fork_rng(devices=[]):
            trainers = {"like": trainer_of(kept), "out": trainer_of(whole, trainer, **given)}
            seconds = interleaved_seconds(trainers, threads, rounds=TIMED_ROUNDS, progress=progress)
        ratios = [a / b for a, b in zip(seconds["out"], seconds["like"], strict=True)]
        ratio = statistics.median(ratios)
    budget = {"steps": max(1, round(steps / ratio)), "seconds": math.inf, "threads": threads["out"]}
    note = (
        f"{budget['steps']:,} steps, which cost the {steps:,} of {like}: "
        f"a step costs {ratio:.3g} of one there"
    )
    return replace(whole, train=replace(whole.train, **budget)), note
