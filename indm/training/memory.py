"""Whether a step of training fits into memory: where it does not, a GPU raises an error, and a CPU's kernel kills."""

import copy
from contextlib import AbstractContextManager, suppress

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from indm.conditions import given
from indm.files.memory import counting, most_memory

COPIES = 5  # of the weights: themselves, their gradients, Adam's two averages, the moving average


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
    """See that a step of ``batch`` examples fits into the memory of this machine.

    Raises:
        TooLarge: it takes more than there is.
    """
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
    if not model.is_diffusion:
        return weights, 0
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
        # What fails here fails in the first step, with its own words.
        flow = model.flow if model.condition is None else given(model.flow, model.condition.absent(n).to(device))
        if model.dequantization is not None:
            model.dequantization(x)
        model.score.backbone(flow.latent(x), t)
    return sum(storages.values())


def gib(count: int) -> str:
    """So many bytes in GiB, or in MiB where that is less than one."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
