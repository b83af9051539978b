"""What a report concludes, in sentences made of the measured numbers alone: one paragraph for each question."""

import math
from collections.abc import Mapping, Sequence

from indm.evaluation.budgets import NOT_COMPARABLE
from indm.evaluation.results import KINDS
from indm.evaluation.statistics import over_seeds
from indm.report.records import Record, by_group
from indm.report.tables import with_error

VERDICTS = {
    "better": "the difference is larger than chance explains",
    "worse": "the difference is larger than chance explains",
    "undecided": "undecided, since the difference may be chance",
    "untested": "no verdict on methods, since that needs several seeds of each",
    NOT_COMPARABLE: "no verdict, since their budgets are not known to be equal",
}


def conclude(records: Sequence[Record], by_method: Mapping[str, Mapping[str, Mapping]]) -> list[str]:
    """A paragraph on the best model.

    Args:
        records: of the runs of a report.
        by_method: the differences from the first group, see :func:`indm.report.records.differences_of`.
    """
    return [best_model(records, by_method)]


def best_model(records: Sequence[Record], by_method: Mapping[str, Mapping[str, Mapping]]) -> str:
    """The group of the lowest NELBO, by how much it is below the first group, or the first below the next, and the
    verdict on that difference."""
    bounds = {name: _bound(group) for name, group in by_group(records).items()}
    bounds = {name: bound for name, bound in bounds.items() if math.isfinite(bound[0])}
    if not bounds:
        return "No model has a finite NELBO."
    unit, (first, *_) = records[0].unit, by_group(records)
    ranked = sorted(bounds, key=lambda name: bounds[name][0])
    best = ranked[0]
    sentence = f"{best} has the lowest {KINDS['nelbo']} on the test data, {with_error(*bounds[best])} {unit}"
    if len(ranked) == 1:
        return f"{sentence}; there is no other model to compare it with."
    other = first if best != first and first in bounds else next(name for name in ranked if name != best)
    # Differences are from the first group.
    row = by_method.get(best if other == first else other, {}).get("nelbo") if first in (best, other) else None
    if row is None or row["difference"] is None:
        return f"{sentence}. {other} has {with_error(*bounds[other])}; the two cannot be compared in pairs."
    more = -row["difference"] if other == first else row["difference"]
    size = with_error(abs(more), row["standard_error"], digits=4)
    words = f"{size} more" if more >= 0 else f"{size} less over pairs of equal seeds"
    tested = "" if row["p_holm"] is None else f" (Holm's p = {row['p_holm']:.2g}, {row['seeds']} seeds)"
    verdict = VERDICTS.get(row["verdict"], row["verdict"])
    return f"{sentence}. {other} has {words}: {verdict}{tested}."


def _bound(group: Sequence[Record]) -> tuple[float, float]:
    """The NELBO of a group and its error."""
    bounds = [record.bound() or (math.nan, math.nan) for record in group]
    return over_seeds([mean for mean, _ in bounds], bounds[0][1])
