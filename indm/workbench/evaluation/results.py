"""The evaluation of a run: computed, written, read, and compared by example."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jaxtyping import Float, Int
from torch import Tensor

from indm.checks import brief
from indm.conditions import Condition
from indm.evaluation.evaluate import evaluate
from indm.evaluation.measures import NLL, Bound, Measure, SamplerBound, WeightedNLL
from indm.evaluation.report import Report
from indm.evaluation.statistics import mean_and_error
from indm.files import untrusted
from indm.names import name_of
from indm.workbench.data.base import SPLITS, Data, stack
from indm.workbench.data.images import count_unreadable
from indm.workbench.evaluation.baselines import baselines
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Evaluation
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import EVALUATION_LOCK, by_main_process, on_cpu, run_lock
from indm.workbench.runs.folder import data_of, fitted_to, open_model, read_metrics, recipe_of
from indm.workbench.runs.provenance import (
    provenance,
    trained_on_others,
    warn_of_other_splits,
    weights_hash,
)


def evaluate_run(
    run: Path, changes: dict | None = None, *, data_table: dict | None = None, progress: bool = True
) -> dict:
    """The likelihood of held-out data under a run's model, with baselines, see :func:`indm.evaluate`.

    ``changes`` override the recipe's ``[evaluate]``, and ``data_table`` replaces its ``[data]``.
    Other files than those of the training are used whole, unless ``changes`` name a split.

    The result is written to ``evaluation.json``, and nats by example to ``evaluation.npz``, but
    nothing after Ctrl-C. If several processes were launched, each computes its share.

    Raises:
        ValueError: the split has fewer than two examples, an option is out of range, or another
            process evaluates the same run.
    """
    PartialState(cpu=on_cpu())
    recipe = recipe_of(run)
    with ExitStack() as held:
        by_main_process(lambda: held.enter_context(run_lock(run, EVALUATION_LOCK)))
        return _evaluated(run, recipe, changes or {}, data_table, progress)


def _evaluated(
    run: Path, recipe: Recipe, changes: dict, data_table: dict | None, progress: bool
) -> dict:
    """See :func:`evaluate_run`."""
    processes = PartialState()
    is_main = processes.is_main_process
    model = open_model(run)
    options = replace(recipe.evaluate, **changes)
    data, table, is_other = _data_for(run, recipe, model, data_table)
    is_whole = is_other and "split" not in changes
    splits = SPLITS if is_whole else (options.split,)
    changed = is_main and not is_whole and warn_of_other_splits(run, data)
    if is_main:
        _warn_of_noise(recipe.train.initial_noise)
    raw, c, groups = _examples_of(data, splits, options.examples, model.condition)
    found = evaluate(
        model,
        raw,
        measures_of(options),
        c=c,
        groups=groups,
        eps=options.eps,
        repeats=options.repeats,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=progress and is_main,
        distributed=processes.num_processes > 1,
    )
    more: dict[str, Any] = {"split": "all" if is_whole else options.split}
    if not is_main or found.report.interrupted:
        return found.report.content() | more
    nelbo, fitted = found.nats["nelbo"], _training_data(run, model) if is_whole else data
    more["baselines"], of_baselines = baselines(data, fitted, raw, nelbo, options.seed, groups)
    nats = found.nats | {f"baseline_{name}": values for name, values in of_baselines.items()}
    more |= _by_condition(nelbo, c, groups, model.condition)
    more |= {"unended": is_unended(run), "data": table, "data_changed": changed}
    more["unreadable_images"] = sum(count_unreadable(data.examples(part)) for part in splits)
    more["weights_sha256"] = weights = weights_hash(run)
    more["provenance"] = provenance(options.seed, {str(run): weights})
    more["entropy_nats"] = data.entropy
    replace(found, nats=nats).save(run, **more)
    return found.report.content() | more


def _warn_of_noise(deviation: float) -> None:
    """Warn that a bridge has learned noisy data."""
    if deviation:
        said = f"data with noise of deviation {deviation:g} (train.initial_noise)"
        warnings.warn(f"the model has learned {said}, not clean data", stacklevel=3)


def _training_data(run: Path, model: Any) -> Data | None:
    """The data of a run; None if they cannot be loaded."""
    try:
        return data_of(run, model)
    except (ValueError, OSError):
        return None


def _data_for(
    run: Path, recipe: Recipe, model: Any, data_table: dict | None
) -> tuple[Data, dict, bool]:
    """The data to evaluate, their table, and whether they are other files than the training's."""
    own = table = recipes.absolute(recipe)["data"]
    if data_table is not None:
        table = recipes.absolute({"data": fitted_to(model, data_table)})["data"]
    data = data_of(run, model, table)
    elsewhere = "path" in table and table["path"] != own.get("path")
    is_other = table["name"] != own["name"] or bool(trained_on_others(run, data))
    return data, table, elsewhere and is_other


