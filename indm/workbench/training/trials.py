"""Checks of a model, its data and its loss before a training."""

from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import require
from indm.conditions import Condition
from indm.flows.base import Flow, check_flow
from indm.model import count_parameters
from indm.objective import Objective
from indm.score import base_of, context_of, noise_parts
from indm.sde.linear import check_sde
from indm.tensors import evaluation_mode
from indm.workbench.data.base import SPLITS, Data
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.training.batches import example

LARGEST_ZERO = 1e-5  # largest output of a network that must return 0


def check_trained(model: Any, options: TrainOptions, objective: Objective) -> None:
    """ValueError unless all parameters are trained, and each step has something to train."""
    sizes = {name: count_parameters(part) for name, part in model.trained_parts.items()}
    if options.first == "flow":
        _check_opening(sizes["flow"], "flow", "flow", 'take a flow.name such as "coupling"')
    if options.first != "both":
        cure = 'train.objective "flow" trains a flow alone'
        _check_opening(sizes["score"], options.first, "score", cure)
    name = f'train.objective "{options.objective}"'
    for part, is_trained, needed in (
        ("score", objective.trains_score, 'net.name "zero"'),
        ("flow", objective.trains_flow, 'a flow.name without parameters, such as "identity"'),
    ):
        if not is_trained and sizes[part]:
            raise ValueError(
                f"{name} needs {needed}, got {sizes[part]} parameters that it would not train"
            )
    fits = not options.soft_truncation or (objective.truncates and objective.takes("eps"))
    wanted = f"0 with {name}, which is not an objective at every truncation"
    require(fits, "train.soft_truncation", options.soft_truncation, wanted)


def _check_opening(parameters: int, first: str, part: str, cure: str) -> None:
    wanted = f'"both" where the {part} has nothing to train'
    require(parameters > 0, "train.first", first, wanted, cure)


def check_condition(condition: Condition, data: Data) -> None:
    """ValueError unless each split has conditions of this kind, which may be flipped with images."""
    for split in SPLITS:
        data.rows(condition, split)
    wanted = "false for a condition of images, which would not be flipped with x"
    require(not (data.flip and len(condition.seen_shape) > 1), "data.flip", data.flip, wanted)


@torch.no_grad()
def check_start(model: Any, x: Tensor) -> None:
    """ValueError unless the network starts at 0, so that a model begins as its flow.

    It is tried at ``x`` in model units.
    """
    name = f"net {type(model.score.backbone).__name__}"
    if base_of(model.score) is None:
        raise ValueError(
            f'train.first must not be "flow" where {name} gives the noise itself: '
            "it does not add to N(0, I)"
        )
    with evaluation_mode(model):
        z, _ = model.encode(x)
        added = noise_parts(model.score, z, z.new_ones(len(z)))[1].abs().max().item()
    wanted = '0 at the start of a run with train.first "flow"'
    hint = "set the weights and biases of its last layer to 0"
    require(added < LARGEST_ZERO, f"the output of {name}", added, wanted, hint)


def try_outside_parts(model: Any, objective: Objective, data: Data) -> None:
    """Check parts from outside this package on a batch.

    Raises:
        ValueError: a wrong shape or loss, or a flow or SDE whose formulas contradict each other.
    """
    loss_package = (objective.loss.__module__ or "").partition(".")[0]
    packages = {package_of(module) for module in model.modules()}
    if packages | {loss_package} <= {"torch", "indm"}:
        return
    at_c, x = example(model, data)
    check_shapes(at_c, x)
    if package_of(model.sde) != "indm":
        check_sde(model.sde)
    flows = [part for part in model.flow.modules() if isinstance(part, Flow)]
    if any(package_of(flow) != "indm" for flow in flows):
        check_flow(at_c.flow, x)
    known = {"eps": None, "progress": 0.0}
    check_loss(objective, at_c, x, {k: v for k, v in known.items() if objective.takes(k)})


def package_of(module: nn.Module) -> str:
    """The top-level package that the class of ``module`` comes from."""
    return type(module).__module__.partition(".")[0]


def check_shapes(model: Any, x: Tensor) -> None:
    """ValueError if flow or network return another shape for a batch ``x`` in model units."""
    net, flow = model.score.backbone, model.flow
    net_name, flow_name = f"net {type(net).__name__}", f"flow {type(flow).__name__}"
    with evaluation_mode(model):
        output = net(x, x.new_zeros(len(x)), *context_of(model.score))
        z, log_det = flow(x, generator=None)
    _check_shape(f"{net_name}: its output", output, x.shape)
    _check_shape(f"{flow_name}: its z", z, x.shape)
    _check_shape(f"{flow_name}: its log_det", log_det, x.shape[:1])


def _check_shape(what: str, result: Tensor, wanted: tuple[int, ...]) -> None:
    if result.shape != wanted:
        raise ValueError(
            f"{what} must have shape {tuple(wanted)} for a batch of {wanted[0]}, "
            f"got shape {tuple(result.shape)}"
        )


def check_loss(objective: Objective, model: Any, x: Tensor, step_arguments: dict[str, Any]) -> None:
    """ValueError unless the loss of a batch ``x`` is a scalar, with a dict of scalar terms."""
    with evaluation_mode(model, gradients=True):
        result = objective.loss(model, x, **step_arguments)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    scalars = [result[0], *result[1].values()] if fits else []
    name = getattr(objective.loss, "__qualname__", "the objective")
    if not fits or not all(isinstance(value, Tensor) and value.ndim == 0 for value in scalars):
        raise ValueError(
            f"objective {name} must return a scalar loss and a dict of scalar terms, "
            f"got {result!r:.200}"
        )
