"""``indm compare``: evaluated runs side by side, as text and as a page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from indm.files import atomic, untrusted
from indm.workbench.evaluation.diagnosis import conclusion
from indm.workbench.evaluation.methods import (
    MARGIN,
    NOT_COMPARABLE,
    Costs,
    check_distinct,
    costs_of,
    differences,
    named_methods,
)
from indm.workbench.evaluation.results import (
    KINDS,
    Row,
    baseline_name,
    check_same_examples,
    number_key,
    read_evaluation,
    table,
    unconverged,
)
from indm.workbench.evaluation.statistics import LEVEL, over_seeds
from indm.workbench.figures import plots, sheets
from indm.workbench.figures.page import Page
from indm.workbench.recipes.options import Equal
from indm.workbench.runs.folder import read_metrics, recipe_of
from indm.workbench.runs.provenance import provenance
from indm.workbench.runs.samples import SAMPLES, read_samples

FILES = ("comparison.html", "comparison.json", "comparison.png")
Rows = list[Row]
Differences = Mapping[str, Mapping[str, Mapping]]  # by method and kind, see indm.workbench.evaluation.methods
VERDICTS = {
    "better": "the difference is larger than chance explains",
    "worse": "the difference is larger than chance explains",
    "undecided": "undecided, since the difference may be chance",
    "untested": "no verdict on methods, since that needs several seeds of each",
    NOT_COMPARABLE: "no verdict, since their budgets are not known to be equal",
}
ONE_TRAINING = (
    "An error over the examples of one training says which of two models is better, not which method: a verdict on "
    "methods needs more seeds (--train.seed)."
)
OF_DIFFERENCES = (
    "In pairs of equal seeds; those without a partner do not count. ± is √(a² + b²) of the standard errors over seeds "
    "and over the examples, which all seeds share. p is that of Student's paired t over seeds; Holm's p is adjusted "
    f"over all rows of this table; a verdict needs one of at most {LEVEL:.0%}, and budgets that differ by at most "
    f"{MARGIN:.0%}."
)
OF_LIKELIHOODS = (
    "With the reconstruction term. NELBO bounds the likelihood of the generative SDE, NLL is that of the "
    "probability-flow ODE. Of a model of p(x|c) they are log p(x|c) at the c of each example, which the baselines do "
    "not use."
)


@dataclass(frozen=True)
class Run:
    """What is known of one run: its folder, ``evaluation.json``, and the parameters of its model (None: not known)."""

    folder: Path
    evaluation: dict
    parameters: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Parameters are those of ``summary.json``, which a converted checkpoint does not have."""
        recipe_of(folder)  # an error where this is not a run
        file = folder / "summary.json"
        summary = untrusted.json_object(file) if file.exists() else {}
        count = sum(count for name, count in summary.items() if name.endswith("_parameters"))
        return cls(folder, read_evaluation(folder), count or None)

    @property
    def curve(self) -> list[dict]:
        """Validations along training: ``step``, ``seconds`` and ``valid_nelbo``."""
        return [line for line in read_metrics(self.folder) if "valid_nelbo" in line]

    def bound(self, kind: str = "nelbo") -> tuple[float, float] | None:
        """A likelihood with its standard error over examples, in the run's unit; None where it was not evaluated."""
        if kind not in self.evaluation:
            return None
        values, key = self.evaluation[kind]["with_reconstruction"], number_key(self.evaluation)
        return values[key], values[f"{key}_standard_error"]

    @property
    def solver_error(self) -> float:
        """Of the NLL, the mean over examples in the run's unit; 0 where it is not known."""
        error = self.evaluation.get("nll", {}).get("solver_error")
        return error[number_key(self.evaluation)] if error else 0.0


Methods = Mapping[str, Sequence[Run]]  # runs that differ in the seed alone, by name


