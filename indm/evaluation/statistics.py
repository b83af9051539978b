"""Means over samples with their standard errors."""

import math

from jaxtyping import Float, Int
from torch import Tensor

from indm.number import Number
from indm.tensors import double


def mean_and_error(
    values: Float[Tensor, " n"], groups: Int[Tensor, " n"] | None = None
) -> tuple[float, float]:
    """The mean and its standard error, s/√n; with ``groups`` of examples that are alike, the error
    over groups, NaN for a single one.

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
    sums = values.new_zeros(len(names)).index_add(0, numbers, values - mean)
    squares = sums.square().sum().item()
    return mean.item(), math.sqrt(squares * len(names) / (len(names) - 1)) / n


def number_of(values: Float[Tensor, " n"], groups: Int[Tensor, " n"] | None = None) -> Number:
    """The mean of values with its standard error, which is None for a single group."""
    mean, error = mean_and_error(values, groups)
    return Number(mean, None if math.isnan(error) else error)


def number_of_draws(
    draws: Float[Tensor, "repeats n"], groups: Int[Tensor, " n"] | None = None
) -> Number:
    """The mean over samples of repeated draws, with its standard error and the estimator's noise.

    The noise would remain if the samples were fixed: √(mean variance within a sample / (repeats ·
    n)). Where draws are stratified over the batch, the mean is sharper than that.
    """
    number = number_of(draws.mean(0), groups)
    noise = math.sqrt(draws.var(0).mean().item() / draws.numel())
    return Number(number.mean, number.standard_error, noise)
