"""Test log-likelihoods of tables that no page has seen: indm.DensityEstimator next to rivals whose
training is as good as its own.

    python -m research.tables fair data ROOT --handson GITDIR --seaborn GITDIR --regression GITDIR
    python -m research.tables fair run ROOT [TABLE …] --seconds 120 --seeds 0 1 2
    python -m research.tables fair show --seconds 120

The design is in fair.md. ROOT gets the tables :data:`research.data.real_tables.UNSEEN` from bare
copies of three repositories. A run goes on where it stopped: seed 0 with each rate of a flow, all
tables, and then the next seeds with the rate that validated best. Each fit is a row of
``fair_tables.csv``, and has so many seconds of the processor.
"""

import argparse
import functools
import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scipy.special import log_ndtr, logsumexp
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor

from indm import DensityEstimator
from indm.tables import solve
from research.data import real_tables
from research.lab import zuko_flows
from research.lab.statistics import judged_as_planned
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by
from research.tables import command, real
from research.tables.flows import (
    Diverged,
    Fitted,
    Space,
    beside,
    chosen_from,
    estimator,
    measured,
    of_estimator,
    over_splits,
)

RECORD = "fair_tables.csv"
SECONDS, SEEDS = 120.0, (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2)  # of the flows
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "nsf": ("NSF", {"transforms": 3, "bins": 8, "hidden_features": (64, 64)}),
    "maf": ("MAF", {"transforms": 5, "hidden_features": (64, 64)}),
}
COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 75, 100, 150, 200)
FLOORS = (1e-6, 1e-4, 1e-3)  # added to the variances of a mixture, in units of the columns
WORSE = 2  # numbers of components in a row that validate worse, after which a mixture ends
BANDWIDTHS = np.geomspace(1, 0.03, 20)
LEAVES = (5, 20)  # fewest rows of a leaf of ARF
OWN, START = "indm", "start"
NEEDED = (OWN, "nsf", "mixture")  # methods without which a seed of a table is not shown
Array = np.ndarray


# ── Rivals ────────────────────────────────────────────────────────────────────────────────────────


def flow(
    name: str, rate: float, train: Array, valid: Array, space: Space, seed: int, seconds: float
) -> Fitted:
    """A flow of zuko at a rate, trained as the estimator's own is."""
    kind, options = FLOWS[name]
    chosen, setting = zuko_flows.trained(
        kind, options, pair(space(train)), pair(space(valid)), rate, seed, seconds
    )
    if not math.isfinite(setting["valid"]):
        raise Diverged(f"no finite validation in {seconds:g} s at {rate:g}")

    @torch.no_grad()
    def density(rows: Array) -> Array:
        return -chosen.nats(*pair(rows)).double().numpy()

    return lambda X: space.log_prob(X, density), setting


def pair(rows: Array) -> tuple[Tensor, Tensor]:
    """Rows as numbers of a flow, and no conditions of them."""
    z = torch.from_numpy(rows).float()
    return z, z[:, :0]


