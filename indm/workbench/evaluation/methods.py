"""Which runs are trainings of one method, what methods spent, and the differences between them, judged as one family.

Wall-clock time also depends on other processes. So what a method spent is the steps of its runs times what a step
costs on a machine where both methods were measured interleaved, in units of a step of the first method.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indm.workbench.evaluation.results import KINDS, difference
from indm.workbench.evaluation.statistics import Difference, judged
from indm.workbench.recipes import paths
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Equal
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import FREE_ON_RESUME, read_metrics, recipe_of
from indm.workbench.runs.provenance import same_data
from indm.workbench.training.costs import key_of, measure_runs, ratio_in

# How a run is watched and evaluated makes no difference, but its budget does.
ALIKE = {"train.seed", *FREE_ON_RESUME} - {"train.steps", "train.seconds"}
PLACES = {f"data.{key}" for key in paths.KEYS}
NO_SEED = "untested: no seed in common"  # verdict on methods without a pair
MARGIN = 0.10  # by which budgets that are called equal differ at most
NOT_COMPARABLE = "not comparable"  # verdict where they differ by more, or are not known
Steps = tuple[int | None, ...]  # of runs; None: not known


def are_equal(budgets: Iterable[float]) -> bool:
    """Whether the largest is within :data:`MARGIN` of the smallest."""
    values = list(budgets)
    return not values or max(values) <= (1 + MARGIN) * min(values)


def steps_of(run: Path) -> int | None:
    """Optimizer steps that a run made by its log; None where it has none, as a converted checkpoint."""
    return next((line["step"] for line in reversed(read_metrics(run))), None)


def check_distinct(folders: Sequence[Path]) -> None:
    """ValueError for a folder that is named twice, which would stand for two trainings."""
    places = [folder.resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if places[i] in places[:i]:
            raise ValueError(f"run folders must differ, got {folder} twice; name each once")


# ── Methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def seed_of(run: Path) -> int:
    """The seed of a run's training."""
    return recipe_of(run).train.seed


def methods_of(folders: Sequence[Path]) -> list[list[Path]]:
    """The runs by method: their recipes differ in the seed alone. A second run of one seed begins another method.

    Numbers of steps within the margin of equal budgets are one, and so are two paths of the same data.
    """
    methods: list[tuple[Recipe, dict[int, Path]]] = []
    for folder in folders:
        recipe = recipe_of(folder)
        seed = recipe.train.seed
        for other, runs in methods:
            changed = {key for key in recipes.differences(other, recipe) if not key.startswith("evaluate.")} - ALIKE
            if are_equal([other.train.steps, recipe.train.steps]):
                changed -= {"train.steps"}
            if changed & PLACES and same_data(next(iter(runs.values())), folder):
                changed -= PLACES
            if seed not in runs and not changed:
                runs[seed] = folder
                break
        else:
            methods.append((recipe, {seed: folder}))
    return [list(runs.values()) for _, runs in methods]


