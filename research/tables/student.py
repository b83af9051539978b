"""A student beside the density that taught it: distance and speed; see student.md.

python -m research.tables student      # measures what has no record yet; then `make records`
"""

import itertools
import time
from typing import Any

import numpy as np

from indm import DensityEstimator
from indm.evaluation.statistics import over_seeds
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command
from research.tables.flows import split

TABLES = ("moons", "circles", "swiss-roll", "blobs", "diabetes", "wine", "breast-cancer")
DIFFERENCES = {"mean": ".3f", "most": ".2f", "shift": "+.3f", "mass": ".3f", "left": ".3f"}
TEACHING = 60.0  # CPU seconds, at most


def timed(density: DensityEstimator, X: np.ndarray, least: float = 0.2) -> tuple[np.ndarray, float]:
    """log p of rows, and CPU milliseconds a row, over as many calls as take ``least`` seconds."""
    start, calls = time.process_time(), 0
    while not calls or time.process_time() - start < least:
        log_p, calls = density.score_samples(X), calls + 1
    return log_p, 1000 * (time.process_time() - start) / calls / len(X)


def measured(name: str, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one density and its student."""
    train, test, discrete = split(name, seed)
    with command.cpu_clock():
        teacher = DensityEstimator(discrete=discrete, max_seconds=seconds, random_state=seed).fit(train)
        start = time.process_time()
        fast = teacher.distill(max_seconds=TEACHING, random_state=seed)
        taught = time.process_time() - start
        (slow, teacher_ms), (quick, student_ms) = timed(teacher, test), timed(fast, test)
    off = np.abs(quick - slow)
    return {
        "columns": test.shape[1], "mean": round(off.mean(), 4), "most": round(np.quantile(off, 0.95), 4),
        "stated": [round(part, 4) for part in fast.student_.difference], "shift": round((quick - slow).mean(), 4),
        "mass": round(fast.student_.mass, 4),
        "left": round(float((off == 0).mean()), 4), "pairs": fast.student_.pairs,
        "teaching_cpu_seconds": round(taught, 1),
        "teacher_ms": round(teacher_ms, 4), "student_ms": round(student_ms, 4), "seconds": seconds,
    } | made_by(seed)  # fmt: skip


def markdown(table: Records) -> str:
    """Differences and times over seeds, by table."""
    rows = []
    for name in TABLES:
        if found := table.at(table=name).rows():
            mean, most, *rest = (
                with_error(*over_seeds([row[key] for row in found]), form) for key, form in DIFFERENCES.items()
            )
            stated = "{:.3f}, {:.2f}".format(*np.mean([row["stated"] for row in found], 0))
            ratio = np.mean([row["teacher_ms"] / row["student_ms"] for row in found])
            times = [f"{np.mean([row[key] for row in found]):.3g}" for key in ("teacher_ms", "student_ms")]
            rows.append((name, found[0]["columns"], len(found), mean, most, stated, *rest, *times, f"{ratio:.0f}"))
    heads = "table", "columns", "seeds", "mean difference", "95 %", "stated", "shift", "mass", "rows left"
    return in_table(*heads, "ms a row", "student's", "ratio", rows=rows)


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables student", __doc__, 20.0, seeds=(0, 1))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    o = command.parsed(parser, arguments)
    made = Records(o.records / "students.csv")
    for seed, name in itertools.product(o.seeds, o.tables):
        table = made.at(table=name, seed=seed)
        if not table.rows():
            print(table.kept(lambda c=(name, seed): measured(*c, o.seconds)), flush=True)
    print(markdown(made))
