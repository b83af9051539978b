"""The bound that validation draws, and drawing over all processes."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from indm.conditions import sees_condition
from indm.dequantization import from_data
from indm.likelihood import latent_reference
from indm.objective import nelbo
from indm.rng import noisy

Draw = Callable[..., Tensor]  # (x, generator) or, of a model with a condition, (x, generator, c) ↦ nats, (B,)
LARGEST_CONTROLLED = 1024  # dimensions up to which validation has a control variate


def bound_of(model: nn.Module, raw: Tensor, seed: int) -> Draw:
    """What draws an upper bound of −log p of a batch x of ``raw`` under ``model``, nats in model units, (B,).

    For a diffusion that is the NELBO; a Gaussian law of the latents removes most of its noise, where fitting one costs
    next to nothing. Any other model has a method ``bound(x, generator=…)``, whose result has a ``total``.
    """
    if not model.is_diffusion:
        return lambda x, generator: model.bound(x, generator=generator).total
    model.flow.check()
    small = math.prod(model.shape) <= LARGEST_CONTROLLED
    one_latent = not sees_condition(model.flow)
    reference = latent_reference(model, raw, seed=seed) if small and one_latent else None

    def draw(x: Tensor, generator: torch.Generator, c: Tensor | None = None) -> Tensor:
        return nelbo(model, x, c=c, times=2, reference=reference, generator=generator).total

    return draw


def drawn(
    raw: Tensor,
    draw: Draw,
    model: nn.Module,
    accelerator: Accelerator,
    batch_size: int,
    seed: int,
    *,
    noise: float = 0.0,
    c: Tensor | None = None,
) -> Tensor:
    """``draw`` of all of ``raw`` with normal noise of that deviation, at conditions ``c`` where there are any, nats of
    the raw data (N,).

    Each process does its share, and all get all of them. The noise of a batch depends on its place alone, so that the
    result does not depend on the processes. One that has nothing left to do draws the last batch again: a sharded
    network is computed by all processes or by none.
    """
    a, batches = accelerator, raw.split(batch_size)
    nats = [torch.zeros(len(batch), device=a.device) for batch in batches]
    generator = torch.Generator(a.device)
    for turn in range(a.process_index, len(batches) + -len(batches) % a.num_processes, a.num_processes):
        index = min(turn, len(batches) - 1)
        generator.manual_seed(seed + 1_000_003 * index)
        x, log_q = from_data(model, batches[index].to(a.device), generator=generator)
        x = noisy(x, noise, generator)
        given = () if c is None else (c[index * batch_size :][: len(x)],)
        own = (draw(x, generator, *given) + log_q).float()
        if index == turn:
            nats[index] = own
    return a.reduce(torch.cat(nats), "sum")
