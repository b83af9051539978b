"""Whether a model learned its data, in plain sentences: better or worse than the baselines, why, and how to go on."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indm.files import untrusted
from indm.messages import counted
from indm.names import GIVEN
from indm.workbench.evaluation.results import current_evaluation, number_key
from indm.workbench.recipes.options import ENOUGH_STEPS, FEW_STEPS
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import read_metrics, recipe_of

NEAR_SOURCE = 3 / 256  # distance of a result from its source, as a share of the grey levels
MOST_MORE = 10  # times the seconds of a run, in the command that continues it
LOW_RATE = 1e-5  # a learning rate that hardly trains
REQUIRED_BASELINES = ("uniform", "gaussian")  # a model that is no better than these has not learned its data
OTHER_DATA = "Likely cause: these are not the data that it was trained on."


@dataclass(frozen=True)
class Comparison:
    """A model beside a baseline: its value, the NELBO less that value and the standard error of this, in one unit."""

    key: str
    name: str
    value: float
    difference: float
    error: float

    @property
    def verdict(self) -> str:
        """The model is "better than" or "worse than" the baseline beyond two standard errors, or within them."""
        if abs(self.difference) <= 2 * self.error:
            return "within two standard errors of"
        return "better than" if self.difference < 0 else "worse than"

    def __str__(self) -> str:
        return f"{self.name} ({self.value:.2f})"


def comparisons(result: Mapping) -> list[Comparison]:
    """The model of an evaluation beside each of its baselines, the best first; none without baselines or errors."""
    unit, compared = number_key(result), []
    for key, row in result.get("baselines", {}).items():
        less = row["nelbo_difference"]
        if (error := less[f"{unit}_standard_error"]) is not None:
            compared.append(Comparison(key, row["name"], row[unit], less[unit], error))
    return sorted(compared, key=lambda c: c.value)


def _failed(compared: Sequence[Comparison]) -> list[Comparison]:
    """The baselines that the model must beat, and does not."""
    return [c for c in compared if c.key in REQUIRED_BASELINES and c.verdict != "better than"]


def learned(result: Mapping) -> bool:
    """Whether the model of an evaluation is better than uniform noise and a Gaussian, beyond two standard errors."""
    return not _failed(comparisons(result))


def conclusion(run: Path, result: Mapping) -> str:
    """How the model of ``run`` compares with the baselines of its evaluation ``result``, in one line; "" without any.

    Where it is no better than uniform noise and a Gaussian, also the likely cause, and the command that continues.
    """
    compared = comparisons(result)
    if not compared:
        return ""
    failed = _failed(compared)
    model = f"The model ({result['nelbo']['with_reconstruction'][number_key(result)]:.2f} {result['unit']})"
    if failed and (noise := _noise_of_data(run)):
        return (
            f"{model} has learned these data with noise of deviation {noise:g} (train.initial_noise), so clean ones "
            "have little density, and baselines say nothing of it."
        )
    if worse := [c for c in failed if c.verdict == "worse than"]:
        sentence = f"{model} is worse than {_and(worse)}: it has not learned these data yet."
    else:
        groups: dict[str, list[Comparison]] = {"better than": [], "within two standard errors of": [], "worse than": []}
        for c in _informative(compared):
            groups[c.verdict].append(c)
        *first, last = (f"{words} {_and(group)}" for words, group in groups.items() if group)
        sentence = f"{model} is {', '.join(first)}, but {last}." if first else f"{model} is {last}."
    if not failed:
        return sentence
    if "unended_at_step" in result:
        return f"{sentence} Likely cause: its training has not ended."
    is_other = result["data_changed"] or result["data"]["name"] != recipe_of(run).data.name
    gaussian = next(c.value for c in compared if c.key == "gaussian")
    return f"{sentence} {OTHER_DATA if is_other else advice(run, gaussian)}".rstrip()


def _informative(compared: Sequence[Comparison]) -> list[Comparison]:
    """Without PNG where that is no better than uniform noise, as of a few pixels, and without uniform noise where a
    Gaussian is better than that."""
    value = {c.key: c.value for c in compared}
    uniform, gaussian = value.get("uniform", math.inf), value.get("gaussian", math.inf)
    redundant = {"png": value.get("png", math.inf) >= uniform, "uniform": gaussian < uniform}
    return [c for c in compared if not redundant.get(c.key, False)]


def _noise_of_data(run: Path) -> float:
    """Deviation of the noise with which the model of ``run`` has learned its data."""
    return recipe_of(run).train.initial_noise


def _and(compared: Sequence[Comparison]) -> str:
    *first, last = map(str, compared)
    return f"{', '.join(first)} and {last}" if first else last


def advice(run: Path, baseline: float = -math.inf) -> str:
    """Why the model of ``run`` has hardly learned, and the command that continues, from what the run's folder says.

    ``baseline`` is the likelihood that it should have reached, in the unit of the run. Nothing where the folder has no
    log of a training, as that of a converted run.
    """
    lines = read_metrics(run)
    if not lines:
        return ""
    recipe, steps, seconds = recipe_of(run), lines[-1]["step"], lines[-1].get("seconds", 0.0)
    summary = run / "summary.json"
    finished = summary.exists() and not untrusted.json_object(summary)["interrupted"]
    rates = [max(by_part) for line in lines if (by_part := _rates(line))] or [math.nan]
    remedy = None
    if not finished:
        cause = f"the run was interrupted at step {steps}, before its budget was spent"
    elif rates == sorted(rates) and len(rates) > 1 and rates[-1] > rates[-2]:
        cause = f"the run ended inside its warm-up, at step {steps}: the learning rate had come to {rates[-1]:.1e} and "
        cause += "was still rising"
    elif steps < FEW_STEPS:
        cause = f"the run made only {counted(steps, 'step')}"
    elif max(rates) < LOW_RATE:
        cause = f"the learning rate was never above {max(rates):.1e}"
        remedy = "Train anew with a larger one, for example --train.lr 1e-3 --train.flow_lr 1e-3."
    elif too_few_data := _too_few_data(run, recipe, lines, baseline):
        cause, remedy = too_few_data
    else:
        cause = f"the budget of {steps} steps, {seconds:.0f} seconds, is too small"
    return f"Likely cause: {cause}. {remedy or _how_to_go_on(run, recipe, steps, seconds, finished)}"


def _rates(line: Mapping) -> list[float]:
    return [value for name, value in line.items() if name.endswith("_lr") and isinstance(value, float)]


def _too_few_data(run: Path, recipe: Recipe, lines: Sequence[Mapping], baseline: float) -> tuple[str, str] | None:
    """The cause and remedy where training beats the baseline, and validation does not."""
    trained, validated = ([line for line in lines if name in line] for name in ("nelbo", "valid_nelbo"))
    if not trained or not validated:
        return None
    best, saves_best = min(validated, key=lambda line: line["valid_nelbo"]), recipe.train.final == "best"
    training, validation = trained[-1]["nelbo"], (best if saves_best else validated[-1])["valid_nelbo"]
    if not training < baseline <= validation:
        return None
    remedy = "More examples would do, or a smaller network"
    if not saves_best:
        remedy += f"; {run / 'best'} holds the model of the best validation, of step {best['step']}"
    of = "the best validation" if saves_best else "validation"
    cause = f"too few data for this model: the training NELBO is {training:.2f}, that of {of} {validation:.2f}"
    return cause, f"{remedy}."


def _how_to_go_on(run: Path, recipe: Recipe, steps: int, seconds: float, finished: bool) -> str:
    """The command that continues, with a larger budget where this one was spent."""
    budget: dict[str, float] = {}
    if finished:
        more = max(4 * steps, ENOUGH_STEPS)
        longer = math.ceil(seconds * min(more / max(steps, 1), MOST_MORE))
        budget = {"train.steps": more} if steps >= recipe.train.steps else {}
        budget |= {"train.seconds": longer} if longer > recipe.train.seconds else {}
    if any(isinstance(table, Mapping) and table.get("name") == GIVEN for table in recipe.values()):
        changes = ", ".join(f"{key}={value}" for key, value in budget.items())
        return f"Go on in Python: indm.train(…, resume=True){changes and f', with {changes}'}."
    flags = [word for key, value in budget.items() for word in (f"--{key}", str(value))]
    return f"Go on with: {shlex.join(['indm', 'train', str(run), '--resume', *flags])}"


def conclusions_of_translation(distance: float, levels: int | None, runs: Sequence[Path]) -> list[str]:
    """What says that the models in ``runs`` have hardly learned, a line for each finding; none where all is well.

    A model is judged by the evaluation in its run folder; one without by ``distance``, and by whether its training was
    one of few steps. ``distance`` is that of results from their sources, RMS; of vectors (``levels`` None) it says
    nothing.
    """
    evaluations = {run: current_evaluation(run) for run in dict.fromkeys(runs)}
    by_run = {run: _judged(run, evaluation) for run, evaluation in evaluations.items()}
    lines = []
    if levels is not None and distance < NEAR_SOURCE * levels:
        lines = [
            f"The models translate every picture almost into itself: results are {distance:.1f} of {levels} grey "
            "levels from their sources."
        ]
        by_run = {run: line or advice(run) for run, line in by_run.items()}
        for run in (run for run, evaluation in evaluations.items() if evaluation is None):
            command = ["indm", "evaluate", str(run), *(["--overwrite"] if (run / "evaluation.json").exists() else [])]
            by_run[run] = f"See whether the model has learned its data: {shlex.join(command)}\n{by_run[run]}"
    return lines + [f"{run}: {part}" for run, line in by_run.items() for part in line.splitlines()]


def _judged(run: Path, evaluation: dict | None) -> str:
    """What says that the model of ``run`` has hardly learned; "" where nothing does."""
    if evaluation is not None:
        return "" if learned(evaluation) or _noise_of_data(run) else conclusion(run, evaluation)
    steps = next((line["step"] for line in reversed(read_metrics(run))), FEW_STEPS)
    return f"The model has hardly learned. {advice(run)}" if steps < FEW_STEPS else ""
