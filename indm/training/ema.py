"""The moving average of a model's weights."""

import copy

import torch
from torch import nn

from indm.training.sharding import local


class EMA:
    """``model``, a deep copy whose parameters follow θ̄ ← d_n θ̄ + (1 − d_n) θ with d_n = min(decay, (1+n)/(10+n))."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        """Take in the weights after optimizer step ``n`` (from 1).

        Real buffers are averaged like weights, so that the statistics of a batch norm are those of the weights before
        it; others are copied.
        """
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        averages, weights = (list(map(local, each.parameters())) for each in (self.model, model))
        torch._foreach_lerp_(averages, weights, weight)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, weight)
            else:
                averaged.copy_(current)
