"""Means with standard errors."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

FOLDS = 10  # of the jackknife
CHUNKS = 5  # sets of training data, at most, that show the spread of a floor


def jackknife(statistic: Callable[..., dict[str, float]], *sets: Tensor) -> dict[str, float]:
    """The numbers statistic(*sets), each with its ``…_standard_error`` from those without every tenth sample.

    The sets may differ in size; they are taken to be independent, or paired row by row.

    Raises:
        ValueError: fewer than 20 samples in a set.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 11, with groups of samples left out.
    """
    sizes = [len(samples) for samples in sets]
    if min(sizes) < 2 * FOLDS:
        raise ValueError(f"sets must hold at least {2 * FOLDS} samples each for a standard error, got {sizes}")
    without = [
        statistic(*(samples[torch.arange(len(samples), device=samples.device) % FOLDS != fold] for samples in sets))
        for fold in range(FOLDS)
    ]
    found = {}
    for name, value in statistic(*sets).items():
        spread = torch.tensor([values[name] for values in without], dtype=torch.float64).std().item()
        found |= {name: value, f"{name}_standard_error": (FOLDS - 1) / math.sqrt(FOLDS) * spread}
    return found


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean and its standard error."""
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()
