"""Random numbers for a batch that may be divided over processes: they do not depend on how it is divided.

Training draws everything that belongs to a sample through :func:`for_rows`. Inside :func:`part_of` all processes have
the same random state: each draws for the whole batch and keeps its own rows. So n processes draw n times as many
numbers, which depend only on the seed, the step and the sample's place in the batch. :class:`Dropout` and
:class:`BatchNorm2d` do not depend on the division either.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from indm.tensors import double, widest

_part: ContextVar[tuple[int, int] | None] = ContextVar("part", default=None)  # first row, rows of the whole batch


@contextmanager
def part_of(first: int, total: int) -> Iterator[None]:
    """Inside, the local batch is rows ``first``, ``first`` + 1, … of a whole batch of ``total`` rows.

    All processes must be inside at the same time.
    """
    token = _part.set((first, total))
    try:
        yield
    finally:
        _part.reset(token)


@contextmanager
def only(rows: slice) -> Iterator[None]:
    """Inside, the batch has only every ``step``-th row: locally, those that the slice ``rows`` takes."""
    part = _part.get()
    if part is None:
        yield
        return
    first, total = part
    step = rows.step or 1
    offset = (first + rows.start) % step
    with part_of(len(range(offset, first, step)), len(range(offset, total, step))):
        yield


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's own generators for the CPU and for ``device``, by the kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on with what :func:`random_states` gave, where that was on a device of the same kind."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def whole(n: int) -> int:
    """The size of the whole batch, of which ``n`` rows are local."""
    part = _part.get()
    return n if part is None else part[1]


def every(step: int, offset: int, n: int) -> slice:
    """Those of ``n`` local rows that are rows offset, offset + step, … of the whole batch."""
    part = _part.get()
    return slice((offset - (part[0] if part else 0)) % step, n, step)


def for_rows(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """The local rows, ``n`` of them, of what ``draw`` gives for the size of the whole batch."""
    part = _part.get()
    return draw(n) if part is None else draw(part[1])[part[0] : part[0] + n]


def strata(n: int, *, generator: torch.Generator | None = None, device=None) -> Tensor:
    """One number in each of N equal parts of [0, 1), in random order, for a whole batch of N: the ``n`` local ones.

    In float64, on the CPU where the device has none.
    """

    def draw(n: int) -> Tensor:
        u = torch.rand(n, generator=generator, device=device, dtype=widest(device))
        order = torch.randperm(n, generator=generator, device=device)
        return (double(order) + double(u)) / n

    return for_rows(n, draw)


def rand_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [0, 1) in the shape, dtype and device of ``z``.

    Example: two processes with the rows of one batch draw what one process draws for the whole.

        >>> seed, z = torch.Generator().manual_seed, torch.zeros(4, 3)
        >>> whole, parts = rand_like(z, seed(0)), []
        >>> for first in (0, 2):
        ...     with part_of(first, total=4):
        ...         parts.append(rand_like(z[first : first + 2], seed(0)))
        >>> torch.equal(torch.cat(parts), whole), 0 <= whole.min().item() <= whole.max().item() < 1
        (True, True)
    """
    return for_rows(len(z), lambda n: torch.rand(n, *z.shape[1:], generator=generator, dtype=z.dtype, device=z.device))


def randn_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of ``z``.

    Example: the second of two processes draws the second half of what one process draws for the whole batch.

        >>> z = torch.zeros(4, 3)
        >>> whole = randn_like(z, torch.Generator().manual_seed(0))
        >>> with part_of(first=2, total=4):
        ...     part = randn_like(z[2:], torch.Generator().manual_seed(0))
        >>> torch.equal(part, whole[2:])
        True
    """
    return for_rows(len(z), lambda n: torch.randn(n, *z.shape[1:], generator=generator, dtype=z.dtype, device=z.device))


def noisy(x: Tensor, deviation: float, generator: torch.Generator | None = None) -> Tensor:
    """x + deviation · n, n ~ N(0, I); where the deviation is 0 it is ``x``, and nothing is drawn."""
    return x + deviation * randn_like(x, generator) if deviation else x


# ── Layers of a divided batch ─────────────────────────────────────────────────────────────────────────────────────────


class Dropout(nn.Dropout):
    """Dropout whose mask for a sample does not depend on the process that holds the sample."""

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return h
        mask = for_rows(len(h), lambda n: torch.rand(n, *h.shape[1:], device=h.device)) >= self.p
        return h * mask / (1 - self.p)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm by mean and variance over the samples of all processes; each process needs at least one sample.

    PyTorch's SyncBatchNorm works on GPUs only.
    """

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or whole(len(h)) == len(h):
            return super().forward(h)
        from torch.distributed.nn.functional import all_reduce

        x, count = h.to(self.weight.dtype), whole(len(h)) * h[0, 0].numel()
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
