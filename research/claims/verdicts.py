"""Verdicts on a family of differences that was stated beforehand, and checks, which are no part of it.

A difference is tested by Student's paired t over seeds, and its p adjusted by Holm's method over the whole family. A
claim is *reproduced* where the adjusted p is at most 5 % and the difference has the claimed sign, *opposite* where it
has the other one, *undecided* where the adjusted p is larger, and *untested* with one seed. Where what the two spent,
steps times cost of a step, differs by more than a tenth, they are *not comparable*.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from indm.workbench.evaluation.compare import with_error
from indm.workbench.evaluation.methods import NOT_COMPARABLE
from indm.workbench.evaluation.statistics import Difference, holm, verdict
from indm.workbench.evaluation.statistics import paired as paired_difference

HEADER = (
    "claim", "data", "verdict", "quantity", "INDM", "linear", "difference", "seeds", "p", "Holm's p", "steps",
)  # fmt: skip
CHECK_HEADER = ("claim", "data", "check", "value", "outcome", "by")


@dataclass(frozen=True)
class Comparison:
    """Means over seeds of two variants, INDM and its linear twin mostly, and their difference.

    Attributes:
        difference: of the first less the second, in pairs over seeds.
        sign: that it is claimed to have, 1 or −1.
        unit: of the numbers, or the distance that was taken.

    Example:

        >>> comparison = paired([1.0, 1.2], [1.3, 1.4], sign=-1)
        >>> round(comparison.indm, 2), round(comparison.linear, 2), round(comparison.difference.difference, 2)
        (1.1, 1.35, -0.25)
    """

    indm: float
    linear: float
    difference: Difference
    sign: int
    unit: str = ""


@dataclass(frozen=True)
class Judged:
    """A comparison of the family and what is to be shown of it.

    Attributes:
        steps: optimizer steps that runs of the two variants made.
        comparable: their steps times the cost of a step are the same, within the margin of equal budgets.
    """

    claim: str
    data: str
    quantity: str
    comparison: Comparison
    steps: tuple[int, int]
    comparable: bool = True

    @property
    def p(self) -> float:
        """Of the difference; NaN where the two are not comparable."""
        return self.comparison.difference.p if self.comparable else math.nan


@dataclass(frozen=True)
class Verdict:
    """A row of the table of verdicts; p and Holm's p are NaN for one seed."""

    claim: str
    data: str
    verdict: str
    quantity: str
    indm: float
    linear: float
    difference: float
    standard_error: float
    seeds: int
    p: float
    p_holm: float
    steps: tuple[int, int]


@dataclass(frozen=True)
class Check:
    """A number that shows whether measurements can be relied on: its error, and the outcome by a rule of its own."""

    quantity: str
    value: float
    standard_error: float
    outcome: str
    rule: str


@dataclass(frozen=True, kw_only=True)
class ClaimCheck(Check):
    """A check of a claim on one data set: a row of the table of checks."""

    claim: str
    data: str


def paired(
    indm: Sequence[float], linear: Sequence[float], *, sign: int, unit: str = "", shared_error: float = math.nan
) -> Comparison:
    """INDM − linear in pairs over seeds, claimed to have the ``sign``.

    Args:
        shared_error: the standard error of what all seeds share, such as the test examples.

    Example: three seeds of each variant, where a smaller number is claimed.

        >>> found = paired([1.0, 1.2, 1.1], [1.3, 1.4, 1.5], sign=-1).difference
        >>> f"{found.difference:.2f} ± {found.standard_error:.2f}, p = {found.p:.3f}"
        '-0.30 ± 0.06, p = 0.035'
    """
    means = statistics.mean(indm), statistics.mean(linear)
    return Comparison(*means, paired_difference(indm, linear, shared_error), sign, unit)


def judge(family: Sequence[Judged]) -> list[Verdict]:
    """The verdicts of a whole family."""
    adjusted = holm([row.p for row in family])
    return [_verdict(row, p_holm) for row, p_holm in zip(family, adjusted, strict=True)]


def _verdict(row: Judged, p_holm: float) -> Verdict:
    c, d = row.comparison, row.comparison.difference
    words = {-c.sign: "opposite", c.sign: "reproduced"}
    return Verdict(
        claim=row.claim,
        data=row.data,
        verdict=verdict(d.difference, p_holm, less=words[-1], more=words[1]) if row.comparable else NOT_COMPARABLE,
        quantity=f"{row.quantity}, {c.unit}" if c.unit else row.quantity,
        indm=c.indm,
        linear=c.linear,
        difference=d.difference,
        standard_error=d.standard_error,
        seeds=d.seeds,
        p=row.p,
        p_holm=p_holm,
        steps=row.steps,
    )


def cells(v: Verdict) -> tuple[str, ...]:
    """A verdict as a row under :data:`HEADER`."""
    means = f"{v.indm:.4g}", f"{v.linear:.4g}"
    difference = with_error(v.difference, v.standard_error, digits=4, sign="+")
    tests = ("–" if math.isnan(p) else f"{p:.2g}" for p in (v.p, v.p_holm))
    steps = " / ".join(map(str, v.steps))
    return (v.claim, v.data, v.verdict, v.quantity.replace("|", "∣"), *means, difference, str(v.seeds), *tests, steps)


def check_cells(check: ClaimCheck) -> tuple[str, ...]:
    """A check as a row under :data:`CHECK_HEADER`."""
    value = with_error(check.value, check.standard_error, digits=4, sign="+")
    return (check.claim, check.data, check.quantity.replace("|", "∣"), value, check.outcome, check.rule)


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line for each verdict."""
    return "\n".join(
        f"{v.claim:18} {v.data:17} {cells(v)[6]:22} {'Holm p = ' + cells(v)[9]:18} {v.verdict:12} {v.quantity}"
        for v in verdicts
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def as_json(row: Verdict | ClaimCheck) -> dict:
    """A row for ``claims.json``, with null in place of what is not finite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in vars(row).items()
    }
