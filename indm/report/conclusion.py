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
    """One paragraph for each question: the best model, and the sampler that loses least in few steps.

    Args:
        records: of the runs of a report.
        by_method: the differences from the first group, see :func:`indm.report.records.differences_of`.
    """
    return [sentence for sentence in (best_model(records, by_method), best_sampler(records)) if sentence]


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


def best_sampler(records: Sequence[Record]) -> str:
    """The sampler and the model that lose least in the fewest steps that were measured, and the next sampler with that
    model; "" where nothing was measured."""
    rows_of: dict[str, list[list[dict]]] = {}
    for record in records:
        if "errors" in record.measurements:
            rows_of.setdefault(record.group, []).append(record.measurements["errors"]["discretization"])
    steps = min((row["steps"] for seeds in rows_of.values() for row in seeds[0]), default=0)
    losses, evaluations = {}, {}
    for name, seeds in rows_of.items():
        for same in zip(*seeds, strict=True):
            if same[0]["steps"] == steps:
                error = same[0]["rms_standard_error"]
                losses[name, same[0]["sampler"]] = over_seeds([row["rms"] for row in same], error)
                evaluations[same[0]["sampler"]] = same[0]["nfe"]
    if not losses:
        return ""
    (group, sampler), (value, error) = min(losses.items(), key=lambda item: item[1][0])
    sentence = (
        f"In {steps} steps ({evaluations[sampler]} evaluations of the network) {sampler} with {group} loses least: "
        f"{with_error(value, error)} from the converged samples, root mean square in model units"
    )
    others = {name: loss for (model, name), loss in losses.items() if model == group and name != sampler}
    if others:
        name = min(others, key=lambda other: others[other][0])
        sentence += f"; {name} loses {with_error(*others[name])} with the same model"
    models = {name: loss for (name, of), loss in losses.items() if of == sampler and name != group}
    if models:
        name = min(models, key=lambda other: models[other][0])
        sentence += f", and {name} {with_error(*models[name])} with the same sampler"
    return f"{sentence}. These differences are not tested."
