"""Seconds of training steps, and budgets that cost the same.

Wall-clock time also depends on other processes. So ``like`` gives a run steps, not seconds: a step
of each run is measured in turns, in one process, and the new run makes as many steps as cost the
same.
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
from indm.workbench.training.parts import parts_of
from indm.workbench.training.trainer import Trainer

TIMED_ROUNDS = 6
TURN = 0.4  # seconds of a round that each trainer has, about; one cycle of steps at least


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Inside, PyTorch computes on so many threads."""
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
    """Seconds of a training step of each trainer by round, measured in turns, in this process.
    Collective.

    Each round has whole cycles of steps with and without the flow of each trainer: at least
    ``steps``, by default as many as take :data:`TURN`. Before the first round each trainer makes
    two cycles, to prepare kernels and memory. Where a run begins with one part alone
    (``train.first``; the whole of that fraction), its step is the mean over the run. The trainers
    are trained on.
    """
    batches = {name: trainer.batches() for name, trainer in trainers.items()}

    def seconds_of(name: Any, cycles: int) -> float:
        trainer = trainers[name]
        seconds = 0.0
        count = cycles * trainer.options.flow_update_every
        opening = trainer.alone
        with on_threads(threads[name]):
            for share, trainer.opening in ((opening, True), (1 - opening, False)):
                if share:
                    started = time.perf_counter()
                    for _ in range(count):
                        terms = trainer.train_step(batches[name])
                    float(terms["skipped"])  # waits for the device
                    seconds += share * (time.perf_counter() - started) / count
        return seconds

    def cycles_of(name: Any) -> int:
        seconds = [seconds_of(name, 1) for _ in range(2)][-1]
        cycle = trainers[name].options.flow_update_every
        return by_main_process(
            lambda: max(1, math.ceil(steps / cycle) if steps else round(TURN / seconds / cycle))
        )

    cycles = {name: cycles_of(name) for name in trainers}
    shown = tqdm(range(rounds), desc="cost of a step", disable=not progress)
    rows = [{name: seconds_of(name, cycles[name]) for name in trainers} for _ in shown]
    return by_main_process(lambda: {name: [row[name] for row in rows] for name in trainers})


def trainer_of(recipe: Recipe, trainer: type[Trainer] = Trainer, **parts: Any) -> Trainer:
    """A trainer at the beginning of a run without end by that recipe; ``parts`` are what Python
    gave in its place.
    """
    recipe = replace(recipe, train=replace(recipe.train, steps=10**9, seconds=math.inf))
    accelerator = make_accelerator(recipe.train)
    return trainer(recipe, accelerator=accelerator, **(parts or parts_of(recipe, accelerator)))


def threads_for(run: Path) -> int:
    """The threads that ``run`` had, at most those that there are."""
    threads, own = last_part(run).get("threads"), torch.get_num_threads()
    return min(threads, own) if type(threads) is int and threads >= 1 else own


def have_equal_steps(recipe: Recipe, other: Recipe) -> bool:
    """Whether a step of both costs the same, as they differ in the seed, the budget or how a run is
    watched alone.
    """
    differing = recipes.differing_keys(other, recipes.absolute(recipe))
    return all(
        key in {"train.seed", *FREE_ON_RESUME} or key.startswith(("evaluate.", "sample."))
        for key in differing
    )


def budget_like(
    recipe: AnyTables,
    like: Path,
    out: Path,
    *,
    model: Any = None,
    data: Any = None,
    objective: Any = None,
    trainer: type[Trainer] = Trainer,
    progress: bool = True,
) -> tuple[Recipe, str]:
    """The full ``recipe`` of the run ``out`` with as many steps as cost what ``like`` has spent, on
    as many threads.

    A step of both is measured, unless the recipes say that it costs the same. What slows a whole
    round down leaves the ratios of that round as they are, and their median counts. Also returns a
    sentence that says so. Collective.

    Raises:
        ValueError: ``like`` has not come to an end.
    """
    other, steps = recipe_of(like), end_of(like)["steps"]
    whole = recipes.resolve(recipes.as_continued(recipe, like))
    threads = {"like": threads_for(like), "out": whole.train.threads or threads_for(like)}
    ratio = 1.0
    if not have_equal_steps(whole, other):
        kept = other | {
            table: without_download(other[table]) for table in recipes.DATA_TABLES if table in other
        }
        accelerator = make_accelerator(whole.train)
        parts = parts_of(whole, accelerator, copy.deepcopy(model), data, objective)
        with torch.random.fork_rng(devices=[]):
            trainers = {"like": trainer_of(kept), "out": trainer_of(whole, trainer, **parts)}
            seconds = interleaved_seconds(trainers, threads, rounds=TIMED_ROUNDS, progress=progress)
        ratio = statistics.median(
            a / b for a, b in zip(seconds["out"], seconds["like"], strict=True)
        )
    budget = {"steps": max(1, round(steps / ratio)), "seconds": math.inf, "threads": threads["out"]}
    note = f"{budget['steps']:,} steps, which cost the {steps:,} of {like}: a step costs {ratio:.3g} of one there"
    return replace(whole, train=replace(whole.train, **budget)), note
