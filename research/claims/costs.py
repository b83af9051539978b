"""What a training step of each variant costs, and how many steps each can make in the seconds of INDM's.

The budget of a comparison is one of steps: their cost is measured first, variant beside variant and with nothing else
running. So the outcome does not depend on what else the machine does meanwhile.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from indm.workbench.recipes.recipe import Recipe
from indm.workbench.training.costs import interleaved_seconds, trainer_of
from research.claims.plan import FIRST_SEED, Budget, Plan, family_of_plan, recipe_of
from research.claims.studies import STUDIES, VARIANTS

ROUNDS, FAST_ROUNDS = 8, 3


def measure_budget(plan: Plan, threads: int, progress: bool = True) -> Budget:
    """The budget of a plan, measured on this machine with the ``threads`` that each run will have."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    costs: dict[str, dict[str, float]] = {}
    log_cost: dict[str, tuple[float, float]] = {}
    for data in tqdm(plan.data, desc="cost of a step", disable=not progress):
        measured = seconds_per_step(plan, data, rounds=FAST_ROUNDS if plan.fast else ROUNDS)
        costs[data], log_cost[data] = costs_of(measured), log_cost_of(measured)
    torch.set_num_threads(usual)
    steps = {
        data: {variant: round(plan.steps(data) * row["indm"] / cost) for variant, cost in row.items()}
        for data, row in costs.items()
    }
    return Budget(plan, costs, log_cost, steps, threads, family_of_plan(plan))


def seconds_per_step(plan: Plan, data: str, rounds: int, steps: int = 12) -> dict[str, list[float]]:
    """Seconds of a training step of each variant whose cost is measured, see :func:`in_turns`."""
    measured = [variant for variant in STUDIES[data].variants if not VARIANTS[variant].cost]
    return in_turns({v: recipe_of(plan, data, v, FIRST_SEED, 100) for v in measured}, rounds, steps)


def in_turns(variants: Mapping[str, Recipe], rounds: int, steps: int = 12) -> dict[str, list[float]]:
    """Seconds of a training step of each recipe, one value for each round but the first, which warms up.

    See :func:`indm.workbench.training.costs.interleaved_seconds`. All train in this process, with the threads that it
    has.
    """
    trainers = {variant: trainer_of(recipe) for variant, recipe in variants.items()}
    threads = dict.fromkeys(trainers, torch.get_num_threads())
    return interleaved_seconds(trainers, threads, rounds=rounds - 1, steps=steps, progress=False)


def costs_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median seconds of a step of each variant; of those that are not measured, by the shares they are made of."""
    costs = {variant: statistics.median(values) for variant, values in seconds.items()}
    composed = {variant: row.cost for variant, row in VARIANTS.items() if row.cost}
    return costs | {
        variant: sum(share * costs[part] for part, share in shares.items()) for variant, shares in composed.items()
    }


def log_cost_of(seconds: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Log of an INDM step's seconds over a linear one's, with its standard error over rounds."""
    logs = [math.log(a / b) for a, b in zip(seconds["indm"], seconds["linear"], strict=True)]
    return statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
