"""Which example is in which split: index tensors made from a seed, and labels and conditions by split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from indm.workbench.data.raw import InMemory

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


def pooled(tensor: Tensor, parts: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Any]:
    """The fields of :class:`Data` that follow from all examples in one tensor and index tensors into it."""
    by_part = {} if labels is None else {part: labels[index] for part, index in parts.items()}
    sets = {part: InMemory(tensor[index]) for part, index in parts.items()}
    return sets | {"shape": tuple(tensor.shape[1:]), "labels": by_part}


def condition_fields(
    c: Any, parts: Mapping[str, Tensor], where: str | Path, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of :class:`Data` that follow from conditions of all examples and index tensors into them.

    Whole numbers and words (n,) are labels; whole numbers are numbers (n, 1), too. Other numbers (n, size) and images
    (n, C, H, W), or (n, H, W, C) of 1 or 3 channels, are numbers. Labels are counted in the order of ``classes``, or in
    that of the alphabet.
    """
    c = np.asarray(c)
    n = 1 + max(int(index.max()) for index in parts.values() if len(index))
    if len(c) < n or c.ndim == 3 or c.ndim > 4 or c.dtype.kind not in "biufUSO":
        raise ValueError(
            f"the conditions of {where} must be a row for each example: labels (n,), numbers (n, size) or images "
            f"(n, C, H, W), got {c.dtype} of shape {c.shape} for {n} examples"
        )
    fields: dict[str, Any] = {}
    if c.ndim == 1 and c.dtype.kind not in "f":
        values, numbers = np.unique(c.astype(str) if c.dtype.kind == "O" else c, return_inverse=True)
        names = tuple(classes or map(str, values))
        labels = torch.tensor([names.index(str(value)) for value in values])[torch.from_numpy(numbers)]
        fields |= {"classes": names, "labels": {p: labels[index] for p, index in parts.items()}}
    if c.dtype.kind in "biuf":
        wrong = np.flatnonzero(~np.isfinite(c.reshape(len(c), -1)).all(1))
        if len(wrong):
            raise ValueError(f"the conditions of {where} must be finite: row {wrong[0]} is not")
        rows = torch.from_numpy(c.astype(np.float32))
        if rows.ndim == 4 and rows.shape[3] in (1, 3) and rows.shape[1] not in (1, 3):
            rows = rows.permute(0, 3, 1, 2)
        rows = rows[:, None] if rows.ndim == 1 else rows
        fields["conditions"] = {part: rows[index] for part, index in parts.items()}
    return fields
