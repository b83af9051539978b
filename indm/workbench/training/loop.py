"""The training loop: from a recipe, or from parts given in Python, to a run folder, on the devices
accelerate finds.

A run folder holds ``recipe.toml`` (resolved), ``versions.json``, ``metrics.jsonl``,
``checkpoints/`` (the newest is all that ``resume`` needs), ``model.safetensors`` with
``model.json`` (the averaged model), ``best/`` (the model of the best validation) and, at the end,
``summary.json``.
"""

import copy
import math
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from indm.checks import counted
from indm.files import atomic
from indm.model import WEIGHTS, reading
from indm.objective import Losses, Objective
from indm.sampling import centre_prior
from indm.training import REVIVALS, SLOWER
from indm.workbench.data.base import Data, stack
from indm.workbench.data.images import count_unreadable
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import FEW_STEPS, TrainOptions
from indm.workbench.recipes.recipe import AnyTables, Recipe
from indm.workbench.runs.devices import (
    by_main_process,
    interruptible,
    make_accelerator,
    on_cpu,
    peak_memory_mib,
)
from indm.workbench.runs.folder import check_folder, claimed, is_run
from indm.workbench.runs.provenance import describe_run, split_record, warn_of_other_splits
from indm.workbench.training import checkpoints, costs
from indm.workbench.training.log import BEST, LOOK_EVERY, MetricsLog
from indm.workbench.training.parts import check_start, make_recipe, parts_of
from indm.workbench.training.trainer import Trainer

TIMED = 3  # steps at least, of a plan
# seconds
TRAINING_BAR, BAR_INTERVAL = "{percentage:3.0f}% {bar:20} {elapsed}<{remaining}, {desc}", 2.0
ROUNDING_OF_SHARES = 1e-9  # tolerance of a share, in intervals: three tenths of ten steps are three
Callback = Callable[[Trainer, dict[str, Tensor]], bool | None]


class Summary(dict):
    """The contents of ``summary.json``."""

    # whether there was a signal (Ctrl-C, SIGTERM), also after the last step
    signal_received: bool = False


def train(
    recipe: str | Path | AnyTables | TrainOptions,
    out: str | Path,
    *,
    model: nn.Module | None = None,
    data: Data | Dataset | Tensor | None = None,
    objective: str | Objective | Callable[..., Losses] | None = None,
    callbacks: Sequence[Callback] = (),
    like: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    trainer: type[Trainer] | None = None,
) -> Summary:
    """Train a model, in the run folder ``out``.

    What is given in Python stands in place of a table of the recipe: its class is named there, if a
    file can name it. Those who trust its package can then read the run back; ``train`` can resume
    it when it is given the same again.

    Args:
        recipe: the name of a bundled recipe, a TOML file, a run folder, or tables as in
            :mod:`indm.workbench.recipes.recipe`; with ``model`` and ``data``, a
            :class:`~indm.workbench.recipes.options.TrainOptions` is enough.
        out: the run folder; must not hold a run already, unless ``resume``.
        model: an :class:`~indm.model.INDM`, or a network, (z, level) ↦ a tensor like z, for the
            recipe's flow and SDE. It is trained in place; the run folder gets the average of its
            weights.
        data: a map-style data set, whose items may be tuples (the first entry counts), a tensor (N,
            …), or anything else that :func:`indm.workbench.data.base.as_data` takes.
        objective: a name as in ``train.objective``, a loss (model, x) ↦ (loss, terms), or an
            :class:`~indm.objective.Objective`.
        callbacks: each is called as ``callback(trainer, terms)`` after every optimizer step. The
            run stops, saved as by Ctrl-C, when one returns True.
        like: a run whose budget this one gets, in place of the recipe's: as many steps as cost the
            same as all steps of that run. The costs are measured interleaved first, see
            :mod:`indm.workbench.training.costs`.
        resume: continue from the checkpoint in ``out``. Steps, data order and random numbers
            continue exactly. A run that ended before its first checkpoint starts anew.
        progress: show a bar.
        trainer: a subclass of :class:`Trainer` that makes its own optimizer or steps.

    Returns:
        The summary that is written at the end. Its ``interrupted`` says that a signal or a callback
        ended the run early, after its checkpoint was written.

    Raises:
        ValueError: a mistake in the recipe, a part that returns the wrong shape, a folder with
            another run or in which another process trains, an unreadable checkpoint.
        RuntimeError: ``train.max_skipped_steps`` steps in a row, or a validation, were infinite or
            NaN.
        OSError: something could not be written; what had been saved is as it was.

    Example: a run that a callback ends after 4 steps, and that then goes on to step 6.

        >>> import tempfile
        >>> tables = {"flow": "identity", "sde": "vp", "net": {"name": "mlp", "width": 8}}
        >>> tables["train"], data = {"steps": 1000, "batch_size": 32}, torch.randn(100, 2)
        >>> def until(step):
        ...     return [lambda trainer, terms: trainer.step == step]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = train(tables, folder, data=data, callbacks=until(4), progress=False)
        ...     second = train(tables, folder, data=data, callbacks=until(6), resume=True, progress=False)
        >>> first["interrupted"], first["steps"], second["steps"]
        (True, 4, 6)
    """
    wanted, out = make_recipe(recipe, model, data, objective), Path(out)
    if resume and is_run(out):
        wanted = recipes.resolve(recipes.as_continued(wanted, out))
    shows = PartialState(cpu=on_cpu()).is_main_process and progress
    by_main_process(partial(check_folder, out, wanted, resume))  # before anything slow
    if like is not None:
        if resume:
            raise ValueError(
                f"like must be left out to resume {out}, whose recipe has the steps; got {like}"
            )
        wanted, note = costs.budget_like(
            wanted, Path(like), out, model=model, data=data, objective=objective, trainer=trainer or Trainer,
            progress=shows,
        )  # fmt: skip
        tell(note, shown=shows)
    accelerator = make_accelerator(wanted.train)
    parts_of_run = parts_of(wanted, accelerator, model, data, objective)
    made = (trainer or Trainer)(wanted, accelerator=accelerator, **parts_of_run)
    with claimed(out, made.recipe, resume):
        return run_in(out, made, resume, callbacks, progress)


