"""The run folder: what may be written into it, the files that say what made it, reading it and leaving it whole."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed import is_torchelastic_launched

import indm
from indm import reading, recipes, writing
from indm.data import Data, load_data, stack
from indm.images import count_unreadable
from indm.recipes import Evaluation, Recipe
from indm.sampling import centre_prior, find_sampler

SAMPLES = "samples.npz"
OF_SAMPLES = ("samples.json", SAMPLES, "samples.png")  # all of one drawing
WEIGHTS = ("model.safetensors", "vae.safetensors")  # of an INDM, of a VAE
LOCK = ".lock"
T = TypeVar("T")
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
        return check_empty(run)
    if not (run / "recipe.toml").is_file():
        raise FileNotFoundError(f"{run} holds no run to resume (no recipe.toml in it); leave out --resume to start one")
    differing = set(recipes.differences(recipes.load(run), recipe)) - FREE_ON_RESUME
    differing = sorted(key for key in differing if not key.startswith("evaluate."))
    if differing:
        raise ValueError(f"{run} is a run of another recipe: it differs in {', '.join(differing)}; use another --out")


def check_empty(folder: Path) -> None:
    """ValueError where ``folder`` holds more than what a process that was killed at once has left."""
    if folder.exists() and (not folder.is_dir() or any(not _says_nothing(path) for path in folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: go on with --resume, or start anew with another --out")


def _says_nothing(path: Path) -> bool:
    return path.match(writing.HALF_WRITTEN) or path.name == LOCK


def finished(run: Path, recipe: Recipe) -> dict | None:
    """The summary of a run that has spent the budget of ``recipe``; None where it has not, or none can be read."""
    budget = recipes.options_of(recipe, "train")
    try:
        summary = reading.json_object(run / "summary.json")
        spent = summary["steps"] >= budget.steps or summary["seconds"] >= budget.seconds
        return summary if spent and not summary["interrupted"] else None
    except (ValueError, TypeError, KeyError):
        return None


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Inside, no other process is in here for the same ``run``, a folder that is made if need be.

    However a process ends, it is then out. Where the file system has no locks, nobody is kept out.

    Raises:
        ValueError: another process is.
        OSError: ``run`` cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: the workers that it forks have no part
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another process is at work in {run}: wait for it, or end it first") from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        yield


def by_main_process(find: Callable[[], T]) -> T:
    """What ``find`` gives in the main process, for all; what it raises there, all raise. Collective."""
    said: list = [None, None]
    if PartialState().is_main_process:
        try:
            said = [find(), None]
        except Exception as error:
            said = [None, error]
    broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    return said[0]


def check_absent(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Nothing is computed that cannot be kept.

    Raises:
        ValueError: ``folder`` holds a file of these names already, and it may not be written over.
        NotADirectoryError: it is a file, or would be in one.
        PermissionError: nothing can be written into ``folder``, or where it would be made.
    """
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{folder} already holds {', '.join(there)}: add --overwrite to write that anew")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"nothing can be written into {nearest}: it is no folder")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"nothing can be written into {nearest}: it is read-only, or only others may")


