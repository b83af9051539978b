"""Outliers of ADBench's tables by the density of normal rows: indm.DensityEstimator beside three others: outliers.md.

    python -m research.tables outliers --data FOLDER     # goes on where it stopped; FOLDER has 39_vertebral.npz …

Half of the normal rows are fitted; the others and all outliers are scored. ``--records`` keeps the table
``outliers.csv``, which has a row for each table, drawing, seed and method. Seed 0 of all tables comes first, small
tables before large ones.
"""

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from indm import DensityEstimator
from indm.evaluation.statistics import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by
from research.tables import command
from research.tables.flows import Space, chosen_from, gaussian_mixture

MOST_ROWS, FEW_ROWS = 50_000, 1_000  # rows of a table in the published protocol: at most, at least
DRAWINGS = ("repeated", "permuted", "file")
MOST_SCORED = 300  # rows of each class
FEW_COPIES = 0.55  # AUC of the look-up where a tenth of the normal test rows, and no outlier, are fitted rows
TOL = 0.5  # nats of a row's density
PUBLISHED = {"DTE-NP": "dte_np", "nearest neighbours": "knn", "DTE-C": "dte_c", "DDPM": "ddpm", "forest": "iforest"}
Array = np.ndarray


# ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def files(folder: Path) -> dict[str, Path]:
    """The tables of a folder, small ones first.

    Raises:
        FileNotFoundError: there are none.
    """
    found = {path.stem.partition("_")[2]: path for path in folder.glob("*_*.npz")}
    if not found:
        raise FileNotFoundError(f"no table such as 39_vertebral.npz in {folder}: research/tables/outliers.md says how")
    return dict(sorted(found.items(), key=lambda item: loaded(item[1])[0].size))


@functools.lru_cache(maxsize=1)  # all methods have the same table
def loaded(path: Path) -> tuple[Array, Array]:
    """Rows (n, columns), and which of them are outliers (n,)."""
    with np.load(path) as file:
        return file["X"].astype(np.float64), file["y"].ravel() == 1


def drawings(n: int) -> tuple[str, ...]:
    """Ways to draw a table of ``n`` rows: one for each of the two protocols if it is small, else one for both."""
    return ("repeated", "permuted") if n < FEW_ROWS else ("file",)


def drawn(n: int, drawing: str, seed: int) -> Array:
    """Indices of the rows of a table of ``n``: as in the file, or at random, at most 50,000, or 1,000 with repeats."""
    numbers = np.random.RandomState(seed)  # the original's
    if drawing == "repeated":
        return numbers.choice(n, FEW_ROWS, replace=True)
    if drawing == "permuted" or n > MOST_ROWS:
        return numbers.choice(n, min(n, MOST_ROWS), replace=False)
    return np.arange(n)


def split(X: Array, is_outlier: Array, drawing: str, seed: int) -> tuple[Array, Array, Array]:
    """The first half of the normal rows; the other rows, both in units of that half; which of these are outliers."""
    order = drawn(len(X), drawing, seed)
    X, is_outlier = X[order], is_outlier[order]
    normal, outliers = np.flatnonzero(~is_outlier), np.flatnonzero(is_outlier)
    half = round(0.5 * len(normal))
    scaler = StandardScaler().fit(X[normal[:half]])
    tested = np.concatenate([normal[half:], outliers])
    return scaler.transform(X[normal[:half]]), scaler.transform(X[tested]), is_outlier[tested]


def thinned(is_outlier: Array, seed: int) -> tuple[Array, Array]:
    """Indices of at most 300 tested rows of each class, and how many rows each of them stands for."""
    order = np.random.default_rng(seed).permutation(len(is_outlier))
    classes = [order[is_outlier[order] == which] for which in (False, True)]
    kept = [rows[:MOST_SCORED] for rows in classes]
    weights = [np.full(len(few), len(rows) / len(few)) for few, rows in zip(kept, classes, strict=True)]
    return np.concatenate(kept), np.concatenate(weights)


# ── Methods: (rows to fit, seed, seconds) → outlier score of rows, setting ───────────────────────────────────────────

Fitted = tuple[Callable[[Array], Array], dict[str, Any]]


def indm(X: Array, seed: int, seconds: float) -> Fitted:
    with mock.patch.object(time, "perf_counter", time.process_time):
        found = DensityEstimator(max_seconds=seconds, random_state=seed).fit(X)
    components = [model.score.backbone.components for model in found.models_]
    return lambda rows: -found.score_samples(rows, tol=TOL), {"steps": found.n_steps_, "components": components}


