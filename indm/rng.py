"""Random numbers of a batch that is divided over processes: the same ones, however it is divided.

What training draws for the samples of a batch it draws through :func:`for_rows`. Within :func:`part_of` all processes
have one random state: each draws for the whole batch and takes its own rows. That costs as many times the numbers as
there are processes, and makes them a function of the seed, the step and the sample's place in the batch alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_part: ContextVar[tuple[int, int] | None] = ContextVar("part", default=None)  # first row, rows of the whole batch


@contextmanager
def part_of(first: int, total: int) -> Iterator[None]:
    """Within it, a batch is rows ``first``, … of one of ``total`` rows, and every process is within one."""
    token = _part.set((first, total))
    try:
        yield
    finally:
        _part.reset(token)


@contextmanager
def only(rows: slice) -> Iterator[None]:
    """Within it, of the batch in hand only the ``rows`` start, start + step, … are left."""
    if _part.get() is None:
        yield
        return
    first, total = _part.get()
    step = rows.step or 1
    offset = (first + rows.start) % step
    with part_of(len(range(offset, first, step)), len(range(offset, total, step))):
        yield


def whole(n: int) -> int:
    """The size of the batch of which ``n`` rows are in hand."""
    part = _part.get()
    return n if part is None else part[1]


def every(step: int, offset: int, n: int) -> slice:
    """The rows in hand, of ``n``, that are rows offset, offset + step, … of the whole batch."""
    part = _part.get()
    return slice((offset - (part[0] if part else 0)) % step, n, step)


def for_rows(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """``draw(n)``, one row for each of the ``n`` samples in hand: of ``draw`` of the whole batch, the rows of these."""
    part = _part.get()
    return draw(n) if part is None else draw(part[1])[part[0] : part[0] + n]


def strata(n: int, *, generator: torch.Generator | None = None, device=None) -> Tensor:
    """A number in [0, 1) for each sample, float64, one in each of as many equal parts as the whole batch has rows."""

    def draw(n: int) -> Tensor:
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        return (torch.randperm(n, generator=generator, device=device) + u) / n

    return for_rows(n, draw)


def randn_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of ``z``."""
    return for_rows(len(z), lambda n: torch.randn(n, *z.shape[1:], generator=generator, dtype=z.dtype, device=z.device))