def provenance(seed: int | None, weights: Mapping[str, str], where: torch.device | None = None) -> dict:
    """What a result depends on beside its options; stands in every file of numbers.

    Args:
        seed: of everything random in it, None where nothing is.
        weights: SHA-256 of the weights of each run that it was made from, see :func:`weights_hash`.
        where: the device, by default :func:`device`.
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
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def describe(
    run: Path, recipe: Recipe, device: torch.device, data_notes: list[str], splits: dict | None = None
) -> None:
    """Write ``recipe.toml`` and ``versions.json``: the provenance of the run, where its data came from, and what
    :func:`told_of_splits` says of their ``splits``.

    Of a resumed run that is the provenance of its last part; those of the parts ``before`` it stand there in order.
    """
    text, made_by = recipes.to_toml(recipe), provenance(recipe["train"]["seed"], {}, device)
    run.mkdir(parents=True, exist_ok=True)
    writing.text(run / "recipe.toml", text)
    before = _parts(run / "versions.json")
    told = {"data": data_notes} | (splits or {}) | ({"before": before} if before else {})
    writing.json_object(run / "versions.json", made_by | told)


def told_of_splits(data: Data) -> dict:
    """What shows later whether an example may have changed its split: the fingerprint of ``data``, and their number."""
    return {"data_sha256": data.fingerprint, "data_examples": sum(map(len, (data.train, data.valid, data.test)))}


def other_splits(run: Path, data: Data) -> dict | None:
    """What ``versions.json`` tells of a part of ``run`` whose data were not ``data``; None where it tells of none."""
    parts = _parts(run / "versions.json")
    return next((part for part in parts if part.get("data_sha256", data.fingerprint) != data.fingerprint), None)


def warn_of_other_splits(run: Path, data: Data) -> None:
    """Warn where a part of ``run`` was trained on other data than ``data``."""
    then = other_splits(run, data)
    if then is not None:
        warnings.warn(
            f"the data of {run} have changed since it was trained, {then.get('data_examples')} examples then, "
            f"{told_of_splits(data)['data_examples']} now: some may have moved from the training to the test split, "
            "and results on them are then too good",
            stacklevel=3,
        )


def _parts(file: Path) -> list[dict]:
    """The provenance of each part of a run that ``versions.json`` tells of; none where it is missing or damaged."""
    try:
        last = reading.json_object(file)
        return [part for part in (*last.pop("before", []), last) if isinstance(part, dict)]
    except (ValueError, TypeError):
        return []


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
    if processes.is_main_process:
        warn_of_other_splits(run, data)
    settings = {key: value for key, value in vars(options).items() if key not in ("split", "images")}
    settings |= {"steps": options.steps or None, "eps": options.eps or None}
    raw = stack(getattr(data, options.split), options.images)
    distributed, main = processes.num_processes > 1, processes.is_main_process
    result, nats = indm.evaluate(model, raw, progress=progress and main, distributed=distributed, **settings)
    if main:
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

    def __post_init__(self):
        recipes.check_whole_numbers(self)


def draw(
    run: Path, drawing: Drawing, out: Path | None = None, *, overwrite: bool = False, progress: bool = True
) -> tuple[Tensor, int, dict | None]:
    """Samples in data units (n, *event), their grey levels (0: none), and their provenance: how they were drawn, and
    of which weights and data.

    They are kept in ``samples.npz`` in ``out`` (the run folder for None), and taken from there if that very drawing
    is in it. Beside it ``samples.json`` says what they were made by.

    Raises:
        ValueError: bad options, or other samples in ``out``, which only ``overwrite`` lets go, with their picture.
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
    if file.exists():
        with contextlib.suppress(ValueError):  # what cannot be read is not written over either
            found = read_samples(file)
            if found[2] == made_by:
                return found
    check_absent(file.parent, OF_SAMPLES, overwrite)
    generator = torch.Generator(device).manual_seed(drawing.seed)
    if drawing.latent_mean:
        centre_prior(model, stack(load_data(**recipe["data"]).train, 10_000), generator=generator)
    options = {key: value for key, value in asdict(drawing).items() if key not in ("n", "seed", "latent_mean")}
    x = indm.sample(model, drawing.n, **options, generator=generator, progress=progress)
    samples = model.scaling.to_data(x).cpu()
    file.parent.mkdir(parents=True, exist_ok=True)
    command = provenance(drawing.seed, {str(run): made_by["weights_sha256"]})
    told = writing.json_into({"options": settings, "provenance": command})
    arrays = {"samples": samples.numpy(), "levels": np.array(model.scaling.levels or 0)}
    text = np.frombuffer(json.dumps(made_by).encode(), np.uint8)  # the files that are read safely hold numbers alone
    kept = writing.arrays_into(arrays | {"provenance": text})
    old = [file.parent / name for name in reversed(OF_SAMPLES)]
    writing.together({file.with_suffix(".json"): told, file: kept}, old)  # samples.npz last: where it is, the other is
    return read_samples(file)


