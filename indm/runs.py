"""The run folder: what may be written into it, the files that say what made it, reading it and leaving it whole."""

import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import indm
from indm import recipes
from indm.data import Data, load_data, stack
from indm.recipes import Evaluation, Recipe
from indm.sampling import centre_prior, find_sampler

SAMPLES = "samples.npz"
WEIGHTS = ("model.safetensors", "vae.safetensors")  # of an INDM, of a VAE
# What may differ between a run and its continuation: it says how long and how watched, not what is computed.
FREE_ON_RESUME = {
    f"train.{key}"
    for key in (
        "steps", "seconds", "log_every", "validate_every", "checkpoint_every", "keep_every", "workers", "trackers",
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
    nats to ``evaluation.npz``.
    """
    model, recipe = open_run(run)
    options = Evaluation(**recipe["evaluate"] | (given or {}))
    data = load_data(**recipe["data"])
    settings = {key: value for key, value in vars(options).items() if key not in ("split", "images")}
    settings |= {"steps": options.steps or None, "eps": options.eps or None}
    raw = stack(getattr(data, options.split), options.images)
    result, nats = indm.evaluate(model, raw, progress=progress, **settings)
    write_evaluation(run, result, nats, recipe, data, options.split)
    return result


@dataclass(frozen=True)
class Drawing:
    """What decides the samples of a run, as :func:`indm.sample` takes it; None is the sampler's or the SDE's own.

    ``latent_mean`` centres the prior on the latents of (up to 10,000) training data, see
    :func:`indm.sampling.centre_prior`.
    """

    n: int = 64
    sampler: str = "unipc"
    steps: int = 25
    tol: float | None = None
    snr: float | tuple[float, ...] | None = None
    eps: float | None = None
    latent_mean: bool = False
    temperature: float = 1.0
    last_denoising: bool = True
    batch_size: int = 256
    seed: int = 0


def draw(
    run: Path, drawing: Drawing, out: Path | None = None, *, progress: bool = True
) -> tuple[Tensor, int, dict | None]:
    """Samples in data units (n, *event), their grey levels (0: none), and their provenance: how they were drawn, and
    of which weights and data.

    They are kept in ``samples.npz`` in ``out`` (the run folder for None), and taken from there if that very drawing
    is in it.
    """
    model, recipe = open_run(run)
    if drawing.n < 1:
        raise ValueError(f"n must be at least 1 sample, got {drawing.n}")
    settings = asdict(drawing) | find_sampler(drawing.sampler, tol=drawing.tol, snr=drawing.snr)[1]
    settings |= {"steps": None if drawing.sampler == "ode" else drawing.steps, "eps": model.sde.truncation(drawing.eps)}
    device = model.scaling.scale.device
    made_by = settings | {"device": device.type, "weights_sha256": weights_hash(run), "data": recipe["data"]}
    made_by = json.loads(json.dumps(made_by))  # as it is read again
    file = (out or run) / SAMPLES
    if file.is_file():
        found = read_samples(file)
        if found[2] == made_by:
            return found
    generator = torch.Generator(device).manual_seed(drawing.seed)
    if drawing.latent_mean:
        centre_prior(model, stack(load_data(**recipe["data"]).train, 10_000), generator=generator)
    options = {key: value for key, value in asdict(drawing).items() if key not in ("n", "seed", "latent_mean")}
    x = indm.sample(model, drawing.n, **options, generator=generator, progress=progress)
    samples = model.scaling.to_data(x).cpu()
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"samples": samples.numpy(), "levels": np.array(model.scaling.levels or 0)}
    save_arrays(file, arrays | {"provenance": np.array(json.dumps(made_by))})
    return read_samples(file)


def read_samples(file: Path) -> tuple[Tensor, int, dict | None]:
    """Samples that :func:`draw` kept, their grey levels (0: none), and their provenance; None where it is unknown."""
    try:
        with np.load(file, allow_pickle=False) as content:
            made_by = json.loads(str(content["provenance"])) if "provenance" in content else None
            return torch.from_numpy(content["samples"]), int(content["levels"]), made_by
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read as samples that 'indm sample' wrote: {reason}") from error


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
    """The lines of ``metrics.jsonl``; a last line that was cut off in the writing is left out."""
    path, lines = run / "metrics.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
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
    """``write`` to a file beside ``path``, then put it in its place: at no time is ``path`` half written."""
    beside = path.with_name(f".{path.name}.new")
    write(beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, "utf-8"))


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
