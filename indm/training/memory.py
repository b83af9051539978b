"""The memory that one step of a training takes, before anything large is made.

Weights and activations are made on PyTorch's meta device, where a tensor has a shape and no numbers.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from indm.conditions import given
from indm.config import parts, recipes
from indm.config.recipes import Recipe
from indm.files.memory import counting, most_memory
from indm.objective import Objective, objective_of
from indm.scaling import Scaling
from indm.training.sharding import blocks

COPIES = 5  # of the weights: themselves, their gradients, Adam's two averages, the moving average
OWN = {"indm", "torch"}  # packages whose modules end on the meta device
# What networks consist of, by what autocast does: bfloat16 on every device, float32 on GPUs.
# Source: PyTorch's "Autocast Op Reference", https://docs.pytorch.org/docs/stable/amp.html.
LOWER = [
    "conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "__matmul__", "bmm", "einsum",
    "scaled_dot_product_attention",
]  # fmt: skip
FULL_ON_GPUS = ["group_norm", "layer_norm", "softmax", "softplus", "exp", "log", "pow", "sum", "cumsum"]
OFTEN = 1000  # tensors of a network's width that a pass keeps, at most: the largest recipes keep some 500


class TooLarge(ValueError):
    """A step of training takes more memory than there is."""


class NoNumbers(TorchDispatchMode):
    """On the meta device a number that is asked for, such as a random offset, is 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        return func(*args, **(kwargs or {}))


class Autocast(TorchFunctionMode):
    """On the meta device, the casts of autocast to bfloat16 on a "cpu" or "cuda", while that of the CPU is enabled."""

    def __init__(self, device: str):
        super().__init__()
        full = FULL_ON_GPUS if device == "cuda" else []
        self.dtypes = dict.fromkeys(LOWER, torch.bfloat16) | dict.fromkeys(full, torch.float32)
        self.weights: dict[int, Tensor] = {}  # which are cast once

    def __torch_function__(self, func, types, args=(), kwargs=None):
        dtype = self.dtypes.get(getattr(func, "__name__", "")) if torch.is_autocast_enabled("cpu") else None

        def cast(value):
            if dtype is None or not isinstance(value, Tensor) or value.dtype not in (torch.bfloat16, torch.float32):
                return value
            is_weight = isinstance(value, nn.Parameter)
            return self.weights.setdefault(id(value), value.to(dtype)) if is_weight else value.to(dtype)

        return func(*map(cast, args), **{name: cast(value) for name, value in (kwargs or {}).items()})


def estimate(recipe: Recipe, shape: tuple[int, ...], batch: int, *, bf16_on: str | None = None) -> int:
    """The bytes that a training step takes: weights, gradients, optimizer, average, and what the backward pass needs.

    It is what must be there at the same time; PyTorch itself (some 300 MB) and the scratch memory of single operations
    come on top. What code from outside keeps is not counted where it cannot do without numbers.

    Args:
        recipe: resolved.
        shape: of one event.
        batch: examples of one pass of one process: ``train.batch_size`` over accumulated batches and processes.
        bf16_on: "cpu" or "cuda", where ``train.mixed_precision`` is "bf16"; None where it is "no".
    """
    return sum(weights_and_kept(recipe, shape, batch, bf16_on))


