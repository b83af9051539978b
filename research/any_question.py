"""Test log p of one question to a table: a density of any question beside one that was fitted to that question alone.

    python -m research.any_question moons wine      # fits what has no record yet, then shows the table of all records
    python -m research.any_question all

Tables and splits come from ``research.tables.flows``, and "bent" has eight columns, four of which are functions of
the others with noise. Two questions: all columns, and the first half of them given the second. ``joint`` is one
JointDensityEstimator for both, ``start`` the mixture from which it starts, and ``fixed`` is a DensityEstimator for
each. Every fit has ``--seconds`` of the processor on one thread.
"""

import itertools
import time
from typing import Any

import numpy as np
import torch

from indm import DensityEstimator, JointDensityEstimator
from indm.evaluation.statistics import mean_and_error
from research.markdown import in_table
from research.records import Records, made_by
from research.tables import command
from research.tables.flows import SEEDS, beside, split

NAMES = ("bent", "moons", "swiss-roll", "mixture-8d", "wine", "breast-cancer")
METHODS = ("fixed", "joint", "start")
MOST = 200  # test rows
QUESTIONS = {"all": "all columns", "half": "half given half"}
Array = np.ndarray


def bent(seed: int) -> Array:
    """Eight columns of 2,000 rows, pairs of which are a curve, a parabola, a product and a step, with noise."""
    x = np.random.default_rng(seed).standard_normal((2_000, 8))
    x[:, 1] = np.sin(2 * x[:, 0]) + 0.2 * x[:, 1]
    x[:, 3] = x[:, 2] ** 2 - 1 + 0.3 * x[:, 3]
    x[:, 5] = x[:, 4] * x[:, 0] + 0.3 * x[:, 5]
    x[:, 7] = np.tanh(2 * x[:, 6]) + 0.2 * x[:, 7]
    return x


def rows_of(name: str, seed: int) -> tuple[Array, Array]:
    """Rows to fit and to test."""
    if name == "bent":
        return bent(seed), bent(1_000 + seed)[:MOST]
    X, test, _ = split(name, seed)
    return X, test[:MOST]


def answers(method: str, X: Array, test: Array, seed: int, seconds: float) -> dict[str, Any]:
    """log p of test rows for both questions, nats, and CPU seconds."""
    half, started = X.shape[1] // 2, time.process_time()
    first, second = slice(None, half), slice(half, None)
    if method == "fixed":
        options = {"max_seconds": seconds, "random_state": seed}
        whole = DensityEstimator(**options).fit(X)
        part = DensityEstimator(**options).fit(X[:, first], c=X[:, second])
        fitted = time.process_time()
        nats = {"all": whole.score_samples(test), "half": part.score_samples(test[:, first], c=test[:, second])}
    else:
        steps = {"max_steps": 0} if method == "start" else {}
        joint = JointDensityEstimator(max_seconds=seconds, random_state=seed, **steps).fit(X)
        fitted = time.process_time()
        given = range(half, X.shape[1])
        nats = {"all": joint.score_samples(test), "half": joint.score_samples(test, given=given)}
    times = {"fit_cpu_seconds": fitted - started, "score_cpu_seconds": time.process_time() - fitted}
    return {f"{name}_nats": each for name, each in nats.items()} | {k: round(t, 1) for k, t in times.items()}


def trained(name: str, method: str, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one method on one table."""
    X, test = rows_of(name, seed)
    with command.cpu_clock():
        found = answers(method, X, test, seed, seconds)
    means = {key: mean_and_error(torch.from_numpy(found[f"{key}_nats"])) for key in QUESTIONS}
    return found | means | {"rows": list(X.shape)} | made_by(seed)


def summary(made: Records) -> str:
    """Mean test log p of ``fixed``, and what each row of the others has beyond it, ± over seeds and rows."""
    lines = []
    for name, (key, question) in itertools.product(NAMES, QUESTIONS.items()):
        runs = made.at(table=name).of_common_seeds("method", METHODS)
        if runs["fixed"]:
            nats = {method: np.array([row[f"{key}_nats"] for row in rows]) for method, rows in runs.items()}
            rows, columns = runs["fixed"][0]["rows"]
            lines.append((name, f"{rows} × {columns}", question, len(runs["fixed"]), *beside(nats, "fixed")))
    return in_table("table", "rows × columns", "question", "seeds", "fixed", "joint", "its start", rows=lines)


def main() -> None:
    parser = command.parser("any_question", __doc__, 30.0, seeds=SEEDS)
    parser.add_argument("tables", nargs="*", help=f"all, or {', '.join(NAMES)}")
    o = command.parsed(parser, None)
    made = Records(o.records / "any_question.csv").at(seconds=o.seconds)
    names = NAMES if o.tables == ["all"] else o.tables
    for seed, name, method in itertools.product(o.seeds, names, METHODS):
        cell = made.at(table=name, method=method, seed=seed)
        record = cell.kept(lambda job=(name, method, seed): trained(*job, o.seconds))
        print(name, method, seed, record["all"], record["half"], flush=True)
    print(summary(made))


if __name__ == "__main__":
    main()
