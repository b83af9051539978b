"""The run folder: what may be written into it, the files that say what made it, reading it and leaving it whole."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor

import indm
from indm import recipes
from indm.data import Data, load_data, stack
from indm.recipes import Evaluation, Recipe

WEIGHTS = ("model.safetensors", "vae.safetensors")  # of an INDM, of a VAE
# What may differ between a run and its continuation: it says how long and how watched, not what is computed.
FREE_ON_RESUME = {
    f"train.{key}"
    for key in (
        "steps", "seconds", "log_every", "validate_every", "checkpoint_every", "keep_every", "workers", "trackers",
        "keep_last", "skips", "rollbacks",
    )
}  # fmt: skip


def check_folder(run: Path, recipe: Recipe, resume: bool) -> None:
    """Nothing is written over: a fresh run needs a fresh folder, a resumed one the recipe it began with."""
    if not resume:
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise ValueError(f"{run} exists and is not empty: go on with --resume, or start anew with another --out")
        return
    if not (run / "recipe.toml").is_file():
        raise FileNotFoundError(f"{run} holds no run to resume (no recipe.toml in it); leave out --resume to start one")
    differing = set(recipes.differences(recipes.load(run), recipe)) - FREE_ON_RESUME
    differing = sorted(key for key in differing if not key.startswith("evaluate."))
    if differing:
        raise ValueError(f"{run} is a run of another recipe: it differs in {', '.join(differing)}; use another --out")


def describe(run: Path, recipe: Recipe, device: torch.device, data_notes: list[str]) -> None:
    """Write ``recipe.toml`` and ``versions.json``: packages, git state of the source, seed, device, data, command."""
    made_by = {
        "indm": indm.__version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "accelerate", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
        "seed": recipe["train"]["seed"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data": data_notes,
        "command": sys.argv,
    }
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "recipe.toml", recipes.to_toml(recipe))
    write_json(run / "versions.json", made_by)


def device() -> str:
    """Where models are looked at: the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_run(run: Path) -> tuple[indm.INDM, Recipe]:
    """The averaged model, on :func:`device`, and the resolved recipe of a run folder."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no run folder")
    recipe = recipes.resolve(recipes.load(run))
    return indm.INDM.load(run, device=device()), recipe


def evaluate(run: Path, given: dict | None = None, *, progress: bool = True) -> dict:
    """The likelihood of held-out data under a run's model, see :func:`indm.evaluate`.

    ``given`` stands over the recipe's ``[evaluate]``. Writes ``evaluation.json``, which is returned, and per-example
    nats to ``evaluation.npz``. Where several processes were launched, each does its share; the main one writes.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    model, recipe = open_run(run)
    options = Evaluation(**recipe["evaluate"] | (given or {}))
    data = load_data(**recipe["data"])
    settings = {key: value for key, value in vars(options).items() if key not in ("split", "images")}
    settings["steps"] = options.steps or None
    raw = stack(getattr(data, options.split), options.images)
    distributed, main = processes.num_processes > 1, processes.is_main_process
    result, nats = indm.evaluate(model, raw, progress=progress and main, distributed=distributed, **settings)
    if main:
        write_evaluation(run, result, nats, recipe, data, options.split)
    return result


def weights_hash(run: Path) -> str:
    """SHA-256 of the run's averaged model: whether a file was made of these very weights."""
    weights = next((run / name for name in WEIGHTS if (run / name).exists()), None)
    if weights is None:
        raise ValueError(f"{run} holds no saved model: there is no {' or '.join(WEIGHTS)} in it")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_evaluation(run: Path, result: dict, nats: dict[str, Tensor], recipe: Recipe, data: Data, split: str) -> None:
    """Add to ``result`` what was evaluated, and write both."""
    result |= {
        "data": recipe["data"],
        "split": split,
        "weights_sha256": weights_hash(run),
        "entropy_nats": data.entropy,
        "unit": "bits/dim" if data.scaling.levels else "nats",
    }
    save_arrays(run / "evaluation.npz", {name: values.numpy() for name, values in nats.items()})
    write_json(run / "evaluation.json", result)  # last: where it is, the other is


def read_metrics(run: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``; what is no line of it, such as one cut off in the writing, is left out."""
    path, lines = run / "metrics.jsonl", []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) and isinstance(line.get("step"), int) else []
    return lines


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal acts as it always did."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number, frame) -> None:
        event.set()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()


def git_state() -> str | None:
    """Commit of the checkout that this source lies in, with ``+`` where tracked files differ; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` to a file beside ``path``, then put it in its place: at no time is ``path`` half written.

    Where that fails, nothing is left of it: on a full disk a half-written file would keep the rest from being saved.

    Raises:
        OSError: also where torch or safetensors have another name for a full disk.
    """
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (RuntimeError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written, what was there before is as it was: {error}") from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, "utf-8"))


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
