"""A comparison of INDM with its linear twin: a difference, its standard error, and what follows from both.

A claim is *reproduced* where the difference has the claimed sign by two standard errors, *failed* where it has the
opposite sign, a *tie* within two standard errors and *untested* without any. With few seeds a standard error is itself
rough, so Student's p-value is given as well.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from indm.evaluation.statistics import TIE, over_seeds

HEADER = ("claim", "data", "verdict", "quantity", "INDM", "linear", "difference", "test")


@dataclass(frozen=True)
class Comparison:
    """INDM's and the linear twin's value (NaN: none), their difference, the test of it and the outcome."""

    quantity: str
    indm: float
    linear: float
    difference: float
    standard_error: float
    test: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Verdict(Comparison):
    """A comparison as part of a claim, on one data set: a row of the table."""

    claim: str
    data: str


def judge(difference: float, error: float, sign: int) -> str:
    """ "reproduced", "tie" or "failed", for a claim that ``sign`` · difference is positive."""
    if not math.isfinite(difference):
        return "failed"
    if abs(difference) <= TIE * error:
        return "tie"
    return "reproduced" if sign * difference > 0 else "failed"


def paired(
    quantity: str, indm: Sequence[float], linear: Sequence[float], *, sign: int, least_error: float = 0.0
) -> Comparison:
    """INDM − linear in pairs over seeds, claimed to have the ``sign``.

    Args:
        least_error: lower limit of the standard error: that of the test examples, which all seeds share.
    """
    differences = [a - b for a, b in zip(indm, linear, strict=True)]
    averages = statistics.mean(indm), statistics.mean(linear)
    mean, error = over_seeds(differences)
    if len(differences) == 1:
        error, verdict = (least_error, judge(mean, least_error, sign)) if least_error else (math.nan, "untested")
        return Comparison(quantity, *averages, mean, error, "one seed", verdict)
    error = max(error, least_error)
    p = 2 * stats.t.sf(abs(mean) / max(error, 1e-300), len(differences) - 1)
    test = f"paired over {len(differences)} seeds, p = {p:.2g}"
    return Comparison(quantity, *averages, mean, error, test, judge(mean, error, sign))


def cells(v: Verdict) -> tuple[str, ...]:
    """A verdict as a row under :data:`HEADER`."""
    indm, linear = ("–" if math.isnan(value) else f"{value:.4g}" for value in (v.indm, v.linear))
    difference = f"{v.difference:+.4f} ± {v.standard_error:.4f}"
    return (v.claim, v.data, v.verdict, v.quantity.replace("|", "∣"), indm, linear, difference, v.test)


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line for each verdict."""
    return "\n".join(f"{v.claim:18} {v.data:17} {cells(v)[6]:22} {v.verdict:12} {v.quantity}" for v in verdicts)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table in Markdown."""
    rows = [HEADER, ("---",) * len(HEADER), *map(cells, verdicts)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def as_json(verdict: Verdict) -> dict:
    """A verdict for ``claims.json``, with null in place of NaN."""
    values = {"claim": verdict.claim, "data": verdict.data} | vars(verdict)
    return {key: None if value != value else value for key, value in values.items()}
