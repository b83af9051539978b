"""The evaluation of a run: written into its folder, read, shown as a table, and compared example by example."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from jaxtyping import Float, Int
from torch import Tensor

from indm.checks import brief
from indm.files import atomic, untrusted
from indm.names import name_of
from indm.ode import MOST
from indm.workbench.data.base import stack
from indm.workbench.data.image_files import count_unreadable
from indm.workbench.evaluation.baselines import baselines
from indm.workbench.evaluation.likelihood import evaluate
from indm.workbench.evaluation.measures import NLL, Bound, Measure, SamplerBound, WeightedNLL
from indm.workbench.evaluation.statistics import Difference, mean_and_error, paired_by_examples
from indm.workbench.recipes import paths
from indm.workbench.recipes.options import Evaluation
from indm.workbench.recipes.recipe import literal
from indm.workbench.runs.devices import on_cpu
from indm.workbench.runs.folder import data_of, open_model, read_metrics, recipe_of
from indm.workbench.runs.provenance import other_splits, provenance, warn_of_other_splits, weights_hash
from indm.workbench.training.checkpoints import numbered

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}  # that belong to a kind's name
ENDS = ("", "_standard_error", "_estimator_noise")  # of the keys of one number
REQUIRED = ("nelbo", "images", "data", "split", "unit", "dims", "dequantization", "weights_sha256")
Row = tuple[str, ...]
Evaluated = tuple[dict[str, Any], dict[str, np.ndarray]]  # evaluation.json and evaluation.npz


def evaluate_run(
    run: Path, changes: dict | None = None, *, data_table: dict | None = None, progress: bool = True
) -> dict:
    """The likelihood of held-out data under a run's model, see :func:`indm.evaluate`.

    ``changes`` override the recipe's ``[evaluate]``, and ``data_table`` replaces its ``[data]``. Writes
    ``evaluation.json``, which is returned, and per-example nats to ``evaluation.npz``. Both have the baselines of
    :mod:`indm.workbench.evaluation.baselines`, too. Where several processes were launched, each does its share; the
    main one writes.

    Raises:
        ValueError: the split holds fewer than two examples, or an option is out of range.
    """
    processes = PartialState(cpu=on_cpu())
    recipe = recipe_of(run)
    tables = paths.absolute(recipe | {"data": data_table or recipe.data.table()})
    model = open_model(run)
    step = step_of_unended(run)
    options = replace(recipe.evaluate, **(changes or {}))
    data = data_of(run, model, tables["data"])
    if processes.is_main_process:
        warn_of_other_splits(run, data)
    held_out, split = getattr(data, options.split), options.split
    if len(held_out) < 2:
        raise ValueError(
            f"the {split} split of {run} must hold at least 2 examples for standard errors, it holds {len(held_out)}; "
            "another --split would do, or a run on more data"
        )
    raw = stack(held_out, options.examples)
    distributed, main = processes.num_processes > 1, processes.is_main_process
    c = None if model.condition.is_none else model.condition.rows_of(data, split)[: len(raw)]
    groups = data.groups[split][: len(raw)] if data.groups else None
    found = evaluate(
        model, raw, measures_of(options), c=c, groups=groups, eps=options.eps or None, repeats=options.repeats,
        batch_size=options.batch_size, seed=options.seed, progress=progress and main, distributed=distributed,
    )  # fmt: skip
    result, nats = found.report, dict(found.nats)
    if not main:
        return result
    if c is not None:
        result["condition"] = name_of("condition", type(model.condition))
        if model.condition.is_class:
            result["classes"] = per_class(nats["nelbo"], c, model.condition.labels, groups)
    result["baselines"], of_baselines = baselines(data, raw, nats["nelbo"], seed=options.seed, groups=groups)
    nats |= {f"baseline_{name}": values for name, values in of_baselines.items()}
    if groups is not None:
        result["groups"], nats["groups"] = len(groups.unique()), groups
    if data.fingerprint:  # else its name and options decide the examples
        result["examples_sha256"] = hashlib.sha256(raw.flatten().numpy().data).hexdigest()
    if step is not None:
        result["unended_at_step"] = step
    weights = weights_hash(run)
    result |= {
        "data": tables["data"],
        "split": split,
        "data_changed": other_splits(run, data) is not None,
        "unreadable_images": count_unreadable(held_out),
        "weights_sha256": weights,
        "provenance": provenance(options.seed, {str(run): weights}),
        "entropy_nats": data.entropy,
        "unit": "bits/dim" if data.scaling.levels else "nats",
    }
    arrays, report = run / "evaluation.npz", run / "evaluation.json"
    write_arrays = atomic.arrays_into({name: values.numpy() for name, values in nats.items()})
    # The report is removed first and written last: where it is, the arrays beside it are of the same evaluation.
    atomic.together({arrays: write_arrays, report: atomic.json_into(result)}, [report])
    return result


def measures_of(options: Evaluation) -> list[Measure]:
    """What the recipe's ``[evaluate]`` asks for."""
    solver: dict[str, Any] = {"probes": options.probes, "nll_error": options.nll_error, "steps": options.steps or None}
    measures: list[Measure] = [Bound(times=options.times)]
    if options.nll_examples:
        mean_error = options.mean_error or None
        measures.append(NLL(examples=options.nll_examples, each=options.each, mean_error=mean_error, **solver))
    if options.draws:
        measures.append(WeightedNLL(examples=options.iw_examples, draws=options.draws, **solver))
    if options.ancestral:
        measures.append(SamplerBound(steps=options.ancestral, times=options.times))
    return measures


