"""What a caller of ``indm.train`` gives in Python in place of the recipe's tables: a model, data, an objective."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from indm.config import parts, recipes
from indm.config.options import Training
from indm.config.recipes import Recipe
from indm.data.base import Data, as_data, check_kind
from indm.data.registry import load_data
from indm.model import INDM, build, build_dequantization, describe
from indm.objective import Objective, objective_of
from indm.score import score_for
from indm.training.conditional import with_condition


def recipe_of(
    source: str | Path | Recipe | Training,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
) -> Recipe:
    """The whole recipe of a training: what is given stands in place of the tables of ``source``.

    Raises:
        ValueError: a mistake in the recipe, or a given part that a file cannot describe.
    """
    recipe = recipes.load(source) if isinstance(source, str | Path) else source
    recipe = {"train": asdict(recipe)} if isinstance(recipe, Training) else dict(recipe)
    if data is not None:
        recipe["data"] = table_of_data(data)
    if model is not None:
        tables = model.description() if is_whole(model) else {"net": describe(model, "net")}
        recipe |= {kind: _without_none(table) for kind, table in tables.items()}
    if objective is not None:
        name = objective if isinstance(objective, str) else name_of_objective(objective_of(objective))
        recipe["train"] = recipe.get("train", {}) | {"objective": name}
    return recipes.resolve(recipe)


def is_whole(model: nn.Module) -> bool:
    """Whether ``model`` is more than the network of one."""
    return hasattr(model, "trained_parts")


def table_of_data(data: Any) -> dict[str, Any]:
    """``[data]`` for data that are given: the class of a data set that describes itself, else the name "given".

    A data set describes itself where each argument of its class is a number, a string or None that it keeps as an
    attribute of the same name.
    """
    if not isinstance(data, Dataset):
        return {"name": parts.GIVEN}
    arguments = {}
    for key, parameter in inspect.signature(type(data)).parameters.items():
        value = getattr(data, key, data)
        by_name = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if not by_name or not isinstance(value, bool | int | float | str | None):
            return {"name": parts.GIVEN}
        arguments[key] = value
    try:
        return {"name": parts.name_of("data", type(data)), **_without_none(arguments)}
    except ValueError:
        return {"name": parts.GIVEN}


def name_of_objective(objective: Objective) -> str:
    """The name in ``train.objective`` that stands for ``objective``; "given" where none does."""
    loss = objective.loss
    if objective_of(loss) == objective and hasattr(loss, "__qualname__"):
        try:
            return parts.name_of("objective", loss)
        except ValueError:
            return parts.GIVEN
    module = getattr(loss, "__module__", "__main__")
    values = vars(sys.modules[module]) if module != "__main__" else {}
    return next((f"{module}:{name}" for name, value in values.items() if value is objective), parts.GIVEN)


def resolved(
    recipe: Recipe, accelerator: Accelerator, model: nn.Module | None, data: Any, objective: Any
) -> dict[str, Any]:
    """The ``data``, ``model`` and ``objective`` of a :class:`~indm.training.trainer.Trainer`; None is the recipe's."""
    with accelerator.main_process_first():
        if data is None:
            data = load_data(**recipe["data"])
        else:
            data = as_data(data, name=recipe["data"]["name"], c="condition" in recipe)
        recipe = with_condition(recipe, data)
    return {
        "data": data,
        "model": None if model is None else model_of(model, recipe, data),
        "objective": None if objective is None else objective_of(parts.find("objective", objective)),
    }


def model_of(model: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """A given model as a whole one that fits ``data``.

    A network gets the flow and the SDE of ``recipe``. An INDM without a shape gets that of the data; one without a
    scaling, which has then that of data in model units, gets that of the data, too.

    Raises:
        ValueError: the model is one of other events, or of other grey levels.
    """
    shape = tuple(data.shape)
    if not is_whole(model):
        torch.manual_seed(recipes.options_of(recipe, "train").seed)
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
