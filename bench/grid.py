"""Runs of the command line, each in a process of its own, resumable, and their comparison in pairs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

COMMAND = ("-m", "indm")
RESIDUAL = ["--flow", "residual", "--flow.blocks", "[4]", "--flow.width", "16", "--train.flow_every", "4"]


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
        one_thread(*COMMAND, "evaluate", str(folder), "--quiet", *evaluation)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def per_image(folder: Path) -> tuple[np.ndarray, float]:
    """NELBO of every test image in the reported unit, and the run's mean."""
    result = json.loads((folder / "evaluation.json").read_text())
    with np.load(folder / "evaluation.npz") as arrays:
        values = arrays["nelbo"] / (result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0)
    return values, float(values.mean())


def difference(pairs: list[tuple[Path, Path]]) -> dict:
    """Mean paired difference, its standard error over seeds and over images, and the verdict at two of the larger."""
    differences = np.stack([per_image(a)[0] - per_image(b)[0] for a, b in pairs])
    seeds = differences.mean(1)
    over_seeds = float(seeds.std(ddof=1) / math.sqrt(len(seeds))) if len(seeds) > 1 else math.nan
    over_images = float(differences.mean(0).std(ddof=1) / math.sqrt(differences.shape[1]))
    error = np.nanmax([over_seeds, over_images])
    verdict = "tie" if abs(seeds.mean()) < 2 * error else "better" if seeds.mean() < 0 else "worse"
    return {
        "difference": float(seeds.mean()),
        "standard_error_over_seeds": over_seeds,
        "standard_error_over_images": over_images,
        "verdict": verdict,
    }
