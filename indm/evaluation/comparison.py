"""``indm compare``: evaluated runs in one table, paired differences from the first, and a picture."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.config import recipes
from indm.evaluation.plots import dots, figure_into, learning_curves, tile
from indm.evaluation.results import KINDS, check_same_examples, number_key, read_evaluation, read_nats, table
from indm.evaluation.statistics import paired_difference
from indm.files import atomic
from indm.runs.folder import read_metrics
from indm.runs.provenance import provenance
from indm.runs.samples import read_samples


def compare(folders: list[Path], out: Path) -> str:
    """Runs side by side: a table, paired differences from the first run, and ``comparison.png`` in ``out``.

    The runs must have been evaluated on the same examples. A difference is the mean over examples of the difference
    of two runs' likelihoods, with its standard error; within two of them it is called a tie.

    Returns:
        The table as text; ``comparison.json`` in ``out`` holds the differences.
    """
    if len(folders) < 2:
        raise ValueError(f"compare needs at least two run folders, got {len(folders)}")
    for folder in folders:
        recipes.load(folder)  # an error where this is no run
    results = {folder: read_evaluation(folder) for folder in folders}
    nats = {folder: read_nats(folder) for folder in folders}
    check_same_examples(results)
    baseline = folders[0]
    unit = results[baseline]["unit"]
    differences = _differences(nats, folders, results[baseline]["dims"] * math.log(2) if unit == "bits/dim" else 1.0)
    lines = [table([("run", "steps", "seconds", *KINDS.values()), *(_row(f, result) for f, result in results.items())])]
    for other, by_kind in differences.items():
        lines += [
            f"{k.upper()}, {other} − {baseline}: {_verdict(difference, unit)}" for k, difference in by_kind.items()
        ]
    lines.append(f"{unit}, ± one standard error, with the reconstruction term, {results[baseline]['split']} split")
    out.mkdir(parents=True, exist_ok=True)
    weights = {str(folder): result["weights_sha256"] for folder, result in results.items()}
    content = {"baseline": str(baseline), "unit": unit, "differences": differences}
    write_numbers = atomic.json_into(content | {"provenance": provenance(None, weights)})
    write_picture = figure_into(_comparison_figure(folders, unit))
    atomic.together({out / "comparison.png": write_picture, out / "comparison.json": write_numbers})
    return "\n".join(lines)


def _differences(nats: dict[Path, dict[str, np.ndarray]], folders: list[Path], per_unit: float) -> dict[str, dict]:
    """Paired differences of the other runs from the first, by run and by kind of likelihood that both have."""
    first = nats[folders[0]]
    return {
        str(folder): {
            kind: paired_difference((nats[folder][kind] - first[kind]) / per_unit)
            for kind in KINDS
            if kind in nats[folder] and kind in first
        }
        for folder in folders[1:]
    }


def _row(folder: Path, result: dict) -> tuple[str, ...]:
    ends = [(str(line["step"]), f"{line['seconds']:.0f}") for line in read_metrics(folder)[-1:]]
    trained = ends[0] if ends else ("–", "–")  # a released checkpoint that was converted
    return (str(folder), *trained, *(_cell(result, kind) for kind in KINDS))


def _cell(result: dict, kind: str) -> str:
    if kind not in result:
        return "–"
    values, key = result[kind]["with_reconstruction"], number_key(result)
    return f"{values[key]:.4f} ± {values[f'{key}_standard_error']:.4f}"


def _verdict(difference: dict, unit: str) -> str:
    word = "a tie" if difference["tie"] else "worse" if difference["difference"] > 0 else "better"
    return f"{difference['difference']:+.4f} ± {difference['standard_error']:.4f} {unit}, {word}"


def _comparison_figure(folders: list[Path], unit: str) -> Figure:
    """Learning curves over steps and over seconds; below them samples of each run, where there are any."""
    figure = Figure(figsize=(max(8, 4 * len(folders)), 8), layout="constrained")
    above, below = cast(Any, figure.subfigures(2, 1))
    names = {f: f.name if [g.name for g in folders].count(f.name) == 1 else str(f) for f in folders}
    curves = {names[f]: [[line for line in read_metrics(f) if "valid_nelbo" in line]] for f in folders}
    for axes, against in zip(above.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        learning_curves(axes, curves, against, unit)
    for axes, folder in zip(np.atleast_1d(below.subplots(1, len(folders))), folders, strict=True):
        _show_samples(axes, folder)
    return figure


def _show_samples(axes: Axes, folder: Path) -> None:
    axes.set_title(f"samples of {folder.name}")
    file = folder / "samples.npz"
    if not file.exists():
        axes.text(0.5, 0.5, "not sampled yet", ha="center")
        return
    samples, levels, _ = read_samples(file)
    if samples.ndim == 4:
        axes.imshow(tile(samples[:64], levels), interpolation="nearest")
        axes.axis("off")
    elif samples.ndim == 2:
        dots(axes, samples, f"samples of {folder.name}")
    else:
        raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
