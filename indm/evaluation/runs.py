"""The likelihood of a run's held-out data, written into its folder."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from indm.conditions import rows_of_data
from indm.config import paths
from indm.config.parts import name_of
from indm.config.recipes import AnyTables
from indm.data.base import Data, stack
from indm.data.image_files import count_unreadable
from indm.evaluation.baselines import baselines
from indm.evaluation.likelihood import evaluate
from indm.files import atomic
from indm.runs.devices import on_cpu
from indm.runs.folder import data_of, open_model, recipe_of
from indm.runs.provenance import other_splits, provenance, warn_of_other_splits, weights_hash


def evaluate_run(
    run: Path, given: dict | None = None, *, data_table: dict | None = None, progress: bool = True
) -> dict:
    """The likelihood of held-out data under a run's model, see :func:`indm.evaluate`.

    ``given`` stands over the recipe's ``[evaluate]``, and ``data_table`` in place of its ``[data]``. Writes
    ``evaluation.json``, which is returned, and per-example nats to ``evaluation.npz``. Both have the baselines of
    :mod:`indm.evaluation.baselines`, too. Where several processes were launched, each does its share; the main one
    writes.
    """
    processes = PartialState(cpu=on_cpu())
    recipe = recipe_of(run)
    tables = paths.absolute(recipe | {"data": data_table or recipe["data"]})
    model = open_model(run)
    options = replace(recipe.evaluate, **(given or {}))
    data = data_of(run, model, tables["data"])
    if processes.is_main_process:
        warn_of_other_splits(run, data)
    if (count := len(getattr(data, options.split))) < 2:
        raise ValueError(
            f"the {options.split} split of {run} must hold at least 2 examples for standard errors, it holds {count}; "
            "another --split would do, or a run on more data"
        )
    settings = {key: value for key, value in vars(options).items() if key not in ("split", "examples")}
    settings |= {"steps": options.steps or None, "eps": options.eps or None}
    raw = stack(getattr(data, options.split), options.examples)
    distributed, main = processes.num_processes > 1, processes.is_main_process
    c = rows_of_data(model, data, options.split, len(raw))
    groups = data.groups[options.split][: len(raw)] if data.groups else None
    result, nats = evaluate(
        model, raw, c=c, groups=groups, progress=progress and main, distributed=distributed, **settings
    )
    if main:
        if c is not None:
            result["condition"] = name_of("condition", type(model.condition))
            if model.condition.is_class:
                result["classes"] = per_class(nats["nelbo"], c, model.condition.labels)
        result["baselines"], of_baselines = baselines(data, raw, nats["nelbo"], seed=options.seed, groups=groups)
        nats |= {f"baseline_{name}": values for name, values in of_baselines.items()}
        if groups is not None:
            result["groups"], nats["groups"] = len(groups.unique()), groups
        if data.fingerprint:  # else its name and options decide the examples
            result["examples_sha256"] = hashlib.sha256(raw.flatten().numpy().data).hexdigest()
        write_evaluation(run, result, nats, tables, data, options.split)
    return result


def per_class(nats: Tensor, c: Tensor, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each class: its examples, and the mean of their nats with its standard error."""
    classes = {}
    for number, label in enumerate(labels):
        own = nats[c == number]
        if len(own) > 1:
            error = (own.std() / math.sqrt(len(own))).item()
            classes[label] = {"images": len(own), "nats": own.mean().item(), "nats_standard_error": error}
    return classes


def write_evaluation(
    run: Path, result: dict, nats: dict[str, Tensor], tables: AnyTables, data: Data, split: str
) -> None:
    """Add to ``result`` what was evaluated, and write both."""
    weights = weights_hash(run)
    result |= {
        "data": tables["data"],
        "split": split,
        "data_changed": other_splits(run, data) is not None,
        "unreadable_images": count_unreadable(getattr(data, split)),
        "weights_sha256": weights,
        "provenance": provenance(result["seed"], {str(run): weights}),
        "entropy_nats": data.entropy,
        "unit": "bits/dim" if data.scaling.levels else "nats",
    }
    arrays, report = run / "evaluation.npz", run / "evaluation.json"
    write_arrays = atomic.arrays_into({name: values.numpy() for name, values in nats.items()})
    # The report is removed first and written last: where it is, the arrays beside it are of the same evaluation.
    atomic.together({arrays: write_arrays, report: atomic.json_into(result)}, [report])
