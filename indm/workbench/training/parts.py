"""The parts of a training: from what a caller of ``indm.train`` names or makes, through checks, to
data and model.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from indm import names
from indm.checks import arguments_of, require
from indm.conditions import Condition
from indm.dequantization import from_data
from indm.model import INDM, build, build_dequantization, count_parameters, describe
from indm.objective import Objective, flow_nll, objective_of
from indm.score import base_of, context_of, noise_parts, score_for
from indm.tensors import evaluation_mode, noisy
from indm.training import Penalty
from indm.workbench.data.base import SPLITS, Data, as_data, check_kind, load_data, stack
from indm.workbench.data.examples import flip_horizontally
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.recipes.recipe import AnyTables, Part, Recipe

DrawLaw = Callable[[int], Tensor]  # n ↦ n draws in model units, (n, *event)
MOST_IN_MEMORY = 20_000  # examples of the law that x_T shall have
LARGEST_ZERO = 1e-5  # largest output of a network that is said to give 0


def make_recipe(
    source: str | Path | AnyTables | TrainOptions,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
) -> Recipe:
    """The recipe of a training, in which model, data and objective from Python replace the tables
    of ``source``.

    Raises:
        ValueError: a mistake in the recipe, or a part that a file cannot describe.
    """
    source = recipes.load(source) if isinstance(source, str | Path) else source
    tables: dict[str, Any] = (
        {"train": asdict(source)} if isinstance(source, TrainOptions) else dict(source)
    )
    if data is not None:
        tables["data"] = table_of_data(data)
    if model is not None:
        described = model.description() if is_whole(model) else {"net": describe(model, "net")}
        tables |= _without_none(described)
    if objective is not None:
        name = (
            objective if isinstance(objective, str) else name_of_objective(objective_of(objective))
        )
        tables["train"] = {**tables.get("train", {}), "objective": name}
    return recipes.resolve(tables)


def is_whole(model: nn.Module) -> bool:
    """Whether ``model`` is more than the network of one."""
    return hasattr(model, "trained_parts")


def table_of_data(data: Any) -> dict[str, Any]:
    """``[data]`` for data from Python: the class of a data set that describes itself, else the name
    "given".

    A data set describes itself if each argument of its class is a number, a string or None that it
    keeps as an attribute of the same name.
    """
    kind = type(data)
    if (
        not isinstance(data, Dataset)
        or inspect.signature(kind).parameters.keys() != arguments_of(kind).keys()
    ):
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
    found = [
        name for name, value in inspect.getmembers(inspect.getmodule(loss)) if value is objective
    ]
    return (
        f"{loss.__module__}:{found[0]}" if found and loss.__module__ != "__main__" else names.GIVEN
    )


def parts_of(
    recipe: Recipe,
    accelerator: Accelerator,
    model: nn.Module | None = None,
    data: Any = None,
    objective: Any = None,
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
        "model": None if model is None else whole_model(model, recipe, data),
        "objective": None
        if objective is None
        else objective_of(names.find("objective", objective)),
    }


def with_condition(recipe: Recipe, data: Data) -> Recipe:
    """``recipe`` with the arguments of its ``[condition]`` that the data decide, such as labels of
    classes.

    Raises:
        ValueError: the data have no condition, or another kind of one.
    """
    if recipe.condition is None:
        return recipe
    kind = names.find("condition", recipe.condition.name)
    decided = kind.of_data(data.c("train", kind.is_class), data.classes)
    return replace(
        recipe, condition=Part(recipe.condition.name, {**decided, **recipe.condition.options})
    )


def whole_model(model: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """A model from Python as a whole one that fits ``data``.

    A network gets the flow and the SDE of ``recipe``. An INDM without a shape gets the data's
    shape. One without a scaling, whose scaling so far is for data in model units, gets the data's
    scaling.

    Raises:
        ValueError: the model is one of other events, or of other grey levels.
    """
    shape = tuple(data.shape)
    if not is_whole(model):
        torch.manual_seed(recipe.train.seed)
        flow, sde = (cast(Any, build(recipe[kind], kind, shape)) for kind in ("flow", "sde"))
        noise = build_dequantization(recipe, shape, data.scaling)
        condition = (
            build(recipe["condition"], "condition", shape) if "condition" in recipe else None
        )
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


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────


def check_parts(model: nn.Module, options: TrainOptions, objective: Objective) -> None:
    """All that has parameters is trained, and every step has something to train.

    Raises:
        ValueError: naming the keys of the recipe that are at odds.
    """
    sizes = {name: count_parameters(part) for name, part in model.trained_parts.items()}
    if not sum(sizes.values()):
        raise ValueError(
            "flow.name and net.name must leave something to train, got parts without parameters"
        )
    cures = {
        "flow": 'take a flow.name such as "coupling"',
        "score": 'train.objective "flow" trains a flow alone',
    }
    for first, part in (("score", "score"), ("flow", "flow"), ("flow", "score")):
        fits = options.first != first or sizes[part] > 0
        require(
            fits,
            "train.first",
            options.first,
            f'"both" where the {part} has nothing to train',
            cures[part],
        )
    name, cure = f'train.objective "{options.objective}"', '"mle" and "fid" train flow and score'
    for part, is_trained, needed in (
        ("score", objective.trains_score, 'net.name "zero"'),
        ("flow", objective.trains_flow, 'a flow.name without parameters, such as "identity"'),
    ):
        if not is_trained and sizes[part]:
            raise ValueError(
                f"{name} needs {needed}, got {sizes[part]} parameters that it would not train; {cure}"
            )
    fits = not options.soft_truncation or (objective.truncates and objective.takes("eps"))
    wanted = f"0 with {name}, which is not an objective at every truncation"
    require(fits, "train.soft_truncation", options.soft_truncation, wanted)


def check_condition(condition: Condition, data: Data) -> None:
    """ValueError where data have no conditions of this kind in one of their splits, or cannot be
    flipped with them.
    """
    for split in SPLITS:
        data.rows(condition, split)
    wanted = "false for a condition of images, which would not be flipped with x"
    require(not (data.flip and len(condition.seen_shape) > 1), "data.flip", data.flip, wanted)


@torch.no_grad()
def check_start(model: Any, x: Tensor) -> None:
    """ValueError where a model, tried at ``x`` in model units, is more than its flow before its
    network is trained.
    """
    name = f"net {type(model.score.backbone).__name__}"
    if base_of(model.score) is None:
        raise ValueError(
            f'train.first must not be "flow" where {name} gives the noise itself: it does not add to N(0, I)'
        )
    with evaluation_mode(model):
        z, _ = model.encode(x)
        added = noise_parts(model.score, z, z.new_ones(len(z)))[1].abs().max().item()
    hint = "set the weights and biases of its last layer to 0"
    require(
        added < LARGEST_ZERO,
        f"the output of {name}",
        added,
        '0 at the start of a run with train.first "flow"',
        hint,
    )


def check_shapes(model: nn.Module, x: Tensor) -> None:
    """ValueError where flow or network, tried on a batch ``x`` in model units, return anything of
    another shape.
    """
    net, flow = model.score.backbone, model.flow
    with evaluation_mode(model):
        level = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        output = _called("net", net, x, level, *context_of(model.score))
        _check_shape(f"net {type(net).__name__}: its output", output, tuple(x.shape))
        pair = _called("flow", flow, x, generator=None)
        name = f"flow {type(flow).__name__}"
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"{name} must return z and log_det, got {type(pair).__name__}")
        _check_shape(f"{name}: its z", pair[0], tuple(x.shape))
        _check_shape(f"{name}: its log_det", pair[1], (len(x),))


def _check_shape(what: str, result: Any, wanted: tuple[int, ...]) -> None:
    if not isinstance(result, Tensor) or tuple(result.shape) != wanted:
        got = (
            f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        )
        raise ValueError(f"{what} must have shape {wanted} for a batch of {wanted[0]}, got {got}")


def _called(kind: str, part: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    try:
        return part(*inputs, **options)
    except (RuntimeError, IndexError, TypeError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        name = f"{kind} {type(part).__name__}"
        raise ValueError(
            f"{name} cannot be called with inputs of shape {shapes}: {error}"
        ) from error


def check_loss(
    objective: Objective, model: nn.Module, x: Tensor, step_arguments: dict[str, Any]
) -> None:
    """ValueError where the loss of a batch ``x`` is not a scalar with a gradient and a dict of
    scalars.
    """
    with evaluation_mode(model, gradients=True):
        result = objective.loss(model, x, **step_arguments)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    scalars = [result[0], *result[1].values()] if fits else []
    name = getattr(objective.loss, "__qualname__", "the objective")
    if not fits or not all(isinstance(value, Tensor) and value.ndim == 0 for value in scalars):
        raise ValueError(
            f"objective {name} must return a scalar loss and a dict of scalar terms, got {result!r:.200}"
        )
    if not result[0].requires_grad and any(
        parameter.requires_grad for parameter in model.parameters()
    ):
        got = "one that depends on no parameter of the model: detach its terms, not the loss"
        raise ValueError(f"objective {name} must return a loss with a gradient, got {got}")


# The nonlinear diffusion x_t = h⁻¹(z_t) ends at x_T ~ h⁻¹#π, and a chosen law is x_T's.


def penalties_of(
    options: TrainOptions, model: nn.Module, data: Data, second: Data | None, device: torch.device
) -> list[Penalty]:
    """The mean −log density of x_T ~ h⁻¹#π at draws of the law that x_T shall have, nats; where it
    has a weight.

    ``second`` are the data whose law x_T shall have; None stands for the Gaussian with the moments
    of ``data``.
    """
    if not options.terminal:
        return []
    law = with_noise(terminal_law(model, data, second, device), options.terminal_noise)
    return [
        Penalty(
            "terminal",
            options.terminal,
            lambda model, x: flow_nll(model, law(len(x))).mean(),
            in_nats=True,
        )
    ]


def terminal_law(
    model: nn.Module, data: Data, second: Data | None, device: torch.device
) -> DrawLaw:
    """A function that draws examples of the law that x_T shall have, in model units."""
    if second is None:
        return normal_law(_without_gradient(model, stack(data.train, MOST_IN_MEMORY).to(device)))
    raw, flip = stack(second.train, MOST_IN_MEMORY), second.flip

    def draw(n: int) -> Tensor:
        rows = raw[torch.randint(len(raw), (n,))].to(device)
        return _without_gradient(model, flip_horizontally(rows) if flip else rows)

    return draw


def with_noise(law: DrawLaw, deviation: float) -> DrawLaw:
    """``law`` of x + deviation · n, n ~ N(0, I): the noise augmentation of TarFlow.

    Source: Zhai et al. 2024, "Normalizing Flows are Capable Generative Models",
    https://arxiv.org/abs/2412.06329.
    """
    return (lambda n: noisy(law(n), deviation)) if deviation else law


@torch.no_grad()
def _without_gradient(model: nn.Module, raw: Tensor) -> Tensor:
    """``raw`` in model units, whose noise this loss does not train."""
    return from_data(model, raw)[0]


def normal_law(x: Float[Tensor, "batch *event"]) -> DrawLaw:
    """A sampler of the Gaussian with the mean and the covariance of the data ``x`` (n, *event)."""
    flat = x.flatten(1)
    mean, centred = flat.mean(0), flat - flat.mean(0)
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
    factor = basis * variance.clamp_min(1e-6).sqrt()

    def draw(n: int) -> Tensor:
        noise = torch.randn(n, len(mean), dtype=x.dtype, device=x.device)
        return (mean + noise @ factor.T).reshape(n, *x.shape[1:])

    return draw
