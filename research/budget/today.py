"""Turns run folders of the commit of the trainings into today's; it goes when they are read.

    python -m research.budget.today HOME/runs/fashion/final/*

That commit writes one option that there is no more: the rate of learned forward processes.
"""

import sys
from pathlib import Path

GONE = ("forward_lr = ",)


def convert(run: Path) -> bool:
    """Take the options that are gone out of a run's recipe; whether there were any."""
    recipe = run / "recipe.toml"
    lines = recipe.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(GONE)]
    recipe.write_text("".join(kept), "utf-8")
    return kept != lines


if __name__ == "__main__":
    for run in map(Path, sys.argv[1:]):
        print(run, "converted" if convert(run) else "as it is")
