"""``indm compare``: evaluated runs side by side; and the tables and sentences that ``indm report`` shows, too."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from indm.files import atomic, untrusted
from indm.workbench.evaluation import plots, sheets
from indm.workbench.evaluation.diagnosis import conclusion
from indm.workbench.evaluation.figures import curve_views
from indm.workbench.evaluation.methods import NOT_COMPARABLE, ONE_TRAINING, Costs, check_distinct, costs_of
from indm.workbench.evaluation.records import Record, bound_of, by_group, differences_of, folders_of, groups_of
from indm.workbench.evaluation.results import (
    KINDS,
    Row,
    baseline_name,
    check_same_examples,
    nats_of_unit,
    number_key,
    read_evaluation,
    table,
    unconverged,
)
from indm.workbench.evaluation.statistics import over_seeds
from indm.workbench.recipes.options import Equal
from indm.workbench.runs.folder import recipe_of
from indm.workbench.runs.provenance import provenance
from indm.workbench.runs.samples import SAMPLES, read_samples

Rows = list[Row]
Differences = Mapping[
    str, Mapping[str, Mapping]
]  # by group and kind, see indm.workbench.evaluation.methods.differences
VERDICTS = {
    "better": "the difference is larger than chance explains",
    "worse": "the difference is larger than chance explains",
    "undecided": "undecided, since the difference may be chance",
    "untested": "no verdict on methods, since that needs several seeds of each",
    NOT_COMPARABLE: "no verdict, since their budgets are not known to be equal",
}


def compare(folders: list[Path], out: Path, *, equal: Equal = "cost", progress: bool = True) -> str:
    """Evaluated runs side by side: tables, differences of methods from that of the first run, ``comparison.png``.

    Runs whose recipes differ in the seed alone are one method, named as in a report. Methods are compared in pairs of
    equal seeds, on the same examples; seeds without a partner are named and do not count. With two pairs or more a
    difference has a p and a verdict, adjusted by Holm's method over all differences that are shown; with one, its error
    is over examples, and it has no verdict. Nor has it one where the two have not spent the same, see
    :mod:`indm.workbench.evaluation.methods`: what a step costs is measured here where the runs were not measured side
    by side. Where all runs are of one method, each stands for itself.

    Args:
        folders: of runs.
        out: where ``comparison.png`` and ``comparison.json`` are written.
        equal: what methods must have spent alike: "cost" is steps times their cost, "steps" is steps alone.
        progress: show a bar while costs are measured.

    Returns:
        The tables as text; ``comparison.json`` in ``out`` holds the differences.

    Raises:
        ValueError: fewer than two runs, one that is named twice, or other examples.
        FileNotFoundError: a folder that is not a run, or is not evaluated.
    """
    if len(folders) < 2:
        raise ValueError(f"compare needs at least two run folders, got {len(folders)}")
    check_distinct(folders)
    recipes = {folder: recipe_of(folder) for folder in folders}
    evaluations = {folder: read_evaluation(folder) for folder in folders}
    check_same_examples(evaluations)
    groups = groups_of(folders)
    if len({*groups.values()}) == 1:
        groups = {folder: str(folder) for folder in folders}
    sizes = {run: parameters_of(run) for run in groups}
    records = [Record(run, group, recipes[run], evaluations[run], sizes[run], {}) for run, group in groups.items()]
    methods = folders_of(records)
    costs = costs_of(methods, equal, progress)
    by_method = differences_of(records, costs)
    content = {
        "baseline": records[0].group,
        "unit": records[0].unit,
        "methods": {name: list(map(str, runs)) for name, runs in methods.items()},
        "costs": asdict(costs),
        "differences": by_method,
        "provenance": provenance(None, {str(run): result["weights_sha256"] for run, result in evaluations.items()}),
    }
    picture = plots.pixels_into(_picture(records, costs))
    atomic.together({out / "comparison.png": picture, out / "comparison.json": atomic.json_into(content)})
    return "\n".join(_lines(records, by_method, costs))


def parameters_of(run: Path) -> int | None:
    """The parameters of a run's model by its summary; None where it has none, as a converted checkpoint."""
    file = run / "summary.json"
    summary = untrusted.json_object(file) if file.exists() else {}
    return sum(count for name, count in summary.items() if name.endswith("_parameters")) or None


