"""Dropout and batch norm that do not depend on how a batch is divided over processes, see :mod:`indm.rng`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from indm import rng


class Dropout(nn.Dropout):
    """Dropout whose mask for a sample does not depend on the process that holds the sample."""

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return h
        mask = rng.for_rows(len(h), lambda n: torch.rand(n, *h.shape[1:], device=h.device)) >= self.p
        return h * mask / (1 - self.p)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm by mean and variance over the samples of all processes; each process needs at least one sample.

    PyTorch's SyncBatchNorm works on GPUs only.
    """

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or rng.whole(len(h)) == len(h):
            return super().forward(h)
        x, count = h.to(self.weight.dtype), rng.whole(len(h)) * h[0, 0].numel()
        mean = all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        running: Any = self  # its statistics are there, and so is its momentum
        with torch.no_grad():
            running.num_batches_tracked += 1
            running.running_mean.lerp_(mean, self.momentum)
            running.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(h.dtype)
