"""``indm compare``: evaluated runs side by side, and differences of methods from the first, as text and as a page.

Wall-clock time also depends on other processes. So what a method spent is the steps of its runs times what a step
costs, as ``like`` measured it, in units of a step of the first method.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from indm.evaluation.report import TITLES, Report, Row, table, unconverged
from indm.evaluation.statistics import LEVEL, Difference, judged, over_seeds
from indm.files import atomic, untrusted
from indm.workbench.evaluation.results import check_same_examples, difference, read_evaluation
from indm.workbench.evaluation.text import baseline_name, verdict
from indm.workbench.figures import plots, sheets
from indm.workbench.figures.page import Page
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Equal
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import FREE_ON_RESUME, read_metrics, recipe_of
from indm.workbench.runs.provenance import provenance
from indm.workbench.runs.samples import SAMPLES, read_samples
from indm.workbench.training.costs import key_of, ratio_in

COMPARISON_FILES = ("comparison.html", "comparison.json", "comparison.png")
# How a run is watched and evaluated makes no difference, but its budget does. The place of its data makes none, since
# runs that are compared were evaluated on the same examples.
ALIKE = {"train.seed", *FREE_ON_RESUME, *(f"data.{key}" for key in recipes.PATH_KEYS)}
ALIKE -= {"train.steps", "train.seconds"}
MARGIN = 0.10  # largest difference of budgets that are called equal
NO_SEED, NOT_COMPARABLE = "untested: no seed in common", "not comparable"  # verdicts without a test
ONE_TRAINING = (
    "An error over the examples of one training says which of two models is better, not which method: a verdict on "
    "methods needs more seeds (train.seed)."
)
OF_DIFFERENCES = (
    "In pairs of equal seeds; those without a partner do not count. ± is √(a² + b²) of the standard errors over seeds "
    "and over the examples, which all seeds share. p is that of Student's paired t over seeds; Holm's p is adjusted "
    f"over all rows of this table; a verdict needs one of at most {LEVEL:.0%}, and budgets that differ by at most "
    f"{MARGIN:.0%}."
)
OF_LIKELIHOODS = "± one standard error, with the reconstruction term; log p(x|c) of a model of p(x|c)"


@dataclass(frozen=True)
class Run:
    """Records of one run. A converted checkpoint has no log, and its number of parameters is unknown."""

    folder: Path
    evaluation: dict
    report: Report
    recipe: Recipe
    log: list[dict]
    parameters: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "Run":
        recipe, file = recipe_of(folder), folder / "summary.json"
        summary = untrusted.json_object(file) if file.exists() else {}
        count = sum(count for name, count in summary.items() if name.endswith("_parameters"))
        evaluation = read_evaluation(folder)
        return cls(folder, evaluation, Report.read(evaluation), recipe, read_metrics(folder), count or None)

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None where there is no log."""
        return self.log[-1]["step"] if self.log else None

    def bound(self, kind: str = "nelbo") -> tuple[float, float] | None:
        """A likelihood with its standard error over examples, in the run's unit; None where it was not evaluated."""
        if (numbers := self.report.measured.get(kind)) is None:
            return None
        values, key = numbers.with_reconstruction, self.report.key
        return values[key], values[f"{key}_standard_error"]


Methods = Mapping[str, Sequence[Run]]  # runs that differ in the seed alone, by name; the first is the baseline
Differences = Mapping[str, Mapping[str, Mapping]]  # keyed by method and kind, see differences


