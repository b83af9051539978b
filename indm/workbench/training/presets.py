"""Presets of a recipe: the sizes, rates and batches that fit the data, the machine and the budget."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from indm.workbench.data.base import Data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ENOUGH_STEPS
from indm.workbench.recipes.recipe import PRESETS, AnyTables, Recipe, Tables
from indm.workbench.training.checks import TooLarge
from indm.workbench.training.costs import choose_threads, interleaved_seconds, on_threads
from indm.workbench.training.trainer import Trainer

FEWEST_EXAMPLES = {"small": 0, "medium": 2_000, "large": 20_000}  # to train on, for "auto": fewer overfit at once
USUAL_SECONDS = 600.0  # of a run whose budget is one of steps
PIXELS = 32 * 32  # of the images for which a preset's batch is meant
SMALLEST_BATCH = 8
LARGE_SIDE = 64  # of an image, from which on the second level is as narrow as the first
TIMED = 3  # steps at least


def completed(
    recipe: Recipe, parts: Mapping[str, Any], accelerator: Accelerator, trainer: type[Trainer] = Trainer
) -> tuple[Recipe, list[str]]:
    """An open ``recipe`` with the keys of its preset, and notes on them; any other as it is. See :func:`chosen`."""
    if not recipe.is_open:
        return recipe, []
    preset, notes = chosen(recipe, parts, accelerator, trainer)
    return recipes.resolve(recipes.with_preset(recipe, preset)), notes


def chosen(
    recipe: Recipe, parts: Mapping[str, Any], accelerator: Accelerator, trainer: type[Trainer] = Trainer
) -> tuple[Tables, list[str]]:
    """The tables of the preset of an open ``recipe``, fitted to its data, and notes: why this one, what was fitted.

    "auto" takes the largest preset for which there are enough examples, and which makes enough steps within the budget,
    by the time of a step, measured here. Collective.

    Args:
        recipe: open.
        parts: the data, and other arguments of a :class:`Trainer` by name.
        accelerator: devices and processes.
        trainer: the class of what will train.

    Raises:
        ValueError: the recipe has no such preset.
    """
    name, of_recipe = recipe.train.preset, recipe.get(PRESETS, {})
    known = [size for size in FEWEST_EXAMPLES if size in of_recipe]
    if not known or name not in (*known, "auto"):
        raise ValueError(
            f"train.preset must be one that the recipe has ({', '.join(known) or 'none'}), got {name!r}; the recipes "
            "folder, array and translate-folders have small, medium and large"
        )
    together = recipe.train.accumulate * accelerator.num_processes
    if name != "auto":
        return fitted(of_recipe[name], parts["data"], together)
    enough = [size for size in known if len(parts["data"].train) >= FEWEST_EXAMPLES[size]] or known[:1]
    seconds = recipe.train.seconds if math.isfinite(recipe.train.seconds) else USUAL_SECONDS
    steps, best, said = recipe.train.steps, enough[0], []
    for size in enough:
        preset, _ = fitted(of_recipe[size], parts["data"], together)
        whole = recipes.resolve(recipes.with_preset(recipe, preset))
        own = {key: copy.deepcopy(part) if key == "model" else part for key, part in parts.items()}
        try:
            tried = trainer(whole, accelerator=accelerator, **own)
            with on_threads(choose_threads(tried)):
                per_step = seconds_of_a_step(tried)
        except (TooLarge, torch.OutOfMemoryError):
            if size == best:
                raise
            said.append(f"{size} is more than memory holds")
            break
        said.append(f"{size} {per_step:.2g} s a step, {min(steps, seconds / per_step):,.0f} steps")
        if min(steps, ENOUGH_STEPS) * per_step > seconds:
            break
        best = size
    accelerator.free_memory()  # the models that were tried
    preset, notes = fitted(of_recipe[best], parts["data"], together)
    return preset, [f"preset {best} ({'; '.join(said)}); choose another with --preset", *notes]


def fitted(preset: AnyTables, data: Data, together: int = 1) -> tuple[Tables, list[str]]:
    """The tables of a preset for these data: a batch that they have, as many levels as the size of the images bears.

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
    return tables, notes


def multipliers(side: int) -> list[int]:
    """Channels of a U-Net's levels, as multiples, for images of that side: the lowest has a side of 4 to 8."""
    halvings = max(1, min(2, math.floor(math.log2(side / 4))), math.ceil(math.log2(side / 8)))
    wide = 1 if side < LARGE_SIDE else 2
    return [1] * wide + [2] * (halvings + 1 - wide)


def seconds_of_a_step(trainer: Trainer) -> float:
    """The seconds of a step of ``trainer``, which makes some: the mean over a cycle of them. Collective."""
    threads = {"": torch.get_num_threads()}
    (seconds,) = interleaved_seconds({"": trainer}, threads, rounds=1, steps=TIMED, progress=False)[""]
    return seconds
