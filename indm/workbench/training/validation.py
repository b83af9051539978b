"""Validation of a run: the bound on held-out examples, and the revival of a dead network."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from indm.conditions import sees_condition
from indm.dequantization import from_data
from indm.likelihood import latent_reference
from indm.objective import flow_nll, nelbo
from indm.tensors import (
    SEED_STRIDE,
    evaluation_mode,
    noisy,
    random_states,
    restore_random_states,
)
from indm.training import Descent, NetworkHealth, size_and_spread
from indm.workbench.data.base import Data, stack
from indm.workbench.training.batches import conditions_of, example

# (x, generator) or, of a model with a condition, (x, generator, c) ↦ nats, (B,)
Draw = Callable[..., Tensor]
LARGEST_CONTROLLED = 1024  # dimensions up to which validation has a control variate
LOOKED_AT = 256  # training examples that show whether a network is dead


def unit_of(model: Any) -> str:
    """The unit of likelihoods: bits/dim if the data have grey levels, else total nats."""
    return "bits/dim" if model.scaling.levels else "nats"


def in_units(nats: float, model: Any) -> float:
    """Nats of the raw data in the model's :func:`unit_of`."""
    return nats / (math.prod(model.shape) * math.log(2) if model.scaling.levels else 1.0)


@dataclass(frozen=True, eq=False)
class Validation:
    """The bound (:func:`bound_of`) of a model on validation examples, with the same noise each time.

    With a second data set, ``valid_terminal`` is −log p(x_T) of its validation examples.

    Args:
        data, second: the data sets.
        examples: most examples of each.
        noise, second_noise: deviations of the noise that training adds to each.
        batch_size, seed: of the estimates.
    """

    data: Data
    second: Data | None
    accelerator: Accelerator
    examples: int
    noise: float = 0.0
    second_noise: float = 0.0
    batch_size: int = 256
    seed: int = 0

    @torch.no_grad()
    def of(self, model: Any) -> dict[str, Any]:
        """``valid_nelbo``, its ``unit`` and perhaps ``valid_terminal``. Collective."""
        raw = stack(self.data.valid, self.examples)
        c = conditions_of(self.data, model.condition, "valid", len(raw))
        bound = self._mean(raw, bound_of(model, raw, self.seed), model, self.noise, c)
        found: dict[str, Any] = {"valid_nelbo": bound, "unit": unit_of(model)}
        if self.second is not None:
            raw = stack(self.second.valid, self.examples)

            def terminal(x: Tensor, generator: torch.Generator) -> Tensor:
                return flow_nll(model, x, generator=generator)

            found["valid_terminal"] = self._mean(raw, terminal, model, self.second_noise)
        return found

    def _mean(
        self, raw: Tensor, draw: Draw, model: Any, noise: float, c: Tensor | None = None
    ) -> float:
        nats = drawn(
            raw, draw, model, self.accelerator, self.batch_size, self.seed, noise=noise, c=c
        )
        return in_units(nats.mean().item(), model)


def bound_of(model: nn.Module, raw: Tensor, seed: int) -> Draw:
    """A function that draws the NELBO of a batch x of ``raw``, nats in model units, (B,).

    A Gaussian law of the latents removes most of its noise, if it can be fitted quickly.
    """
    model.flow.check()
    reference = None
    if math.prod(model.shape) <= LARGEST_CONTROLLED and not sees_condition(model.flow):
        reference = latent_reference(model, raw, seed=seed)

    def draw(x: Tensor, generator: torch.Generator, c: Tensor | None = None) -> Tensor:
        log_q = x.new_zeros(len(x))  # model units
        return nelbo(
            model, x, c=c, times=2, reference=reference, log_q=log_q, generator=generator
        ).total

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
    """``draw`` of all of ``raw`` with normal ``noise`` and conditions ``c``, nats of raw data, (N,).

    Each process computes its share, and all get the whole. The random numbers of a batch depend
    only on its index, so the result does not depend on the number of processes.
    """
    a = accelerator
    batches = raw.split(batch_size)
    nats = [torch.zeros(len(batch), device=a.device) for batch in batches]
    generator = torch.Generator(a.device)
    for index in range(a.process_index, len(batches), a.num_processes):
        generator.manual_seed(seed + SEED_STRIDE * index)
        x, log_q = from_data(model, batches[index].to(a.device), generator=generator)
        x = noisy(x, noise, generator)
        at = () if c is None else (c[index * batch_size :][: len(x)],)
        nats[index] = (draw(x, generator, *at) + log_q).float()
    return a.reduce(torch.cat(nats), "sum")


class Revival:
    """Resets a dead score network to its start, see :class:`indm.training.NetworkHealth`.

    Args:
        score: the network at its start.
        data: training examples to try it on.
        seed: of the noise.
    """

    def __init__(self, score: nn.Module, data: Data, seed: int):
        self.first = copy.deepcopy(score.state_dict())
        self.data = data
        self.seed = seed

    def look(self, descent: Descent, health: NetworkHealth) -> None:
        """Reset the score of ``descent`` if the ``health`` of its network says so. It draws no random numbers."""
        model: Any = descent.model
        device = next(model.parameters()).device
        states = random_states(device)
        at_c, x = example(model, self.data, LOOKED_AT)
        with evaluation_mode(at_c):
            z, _ = at_c.encode(x)
            generator = torch.Generator(z.device).manual_seed(self.seed)
            size, spread = size_and_spread(at_c.score, z, generator)
        restore_random_states(states, device)
        health.record(size, spread)
        if not health.use_revival():
            return
        for score in (model.score, descent.ema.model.score):
            score.load_state_dict(self.first)
        for parameter in model.score.parameters():
            descent.optimizer.state.pop(parameter, None)