def compare(folders: Sequence[Path], out: Path, *, equal: Equal = "cost") -> str:
    """Evaluated runs side by side: tables, and differences of methods from the first run's.

    Runs whose recipes differ in the seed alone are one method; where all are of one, each stands for itself. Methods
    are compared in pairs of equal seeds, on the same examples. With two pairs or more a difference has a p and a
    verdict, adjusted by Holm's method over all differences that are shown, unless the two may not have spent the same.

    Writes ``comparison.html``, a page, its picture ``comparison.png`` and ``comparison.json`` into ``out``; returns the
    tables as text. With ``equal`` "cost" methods must have spent as much in steps times their cost, with "steps" in
    steps alone.

    Raises:
        ValueError: no run, one that is named twice, or other examples.
        FileNotFoundError: a folder that is not a run, or is not evaluated.
    """
    if not folders:
        raise ValueError("compare needs a run folder, got none")
    places = [folder.resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if places[i] in places[:i]:
            raise ValueError(f"run folders must differ, got {folder} twice; name each once")
    runs = [Run.read(folder) for folder in folders]
    check_same_examples({run.folder: run.evaluation for run in runs})
    methods = methods_of(runs)
    by_method = differences(methods, equal)
    content = {
        "baseline": next(iter(methods)),
        "unit": unit_of(methods),
        "equal": equal,
        "methods": {name: [str(run.folder) for run in trainings] for name, trainings in methods.items()},
        "differences": by_method,
        "provenance": provenance(None, {str(run.folder): run.evaluation["weights_sha256"] for run in runs}),
    }
    writes = {out / "comparison.png": plots.pixels_into(samples_of(methods))}
    atomic.together(writes | {out / "comparison.json": atomic.json_into(content)})
    said = verdicts(methods)
    page = Page("Runs compared")
    page.conclusion += said
    lines: list[str] = []
    for heading, rows, notes in sections(methods, by_method, equal):
        lines += [heading, table(rows), *notes, ""]
        page.heading(heading)
        page.table(rows)
        for note in notes:
            page.text(note)
    page.heading("Samples")
    page.picture(out / "comparison.png", "Samples of the first run of each method.")
    page.write(out / "comparison.html")
    return "\n".join([*lines, *said])


# ── Methods and their differences ───────────────────────────────────────────────────────────────────────────────────


def methods_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by method: their recipes differ in the seed alone. A second run of one seed begins another method.

    Numbers of steps within the margin of equal budgets are one. A method has the name of the folder that holds its runs
    and no others, or of its first run. Where all runs are of one method, each stands for itself.
    """
    methods: list[list[Run]] = []
    for run in runs:
        for others in methods:
            if run.seed not in [other.seed for other in others] and _is_one_method(others[0], run):
                others.append(run)
                break
        else:
            methods.append([run])
    if len(methods) == 1:
        return {str(run.folder): [run] for run in runs}
    named: dict[str, list[Run]] = {}
    for trainings in methods:
        place = trainings[0].folder.resolve()
        beside = [run for run in runs if run.folder.resolve().parent == place.parent]
        name = place.parent.name if len(trainings) > 1 and beside == trainings else place.name
        named[str(trainings[0].folder) if name in named else name] = trainings
    return named


def _is_one_method(one: Run, other: Run) -> bool:
    differing = recipes.differing_keys(one.recipe, other.recipe)
    changed = {key for key in differing if not key.startswith("evaluate.")} - ALIKE
    if are_equal([one.recipe.train.steps, other.recipe.train.steps]):
        changed -= {"train.steps"}
    return not changed


def pairs_of(runs: Sequence[Run], first: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of two methods in pairs of equal seeds, none where no seed is in both; two single runs are always a pair."""
    if len(runs) == len(first) == 1:
        return [(runs[0], first[0])]
    by_seed = {run.seed: run for run in first}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def are_equal(budgets: Sequence[float]) -> bool:
    """Whether the largest is within :data:`MARGIN` of the smallest."""
    return max(budgets) <= (1 + MARGIN) * min(budgets)


def differences(methods: Methods, equal: Equal = "cost") -> dict[str, dict[str, dict]]:
    """Every method minus the first, by its name and the kind of likelihood that both have, judged as one family.

    Rows of :func:`indm.evaluation.statistics.judged` with the seeds ``left_out`` for want of a partner, and
    :func:`budget_of`. Without any pair the verdict is :data:`NO_SEED`; where budgets differ or are not known it is
    :data:`NOT_COMPARABLE`, and the difference is not in the family.
    """
    (_, first), *following = methods.items()
    family: dict[tuple[str, str], Difference] = {}
    about: dict[str, dict] = {}
    for name, runs in following:
        pairs = pairs_of(runs, first)
        paired = [run for pair in pairs for run in pair]
        left_out = sorted(run.seed for run in (*runs, *first) if run not in paired)
        about[name] = {"left_out": left_out} | budget_of(pairs, runs, first, equal)
        for kind in TITLES:
            if all(kind in run.report.measured for run in paired or (*runs, *first)):
                folders = [(run.folder, other.folder) for run, other in pairs]
                family[name, kind] = difference(folders, kind) if pairs else Difference(math.nan, 0, math.nan)
    found: dict[str, dict[str, dict]] = {name: {} for name, _ in following}
    rows = judged(list(family.values()), [not about[name]["why"] for name, _ in family])
    for (name, kind), row in zip(family, rows, strict=True):
        verdict = NO_SEED if not row["seeds"] else NOT_COMPARABLE if about[name]["why"] else row["verdict"]
        found[name][kind] = row | {"verdict": verdict} | about[name]
    return found


def budget_of(pairs: Sequence[tuple[Run, Run]], runs: Sequence[Run], first: Sequence[Run], equal: Equal) -> dict:
    """The budgets of a method's ``runs`` and of the ``first`` method's, in ``pairs``, for a comparison.

    ``steps`` are of both. ``cost`` is the cost of a step, relative to the first method's; None where no run has it, and
    1 with ``equal`` "steps". ``budgets`` are words. ``why`` says why they cannot be compared, "" where they can.
    """
    keys = key_of(runs[0].recipe), key_of(first[0].recipe)
    is_alike = equal == "steps" or keys[0] == keys[1]
    cost = 1.0 if is_alike else ratio_in([run.folder for run in (*runs, *first)], *keys)
    steps, steps_of_first = ([pair[i].steps for pair in pairs] for i in (0, 1))
    budget = {"steps": (steps, steps_of_first), "cost": cost, "budgets": "–", "why": ""}
    if not pairs:
        return budget
    known, of_first = ([n for n in values if n is not None] for values in (steps, steps_of_first))
    spent = [n * (cost or math.nan) for n in known]
    product = "" if cost == 1 else f" × {cost:.3g} = {_span(spent)}" if cost else " × –"
    words = f"{_span(steps)} steps{product} against {_span(steps_of_first)}"
    if len(known) + len(of_first) < 2 * len(pairs):
        why = f"as the steps of a run are not known ({words})"
    elif cost is None:
        why = f"as the cost of a step is not known ({words}): train one like the other, or compare at equal steps"
    else:
        why = f"as the budgets differ by more than {MARGIN:.0%}: {words}; a run trained like another has its budget"
        why = "" if are_equal([*spent, *of_first]) else why
    return budget | {"budgets": words, "why": why}


def _span(values: Sequence[float | None]) -> str:
    """The least and the largest number of steps, "–" where one is not known."""
    known = [round(value) for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return f"{min(known):,}" + (f"–{max(known):,}" if max(known) > min(known) else "")


def unit_of(methods: Methods) -> str:
    """ "bits/dim" or "nats"."""
    return next(iter(methods.values()))[0].report.unit


# ── Text, page and picture ──────────────────────────────────────────────────────────────────────────────────────────


def sections(methods: Methods, by_method: Differences, equal: Equal) -> list[tuple[str, list[Row], list[str]]]:
    """Sections of the text and the page: headings, their tables, and the lines below."""
    runs = [run for trainings in methods.values() for run in trainings]
    names = {name: ", ".join(str(run.folder) for run in trainings) for name, trainings in methods.items()}
    notes = [f"{name}: {folders}" for name, folders in names.items() if name != folders]
    notes += [f"{unit_of(methods)}, {OF_LIKELIHOODS}, {runs[0].evaluation['split']} split"]
    notes += [f"{run.folder}: {line}" for run in runs for line in unconverged(run.report)]
    if len({run.report.dequantization for run in runs}) > 1:
        notes += [f"dequantization: {run.report.dequantization}: {run.folder}" for run in runs]
    likelihoods = "Likelihood and budget", method_rows(methods), notes
    if not by_method:
        return [likelihoods]
    first = next(iter(methods))
    costs = f"steps × cost of a step, measured interleaved, that of {first} being 1"
    lines = [OF_DIFFERENCES, f"Budgets are {costs if equal == 'cost' else 'steps, whatever a step costs'}."]
    reasons = {name: row["why"] for name, by_kind in by_method.items() for row in by_kind.values()}
    lines += [f"{name} and {first} are not comparable, {why}." for name, why in reasons.items() if why]
    if any(row["verdict"] == "untested" for by_kind in by_method.values() for row in by_kind.values()):
        lines.append(ONE_TRAINING)
    return [likelihoods, ("Differences between methods", difference_rows(by_method, first, unit_of(methods)), lines)]


def samples_of(methods: Methods) -> plots.Pixels:
    """Samples of each method's first run."""
    panels: dict[str, Tensor | str] = {}
    levels = 0
    for name, (first, *_) in methods.items():
        panels[name] = f"not sampled yet: indm sample {first.folder}"
        if (file := first.folder / SAMPLES).exists():
            samples, levels, _ = read_samples(file)
            if samples.ndim not in (2, 4):
                raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
            panels[name] = samples
    return sheets.samples_picture(panels, levels, plots.colours_of(methods))


# ── Tables: rows of cells, the first row the header ─────────────────────────────────────────────────────────────────


def with_error(mean: float | None, error: float | None, digits: int = 3) -> str:
    """ "mean ± error", the mean alone where the error is NaN or None, "–" where the mean is None."""
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")


def mean_bound(runs: Sequence[Run], kind: str = "nelbo") -> tuple[float, float] | None:
    """A likelihood of a method and its standard error: over its seeds, or of a single run over the examples."""
    bounds = [bound for run in runs if (bound := run.bound(kind))]
    return over_seeds([mean for mean, _ in bounds], bounds[0][1]) if bounds else None


def method_rows(methods: Methods) -> list[Row]:
    """A row for each method, the baselines, of the examples of the NELBO, and the entropy where it is known. A method's
    error is over its seeds; the error of a single run or a baseline is over the examples."""
    unit, runs = unit_of(methods), [run for trainings in methods.values() for run in trainings]
    kinds = [kind for kind in TITLES if any(run.bound(kind) for run in runs)]
    rows = [("", "seeds", "± over", "parameters", "steps", "seconds", *(f"{TITLES[kind]}, {unit}" for kind in kinds))]
    for name, trainings in methods.items():
        ends = [run.log[-1] for run in trainings if run.log]
        budget = [f"{statistics.mean(end[key] for end in ends):.0f}" if ends else "–" for key in ("step", "seconds")]
        bounds = [with_error(*(mean_bound(trainings, kind) or (None, None))) for kind in kinds]
        over = "seeds" if len(trainings) > 1 else "examples"
        parameters = "–" if trainings[0].parameters is None else f"{trainings[0].parameters:,}"
        rows.append((name, str(len(trainings)), over, parameters, *budget, *bounds))
    key, blank = runs[0].report.key, [""] * (len(kinds) - 1)
    for row in next((run.evaluation["baselines"] for run in runs if "baselines" in run.evaluation), {}).values():
        value = with_error(row[key], row[f"{key}_standard_error"])
        rows.append((f"baseline: {baseline_name(row)}", "", "examples", "", "", "", value, *blank))
    if (entropy := runs[0].evaluation.get("entropy_nats")) is not None:
        rows.append(("entropy of the data", *[""] * 5, *[f"{entropy:.3f}"] * len(kinds)))
    return rows


def difference_rows(by_method: Differences, first: str, unit: str) -> list[Row]:
    """The differences of methods from the ``first``."""
    rows: list[Row] = [
        ("", "likelihood", f"difference from {first}, {unit}", "seeds", "steps × cost", "p", "Holm's p", "verdict")
    ]
    for name, by_kind in by_method.items():
        for kind, row in by_kind.items():
            tests = ["–" if row[key] is None else f"{row[key]:.2g}" for key in ("p", "p_holm")]
            seeds = str(row["seeds"])
            if row["left_out"]:
                seeds += f" (without a partner: {', '.join(map(str, row['left_out']))})"
            cells = with_error(row["difference"], row["standard_error"], digits=4), seeds, row["budgets"], *tests
            rows.append((name, TITLES[kind], *cells, row["verdict"]))
    return rows


def verdicts(methods: Methods) -> list[str]:
    """The verdict on each method beside the baselines, a line for each; of several seeds the worst is reported."""
    lines = {}
    for name, trainings in methods.items():
        worst = max(trainings, key=lambda run: run.report.measured["nelbo"].with_reconstruction[run.report.key])
        lines[name + (f", the worst of {len(trainings)} seeds" if len(trainings) > 1 else "")] = verdict(
            worst.evaluation
        )
    return [f"{name}: {sentence}" for name, sentence in lines.items() if sentence]
