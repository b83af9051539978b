"""Runs of the command line, each in a process of its own, resumable, and their comparison in pairs."""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = ("-m", "indm")
RESIDUAL = ["--flow", "residual", "--flow.blocks", "[4]", "--flow.width", "16", "--train.flow_update_every", "4"]


def one_thread(*arguments: str) -> None:
    """``python ARGUMENTS`` on one thread; what it prints is kept for when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {result.returncode}: {result.stderr[-2000:]}")


def run(
    folder: Path, recipe: str, seed: int, changes: list[str], evaluation: list[str], trainer: tuple[str, ...] = COMMAND
) -> None:
    """Train and evaluate one run, or what is left of it; ``changes`` are options of ``indm train``."""
    if not (folder / "summary.json").exists() or summary(folder)["interrupted"]:
        resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
        seeds = ["--train.seed", str(seed)]
        one_thread(*trainer, "train", recipe, "--out", str(folder), "--quiet", *resume, *seeds, *changes)
    if not (folder / "evaluation.json").exists():
        one_thread(*COMMAND, "evaluate", str(folder), "--quiet", "--trust", "research", *evaluation)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
