"""``indm compare``: a table and a picture of evaluated runs, and differences from the first."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from indm.evaluation.report import Likelihoods, Row, table, unconverged
from indm.files import atomic, untrusted
from indm.workbench.evaluation.results import check_same_examples, read_evaluation
from indm.workbench.evaluation.text import baseline_name, verdict
from indm.workbench.figures import plots, sheets
from indm.workbench.runs.folder import read_metrics, recipe_of
from indm.workbench.runs.provenance import provenance
from indm.workbench.runs.samples import SAMPLES, read_samples

COMPARISON_FILES = ("comparison.html", "comparison.json", "comparison.png")
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 0.25em 0.8em; text-align: left; white-space: nowrap; border-bottom: 1px solid #8886 }
img { max-width: 100% }
"""
# mean and standard error, keyed by run and kind
Differences = Mapping[str, Mapping[str, tuple[float, float]]]


def compare(folders: Sequence[Path], out: Path) -> str:
    """A table of evaluated runs: budgets, likelihoods, and differences from the first run.

    Differences are paired by example. Their error is over the examples, for these trainings: it
    says which of two models is better, not which method is. ``comparison.html`` (the table and
    samples of each run), ``comparison.png`` and ``comparison.json`` are written into ``out``.

    Raises:
        ValueError: no run, or runs evaluated on different examples.
        FileNotFoundError: a folder is not a run, or is not evaluated.
    """
    if not folders:
        raise ValueError("compare needs a run folder, got none")
    for folder in folders:
        recipe_of(folder)
    results = {folder: read_evaluation(folder) for folder in folders}
    check_same_examples(results)
    evaluated = {folder: Likelihoods.load(folder) for folder in folders}
    first, *following = folders
    differences = {str(folder): evaluated[folder] - evaluated[first] for folder in following}
    unit = evaluated[first].report.unit
    rows = run_rows(evaluated, differences)
    blank = ("",) * (len(rows[0]) - 2)
    for name, value in references(results, evaluated[first].report.key).items():
        rows.append((name, *blank[:3], value, *blank[3:]))
    notes = notes_of(results, evaluated, first)
    content = {
        "baseline": str(first),
        "unit": unit,
        "differences": {
            name: {
                kind: {"difference": mean, "standard_error": error}
                for kind, (mean, error) in by_kind.items()
            }
            for name, by_kind in differences.items()
        },
        "provenance": provenance(
            None, {str(folder): r["weights_sha256"] for folder, r in results.items()}
        ),
    }
    picture = out / "comparison.png"
    files = {out / "comparison.json": atomic.json_into(content)}
    atomic.together({picture: plots.pixels_into(samples_of(folders))} | files)
    atomic.text(out / "comparison.html", page(rows, notes, picture.read_bytes()))
    return "\n".join([table(rows), *notes])


def notes_of(
    results: Mapping[Path, dict], evaluated: Mapping[Path, Likelihoods], first: Path
) -> list[str]:
    """The meaning of the table, and notes on single runs."""
    unit = evaluated[first].report.unit
    notes = [
        f"{unit}, ± one standard error over the examples, with the reconstruction term",
        f"{results[first]['split']} split; a negative difference is better than {first}",
    ]
    notes += [
        f"{folder}: {line}"
        for folder, found in evaluated.items()
        for line in unconverged(found.report)
    ]
    if len({found.report.dequantization for found in evaluated.values()}) > 1:
        notes += [
            f"dequantization: {found.report.dequantization}: {folder}"
            for folder, found in evaluated.items()
        ]
    sentences = {folder: verdict(result) for folder, result in results.items()}
    return notes + [f"{folder}: {sentence}" for folder, sentence in sentences.items() if sentence]


def run_rows(evaluated: Mapping[Path, Likelihoods], differences: Differences) -> list[Row]:
    """The header, and a row for each run."""
    reports = [found.report for found in evaluated.values()]
    titles = {
        kind: numbers.title for report in reports for kind, numbers in report.measured.items()
    }
    header = ["", "parameters", "steps", "seconds"]
    for title in titles.values():
        header.append(f"{title}, {reports[0].unit}")
        if differences:
            header.append("− first")
    rows: list[Row] = [tuple(header)]
    for folder, found in evaluated.items():
        cells = [str(folder), *budget_of(folder)]
        for kind in titles:
            cells.append(bound(found, kind))
            if differences:
                mean, error = differences.get(str(folder), {}).get(kind, (None, None))
                cells.append(with_error(mean, error, digits=4))
        rows.append(tuple(cells))
    return rows


def bound(found: Likelihoods, kind: str) -> str:
    """A likelihood with its standard error; "–" if it was not evaluated."""
    numbers = found.report.measured.get(kind)
    if numbers is None:
        return "–"
    number = numbers.with_reconstruction / found.report.nats_of_unit
    return with_error(number.mean, number.standard_error)


def budget_of(folder: Path) -> tuple[str, str, str]:
    """The parameters, steps and seconds of a run; "–" for those that are unknown."""
    log = read_metrics(folder)
    file = folder / "summary.json"
    summary = untrusted.json_object(file) if file.exists() else {}
    parameters = sum(count for name, count in summary.items() if name.endswith("_parameters"))
    steps, seconds = (f"{log[-1][key]:.0f}" if log else "–" for key in ("step", "seconds"))
    return f"{parameters:,}" if parameters else "–", steps, seconds


def references(results: Mapping[Path, dict], key: str) -> dict[str, str]:
    """The likelihoods of the baselines, and the entropy of the data if it is known."""
    baselines: dict[str, dict] = next(
        (result["baselines"] for result in results.values() if "baselines" in result), {}
    )
    found = {
        f"baseline: {baseline_name(row)}": with_error(row[key], row[f"{key}_standard_error"])
        for row in baselines.values()
    }
    entropy = next(iter(results.values())).get("entropy_nats")
    if entropy is not None:
        found["entropy of the data"] = f"{entropy:.3f}"
    return found


def with_error(mean: float | None, error: float | None, digits: int = 3) -> str:
    """ "mean ± error", the mean alone if the error is NaN or None, "–" if the mean is None."""
    if mean is None:
        return "–"
    if error is None or math.isnan(error):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def samples_of(folders: Sequence[Path]) -> plots.Pixels:
    """Samples of each run side by side, if there are any."""
    panels: dict[str, Tensor | str] = {}
    levels = 0
    for folder in folders:
        panels[str(folder)] = f"not sampled yet: indm sample {folder}"
        file = folder / SAMPLES
        if file.exists():
            panels[str(folder)], levels, _ = read_samples(file)
    return sheets.samples_picture(panels, levels, plots.colours_of(panels))


def page(rows: Sequence[Row], notes: Sequence[str], picture: bytes) -> str:
    """The table, its notes and the picture as one HTML file."""
    (head, *body) = rows
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    cells = "\n".join(f"<tr>{line}</tr>" for line in lines)
    texts = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs compared</title><style>{STYLE}</style></head><body><h1>Runs compared</h1>
<div><table>
{cells}
</table></div>
{texts}
<figure><img src="{source}" alt="Samples of each run."></figure>
</body></html>
"""
