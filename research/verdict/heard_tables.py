"""Held-out log p of DensityEstimator on three tables, by the version of indm that Python finds.

    PYTHONPATH=OLD python research/verdict/heard_tables.py HOME before
    PYTHONPATH=. python research/verdict/heard_tables.py HOME after

``OLD`` is a work tree of 49b0330e, ``HOME`` the folder of the tables, which keeps log p of each row.
A fit has 60 processor seconds of one thread; silenced.md has the table.
"""

import csv
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from indm import DensityEstimator

TABLES, SECONDS, MOST_TEST = ("protein", "magic", "kin8nm"), 60, 2_000
RECORD = Path(__file__).parents[1] / "records" / "closed" / "silenced-tables.csv"
HEAD = ("table", "version", "held-out log p, nats", "after − before", "start", "kept gain, nats")


def split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows that fit, and a tenth that tests, standardised by the former."""
    with np.load(path) as file:
        rows = file["X"]
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    test, train = np.split(rows, [len(rows) // 10])
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, ((test - mean) / std)[:MOST_TEST]


def with_error(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def row(home: Path, table: str, version: str) -> list[str]:
    """Fit, keep log p of the test rows, and compare with those of the other version."""
    train, test = split(home / f"{table}.npz")
    model = DensityEstimator(max_seconds=SECONDS, n_models=1, random_state=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log_p = model.fit(train).score_samples(test)
    np.save(home / f"heard-{table}-{version}.npy", log_p)
    before = home / f"heard-{table}-before.npy"
    is_after = version == "after" and before.exists()
    difference = with_error(log_p - np.load(before)) if is_after else ""
    (gain,) = model.gains_
    kept = "not known" if gain is None else f"{gain[0]:.3f} ± {gain[1]:.3f}"
    return [table, version, with_error(log_p), difference, model.starts_[0], kept]


def main() -> None:
    home, version = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # other processes take no seconds of a fit
    for table in TABLES:
        lines = list(csv.reader(RECORD.open())) if RECORD.exists() else [list(HEAD)]
        if [table, version] in [line[:2] for line in lines]:
            continue
        lines.append(row(home, table, version))
        lines[1:] = sorted(lines[1:], key=lambda line: (TABLES.index(line[0]), line[1] == "after"))
        with RECORD.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
        print(*lines[-1], flush=True)


if __name__ == "__main__":
    main()