def compare(folders: list[Path], out: Path, *, equal: Equal = "cost", progress: bool = True) -> str:
    """Evaluated runs side by side: tables, and differences of methods from that of the first run.

    Runs whose recipes differ in the seed alone are one method; where all are of one, each stands for itself. Methods
    are compared in pairs of equal seeds, on the same examples. With two pairs or more a difference has a p and a
    verdict, adjusted by Holm's method over all differences that are shown; with one, its error is over examples, and it
    has no verdict. Nor has it one where the two have not spent the same, see
    :mod:`indm.workbench.evaluation.methods`.

    Args:
        folders: of runs, one or more.
        out: where ``comparison.html`` is written, a page, its picture ``comparison.png`` and ``comparison.json``.
        equal: what methods must have spent alike: "cost" is steps times their cost, "steps" is steps alone.
        progress: show a bar while costs are measured.

    Returns:
        The tables as text.

    Raises:
        ValueError: no run, one that is named twice, or other examples.
        FileNotFoundError: a folder that is not a run, or is not evaluated.
    """
    if not folders:
        raise ValueError("compare needs a run folder, got none")
    check_distinct(folders)
    runs = {folder: Run.read(folder) for folder in folders}
    evaluations = {folder: run.evaluation for folder, run in runs.items()}
    check_same_examples(evaluations)
    named = named_methods(folders)
    methods = {name: [runs[folder] for folder in trainings] for name, trainings in named.items()}
    costs = costs_of(named, equal, progress)
    by_method = differences(named, evaluations, costs)
    content = {
        "baseline": next(iter(named)),
        "unit": unit_of(methods),
        "methods": {name: list(map(str, trainings)) for name, trainings in named.items()},
        "costs": asdict(costs),
        "differences": by_method,
        "provenance": provenance(None, {str(run): result["weights_sha256"] for run, result in evaluations.items()}),
    }
    writes = {out / "comparison.png": plots.pixels_into(picture(methods, costs))}
    atomic.together(writes | {out / "comparison.json": atomic.json_into(content)})
    write_page(out, methods, by_method, costs)
    return "\n".join(text_of(methods, by_method, costs))


def unit_of(methods: Methods) -> str:
    """ "bits/dim" or "nats"."""
    return next(iter(methods.values()))[0].evaluation["unit"]


# ── Text, page and picture ──────────────────────────────────────────────────────────────────────────────────────────


def text_of(methods: Methods, by_method: Differences, costs: Costs) -> list[str]:
    """What the command prints: a row for each run, the differences of methods, and what they mean."""
    unit, runs = unit_of(methods), [run for trainings in methods.values() for run in trainings]
    lines = [
        f"{name}: {', '.join(str(run.folder) for run in trainings)}"
        for name, trainings in methods.items()
        if len(trainings) > 1
    ]
    lines.append(table(likelihood_rows({str(run.folder): [run] for run in runs})))
    if by_method:
        lines += ["", table(difference_rows(by_method, next(iter(methods)), unit)), str(costs)]
        lines += incomparable(by_method, next(iter(methods)))
    if any(row["verdict"] == "untested" for by_kind in by_method.values() for row in by_kind.values()):
        lines.append(ONE_TRAINING)
    lines.append(f"{unit}, ± one standard error, with the reconstruction term, {runs[0].evaluation['split']} split")
    lines += [f"{run.folder}: {line}" for run in runs for line in unconverged(run.evaluation)]
    if len({run.evaluation["dequantization"] for run in runs}) > 1:
        lines += [f"dequantization: {run.evaluation['dequantization']}: {run.folder}" for run in runs]
    return [*lines, best_model(methods, by_method)]