def read_samples(file: Path) -> tuple[Tensor, int, dict | None]:
    """Samples that :func:`draw` kept, their grey levels (0: none), and their provenance; None where it is unknown.

    Raises:
        ValueError: naming the file, which is damaged, or holds something else.
    """
    try:
        told = "provenance" in (reading.array_names(file) or ())
        made_by = json.loads(reading.array(file, "provenance").tobytes()) if told else None
        samples, levels = reading.array(file, "samples"), reading.array(file, "levels")
        _check_samples(samples, levels, made_by)
        return torch.from_numpy(samples), int(levels), made_by
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as samples that 'indm sample' wrote: {reading.reason(error)}"
        ) from error


def _check_samples(samples: np.ndarray, levels: np.ndarray, made_by: object) -> None:
    """ValueError where these are no samples, number of grey levels, and provenance."""
    if levels.shape != () or levels.dtype.kind not in "iu" or levels == 1 or levels < 0:
        raise ValueError(f"its levels must be one whole number, 2 or more, or 0 for none, got {reading.brief(levels)}")
    if levels > 0 and (
        samples.dtype.kind not in "iu" or samples.min(initial=0) < 0 or samples.max(initial=0) >= levels
    ):
        raise ValueError(f"its samples must be whole numbers from 0 to {levels - 1}, the last of its levels")
    if made_by is None:
        return
    if not isinstance(made_by, dict) or not isinstance(made_by.get("weights_sha256"), str):
        raise ValueError('its provenance must be an object with a "weights_sha256"')
    json.dumps(made_by, allow_nan=False)  # as it is written again beside what is made of the samples


def weights_hash(run: Path) -> str:
    """SHA-256 of the run's averaged model: whether a file was made of these very weights."""
    weights = next((run / name for name in WEIGHTS if (run / name).exists()), None)
    if weights is None:
        raise ValueError(f"{run} holds no saved model: there is no {' or '.join(WEIGHTS)} in it")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_evaluation(run: Path, result: dict, nats: dict[str, Tensor], recipe: Recipe, data: Data, split: str) -> None:
    """Add to ``result`` what was evaluated, and write both."""
    weights = weights_hash(run)
    result |= {
        "data": recipe["data"],
        "split": split,
        "data_changed": other_splits(run, data) is not None,
        "unreadable_images": count_unreadable(getattr(data, split)),
        "weights_sha256": weights,
        "provenance": provenance(result["seed"], {str(run): weights}),
        "entropy_nats": data.entropy,
        "unit": "bits/dim" if data.scaling.levels else "nats",
    }
    arrays, told = run / "evaluation.npz", run / "evaluation.json"
    kept = writing.arrays_into({name: values.numpy() for name, values in nats.items()})
    writing.together({arrays: kept, told: writing.json_into(result)}, [told])  # last: where it is, the other is


def read_metrics(run: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``; what is no line of it, such as one cut off in the writing, is left out."""
    path, lines = run / "metrics.jsonl", []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):  # damage may also look like very long or deep JSON
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) and _is_placed(line) else []
    return lines


def _is_placed(line: dict) -> bool:
    """Whether ``line`` says after which step it was written, and, if it is one of a return, after how many of them."""
    return isinstance(line.get("step"), int) and isinstance(line.get("rollback", 0), int)


def end_at_once(number: int, frame: object) -> None:
    """A handler of signals that waits for nothing."""
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal ends the process at once.

    Not so under torchrun, which passes on what a terminal has sent its processes already: there the second signal to
    the launcher is what ends them.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number, frame) -> None:
        event.set()
        if not is_torchelastic_launched():
            for each in before:
                signal.signal(each, end_at_once)

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
