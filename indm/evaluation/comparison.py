"""``indm compare``: methods in one table, their paired differences from the first, and a picture."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from indm.config.options import Equal
from indm.evaluation.budgets import Costs, costs_of, steps_of
from indm.evaluation.methods import ONE_TRAINING, check_distinct, differences, in_words, methods_of
from indm.evaluation.plots import learning_curves, pixels_into, samples_picture
from indm.evaluation.results import (
    KINDS,
    check_same_examples,
    number_key,
    read_evaluation,
    read_nats,
    table,
    unconverged,
)
from indm.evaluation.style import colours_of, pixels_of, stacked, styled
from indm.files import atomic
from indm.runs.folder import read_metrics, recipe_of
from indm.runs.provenance import provenance
from indm.runs.samples import SAMPLES, read_samples


def compare(folders: list[Path], out: Path, *, equal: Equal = "cost", progress: bool = True) -> str:
    """Runs side by side: a table, differences of methods from that of the first run, ``comparison.png`` in ``out``.

    Runs whose recipes differ in the seed alone are one method, named after its first run. Methods are compared in pairs
    of equal seeds, on the same examples; seeds without a partner are named and do not count. With two pairs or more a
    difference has a p and a verdict, adjusted by Holm's method over all differences that are shown; with one, its error
    is over examples, and it has no verdict. Nor has it one where the two have not spent the same, see
    :mod:`indm.evaluation.budgets`: what a step costs is measured here where the runs were not measured side by side.
    Where all runs are of one method, each stands for itself.

    Args:
        folders: of runs.
        out: where ``comparison.png`` and ``comparison.json`` are written.
        equal: what methods must have spent alike: "cost" is steps times their cost, "steps" is steps alone.
        progress: show a bar while costs are measured.

    Returns:
        The table as text; ``comparison.json`` in ``out`` holds the differences.

    Raises:
        ValueError: fewer than two runs, one that is named twice, or other examples.
        FileNotFoundError: a folder that is no run, or is not evaluated.
    """
    if len(folders) < 2:
        raise ValueError(f"compare needs at least two run folders, got {len(folders)}")
    check_distinct(folders)
    for folder in folders:
        recipe_of(folder)  # an error where this is no run
    results = {folder: read_evaluation(folder) for folder in folders}
    for folder in folders:
        read_nats(folder)  # an error where it is damaged
    check_same_examples(results)
    groups = methods_of(folders)
    methods = {str(group[0]): group for group in (groups if len(groups) > 1 else [[folder] for folder in folders])}
    baseline, unit = str(folders[0]), results[folders[0]]["unit"]
    costs = costs_of(methods, equal, progress)
    by_method = differences(methods, results, costs)
    kinds = [kind for kind in KINDS if any(kind in result for result in results.values())]
    rows = [("run", "seeds", "steps", "cost of a step", "steps × cost", "seconds", *(KINDS[kind] for kind in kinds))]
    for name, runs in methods.items():
        seeds = {str(runs[0]): str(len(runs))}
        rows += [_row(run, seeds.get(str(run), ""), costs.by_method.get(name), results[run], kinds) for run in runs]
    lines = [table(rows), str(costs)]
    for other, by_kind in by_method.items():
        lines += [f"{kind.upper()}, {other} − {baseline}: {in_words(row, unit)}" for kind, row in by_kind.items()]
    if any(row["verdict"] == "untested" for by_kind in by_method.values() for row in by_kind.values()):
        lines.append(ONE_TRAINING)
    lines.append(f"{unit}, ± one standard error, with the reconstruction term, {results[folders[0]]['split']} split")
    lines += [f"{run}: {line}" for run, result in results.items() for line in unconverged(result)]
    if len({result["dequantization"] for result in results.values()}) > 1:
        lines += [f"dequantization: {result['dequantization']}: {run}" for run, result in results.items()]
    out.mkdir(parents=True, exist_ok=True)
    weights = {str(folder): result["weights_sha256"] for folder, result in results.items()}
    content = {
        "baseline": baseline,
        "unit": unit,
        "methods": {name: list(map(str, runs)) for name, runs in methods.items()},
        "costs": asdict(costs),
        "differences": by_method,
    }
    write_numbers = atomic.json_into(content | {"provenance": provenance(None, weights)})
    write_picture = pixels_into(_picture(methods, unit, costs))
    atomic.together({out / "comparison.png": write_picture, out / "comparison.json": write_numbers})
    return "\n".join(lines)


def _row(folder: Path, seeds: str, cost: float | None, result: dict, kinds: list[str]) -> tuple[str, ...]:
    steps, lines = steps_of(folder), read_metrics(folder)
    seconds = f"{lines[-1]['seconds']:.0f}" if lines else "–"  # of a released checkpoint that was converted
    spent = "–" if steps is None or cost is None else f"{steps * cost:.0f}"
    budget = ("–" if steps is None else str(steps), "–" if cost is None else f"{cost:.3g}", spent, seconds)
    return (str(folder), seeds, *budget, *(_cell(result, kind) for kind in kinds))


def _cell(result: dict, kind: str) -> str:
    if kind not in result:
        return "–"
    values, key = result[kind]["with_reconstruction"], number_key(result)
    return f"{values[key]:.4f} ± {values[f'{key}_standard_error']:.4f}"


def _picture(methods: dict[str, list[Path]], unit: str, costs: Costs) -> np.ndarray:
    """Learning curves over steps and over steps × cost, and below them samples of each method's first run, as bytes.

    Curves of methods whose costs are not known are over steps alone.
    """
    firsts = [runs[0] for runs in methods.values()]
    names = [f.name if [g.name for g in firsts].count(f.name) == 1 else str(f) for f in firsts]
    curves = {
        name: [_validations(run, costs.by_method.get(method)) for run in runs]
        for name, (method, runs) in zip(names, methods.items(), strict=True)
    }
    return stacked(_curves(curves, unit), _samples(dict(zip(names, firsts, strict=True))))


def _validations(run: Path, cost: float | None) -> list[dict]:
    """The validations of a run, with what was ``spent`` until each: its steps times their cost, NaN without a cost."""
    lines = [line for line in read_metrics(run) if "valid_nelbo" in line]
    return [line | {"spent": line["step"] * (math.nan if cost is None else cost)} for line in lines]


@styled
def _curves(curves: dict[str, list[list[dict]]], unit: str) -> np.ndarray:
    figure = Figure(figsize=(10, 4.2))
    for axes, against in zip(figure.subplots(1, 2, sharey=True), ("step", "spent"), strict=True):
        learning_curves(axes, curves, against, unit, colours_of(curves))
    return pixels_of(figure)


def _samples(runs: dict[str, Path]) -> np.ndarray:
    """A panel for each run, with words where there are no samples."""
    panels: dict[str, Tensor | str] = {}
    levels = 0
    for name, run in runs.items():
        file = run / SAMPLES
        title = f"samples of {name}"
        panels[title] = f"not sampled yet: indm sample {run}"
        if file.exists():
            samples, levels, _ = read_samples(file)
            if samples.ndim not in (2, 4):
                raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
            panels[title] = samples
    return samples_picture(panels, levels, colours_of(panels))
