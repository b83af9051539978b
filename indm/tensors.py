"""Shapes of batches, layers that start at zero, and evaluation mode."""

import math
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

Batch = Float[Tensor, "batch *event"]
PerSample = Float[Tensor, " batch"]


def expand_like(t: Tensor, z: Tensor) -> Tensor:
    """Append singleton axes to ``t`` (B,) so that it broadcasts against ``z`` (B, ...); (B, ...) stays as it is."""
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


def event_size(z: Tensor) -> int:
    """Number of dimensions of one sample of the batch ``z`` (B, ...)."""
    return math.prod(z.shape[1:])


def event_sum(coefficient: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
    """Sum over the entries of an event like ``z``'s of a coefficient that is (B,) or (B, *event)."""
    if coefficient.ndim == 1:
        return event_size(z) * coefficient
    return coefficient.flatten(1).sum(1)


def squared_norm(v: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """‖v‖² of each sample, summed over all event axes."""
    return v.flatten(1).square().sum(1)


def zeroed(layer: nn.Module) -> nn.Module:
    """``layer`` with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def full_precision(device: torch.device) -> AbstractContextManager:
    """Inside, autocast is off for ``device``. The meta device, which computes nothing, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def evaluation_mode(model, *, gradients: bool = False):
    """Evaluation mode, without gradients unless told; at the end every module gets back the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with nullcontext() if gradients else torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
