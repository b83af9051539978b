"""The evaluation of a run: written into its folder, read, and compared by example."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
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

REQUIRED = (
    "nelbo",
    "images",
    "data",
    "split",
    "unit",
    "dims",
    "dequantization",
    "weights_sha256",
    "examples_sha256",
)


def evaluate_run(
    run: Path, changes: dict | None = None, *, data_table: dict | None = None, progress: bool = True
) -> dict:
    """The likelihood of held-out data under a run's model, see :func:`indm.evaluate`, beside its
    baselines.

    ``changes`` override the recipe's ``[evaluate]``, and ``data_table`` replaces its ``[data]``:
    files that the model was not trained on are used whole, unless ``changes`` name a split. Writes
    ``evaluation.json``, which is returned, and per-example nats to ``evaluation.npz``; after Ctrl-C
    it writes nothing. Where several processes were launched, each does its share; the main one
    writes.

    Raises:
        ValueError: the split holds fewer than two examples, an option is out of range, or another
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
    model = open_model(run)
    options = replace(recipe.evaluate, **changes)
    data, table, whole = _data_for(run, recipe, model, data_table)
    whole &= "split" not in changes
    main = processes.is_main_process
    changed = main and not whole and warn_of_other_splits(run, data)
    noise = recipe.train.initial_noise
    if main and noise:
        said = f"the model has learned data with noise of deviation {noise:g} (train.initial_noise)"
        warnings.warn(f"{said}, not clean data", stacklevel=2)
    splits = SPLITS if whole else (options.split,)
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
        progress=progress and main,
        distributed=processes.num_processes > 1,
    )
    more: dict[str, Any] = {"split": "all" if whole else options.split}
    if not main or found.report.interrupted:
        return found.report.content() | more
    nelbo = found.nats["nelbo"]
    fitted = None if whole else data
    if whole:
        with suppress(ValueError, OSError):  # the data of the training may not be at hand
            fitted = data_of(run, model)
    more["baselines"], of_baselines = baselines(data, fitted, raw, nelbo, options.seed, groups)
    nats = found.nats | {f"baseline_{name}": values for name, values in of_baselines.items()}
    weights = weights_hash(run)
    more |= _by_condition(nelbo, c, groups, model.condition)
    more |= {
        "unended": is_unended(run),
        "data": table,
        "data_changed": changed,
        "unreadable_images": sum(count_unreadable(data.examples(part)) for part in splits),
        "weights_sha256": weights,
        "provenance": provenance(options.seed, {str(run): weights}),
        "entropy_nats": data.entropy,
    }
    replace(found, nats=nats).save(run, **more)
    return found.report.content() | more


def _data_for(
    run: Path, recipe: Recipe, model: Any, data_table: dict | None
) -> tuple[Data, dict, bool]:
    """The data to evaluate on, their table, and whether they are files not trained on."""
    own = table = recipes.absolute(recipe)["data"]
    if data_table is not None:
        table = recipes.absolute({"data": fitted_to(model, data_table)})["data"]
    data = data_of(run, model, table)
    elsewhere = "path" in table and table["path"] != own.get("path")
    is_other = table["name"] != own["name"] or bool(trained_on_others(run, data))
    return data, table, elsewhere and is_other


def _by_condition(nelbo: Tensor, c: Tensor | None, groups: Any, condition: Condition) -> dict:
    """The name of a condition, and the NELBO of each class, if there are any."""
    if c is None:
        return {}
    named = {"condition": name_of("condition", type(condition))}
    if not condition.is_class:
        return named
    return named | {"classes": per_class(nelbo, c, condition.labels, groups)}


def _examples_of(
    data: Data, splits: Sequence[str], n: int, condition: Condition
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The first ``n`` examples of these splits, their conditions and their groups, if there are any.

    Raises:
        ValueError: there are fewer than two.
    """
    raw = torch.cat([stack(data.examples(part), n) for part in splits])[:n]
    if len(raw) < 2:
        raise ValueError(
            f"evaluate.split must have at least 2 examples for standard errors, {splits} has "
            f"{len(raw)}; take another split, or train on more data"
        )
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
        solved = NLL(
            examples=options.nll_examples,
            each=options.each,
            mean_error=options.mean_error,
            **solver,
        )
        measures.append(solved)
    if options.draws:
        measures.append(WeightedNLL(examples=options.iw_examples, draws=options.draws, **solver))
    if options.ancestral:
        measures.append(SamplerBound(steps=options.ancestral, times=options.times))
    return measures


def is_unended(run: Path) -> bool:
    """Whether a run has a log, and no summary of its last step: its model is from a checkpoint."""
    log, summary = read_metrics(run), run / "summary.json"
    steps = untrusted.json_object(summary).get("steps", 0) if summary.exists() else 0
    return bool(log) and steps < log[-1]["step"]


def per_class(
    nats: Float[Tensor, " n"],
    c: Int[Tensor, " n"],
    labels: Sequence[str],
    groups: Int[Tensor, " n"] | None = None,
) -> dict[str, dict[str, float]]:
    """For each class with at least two examples, or groups: their number, and the mean of their
    nats with its error.
    """
    classes = {}
    for number, label in enumerate(labels):
        rows = c == number
        of_class = None if groups is None else groups[rows]
        if len(nats[rows] if of_class is None else of_class.unique()) > 1:
            mean, error = mean_and_error(nats[rows], of_class)
            classes[label] = {"images": int(rows.sum()), "nats": mean, "nats_standard_error": error}
    return classes


def read_evaluation(folder: Path) -> dict:
    """The content of the ``evaluation.json`` that :func:`evaluate_run` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or something else.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} has not been evaluated: run 'indm evaluate {folder}' first"
        )
    result = untrusted.json_object(file)
    missing = [name for name in REQUIRED if name not in result]
    if missing:
        raise ValueError(
            f"{file} is not an evaluation, without {missing[0]}; evaluate {folder} anew"
        )
    return result


def check_same_examples(evaluations: Mapping[Path, dict]) -> None:
    """ValueError where runs were not evaluated on the same examples, with the same numbers of draws
    and steps; paths and likelihoods that only one has do not count.
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
                raise ValueError(
                    f"{folder} and {baseline} must be evaluated on the same examples with the same options, got the "
                    f"{key} {brief(value)} and {brief(other)}"
                )
