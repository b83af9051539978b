"""What every loader returns: three splits of raw data with their scaling. Any data set can be made into one.

A loader is a function or a class with keyword options that returns a :class:`Data`, or anything that :func:`as_data`
takes.
"""

import hashlib
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from indm.checks import brief
from indm.scaling import Scaling
from indm.workbench.data.raw import FirstEntries, InMemory, Mapped, Source, events, words_of
from indm.workbench.data.splits import condition_fields, counts, describe_split, limited, split

PARTS = ("train", "valid", "test")
FAR = 50.0  # deviations of the training rows from their mean, beyond which a held-out row decides its split


@runtime_checkable
class Examples(Protocol):
    """A map-style data set whose items are tensors of one shape, in data units."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint data sets and what is known about them.

    Attributes:
        train, valid, test: the examples of each split, of shape ``shape``.
        scaling: data units to model units; ``scaling.levels`` are the grey levels, None for continuous data.
        shape: of one item, (C, H, W) or (D,).
        entropy: of the data in total nats (data units), where it is known.
        flip: whether training should flip images horizontally at random.
        labels: class labels (n,) int64 of each split, in its order, where the data have them.
        classes: names of the labels 0, 1, …
        conditions: numbers c for p(x|c), (n, size) or images (n, C, H, W), of each split, in its order.
        groups: which group each example is of, (n,) int64 of each split, in its order, where examples of one group are
            alike (patches of one photograph): standard errors are then over groups.
        notes: where the data came from and what was done to them, one sentence each.
        fingerprint: SHA-256 of what decides, beside the options, which example is in which split; "" where that never
            changes.

    Example: labels, which are divided as the examples are.

        >>> data = as_data(torch.randn(100, 2), c=["even", "odd"] * 50)
        >>> data.classes, [len(data.labels[part]) for part in ("train", "valid", "test")]
        (('even', 'odd'), [80, 10, 10])
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    scaling: Scaling
    shape: tuple[int, ...]
    entropy: float | None = None
    flip: bool = False
    labels: dict[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def remarks(self) -> list[str]:
        """The notes, and that training mirrors images where it does."""
        mirrored = "mirrored at random in training; data.flip false leaves images as they are"
        return [*self.notes, *([mirrored] if self.flip else [])]

    def c(self, split: str, labels: bool) -> Tensor:
        """The conditions of a split: its ``labels``, or numbers.

        Raises:
            ValueError: there are none of that kind.
        """
        rows = self.labels if labels else self.conditions
        if split not in rows:
            places = (
                "digits and fashion-mnist have labels; so has a folder of folders with data.classes true"
                if labels
                else 'the array "c" of an .npz (data.c "c"), or columns of a table (data.c)'
            )
            raise ValueError(
                f"data {self.name!r} have no {'class labels' if labels else 'numbers'} for a condition; {places}, and "
                "a data set of pairs (x, c), in Python also as_data(pairs, c=True)"
            )
        return rows[split]


def check_kind(data: Data, like: Any, whose: str, name: str = "data") -> None:
    """ValueError where ``data``, called ``name``, are of other events or grey levels than ``like``."""
    for what, wanted, actual in (
        ("events of shape", tuple(like.shape), tuple(data.shape)),
        ("grey levels", like.scaling.levels, data.scaling.levels),
    ):
        if wanted != actual:
            raise ValueError(f"{name} must have {what} {wanted}, as {whose}, got {actual}")


def flags_of_data(shape: tuple[int, ...]) -> str:
    """Options of the command line for data with events of that shape, as an example."""
    if len(shape) == 3:
        return f"--data folder --data.path IMAGES --data.size {words_of(shape[1:])} --data.channels {shape[0]}"
    return "--data array --data.path FILE"


def stack(dataset: Examples, n: int | None = None) -> Tensor:
    """The first ``n`` items (all by default) as one tensor (n, *event).

    Example: grey levels as they are stored, for what takes a tensor.

        >>> data = as_data(torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8))
        >>> raw = stack(data.test)
        >>> raw.shape, raw.dtype, torch.equal(stack(data.test, 2), raw[:2])
        (torch.Size([5, 1, 8, 8]), torch.uint8, True)
    """
    if isinstance(dataset, InMemory):
        return dataset.tensor[:n]
    return torch.stack([dataset[i] for i in range(len(dataset))[:n]])


def as_data(
    source: Any,
    *,
    name: str = "given",
    levels: int | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    c: Any = False,
    where: str | Path = "the data",
) -> Data:
    """Anything that holds examples, as a :class:`Data`.

    Floats are continuous and are standardised by the training split. Integers are grey levels 0 … ``levels`` − 1:
    vectors (D,), or images (H, W), (H, W, C) or (C, H, W), also images of PIL.

    Args:
        source: a :class:`Data`, which is returned as it is; a tensor or an array (N, …); a map-style data set, where
            of items that are tuples the first entry counts; or three of these, (train, valid, test).
        name: of the result.
        levels: how many grey levels integers have; by default 256 for images of uint8.
        valid, test: fractions of ``source``, where it is not three already.
        seed: decides which example is in which split.
        limit: the training split keeps only its first ``limit`` examples.
        centered: grey levels are scaled to [−1, 1], else to [0, 1].
        flip: whether training should flip images horizontally at random.
        c: conditions of p(x|c), a row for each example of ``source``, see :func:`condition_fields`; with True the
            second entries of its items, which are read here.
        where: what error messages call ``source``.

    Raises:
        ValueError: naming what is wrong with ``source``. Items of a data set are checked when they are read.

    Example:
        >>> data = as_data(torch.randn(100, 2))
        >>> len(data.train), len(data.valid), len(data.test), data.shape
        (80, 10, 10, (2,))
    """
    if isinstance(source, Data):
        return source
    rows = second_entries(source, where) if c is True else None if c is False else c
    if isinstance(source, tuple):
        sets, levels, fingerprint = _divided_before(source, levels, limit, where)
        parts, total = _one_after_the_other(source, sets), sum(map(len, source))
        note = "divided before: " + ", ".join(f"{part} {len(examples)}" for part, examples in sets.items())
    else:
        examples, levels = _examples(source, levels, where)
        del source  # an array that nobody else holds is freed once it is split
        parts = split(len(examples), **counts(len(examples), valid, test), seed=seed, limit=limit)
        sets = {part: examples.select(index) for part, index in parts.items()}
        fingerprint, note, total = examples.fingerprint(), describe_split(parts, seed), len(examples)
        del examples
    shape = sets["train"].shape
    if flip and len(shape) != 3:
        raise ValueError(f"flip must be false for vectors: {where} holds no images but events of shape {shape}")
    scaling = Scaling.images(levels, centered) if levels else sets["train"].standardised()
    if len(shape) == 1 and not levels:
        warn_of_far_rows({part: sets[part] for part in PARTS[1:]}, scaling)
    about: dict[str, Any] = {"shape": shape, "flip": flip, "notes": [note], "fingerprint": fingerprint}
    if rows is not None:
        if len(rows) != total:
            raise ValueError(f"the conditions of {where} must be {total}, one for each example, got {len(rows)}")
        about |= condition_fields(rows, parts, where)
    return Data(name=name, scaling=scaling, **about | sets)


def warn_of_far_rows(held: Mapping[str, Any], scaling: Scaling) -> None:
    """A warning for each held-out part with a number far from all training rows: it decides the mean likelihood."""
    for part, rows in held.items():
        if isinstance(rows, InMemory) and len(rows):
            off = scaling.to_model(rows.tensor).abs()
            row, column = divmod(int(off.argmax()), off.shape[1])
            if off[row, column] > FAR:
                warnings.warn(
                    f"{rows.tensor[row, column]:g} in column {column + 1} is {off[row, column]:.0f} deviations off the "
                    f"mean of the training rows and decides the likelihood of the {part} split; where it is an error, "
                    "correct or drop the row",
                    stacklevel=2,
                )


def second_entries(source: Any, where: str | Path) -> Any:
    """The second entries of the items of a data set, or of three."""
    if isinstance(source, tuple):
        return np.concatenate([np.asarray(second_entries(part, where)) for part in source])
    if isinstance(source, TensorDataset) and len(source.tensors) > 1:
        return source.tensors[1]
    rows = []
    for i in range(len(source)):
        item = source[i]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(
                f"item {i} of {where} must be a pair (x, c) for a model with a condition, got {brief(item)}"
            )
        rows.append(item[1] if isinstance(item[1], str) else np.asarray(item[1]))
    return np.array(rows)


def _examples(source: Any, levels: int | None, where: str | Path) -> tuple[Source, int | None]:
    """The examples of a tensor, an array or a map-style data set, and how many grey levels they have."""
    if isinstance(source, TensorDataset):
        source = source.tensors[0]
    if isinstance(source, InMemory):
        source = source.tensor
    if isinstance(source, Mapped):
        return source, source.levels
    if hasattr(source, "dtype"):
        array, levels = events(source, levels, where)
        return InMemory(torch.from_numpy(array)), levels
    wanted = "a tensor, an array, a map-style data set or three of these (train, valid, test) would do"
    if isinstance(source, str | Mapping | IterableDataset) or not hasattr(source, "__getitem__"):
        hint = "; its .dataset would do" if hasattr(source, "dataset") else ""
        raise ValueError(f"{where} cannot be a {type(source).__name__}: {wanted}{hint}")
    if not hasattr(source, "__len__"):
        raise ValueError(f"{where} must have a length, {type(source).__name__} has none: {wanted}")
    if not len(source):
        raise ValueError(f"{where} must have items, got an empty {type(source).__name__}")
    examples = FirstEntries(source, levels, where)
    return examples, examples.levels


def _one_after_the_other(source: tuple, sets: Mapping[str, Source]) -> dict[str, Tensor]:
    """The positions of splits that were divided before in what follows from putting them one after the other."""
    starts = itertools.accumulate((len(part) for part in source), initial=0)
    return {part: start + torch.arange(len(sets[part])) for part, start in zip(PARTS, starts, strict=False)}


def _divided_before(
    source: tuple, levels: int | None, limit: int | None, where: str | Path
) -> tuple[dict[str, Source], int | None, str]:
    """Three splits, how many grey levels they have, and their fingerprint."""
    if len(source) != len(PARTS):
        raise ValueError(f"{where} as a tuple must be three, (train, valid, test), got {len(source)}")
    sets, kinds = {}, set()
    for part, given in zip(PARTS, source, strict=True):
        sets[part], found = _examples(given, levels, f"the {part} split of {where}")
        kinds.add((sets[part].shape, found))
    if len(kinds) > 1:
        got = ", ".join(f"{part} of shape {examples.shape}" for part, examples in sets.items())
        raise ValueError(f"the splits of {where} must be of one shape and number of grey levels, got {got}")
    prints = [examples.fingerprint() for examples in sets.values()]
    sets["train"] = sets["train"].select(limited(torch.arange(len(sets["train"])), limit))
    return sets, found, hashlib.sha256("".join(prints).encode()).hexdigest()
