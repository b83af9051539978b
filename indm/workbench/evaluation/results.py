"""The evaluation of a run: written into its folder, read, compared by example, shown as a table, and judged."""

import hashlib
import math
import shlex
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
from indm.names import GIVEN, name_of
from indm.ode import MOST
from indm.workbench.data.base import stack
from indm.workbench.data.images import count_unreadable
from indm.workbench.evaluation.baselines import baselines
from indm.workbench.evaluation.likelihood import evaluate
from indm.workbench.evaluation.measures import NLL, Bound, Measure, SamplerBound, WeightedNLL
from indm.workbench.evaluation.statistics import Difference, mean_and_error, paired_by_examples
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ENOUGH_STEPS, Evaluation
from indm.workbench.recipes.recipe import Recipe, literal
from indm.workbench.runs.devices import on_cpu
from indm.workbench.runs.folder import data_of, open_model, read_metrics, recipe_of
from indm.workbench.runs.provenance import provenance, warn_of_other_splits, weights_hash

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}  # that belong to a kind's name
ENDS = ("", "_standard_error", "_estimator_noise")  # of the keys of one number
MOST_MORE = 10  # times the seconds of a run, in the command that continues it
LOW_RATE = 1e-5  # a learning rate that hardly trains
REQUIRED_BASELINES = ("uniform", "gaussian")  # a model that is no better than these has not learned its data
BETTER, LEVEL, WORSE = "better than", "within two standard errors of", "worse than"
REQUIRED = ("nelbo", "images", "data", "split", "unit", "dims", "dequantization", "weights_sha256")
Row = tuple[str, ...]
Evaluated = tuple[dict[str, Any], dict[str, np.ndarray]]  # evaluation.json and evaluation.npz


