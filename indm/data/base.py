"""Three splits of a data set as raw tensors in data units, and batches of them."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Num, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from indm.rng import for_rows
from indm.scaling import Scaling


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint data sets and what is known about them.

    Attributes:
        train, valid, test: items in data units, each ``shape``, with ``len``.
        scaling: data units to model units; ``scaling.levels`` are the grey levels, None for continuous data.
        shape: of one item, (C, H, W) or (D,).
        entropy: of the data in total nats (data units), where it is known.
        flip: whether training should flip images horizontally at random.
        labels: class labels (n,) int64 of each split, in its order, where the data have them.
        notes: where the data came from and what was done to them, one sentence each.
        fingerprint: SHA-256 of what decides, beside the options, which example is in which split; "" where that never
            changes.
    """

    name: str
    train: Dataset
    valid: Dataset
    test: Dataset
    scaling: Scaling
    shape: tuple[int, ...]
    entropy: float | None = None
    flip: bool = False
    labels: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""


class InMemory(Dataset):
    """The rows of ``tensor`` (N, *event). A training loop may index ``.tensor`` directly."""

    def __init__(self, tensor: Shaped[Tensor, "n *event"]):
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch at once; ``DataLoader`` calls it."""
        return self.tensor[indices]


def stack(dataset: Dataset, n: int | None = None) -> Tensor:
    """The first ``n`` items (all by default) as one tensor (n, *event)."""
    if isinstance(dataset, InMemory):
        return dataset.tensor[:n]
    return torch.stack([dataset[i] for i in range(len(dataset))[:n]])


def flip_horizontally(raw: Num[Tensor, "batch c h w"], generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    device = raw.device if generator is None else generator.device
    u = for_rows(len(raw), lambda n: torch.rand(n, 1, 1, 1, generator=generator, device=device))
    flipped = u.to(raw.device) < 0.5
    return torch.where(flipped, raw.flip(-1), raw)


def collate(items: Tensor | list[Tensor]) -> Tensor:
    """A batch from what a data set returned: already one, or a list of items."""
    return items if isinstance(items, Tensor) else torch.stack(items)


def loader(
    dataset: Dataset,
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
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = range(len(dataset))
    if shuffle:
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(state)).tolist()
    return DataLoader(
        dataset,
        batch_size,
        sampler=order,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
