"""Tables of ``bench/records``: speed and memory beside the straightforward baseline, and samples
along the steps.
"""

import csv
import re

from research.markdown import in_table
from research.records import RECORDS, Records

BENCH = RECORDS.parents[1] / "bench" / "records"
SPREAD = re.compile(r" \([\d.]+ to [^)]*\)")  # over rounds, and CPU seconds
RUNS = {"whole": "first", "training-again": "second"}


def as_written(name: str) -> list[dict[str, str]]:
    """The rows of a table, every cell with the digits that it has in the file."""
    with (BENCH / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """The measured values: the baseline, this package, and their ratio with its range over rounds."""
    keys = ("what", "baseline", "ours", "ratio", "target")
    rows = []
    for row in Records(BENCH / "performance.csv").rows():
        what, baseline, ours, ratio, target = (str(row.get(key, "")) for key in keys)
        rows.append(
            (
                RUNS[row["measurement"]],
                what,
                SPREAD.sub("", baseline),
                SPREAD.sub("", ours),
                ratio,
                target,
            )
        )
    return in_table("run", "what", "baseline", "indm", "ratio", "target", rows=rows)


def solver_error() -> str:
    """The solver's error of likelihoods of trained models, true and stated."""
    keys = ("model", "solve", "evaluations")
    rows = [
        (*(row[key] for key in keys), f"{row['error']:.5f}", f"{row['stated']:.5f}", row["covered"])
        for row in Records(BENCH / "solver_error.csv").rows()
    ]
    return in_table(*keys, "true error, RMS", "stated, mean", "covered", rows=rows)


def multilevel() -> str:
    """Intervals of multilevel means over random choices of their subsets."""
    rows = [tuple(row.values()) for row in as_written("multilevel")]
    counts = (
        "in 90 %",
        "in 99 %",
        "largest error",
        "evaluations",
        "each solve",
        "of 1,000, to 0.001",
    )
    return in_table("model", "examples", "standard error", *counts, rows=rows)


def ripples() -> str:
    """Samples of a network with ripples in t."""
    keys = ("sampler", "evaluations", "error", "largest", "cpu_seconds")
    rows = [[row[key] for key in keys] for row in as_written("ripples")]
    return in_table(*keys[:4], "CPU seconds", rows=rows)


def sample_steps() -> str:
    counts = ("12", "25", "50", "100", "200")
    rows = [
        (row["model"], *(f"{row[count]:g}" for count in counts))
        for row in Records(BENCH / "sample_steps.csv").rows()
    ]
    return in_table("model", *(f"{count} steps" for count in counts), rows=rows)
