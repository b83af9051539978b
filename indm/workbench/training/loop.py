"""The training loop: from a recipe, or from parts in Python, to a run folder.

A run folder has ``recipe.toml`` (resolved), ``versions.json``, ``metrics.jsonl``, ``checkpoints/``
(``resume`` needs the newest one), ``model.safetensors`` with ``model.json`` (the averaged model),
``best/`` (the model of the best validation) and, at the end, ``summary.json``.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from indm.files import atomic
from indm.model import WEIGHTS
from indm.objective import Losses, Objective
from indm.workbench.data.base import Data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.recipes.recipe import AnyTables, Recipe
from indm.workbench.runs.devices import by_main_process, interruptible, make_accelerator, on_cpu
from indm.workbench.runs.folder import check_folder, claimed, is_run
from indm.workbench.runs.provenance import describe_run, split_record, warn_of_other_splits
from indm.workbench.training import costs
from indm.workbench.training.batches import example
from indm.workbench.training.checkpoints import Checkpoints
from indm.workbench.training.ending import (
    Summary,
    parameter_counts,
    save_final,
    summarise,
    warn_of_bounds,
    warn_of_short_run,
    warn_of_silence,
)
from indm.workbench.training.log import LOOK_EVERY, MetricsLog
from indm.workbench.training.parts import make_recipe, read
from indm.workbench.training.schedule import is_due
from indm.workbench.training.trainer import Trainer
from indm.workbench.training.trials import check_start

TIMED = 3  # least number of timed steps in a plan
TRAINING_BAR = "{percentage:3.0f}% {bar:20} {elapsed}<{remaining}, {desc}"
BAR_INTERVAL = 2.0  # seconds
Callback = Callable[[Trainer, dict[str, Tensor]], bool | None]


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
    """Train a model in the run folder ``out``, and return a summary.

    Parts given in Python replace tables of the recipe. If their classes can be named there, those
    who trust their packages can read the run. To resume such a run, give the same parts again.

    Args:
        recipe: the name of a bundled recipe, a TOML file, a run folder, or tables as in
            :mod:`indm.workbench.recipes.recipe`. With ``model`` and ``data``, a
            :class:`~indm.workbench.recipes.options.TrainOptions` is enough.
        out: the run folder; must not have a run already, unless ``resume``.
        model: an :class:`~indm.model.INDM`, or a network, (z, level) ↦ a tensor like z, for the
            recipe's flow and SDE. It is trained in place; the average of its weights is saved.
        data: a map-style data set, a tensor (N, …), or anything else that
            :func:`indm.workbench.data.base.as_data` takes.
        objective: a name as in ``train.objective``, a loss (model, x) ↦ (loss, terms), or an
            :class:`~indm.objective.Objective`.
        callbacks: each is called as ``callback(trainer, terms)`` after every optimizer step. If one
            returns True, the run is saved and stops, as after Ctrl-C.
        like: a run of which this one gets the budget: as many steps as cost the same as all steps
            of that run. The costs are measured first, see :mod:`indm.workbench.training.costs`.
        resume: continue from the checkpoint in ``out``. Steps, data order and random numbers
            continue exactly. A run that ended before its first checkpoint starts again.
        progress: show a bar.
        trainer: a subclass of :class:`Trainer` with steps of its own.

    Returns:
        The summary that is written at the end. ``interrupted`` is true if a signal or a callback
        ended the run early, after its checkpoint was written.

    Raises:
        ValueError: a mistake in the recipe, a part that returns the wrong shape, a folder with
            another run or in which another process trains, an unreadable checkpoint.
        RuntimeError: ``train.max_skipped_steps`` steps in a row, or a validation, were infinite or
            NaN.
        OSError: something could not be written; saved files are not changed.

    Example: a callback ends the run after 4 steps; resumed, it goes on to step 6.

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
    kind = trainer or Trainer
    if like is not None:
        if resume:
            raise ValueError(f"like must be left out to resume {out}, got {like}")
        wanted, note = costs.budget_like(
            wanted, Path(like), model, data, objective, trainer=kind, progress=shows
        )
        tell(note, shown=shows)
    accelerator = make_accelerator(wanted.train)
    whole, parts = read(wanted, accelerator, model, data, objective)
    made = kind(parts)
    with claimed(out, whole, resume):
        saved = Checkpoints(out, parts.upkeep.keep_last)
        resumes = resume and by_main_process(
            lambda: bool(saved.numbered()) or (out / WEIGHTS).exists()
        )
        state = saved.load(made) if resumes else None
        if not resumes and parts.schedule.first == "flow":
            check_start(*example(made.model, parts.batches.data))
        threads = parts.upkeep.threads or torch.get_num_threads()
        if accelerator.is_main_process:
            describe(out, whole, made, threads, resumes)
        tell(*parts.batches.data.remarks, shown=shows)
        log = MetricsLog(made, out, state)
        with costs.on_threads(threads), interruptible() as interrupted:
            if not resumes:
                saved.save(made, log.state())  # an error now, if the folder cannot be written
            stopped = loop(made, saved, log, interrupted, callbacks, shows)
            return end(made, saved, log, interrupted, stopped)


