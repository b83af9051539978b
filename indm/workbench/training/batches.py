"""The training examples of a run in batches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch import Tensor, nn

from indm.checks import require
from indm.conditions import Condition
from indm.dequantization import from_data
from indm.workbench.data.base import Data, stack
from indm.workbench.data.examples import Paired, flip_horizontally, loader


def conditions_of(data: Data, condition: Condition, split: str, n: int | None = None) -> Any:
    """c of the first ``n`` examples of a split (all by default); None without a condition."""
    return None if condition.is_none else data.rows(condition, split)[:n]


def example(model: Any, data: Data, n: int = 2) -> tuple[nn.Module, Tensor]:
    """The first ``n`` training examples in model units, and the model given their conditions."""
    raw = stack(data.train, n)
    c = conditions_of(data, model.condition, "train", len(raw))
    at_c = model if c is None else model.given(c)
    return at_c, from_data(at_c, raw.to(next(model.parameters()).device))[0]


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of one process, in an order by seed and epoch.

    Args:
        data: the examples.
        condition: of the model.
        size: examples of one optimizer step, over all processes and accumulated batches.
        accumulate: batches of an optimizer step.
        workers: processes that load examples.
        seed: of the order.
    """

    data: Data
    condition: Condition
    accelerator: Accelerator
    size: int
    accumulate: int = 1
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        parts = self.accumulate * self.accelerator.num_processes
        examples = len(self.data.train)
        wanted = f"at most the {examples} training examples"
        if parts > 1:
            wanted = f"a multiple of {parts} (accumulated batches × processes) and {wanted}"
        fits = self.size % parts == 0 and self.size <= examples
        require(fits, "train.batch_size", self.size, wanted)

    @property
    def size_of_a_pass(self) -> int:
        """The examples of one forward pass of one process."""
        return self.size // (self.accumulate * self.accelerator.num_processes)

    def after(self, step: int) -> Iterator[Any]:
        """Endless raw batches after that ``step``; with a condition, pairs of raw data and c."""
        steps_per_epoch = len(self.data.train) // self.size
        first_epoch, skipped = divmod(step, steps_per_epoch)
        batches_per_epoch = steps_per_epoch * self.accumulate
        skipped *= self.accumulate
        c = conditions_of(self.data, self.condition, "train")
        dataset = self.data.train if c is None else Paired(self.data.train, c)
        for epoch in itertools.count(first_epoch):
            own = skip_first_batches(self._of_epoch(dataset, epoch), skipped)
            yield from itertools.islice(own, batches_per_epoch - skipped)
            skipped = 0

    def _of_epoch(self, dataset: Any, epoch: int) -> Any:
        """The batches of this process in an epoch."""
        batches = loader(
            dataset,
            self.size_of_a_pass,
            shuffle=True,
            seed=self.seed,
            epoch=epoch,
            workers=self.workers,
            drop_last=True,
        )
        # so that a new iterator draws none of the random numbers of the steps
        batches.generator = torch.Generator()
        a = self.accelerator
        return prepare_data_loader(
            batches, a.device, a.num_processes, a.process_index, put_on_device=True
        )

    def prepared(self, raw: Tensor) -> Tensor:
        """The batch, flipped at random if the data allow it."""
        return flip_horizontally(raw) if self.data.flip else raw
