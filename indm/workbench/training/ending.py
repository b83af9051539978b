"""The end of a run: its final model, its summary, and warnings."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from indm.checks import counted
from indm.flows import Flow
from indm.model import count_parameters, reading
from indm.sampling import centre_prior
from indm.training import REVIVALS, SLOWER
from indm.workbench.data.base import stack
from indm.workbench.data.images import count_unreadable
from indm.workbench.recipes.options import FEW_STEPS
from indm.workbench.runs.devices import peak_memory_mib
from indm.workbench.training.batches import conditions_of
from indm.workbench.training.log import BEST, MetricsLog
from indm.workbench.training.trainer import Trainer

MOST_CENTRED = 10_000  # examples of a mean latent


class Summary(dict):
    """The contents of ``summary.json``."""

    # whether there was a signal (Ctrl-C, SIGTERM), also after the last step
    signal_received: bool = False


@torch.no_grad()
def save_final(trainer: Trainer, best: dict[str, Any], out: Path) -> None:
    """Save the final model of the run, if that is not the last average.

    It is the model of the ``best`` validation, or one with its prior at the mean latent of (up to
    10,000) training examples.
    """
    upkeep = trainer.parts.upkeep
    is_earlier = upkeep.keeps_best and best.get("step", trainer.step) != trainer.step
    if not (is_earlier or upkeep.latent_mean) or not trainer.accelerator.is_main_process:
        return
    model = copy.deepcopy(trainer.ema.model)
    if is_earlier:
        with reading(out / BEST) as saved:
            model.load_state_dict(saved.state)
    if upkeep.latent_mean:
        batches = trainer.parts.batches
        raw = stack(batches.data.train, MOST_CENTRED)
        c = conditions_of(batches.data, model.condition, "train", MOST_CENTRED)
        centre_prior(model, raw, c=c, batch_size=batches.size_of_a_pass)
    model.save(out)


def warn_of_short_run(trainer: Trainer) -> None:
    """Warn if a run was too short to learn much."""
    step, schedule = trainer.step, trainer.schedule
    if step >= FEW_STEPS and step > schedule.warmup:
        return
    why = f"after {counted(step, 'step')}"
    if 1 <= schedule.warmup >= step:
        why = f"inside its warm-up of {schedule.warmup:g} steps"
    longer = "train.seconds" if math.isfinite(schedule.seconds) else "train.steps"
    warnings.warn(
        f"the run ended {why}, before it could learn much: give it more {longer}, a smaller model "
        "or a smaller train.batch_size",
        stacklevel=4,
    )


def warn_of_silence(trainer: Trainer) -> None:
    """Warn if the network behind the flow died at every rate: then the run is its flow."""
    if not trainer.schedule.place.health.is_silenced:
        return
    groups = zip(trainer.optimizer.param_groups, trainer.rates, strict=True)
    rate = next(rate for group, rate in groups if group["name"] == "score")
    warnings.warn(
        f"the network died at train.lr {rate:g} and at the {REVIVALS} lower rates that were tried, "
        f"down to {rate * SLOWER**REVIVALS:.2g}, so what is left behind the flow is not known: "
        "give a lower train.lr or a larger train.batch_size",
        stacklevel=4,
    )


def warn_of_bounds(trainer: Trainer) -> None:
    """Warn of parameters of the flow that stand at a bound."""
    for part in trainer.ema.model.flow.modules():
        notes = part.at_bounds() if isinstance(part, Flow) else []
        for note in notes:
            warnings.warn(note, stacklevel=4)


def parameter_counts(model: Any) -> dict[str, int]:
    """The parameters of each part of the model."""
    parts = model.trained_parts.items()
    return {f"{name}_parameters": count_parameters(part) for name, part in parts}


def summarise(trainer: Trainer, log: MetricsLog, interrupted: bool) -> dict:
    """Steps, seconds, validation and memory of a run. Collective.

    ``unreadable_images`` counts training images since the run was last started.
    """
    a = trainer.accelerator
    summary = {
        "interrupted": interrupted,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 3),
        **log.validation,
        **({"best": log.best} if log.best else {}),
        "skipped_steps": log.skipped,
        **parameter_counts(trainer.model),
        "peak_memory_mib": round(peak_memory_mib()),
        "unreadable_images": count_unreadable(
            trainer.parts.batches.data.train, lambda met: a.reduce(met.to(a.device))
        ),
    }
    if a.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(a.device)
        summary["peak_device_memory_mib"] = round(peak / 2**20)
    return summary