def mixture(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
    """The Gaussian mixture of the best validation: more components with each floor of variances,
    until two numbers in a row are worse, or the next would end after the seconds.
    """
    z, held = space(train), space(valid)
    best: tuple[float, Any, dict[str, Any]] = (-math.inf, None, {})
    started, worse = time.process_time(), 0
    for k in COMPONENTS:
        began, before = time.process_time(), best[0]
        for floor in FLOORS:
            model = GaussianMixture(k, reg_covar=floor, random_state=seed).fit(z)
            value = float(model.score(held))
            if value > best[0]:
                best = (value, model, {"components": k, "floor": floor, "valid": value})
        worse = 0 if best[0] > before else worse + 1
        now = time.process_time()
        if worse == WORSE or now + 1.5 * (now - began) > started + seconds:
            break
    return lambda X: space.log_prob(X, best[1].score_samples), best[2]


def forest(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
    """An adversarial random forest (Watson et al. 2023) by arfpy, with the size of its leaves by
    validation; it ends by itself.
    """
    from arfpy import arf

    names = [f"c{i}" for i in range(train.shape[1])]
    frame = pd.DataFrame(space(train), columns=names)
    held = space(valid)
    best: tuple[float, Any, dict[str, Any]] = (-math.inf, None, {})
    np.random.seed(seed)
    with mock.patch.object(np, "in1d", np.isin, create=True):  # which new versions lack
        for size in LEAVES:
            found = arf.arf(frame, min_node_size=size, random_state=seed, verbose=False)
            found.forde()
            density = functools.partial(forest_density, found, leaves_of(found, names))
            value = float(density(held).mean())
            if value > best[0]:
                best = (value, density, {"leaf": size, "valid": value, "accuracy": found.acc})
    return lambda X: space.log_prob(X, best[1]), best[2]


def leaves_of(found: Any, names: Sequence[str]) -> list[dict[int, tuple[Array, ...]]]:
    """Of each tree the leaves: node ↦ log share, means, deviations, lower and upper bounds."""
    both = found.params.merge(
        found.bnds[["tree", "nodeid", "variable", "cvg"]], on=["tree", "nodeid", "variable"]
    )
    column = {name: i for i, name in enumerate(names)}
    both = both.assign(place=both["variable"].map(column)).sort_values(["tree", "nodeid", "place"])
    numbers = both[["cvg", "mean", "sd", "min", "max"]].to_numpy().reshape(-1, len(names), 5)
    trees: list[dict[int, tuple[Array, ...]]] = [{} for _ in range(found.num_trees)]
    nodes = both[["tree", "nodeid"]].to_numpy(int)[:: len(names)]
    for (tree, node), leaf in zip(nodes, numbers, strict=True):
        share, mean, deviation, low, high = leaf.T
        trees[tree][node] = (np.log(share[0]), mean, np.maximum(deviation, 1e-9), low, high)
    return trees


def forest_density(found: Any, trees: list[dict[int, tuple[Array, ...]]], z: Array) -> Array:
    """log of the mean over trees of share · ∏ truncated normals, in the leaf of each row."""
    nodes = found.clf.apply(z.astype(np.float32))
    each = np.full(nodes.shape, -np.inf)
    for (row, tree), node in np.ndenumerate(nodes):
        if node in trees[tree]:
            share, mean, deviation, low, high = trees[tree][node]
            u, a, b = ((part - mean) / deviation for part in (z[row], low, high))
            normal = -0.5 * u**2 - 0.5 * np.log(2 * np.pi) - np.log(deviation)
            each[row, tree] = share + (normal - log_interval(a, b)).sum()
    return logsumexp(each, axis=1) - math.log(len(trees))


def log_interval(a: Array, b: Array) -> Array:
    """log of the normal probability of [a, b], on the side where it is precise."""
    low, high = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
    upper, lower = log_ndtr(high), log_ndtr(low)
    return upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-300)))


OTHERS: dict[str, Callable[..., Fitted]] = {
    "mixture": mixture,
    "kde": chosen_from(
        [{"bandwidth": float(h)} for h in BANDWIDTHS],
        lambda setting, _: KernelDensity(**setting),
        is_ladder=True,
    ),
    "arf": forest,
}
RIVALS = (*FLOWS, *OTHERS)
METHODS = (OWN, *RIVALS)


# ── The estimator, with and without its correction ────────────────────────────────────────────────


def start_log_prob(found: DensityEstimator, X: Array) -> Array:
    """log p of rows by the start of the only model: its flow with the mixture behind it, or its
    mixture.
    """
    (model,) = found.models_
    none = np.zeros((len(X), 0))
    with torch.no_grad():
        latents = torch.from_numpy(found.columns_.latents(X, none))
        parts = [solve.start_log_prob(model, z) for z in latents.split(solve.ROWS_AT_ONCE)]
    return torch.cat(parts).numpy() + found.columns_.log_volume(X)


