"""The tables of a report: rows of cells, the first row the header."""

import math
import statistics
from collections.abc import Mapping

from indm.evaluation.methods import without_partner
from indm.evaluation.results import KINDS, baseline_name, number_key
from indm.evaluation.statistics import over_seeds
from indm.report.records import Record, by_group

Rows = list[tuple[str, ...]]


def with_error(mean: float | None, error: float | None, digits: int = 3, sign: str = "") -> str:
    """ "mean ± error", the mean alone where the error is NaN or None, "–" where the mean is None.

    With ``sign`` "+" a positive mean has its sign.
    """
    if mean is None:
        return "–"
    return f"{mean:{sign}.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")


def likelihood_rows(records: list[Record]) -> Rows:
    """A row for each group: its seeds, size, budget and likelihoods; the baselines; the entropy where it is known.

    The error of a group is over its seeds, that of a single run or a baseline over the examples. That of the solver is
    the largest of the group. Baselines are of the examples of the NELBO.
    """
    unit = records[0].unit
    kinds = [kind for kind in KINDS if any(record.bound(kind) for record in records)]
    solved = any(record.solver_error for record in records)
    names = [f"{KINDS[kind]}, {unit}" for kind in kinds] + ["solver error of the NLL"] * solved
    rows = [("", "seeds", "± over", "parameters", "steps", "seconds", *names)]
    for name, group in by_group(records).items():
        ends = [record.curve[-1] for record in group if record.curve]
        budget = [f"{statistics.mean(end[key] for end in ends):.0f}" if ends else "–" for key in ("step", "seconds")]
        bounds = [_bound(group, kind) for kind in kinds]
        over = "seeds" if len(group) > 1 else "examples"
        error = max(record.solver_error or 0.0 for record in group)
        errors = [f"{error:.1g}" if error else "–"] * solved
        rows.append((name, str(len(group)), over, f"{group[0].parameters:,}", *budget, *bounds, *errors))
    key, blank = number_key(records[0].evaluation), [""] * (len(kinds) - 1 + solved)
    for row in next((r.evaluation["baselines"] for r in records if "baselines" in r.evaluation), {}).values():
        value = with_error(row[key], row[f"{key}_standard_error"])
        rows.append((f"baseline: {baseline_name(row)}", "", "examples", "", "", "", value, *blank))
    entropy = records[0].evaluation["entropy_nats"]
    if entropy is not None:
        rows.append(("entropy of the data", *[""] * 5, *[f"{entropy:.3f}"] * len(kinds), *[""] * solved))
    return rows


def convention_rows(records: list[Record]) -> Rows:
    """A row for each likelihood of the first run of each group: what it is of, and how it was computed."""
    head = ("", "dequantization", "ε", "examples", "solved", "divergence", "evaluations", "estimator noise", "K")
    rows: Rows = [head]
    for name, group in by_group(records).items():
        result = group[0].evaluation
        for kind in (kind for kind in KINDS if kind in result):
            own = result[kind]
            to = f"to {own['nll_error']:g}" if "nll_error" in own else ""
            solved = f"{own['steps']} steps" if "steps" in own else to
            noise = own["with_reconstruction"][f"{number_key(result)}_estimator_noise"]
            evaluations = f"{own['nfe']:.0f}" if "nfe" in own else f"{own['times']}" if "times" in own else ""
            eps = result.get("eps")  # which what is no diffusion has not
            shared = (f"{name}, {KINDS[kind]}", result["dequantization"], "" if eps is None else f"{eps:g}")
            of = str(result["images"][kind]), solved, own.get("divergence", ""), evaluations
            rows.append((*shared, *of, f"{noise:.4f}", str(own.get("draws", ""))))
    return rows


def _bound(group: list[Record], kind: str) -> str:
    bounds = [bound for bound in (record.bound(kind) for record in group) if bound]
    return with_error(*over_seeds([mean for mean, _ in bounds], bounds[0][1])) if bounds else "–"


def class_rows(groups: list[list[Record]]) -> Rows:
    """The NELBO of each class: a row a class, a column a group; errors as in :func:`likelihood_rows`."""
    first = groups[0][0].evaluation
    rows: Rows = [("class", "examples", *(f"{group[0].group}, {group[0].unit}" for group in groups))]
    for label, own in first["classes"].items():
        cells = [_bound_of_class(group, label) for group in groups]
        rows.append((label, str(own["images"]), *cells))
    return rows


def _bound_of_class(group: list[Record], label: str) -> str:
    evaluations = [record.evaluation for record in group if label in record.evaluation["classes"]]
    if not evaluations:
        return "–"
    unit = math.log(2) * evaluations[0]["dims"] if evaluations[0]["unit"] == "bits/dim" else 1.0
    own = [evaluation["classes"][label] for evaluation in evaluations]
    return with_error(*over_seeds([row["nats"] / unit for row in own], own[0]["nats_standard_error"] / unit))


def difference_rows(by_method: Mapping[str, Mapping[str, Mapping]], first: str, unit: str) -> Rows:
    """The differences of methods from the ``first``, see :func:`indm.evaluation.methods.differences`."""
    rows: Rows = [
        ("", "likelihood", f"difference from {first}, {unit}", "seeds", "steps × cost", "p", "Holm's p", "verdict")
    ]
    for name, by_kind in by_method.items():
        for kind, row in by_kind.items():
            tests = ["–" if row[key] is None else f"{row[key]:.2g}" for key in ("p", "p_holm")]
            seeds = f"{row['seeds']}{without_partner(row)}"
            cells = with_error(row["difference"], row["standard_error"], digits=4), seeds, row["budgets"], *tests
            rows.append((name, KINDS[kind], *cells, row["verdict"]))
    return rows


def quality_rows(groups: list[list[Record]]) -> Rows:
    """One row for each group, sampler and number of steps; rows of training data first."""
    rows: Rows = [("", "sampler", "steps", "evaluations", "samples", "Fréchet", "sliced Wasserstein")]
    for group in groups:
        for same in zip(*(record.measurements["quality"] for record in group), strict=True):
            row, name = same[0], group[0].group
            if row["sampler"] == "data":
                if group is not groups[0]:
                    continue  # the same for all groups
                name = "training data"
            counts = (str(row["steps"] or ""), str(row["nfe"] or ""), str(row["images"]))
            cells = (distance_cell(same, key) for key in ("frechet", "sliced_wasserstein"))
            rows.append((name, row["sampler"], *counts, *cells))
    return rows


def distance_cell(rows: tuple[dict, ...], key: str) -> str:
    """Of the rows of all seeds."""
    values = [row[key] for row in rows if row[key] is not None]
    return with_error(*over_seeds(values, rows[0][f"{key}_standard_error"])) if values else "–"