def neighbours(X: Array, seed: int, seconds: float) -> Fitted:
    """The distance to the fifth neighbour, PyOD's default."""
    found = NearestNeighbors(n_neighbors=5).fit(X)
    return lambda rows: found.kneighbors(rows)[0][:, -1], {}


def forest(X: Array, seed: int, seconds: float) -> Fitted:
    found = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -found.score_samples(rows), {}


def mixture(X: Array, seed: int, seconds: float) -> Fitted:
    """The Gaussian mixture of the best validation on a tenth; a full covariance needs a row for each column."""
    X = np.random.default_rng(seed).permutation(X)[:5_000]
    grid = [
        {"covariance_type": kind, "n_components": k, "reg_covar": floor}
        for kind, k, floor in itertools.product(("full", "diag"), (1, 3, 8, 20), (1e-3, 1e-2, 1e-1))
        if kind == "diag" or k == 1 or k * X.shape[1] <= len(X)
    ]
    valid, train = np.split(X, [len(X) // 10])
    make = chosen_from(grid, gaussian_mixture)
    log_prob, setting = make(train, valid, Space(train, [], seed), seed, seconds)
    return lambda rows: -log_prob(rows), setting


def look_up(X: Array, seed: int, seconds: float) -> Fitted:
    """1 for a row that is not among the fitted ones: a control, which knows nothing but repeats."""
    fitted = {row.tobytes() for row in X}
    return lambda rows: np.array([float(row.tobytes() not in fitted) for row in rows]), {}


METHODS = {"indm": indm, "nearest neighbours": neighbours, "forest": forest, "mixture": mixture, "look-up": look_up}


def judged(score: Array, is_outlier: Array, weight: Array) -> dict[str, float]:
    """AUC of ROC and of precision and recall. Rows of −∞ log p tie above all others, as do those without a number."""
    rank = rankdata(np.where(np.isnan(score), np.inf, score))
    return {
        "auc": round(roc_auc_score(is_outlier, rank, sample_weight=weight), 5),
        "average_precision": round(average_precision_score(is_outlier, rank, sample_weight=weight), 5),
    }


def trained(path: Path, drawing: str, seed: int, method: str, seconds: float) -> dict[str, Any]:
    """The record of one method on one split of a table."""
    train, tested, is_outlier = split(*loaded(path), drawing, seed)
    kept, weight = thinned(is_outlier, seed)
    sizes = [len(train), train.shape[1], *np.bincount(is_outlier).tolist()]
    tested, is_outlier, start = tested[kept], is_outlier[kept], time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        score_of, setting = METHODS[method](train, seed, seconds)
        fitted = time.process_time()
        score = score_of(tested)
    infinite = ~np.isfinite(score)
    return judged(score, is_outlier, weight) | {
        "sizes": sizes, "setting": setting,
        "infinite": [int(infinite[~is_outlier].sum()), int(infinite[is_outlier].sum())],
        "unsolved": any(w.category is ConvergenceWarning and "log p" in str(w.message) for w in warned),
        "fit_cpu_seconds": round(fitted - start, 1), "score_cpu_seconds": round(time.process_time() - fitted, 1),
    } | made_by(seed)  # fmt: skip


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Cells = dict[tuple[int, str], float]  # measures, keyed by seed and table


def cells(rows: Sequence[Row], method: str, drawing: str, key: str) -> Cells:
    """A measure in hundredths, where small tables are drawn this way."""
    found = [row for row in rows if row["method"] == method and row["drawing"] in (drawing, "file")]
    return {(row["seed"], row["table"]): 100 * row[key] for row in found}


def together(*found: Cells) -> Array:
    """The measures (of each, seeds, tables) of tables that all have for the first seed, in seeds that have all of them.

    So a run that was interrupted is judged by its complete seeds.
    """
    common = sorted(set.intersection(*map(set, found)))
    names = [name for seed, name in common if seed == common[0][0]]
    seeds = [seed for seed in sorted({seed for seed, _ in common}) if all((seed, name) in common for name in names)]
    return np.array([[[of[seed, name] for name in names] for seed in seeds] for of in found])


def against(ours: Cells, other: Cells) -> list[object]:
    """The number of tables, the other's mean over them ± over seeds, and what ours has beyond it ± over tables."""
    if not ours.keys() & other.keys():
        return ["–"] * 3
    both = together(ours, other)
    mean, of_seeds = over_seeds(both[1].mean(1).tolist())
    gain, of_tables = over_seeds((both[0] - both[1]).mean(0).tolist())
    errors = [error or math.nan for error in (of_seeds, of_tables)]  # an error of 0 is not shown
    return [both.shape[2], with_error(mean, errors[0], ".1f"), with_error(gain, errors[1], "+.1f")]


def means(made: Records) -> str:
    """Means over tables of each method in both protocols, and what indm has beyond it in the same tables and seeds."""
    rows, lines = made.rows(), []
    for protocol, drawing in {"published": "repeated", "without repeats": "permuted"}.items():
        ours, precise = (cells(rows, "indm", drawing, key) for key in ("auc", "average_precision"))
        for method in METHODS:
            other, more = (cells(rows, method, drawing, key) for key in ("auc", "average_precision"))
            lines.append([protocol, method, *against(ours, other), *against(precise, more)[1:]])
        if drawing == "repeated":
            for method, column in PUBLISHED.items():
                known = {row["table"]: row[column] for row in published()}
                other = {(seed, name): known[name] for seed, name in ours if name in known}
                lines.append([protocol, f"{method}, as published", *against(ours, other), "–", "–"])
    columns = ["tables", "AUC", "indm beyond it", "AUC-PR", "indm beyond it"]
    return in_table("protocol", "method", *columns, rows=lines)


def published() -> list[Row]:
    """AUCs of the repository's page, of each table."""
    return Records(RECORDS / "outliers-published.csv").rows()


def parts(made: Records) -> str:
    """AUC of indm, and its lead over others, by the drawing of tables and whether test rows repeat fitted ones."""
    rows, lines = made.rows(), []
    known = {row["table"]: row["dte_np"] for row in published()}
    copied = {(row["table"], row["drawing"]) for row in rows if row["method"] == "look-up" and row["auc"] > FEW_COPIES}
    for drawing, repeats in itertools.product(reversed(DRAWINGS), ("no", "yes")):
        own = [r for r in rows if r["drawing"] == drawing and ((r["table"], drawing) in copied) == (repeats == "yes")]
        ours, *others = (cells(own, method, drawing, "auc") for method in METHODS)
        if ours:
            on_page = {(seed, name): known[name] for seed, name in ours if drawing != "permuted"}
            tables, auc, _ = against(ours, ours)
            gains = (against(ours, other)[2] for other in (*others, on_page))
            lines.append([drawing, repeats, tables, auc, *gains])
    rivals = (*list(METHODS)[1:], "DTE-NP, as published")
    return in_table("rows", "repeats", "tables", "indm", *(f"− {name}" for name in rivals), rows=lines)


def of_tables(made: Records) -> str:
    """AUC of each table and drawing, means over seeds, and what indm took."""
    rows, lines = made.rows(), []
    for name, drawing in itertools.product((row["table"] for row in published()), DRAWINGS):
        here = [row for row in rows if row["table"] == name and row["drawing"] == drawing]
        found = [[row for row in here if row["method"] == method] for method in METHODS]
        if here:
            n, columns, *tested = here[0]["sizes"]
            aucs = [f"{100 * np.mean([row['auc'] for row in of]):.1f}" if of else "–" for of in found]
            seconds = [[row[f"{part}_cpu_seconds"] for row in found[0]] for part in ("fit", "score")]
            took = [f"{np.mean(each):.0f}" if each else "–" for each in seconds]
            infinite = " + ".join(map(str, found[0][0]["infinite"])) if found[0] else "–"
            lines.append([name, drawing, f"{n} × {columns}", " + ".join(map(str, tested)), *aucs, *took, infinite])
    return in_table("table", "rows", "fitted", "tested", *METHODS, "CPU s of fit", "of scoring", "−∞", rows=lines)


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables outliers", __doc__, 60.0, seeds=range(5))
    parser.add_argument("--data", type=Path, required=True, help="adbench/datasets/Classical of Minqi824/ADBench")
    parser.add_argument("--tables", nargs="+", help="all by default; names such as vertebral")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    made = Records(o.records / "outliers.csv").at(seconds=o.seconds)
    paths = files(o.data)
    for seed, name in itertools.product(o.seeds, o.tables or paths):
        for drawing, method in itertools.product(drawings(len(loaded(paths[name])[0])), o.methods):
            cell = made.at(table=name, drawing=drawing, seed=seed, method=method)
            if not cell.rows():
                record = cell.kept(lambda job=(paths[name], drawing, seed, method): trained(*job, o.seconds))
                shown = ("auc", "fit_cpu_seconds", "score_cpu_seconds")
                print(name, drawing, seed, method, *(record[key] for key in shown), flush=True)
    print(means(made))
