"""From a recipe, and parts given in Python, to the parts of a training.

:func:`read` is the only way from a recipe to a training; the modules below it know no recipes.
"""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from indm import names
from indm.checks import arguments_of
from indm.dequantization import check_raw, decoder_of
from indm.model import INDM, build, build_dequantization, build_model, count_parameters, describe
from indm.objective import Objective, objective_of
from indm.score import base_of, score_for
from indm.training import NoiseLevels, Penalty, TrainingStep
from indm.workbench.data.base import Data, as_data, check_kind, load_data, stack
from indm.workbench.data.examples import InMemory
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.recipes.recipe import AnyTables, Part, Recipe
from indm.workbench.training import trials
from indm.workbench.training.batches import Batches
from indm.workbench.training.schedule import Schedule, Upkeep
from indm.workbench.training.terminal import terminal_law, terminal_penalty, with_noise
from indm.workbench.training.trainer import Parts
from indm.workbench.training.validation import Validation

# ── The recipe


def make_recipe(
    source: str | Path | AnyTables | TrainOptions,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
) -> Recipe:
    """The recipe of a training; model, data and objective from Python replace its tables.

    Raises:
        ValueError: a mistake in the recipe, or a part that a file cannot describe.
    """
    if isinstance(source, str | Path):
        source = recipes.load(source)
    tables: dict[str, Any] = (
        {"train": asdict(source)} if isinstance(source, TrainOptions) else dict(source)
    )
    if data is not None:
        tables["data"] = table_of_data(data)
    if model is not None:
        described = model.description() if is_whole(model) else {"net": describe(model, "net")}
        tables |= _without_none(described)
    if objective is not None:
        if not isinstance(objective, str):
            objective = name_of_objective(objective_of(objective))
        tables["train"] = {**tables.get("train", {}), "objective": objective}
    return recipes.resolve(tables)


def is_whole(model: nn.Module) -> bool:
    """Whether ``model`` is a whole model, and not only its network."""
    return hasattr(model, "trained_parts")


def table_of_data(data: Any) -> dict[str, Any]:
    """``[data]`` for data from Python: their class if that can be made again, else "given".

    It can if each argument of the class is a number, a string or None, and is kept as an attribute
    of the same name.
    """
    given = {"name": names.GIVEN}
    kind = type(data)
    if not isinstance(data, Dataset):
        return given
    arguments = arguments_of(kind).keys()
    values = {key: value for key, value in vars(data).items() if key in arguments}
    is_described = inspect.signature(kind).parameters.keys() == arguments == values.keys()
    plain = bool | int | float | str | None
    if not is_described or not all(isinstance(value, plain) for value in values.values()):
        return given
    try:
        name = names.name_of("data", kind)
    except ValueError:
        return given
    return {"name": name, **_without_none(values)}


def name_of_objective(objective: Objective) -> str:
    """The name in ``train.objective`` that stands for ``objective``; "given" if there is none."""
    loss = objective.loss
    if objective_of(loss) == objective and inspect.isroutine(loss):
        try:
            return names.name_of("objective", loss)
        except ValueError:
            return names.GIVEN
    members = inspect.getmembers(inspect.getmodule(loss))
    found = [name for name, value in members if value is objective]
    if not found or loss.__module__ == "__main__":
        return names.GIVEN
    return f"{loss.__module__}:{found[0]}"


def _without_none(value: Any) -> Any:
    """``value`` without entries that are None, which TOML does not have."""
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


# ── The parts


def read(
    recipe: Recipe,
    accelerator: Accelerator,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
) -> tuple[Recipe, Parts]:
    """The recipe, completed by its data, and the parts of its training.

    ``model``, ``data`` and ``objective`` from Python replace those of the recipe.

    Raises:
        ValueError: parts that do not fit each other, or that return something wrong.
    """
    o = recipe.train
    wanted = objective_of(names.find("objective", o.objective if objective is None else objective))
    with accelerator.main_process_first():
        own = data_of(recipe, data)
        second = _second_data(recipe, own)
    recipe = with_condition(recipe, own)
    if model is not None:
        model = whole_model(model, recipe, own)
    torch.manual_seed(o.seed)
    made = _checked_model(model, recipe, own, wanted).to(accelerator.device)
    if accelerator.device.type == "cuda":
        made = made.to(memory_format=torch.channels_last)
    trials.try_outside_parts(made, wanted, own)
    penalties = _penalties(o, made, own, second, accelerator.device)
    batching = (o.batch_size, o.accumulate, o.workers, o.seed)
    parts = Parts(
        accelerator=accelerator,
        batches=Batches(own, made.condition, accelerator, *batching),
        step=TrainingStep(made, wanted, penalties, o.initial_noise),
        optimizer=_optimizer(o, made),
        ema=o.ema,
        clip=o.clip,
        schedule=_schedule(o, made),
        validation=_validation(recipe, accelerator, own, second),
        upkeep=_upkeep(o),
        noise_levels=_noise_levels(o, made, wanted),
        soft_truncation=o.soft_truncation,
        seed=o.seed,
    )
    return recipe, parts


def data_of(recipe: Recipe, data: Any = None) -> Data:
    """``data`` from Python, or the data of the recipe."""
    if data is None:
        return load_data(recipe.data.name, **recipe.data.options)
    return as_data(data, name=recipe.data.name, c=recipe.condition is not None)


