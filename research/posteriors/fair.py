"""C2ST of three tasks of sbibm with seeds and rivals that no choice has seen: indm's
PosteriorEstimator, spline flows trained as well as its own, and the best other rival of the record;
see fair.md.

    python -m research.posteriors fair --home HOME --seconds 120      # goes on where it stopped

``--home`` keeps the simulations. Each fit is a row of ``fair_posteriors.csv``, in ``--records``.
"""

import argparse
import functools
import importlib.util
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from indm import PosteriorEstimator
from research.lab import zuko_flows
from research.markdown import in_table
from research.posteriors import sbibm, study
from research.records import RECORDS, Records, Row, made_by
from research.tables import command

RECORD = "fair_posteriors.csv"
TASKS = ("slcp", "two_moons", "gaussian_mixture")
SEEDS, SECONDS = (3, 4, 5), 120.0
OBSERVATIONS, DRAWS = tuple(range(1, 11)), 2_000
RATES = (1e-3, 3e-3, 1e-2)
OWN, FLOW, OTHER = "indm", "nsf", "npse"
METHODS = (OWN, FLOW, FLOW + sbibm.FREE, OTHER, OTHER + sbibm.FREE)
OPTIONS = {"transforms": 5, "bins": 8, "hidden_features": (64, 64)}
AIMS = {"slcp": 0.72, "two_moons": 0.53}
# C2ST that GenSBI states for 10,000 simulations; research/posteriors/sbibm.md
GENSBI = {"slcp": 0.663, "two_moons": 0.528, "gaussian_mixture": 0.511}
Array = np.ndarray


def own(interval: Array, theta: Array, x: Array, seed: int, seconds: float) -> study.Fitted:
    """The posterior by the estimator with its defaults, which knows the prior's box."""
    found = PosteriorEstimator(
        tuple(interval), max_seconds=seconds, random_state=seed, progress=False
    )
    with mock.patch.object(time, "perf_counter", time.process_time):
        found.fit(theta, x)
    inner = found.estimator_
    setting = {"steps": inner.n_steps_, "starts": inner.starts_, "ended": inner.ended_}
    return study.Fitted(
        lambda x, n, seed: found.sample(n, x, random_state=seed), found.log_prob, setting
    )


