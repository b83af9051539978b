"""What a step costs: processor seconds of one thread."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from indm.workbench.recipes.recipe import Recipe
from indm.workbench.training.costs import trainer_of

ROUNDS, STEPS_A_ROUND = 7, 3  # the first round warms up, and steps hold a whole cycle of flow_update_every


def seconds_a_step(step: Callable[[int], object], count: int) -> float:
    """The mean over ``count`` steps, each of which is given its number."""
    started = time.process_time()
    for number in range(count):
        step(number)
    return (time.process_time() - started) / count


def relative_cost(ratios: Sequence[float]) -> dict[str, float]:
    """The median of ratios of seconds as ``cost``, and the standard error of their mean as ``error``."""
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return {"cost": round(statistics.median(ratios), 3), "error": round(error, 3)}


def cost_in_turns(unit: Recipe, recipe: Recipe) -> dict[str, Any]:
    """CPU seconds of a step of ``recipe`` over those of ``unit``, step beside step on one thread: median and error."""
    torch.set_num_threads(1)
    trainers = [(trainer, trainer.batches()) for trainer in (trainer_of(unit), trainer_of(recipe))]
    steps = [lambda _, pair=pair: pair[0].train_step(pair[1]) for pair in trainers]
    rounds = [[seconds_a_step(step, STEPS_A_ROUND) for step in steps] for _ in range(ROUNDS)][1:]
    return relative_cost([own / of_unit for of_unit, own in rounds]) | {
        "seconds": round(min(own for _, own in rounds), 4),
        "parameters": sum(p.numel() for p in trainers[1][0].model.parameters()),
    }