def named_methods(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """:func:`methods_of` runs by name: the folder that holds these runs and none of another method, or their first run.

    Where all runs are of one method, each stands for itself.
    """
    methods = methods_of(folders)
    if len(methods) == 1:
        return {str(folder): [folder] for folder in folders}
    named: dict[str, list[Path]] = {}
    for runs in methods:
        place = runs[0].resolve()
        together = [folder for folder in folders if folder.resolve().parent == place.parent]
        name = place.parent.name if len(runs) > 1 and {*together} == {*runs} else place.name
        named[str(runs[0]) if name in named else name] = runs
    return named


def pairs_of(other: Sequence[Path], first: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Runs of two methods in pairs of equal seeds, none where no seed is in both; two single runs are always a pair."""
    if len(other) == len(first) == 1:
        return [(other[0], first[0])]
    seeds = [{seed_of(run): run for run in runs} for runs in (other, first)]
    return [(run, seeds[1][seed]) for seed, run in seeds[0].items() if seed in seeds[1]]


# ── Budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Costs:
    """What a step of each method costs.

    Attributes:
        equal: what shall be the same, "cost" or "steps"; in the latter case every step counts alike.
        by_method: cost of a step, that of the first method being 1.
        unknown: why there is none, by method.
    """

    equal: Equal
    by_method: Mapping[str, float]
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.equal == "steps":
            return "Budgets are steps, whatever a step costs."
        first, *_ = self.by_method
        return f"Budgets are steps × cost of a step, measured interleaved, that of {first} being 1."


def costs_of(methods: Mapping[str, Sequence[Path]], equal: Equal = "cost", progress: bool = True) -> Costs:
    """The cost of a step of each method: as the record of its runs or of the first's has it, else measured now.

    With ``equal`` "steps" every step counts alike, and nothing is measured.
    """
    if equal == "steps":
        return Costs(equal, dict.fromkeys(methods, 1.0))
    (first, of_first), *_ = methods.items()
    keys = {name: key_of(recipe_of(runs[0])) for name, runs in methods.items()}
    ratios: dict[str, float] = {}
    missing: dict[Path, str] = {}
    for name, runs in methods.items():
        known = 1.0 if keys[name] == keys[first] else ratio_in([*runs, *of_first], keys[name], keys[first])
        if known is None:
            missing[runs[0]] = name
        else:
            ratios[name] = known
    seconds, reasons = measure_runs([of_first[0], *missing], progress) if missing else ({}, {})
    ratios |= {name: seconds[run] / seconds[of_first[0]] for run, name in missing.items() if run in seconds}
    return Costs(equal, ratios, {name: reasons[run] for run, name in missing.items() if run in reasons})


def budget_of(pairs: Sequence[tuple[Path, Path]], name: str, costs: Costs) -> dict:
    """What runs of the method ``name`` and of the first one spent, in pairs: ``steps`` of the runs of both, ``costs``
    of a step of each (None: not known), ``budgets`` in words, and ``why`` they cannot be compared, "" where they can.
    """
    other, first = (tuple(steps_of(pair[i]) for pair in pairs) for i in (0, 1))
    cost = costs.by_method.get(name)
    words = _budgets_in_words(other, first, cost) if pairs else "–"
    why = _why_not(other, first, name, costs, words) if pairs else ""
    return {"steps": (other, first), "costs": (cost, 1.0), "budgets": words, "why": why}


def _budgets_in_words(other: Steps, first: Steps, cost: float | None) -> str:
    """ "520 steps × 0.88 = 458 against 458", without the cost where it is 1."""
    if cost is None:
        return f"{_span(other)} steps × – against {_span(first)}"
    spent = _span([None if steps is None else round(steps * cost) for steps in other])
    return f"{_span(other)} steps{'' if cost == 1 else f' × {cost:.3g} = {spent}'} against {_span(first)}"


def _why_not(other: Steps, first: Steps, name: str, costs: Costs, words: str) -> str:
    """Why the two cannot be compared, and what would do; "" where they can."""
    steps, cost = [n for n in (*other, *first) if n is not None], costs.by_method.get(name)
    if len(steps) < len(other) + len(first):
        return f"as the steps of a run are not known ({words})"
    would_do = ""
    if costs.equal == "cost" and are_equal(steps):
        would_do = "; --equal steps compares equal steps, whatever they cost"
    if cost is None:
        return f"as the cost of a step is not known ({costs.unknown[name]}): {words}{would_do}"
    if are_equal([*(n * cost for n in steps[: len(other)]), *steps[len(other) :]]):
        return ""
    return (
        f"as the budgets differ by more than {MARGIN:.0%}: {words}; "
        f'"indm train RECIPE --like RUN" gives one the budget of the other{would_do}'
    )


def _span(values: Sequence[int | None]) -> str:
    """The least and the largest number of steps, "–" where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return f"{min(known):,}" + (f"–{max(known):,}" if max(known) > min(known) else "")


# ── Differences ─────────────────────────────────────────────────────────────────────────────────────────────────────


def differences(
    methods: Mapping[str, Sequence[Path]], evaluations: Mapping[Path, Mapping], costs: Costs
) -> dict[str, dict[str, dict]]:
    """Every method less the first one, by its name and the kind of likelihood that both have, judged as one family.

    Args:
        methods: runs by name.
        evaluations: of each run, of the same examples, see
            :func:`indm.workbench.evaluation.results.check_same_examples`.
        costs: of a step of each method, see :func:`costs_of`.

    Returns:
        Rows of :func:`indm.workbench.evaluation.statistics.judged`, each with the seeds that were ``left_out`` for want
        of a partner, and what :func:`budget_of` says. Without any pair the verdict is :data:`NO_SEED`. Where budgets
        differ or are not known it is :data:`NOT_COMPARABLE`, and the difference is not in the family.
    """
    (_, first), *following = methods.items()
    family: dict[tuple[str, str], Difference] = {}
    about: dict[str, dict] = {}
    for name, runs in following:
        pairs = pairs_of(runs, first)
        paired = {run for pair in pairs for run in pair}
        about[name] = {"left_out": sorted(seed_of(run) for run in (*runs, *first) if run not in paired)}
        about[name] |= budget_of(pairs, name, costs)
        for kind in KINDS:
            if all(kind in evaluations[run] for run in paired or (*runs, *first)):
                family[name, kind] = difference(pairs, kind) if pairs else Difference(math.nan, 0, math.nan)
    table: dict[str, dict[str, dict]] = {name: {} for name, _ in following}
    rows = judged(list(family.values()), [not about[name]["why"] for name, _ in family])
    for (name, kind), row in zip(family, rows, strict=True):
        verdict = NO_SEED if not row["seeds"] else NOT_COMPARABLE if about[name]["why"] else row["verdict"]
        table[name][kind] = row | {"verdict": verdict} | about[name]
    return table
