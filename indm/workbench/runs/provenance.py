"""Provenance of results: versions, command, seed, weights, data."""

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import indm
from indm.files import atomic, untrusted
from indm.model import WEIGHTS
from indm.workbench.data.base import Data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import device

RECORD = "versions.json"  # file in the run folder


def provenance(
    seed: int | None, weights: Mapping[str, str], where: torch.device | None = None
) -> dict:
    """The provenance of a result: versions, command, seed, weights and machine.

    Every file of numbers contains it. The ``seed`` is None if nothing is random; ``weights`` are
    the :func:`weights_hash` of each run.
    """
    where = torch.device(device()) if where is None else where
    return {
        "indm": indm.__version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "accelerate", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
        "command": sys.argv,
        "seed": seed,
        "weights_sha256": dict(weights),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads(),
    }


def describe_run(
    run: Path, recipe: Recipe, device: torch.device, notes: list[str], more: dict | None = None
) -> None:
    """Write ``recipe.toml``, with absolute paths of data, and ``versions.json``.

    The latter is the provenance of the run, or of the last part of a resumed one, with notes on the
    data and ``more``. Its key ``before`` has the provenance of earlier parts.
    """
    text = recipes.to_toml(recipes.absolute(recipe))
    made_by = provenance(recipe.train.seed, {}, device)
    run.mkdir(parents=True, exist_ok=True)
    atomic.text(run / "recipe.toml", text)
    before = parts_of_record(run)
    made_by |= {"data": notes} | (more or {})
    atomic.json_object(run / RECORD, made_by | ({"before": before} if before else {}))


def last_part(run: Path) -> dict:
    """The provenance of the last part of a run; {} if it is not known."""
    return (parts_of_record(run) or [{}])[-1]


def split_record(data: Data) -> dict:
    """The fingerprint and size of ``data``: if they change, examples may be in another split."""
    return {
        "data_sha256": data.fingerprint,
        "data_examples": sum(map(len, (data.train, data.valid, data.test))),
    }


def trained_on_others(run: Path, data: Data) -> list[dict]:
    """The provenance of the parts of ``run`` that were trained on other data than ``data``."""
    own = data.fingerprint
    return [part for part in parts_of_record(run) if part.get("data_sha256", own) != own]


def warn_of_other_splits(run: Path, data: Data) -> bool:
    """Whether a part of ``run`` was trained on other data than ``data``, with a warning."""
    now, others = split_record(data), trained_on_others(run, data)
    if others:
        before = others[0].get("data_examples")
        warnings.warn(
            f"the data of {run} have changed since it was trained, {before} examples then, "
            f"{now['data_examples']} now: some may have moved from the training to the test split, "
            "and results on them are then too good",
            stacklevel=3,
        )
    return bool(others)


def parts_of_record(run: Path) -> list[dict]:
    """The provenance of each part of a run; [] if ``versions.json`` is missing or damaged."""
    try:
        last = untrusted.json_object(run / RECORD)
        return [part for part in (*last.pop("before", []), last) if isinstance(part, dict)]
    except (ValueError, TypeError):
        return []


def weights_hash(run: Path) -> str:
    """SHA-256 of the run's averaged weights, to recognise files that were made with them."""
    return hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()


def git_state() -> str | None:
    """The commit of this source, with ``+`` if tracked files differ; None outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        options: Any = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        return subprocess.run(command, **options).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        differs = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if differs else "")
    except (OSError, subprocess.SubprocessError):
        return None
