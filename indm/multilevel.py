r"""The mean of costly values over many examples, from cheap values of all of them and costly ones of a few.

.. math:: \hat\mu = \frac1N \sum_x Y_0(x) + \sum_{l=1}^{L} \frac1{M_l} \sum_{x \in S_l} [Y_l(x) - Y_{l-1}(x)]

Y_0 is the cheapest approximation of a value and Y_L the best. The S_l are random subsets of M_l of the N examples,
independent across rungs. The estimate is unbiased for the mean of Y_L over these examples, and the corrections add

.. math:: \operatorname{Var}(\hat\mu) = \sum_{l \ge 1} \frac{V_l}{M_l}\Big(1 - \frac{M_l}{N}\Big)

to its variance, V_l the variance of the differences over the N examples.

Source: Heinrich 2001, "Multilevel Monte Carlo methods", https://doi.org/10.1007/3-540-45346-6_5; Giles 2015,
"Multilevel Monte Carlo methods", Acta Numerica, https://doi.org/10.1017/S096249291500001X.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from indm.tensors import double

LEAST = 48  # examples of a rung, from which its variance is known well enough where differences have heavy tails


@dataclass(frozen=True)
class Mean:
    """A mean over examples and what its corrections add to its error.

    Attributes:
        value: the estimate, in the unit of the values.
        added_error: the standard error of the corrections, by the variance of their differences; 0 where every example
            is corrected, or where all differences are equal. It does not know of differences that no subset met.
        degrees: of freedom of ``added_error``, by Welch and Satterthwaite.
    """

    value: float
    added_error: float
    degrees: float

    def interval(self, level: float) -> tuple[float, float]:
        """Where the mean of the best values over these examples is, with probability ``level``."""
        half = self.added_error * student.ppf(0.5 + level / 2, self.degrees) if self.added_error else 0.0
        return self.value - half, self.value + half


def multilevel_mean(coarse: Float[Tensor, " n"], corrections: Sequence[Float[Tensor, " m"]]) -> Mean:
    """The mean of the best values of n examples.

    Args:
        coarse: Y_0 of each example.
        corrections: for each rung l ≥ 1 the differences Y_l − Y_{l−1} of a random subset of the examples, at least 2;
            subsets of different rungs are independent.

    Example: each correction is 1, so that it adds no error.

        >>> mean = multilevel_mean(torch.arange(100.0), [torch.ones(40), torch.ones(32)])
        >>> mean.value, mean.added_error
        (51.5, 0.0)
    """
    value, variances = double(coarse).mean().item(), []
    for differences in map(double, corrections):
        m = len(differences)
        value += differences.mean().item()
        variances.append((m, differences.var().item() / m * (1 - m / len(coarse))))
    added = sum(variance for _, variance in variances)
    spread = sum(variance**2 / (m - 1) for m, variance in variances)
    return Mean(value, math.sqrt(added), added**2 / spread if spread else math.inf)


def sizes(variances: Sequence[float], costs: Sequence[float], n: int, added_error: float) -> list[int]:
    """The number of the n examples to correct at each rung, such that ``added_error`` is reached at the least cost.

    M_l ∝ √(V_l/C_l), at least :data:`LEAST` or n, and at most n.

    Args:
        variances: V_l of the differences of each rung.
        costs: C_l of one difference.
        n: examples.
        added_error: the standard error that the corrections may add.

    Example: one rung, of variance 1, in a large population.

        >>> sizes([1.0], [10.0], 1_000_000, 0.1)
        [100]
    """
    exact: set[int] = set()  # rungs at which every example is corrected
    while True:
        free = [rung for rung in range(len(costs)) if rung not in exact]
        budget = added_error**2 + sum(variances[rung] for rung in free) / n
        total = sum(math.sqrt(variances[rung] * costs[rung]) for rung in free)
        wanted = {rung: math.sqrt(variances[rung] / costs[rung]) * total / budget for rung in free if budget}
        above = {rung for rung, size in wanted.items() if size >= n}
        if not above:
            least = min(LEAST, n)
            return [n if rung in exact else max(least, math.ceil(wanted.get(rung, 0.0))) for rung in range(len(costs))]
        exact |= above


def order(n: int, rung: int, seed: int) -> Tensor:
    """The n examples in the random order of a rung: its subset are the first of them, for each model alike."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 7_919 * rung))
