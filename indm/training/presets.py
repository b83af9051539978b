"""Presets of a recipe: the sizes, rates and batches that fit the data, the machine and the budget."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from indm.config import recipes
from indm.config.options import ENOUGH_STEPS
from indm.config.recipes import PRESETS, Recipe
from indm.data.base import Data
from indm.runs.processes import by_main_process
from indm.training.memory import TooLarge
from indm.training.threads import choose, in_use
from indm.training.trainer import Trainer

FEWEST_EXAMPLES = {"small": 0, "medium": 2_000, "large": 20_000}  # to train on, for "auto": fewer overfit at once
USUAL_SECONDS = 600.0  # of a run whose budget is one of steps
PIXELS = 32 * 32  # of the images for which a preset's batch is meant
SMALLEST_BATCH = 8
LARGE_SIDE = 64  # of an image, from which on the second level is as narrow as the first
TIMED = 3  # steps at least


@dataclass(frozen=True)
class Preset:
    """A preset that was taken.

    Attributes:
        name: "small", "medium" or "large".
        tables: its keys by table, fitted to the data.
        notes: what was fitted, and why this one, one sentence each.
    """

    name: str
    tables: Recipe
    notes: tuple[str, ...] = ()


def completed(
    recipe: Recipe, parts: Mapping[str, Any], accelerator: Accelerator, trainer: type[Trainer] = Trainer
) -> tuple[Recipe, tuple[str, ...]]:
    """An open ``recipe``, resolved, with the keys of its preset, and notes on them; any other as it is, without notes.

    Collective. See :func:`chosen`.
    """
    if not recipes.is_open(recipe):
        return recipe, ()
    preset, notes = chosen(recipe, parts, accelerator, trainer)
    return recipes.resolve(recipes.with_preset(recipe, preset)), notes


def chosen(
    recipe: Recipe, parts: Mapping[str, Any], accelerator: Accelerator, trainer: type[Trainer] = Trainer
) -> tuple[Recipe, tuple[str, ...]]:
    """The tables of the preset of an open ``recipe``, fitted to its data, and notes: why this one, what was fitted.

    "auto" takes the largest preset for which there are enough examples, and which makes enough steps within the budget,
    by the time of a step, measured here.

    Args:
        recipe: open.
        parts: the data, and other arguments of a :class:`Trainer` by name.
        accelerator: devices and processes.
        trainer: the class of what will train.

    Raises:
        ValueError: the recipe has no such preset.
    """
    name, of_recipe = recipe["train"]["preset"], recipe.get(PRESETS, {})
    known = [size for size in FEWEST_EXAMPLES if size in of_recipe]
    if not known or name not in (*known, "auto"):
        raise ValueError(
            f"train.preset must be one that the recipe has ({', '.join(known) or 'none'}), got {name!r}; the recipes "
            "folder, array and translate-folders have small, medium and large"
        )
    together = recipes.options_of(recipe, "train").accumulate * accelerator.num_processes
    enough = [size for size in known if len(parts["data"].train) >= FEWEST_EXAMPLES[size]]
    wanted = (enough or known[:1]) if name == "auto" else [name]
    presets = [fitted(size, of_recipe[size], parts["data"], together) for size in wanted]
    if name != "auto":
        return presets[0].tables, presets[0].notes

    def trainer_of(whole: Recipe) -> Trainer:
        """One to be thrown away."""
        own = {key: copy.deepcopy(part) if key == "model" else part for key, part in parts.items()}
        return trainer(whole, accelerator=accelerator, **own)

    preset = _largest(presets, recipe, trainer_of)
    accelerator.free_memory()  # the models that were tried
    return preset.tables, preset.notes


def fitted(name: str, preset: Recipe, data: Data, together: int = 1) -> Preset:
    """The preset for these data: a batch that they have, and as many levels as the size of the images bears.

    The batch is a multiple of ``together``.
    """
    tables, notes = {table: dict(content) for table, content in preset.items()}, []
    train, net = tables["train"], tables["net"]
    if net["name"] == "unet":
        if len(data.shape) != 3:
            raise ValueError(
                f"data must be images for the presets of this recipe, got events of shape {tuple(data.shape)}; the "
                "recipe array is for vectors"
            )
        smaller = train["batch_size"] * PIXELS // math.prod(data.shape[1:])
        train["batch_size"] = min(max(smaller, SMALLEST_BATCH), 2 * train["batch_size"])
        net["multipliers"] = multipliers(min(data.shape[1:]))
    if train["batch_size"] > len(data.train):
        notes.append(f"batch size {len(data.train)} in place of {train['batch_size']}: there are no more to train on")
        train["batch_size"] = len(data.train)
    train["batch_size"] = max(1, train["batch_size"] // together) * together
    return Preset(name, tables, tuple(notes))


def multipliers(side: int) -> list[int]:
    """Channels of a U-Net's levels, as multiples, for images of that side: the lowest has a side of 4 to 8."""
    halvings = max(1, min(2, math.floor(math.log2(side / 4))), math.ceil(math.log2(side / 8)))
    wide = 1 if side < LARGE_SIDE else 2
    return [1] * wide + [2] * (halvings + 1 - wide)


def _largest(presets: list[Preset], recipe: Recipe, trainer_of: Callable[[Recipe], Trainer]) -> Preset:
    """The largest with enough steps in the budget of the recipe, else the first."""
    options, best, said = recipes.options_of(recipe, "train"), presets[0], []
    seconds = options.seconds if math.isfinite(options.seconds) else USUAL_SECONDS
    for preset in presets:
        whole = recipes.resolve(recipes.with_preset(recipe, preset.tables))
        try:
            trainer = trainer_of(whole)
            with in_use(choose(trainer)):
                per_step = seconds_of_a_step(trainer)
        except (TooLarge, torch.OutOfMemoryError):
            if preset is best:
                raise
            said.append(f"{preset.name} is more than memory holds")
            break
        said.append(f"{preset.name} {per_step:.2g} s a step, {min(options.steps, seconds / per_step):,.0f} steps")
        if min(options.steps, ENOUGH_STEPS) * per_step > seconds:
            break
        best = preset
    note = f"preset {best.name} ({'; '.join(said)}); choose another with --preset"
    return replace(best, notes=(note, *best.notes))


def seconds_of_a_step(trainer: Trainer) -> float:
    """The seconds of a step of ``trainer``, which makes some: the mean over a cycle of them. Collective.

    Of several processes it is the time of the main one.
    """
    batches, steps = trainer.batches(), max(TIMED, trainer.options.flow_update_every)
    trainer.pretraining = False
    float(trainer.train_step(batches)["skipped"])  # waits for the device; it also prepares kernels and memory
    started = time.perf_counter()
    for _ in range(steps):
        float(trainer.train_step(batches)["skipped"])
    return by_main_process(lambda: (time.perf_counter() - started) / steps)
