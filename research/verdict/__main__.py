"""The study's commands; see README.md.

    python -m research.verdict costs --data DATA --root ROOT    # of the steps of the search, while nothing else runs
    python -m research.verdict search --data DATA --root ROOT   # what has no row yet, --jobs trainings side by side

``DATA`` is cifar10-16 or clothes-16; ``ROOT`` is the folder of ``cifar10.npz``. The tables are in research/records.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from research.verdict import search
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
    parser.add_argument("command", choices=["costs", "search"])
    parser.add_argument("--data", default="cifar10-16")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    if asked.command == "costs":
        measure(asked.data, load(asked.data, asked.root), of_search())
    if asked.command == "search":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(asked.jobs, mp_context=spawn) as pool:
            best = search.run(search.in_processes(asked.data, pool, partial(search.keep, asked.root)))
        print(*(f"{name}: {variant}" for name, variant in best.items()), sep="\n")


if __name__ == "__main__":
    main()
