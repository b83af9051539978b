"""Means over samples with their standard errors."""

import math
from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from indm.tensors import double


def mean_and_error(
    values: Float[Tensor, " n"], groups: Int[Tensor, " n"] | None = None
) -> tuple[float, float]:
    """Mean and its standard error, s/√n; over independent ``groups`` of examples that are alike,
    NaN for a single one.

    Source: Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models",
    Biometrika 73, 13–22: the variance of a mean of clusters, Σ over groups of (Σ of deviations)² ·
    G/(G − 1) / n².

    >>> import torch
    >>> values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> mean_and_error(values) == mean_and_error(values, torch.arange(4))
    True
    >>> pairs = mean_and_error(values.repeat_interleave(2), torch.arange(4).repeat_interleave(2))
    >>> pairs == mean_and_error(values)  # the second of each pair tells nothing new
    True
    """
    values = double(values)
    mean, n = values.mean(), len(values)
    if groups is None:
        return mean.item(), (values.std() / math.sqrt(n)).item()
    names, numbers = groups.to(values.device).unique(return_inverse=True)
    if len(names) < 2:
        return mean.item(), math.nan
    deviations = values.new_zeros(len(names)).index_add(0, numbers, values - mean)
    return mean.item(), math.sqrt(
        deviations.square().sum().item() * len(names) / (len(names) - 1)
    ) / n


def in_both_units(nats: Mapping[str, float], dims: int) -> dict[str, float | None]:
    """Numbers in nats, by the suffix of their key, in nats and in bits/dim of events of so many
    entries.

    A standard error that is NaN, as of a single group, is None.

    >>> in_both_units({"": 0.0, "_standard_error": math.nan}, 4)["bits_per_dim_standard_error"] is None
    True
    """
    units = {"nats": 1.0, "bits_per_dim": dims * math.log(2)}
    numbers = {
        f"{unit}{end}": value / size for unit, size in units.items() for end, value in nats.items()
    }
    return {
        key: None if key.endswith("_standard_error") and math.isnan(v) else v
        for key, v in numbers.items()
    }


def in_units(
    draws: Float[Tensor, "repeats n"], dims: int, groups: Int[Tensor, " n"] | None = None
) -> dict[str, float | None]:
    """Mean over samples, its standard error, and the estimator's noise in it, of draws in nats; in
    nats and bits/dim.

    The noise would remain if the samples were fixed: √(mean variance within a sample / (repeats ·
    n)). Where draws are stratified over the batch the mean is sharper than that.
    """
    noise = math.sqrt(draws.var(0).mean().item() / draws.numel())
    mean, error = mean_and_error(draws.mean(0), groups)
    return in_both_units({"": mean, "_standard_error": error, "_estimator_noise": noise}, dims)