def run_in(
    out: Path, trainer: Trainer, resume: bool, callbacks: Sequence[Callback], progress: bool
) -> Summary:
    """Train in a folder that no other process uses, from the start or from the state in it; see
    :func:`train`.
    """
    main, state = trainer.accelerator.is_main_process, None
    resumes = resume and by_main_process(
        lambda: bool(checkpoints.numbered(out)) or (out / WEIGHTS).exists()
    )
    if resumes:
        state = trainer.load(out)
        if main:
            warn_of_other_splits(out, trainer.data)
    elif trainer.options.first == "flow":
        check_start(*trainer.example())
    n_threads = trainer.options.threads or torch.get_num_threads()
    remarks = trainer.data.remarks
    if main:
        record = split_record(trainer.data) | {"threads": n_threads}
        describe_run(out, trainer.recipe, trainer.accelerator.device, remarks, record)
    tell(*remarks, shown=progress and main)

    log = MetricsLog(trainer, out, state)
    with costs.on_threads(n_threads), interruptible() as interrupted:
        if not resumes:
            trainer.save(out, log.state())  # an error now, if the folder cannot be written
        stopped = loop(trainer, out, log, interrupted, callbacks, progress and main)
        save(trainer, out, log)
        summary = Summary(summarise(trainer, log, out, stopped))
        save_final(trainer, log.best, out)
        if main:
            atomic.json_object(out / "summary.json", summary)
            warn_of_short_run(trainer, stopped)
            warn_of_silence(trainer)
        # also in what comes after the last step
        summary.signal_received = trainer.agree(interrupted.is_set())
    return summary


def tell(*notes: str, shown: bool = True) -> None:
    """Print what was decided for a run on standard error, if it shall be ``shown``."""
    for note in notes if shown else ():
        print(note, file=sys.stderr)


def is_due(step: int, before: float, progress: float, every: float) -> bool:
    """Whether ``step``, which took the run from ``before`` to ``progress`` (shares of it), ends an
    interval.

    Intervals are of ``every`` steps, or of that share of the run where it is below 1.
    """
    if every >= 1:
        return step % every == 0  # never, where it is infinite
    return math.floor(progress / every + ROUNDING_OF_SHARES) > math.floor(
        before / every + ROUNDING_OF_SHARES
    )


def loop(
    trainer: Trainer,
    out: Path,
    log: MetricsLog,
    interrupted: threading.Event,
    callbacks: Sequence[Callback],
    progress: bool,
) -> bool:
    """Step until the budget is spent, or a signal or a callback ends the run; log, validate and
    save on the way.

    The result says whether it was asked to stop, the same on all processes.

    Raises:
        RuntimeError: too many steps in a row, or a validation, were infinite or NaN.
    """
    o, stops = trainer.options, False
    done = min(trainer.progress, 1.0)
    with tqdm(
        total=1,
        initial=done,
        bar_format=TRAINING_BAR,
        mininterval=BAR_INTERVAL,
        disable=not progress,
    ) as bar:
        for terms, before in trainer.steps():
            log.add(terms)
            answers = [callback(trainer, terms) for callback in callbacks]
            stops = trainer.agree(interrupted.is_set() or any(answers))
            over, due = (
                trainer.progress >= 1,
                partial(is_due, trainer.step, before, trainer.progress),
            )
            logs, saves = over or due(o.log_every), due(o.checkpoint_every)
            validates = (
                over or (trainer.is_flow_alone and trainer.opening_is_over) or due(o.validate_every)
            )
            if logs or validates or saves or due(LOOK_EVERY):
                log.look()
            if logs:
                log.log_step()
            if validates:
                if stops:
                    save(trainer, out, log)  # the process may end in a validation that takes long
                log.log_validation()
            if saves and not over:
                save(trainer, out, log)
            # the text waits for the device
            if bar.update(min(trainer.progress, 1.0) - bar.n) or (over and progress):
                bar.set_description_str(log.line())
            if stops:
                break
        log.look()
    return stops


