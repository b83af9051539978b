"""The cost of a training step, in steps of another training: CPU seconds of one thread, measured in
turns.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from indm.workbench.recipes.recipe import Recipe
from indm.workbench.training.costs import on_threads, trainer_of
from research.records import Records

# the first round warms up, and steps hold whole cycles of flow_update_every
ROUNDS, STEPS_A_ROUND = 9, 6
Step = Callable[[], object]


def step_of(recipe: Recipe) -> Step:
    """A function that makes one training step of the recipe."""
    trainer = trainer_of(recipe)
    return partial(trainer.train_step, trainer.batches())


def seconds_in_turns(steps: Mapping[Any, Step]) -> dict[Any, list[float]]:
    """CPU seconds of a step of each in every round: what slows a whole round down leaves the ratios
    as they are.
    """

    def turn(step: Step) -> float:
        started = time.process_time()
        for _ in range(STEPS_A_ROUND):
            step()
        return (time.process_time() - started) / STEPS_A_ROUND

    with on_threads(1):
        rounds = [{name: turn(step) for name, step in steps.items()} for _ in range(ROUNDS)][1:]
    return {name: [row[name] for row in rounds] for name in steps}


def relative_cost(own: Sequence[float], unit: Sequence[float]) -> dict[str, float]:
    """The median over rounds of a step's seconds divided by ``unit``'s, with its error, and its
    milliseconds.
    """
    cost, error = median_and_error([a / b for a, b in zip(own, unit, strict=True)])
    milliseconds = 1e3 * statistics.median(own)
    return {
        "cost": round(cost, 4),
        "error": round(error, 4),
        "milliseconds": round(milliseconds, 1),
    }


def median_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The median and its standard error, from the median distance to it: one disturbed round counts
    for little.
    """
    middle = statistics.median(values)
    # σ of a normal law
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return middle, math.sqrt(math.pi / 2) * spread / math.sqrt(len(values))


def kept_costs(
    table: Records, steps: Mapping[str, Callable[[], Step]], unit: str
) -> dict[str, float]:
    """The cost of each step in steps of ``unit``, one of them; a step without a row is made and
    measured.
    """
    known = {row["step"] for row in table.rows()}
    if missing := [name for name in steps if name != unit and name not in known]:
        rows = costs_in_turns({name: steps[name]() for name in (unit, *missing)}, unit)
        for name in rows.keys() - known:
            table.at(step=name).add(rows[name])
    return {row["step"]: row["cost"] for row in table.rows()}


def costs_in_turns(steps: Mapping[str, Step], unit: str) -> dict[str, dict[str, float]]:
    """The cost of each step in units of the step named ``unit``; see :func:`relative_cost`."""
    seconds = seconds_in_turns(steps)
    return {name: relative_cost(own, seconds[unit]) for name, own in seconds.items()}
