"""From what a caller of ``indm.train`` names or makes in Python to a whole recipe, and to the parts of a trainer."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from indm import names
from indm.checks import arguments_of
from indm.model import INDM, build, build_dequantization, describe
from indm.objective import Objective, objective_of
from indm.score import score_for
from indm.workbench.data.base import Data, as_data, check_kind
from indm.workbench.data.registry import load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Training
from indm.workbench.recipes.recipe import AnyTables, Part, Recipe


def recipe_of(
    source: str | Path | AnyTables | Training,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
) -> Recipe:
    """The recipe of a training, in which model, data and objective from Python replace the tables of ``source``.

    Raises:
        ValueError: a mistake in the recipe, or a part that a file cannot describe.
    """
    source = recipes.load(source) if isinstance(source, str | Path) else source
    tables: dict[str, Any] = {"train": asdict(source)} if isinstance(source, Training) else dict(source)
    if data is not None:
        tables["data"] = table_of_data(data)
    if model is not None:
        described = model.description() if is_whole(model) else {"net": describe(model, "net")}
        tables |= _without_none(described)
    if objective is not None:
        name = objective if isinstance(objective, str) else name_of_objective(objective_of(objective))
        tables["train"] = {**tables.get("train", {}), "objective": name}
    return recipes.resolve(tables)


def is_whole(model: nn.Module) -> bool:
    """Whether ``model`` is more than the network of one."""
    return hasattr(model, "trained_parts")


def table_of_data(data: Any) -> dict[str, Any]:
    """``[data]`` for data from Python: the class of a data set that describes itself, else the name "given".

    A data set describes itself if each argument of its class is a number, a string or None that it keeps as an
    attribute of the same name.
    """
    kind = type(data)
    if not isinstance(data, Dataset) or inspect.signature(kind).parameters.keys() != arguments_of(kind).keys():
        return {"name": names.GIVEN}
    values = {key: getattr(data, key, data) for key in arguments_of(kind)}
    if not all(isinstance(value, bool | int | float | str | None) for value in values.values()):
        return {"name": names.GIVEN}
    try:
        return {"name": names.name_of("data", kind), **_without_none(values)}
    except ValueError:
        return {"name": names.GIVEN}


def name_of_objective(objective: Objective) -> str:
    """The name in ``train.objective`` that stands for ``objective``; "given" if there is none."""
    loss = objective.loss
    if objective_of(loss) == objective and hasattr(loss, "__qualname__"):
        try:
            return names.name_of("objective", loss)
        except ValueError:
            return names.GIVEN
    found = [name for name, value in inspect.getmembers(inspect.getmodule(loss)) if value is objective]
    return f"{loss.__module__}:{found[0]}" if found and loss.__module__ != "__main__" else names.GIVEN


def parts_of(
    recipe: Recipe, accelerator: Accelerator, model: nn.Module | None = None, data: Any = None, objective: Any = None
) -> dict[str, Any]:
    """The ``data``, ``model`` and ``objective`` of a trainer; None is the recipe's."""
    with accelerator.main_process_first():
        if data is None:
            data = load_data(recipe.data.name, **recipe.data.options)
        else:
            data = as_data(data, name=recipe.data.name, c=recipe.condition is not None)
        recipe = with_condition(recipe, data)
    return {
        "data": data,
        "model": None if model is None else model_of(model, recipe, data),
        "objective": None if objective is None else objective_of(names.find("objective", objective)),
    }


def with_condition(recipe: Recipe, data: Data) -> Recipe:
    """``recipe`` with the arguments of its ``[condition]`` that the data decide, such as labels of classes.

    Raises:
        ValueError: the data have no condition, or another kind of one.
    """
    if recipe.condition is None:
        return recipe
    kind = names.find("condition", recipe.condition.name)
    decided = kind.of_data(data.c("train", kind.is_class), data.classes)
    return replace(recipe, condition=Part(recipe.condition.name, {**decided, **recipe.condition.options}))


def model_of(model: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """A model from Python as a whole one that fits ``data``.

    A network gets the flow and the SDE of ``recipe``. An INDM without a shape gets that of the data; one without a
    scaling, which has then that of data in model units, gets that of the data, too.

    Raises:
        ValueError: the model is one of other events, or of other grey levels.
    """
    shape = tuple(data.shape)
    if not is_whole(model):
        torch.manual_seed(recipe.train.seed)
        flow, sde = (cast(Any, build(recipe[kind], kind, shape)) for kind in ("flow", "sde"))
        noise = build_dequantization(recipe, shape, data.scaling)
        condition = build(recipe["condition"], "condition", shape) if "condition" in recipe else None
        return INDM(flow, score_for(model)(model, sde), data.scaling, shape, noise, condition)
    if isinstance(model, INDM) and (not model.has_shape or model.scaling.is_identity()):
        scaling = data.scaling if model.scaling.is_identity() else model.scaling
        noise = model.dequantization or build_dequantization(recipe, shape, data.scaling)
        shape = model.shape if model.has_shape else shape
        model = INDM(model.flow, model.score, scaling, shape, noise, model.condition)
    check_kind(data, model, "the model has")
    return model


def _without_none(value: Any) -> Any:
    """``value`` without the entries that are None, which TOML does not have: defaults, most often."""
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value
