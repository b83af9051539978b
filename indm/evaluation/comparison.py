"""Tables of runs: likelihoods, learning curves, runs compared in pairs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.config import recipes
from indm.evaluation.plots import dots, figure_into, tile
from indm.evaluation.statistics import difference_over_seeds, paired_difference
from indm.files import atomic, untrusted
from indm.messages import brief, reason
from indm.runs.folder import read_metrics
from indm.runs.provenance import provenance
from indm.runs.samples import read_samples

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)"}


def learning_curves(axes: Axes, groups: Mapping[str, Sequence[list[dict]]], against: str, unit: str) -> None:
    """Validation NELBO ``against`` "step" or "seconds"; a colour for each group of curves (lines of metrics)."""
    for number, (label, curves) in enumerate(groups.items()):
        for i, lines in enumerate(curves):
            points = [m[against] for m in lines], [m["valid_nelbo"] for m in lines]
            axes.plot(*points, ".-", color=f"C{number}", label=None if i else label)
    axes.set(xlabel=against, ylabel=f"validation NELBO ({unit})")
    axes.legend()


def check_same_examples(evaluations: Mapping[Path, dict]) -> None:
    """ValueError where runs were not evaluated on the same examples; a likelihood that only one has does not count."""
    baseline, first = next(iter(evaluations.items()))
    for folder, result in evaluations.items():
        both = [kind for kind in KINDS if kind in result and kind in first]
        if any(result[key] != first[key] for key in ("data", "split")) or any(
            result["images"][kind] != first["images"][kind] for kind in both
        ):
            raise ValueError(
                f"{folder} and {baseline} were evaluated on different examples: {_examples(result)} and "
                f"{_examples(first)}; evaluate both with the same options"
            )


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
        recipes.load(folder)  # says so where this is no run
    evaluations = {folder: (read_evaluation(folder), _read_nats(folder)) for folder in folders}
    baseline, *others = folders
    first, first_nats = evaluations[baseline]
    check_same_examples({folder: result for folder, (result, _) in evaluations.items()})
    rows = [("run", "steps", "seconds", "NELBO", "NLL (ODE)")]
    for folder, (result, _) in evaluations.items():
        ends = [(str(line["step"]), f"{line['seconds']:.0f}") for line in read_metrics(folder)[-1:]]
        trained = ends[0] if ends else ("–", "–")  # a released checkpoint that was converted
        rows.append((str(folder), *trained, *(_cell(result, k) for k in KINDS)))

    unit, lines, differences = first["unit"], [table(rows)], {}
    per_unit = first["dims"] * math.log(2) if unit == "bits/dim" else 1.0
    for other in others:
        nats = evaluations[other][1]
        for kind in (kind for kind in KINDS if kind in nats and kind in first_nats):
            found = paired_difference((nats[kind] - first_nats[kind]) / per_unit)
            differences.setdefault(str(other), {})[kind] = found
            lines.append(f"{kind.upper()}, {other} − {baseline}: {_verdict(found, unit)}")
    lines.append(f"{unit}, ± one standard error, with the reconstruction term, {first['split']} split")
    out.mkdir(parents=True, exist_ok=True)
    weights = {str(folder): result["weights_sha256"] for folder, (result, _) in evaluations.items()}
    found = {"baseline": str(baseline), "unit": unit, "differences": differences}
    told = atomic.json_into(found | {"provenance": provenance(None, weights)})
    drawn = figure_into(_comparison_figure(folders, unit))
    atomic.together({out / "comparison.png": drawn, out / "comparison.json": told})
    return "\n".join(lines)


def _examples(result: dict) -> str:
    return f"{result['images']} of {result['data']}, {result['split']} split"


def _verdict(found: dict, unit: str) -> str:
    word = "a tie" if found["tie"] else "worse" if found["difference"] > 0 else "better"
    return f"{found['difference']:+.4f} ± {found['standard_error']:.4f} {unit}, {word}"


def per_example(folder: Path) -> np.ndarray:
    """NELBO of every example that a run was evaluated on, (n,), in bits/dim or nats as the run reports it."""
    result = untrusted.json_object(folder / "evaluation.json")
    nats = untrusted.array(folder / "evaluation.npz", "nelbo")
    return nats / (result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0)


def difference(pairs: Sequence[tuple[Path, Path]]) -> dict:
    """NELBO of the first less that of the second of each pair of runs, see :func:`difference_over_seeds`."""
    return difference_over_seeds(np.stack([per_example(a) - per_example(b) for a, b in pairs]))


def likelihood_table(result: dict) -> str:
    """An evaluation as text: NELBO and NLL, each with and without the reconstruction term."""
    key = _key(result)
    rows = [("", result["unit"], "± standard error", "of it estimator noise")]
    for kind, name in KINDS.items():
        for part, remark in (("with", ""), ("without", " without reconstruction (no likelihood)")):
            if kind in result:
                values = result[kind][f"{part}_reconstruction"]
                numbers = (values[key + suffix] for suffix in ("", "_standard_error", "_estimator_noise"))
                rows.append((name + remark, *(f"{number:.4f}" for number in numbers)))
    if result["entropy_nats"] is not None:
        rows.append(("entropy of the data", f"{result['entropy_nats']:.4f}", "", ""))
    counts = ", ".join(f"{n} for the {kind.upper()}" for kind, n in result["images"].items())
    lines = [table(rows), f"{result['split']} split: {counts}; ε = {result['eps']:g}; {result['dequantization']}"]
    return "\n".join(lines + ([f"codes: {result['codes']}"] if "codes" in result else []))


def _key(result: dict) -> str:
    return "bits_per_dim" if result["unit"] == "bits/dim" else "nats"


def _cell(result: dict, kind: str) -> str:
    if kind not in result:
        return "–"
    values, key = result[kind]["with_reconstruction"], _key(result)
    return f"{values[key]:.4f} ± {values[f'{key}_standard_error']:.4f}"


def _comparison_figure(folders: list[Path], unit: str) -> Figure:
    figure = Figure(figsize=(max(8, 4 * len(folders)), 8), layout="constrained")
    above, below = figure.subfigures(2, 1)
    names = {f: f.name if [g.name for g in folders].count(f.name) == 1 else str(f) for f in folders}
    curves = {names[f]: [[line for line in read_metrics(f) if "valid_nelbo" in line]] for f in folders}
    for axes, against in zip(above.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        learning_curves(axes, curves, against, unit)
    for axes, folder in zip(np.atleast_1d(below.subplots(1, len(folders))), folders, strict=True):
        axes.set_title(f"samples of {folder.name}")
        file = folder / "samples.npz"
        if not file.exists():
            axes.text(0.5, 0.5, "not sampled yet", ha="center")
            continue
        samples, levels, _ = read_samples(file)
        if samples.ndim == 4:
            axes.imshow(tile(samples[:64], levels), interpolation="nearest")
            axes.axis("off")
        elif samples.ndim == 2:
            dots(axes, samples, f"samples of {folder.name}")
        else:
            raise ValueError(f"{file} must hold samples (N, C, H, W) or (N, D), got {tuple(samples.shape)}")
    return figure


def read_evaluation(folder: Path) -> dict:
    """What :func:`indm.evaluation.runs.evaluate_run` wrote into ``evaluation.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} has not been evaluated: run 'indm evaluate {folder}' first")
    result = untrusted.json_object(file)
    try:
        likelihood_table(result)
        _ = _examples(result), result["dims"] + 1, result["weights_sha256"], [result["images"][k] + 1 for k in KINDS]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} is no evaluation: {reason(error)}; run 'indm evaluate {folder} --overwrite'"
        ) from error
    return result


def _read_nats(folder: Path) -> dict[str, np.ndarray]:
    """Nats of every example, by name, each (N,)."""
    file = folder / "evaluation.npz"
    nats = untrusted.arrays(file)
    if "nelbo" not in nats:
        raise ValueError(f"{file} must hold an array nelbo, got {brief(', '.join(nats)) or 'none'}")
    for name, values in nats.items():
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"{file} must hold nats (N,), got {brief(name)} of shape {values.shape}")
    return nats


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as lines of text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