def _lines(records: Sequence[Record], by_method: Differences, costs: Costs) -> list[str]:
    first, unit = records[0], records[0].unit
    each = [replace(record, group=str(record.folder)) for record in records]
    lines = [f"{name}: {', '.join(map(str, runs))}" for name, runs in folders_of(records).items() if len(runs) > 1]
    lines += [table(likelihood_rows(each)), "", table(difference_rows(by_method, first.group, unit)), str(costs)]
    lines += incomparable(by_method, first.group)
    if any(row["verdict"] == "untested" for by_kind in by_method.values() for row in by_kind.values()):
        lines.append(ONE_TRAINING)
    lines.append(f"{unit}, ± one standard error, with the reconstruction term, {first.evaluation['split']} split")
    lines += [f"{record.folder}: {line}" for record in records for line in unconverged(record.evaluation)]
    if len({record.evaluation["dequantization"] for record in records}) > 1:
        lines += [f"dequantization: {record.evaluation['dequantization']}: {record.folder}" for record in records]
    return [*lines, best_model(records, by_method)]


def _picture(records: Sequence[Record], costs: Costs) -> plots.Pixels:
    """Learning curves over steps and over steps × cost, and below them samples of each method's first run."""
    groups = by_group(records)
    colours = plots.colours_of(groups)
    curves = plots.lines_figure(curve_views(records, colours, ("step", "spent"), costs.by_method), 2)
    panels: dict[str, Tensor | str] = {}
    levels = 0
    for name, group in groups.items():
        run = group[0].folder
        panels[name] = f"not sampled yet: indm sample {run}"
        if (file := run / SAMPLES).exists():
            samples, levels, _ = read_samples(file)
            if samples.ndim not in (2, 4):
                raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
            panels[name] = samples
    return sheets.stacked(plots.pixels_of(curves), sheets.samples_picture(panels, levels, colours))


# ── Tables: rows of cells, the first row the header ─────────────────────────────────────────────────────────────────


def with_error(mean: float | None, error: float | None, digits: int = 3, sign: str = "") -> str:
    """ "mean ± error", the mean alone where the error is NaN or None, "–" where the mean is None.

    With ``sign`` "+" a positive mean has its sign.
    """
    if mean is None:
        return "–"
    return f"{mean:{sign}.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")


def likelihood_rows(records: Sequence[Record]) -> Rows:
    """A row for each group: its seeds, size, budget and likelihoods; the baselines; the entropy where it is known.

    The error of a group is over its seeds, that of a single run or a baseline over the examples. That of the solver is
    the largest of the group. Baselines are of the examples of the NELBO.
    """
    unit, result = records[0].unit, records[0].evaluation
    kinds = [kind for kind in KINDS if any(record.bound(kind) for record in records)]
    solved = any(record.solver_error for record in records)
    names = [f"{KINDS[kind]}, {unit}" for kind in kinds] + ["solver error of the NLL"] * solved
    rows = [("", "seeds", "± over", "parameters", "steps", "seconds", *names)]
    for name, group in by_group(records).items():
        ends = [record.curve[-1] for record in group if record.curve]
        budget = [f"{statistics.mean(end[key] for end in ends):.0f}" if ends else "–" for key in ("step", "seconds")]
        bounds = [with_error(*(bound_of(group, kind) or (None, None))) for kind in kinds]
        over = "seeds" if len(group) > 1 else "examples"
        error = max(record.solver_error or 0.0 for record in group)
        parameters = "–" if group[0].parameters is None else f"{group[0].parameters:,}"
        errors = [f"{error:.1g}" if error else "–"] * solved
        rows.append((name, str(len(group)), over, parameters, *budget, *bounds, *errors))
    key, blank = number_key(result), [""] * (len(kinds) - 1 + solved)
    for row in next((r.evaluation["baselines"] for r in records if "baselines" in r.evaluation), {}).values():
        value = with_error(row[key], row[f"{key}_standard_error"])
        rows.append((f"baseline: {baseline_name(row)}", "", "examples", "", "", "", value, *blank))
    if (entropy := result.get("entropy_nats")) is not None:
        rows.append(("entropy of the data", *[""] * 5, *[f"{entropy:.3f}"] * len(kinds), *[""] * solved))
    return rows