def weights_and_kept(
    recipe: Recipe,
    shape: tuple[int, ...],
    batch: int,
    bf16_on: str | None = None,
    shares: int = 1,
    objective: Objective | None = None,
) -> tuple[int, int]:
    """The bytes of all copies of the weights, and of the tensors that a forward pass keeps for the backward pass.

    Of a score network in several ``shares`` one counts, and two blocks that are gathered, one with its gradient. The
    ``objective`` is the recipe's where none is given.
    """
    objective = objective or objective_of(parts.find("objective", recipe["train"]["objective"]))
    scaling = Scaling.images(256)
    with torch.device("meta"):
        try:
            model = objective.build(recipe, shape, scaling).train()
        except Exception:  # a part that needs numbers, or a mistake in the recipe, which the training will name
            return 0, 0
        weights = COPIES * _bytes_of(model)
        if not model.is_diffusion:
            return weights, 0
        if shares > 1:
            network = model.score.backbone
            largest = max(map(_bytes_of, blocks(network)), default=_bytes_of(network))
            weights += 3 * largest - COPIES * (_bytes_of(network) * (shares - 1) // shares)
        x, t = torch.zeros(batch, *shape), torch.ones(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_on is not None), Autocast(bf16_on or "cpu"):
            flow = model.flow if model.condition is None else given(model.flow, model.condition.absent(batch))
            kept = sum(_kept_by(part, x) for part in (model.dequantization, flow))
            return weights, kept + _kept_by(model.score.backbone, x, t)


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _kept_by(module: nn.Module, *inputs: Tensor) -> int:
    """The bytes of the tensors, weights apart, that ``module`` keeps for the backward pass."""
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # which holds them, so that no other gets the address of one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    is_own = {type(part).__module__.split(".")[0] for part in module.modules()} <= OWN
    with (
        suppress(Exception),  # an operation that needs numbers: what was kept until then counts
        NoNumbers() if is_own else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        module(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


def check_fits(
    recipe: Recipe, shape: tuple[int, ...], accelerator: Accelerator, objective: Objective | None = None
) -> None:
    """See that a step of training fits into the memory of the device, before anything of that size is made.

    Raises:
        TooLarge: it takes more than there is.
    """
    options = recipes.options_of(recipe, "train")
    batch = max(1, options.batch_size // (options.accumulate * accelerator.num_processes))
    on_gpu = accelerator.device.type == "cuda"
    most = torch.cuda.get_device_properties(accelerator.device).total_memory if on_gpu else most_memory()
    if _is_small(recipe, shape, batch, most):
        return
    shares = accelerator.num_processes if options.shard else 1
    weights, kept = weights_and_kept(recipe, shape, batch, bf16_on(accelerator), shares, objective)
    if weights + kept > most:
        divide = "" if options.shard or accelerator.num_processes == 1 else ", or set train.shard"
        raise TooLarge(
            f"a step of training takes {gib(weights + kept)} ({gib(weights)} for the weights and their optimizer, "
            f"{gib(kept)} for a batch), and there are {gib(most)} of {'GPU memory' if on_gpu else 'memory'}: lower "
            f"{', '.join(_sizes(recipe))}, or raise train.accumulate{divide}"
        )


def within_memory(recipe: Recipe, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Inside, building a model ends in :class:`TooLarge` as soon as its weights and their copies cannot fit.

    This is for models that :func:`check_fits` cannot look at, as a part of them cannot be built without numbers.
    """
    most, is_elsewhere = most_memory(), accelerator.device.type == "cuda" or recipe["train"]["shard"]
    sizes = ", ".join(size for size in _sizes(recipe) if not size.startswith("train."))
    error = TooLarge(f"the weights and their optimizer take more than the {gib(most)} of memory: lower {sizes}")
    return counting(most / (4 * (1 if is_elsewhere else COPIES)), error)


def bf16_on(accelerator: Accelerator) -> str | None:
    """The kind of device where it trains in bfloat16, None where it trains in float32, see :func:`estimate`."""
    return accelerator.device.type if accelerator.mixed_precision == "bf16" else None


def _is_small(recipe: Recipe, shape: tuple[int, ...], batch: int, most: int) -> bool:
    """Whether a step fits whatever its parts are, so that they need not be looked at, which takes a second at first."""
    width = max([1, *(value for _, value in _whole_numbers(recipe))])
    return 4 * OFTEN * width * (batch * math.prod(shape) + COPIES * width) < most


def _sizes(recipe: Recipe) -> Iterator[str]:
    """The options that decide the memory, with their values: batch, image, the largest number of flow and network."""
    yield f"train.batch_size ({recipe['train']['batch_size']})"
    if "size" in recipe["data"]:
        yield f"data.size ({recipe['data']['size']})"
    for kind in ("flow", "net"):
        largest = max(((value, key) for key, value in _whole_numbers(recipe) if key.startswith(kind)), default=None)
        if largest is not None:
            yield f"{largest[1]} ({largest[0]})"


def _whole_numbers(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """The whole numbers in the tables of flow and network, with their dotted keys."""
    for kind in ("flow", "net"):
        for key, value in recipe[kind].items():
            entries = value if isinstance(value, list | tuple) else [value]
            yield from ((f"{kind}.{key}", entry) for entry in entries if type(entry) is int)


def gib(count: int) -> str:
    """So many bytes in GiB, or in MiB where that is less than one."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
