"""Standard errors of a share, a score of draws, and tests of a family of planned size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from research.lab.seeds import Difference, judged
from research.markdown import in_table, with_error

LEVEL = 0.05  # level of the tests
UNMADE = Difference(0.0, 2, 1.0)  # p = 1: the family is as large as it was planned


def judged_as_planned(differences: Sequence[Difference], planned: int) -> list[dict]:
    """:func:`research.lab.seeds.judged`, where Holm counts ``planned`` tests, made or not."""
    tested = sum(difference.seeds > 1 for difference in differences)
    return judged([*differences, *[UNMADE] * (planned - tested)])[: len(differences)]


def interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of a judged difference by Student's t over its seeds; infinite for one
    seed.
    """
    half = (
        student.ppf(0.975, row["seeds"] - 1) * row["standard_error"]
        if row["seeds"] > 1
        else math.inf
    )
    return row["difference"] - half, row["difference"] + half


def word(row: Mapping[str, Any], margin: float) -> str:
    """The name of a judged difference of a loss by its interval, a margin that counts, and Holm's
    p.

    >>> word({"difference": -0.05, "standard_error": 0.01, "seeds": 5, "p_holm": 0.01}, 0.01)
    'gain'
    """
    (low, high), p = interval(row), row["p_holm"]
    if p is not None and p <= LEVEL and (high < -margin or low > margin):
        return "gain" if high < 0 else "loss"
    return "no difference" if low > -margin and high < margin else "undecided"


def cells_of(row: Mapping[str, Any], margin: float, form: str) -> tuple[str, str, str, str]:
    """Cells of a judged difference: the difference with its error, its 95 % interval, Holm's p, and
    the word.

    >>> row = {"difference": -0.05, "standard_error": 0.01, "seeds": 5, "p_holm": 0.01}
    >>> cells_of(row, 0.01, ".2f")
    ('-0.05 ± 0.01', '-0.08 to -0.02', '0.01', 'gain')
    """
    (low, high), p = interval(row), row["p_holm"]
    between = f"{low:+{form}} to {high:+{form}}" if row["seeds"] > 1 else ""
    difference = with_error(row["difference"], row["standard_error"], f"+{form}")
    return difference, between, f"{p:.2g}" if p is not None else "", word(row, margin)


def share_error(share: float, n: int) -> float:
    """The standard error of a share of ``n`` independent trials, √(p(1 − p)/n)."""
    return math.sqrt(share * (1 - share) / n)


def crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score of the draws (k, entries), for each entry: E|x − y| −
    ½ E|x − x'|.

    The latter is over pairs of different draws; for k = 1 the score is |x − y|.

    Source: Gneiting & Raftery 2007, "Strictly Proper Scoring Rules, Prediction, and Estimation",
    eq. 21.
    """
    k = len(draws)
    pairs = (np.sort(draws, 0) * (2 * np.arange(1, k + 1) - k - 1)[:, None]).sum(0) / max(
        1, k * (k - 1)
    )
    return np.abs(draws - truth).mean(0) - pairs


def differences_table(
    ours: str, made: Mapping[str, Difference], planned: int, margin: float, counted: str
) -> str:
    """A method − its rivals, judged as a family of ``planned`` tests.

    Args:
        made: the differences from the rivals by their names.
        counted: title of the column of numbers of pairs.
    """
    judged_rows = judged_as_planned([*made.values()], planned)
    rows = [
        (f"{ours} − {name}", row["seeds"], *cells_of(row, margin, ".2f"))
        for name, row in zip(made, judged_rows, strict=True)
    ]
    return in_table(
        "difference", counted, "nats", "95 % interval", "Holm's p", "is called", rows=rows
    )