def describe(out: Path, recipe: Recipe, trainer: Trainer, threads: int, resumes: bool) -> None:
    """Write the recipe and the provenance of a run; warn if a resumed one has other data."""
    data = trainer.parts.batches.data
    if resumes:
        warn_of_other_splits(out, data)
    record = split_record(data) | {"threads": threads}
    describe_run(out, recipe, trainer.accelerator.device, data.remarks, record)


def end(
    trainer: Trainer,
    saved: Checkpoints,
    log: MetricsLog,
    interrupted: threading.Event,
    stopped: bool,
) -> Summary:
    """Save the run at its end, and its summary. Collective."""
    save(trainer, saved, log)
    summary = Summary(summarise(trainer, log, stopped))
    save_final(trainer, log.best, saved.run)
    if trainer.accelerator.is_main_process:
        atomic.json_object(saved.run / "summary.json", summary)
        if not stopped:
            warn_of_short_run(trainer)
        warn_of_silence(trainer)
        warn_of_bounds(trainer)
    # also in what comes after the last step
    summary.signal_received = trainer.agree(interrupted.is_set())
    return summary


def tell(*notes: str, shown: bool = True) -> None:
    """Print notes on a run on standard error if ``shown``."""
    for note in notes if shown else ():
        print(note, file=sys.stderr)


def loop(
    trainer: Trainer,
    saved: Checkpoints,
    log: MetricsLog,
    interrupted: threading.Event,
    callbacks: Sequence[Callback],
    progress: bool,
) -> bool:
    """Step until the budget is spent, or a signal or a callback ends the run.

    It logs, validates and saves on the way, and returns whether it was asked to stop, in all
    processes alike.

    Raises:
        RuntimeError: too many steps in a row, or a validation, were infinite or NaN.
    """
    upkeep, schedule = trainer.parts.upkeep, trainer.schedule
    stops = False
    bar = tqdm(
        total=1,
        initial=min(trainer.progress, 1.0),
        bar_format=TRAINING_BAR,
        mininterval=BAR_INTERVAL,
        disable=not progress,
    )
    with bar:
        for terms, before in trainer.steps():
            log.add(terms)
            answers = [callback(trainer, terms) for callback in callbacks]
            stops = trainer.agree(interrupted.is_set() or any(answers))
            over = trainer.progress >= 1
            due = partial(is_due, trainer.step, before, trainer.progress)
            switches = schedule.is_flow_alone and schedule.opening_is_over(trainer.step)
            logs = over or due(upkeep.log_every)
            validates = over or switches or due(upkeep.validate_every)
            saves = due(upkeep.checkpoint_every)
            if logs or validates or saves or due(LOOK_EVERY):
                log.look()
            if logs:
                log.log_step()
            if validates:
                if stops:
                    save(trainer, saved, log)  # the process may end in a long validation
                log.log_validation()
            if saves and not over:
                save(trainer, saved, log)
            # the text waits for the device
            if bar.update(min(trainer.progress, 1.0) - bar.n) or (over and progress):
                bar.set_description_str(log.line())
            if stops:
                break
        log.look()
    return stops


def save(trainer: Trainer, saved: Checkpoints, log: MetricsLog) -> None:
    """Save the run, unless its last steps were skipped. Collective."""
    if not log.in_row:
        saved.save(trainer, log.state())


def plan(recipe: AnyTables) -> tuple[Recipe, dict]:
    """The full recipe of a run, and its parameters, data, steps and seconds on this machine.

    A few steps are timed. Validation does not count.
    """
    wanted = recipes.resolve(recipe)
    whole, parts = read(wanted, make_accelerator(wanted.train))
    trainer = Trainer(parts)
    threads = parts.upkeep.threads or torch.get_num_threads()
    (seconds,) = costs.interleaved_seconds(
        {"": trainer}, {"": threads}, rounds=1, steps=TIMED, progress=False
    )[""]
    budget = wanted.train
    steps = min(budget.steps, budget.seconds / seconds)
    data = parts.batches.data
    counts = parameter_counts(trainer.model)
    return whole, {
        **{name.replace("_", " "): count for name, count in counts.items()},
        "event shape": tuple(data.shape),
        "examples": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
        "device": str(trainer.accelerator.device),
        "threads": threads,
        "seconds per step": seconds,
        "steps": round(steps),
        "seconds": round(steps * seconds),
    }
