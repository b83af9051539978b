"""What is refused before a training starts: parts that do not go together, and parts of the wrong shape."""

from typing import Any

import torch
from torch import Tensor, nn

from indm.conditions import Condition
from indm.config.options import Training
from indm.data.base import PARTS, Data, check_kind
from indm.flows.base import require_one_map
from indm.model import count_parameters
from indm.objective import Objective
from indm.score import context_of
from indm.tensors import evaluation_mode
from indm.training import sharding

OF_DIFFUSIONS = ("pretrain", "soft_truncation", "isometry", "terminal", "latent_mean", "shard")  # keys of [train]


def check_parts(model: nn.Module, options: Training, objective: Objective) -> None:
    """All that has parameters is trained, and every step has something to train.

    Raises:
        ValueError: naming the keys of the recipe that are at odds.
    """
    sizes = {name: count_parameters(part) for name, part in model.trained_parts.items()}
    if not sum(sizes.values()):
        raise ValueError(
            "flow.name and net.name must leave something to train, got a flow and a score without parameters"
        )
    if not model.is_diffusion:
        for key in OF_DIFFUSIONS:
            default = getattr(Training, key)
            if getattr(options, key) != default:
                raise ValueError(
                    f"train.{key} must be {default!r} for a model without flow and diffusion, got "
                    f"{getattr(options, key)!r}"
                )
        return
    _check_objective(model, options, objective, sizes)
    if not sizes["score"] and options.pretrain:
        raise ValueError(f"train.pretrain must be 0 where the score has nothing to train, got {options.pretrain:g}")
    if options.shard:
        sharding.check(model)
    if options.isometry:
        require_one_map(model.flow, "train.isometry")


def _check_objective(model: nn.Module, options: Training, objective: Objective, sizes: dict[str, int]) -> None:
    name = f'train.objective "{options.objective}"'
    if not objective.trains_score and sizes["score"]:
        raise ValueError(
            f'{name} needs net.name "zero" and an sde.name without parameters, got {sizes["score"]} parameters that it '
            'would not train; "mle" and "fid" train flow and score'
        )
    if not objective.trains_flow and sizes["flow"]:
        raise ValueError(
            f'{name} needs a flow.name without parameters, such as "identity", got {sizes["flow"]} parameters that it '
            'would not train; "mle" and "fid" train flow and score'
        )
    if objective.standard_prior and model.sde.prior_std != 1:
        raise ValueError(
            f"{name} needs an SDE whose prior is N(0, I), got one of deviation {model.sde.prior_std:g}; use sde.name "
            '"vp" or "subvp"'
        )
    if objective.standard_prior and options.latent_mean:
        raise ValueError(f"train.latent_mean must be false for {name}, whose prior is N(0, I)")
    if options.soft_truncation and not (objective.truncates and objective.takes("eps")):
        raise ValueError(
            f"train.soft_truncation must be 0 with {name}, which is no objective at every truncation, got "
            f"{options.soft_truncation:g}"
        )


def check_second(data: Data, second: Data) -> None:
    """ValueError where two data sets are not of one kind."""
    check_kind(second, data, "data have", "data_b")


def check_shapes(model: nn.Module, x: Tensor) -> None:
    """See, on a batch ``x`` in model units, that flow and network return what they must.

    Raises:
        ValueError: naming the part, the shape it returned and the one that is needed.
    """

    def check(what: str, result: Any, wanted: tuple[int, ...]) -> None:
        if not isinstance(result, Tensor) or tuple(result.shape) != wanted:
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{what} must have shape {wanted} for a batch of {len(x)}, got {got}")

    net = model.score.backbone
    with evaluation_mode(model):
        level = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        check(
            f"net {type(net).__name__}: its output",
            _called("net", net, x, level, *context_of(model.score)),
            tuple(x.shape),
        )
        pair = _called("flow", model.flow, x, generator=None)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"flow {type(model.flow).__name__} must return z and log_det, got {type(pair).__name__}")
        check(f"flow {type(model.flow).__name__}: its z", pair[0], tuple(x.shape))
        check(f"flow {type(model.flow).__name__}: its log_det", pair[1], (len(x),))


def check_loss(objective: Objective, model: nn.Module, x: Tensor, conditions: dict[str, Any]) -> None:
    """See, on a batch ``x`` in model units, that the loss returns what it must.

    Raises:
        ValueError: it does not return a scalar and a dict of scalars.
    """
    with evaluation_mode(model):
        result = objective.loss(model, x, **conditions)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    scalars = [result[0], *result[1].values()] if fits else []
    if not fits or not all(isinstance(value, Tensor) and value.ndim == 0 for value in scalars):
        name = getattr(objective.loss, "__qualname__", "the objective")
        raise ValueError(f"objective {name} must return a scalar loss and a dict of scalar terms, got {result!r:.200}")


def _called(kind: str, part: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    try:
        return part(*inputs, **options)
    except (RuntimeError, IndexError, TypeError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"{kind} {type(part).__name__} cannot be called with inputs of shape {shapes}: {error}"
        ) from error


def check_condition(condition: Condition, data: Data) -> None:
    """ValueError where data have no conditions of this kind in one of their splits, or cannot be flipped with them."""
    for split in PARTS:
        condition.rows_of(data, split)
    if data.flip and len(condition.seen_shape) > 1:
        raise ValueError(
            "data.flip must be false for a condition of images, which would not be flipped with x, got true"
        )
