"""Whether methods that are compared spent the same: steps times the cost of a step, or steps alone.

Seconds of training measure the neighbours on the machine, too. So what a method spent is the steps of its runs times
what a step costs on a machine where both were measured in turns, in units of a step of the first method.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from indm.config.options import Equal
from indm.runs.folder import read_metrics, recipe_of
from indm.training.costs import key_of, measure_runs, ratio_in

MARGIN = 0.10  # by which budgets that are called equal differ at most
NOT_COMPARABLE = "not comparable"  # verdict where they differ by more, or are not known


def are_equal(budgets: Iterable[float]) -> bool:
    """Whether the largest is within :data:`MARGIN` of the smallest."""
    values = list(budgets)
    return not values or max(values) <= (1 + MARGIN) * min(values)


def steps_of(run: Path) -> int | None:
    """Optimizer steps that a run made by its log; None where it has none, as a converted checkpoint."""
    return next((line["step"] for line in reversed(read_metrics(run))), None)


@dataclass(frozen=True)
class Costs:
    """What a step of each method costs.

    Attributes:
        equal: what shall be the same, "cost" or "steps"; in the latter case every step counts alike.
        by_method: cost of a step, that of the first method being 1.
        unknown: why there is none, by method.
        afterwards: methods that were measured for a comparison, and not when they were trained.
    """

    equal: Equal
    by_method: Mapping[str, float]
    unknown: Mapping[str, str] = field(default_factory=dict)
    afterwards: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.equal == "steps":
            return "Budgets are steps, whatever a step costs."
        first, *_ = self.by_method
        when = f" ({', '.join(self.afterwards)}: after the trainings)" if self.afterwards else ""
        return f"Budgets are steps × cost of a step, measured in turns{when}, that of {first} being 1."


def costs_of(methods: Mapping[str, Sequence[Path]], equal: Equal = "cost", progress: bool = True) -> Costs:
    """The cost of a step of each method: as ``costs.json`` of its runs or of the first's has it, else measured now.

    Args:
        methods: runs by name, each method's seeds.
        equal: what shall be the same; with "steps" nothing is measured.
        progress: show a bar.
    """
    (first, of_first), *_ = methods.items()
    if equal == "steps":
        return Costs(equal, dict.fromkeys(methods, 1.0))
    keys = {name: key_of(recipe_of(runs[0])) for name, runs in methods.items()}
    ratios: dict[str, tuple[float, bool]] = {}
    missing: dict[Path, str] = {}
    for name, runs in methods.items():
        ratio = (1.0, False) if keys[name] == keys[first] else ratio_in([*runs, *of_first], keys[name], keys[first])
        if ratio is None:
            missing[runs[0]] = name
        else:
            ratios[name] = ratio
    seconds, reasons = measure_runs([of_first[0], *missing], progress) if missing else ({}, {})
    ratios |= {name: (seconds[run] / seconds[of_first[0]], True) for run, name in missing.items() if run in seconds}
    return Costs(
        equal,
        {name: ratio for name, (ratio, _) in ratios.items()},
        {name: reasons[run] for run, name in missing.items() if run in reasons},
        tuple(name for name in methods if name in ratios and ratios[name][1]),
    )


@dataclass(frozen=True)
class Budget:
    """What two methods spent that are compared.

    Attributes:
        steps: of the runs of each; None where that is not known.
        costs: of a step of each; None where that is not known.
        why: the two cannot be compared; "" where they can.
    """

    steps: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    costs: tuple[float | None, float]
    why: str = ""

    def __str__(self) -> str:
        """ "520 steps × 0.88 = 458 against 458", without the cost where it is 1; "–" of no runs."""
        if not self.steps[0]:
            return "–"
        other, first = map(_span, self.steps)
        return f"{other} steps{self._times_cost()} against {first}"

    def _times_cost(self) -> str:
        others, cost = self.steps[0], self.costs[0]
        if cost is None or cost == 1:
            return "" if cost else " × –"
        spent = _span([None if steps is None else round(steps * cost) for steps in others])
        return f" × {cost:.3g} = {spent}"

    def as_json(self) -> dict:
        """What a row of differences has of it."""
        return {"steps": self.steps, "costs": self.costs, "budgets": str(self), "why": self.why}


def budget_of(pairs: Sequence[tuple[Path, Path]], name: str, costs: Costs) -> Budget:
    """What runs of the method ``name`` and of the first one spent, in pairs."""
    others, firsts = (tuple(steps_of(pair[side]) for pair in pairs) for side in (0, 1))
    budget = Budget((others, firsts), (costs.by_method.get(name), 1.0))
    return replace(budget, why=_why_not(budget, name, costs) if pairs else "")


def _why_not(budget: Budget, name: str, costs: Costs) -> str:
    """Why the two cannot be compared, and what would do; "" where they can."""
    other, first = ([steps for steps in runs if steps is not None] for runs in budget.steps)
    if (len(other), len(first)) != tuple(map(len, budget.steps)):
        return f"as the steps of a run are not known ({budget})"
    cost = budget.costs[0]
    equal_steps = costs.equal == "cost" and are_equal((*other, *first))
    would_do = "; --equal steps compares equal steps, whatever they cost" if equal_steps else ""
    if cost is None:
        return f"as the cost of a step is not known ({costs.unknown[name]}): {budget}{would_do}"
    if are_equal([*(steps * cost for steps in other), *first]):
        return ""
    return (
        f"as the budgets differ by more than {MARGIN:.0%}: {budget}; "
        f'"indm train RECIPE --like RUN" gives one the budget of the other{would_do}'
    )


def _span(values: Sequence[int | None]) -> str:
    """The least and the largest number of steps, "–" where one is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    return f"{min(known):,}" + (f"–{max(known):,}" if max(known) > min(known) else "")
