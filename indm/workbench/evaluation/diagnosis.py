"""Whether a model learned its data, in plain sentences: better or worse than the baselines, why, and how to go on."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from indm.files import untrusted
from indm.names import GIVEN
from indm.workbench.evaluation.results import number_key
from indm.workbench.recipes.options import ENOUGH_STEPS
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import read_metrics, recipe_of

MOST_MORE = 10  # times the seconds of a run, in the command that continues it
LOW_RATE = 1e-5  # a learning rate that hardly trains
REQUIRED_BASELINES = ("uniform", "gaussian")  # a model that is no better than these has not learned its data
BETTER, LEVEL, WORSE = "better than", "within two standard errors of", "worse than"


def conclusion(run: Path, result: Mapping) -> str:
    """How the model of ``run`` compares with the baselines of its evaluation ``result``, in one line; "" without any.

    Where it is no better than uniform noise and a Gaussian, also the likely cause, and the command that continues.
    """
    unit, rows = number_key(result), result.get("baselines", {})
    verdicts = {}
    for key, row in rows.items():
        less, error = row["nelbo_difference"][unit], row["nelbo_difference"][f"{unit}_standard_error"]
        if error is not None:
            verdicts[key] = LEVEL if abs(less) <= 2 * error else BETTER if less < 0 else WORSE
    if not verdicts:
        return ""
    failed = [key for key in REQUIRED_BASELINES if verdicts.get(key, BETTER) != BETTER]
    model = f"The model ({result['nelbo']['with_reconstruction'][unit]:.2f} {result['unit']})"
    recipe = recipe_of(run) if failed else None
    if recipe is not None and (noise := recipe.train.initial_noise):
        return f"{model} has learned data with noise of deviation {noise:g} (train.initial_noise), not clean ones."
    by_value = sorted(verdicts, key=lambda key: rows[key][unit])
    parts = []
    for verdict in (BETTER, LEVEL, WORSE):
        if names := [f"{rows[key]['name']} ({rows[key][unit]:.2f})" for key in by_value if verdicts[key] == verdict]:
            parts.append(f"{verdict} {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}")
    *first, last = parts
    sentence = f"{model} is {', '.join(first)}{', but ' if first else ''}{last}."
    if recipe is None:
        return sentence
    if "unended_at_step" in result:
        return f"{sentence} Likely cause: its training has not ended."
    if result["data_changed"] or result["data"]["name"] != recipe.data.name:
        return f"{sentence} Likely cause: these are not the data that it was trained on."
    return f"{sentence} {advice(run, rows['gaussian'][unit])}".rstrip()


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
    by_part = [[line[key] for key in line if key.endswith("_lr")] for line in lines]
    rates = [max(values) for values in by_part if values] or [math.nan]
    trained, validated = ([line[name] for line in lines if name in line] for name in ("nelbo", "valid_nelbo"))
    training = trained[-1] if trained else math.nan
    validation = math.nan if not validated else min(validated) if recipe.train.final == "best" else validated[-1]
    remedy = _how_to_go_on(run, recipe, steps, seconds, finished)
    if not finished:
        cause = f"the run was interrupted at step {steps}, before its budget was spent"
    elif rates == sorted(rates) and len(rates) > 1 and rates[-1] > rates[-2]:
        cause = f"the run ended inside its warm-up, at step {steps}, with a learning rate of {rates[-1]:.1e}"
    elif max(rates) < LOW_RATE:
        cause = f"the learning rate was never above {max(rates):.1e}"
        remedy = "Train anew with a larger one, for example --train.lr 1e-3 --train.flow_lr 1e-3."
    elif training < baseline <= validation:
        numbers = f"the training NELBO is {training:.2f}, that of validation {validation:.2f}"
        cause, remedy = f"too few data for this model: {numbers}", "More examples would do, or a smaller network."
    else:
        cause = f"the budget of {steps} steps, {seconds:.0f} seconds, is too small"
    return f"Likely cause: {cause}. {remedy}"


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