def step_of_unended(run: Path) -> int | None:
    """The step of the last checkpoint of a run whose training has not ended; None of one that has, or has no log."""
    states, summary = numbered(run), run / "summary.json"
    step = int(states[0].stem) if states else 0
    ended = untrusted.json_object(summary).get("steps", 0) >= step if summary.exists() else not read_metrics(run)
    return None if ended else step


def per_class(
    nats: Float[Tensor, " n"], c: Int[Tensor, " n"], labels: Sequence[str], groups: Int[Tensor, " n"] | None = None
) -> dict[str, dict[str, float]]:
    """Of each class of two examples, or groups, or more: their number, and the mean of their nats with its standard
    error.

    >>> import torch
    >>> found = per_class(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.zeros(4), ["a"], torch.tensor([0, 0, 1, 1]))
    >>> found["a"]["nats_standard_error"]  # of the two means 1 and 3
    1.0
    """
    classes = {}
    for number, label in enumerate(labels):
        rows = c == number
        own, own_groups = nats[rows], None if groups is None else groups[rows]
        if len(own if own_groups is None else own_groups.unique()) > 1:
            mean, error = mean_and_error(own, own_groups)
            classes[label] = {"images": len(own), "nats": mean, "nats_standard_error": error}
    return classes


def read_evaluation(folder: Path) -> dict:
    """What :func:`evaluate_run` wrote into ``evaluation.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or something else.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} has not been evaluated: run 'indm evaluate {folder}' first")
    result = untrusted.json_object(file)
    if missing := [name for name in REQUIRED if name not in result]:
        raise ValueError(f"{file} is not an evaluation, without {missing[0]}; run 'indm evaluate {folder} --overwrite'")
    return result


def per_example(folder: Path, kind: str = "nelbo") -> Float[np.ndarray, " n"]:
    """NELBO or NLL of every example that a run was evaluated on, in bits/dim or nats as the run reports it."""
    return _values(*_evaluated(folder), kind)


def _evaluated(folder: Path) -> Evaluated:
    return untrusted.json_object(folder / "evaluation.json"), untrusted.arrays(folder / "evaluation.npz")


def _values(result: Mapping, nats: Mapping[str, np.ndarray], kind: str) -> Float[np.ndarray, " n"]:
    """A likelihood of every example in the unit of the run; a coarse one with the mean of the finest level."""
    if kind in nats:
        return nats[kind] / nats_of_unit(result)
    coarse = nats[f"{kind}_coarse"]
    return (coarse + result[kind]["with_reconstruction"]["nats"] - coarse.mean()) / nats_of_unit(result)


def difference(pairs: Sequence[tuple[Path, Path]], kind: str = "nelbo") -> Difference:
    """The first less the second of each pair of runs, one pair for each seed, all evaluated on the same examples."""
    evaluated = [(_evaluated(one), _evaluated(other)) for one, other in pairs]
    first, second = np.stack([[_values(*run, kind) for run in pair] for pair in evaluated], axis=1)
    added = math.hypot(*(_added_error(*pair, kind) for pair in evaluated)) / len(pairs)
    groups = evaluated[0][0][1].get("groups")
    return paired_by_examples(first, second, None if groups is None else groups[: first.shape[1]], added)


def _added_error(one: Evaluated, other: Evaluated, kind: str) -> float:
    """The error that corrections of coarse solves add to the mean difference of two runs, in their unit.

    Both made the same draws. Where they have the same levels, the estimates that both corrected make their corrections
    depend on each other, so that the error is below that of independent ones.
    """
    numbers, nats = [result[kind] for result, _ in (one, other)], [values for _, values in (one, other)]
    variance = sum(number.get("added_error", {}).get("nats", 0.0) ** 2 for number in numbers)
    steps = [[level["steps"] for level in number.get("levels", ())] for number in numbers]
    levels = range(1, len(steps[0])) if steps[0] == steps[1] else ()
    for level in levels:
        n, name = numbers[0]["levels"][0]["estimates"], f"{kind}_level_{level}"
        one_of, other_of = (values[f"{name}_estimates"] for values in nats)
        of_both = np.intersect1d(one_of, other_of, return_indices=True)[1:]
        if len(of_both[0]) > 1:
            usual, sizes = [n - number["certain"] for number in numbers], [len(values[name]) for values in nats]
            differences = [values[name][rows] for values, rows in zip(nats, of_both, strict=True)]
            each = math.prod(usual) / n**2 * len(of_both[0]) / math.prod(sizes) * (1 - max(sizes) / max(usual))
            variance -= 2 * each * np.cov(differences[0], differences[1])[0, 1]
    return math.sqrt(max(variance, 0.0)) / nats_of_unit(one[0])


def check_same_examples(evaluations: Mapping[Path, dict]) -> None:
    """ValueError where runs were not evaluated on the same examples.

    A likelihood that only one has does not count. Data may have been moved: paths may differ, the examples must not.
    """
    baseline, first = next(iter(evaluations.items()))
    for folder, result in evaluations.items():
        both = [kind for kind in KINDS if kind in result and kind in first]
        if (
            result["split"] != first["split"]
            or not _same_data(result, first)
            or any(result["images"][kind] != first["images"][kind] for kind in both)
        ):
            raise ValueError(
                f"{folder} and {baseline} were evaluated on different examples: {_examples(result)}, and "
                f"{_examples(first)}; only runs of the same data, evaluated with the same options, can be compared"
            )
        for kind, (key, _) in NUMBERS.items():
            if kind in both and result[kind][key] != first[kind][key]:
                option, numbers = "draws" if kind == "iw" else kind, (result[kind][key], first[kind][key])
                raise ValueError(
                    f"{folder} and {baseline} have the {KINDS[kind]} of {numbers[0]} and {numbers[1]} {key}: evaluate "
                    f"both with the same --{option}"
                )


def _same_data(one: dict, other: dict) -> bool:
    """Whether two evaluations have the same options of data and, where both say what they read, the same examples."""
    options = [paths.without_paths(result["data"]) for result in (one, other)]
    hashes = [result.get("examples_sha256") for result in (one, other)]
    return options[0] == options[1] and (None in hashes or hashes[0] == hashes[1])


def _examples(result: dict) -> str:
    """What a run was evaluated on, in words."""
    options = [f"{key} = {literal(value)}" for key, value in result["data"].items() if key != "name"]
    data = " with ".join([result["data"]["name"], *([", ".join(options)] if options else [])])
    counts = " and ".join(f"{n} for the {KINDS[kind]}" for kind, n in _counts(result))
    content = f" (SHA-256 {sha256[:8]})" if (sha256 := result.get("examples_sha256")) else ""
    return f"{counts} of the {result['split']} split of {brief(data)}{content}"


def _counts(result: dict) -> list[tuple[str, int]]:
    """How many examples each likelihood is of; that of few steps has those of the NELBO."""
    return [(kind, n) for kind, n in result["images"].items() if n and kind != "ancestral"]


def likelihood_table(result: dict) -> str:
    """An evaluation as text: NELBO and NLL, each with and without the reconstruction term, and the baselines."""
    key = number_key(result)
    rows: list[Row] = [("", result["unit"], "± standard error", "estimator noise", "solver error")]
    for kind, name in KINDS.items():
        if kind in NUMBERS and kind in result:
            key_of, letter = NUMBERS[kind]
            name += f", {letter}{result[kind][key_of]}"
        for part, remark in (("with", ""), ("without", " without reconstruction (no likelihood)")):
            if f"{part}_reconstruction" in result.get(kind, {}):
                values = result[kind][f"{part}_reconstruction"]
                error = result[kind].get("solver_error")  # which the NELBO has not
                cells = *(_shown(values[key + end]) for end in ENDS), f"{error[key]:.1g}" if error else ""
                rows.append((name + remark, *cells))
    for row in result.get("baselines", {}).values():
        rows.append((f"baseline: {baseline_name(row)}", *(_shown(row[key + end]) for end in ENDS[:2]), "", ""))
    if result.get("entropy_nats") is not None:
        rows.append(("entropy of the data", f"{result['entropy_nats']:.4f}", "", "", ""))
    counts = ", ".join(f"{n} for the {KINDS[kind].split()[0]}" for kind, n in _counts(result))
    lines = [table(rows), f"{result['split']} split: {counts}; ε = {result['eps']:g}"]
    if result.get("groups") == 1:
        lines.append("standard errors are unknown: all examples are of one group, such as one photograph")
    elif "groups" in result:
        lines.append(f"standard errors are over {result['groups']} groups of examples that are alike")
    lines.append(f"dequantization: {result['dequantization']}")
    if "condition" in result:
        lines.append(f"condition: {result['condition']}; the model is one of p(x|c), and the baselines do not see c")
    both = [result[kind]["with_reconstruction"][key] for kind in ("nelbo", "nll") if kind in result]
    if len(both) == 2 and both[1] > both[0]:
        lines.append("The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it.")
    if "unended_at_step" in result:
        lines.append(f"weights of step {result['unended_at_step']:,}: the training has not ended")
    lines += of_levels(result)
    lines += of_classes(result) + unconverged(result)
    return "\n".join(lines + ([f"codes: {result['codes']}"] if "codes" in result else []))


def level_table(result: Mapping) -> list[str]:
    """Lines of text: the NELBO's score term by noise level, and its other terms."""
    keys = [number_key(result) + end for end in ENDS[:2]]
    rows: list[Row] = [("score term of the NELBO, σ/α", result["unit"], "± standard error")]
    for level in result["nelbo"]["by_level"]:
        rows.append((" to ".join(f"{end:.3g}" for end in level["noise"]), *(_shown(level[key]) for key in keys)))
    terms = [f"{name} {' ± '.join(_shown(row[key]) for key in keys)}" for name, row in result["nelbo"]["terms"].items()]
    return [table(rows), f"terms of the NELBO: {', '.join(terms)}"]