def own_record(
    train: Array, valid: Array, test: Array, space: Space, seed: int, seconds: float
) -> Row:
    """The record of the estimator, with log p of the test rows by its start as well."""
    kept = {}

    def fit(*arguments: Any) -> Fitted:
        kept["found"] = estimator(*arguments)
        return of_estimator(kept["found"], space)

    made = measured(fit, train, valid, test, space, seed, seconds)
    start = start_log_prob(kept["found"], test)
    return made | {"start_nats": [round(value, 3) for value in start.tolist()]}


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────


def jobs(table: Records, seed: int, rates: Sequence[float], methods: Sequence[str]) -> list[Row]:
    """The keys of the fits of a seed: of a flow each rate for the first seed, then the best."""
    found: list[Row] = []
    for method in methods:
        if method not in FLOWS:
            found.append({"method": method, "rate": None})
            continue
        first = table.at(seed=SEEDS[0])
        tried = rates if seed == SEEDS[0] else (best_rate(first, method),)
        found += [{"method": method, "rate": rate} for rate in tried]
    return found


def best_rate(table: Records, method: str) -> float:
    """The rate of a flow's best validation."""
    return max(table.at(method=method).rows(), key=real.valid_of)["rate"]


def block(
    table: Records,
    X: Array,
    seconds: float,
    seed: int,
    rates: Sequence[float],
    methods: Sequence[str],
) -> None:
    """Make the rows that a table and a seed lack."""
    missing = [
        job for job in jobs(table, seed, rates, methods) if not table.at(seed=seed, **job).rows()
    ]
    if not missing:
        return
    train, valid, test = real.split(X, seed)
    columns = real.columns_of(np.concatenate([train, valid]), seed, seconds)
    for job in missing:
        space = real.Mapped(train, seed, columns)
        row = record(job, (train, valid, test), space, seed, seconds)
        table.at(seed=seed, **job).add(row)
        shown = (row.get(name) for name in ("test", "diverged", "setting", "fit_cpu_seconds"))
        print(*table.key, seed, *job.values(), *shown, flush=True)


def record(
    job: Row, parts: tuple[Array, Array, Array], space: Space, seed: int, seconds: float
) -> Row:
    """The record of a fit; of one that diverged, the reason."""
    train, valid, test = parts
    shape = {
        "columns": train.shape[1],
        "rows": len(train) + len(valid),
        "test_rows": len(test),
    }
    if job["method"] == OWN:
        return shape | own_record(train, valid, test, space, seed, seconds)
    fit = OTHERS.get(job["method"]) or functools.partial(flow, job["method"], job["rate"])
    try:
        held = valid[: real.MOST_VALID]
        return shape | measured(fit, train, held, test, space, seed, seconds)
    except Diverged as error:
        return shape | {"diverged": str(error)} | made_by(seed)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────


def nats_of(table: Records) -> dict[str, Array]:
    """log p of the test rows (seeds, rows) by each method that has every seed of the estimator, the
    estimator's first, and by its start; of a flow the rate that validated best.
    """
    found: dict[int, dict[str, Row]] = {}
    for row in sorted(table.rows(), key=real.valid_of):
        found.setdefault(row["seed"], {})[row["method"]] = row
    whole = [rows for _, rows in sorted(found.items()) if {*NEEDED} <= rows.keys()]
    made = [
        name
        for name in METHODS
        if whole and all("test_nats" in rows.get(name, {}) for rows in whole)
    ]
    nats = {name: np.array([rows[name]["test_nats"] for rows in whole]) for name in made}
    if OWN in nats:
        nats[START] = np.array([rows[OWN]["start_nats"] for rows in whole])
    return nats


def rivals_of(nats: dict[str, Array]) -> dict[str, Array]:
    """The estimator and its rivals, without its start."""
    return {name: each for name, each in nats.items() if name != START}


def tables_of(made: Records) -> dict[str, dict[str, Array]]:
    """Of each table with rows, what its methods found."""
    each = {name: nats_of(made.at(table=name)) for name in real_tables.UNSEEN}
    return {name: found for name, found in each.items() if OWN in found}