def write_page(out: Path, methods: Methods, by_method: Differences, costs: Costs) -> None:
    """Write ``comparison.html``: conclusions, differences, likelihoods, and ``comparison.png``."""
    page, first = Page("Runs compared"), next(iter(methods))
    page.conclude([best_model(methods, by_method), *conclusions(methods)])
    if by_method:
        page.heading("Differences between methods")
        page.table(difference_rows(by_method, first, unit_of(methods)))
        for line in (f"{OF_DIFFERENCES} {costs} {ONE_TRAINING}", *incomparable(by_method, first)):
            page.text(line)
    page.heading("Likelihood and budget")
    page.table(likelihood_rows(methods))
    page.text(OF_LIKELIHOODS)
    for run in (run for trainings in methods.values() for run in trainings):
        for line in unconverged(run.evaluation):
            page.text(f"{run.folder}: {line}")
    page.heading("Learning curves and samples")
    caption = f"Validation NELBO of each run in {unit_of(methods)}, and samples of the first run of each method."
    page.picture(out / "comparison.png", caption)
    page.write(out / "comparison.html")


def picture(methods: Methods, costs: Costs) -> plots.Pixels:
    """Learning curves over steps and over steps × cost, and below them samples of each method's first run."""
    colours = plots.colours_of(methods)
    panels: dict[str, Tensor | str] = {}
    levels = 0
    for name, (first, *_) in methods.items():
        panels[name] = f"not sampled yet: indm sample {first.folder}"
        if (file := first.folder / SAMPLES).exists():
            samples, levels, _ = read_samples(file)
            if samples.ndim not in (2, 4):
                raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
            panels[name] = samples
    curves = plots.pixels_of(curves_figure(methods, costs, colours))
    return sheets.stacked(curves, sheets.samples_picture(panels, levels, colours))