def convention_rows(records: Sequence[Record]) -> Rows:
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
            shared = (f"{name}, {KINDS[kind]}", result["dequantization"], f"{result['eps']:g}")
            of = str(result["images"][kind]), solved, own.get("divergence", ""), evaluations
            rows.append((*shared, *of, f"{noise:.4f}", str(own.get("draws", ""))))
    return rows


def class_rows(groups: Sequence[Sequence[Record]]) -> Rows:
    """The NELBO of each class: a row a class, a column a group; errors as in :func:`likelihood_rows`."""
    rows: Rows = [("class", "examples", *(f"{group[0].group}, {group[0].unit}" for group in groups))]
    for label, own in groups[0][0].evaluation["classes"].items():
        rows.append((label, str(own["images"]), *(_bound_of_class(group, label) for group in groups)))
    return rows


def _bound_of_class(group: Sequence[Record], label: str) -> str:
    evaluations = [record.evaluation for record in group if label in record.evaluation["classes"]]
    if not evaluations:
        return "–"
    unit, own = nats_of_unit(evaluations[0]), [evaluation["classes"][label] for evaluation in evaluations]
    return with_error(*over_seeds([row["nats"] / unit for row in own], own[0]["nats_standard_error"] / unit))


def difference_rows(by_method: Differences, first: str, unit: str) -> Rows:
    """The differences of methods from the ``first``."""
    rows: Rows = [
        ("", "likelihood", f"difference from {first}, {unit}", "seeds", "steps × cost", "p", "Holm's p", "verdict")
    ]
    for name, by_kind in by_method.items():
        for kind, row in by_kind.items():
            tests = ["–" if row[key] is None else f"{row[key]:.2g}" for key in ("p", "p_holm")]
            seeds = str(row["seeds"])
            if row["left_out"]:
                seeds += f" (without a partner: {', '.join(map(str, row['left_out']))})"
            cells = with_error(row["difference"], row["standard_error"], digits=4), seeds, row["budgets"], *tests
            rows.append((name, KINDS[kind], *cells, row["verdict"]))
    return rows


def incomparable(by_method: Differences, first: str) -> list[str]:
    """Why methods cannot be compared with the ``first``, a line for each."""
    reasons = {name: row["why"] for name, by_kind in by_method.items() for row in by_kind.values()}
    return [f"{name} and {first} are not comparable, {why}." for name, why in reasons.items() if why]


def quality_rows(groups: Sequence[Sequence[Record]]) -> Rows:
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


def distance_cell(rows: Sequence[dict], key: str) -> str:
    """A number of the rows of all seeds, with its error."""
    values = [row[key] for row in rows if row[key] is not None]
    return with_error(*over_seeds(values, rows[0][f"{key}_standard_error"])) if values else "–"


# ── Sentences ───────────────────────────────────────────────────────────────────────────────────────────────────────


def best_model(records: Sequence[Record], by_method: Differences) -> str:
    """The group of the lowest NELBO, by how much it is below the first group, or the first below the next, and the
    verdict on that difference."""
    bounds = {name: bound_of(group) or (math.nan, math.nan) for name, group in by_group(records).items()}
    unit, (first, *_) = records[0].unit, bounds
    bounds = {name: bound for name, bound in bounds.items() if math.isfinite(bound[0])}
    if not bounds:
        return "No model has a finite NELBO."
    ranked = sorted(bounds, key=lambda name: bounds[name][0])
    best = ranked[0]
    split = records[0].evaluation["split"]
    sentence = f"{best} has the lowest {KINDS['nelbo']} on the {split} data, {with_error(*bounds[best])} {unit}"
    if len(ranked) == 1:
        return f"{sentence}; there is no other model to compare it with."
    other = first if best != first and first in bounds else ranked[1]
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


def conclusions(records: Sequence[Record]) -> list[str]:
    """Whether each group's models learned the data, a line for each; see ``diagnosis.conclusion``.

    Of several seeds the worst is reported. Groups whose evaluations have no baselines have no line.
    """
    lines = []
    for name, group in by_group(records).items():
        worst = max(group, key=lambda record: record.evaluation["nelbo"]["with_reconstruction"]["nats"])
        sentence = conclusion(worst.folder, worst.evaluation)
        seeds = f", the worst of {len(group)} seeds" if len(group) > 1 else ""
        lines += [f"{name}{seeds}: {sentence}"] if sentence else []
    return lines
