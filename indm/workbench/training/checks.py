"""What is refused before a training starts: parts that do not go together or of the wrong shape, too large a step."""

import copy
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from indm.conditions import Condition, given
from indm.files.memory import counting, gib, most_memory
from indm.model import count_parameters
from indm.objective import Objective
from indm.score import context_of
from indm.tensors import evaluation_mode
from indm.workbench.data.base import PARTS, Data
from indm.workbench.recipes.options import Training

COPIES = 5  # of the weights: themselves, their gradients, Adam's two averages, the moving average


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
    _check_objective(model, options, objective, sizes)
    if not sizes["score"] and options.pretrain:
        raise ValueError(f"train.pretrain must be 0 where the score has nothing to train, got {options.pretrain:g}")


def _check_objective(model: nn.Module, options: Training, objective: Objective, sizes: dict[str, int]) -> None:
    name, cure = f'train.objective "{options.objective}"', '"mle" and "fid" train flow and score'
    for part, is_trained, needed in (
        ("score", objective.trains_score, 'net.name "zero" and an sde.name without parameters'),
        ("flow", objective.trains_flow, 'a flow.name without parameters, such as "identity"'),
    ):
        if not is_trained and sizes[part]:
            raise ValueError(f"{name} needs {needed}, got {sizes[part]} parameters that it would not train; {cure}")
    if objective.standard_prior and model.sde.prior_std != 1:
        raise ValueError(
            f"{name} needs an SDE whose prior is N(0, I), got one of deviation {model.sde.prior_std:g}; use sde.name "
            '"vp" or "subvp"'
        )
    if objective.standard_prior and options.latent_mean:
        raise ValueError(f"train.latent_mean must be false for {name}, whose prior is N(0, I)")
    if options.soft_truncation and not (objective.truncates and objective.takes("eps")):
        raise ValueError(
            f"train.soft_truncation must be 0 with {name}, which is not an objective at every truncation, got "
            f"{options.soft_truncation:g}"
        )


def check_condition(condition: Condition, data: Data) -> None:
    """ValueError where data have no conditions of this kind in one of their splits, or cannot be flipped with them."""
    for split in PARTS:
        condition.rows_of(data, split)
    if data.flip and len(condition.seen_shape) > 1:
        raise ValueError(
            "data.flip must be false for a condition of images, which would not be flipped with x, got true"
        )


# ── What parts return ───────────────────────────────────────────────────────────────────────────────────────────────


def check_shapes(model: nn.Module, x: Tensor) -> None:
    """See, on a batch ``x`` in model units, that flow and network return what they must.

    Raises:
        ValueError: naming the part, the shape it returned and the one that is needed.
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
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"{what} must have shape {wanted} for a batch of {wanted[0]}, got {got}")


def _called(kind: str, part: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    try:
        return part(*inputs, **options)
    except (RuntimeError, IndexError, TypeError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"{kind} {type(part).__name__} cannot be called with inputs of shape {shapes}: {error}"
        ) from error


def check_loss(objective: Objective, model: nn.Module, x: Tensor, conditions: dict[str, Any]) -> None:
    """See, on a batch ``x`` in model units, that the loss returns what it must.

    Raises:
        ValueError: it does not return a scalar with a gradient and a dict of scalars.
    """
    with evaluation_mode(model, gradients=True):
        result = objective.loss(model, x, **conditions)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    scalars = [result[0], *result[1].values()] if fits else []
    name = getattr(objective.loss, "__qualname__", "the objective")
    if not fits or not all(isinstance(value, Tensor) and value.ndim == 0 for value in scalars):
        raise ValueError(f"objective {name} must return a scalar loss and a dict of scalar terms, got {result!r:.200}")
    if not result[0].requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"objective {name} must return a loss with a gradient, got one that depends on no parameter of the model: "
            "detach its terms, not the loss"
        )


# ── Memory: a step too large is an error on a GPU, but on the CPU the kernel kills the process ──────────────────────


class TooLarge(ValueError):
    """A step of training takes more memory than there is."""


def within_memory(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Inside, building a model ends in :class:`TooLarge` as soon as its weights and their copies cannot fit."""
    most = most_memory()
    error = TooLarge(
        f"the weights and their optimizer take more than the {gib(most)} of memory: lower the size of flow and network"
    )
    here = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    return counting(most / (4 * (COPIES if here else 1)), error)


def check_fits(model: nn.Module, batch: int, accelerator: Accelerator) -> None:
    """:class:`TooLarge` where a step of ``batch`` examples does not fit into the memory of this machine."""
    weights, kept = memory_of_step(model, batch, accelerator)
    if weights + kept > most_memory():
        raise TooLarge(
            f"a step of training takes {gib(weights + kept)} ({gib(weights)} for the weights and their optimizer, "
            f"{gib(kept)} for a batch), and there are {gib(most_memory())} of memory: lower train.batch_size, the size "
            "of the data or that of flow and network, or raise train.accumulate"
        )


def memory_of_step(model: nn.Module, batch: int, accelerator: Accelerator) -> tuple[int, int]:
    """The least bytes of all copies of the weights, and of what a pass of ``batch`` examples keeps for the way back.

    That of one example counts ``batch`` times: what three keep more than two (a batch norm needs two) as they pass the
    dequantization, the flow (without its log-determinant) and the score network. Scratch memory comes on top.
    """
    weights = COPIES * sum(parameter.nbytes for parameter in model.parameters())
    with accelerator.autocast(), torch.random.fork_rng():
        two, three = (_kept(copy.deepcopy(model).train(), n) for n in (2, 3))
    return weights, two + (batch - 2) * (three - two)


def _kept(model: nn.Module, n: int) -> int:
    """The bytes of the tensors, weights apart, that ``n`` examples leave for the backward pass."""
    storages = {parameter.untyped_storage()._cdata: 0 for parameter in model.parameters()}
    held = []  # so that no other storage gets the address of one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storages.setdefault(storage._cdata, storage.nbytes()):
            held.append(storage)
        return tensor

    device = next(model.parameters()).device
    x, t = torch.zeros(n, *model.shape, device=device), torch.ones(n, device=device)
    with suppress(Exception), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # What fails here fails in the first step, with its own message.
        flow = given(model.flow, model.condition.absent(n).to(device))
        if model.dequantization is not None:
            model.dequantization(x)
        model.score.backbone(flow.latent(x), t)
    return sum(storages.values())