def _second_data(recipe: Recipe, data: Data) -> Data | None:
    """The data of ``[data_b]``, if a penalty needs them."""
    if recipe.data_b is None or not recipe.train.terminal:
        return None
    second = load_data(recipe.data_b.name, **recipe.data_b.options)
    check_kind(second, data, "data have", "data_b")
    return second


def with_condition(recipe: Recipe, data: Data) -> Recipe:
    """``recipe`` with the arguments of its ``[condition]`` that the data decide, such as labels.

    Raises:
        ValueError: the data have no condition, or another kind.
    """
    if recipe.condition is None:
        return recipe
    kind = names.find("condition", recipe.condition.name)
    decided = kind.of_data(data.c("train", kind.is_class), data.classes)
    condition = Part(recipe.condition.name, {**decided, **recipe.condition.options})
    return replace(recipe, condition=condition)


def whole_model(model: Any, recipe: Recipe, data: Data) -> nn.Module:
    """The INDM of a model from Python, for ``data``.

    A network gets the flow and the SDE of ``recipe``. An INDM without a shape gets the data's
    shape, and one without a scaling gets the data's scaling.

    Raises:
        ValueError: the model is for other events, or for other grey levels.
    """
    shape = tuple(data.shape)
    if not is_whole(model):
        torch.manual_seed(recipe.train.seed)
        flow = build(recipe["flow"], "flow", shape)
        sde = build(recipe["sde"], "sde", shape)
        noise = build_dequantization(recipe, shape, data.scaling)
        condition = None
        if recipe.condition is not None:
            condition = build(recipe["condition"], "condition", shape)
        return INDM(flow, score_for(model)(model, sde), data.scaling, shape, noise, condition)
    if isinstance(model, INDM) and (not model.has_shape or model.scaling.is_identity()):
        scaling = data.scaling if model.scaling.is_identity() else model.scaling
        noise = model.dequantization or build_dequantization(recipe, shape, data.scaling)
        if model.has_shape:
            shape = model.shape
        model = model.for_data(scaling, shape, noise)
    check_kind(data, model, "the model has")
    return model


def _checked_model(model: Any, recipe: Recipe, data: Data, objective: Objective) -> Any:
    """``model``, or the model of ``recipe``, on the CPU, with its condition fitted to the data."""
    if model is None:
        model = build_model(recipes.model_tables(recipe), data.shape, data.scaling)
    trials.check_trained(model, recipe.train, objective)
    # other data are checked when they are read
    check_raw(model, stack(data.train, None if isinstance(data.train, InMemory) else 2))
    if not model.condition.is_none:
        trials.check_condition(model.condition, data)
        model.condition.fit(data.rows(model.condition, "train"))
    return model


def _penalties(
    o: TrainOptions, model: Any, data: Data, second: Data | None, device: torch.device
) -> list[Penalty]:
    """The term of a bridge, if the options ask for it."""
    if not o.terminal:
        return []
    law = terminal_law(model, data, second, device)
    return [terminal_penalty(with_noise(law, o.terminal_noise), o.terminal)]


def _validation(
    recipe: Recipe, accelerator: Accelerator, data: Data, second: Data | None
) -> Validation:
    o = recipe.train
    return Validation(
        data,
        second,
        accelerator,
        examples=o.validate_examples,
        noise=o.initial_noise,
        second_noise=o.terminal_noise,
        batch_size=recipe.evaluate.batch_size,
        seed=o.seed,
    )


def _optimizer(o: TrainOptions, model: Any) -> torch.optim.Optimizer:
    """AdamW with the rate and the weight decay of each part that has parameters."""
    rates = {"flow": o.flow_lr, "dequantization": o.dequantization_lr}
    decays = {"flow": o.flow_weight_decay}
    groups = [
        {
            "name": name,
            "params": list(part.parameters()),
            "lr": rates.get(name, o.lr),
            "weight_decay": decays.get(name, o.weight_decay),
        }
        for name, part in model.trained_parts.items()
        if count_parameters(part)
    ]
    return torch.optim.AdamW(groups, betas=o.betas, fused=True)


def _schedule(o: TrainOptions, model: Any) -> Schedule:
    """The schedule; if the score has no parameters, each step trains the flow."""
    return Schedule(
        steps=o.steps,
        seconds=o.seconds,
        first=o.first,
        alone=0.0 if o.first == "both" else o.alone,
        flow_update_every=o.flow_update_every if count_parameters(model.score) else 1,
        warmup=o.warmup,
        decay=o.decay,
        joint_factor=o.joint_factor,
    )


def _upkeep(o: TrainOptions) -> Upkeep:
    return Upkeep(
        log_every=o.log_every,
        validate_every=o.validate_every,
        checkpoint_every=o.checkpoint_every,
        max_skipped_steps=o.max_skipped_steps,
        keep_last=o.keep_last,
        threads=o.threads,
        keeps_best=o.final == "best" or (o.final == "auto" and o.first == "flow"),
        latent_mean=o.latent_mean,
    )


def _noise_levels(o: TrainOptions, model: Any, objective: Objective) -> NoiseLevels | None:
    """The noise levels that are drawn more where gradients are large; None for even ones."""
    is_even = o.noise_levels == "even" or o.soft_truncation or not objective.takes("noise_levels")
    if is_even or base_of(model.score) is None or decoder_of(model) is not None:
        return None
    return NoiseLevels(model.sde)