def save(trainer: Trainer, out: Path, log: MetricsLog) -> None:
    """Save the run, unless its last steps were left out: from such a state training might not go
    on. Collective.
    """
    if not log.in_row:
        trainer.save(out, log.state())


def plan(recipe: AnyTables) -> tuple[Recipe, dict]:
    """The full recipe of a run, and what it would take on this machine, without making it.

    That is parameters, data, the seconds of one step, and the seconds and steps of the run
    (validation apart).
    """
    wanted = recipes.resolve(recipe)
    accelerator = make_accelerator(wanted.train)
    parts_of_run = parts_of(wanted, accelerator)
    trainer = Trainer(wanted, accelerator=accelerator, **parts_of_run)
    o, n_threads = trainer.options, trainer.options.threads or torch.get_num_threads()
    (seconds,) = costs.interleaved_seconds(
        {"": trainer}, {"": n_threads}, rounds=1, steps=TIMED, progress=False
    )[""]
    steps = min(o.steps, o.seconds / seconds)
    return trainer.recipe, {
        **{name.replace("_", " "): count for name, count in parameter_counts(trainer).items()},
        "event shape": tuple(trainer.data.shape),
        "examples": {
            split: len(getattr(trainer.data, split)) for split in ("train", "valid", "test")
        },
        "device": str(accelerator.device),
        "threads": n_threads,
        "seconds per step": seconds,
        "steps": round(steps),
        "seconds": round(steps * seconds),
    }


@torch.no_grad()
def save_final(trainer: Trainer, best: dict[str, Any], out: Path) -> None:
    """Save the model that ``train.final`` and ``train.latent_mean`` ask for, if that is not the
    last average.

    ``best`` is the best validation. With ``latent_mean`` the prior sits at the mean latent of (up
    to 10,000) training examples. The main process does it.
    """
    o = trainer.options
    keeps_best = o.final == "best" or (o.final == "auto" and o.first == "flow")
    is_earlier = keeps_best and best.get("step", trainer.step) != trainer.step
    if not (is_earlier or o.latent_mean) or not trainer.accelerator.is_main_process:
        return
    model = copy.deepcopy(trainer.ema.model)
    if is_earlier:
        with reading(out / BEST) as saved:
            model.load_state_dict(saved.state)
    if o.latent_mean:
        raw, c = stack(trainer.data.train, 10_000), trainer.c_of("train", 10_000)
        centre_prior(model, raw, c=c, batch_size=trainer.micro_batch_size)
    model.save(out)


def warn_of_short_run(trainer: Trainer, interrupted: bool) -> None:
    """Warn where a run has spent its budget before it could learn much."""
    o, step, warmup = trainer.options, trainer.step, trainer.options.warmup
    if interrupted or not (step < FEW_STEPS or step <= warmup):
        return
    why = (
        f"inside its warm-up of {warmup:g} steps"
        if 1 <= warmup >= step
        else f"after {counted(step, 'step')}"
    )
    longer = "train.seconds" if math.isfinite(o.seconds) else "train.steps"
    warnings.warn(
        f"the run ended {why}, before it could learn much: give it more {longer}, a smaller model "
        "or a smaller train.batch_size",
        stacklevel=3,
    )


def warn_of_silence(trainer: Trainer) -> None:
    """Warn where the network behind the flow died at every rate that was tried, so that the run is
    its flow.
    """
    if trainer.is_silenced:
        rate = trainer.options.lr
        warnings.warn(
            f"the network died at train.lr {rate:g} and at the {REVIVALS} lower rates that were tried, down to "
            f"{rate * SLOWER**REVIVALS:.2g}, so what is left behind the flow is not known: give a lower train.lr or a "
            "larger train.batch_size",
            stacklevel=3,
        )


def parameter_counts(trainer: Trainer) -> dict[str, int]:
    """The parameters of each part of the model."""
    return {
        f"{g['name']}_parameters": sum(p.numel() for p in g["params"])
        for g in trainer.parameter_groups()
    }


def summarise(trainer: Trainer, log: MetricsLog, out: Path, interrupted: bool) -> dict:
    """Steps, seconds, validation and memory of a run. Collective.

    ``unreadable_images`` counts images of the training data that any process met since the run was
    last started.
    """
    summary = {
        "interrupted": interrupted,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 3),
        **log.validation,
        **({"best": log.best} if log.best else {}),
        "skipped_steps": log.skipped,
        **parameter_counts(trainer),
        "peak_memory_mib": round(peak_memory_mib()),
        "unreadable_images": count_unreadable(
            trainer.data.train,
            lambda met: trainer.accelerator.reduce(met.to(trainer.accelerator.device)),
        ),
    }
    if trainer.accelerator.device.type == "cuda":
        summary["peak_device_memory_mib"] = round(
            torch.cuda.max_memory_allocated(trainer.accelerator.device) / 2**20
        )
    return summary
