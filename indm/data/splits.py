"""Which example is in which split: index tensors made from a seed."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Items = TypeVar("Items", Tensor, list)


def split(n: int, *, valid: int, test: int = 0, seed: int = 0, limit: int | None = None) -> dict[str, Tensor]:
    """Shuffle 0 … n−1 by ``seed`` into disjoint index tensors: ``test``, ``valid``, and the rest as ``train``.

    ``limit`` keeps the first ``limit`` of the shuffled training indices. Without ``test`` there is no such key.
    """
    if valid < 1 or test < 0 or valid + test >= n:
        raise ValueError(f"{n} items cannot be split into {valid} for validation, {test} for testing and some to train")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = {"train": limited(order[valid + test :], limit), "valid": order[test : test + valid]}
    return parts | ({"test": order[:test]} if test else {})


def limited(items: Items, limit: int | None) -> Items:
    """The first ``limit`` of the training items; all where it is None."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 training item, or None for all, got {limit}")
    return items[:limit]


def selected(
    parts: Mapping[str, Tensor], labels: Tensor, label: int | Sequence[int] | None, limit: int | None
) -> dict[str, Tensor]:
    """The indices of ``parts`` whose label is (in) ``label`` (None: all), of the training ones the first ``limit``."""
    if label is not None:
        wanted = torch.as_tensor(label)
        if not bool(torch.isin(wanted, labels).all()) or not wanted.numel():
            known = labels.unique().tolist()
            raise ValueError(f"label must be of {known}, one or a list, or None for all classes, got {label}")
        parts = {part: index[torch.isin(labels[index], wanted)] for part, index in parts.items()}
    return dict(parts) | {"train": limited(parts["train"], limit)}


def renumbered(
    labels: Tensor, classes: tuple[str, ...], label: int | Sequence[int] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and their names where a list ``label`` keeps some classes: they are counted in its order."""
    if not isinstance(label, Sequence):
        return labels, classes
    number = torch.full((len(classes),), -1)
    number[list(label)] = torch.arange(len(label))
    return number[labels], tuple(classes[i] for i in label)


def counts(n: int, valid: float, test: float) -> dict[str, int]:
    """Fractions of ``n`` as counts of at least one."""
    for name, fraction in (("valid", valid), ("test", test)):
        if not 0 < fraction < 1:
            raise ValueError(f"{name} must be a fraction between 0 and 1 of the data, got {fraction}; 0.1 is usual")
    return {"valid": max(1, round(valid * n)), "test": max(1, round(test * n))}


def describe_split(parts: Mapping[str, Tensor], seed: int, how: str = "") -> str:
    """One sentence for the notes of a data set."""
    counts = ", ".join(f"{part} {len(index)}" for part, index in parts.items())
    return f"split {how}by seed {seed}: {counts}"
