"""Splits by a seed."""

from pathlib import Path

import torch
from torch import Tensor

from indm.data.base import InMemory

MIN_SIZE = 8


def split(n: int, *, valid: int, test: int = 0, seed: int = 0, limit: int | None = None) -> dict[str, Tensor]:
    """Shuffle 0 … n−1 by ``seed`` into disjoint index tensors: ``test``, ``valid``, and the rest as ``train``.

    ``limit`` keeps only the first so many of the shuffled training indices. Without ``test`` there is no such key.
    """
    if valid < 1 or test < 0 or valid + test >= n:
        raise ValueError(f"{n} items cannot be split into {valid} for validation, {test} for testing and some to train")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = {"train": limited(order[valid + test :], limit), "valid": order[test : test + valid]}
    return parts | ({"test": order[:test]} if test else {})


def limited(items: Tensor | list[Path], limit: int | None) -> Tensor | list[Path]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 training item, or None for all, got {limit}")
    return items[:limit]


def selected(parts: dict[str, Tensor], labels: Tensor, label: int | None, limit: int | None) -> dict[str, Tensor]:
    """The indices of ``parts`` whose label is ``label`` (None: all), of the training ones the first ``limit``."""
    if label is not None:
        if not bool((labels == label).any()):
            raise ValueError(f"label must be one of {labels.unique().tolist()}, or None for all classes, got {label}")
        parts = {part: index[labels[index] == label] for part, index in parts.items()}
    return parts | {"train": limited(parts["train"], limit)}


def counts(n: int, valid: float, test: float) -> dict[str, int]:
    """Fractions of ``n`` as counts of at least one."""
    for name, fraction in (("valid", valid), ("test", test)):
        if not 0 < fraction < 1:
            raise ValueError(f"{name} must be a fraction between 0 and 1 of the data, got {fraction}; 0.1 is usual")
    return {"valid": max(1, round(valid * n)), "test": max(1, round(test * n))}


def describe_split(parts: dict[str, Tensor], seed: int, how: str = "") -> str:
    counts = ", ".join(f"{part} {len(index)}" for part, index in parts.items())
    return f"split {how}by seed {seed}: {counts}"


def check_size(*sides: int) -> None:
    if min(sides) < MIN_SIZE:
        got = "×".join(map(str, sides))
        raise ValueError(f"images must be at least {MIN_SIZE} pixels high and wide, got a size of {got}")


def pooled(tensor: Tensor, parts: dict[str, Tensor], labels: Tensor | None = None) -> dict:
    """The fields of :class:`Data` that one in-memory pool and index tensors into it determine."""
    by_part = {} if labels is None else {part: labels[index] for part, index in parts.items()}
    sets = {part: InMemory(tensor[index]) for part, index in parts.items()}
    return sets | {"shape": tuple(tensor.shape[1:]), "labels": by_part}