def _shown(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.4f}"


def of_levels(result: Mapping) -> list[str]:
    """How the mean NLL was made, where it is corrected by fine solves of a few estimates."""
    nll = result.get("nll", {})
    if "levels" not in nll:
        return []
    first, *finer = nll["levels"]
    counts = [f"{first['estimates']} estimates in {first['steps']} steps"]
    counts += [f"{level['estimates']} of them in {level['steps'] or 'as many as --nll-error needs'}" for level in finer]
    return [f"NLL: {', '.join(counts)}, which adds ± {nll['added_error'][number_key(result)]:.1g} to the mean"]


def of_classes(result: dict) -> list[str]:
    """The NELBO of each class, where the model is one of p(x|class)."""
    if not result.get("classes"):
        return []
    rows: list[Row] = [("class", "examples", f"NELBO, {result['unit']}", "± standard error")]
    for label, own in result["classes"].items():
        numbers = (own[key] / nats_of_unit(result) for key in ("nats", "nats_standard_error"))
        rows.append((label, str(own["images"]), *(f"{number:.4f}" for number in numbers)))
    return ["", table(rows), ""]


def unconverged(result: Mapping) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, name in KINDS.items():
        numbers = result.get(kind, {})
        if count := numbers.get("unconverged", 0):
            n, steps = result["images"][kind], numbers.get("steps") or MOST
            of = f"{numbers['levels'][-1]['estimates']} estimates" if "levels" in numbers else f"{n} examples"
            lines.append(
                f"The {name} has not converged: the solver's error may be above {numbers['nll_error']:g} bits/dim in "
                f"{count} of {of}, up to {numbers['solver_error']['largest_bits_per_dim']:.1g}, in {steps} steps; take "
                f"more, such as --steps {2 * steps}, or a larger --nll-error."
            )
    return lines


def baseline_name(row: Mapping) -> str:
    """What a table calls a baseline, see :func:`indm.workbench.evaluation.baselines.baselines`."""
    return f"{row['name']}, {row['detail']}" if "detail" in row else row["name"]


def number_key(result: Mapping) -> str:
    """The key of the numbers in the unit of an evaluation."""
    return "bits_per_dim" if result.get("unit") == "bits/dim" else "nats"


def nats_of_unit(result: Mapping) -> float:
    """Nats in one unit of an evaluation."""
    return result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0


def table(rows: Sequence[Row]) -> str:
    """Rows of cells as lines of text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