def summary(made: Records) -> str:
    """log p of the estimator, what its correction adds to its start, and what rivals have beyond
    it.
    """
    tables = tables_of(made)
    leads = {}
    for name, nats in tables.items():
        rivals = rivals_of(nats)
        leads[name] = real.lead(rivals, real.best_peer(rivals))
    tests = judged_as_planned([*leads.values()], len(real_tables.UNSEEN))
    lines = []
    for (name, nats), test in zip(tables.items(), tests, strict=True):
        rivals = rivals_of(nats)
        cells = dict(zip(rivals, beside(rivals, OWN), strict=True))
        rows = made.at(table=name, method=OWN).rows()
        starts = [start for row in rows for start in row["setting"]["starts"]]
        correction = with_error(*over_splits(nats[OWN] - nats[START]), "+.3f")
        best = real.best_peer(rivals)
        adjusted = "–" if test["p_holm"] is None else f"{test['p_holm']:.2g}"
        lines.append([
            name, f"{rows[0]['rows']} × {rows[0]['columns']}", len(nats[OWN]), cells[OWN],
            ", ".join(dict.fromkeys(starts)), correction,
            *(cells.get(rival, "–") for rival in RIVALS), best,
            f"{np.median(nats[best] - nats[OWN]):+.2f}", real.word(leads[name]), adjusted,
        ])  # fmt: skip
    titles = ("best rival", "median", "indm is", "Holm's p")
    return in_table(
        "table", "rows × columns", "seeds", OWN, "start", "correction", *RIVALS, *titles, rows=lines
    )


def rates_table(made: Records) -> str:
    """Test log p of the flows at each rate beyond the estimator, of the first seed; the rate that
    validated best is marked.
    """
    lines = []
    for name, method in itertools.product(real_tables.UNSEEN, FLOWS):
        table = made.at(table=name, seed=SEEDS[0])
        own, rows = table.at(method=OWN).rows(), table.at(method=method).rows()
        if not own or not rows:
            continue
        best = max(rows, key=real.valid_of)
        cells = {row["rate"]: rate_cell(row, own[0]) for row in rows}
        cells[best["rate"]] += "*"
        setting = best.get("setting", {})
        told = (setting.get(word, "–") for word in ("step", "steps", "ended"))
        lines.append([name, method, *(cells.get(rate, "–") for rate in RATES), *told])
    rates = (f"{rate:g}" for rate in RATES)
    return in_table("table", "flow", *rates, "best step", "steps", "ended by", rows=lines)


def rate_cell(row: Row, own: Row) -> str:
    if "test_nats" not in row:
        return "diverged"
    gain = np.mean(row["test_nats"]) - np.mean(own["test_nats"])
    return f"{gain:+.2f}"


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m research.tables fair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    copying, running, showing = (commands.add_parser(name) for name in ("data", "run", "show"))
    for part in (copying, running):
        part.add_argument("root", type=Path)
    for source, origin in real_tables.ORIGINS.items():
        copying.add_argument(f"--{source}", type=Path, help=origin)
    for part in (running, showing):
        part.add_argument("--seconds", type=float, default=SECONDS, help="of the processor, a fit")
        part.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    running.add_argument("tables", nargs="*", help=f"by default {', '.join(real_tables.UNSEEN)}")
    running.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    running.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="of flows")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    if o.command == "data":
        places = {name: getattr(o, name) for name in real_tables.ORIGINS if getattr(o, name)}
        real_tables.copy(o.root, places, real_tables.UNSEEN)
        return
    made = Records(o.records / RECORD).at(seconds=o.seconds)
    if o.command == "show":
        print(summary(made), rates_table(made), sep="\n\n")
        return
    methods = list(o.methods)
    if "arf" in methods and importlib.util.find_spec("arfpy") is None:
        print("arf is left out: arfpy is not installed")
        methods.remove("arf")
    for seed, name in itertools.product(o.seeds, o.tables or real_tables.UNSEEN):
        X = real_tables.load(o.root, name)
        block(made.at(table=name), X, o.seconds, seed, o.rates, methods)
