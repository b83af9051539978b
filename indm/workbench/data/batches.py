"""Batches of raw data: the order of an epoch, and random flips."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from indm.workbench.data.base import Examples


def flip_horizontally(raw: Num[Tensor, "batch c h w"], generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    device = raw.device if generator is None else generator.device
    u = torch.rand(len(raw), 1, 1, 1, generator=generator, device=device)
    flipped = u.to(raw.device) < 0.5
    return torch.where(flipped, raw.flip(-1), raw)


class Paired(Dataset):
    """Pairs (x, c) of the examples of a data set and the rows of a tensor."""

    def __init__(self, examples: Examples, c: Tensor):
        self.examples, self.c = examples, c

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.examples[index], self.c[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once; ``DataLoader`` calls it."""
        at_once = getattr(self.examples, "__getitems__", None)
        return collate(at_once(indices) if at_once else [self.examples[i] for i in indices]), self.c[indices]


def collate(items: Any) -> Any:
    """A batch from what a data set returned: already one (or a pair of them), or a list of items."""
    return torch.stack(items) if isinstance(items, list) else items


def loader(
    dataset: Examples | Paired,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    drop_last: bool = False,
) -> DataLoader:
    """One epoch of batches (B, *event), in an order that depends on ``seed`` and ``epoch`` alone.

    A run that stopped in the middle of an epoch resumes by asking for the same epoch and skipping the batches
    it has seen (``accelerate.skip_first_batches`` skips them unread).

    Example: an epoch has each example once, in an order that can be repeated.

        >>> from indm.workbench.data import InMemory
        >>> examples = InMemory(torch.arange(10)[:, None])
        >>> epoch = [torch.cat(list(loader(examples, 4, shuffle=True, epoch=3))).flatten().tolist() for _ in range(2)]
        >>> sorted(epoch[0]) == list(range(10)), epoch[0] == epoch[1]
        (True, True)
        >>> [len(batch) for batch in loader(examples, 4, shuffle=False)]
        [4, 4, 2]
    """
    order: Sequence[int] = range(len(dataset))
    if shuffle:
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(state)).tolist()
    return DataLoader(
        cast(Dataset, dataset),
        batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
