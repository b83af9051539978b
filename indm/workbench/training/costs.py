"""Costs of training steps: their measurement, and the budgets that follow from it.

Wall-clock time also depends on other processes. So trainings that are compared get steps: the cost of a step of each
is measured interleaved, in one process, and each makes as many as cost the same. The record of the run that was
measured keeps it, so that a comparison has the same outcome.
"""

import contextlib
import copy
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from indm.workbench.data.base import without_download
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.recipes.recipe import AnyTables, Recipe
from indm.workbench.runs.devices import by_main_process, make_accelerator
from indm.workbench.runs.folder import FREE_ON_RESUME, end_of, recipe_of
from indm.workbench.runs.provenance import last_part, parts_of_record
from indm.workbench.training.parts import parts_of
from indm.workbench.training.trainer import Trainer

STEP_COSTS = "step_costs"  # in the record of a run: seconds by recipe
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


# ── The time of a step ──────────────────────────────────────────────────────────────────────────────────────────────


def interleaved_seconds(
    trainers: Mapping[Any, Trainer],
    threads: Mapping[Any, int],
    *,
    rounds: int,
    steps: int | None = None,
    progress: bool = True,
) -> dict[Any, list[float]]:
    """Seconds of a training step of each trainer by round, measured interleaved, in this process. Collective.

    Each round has whole cycles of steps with and without the flow of each trainer: at least ``steps``, by default as
    many as take :data:`TURN`. Before the first round each trainer makes two cycles, to prepare kernels and memory.
    Where a run begins with one part alone (``train.pretrain``, the whole of ``train.flow_first``), its step is the mean
    over the run. The trainers are trained on.
    """
    batches = {name: trainer.batches() for name, trainer in trainers.items()}

    def seconds_of(name: Any, cycles: int) -> float:
        trainer, seconds = trainers[name], 0.0
        count, opening = cycles * trainer.options.flow_update_every, trainer.alone
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
        return by_main_process(lambda: max(1, math.ceil(steps / cycle) if steps else round(TURN / seconds / cycle)))

    cycles = {name: cycles_of(name) for name in trainers}
    shown = tqdm(range(rounds), desc="cost of a step", disable=not progress)
    rows = [{name: seconds_of(name, cycles[name]) for name in trainers} for _ in shown]
    return by_main_process(lambda: {name: [row[name] for row in rows] for name in trainers})


def medians(seconds: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """Seconds of a step: of the first the median over rounds, of another that times the median of its ratios to it.

    So what slows a whole round down leaves the ratios as they are.
    """
    first, *_ = seconds.values()
    cost = statistics.median(first)
    return {
        name: cost * statistics.median(a / b for a, b in zip(values, first, strict=True))
        for name, values in seconds.items()
    }


# ── Budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(recipe: Recipe) -> str:
    """A hash of a recipe without seed, budget and how a run is watched; runs whose steps cost the same have one key."""
    free = {key.removeprefix("train.") for key in FREE_ON_RESUME} | {"seed"}
    usual = asdict(TrainOptions(steps=1))
    train = {key: value for key, value in recipe["train"].items() if key not in free and value != usual.get(key)}
    tables = {table: content for table, content in recipe.items() if table not in recipes.OPTION_TABLES}
    tables |= {table: recipes.without_paths(tables[table]) for table in recipes.DATA_TABLES if table in tables}
    text = json.dumps(tables | {"train": train}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trainer_of(recipe: Recipe, trainer: type[Trainer] = Trainer, **parts: Any) -> Trainer:
    """A trainer at the beginning of a run without end by that recipe; ``parts`` are what Python gave in its place."""
    recipe = replace(recipe, train=replace(recipe.train, steps=10**9, seconds=math.inf))
    accelerator = make_accelerator(recipe.train)
    return trainer(recipe, accelerator=accelerator, **(parts or parts_of(recipe, accelerator)))


def threads_for(run: Path) -> int:
    """The threads that ``run`` had, at most those that there are."""
    threads, own = last_part(run).get("threads"), torch.get_num_threads()
    return min(threads, own) if type(threads) is int and threads >= 1 else own


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
) -> tuple[Recipe, dict[str, float], str]:
    """The full ``recipe`` of the run ``out`` with as many steps as cost what ``like`` has spent, on as many threads.

    Both costs are measured interleaved, unless the recipes say that they are the same. Also returns the seconds of a
    step by :func:`key_of` recipes that were measured, and a sentence that says so. Collective.

    Raises:
        ValueError: ``like`` has not come to an end.
    """
    other, steps = recipe_of(like), end_of(like)["steps"]
    kept = other | {table: without_download(other[table]) for table in recipes.DATA_TABLES if table in other}
    whole = recipes.resolve(recipes.as_continued(recipe, like))
    own, other_threads = whole.train.threads, threads_for(like)
    threads = {like: other_threads, out: own or other_threads}
    ratio, measured = 1.0, dict[str, float]()
    if key_of(whole) != key_of(other):
        a = make_accelerator(whole.train)
        parts = parts_of(whole, a, copy.deepcopy(model), data, objective)
        with torch.random.fork_rng(devices=[]):
            trainers = {like: trainer_of(kept), out: trainer_of(whole, trainer, **parts)}
            seconds = medians(interleaved_seconds(trainers, threads, rounds=TIMED_ROUNDS, progress=progress))
        ratio = seconds[out] / seconds[like]
        measured = {key_of(whole): seconds[out], key_of(other): seconds[like]}
    budget = {"steps": max(1, round(steps / ratio)), "seconds": math.inf, "threads": threads[out]}
    note = f"{budget['steps']:,} steps, which cost the {steps:,} of {like}: a step costs {ratio:.3g} of one there"
    return replace(whole, train=replace(whole.train, **budget)), measured, note


def ratio_in(runs: Sequence[Path], key: str, other: str) -> float | None:
    """The cost of a step of recipe ``key`` over the cost with ``other``, measured for the budget of one of the runs."""
    for run in runs:
        for part in reversed(parts_of_record(run)):
            costs = part.get(STEP_COSTS)
            if isinstance(costs, dict) and all(isinstance(costs.get(k), float) and costs[k] > 0 for k in (key, other)):
                return costs[key] / costs[other]
    return None
