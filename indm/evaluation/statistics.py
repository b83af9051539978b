"""Means with standard errors: of samples, of paired differences, over seeds, and by the jackknife.

A standard error is that of a mean: s/√n, s the sample standard deviation.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FOLDS = 10  # of the jackknife
TIE = 2.0  # standard errors within which a difference is a tie


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean and its standard error."""
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def mean_error_and_noise(draws: Float[Tensor, "repeats n"]) -> tuple[float, float, float]:
    """Mean over samples, its standard error, and the part of that error that is estimator noise.

    The noise is the standard error that would remain if the samples themselves were fixed: the root of the mean
    variance within a sample, divided by repeats · n. Where draws are stratified over the batch (the times of the
    NELBO) the mean is sharper than that.
    """
    repeats, n = draws.shape
    error = (draws.mean(0).std() / math.sqrt(n)).item()
    noise = math.sqrt(draws.var(0).mean().item() / (repeats * n))
    return draws.mean().item(), error, noise


def share_error(share: float, n: int) -> float:
    """The standard error of a share of ``n`` independent trials, √(p(1 − p)/n)."""
    return math.sqrt(share * (1 - share) / n)


def over_seeds(values: Sequence[float], alone: float = math.nan) -> tuple[float, float]:
    """Mean over seeds and its standard error; the error of a single value is ``alone``."""
    if len(values) == 1:
        return values[0], alone
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(differences: Float[np.ndarray, " n"]) -> dict:
    """Mean of per-example differences, its standard error, and whether that is a tie (within two of them)."""
    mean, error = float(differences.mean()), _standard_error(differences)
    return {"difference": mean, "standard_error": error, "tie": abs(mean) < TIE * error}


def difference_over_seeds(differences: Float[np.ndarray, "seeds n"]) -> dict:
    """Mean of the differences of every seed and example, its standard errors over seeds and over examples, a verdict.

    The verdict of a loss, "better" (less), "worse" or "tie", is at two of the larger error; that over seeds is NaN for
    one seed.
    """
    seeds = differences.mean(1)
    errors = _standard_error(seeds) if len(seeds) > 1 else math.nan, _standard_error(differences.mean(0))
    mean, error = float(seeds.mean()), np.nanmax(errors)
    return {
        "difference": mean,
        "standard_error_over_seeds": errors[0],
        "standard_error_over_examples": errors[1],
        "verdict": "tie" if abs(mean) < TIE * error else "better" if mean < 0 else "worse",
    }


def _standard_error(values: Float[np.ndarray, " n"]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


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
    numbers: dict[str, float] = {}
    for name, value in statistic(*sets).items():
        spread = torch.tensor([values[name] for values in without], dtype=torch.float64).std().item()
        numbers |= {name: value, f"{name}_standard_error": (FOLDS - 1) / math.sqrt(FOLDS) * spread}
    return numbers