def flow(rate: float, theta: Array, x: Array, seed: int, seconds: float) -> study.Fitted:
    """NPE by a spline flow of θ at x, with all that the package's own flows have in training."""
    units, scale = StandardScaler().fit(x), StandardScaler().fit(theta)
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [len(x) // 10])

    def numbers(theta: Array, x: Array) -> tuple[Tensor, Tensor]:
        at = np.broadcast_to(np.atleast_2d(x), (len(theta), x.shape[-1]))
        z, c = study.as_floats(scale.transform(theta), units.transform(at))
        return z, c

    held, train = (numbers(theta[rows], x[rows]) for rows in parts)
    with mock.patch.object(time, "perf_counter", time.process_time):
        chosen, setting = zuko_flows.trained("NSF", OPTIONS, train, held, rate, seed, seconds)
    slope = np.log(scale.scale_).sum()
    setting["valid"] -= slope

    @torch.no_grad()
    def draw(x: Array, n: int, seed: int) -> Array:
        torch.manual_seed(seed)
        c = torch.from_numpy(units.transform(np.atleast_2d(x))).float()
        return scale.inverse_transform(chosen.at(c).sample((n,))[:, 0].double().numpy())

    @torch.no_grad()
    def log_prob(theta: Array, x: Array) -> Array:
        return -chosen.nats(*numbers(theta, x)).double().numpy() - slope

    return study.Fitted(draw, log_prob, setting)


def fit_of(method: str, rate: float | None, task: Any) -> sbibm.Fit:
    """A method for a task, in the prior's box or without it."""
    interval = sbibm.prior(task).interval
    if method == OWN:
        return functools.partial(own, interval)
    name = method.removesuffix(sbibm.FREE)
    fit = sbibm.RIVALS[OTHER] if name == OTHER else functools.partial(flow, rate)
    return fit if method.endswith(sbibm.FREE) else sbibm.boxed(fit, interval)


def jobs(table: Records, seed: int, methods: Sequence[str]) -> list[tuple[str, float | None]]:
    """Methods and rates: of a flow each rate for the first seed, then the one that validates
    best.
    """
    found: list[tuple[str, float | None]] = []
    for method in methods:
        if not method.startswith(FLOW):
            found.append((method, None))
            continue
        tried = RATES if seed == SEEDS[0] else (best(table.at(seed=SEEDS[0]), method)["rate"],)
        found += [(method, rate) for rate in tried]
    return found


def best(table: Records, method: str) -> Row:
    """The row of the rate that validates best by log q of θ on pairs that were not fitted."""
    return max(table.at(method=method).rows(), key=valid_of)


def valid_of(row: Row) -> float:
    """log q of fresh pairs, by which rates are chosen; −∞ where it is not known."""
    value = row.get("valid_log_q")
    return -math.inf if value is None else value


def trained(name: str, seed: int, method: str, rate: float | None, o: argparse.Namespace) -> Row:
    """The record of one fit. Of fresh pairs one half validates rates, the other is the test."""
    task = sbibm.task_of(name)
    theta, x = sbibm.pairs(task, o.simulations + sbibm.FRESH, seed, o.home)
    started = time.process_time()
    fitted = fit_of(method, rate, task)(theta[: o.simulations], x[: o.simulations], seed, o.seconds)
    spent = time.process_time() - started
    log_q = fitted.log_prob(theta[o.simulations :], x[o.simulations :])
    halves = [float(part.mean()) for part in np.array_split(log_q, 2)]
    known = [round(value, 4) if math.isfinite(value) else None for value in halves]
    each = [sbibm.judged(task, fitted, number, o.draws) for number in OBSERVATIONS]
    return {
        "setting": fitted.setting, "fit_cpu_seconds": round(spent, 1),
        "valid_log_q": known[0], "log_q": known[1],
        **{key: [round(one[key], 4) for one in each] for key in each[0]},
    } | made_by(seed)  # fmt: skip


def summary(table: Records) -> str:
    """C2ST, means over observations ± the error over seeds, and what GenSBI publishes."""
    lines = []
    for name in TASKS:
        cells = []
        for method in METHODS:
            rows = table.at(task=name, method=method).rows()
            chosen = {row["seed"]: row for row in sorted(rows, key=valid_of)}
            cells.append(sbibm.summary([*chosen.values()], "c2st", 3))
        aim = AIMS.get(name)
        if any(cell != "–" for cell in cells):
            lines.append(
                [name, *cells, f"{GENSBI[name]:.3f}", "–" if aim is None else f"{aim:.2f}"]
            )
    return in_table("task", *METHODS, "GenSBI, published", "aim", rows=lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m research.posteriors fair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, required=True, help="folder of the simulations")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the reference and of a method")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the processor, a fit")
    o = command.parsed(parser, arguments)
    if importlib.util.find_spec("sbibm") is None:
        parser.error("sbibm is not installed: research/posteriors/sbibm.md says how")
    methods = [name for name in o.methods if not name.startswith(OTHER)]
    if importlib.util.find_spec("sbi") is not None:
        methods = o.methods
    warnings.simplefilter("ignore")
    made = Records(o.records / RECORD).at(
        simulations=o.simulations, draws=o.draws, seconds=o.seconds
    )
    for name, seed in itertools.product(o.tasks, o.seeds):
        table = made.at(task=name)
        for method, rate in jobs(table, seed, methods):
            cell = table.at(seed=seed, method=method, rate=rate)
            study.record(cell, functools.partial(trained, name, seed, method, rate, o))
    print(summary(made))