def _by_condition(nelbo: Tensor, c: Tensor | None, groups: Any, condition: Condition) -> dict:
    """The name of the condition, and the NELBO of each class, if there are any."""
    if c is None:
        return {}
    named = {"condition": name_of("condition", type(condition))}
    if not condition.is_class:
        return named
    return named | {"classes": per_class(nelbo, c, condition.labels, groups)}


def _examples_of(
    data: Data, splits: Sequence[str], n: int, condition: Condition
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The first ``n`` examples of these splits, their conditions and their groups, if any."""
    raw = torch.cat([stack(data.examples(part), n) for part in splits])[:n]
    c = groups = None
    if not condition.is_none:
        c = torch.cat([data.rows(condition, part) for part in splits])[:n]
    if data.groups:
        groups = torch.cat([data.groups[part] for part in splits])[:n]
    return raw, c, groups


def measures_of(options: Evaluation) -> list[Measure]:
    """The measures that the recipe's ``[evaluate]`` asks for."""
    solver: dict[str, Any] = {
        "probes": options.probes,
        "nll_error": options.nll_error,
        "steps": options.steps,
    }
    measures: list[Measure] = [Bound(times=options.times)]
    if options.nll_examples:
        mean: dict[str, Any] = {"each": options.each, "mean_error": options.mean_error}
        measures.append(NLL(examples=options.nll_examples, **mean, **solver))
    if options.draws:
        measures.append(WeightedNLL(examples=options.iw_examples, draws=options.draws, **solver))
    if options.ancestral:
        measures.append(SamplerBound(steps=options.ancestral, times=options.times))
    return measures


def is_unended(run: Path) -> bool:
    """Whether the model of a run is from a checkpoint, because the run has not ended."""
    log, summary = read_metrics(run), run / "summary.json"
    steps = untrusted.json_object(summary).get("steps", 0) if summary.exists() else 0
    return bool(log) and steps < log[-1]["step"]


def per_class(
    nats: Float[Tensor, " n"],
    c: Int[Tensor, " n"],
    labels: Sequence[str],
    groups: Int[Tensor, " n"] | None = None,
) -> dict[str, dict[str, float]]:
    """The mean of the nats of each class with its error, for at least two examples or groups."""
    classes = {}
    for number, label in enumerate(labels):
        rows = c == number
        of_class = None if groups is None else groups[rows]
        if len(nats[rows] if of_class is None else of_class.unique()) > 1:
            mean, error = mean_and_error(nats[rows], of_class)
            classes[label] = {"images": int(rows.sum()), "nats": mean, "nats_standard_error": error}
    return classes


def read_evaluation(folder: Path) -> dict:
    """The content of ``evaluation.json`` of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} has not been evaluated: run 'indm evaluate {folder}' first"
        )
    return untrusted.json_object(file)


def check_same_examples(evaluations: Mapping[Path, dict]) -> None:
    """ValueError unless runs were evaluated on the same examples, with the same draws and steps.

    Paths may differ, and so may likelihoods that only one run has.
    """
    (baseline, first), *following = evaluations.items()
    report = Report.read(first)
    for folder, result in following:
        read, own = Report.read(result), result | {"data": recipes.without_paths(result["data"])}
        others = first | {"data": recipes.without_paths(first["data"])}
        pairs = {key: (own[key], others[key]) for key in ("split", "data")}
        for kind in [kind for kind in read.measured if kind in report.measured]:
            title, other_title = read.measured[kind].title, report.measured[kind].title
            pairs["measure"] = title, other_title
            pairs[f"examples of the {title}"] = read.images[kind], report.images[kind]
        pairs["examples_sha256"] = read.examples_sha256, report.examples_sha256
        for key, (value, other) in pairs.items():
            if value != other:
                what = "evaluated on the same examples with the same options"
                got = f"the {key} {brief(value)} and {brief(other)}"
                raise ValueError(f"{folder} and {baseline} must be {what}, got {got}")
