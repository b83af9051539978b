"""Means over seeds with standard errors, paired differences of two methods, and their tests as one
family.

Over the examples of one training a standard error says which of two models is better; which
*method* is better is a question to several trainings of each (seeds). Several verdicts at once need
Holm's adjustment (:func:`holm`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import stdtr

from indm.evaluation.statistics import mean_and_error

LEVEL = 0.05  # chance of one wrong verdict or more in a family of true null hypotheses


def over_seeds(values: Sequence[float], alone: float = math.nan) -> tuple[float, float]:
    """Mean over seeds and its standard error; the error of a single value is ``alone``."""
    if len(values) == 1:
        return values[0], alone
    with np.errstate(invalid="ignore"):  # runs that diverged have infinite values
        return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Difference:
    """A mean difference of so many pairs of seeds, and Student's test of it.

    Its errors are over seeds (NaN for one), and over what all seeds share, such as test examples
    (NaN: nothing).
    """

    difference: float
    seeds: int
    standard_error_over_seeds: float
    standard_error_shared: float = math.nan

    @property
    def standard_error(self) -> float:
        """Both errors together, √(a² + b²), as they have different causes. NaN where neither is
        known.
        """
        known = [
            e
            for e in (self.standard_error_over_seeds, self.standard_error_shared)
            if not math.isnan(e)
        ]
        return math.hypot(*known) if known else math.nan

    @property
    def p(self) -> float:
        """Two-sided p of Student's t with seeds − 1 degrees of freedom; NaN for one seed, 1 where a
        run diverged.
        """
        if self.seeds < 2:
            return math.nan
        if not math.isfinite(self.difference):
            return 1.0
        if self.standard_error == 0:
            return float(self.difference == 0)
        return float(2 * stdtr(self.seeds - 1, -abs(self.difference) / self.standard_error))


def paired(a: Sequence[float], b: Sequence[float], shared_error: float = math.nan) -> Difference:
    """a − b, one pair for each seed, with the standard error of what all seeds share."""
    mean, error = over_seeds([x - y for x, y in zip(a, b, strict=True)])
    return Difference(mean, len(a), error, shared_error)


def paired_by_examples(
    a: Float[np.ndarray, "seeds n"],
    b: Float[np.ndarray, "seeds n"],
    groups: Int[np.ndarray, " n"] | None = None,
    added: float = 0.0,
) -> Difference:
    """a − b over seeds, whose runs share the examples; ``added`` is an error of the mean beside
    that over examples.
    """
    of_groups = None if groups is None else torch.from_numpy(groups)
    _, error = mean_and_error(torch.from_numpy((a - b).mean(0)), of_groups)
    return paired(a.mean(1).tolist(), b.mean(1).tolist(), math.hypot(error, added))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each: those up to 5 % are wrong, one or more of them, with a chance of
    at most 5 %.

    It holds however the tests depend on each other. NaN, no test, stays NaN and does not count.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist.
    6, 65–70.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    ordered = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        adjusted[i] = largest
    return adjusted


def judged(differences: Sequence[Difference], tested: Sequence[bool] | None = None) -> list[dict]:
    """The differences of a loss as one family, each as JSON can hold it: errors, p, Holm's p, and
    the verdict.

    A verdict is "better" (less) or "worse" where Holm's p is at most 5 %, else "undecided"; and
    "untested" for one seed, and where ``tested`` is False, which leaves a difference out of the
    family.
    """
    ps = [
        d.p if t else math.nan
        for d, t in zip(differences, tested or [True] * len(differences), strict=True)
    ]
    rows = []
    for d, p, p_holm in zip(differences, ps, holm(ps), strict=True):
        numbers = {
            "difference": d.difference,
            "standard_error": d.standard_error,
            "standard_error_over_seeds": d.standard_error_over_seeds,
            "standard_error_over_examples": d.standard_error_shared,
            "seeds": d.seeds,
            "p": p,
            "p_holm": p_holm,
        }
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        decided = "better" if d.difference < 0 else "worse"
        verdict = "untested" if math.isnan(p_holm) else decided if p_holm <= LEVEL else "undecided"
        rows.append(row | {"verdict": verdict})
    return rows