def evaluate_run(
    run: Path, changes: dict | None = None, *, data_table: dict | None = None, progress: bool = True
) -> dict:
    """The likelihood of held-out data under a run's model, see :func:`indm.evaluate`, beside its baselines.

    ``changes`` override the recipe's ``[evaluate]``, and ``data_table`` replaces its ``[data]``. Writes
    ``evaluation.json``, which is returned, and per-example nats to ``evaluation.npz``. Where several processes were
    launched, each does its share; the main one writes.

    Raises:
        ValueError: the split holds fewer than two examples, or an option is out of range.
    """
    processes = PartialState(cpu=on_cpu())
    recipe = recipe_of(run)
    tables = recipes.absolute(recipe | {"data": data_table or recipe.data.table()})
    model = open_model(run)
    options = replace(recipe.evaluate, **(changes or {}))
    data = data_of(run, model, tables["data"])
    distributed, main = processes.num_processes > 1, processes.is_main_process
    changed = main and warn_of_other_splits(run, data)
    held_out, split = getattr(data, options.split), options.split
    if len(held_out) < 2:
        raise ValueError(
            f"the {split} split of {run} must hold at least 2 examples for standard errors, it holds {len(held_out)}; "
            "another --split would do, or a run on more data"
        )
    raw = stack(held_out, options.examples)
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
    weights = weights_hash(run)
    result |= {
        "unended": is_unended(run),
        "data": tables["data"],
        "split": split,
        "data_changed": changed,
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


def is_unended(run: Path) -> bool:
    """Whether a run has a log, and no summary of its last step: its model is that of a checkpoint."""
    log, summary = read_metrics(run), run / "summary.json"
    steps = untrusted.json_object(summary).get("steps", 0) if summary.exists() else 0
    return bool(log) and steps < log[-1]["step"]


def per_class(
    nats: Float[Tensor, " n"], c: Int[Tensor, " n"], labels: Sequence[str], groups: Int[Tensor, " n"] | None = None
) -> dict[str, dict[str, float]]:
    """Of each class of two examples, or groups, or more: their number, and the mean of their nats with its error."""
    classes = {}
    for number, label in enumerate(labels):
        rows = c == number
        of_class = None if groups is None else groups[rows]
        if len(nats[rows] if of_class is None else of_class.unique()) > 1:
            mean, error = mean_and_error(nats[rows], of_class)
            classes[label] = {"images": int(rows.sum()), "nats": mean, "nats_standard_error": error}
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


def read_both(folder: Path) -> Evaluated:
    """The report and the nats of an evaluated run."""
    return untrusted.json_object(folder / "evaluation.json"), untrusted.arrays(folder / "evaluation.npz")


def per_example(evaluated: Evaluated, kind: str = "nelbo") -> Float[np.ndarray, " n"]:
    """A likelihood of every example in the unit of the run; a coarse one with the mean of the finest level."""
    result, nats = evaluated
    if kind in nats:
        return nats[kind] / nats_of_unit(result)
    coarse = nats[f"{kind}_coarse"]
    return (coarse + result[kind]["with_reconstruction"]["nats"] - coarse.mean()) / nats_of_unit(result)


def difference(pairs: Sequence[tuple[Path, Path]], kind: str = "nelbo") -> Difference:
    """The first less the second of each pair of runs, one pair for each seed, all evaluated on the same examples."""
    evaluated = [(read_both(one), read_both(other)) for one, other in pairs]
    first, second = np.stack([[per_example(run, kind) for run in pair] for pair in evaluated], axis=1)
    added = math.hypot(*(added_error(*pair, kind) for pair in evaluated)) / len(pairs)
    groups = evaluated[0][0][1].get("groups")
    return paired_by_examples(first, second, None if groups is None else groups[: first.shape[1]], added)


def added_error(one: Evaluated, other: Evaluated, kind: str) -> float:
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
    (baseline, first), *following = evaluations.items()
    for folder, result in following:
        both = [kind for kind in KINDS if kind in result and kind in first]
        data = [recipes.without_paths(one["data"]) for one in (result, first)]
        hashes = {one.get("examples_sha256") for one in (result, first)} - {None}
        counts = [[one["images"][kind] for kind in both] for one in (result, first)]
        if result["split"] != first["split"] or data[0] != data[1] or len(hashes) > 1 or counts[0] != counts[1]:
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


def _examples(result: dict) -> str:
    """What a run was evaluated on, in words."""
    options = [f"{key} = {literal(value)}" for key, value in result["data"].items() if key != "name"]
    data = " with ".join([result["data"]["name"], *([", ".join(options)] if options else [])])
    content = f" (SHA-256 {sha256[:8]})" if (sha256 := result.get("examples_sha256")) else ""
    return f"{' and '.join(_counts(result))} of the {result['split']} split of {brief(data)}{content}"


def _counts(result: dict) -> list[str]:
    """How many examples each likelihood is of; that of few steps has those of the NELBO."""
    counts = {KINDS[kind].split()[0]: n for kind, n in result["images"].items() if kind != "ancestral"}
    return [f"{n} for the {name}" for name, n in counts.items() if n]


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    lines = [table(rows), f"{result['split']} split: {', '.join(_counts(result))}; ε = {result['eps']:g}"]
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
    if result.get("unended"):
        lines.append("weights of a checkpoint: the training has not ended")
    lines += of_levels(result) + of_classes(result) + unconverged(result)
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
    if "levels" not in (nll := result.get("nll", {})):
        return []
    first, *finer = nll["levels"]
    counts = [f"{level['estimates']} of them in {level['steps'] or 'as many as --nll-error needs'}" for level in finer]
    counts = [f"{first['estimates']} estimates in {first['steps']} steps", *counts]
    return [f"NLL: {', '.join(counts)}, which adds ± {nll['added_error'][number_key(result)]:.1g} to the mean"]


def of_classes(result: Mapping) -> list[str]:
    """The NELBO of each class, where the model is one of p(x|class)."""
    if not result.get("classes"):
        return []
    rows: list[Row] = [("class", "examples", f"NELBO, {result['unit']}", "± standard error")]
    for label, row in result["classes"].items():
        numbers = (row[key] / nats_of_unit(result) for key in ("nats", "nats_standard_error"))
        rows.append((label, str(row["images"]), *map(_shown, numbers)))
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


# ── Judgement ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
    if result.get("unended"):
        return f"{sentence} Likely cause: its training has not ended."
    if result["data_changed"] or result["data"]["name"] != recipe.data.name:
        return f"{sentence} Likely cause: these are not the data that it was trained on."
    return f"{sentence} {advice(run, rows['gaussian'][unit])}".rstrip()


def advice(run: Path, baseline: float = -math.inf) -> str:
    """Why the model of ``run`` has hardly learned, and the command that continues, from what the run's folder says.

    ``baseline`` is the likelihood that it should have reached, in the unit of the run. Nothing where the folder has no
    log of a training, as that of a converted run.
    """
    lines, summary = read_metrics(run), run / "summary.json"
    if not lines:
        return ""
    recipe, steps, seconds = recipe_of(run), lines[-1]["step"], lines[-1].get("seconds", 0.0)
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
