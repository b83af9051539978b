"""Which runs are trainings of one method, and the differences between methods, judged as one family."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from indm.config import recipes
from indm.config.recipes import Recipe
from indm.evaluation.results import KINDS, difference
from indm.evaluation.statistics import Difference, judged
from indm.runs.folder import FREE_ON_RESUME

# How a run is watched and evaluated makes no difference, but its budget does.
ALIKE = {"train.seed", *FREE_ON_RESUME} - {"train.steps", "train.seconds"}
ONE_TRAINING = (
    "An error over the examples of one training says which of two models is better, not which method: a verdict on "
    "methods needs more seeds (--train.seed)."
)


def seed_of(run: Path) -> int:
    """The seed of a run's training."""
    return recipes.load(run)["train"]["seed"]


def methods_of(folders: Sequence[Path]) -> list[list[Path]]:
    """The runs by method: their recipes differ in the seed alone. A second run of one seed begins another method."""
    methods: list[tuple[Recipe, dict[int, Path]]] = []
    for folder in folders:
        recipe, seed = recipes.load(folder), seed_of(folder)
        for other, runs in methods:
            changed = recipes.differences(other, recipe)
            if seed not in runs and all(key in ALIKE or key.startswith("evaluate.") for key in changed):
                runs[seed] = folder
                break
        else:
            methods.append((recipe, {seed: folder}))
    return [list(runs.values()) for _, runs in methods]


def pairs_of(other: Sequence[Path], first: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Runs of two methods in pairs of equal seeds; two single runs are one pair whatever their seeds.

    Raises:
        ValueError: no seed that both have.
    """
    if len(other) == len(first) == 1:
        return [(other[0], first[0])]
    seeds = [{seed_of(run): run for run in runs} for runs in (other, first)]
    pairs = [(run, seeds[1][seed]) for seed, run in seeds[0].items() if seed in seeds[1]]
    if not pairs:
        raise ValueError(
            f"{other[0]} and {first[0]} must have seeds in common, to be compared in pairs, got "
            f"{' and '.join(str(sorted(each)) for each in seeds)}"
        )
    return pairs


def differences(
    methods: Mapping[str, Sequence[Path]], evaluations: Mapping[Path, Mapping]
) -> dict[str, dict[str, dict]]:
    """Every method less the first one, by its name and the kind of likelihood that both have, judged as one family.

    Args:
        methods: runs by name.
        evaluations: of each run, of the same examples, see :func:`indm.evaluation.results.check_same_examples`.

    Returns:
        Rows of :func:`indm.evaluation.statistics.judged`.

    Raises:
        ValueError: methods without a seed in common.
    """
    (_, first), *others = methods.items()
    family: dict[tuple[str, str], Difference] = {}
    for name, runs in others:
        pairs = pairs_of(runs, first)
        for kind in KINDS:
            if all(kind in evaluations[run] for pair in pairs for run in pair):
                family[name, kind] = difference(pairs, kind)
    table: dict[str, dict[str, dict]] = {name: {} for name, _ in others}
    for (name, kind), row in zip(family, judged(list(family.values())), strict=True):
        table[name][kind] = row
    return table


def in_words(row: Mapping, unit: str) -> str:
    """A judged difference as text."""
    text = f"{row['difference']:+.4f} ± {row['standard_error']:.4f} {unit}"
    if row["verdict"] == "untested":
        return f"{text} over the examples of one training each: no verdict on methods"
    return f"{text} over {row['seeds']} seeds, p = {row['p']:.2g}, Holm's p = {row['p_holm']:.2g}: {row['verdict']}"