@plots.styled
def curves_figure(methods: Methods, costs: Costs, colours: plots.Colours) -> Figure:
    """Validation NELBO of each run over optimizer steps, and over steps times the method's cost where it is known."""
    figure = Figure(figsize=(10.0, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, over in zip(panels, ("optimizer step", "optimizer steps × cost of a step"), strict=True):
        for name, trainings in methods.items():
            cost = 1.0 if over == "optimizer step" else costs.by_method.get(name)
            label = name if any(run.curve for run in trainings) else f"{name} (nothing was validated)"
            for run in trainings:
                points = [(row["step"] * cost, row["valid_nelbo"]) for row in run.curve] if cost else []
                axes.plot(*zip(*points, strict=True) if points else ([], []), ".-", color=colours[name], label=label)
        axes.set(xlabel=over)
        if not any(len(line.get_xdata()) for line in axes.lines):
            plots.say_empty(axes, "no validation was logged in training")
    panels[0].set(ylabel=f"validation NELBO ({unit_of(methods)})")
    return figure


# ── Tables: rows of cells, the first row the header ─────────────────────────────────────────────────────────────────


def with_error(mean: float | None, error: float | None, digits: int = 3) -> str:
    """ "mean ± error", the mean alone where the error is NaN or None, "–" where the mean is None."""
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")


def bound_of(runs: Sequence[Run], kind: str = "nelbo") -> tuple[float, float] | None:
    """A likelihood of a method and its standard error: over its seeds, or of a single run over the examples."""
    bounds = [bound for run in runs if (bound := run.bound(kind))]
    return over_seeds([mean for mean, _ in bounds], bounds[0][1]) if bounds else None


def likelihood_rows(methods: Methods) -> Rows:
    """A row for each method: its seeds, size, budget and likelihoods; the baselines; the entropy where it is known.

    The error of a method is over its seeds, that of a single run or a baseline over the examples. That of the solver is
    the largest of the method. Baselines are of the examples of the NELBO.
    """
    unit, runs = unit_of(methods), [run for trainings in methods.values() for run in trainings]
    result = runs[0].evaluation
    kinds = [kind for kind in KINDS if any(run.bound(kind) for run in runs)]
    solved = any(run.solver_error for run in runs)
    names = [f"{KINDS[kind]}, {unit}" for kind in kinds] + ["solver error of the NLL"] * solved
    rows = [("", "seeds", "± over", "parameters", "steps", "seconds", *names)]
    for name, trainings in methods.items():
        ends = [run.curve[-1] for run in trainings if run.curve]
        budget = [f"{statistics.mean(end[key] for end in ends):.0f}" if ends else "–" for key in ("step", "seconds")]
        bounds = [with_error(*(bound_of(trainings, kind) or (None, None))) for kind in kinds]
        over = "seeds" if len(trainings) > 1 else "examples"
        parameters = "–" if trainings[0].parameters is None else f"{trainings[0].parameters:,}"
        error = max(run.solver_error for run in trainings)
        errors = [f"{error:.1g}" if error else "–"] * solved
        rows.append((name, str(len(trainings)), over, parameters, *budget, *bounds, *errors))
    key, blank = number_key(result), [""] * (len(kinds) - 1 + solved)
    for row in next((run.evaluation["baselines"] for run in runs if "baselines" in run.evaluation), {}).values():
        value = with_error(row[key], row[f"{key}_standard_error"])
        rows.append((f"baseline: {baseline_name(row)}", "", "examples", "", "", "", value, *blank))
    if (entropy := result.get("entropy_nats")) is not None:
        rows.append(("entropy of the data", *[""] * 5, *[f"{entropy:.3f}"] * len(kinds), *[""] * solved))
    return rows


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


# ── Sentences ───────────────────────────────────────────────────────────────────────────────────────────────────────


def incomparable(by_method: Differences, first: str) -> list[str]:
    """Why methods cannot be compared with the ``first``, a line for each."""
    reasons = {name: row["why"] for name, by_kind in by_method.items() for row in by_kind.values()}
    return [f"{name} and {first} are not comparable, {why}." for name, why in reasons.items() if why]


def best_model(methods: Methods, by_method: Differences) -> str:
    """The method of the lowest NELBO, by how much it is below the first method, or the first below the next, and the
    verdict on that difference."""
    bounds = {name: bound_of(trainings) or (math.nan, math.nan) for name, trainings in methods.items()}
    unit, (first, *_) = unit_of(methods), bounds
    bounds = {name: bound for name, bound in bounds.items() if math.isfinite(bound[0])}
    if not bounds:
        return "No model has a finite NELBO."
    best, *following = sorted(bounds, key=lambda name: bounds[name][0])
    split = methods[first][0].evaluation["split"]
    sentence = f"{best} has the lowest {KINDS['nelbo']} on the {split} data, {with_error(*bounds[best])} {unit}"
    if not following:
        return f"{sentence}; there is no other model to compare it with."
    rival = first if best != first and first in bounds else following[0]
    # Differences are from the first method.
    row = by_method.get(best if rival == first else rival, {}).get("nelbo") if first in (best, rival) else None
    if row is None or row["difference"] is None:
        return f"{sentence}. {rival} has {with_error(*bounds[rival])}; the two cannot be compared in pairs."
    more = -row["difference"] if rival == first else row["difference"]
    size = with_error(abs(more), row["standard_error"], digits=4)
    words = f"{size} more" if more >= 0 else f"{size} less over pairs of equal seeds"
    tested = "" if row["p_holm"] is None else f" (Holm's p = {row['p_holm']:.2g}, {row['seeds']} seeds)"
    return f"{sentence}. {rival} has {words}: {VERDICTS.get(row['verdict'], row['verdict'])}{tested}."


def conclusions(methods: Methods) -> list[str]:
    """Whether each method's models learned the data, a line for each; see ``diagnosis.conclusion``.

    Of several seeds the worst is reported. Methods whose evaluations have no baselines have no line.
    """
    lines = []
    for name, trainings in methods.items():
        worst = max(trainings, key=lambda run: run.evaluation["nelbo"]["with_reconstruction"]["nats"])
        sentence = conclusion(worst.folder, worst.evaluation)
        seeds = f", the worst of {len(trainings)} seeds" if len(trainings) > 1 else ""
        lines += [f"{name}{seeds}: {sentence}"] if sentence else []
    return lines
