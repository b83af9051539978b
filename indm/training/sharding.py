"""A score network divided over the processes: each holds a share of its weights, gradients, moments and average.

This is PyTorch's ``fully_shard``: a parameter is cut along its first axis, and a block of the network is gathered when
it is computed and freed after that. The flow, the noise of grey levels and an SDE with parameters are small, and each
process has all of them. The functions here take sharded tensors and others alike. accelerate's own sharding is not used
as it needs GPUs, so that no test on a CPU could compare it with one process, and divides all of a module.

In a checkpoint each process writes safetensors of its own by torch.distributed.checkpoint, which also reads them in
another number of processes; its usual storage has a pickle that would run code. PyTorch's modules for this are imported
where they are needed: that takes two seconds.
"""

import copy
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from indm.messages import reason
from indm.model import count_parameters

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
ALONE = "torch.distributed is disabled, unavailable or uninitialized"  # a warning where one process writes or reads


def check(model: nn.Module) -> None:
    """ValueError where a diffusion ``model`` cannot be trained with ``train.shard``."""
    import torch.distributed.checkpoint as dcp

    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise ValueError(
            f"train.shard must be false with PyTorch {torch.__version__}, got true: it writes no sharded safetensors; "
            "2.13 does"
        )
    if not count_parameters(model.score.backbone):
        raise ValueError("train.shard must be false where the score network has no parameters, got true")


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process has a share of ``tensor``: whether it is a DTensor."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this process has of ``tensor``."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """All of ``tensor``, in each process. Collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────


def shard(model: nn.Module, accelerator: Accelerator, *, half: bool = False) -> None:
    """Divide the score network of ``model`` over all processes, and move the rest to the device. In place, collective.

    Args:
        model: an INDM, the same in all processes and best on the CPU: a device never holds more than a block of its
            network at a time.
        accelerator: devices and processes.
        half: a network in single precision is gathered in bfloat16, in which autocast computes. Else autograd would
            keep the copies that autocast makes of all blocks. Gradients are added up in single precision.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    network = model.score.backbone
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    precision = MixedPrecisionPolicy(cast_forward_inputs=False)  # noise levels must not be rounded to bfloat16
    if half and all(parameter.dtype == torch.float32 for parameter in network.parameters()):
        precision = replace(precision, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in dict.fromkeys((*blocks(network), network)):
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    # A view matters where it is changed in place, which no score does with the output of its network.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(network).__name__}\) returned a view")
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_sharded(tensor):
            tensor.data = tensor.data.to(accelerator.device)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at a time: the modules with parameters in the lists of ``network``, however deep they lie.

    What is in no list is gathered with the network itself, once for its forward and once for its backward pass.

    >>> [type(block).__name__ for block in blocks(nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 2)))]
    ['Linear', 'Linear']
    """
    for child in network.children():
        if isinstance(network, LISTS) and not isinstance(child, LISTS):
            yield from [child] if count_parameters(child) else []
        else:
            yield from blocks(child)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters have shapes and no numbers, for :func:`gathered`."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def gathered(model: nn.Module, empty: nn.Module) -> nn.Module:
    """A copy of ``empty`` with all weights of ``model``, on the CPU of the main process alone. Collective.

    They are gathered one by one: a device holds no more than one of them.
    """
    is_main, state = torch.distributed.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():
        one = full(tensor)
        if is_main:
            state[name] = one.cpu()
    filled = copy.deepcopy(empty)
    if is_main:
        filled.load_state_dict(state, assign=True)
    return filled


# ── the step ────────────────────────────────────────────────────────────────────────────────────────────────────────


def apart(groups: Iterable[dict], network: nn.Module) -> list[dict]:
    """An optimizer's parameter groups, cut where one has parameters of the ``network`` that is sharded and others.

    No kernel takes both. The cut is the same in one process, so that a checkpoint fits any number of them.
    """
    own = set(map(id, network.parameters()))
    cut = []
    for group in groups:
        for kind in (True, False):
            parameters = [p for p in group["params"] if (id(p) in own) is kind]
            cut += [group | {"params": parameters}] if parameters else []
    return cut


def together(groups: Iterable[dict]) -> dict[str, list[nn.Parameter]]:
    """The parameters of the groups of each name."""
    parameters: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        parameters.setdefault(group["name"], []).extend(group["params"])
    return parameters


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Average the gradients of what is not sharded over all processes, as the backward pass does with what is.

    Where only some processes have a gradient of a parameter, it is 0 in the others. Collective.
    """
    replicated = [parameter for parameter in parameters if not is_sharded(parameter)]
    having = torch.tensor([float(p.grad is not None) for p in replicated], device=accelerator.device)
    used = [p for p, processes in zip(replicated, accelerator.reduce(having).tolist(), strict=True) if processes]
    if not used:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
    mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in own]), "mean")
    for parameter, part in zip(used, mean.split([p.numel() for p in used]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of ``parameters`` to a norm of at most ``max_norm``, as PyTorch does; the norm before.

    Collective where one of them is sharded.
    """
    having = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in having if is_sharded(p) is kind] for kind in (True, False)]
    norms = [full(get_total_norm([p.grad for p in kind])) for kind in kinds if kind]  # type: ignore[misc]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        clip_grads_with_norm_(kind, max_norm, norm)
    return norm


# ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path, state: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """Write the weights, averages and moments of ``state`` into a new ``folder``; what is left of it. Collective.

    ``state`` has the state dicts "model", "ema" and "optimizer"; ``parameters`` are the optimizer's, in its order.

    Raises:
        OSError: a process cannot write; nothing is left of ``folder``.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ALONE)
            dcp.save(tensors_of(state, parameters), storage_writer=writer)
    except dcp.api.CheckpointException as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(f"{folder} cannot be written, and what was there before is unchanged: {_cause(error)}") from error
    moments = {
        index: {key: None if is_like(value, parameters[index]) else value for key, value in entry.items()}
        for index, entry in state["optimizer"]["state"].items()
    }
    rest = {key: value for key, value in state.items() if key not in ("model", "ema")}
    return rest | {"optimizer": state["optimizer"] | {"state": moments}}


def read(folder: Path, state: dict[str, Any], parameters: list[nn.Parameter]) -> None:
    """Read what :func:`write` wrote, perhaps in another number of processes. Collective.

    ``state`` is what was left then, with state dicts "model" and "ema", whose tensors are filled in place; moments that
    are None are made.

    Raises:
        ValueError, KeyError: the files do not fit the tensors, or hold fewer numbers than the moments have.
        OSError, MemoryError: they cannot be read.
    """
    import torch.distributed.checkpoint as dcp

    by_index = dict(enumerate(parameters))
    claims = [(entry, key, by_index[i]) for i, entry in state["optimizer"]["state"].items() for key in entry]
    made = [(entry, key, parameter) for entry, key, parameter in claims if entry[key] is None]
    claimed, held = sum(p.nbytes for _, _, p in made), sum(file.stat().st_size for file in folder.iterdir())
    if claimed > held:
        raise ValueError(f"its moments claim {claimed:,} bytes, and its files hold {held:,}")
    for entry, key, parameter in made:
        entry[key] = torch.zeros_like(parameter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ALONE)
            dcp.load(tensors_of(state, parameters), storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    except dcp.api.CheckpointException as error:
        cause = _cause(error)
        raise cause if isinstance(cause, OSError | MemoryError) else ValueError(reason(cause)) from cause


def tensors_of(state: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """Weights, averages and moments in ``state`` by name: what grows with the model."""
    named = {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in state[part].items()}
    for index, entry in state["optimizer"]["state"].items():
        moments = {key: value for key, value in entry.items() if is_like(value, parameters[index])}
        named |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    return named


def is_like(value: Any, parameter: nn.Parameter) -> bool:
    """Whether ``value``, of an optimizer's state, has a number for each of the ``parameter``'s."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _cause(error: Any) -> Exception:
    """The error of the first process that failed."""
    return next(iter(error.failures.values()))[0]
