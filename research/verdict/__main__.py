"""The study's commands; see README.md.

    python -m research.verdict costs --data DATA --root ROOT    # of the steps of the search, while nothing else runs
    python -m research.verdict search --data DATA --root ROOT   # what has no row yet, --jobs trainings side by side

    python -m research.verdict final --root ROOT --models FOLDER    # trainings and measures that have no row yet; it
                                                                    # begins with costs, while nothing else runs

    python -m research.verdict inserted --data DATA --root ROOT --jobs 2    # a flow from the start, or later
    python -m research.verdict glow --root ROOT --jobs 2    # rotations of 1×1 convolutions
    python -m research.verdict joint    # laws of known density, while nothing else runs
    python -m research.verdict losses --root ROOT   # estimators of the bound; costs first, while nothing else runs
    python -m research.verdict figure   # of the described measures

``DATA`` is cifar10-16 or clothes-16; ``ROOT`` is the folder of ``cifar10.npz``. The tables are in research/records. A
final training keeps its model in ``FOLDER``, and is measured again, not trained again, where it was stopped between.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from research.verdict import final, glow, joint, losses, results, search
from research.verdict.costs import measure
from research.verdict.images import load
from research.verdict.variants import FAMILIES, Variant


def of_search() -> list[Variant]:
    """Variants with every kind of step of the search."""
    joint = [Variant(spline=True, family=family, enters=0.25, frozen=0.25) for family in FAMILIES]
    learned = [Variant(noise="variational"), Variant(spline=True, noise="variational")]
    return [Variant(), Variant(spline=True), *joint, *learned, replace(joint[0], noise="variational")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m research.verdict")
    parser.add_argument(
        "command", choices=["costs", "search", "inserted", "final", "glow", "losses", "joint", "figure"]
    )
    parser.add_argument("--data", default="cifar10-16")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--models", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    if asked.command == "figure":
        results.figure()
        return
    if asked.command == "costs":
        measure(asked.data, load(asked.data, asked.root), of_search())
    if asked.command == "final":
        for data in final.STUDIES:
            measure(data, load(data, asked.root), [*final.CHOSEN.values()])
    if asked.command == "joint":
        for job in joint.jobs():
            joint.run(job)
    if asked.command == "losses":
        for data in losses.STUDIES:
            losses.measure_costs(data, load(data, asked.root))
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        if asked.command == "search":
            best = search.run(search.in_processes(asked.data, pool, partial(search.keep, asked.root)))
            print(*(f"{name}: {variant}" for name, variant in best.items()), sep="\n")
        if asked.command == "inserted":
            tried = [(when, seed) for seed in search.SEEDS for when in search.WHEN]
            left = [(when, seed) for when, seed in tried if not search.insertion(asked.data, when, seed).rows()]
            list(pool.map(partial(search.insert, asked.root, asked.data), *zip(*left, strict=True)))
        if asked.command == "final":
            missing = [job for job in final.jobs() if not job.table.rows()]
            list(pool.map(partial(final.run, root=asked.root, models=asked.models), missing))
        if asked.command == "glow":
            list(pool.map(partial(glow.run, root=asked.root), glow.jobs()))
        if asked.command == "losses":
            list(pool.map(partial(losses.run, root=asked.root), losses.jobs()))


if __name__ == "__main__":
    main()
