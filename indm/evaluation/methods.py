"""Which runs are trainings of one method, and the differences between methods, judged as one family."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from indm.config import paths, recipes
from indm.config.recipes import Recipe
from indm.evaluation.budgets import NOT_COMPARABLE, Budget, Costs, are_equal, budget_of
from indm.evaluation.results import KINDS, difference
from indm.evaluation.statistics import Difference, judged
from indm.runs.folder import FREE_ON_RESUME, recipe_of
from indm.runs.provenance import same_data

# How a run is watched and evaluated makes no difference, but its budget does.
ALIKE = {"train.seed", *FREE_ON_RESUME} - {"train.steps", "train.seconds"}
PLACES = {f"data.{key}" for key in paths.KEYS}
ONE_TRAINING = (
    "An error over the examples of one training says which of two models is better, not which method: a verdict on "
    "methods needs more seeds (--train.seed)."
)
NO_SEED = "untested: no seed in common"  # verdict on methods without a pair


def check_distinct(folders: Sequence[Path]) -> None:
    """ValueError for a folder that is named twice, which would stand for two trainings."""
    places = [folder.resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if places[i] in places[:i]:
            raise ValueError(f"run folders must differ, got {folder} twice; name each once")


def seed_of(run: Path) -> int:
    """The seed of a run's training."""
    return recipes.load(run)["train"]["seed"]


def methods_of(folders: Sequence[Path]) -> list[list[Path]]:
    """The runs by method: their recipes differ in the seed alone. A second run of one seed begins another method.

    Numbers of steps within the margin of equal budgets are one, and so are two places of the same data.
    """
    methods: list[tuple[Recipe, dict[int, Path]]] = []
    for folder in folders:
        recipe = recipe_of(folder)
        seed = recipe["train"]["seed"]
        for other, runs in methods:
            changed = {key for key in recipes.differences(other, recipe) if not key.startswith("evaluate.")} - ALIKE
            if are_equal([other["train"]["steps"], recipe["train"]["steps"]]):
                changed -= {"train.steps"}
            if changed & PLACES and same_data(next(iter(runs.values())), folder):
                changed -= PLACES
            if seed not in runs and not changed:
                runs[seed] = folder
                break
        else:
            methods.append((recipe, {seed: folder}))
    return [list(runs.values()) for _, runs in methods]


def pairs_of(other: Sequence[Path], first: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Runs of two methods in pairs of equal seeds, none where no seed is in both; two single runs are always a pair."""
    if len(other) == len(first) == 1:
        return [(other[0], first[0])]
    seeds = [{seed_of(run): run for run in runs} for runs in (other, first)]
    return [(run, seeds[1][seed]) for seed, run in seeds[0].items() if seed in seeds[1]]


def differences(
    methods: Mapping[str, Sequence[Path]], evaluations: Mapping[Path, Mapping], costs: Costs
) -> dict[str, dict[str, dict]]:
    """Every method less the first one, by its name and the kind of likelihood that both have, judged as one family.

    Args:
        methods: runs by name.
        evaluations: of each run, of the same examples, see :func:`indm.evaluation.results.check_same_examples`.
        costs: of a step of each method, see :func:`indm.evaluation.budgets.costs_of`.

    Returns:
        Rows of :func:`indm.evaluation.statistics.judged`, each with the seeds that were ``left_out`` for want of a
        partner, and with the ``steps`` of the runs of both, their ``costs`` of a step and the ``budgets`` in words.
        Without any pair the verdict is :data:`NO_SEED`. Where budgets differ or are not known it is
        :data:`NOT_COMPARABLE`, ``why`` says so, and the difference is not in the family.
    """
    (_, first), *others = methods.items()
    family: dict[tuple[str, str], Difference] = {}
    left_out: dict[str, list[int]] = {}
    budgets: dict[str, Budget] = {}
    for name, runs in others:
        pairs = pairs_of(runs, first)
        budgets[name] = budget_of(pairs, name, costs)
        paired = {run for pair in pairs for run in pair}
        left_out[name] = sorted(seed_of(run) for run in (*runs, *first) if run not in paired)
        for kind in KINDS:
            if all(kind in evaluations[run] for run in paired or (*runs, *first)):
                family[name, kind] = difference(pairs, kind) if pairs else Difference(math.nan, 0, math.nan)
    table: dict[str, dict[str, dict]] = {name: {} for name, _ in others}
    rows = judged(list(family.values()), [not budgets[name].why for name, _ in family])
    for (name, kind), row in zip(family, rows, strict=True):
        verdict = NO_SEED if not row["seeds"] else NOT_COMPARABLE if budgets[name].why else row["verdict"]
        table[name][kind] = row | {"verdict": verdict, "left_out": left_out[name]} | budgets[name].as_json()
    return table


def without_partner(row: Mapping) -> str:
    """The seeds that a difference leaves out, in parentheses after a space; "" where there is none."""
    return f" (without a partner: {', '.join(map(str, row['left_out']))})" if row["left_out"] else ""


def in_words(row: Mapping, unit: str) -> str:
    """A difference of :func:`differences` as text; "–" where a run diverged."""
    if row["verdict"] == NO_SEED:
        return NO_SEED + without_partner(row)
    number, error = (
        "–" if row[key] is None else f"{row[key]:{form}}"
        for key, form in (("difference", "+.4f"), ("standard_error", ".4f"))
    )
    over = "the examples of one training each" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    text = f"{number} ± {error} {unit} over {over}{without_partner(row)}"
    if row["verdict"] == NOT_COMPARABLE:
        return f"{text}: {NOT_COMPARABLE}, {row['why']}"
    if row["verdict"] == "untested":
        return f"{text}: no verdict on methods; {row['budgets']}"
    return f"{text}, p = {row['p']:.2g}, Holm's p = {row['p_holm']:.2g}: {row['verdict']}; {row['budgets']}"
