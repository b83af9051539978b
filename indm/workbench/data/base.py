"""Data sets by name, as three splits of raw data with their scaling.

A data set is a :class:`Loader`, or a function or class with keyword options that returns a
:class:`Data` or anything that :func:`as_data` takes.
"""

import hashlib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from indm.checks import arguments_of, brief, check_arguments, counted, require, takes_any_name
from indm.conditions import Condition
from indm.names import check_made, find, is_outside, place_of
from indm.scaling import Scaling
from indm.workbench.data.examples import Examples, InMemory, OnDemand, events

SPLITS = ("train", "valid", "test")
Source = InMemory | OnDemand


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint splits of data, with their scaling, and conditions if they have any.

    Attributes:
        train, valid, test: the examples of each split, of shape ``shape``.
        scaling: data units to model units; ``scaling.levels`` are the grey levels, None for
            continuous data.
        shape: of one example, (C, H, W) or (D,).
        entropy: of the data in total nats (data units), if it is known.
        flip: whether training should flip images horizontally at random.
        labels: class labels (n,) int64 by split, if the data have them.
        classes: names of the labels 0, 1, …
        conditions: numbers c for p(x|c), (n, size) or images (n, C, H, W), by split.
        groups: the group of each example, (n,) int64 by split, if examples of a group are alike,
            such as frames of a film. No group is in two splits, and standard errors are over
            groups.
        notes: sentences on the source of the data and on their preparation.
        fingerprint: SHA-256 of what decides, with the options, the split of each example; "" if
            that never changes.

    Example: labels are divided like the examples.

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

    def examples(self, split: str) -> Examples:
        """The examples of a split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    @property
    def remarks(self) -> list[str]:
        """The notes, and a sentence if training mirrors images."""
        mirrored = "mirrored at random in training; data.flip false leaves images as they are"
        return [*self.notes, *([mirrored] if self.flip else [])]

    def c(self, split: str, labels: bool) -> Tensor:
        """The conditions of a split: its ``labels``, or numbers.

        Raises:
            ValueError: there are none.
        """
        rows = self.labels if labels else self.conditions
        if split not in rows:
            kind = "class labels" if labels else "numbers"
            where = (
                "folders with data.classes true, arrays and tables with data.c, and pairs (x, c)"
            )
            raise ValueError(
                f"data {self.name!r} have no {kind} for a condition; {where} have some"
            )
        return rows[split]

    def rows(self, condition: Condition, split: str) -> Tensor:
        """c of the examples of a split, as ``condition`` takes it; classes go by their names.

        Raises:
            ValueError: there are none of this kind.
        """
        try:
            c = self.c(split, condition.is_class)
            if condition.is_class and self.classes:
                c = torch.tensor([condition.number(name) for name in self.classes])[c]
            return condition.rows(c)
        except (ValueError, IndexError) as error:
            raise ValueError(f"the {split} data do not fit the condition: {error}") from error


def check_kind(data: Data, like: Any, whose: str, name: str = "data") -> None:
    """ValueError if ``data`` differ from ``like`` in the shape of events or in grey levels.

    Messages call the data ``name`` and the others ``whose``.
    """
    for what, wanted, actual in (
        ("events of shape", tuple(like.shape), tuple(data.shape)),
        ("grey levels", like.scaling.levels, data.scaling.levels),
    ):
        if wanted != actual:
            raise ValueError(f"{name} must have {what} {wanted}, as {whose}, got {actual}")


def stack(dataset: Examples, n: int | None = None) -> Tensor:
    """The first ``n`` items (all by default) as one tensor (n, *event).

    Example: grey levels as they are stored.

        >>> data = as_data(torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8))
        >>> raw = stack(data.test)
        >>> raw.shape, raw.dtype, torch.equal(stack(data.test, 2), raw[:2])
        (torch.Size([5, 1, 8, 8]), torch.uint8, True)
    """
    if isinstance(dataset, InMemory):
        return dataset.tensor[:n]
    return torch.stack([dataset[i] for i in range(len(dataset))[:n]])


# ── Options and splits


@dataclass(frozen=True, kw_only=True)
class Loader(ABC):
    """A data set by its options; a subclass adds its own."""

    limit: int | None = None
    """Training examples to keep, the first ones; all by default."""
    centered: bool = True
    """Whether the model sees grey levels in [−1, 1]; else in [0, 1]."""
    flip: bool = False
    """Whether training flips images horizontally at random."""

    @abstractmethod
    def data(self) -> Data:
        """The data; ValueError for an option out of range, and for files that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class DividedLoader(Loader):
    """A data set that is divided into fractions."""

    valid: float = 0.1
    """Fraction of the examples for validation."""
    test: float = 0.1
    """Fraction of the examples for the test."""
    seed: int = 0
    """Of the split."""

    def divided(
        self, n: int, groups: Sequence[str] = (), labels: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Indices of ``n`` examples by split, see :func:`split` and :func:`split_groups`."""
        sizes = counts(n, self.valid, self.test)
        if len(groups):
            return split_groups(groups, labels, **sizes, seed=self.seed, limit=self.limit)
        return split(n, **sizes, seed=self.seed, limit=self.limit)


def split(
    n: int, *, valid: int, test: int = 0, seed: int = 0, limit: int | None = None
) -> dict[str, Tensor]:
    """The indices 0 … n−1, shuffled by ``seed``, by split: "train", "valid", and "test" unless 0.

    ``limit`` keeps the first of the shuffled training indices.
    """
    if valid < 1 or test < 0 or valid + test >= n:
        raise ValueError(
            f"{n} items cannot be split into {valid} for validation, {test} for testing and some to train"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = {"train": order[valid + test :][:limit], "valid": order[test : test + valid]}
    return parts | ({"test": order[:test]} if test else {})


def split_groups(
    groups: Sequence[str],
    labels: Sequence[str] = (),
    *,
    valid: int,
    test: int,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Tensor]:
    """As :func:`split`, with all examples of a group in one split.

    So ``valid`` and ``test`` are met up to a group. Groups of the same class or classes are divided
    together. If there are two or more, at least one is held out; a single one is in ``train``.

    Args:
        groups: of each example.
        labels: of each example, if there are classes.

    Raises:
        ValueError: too few groups.

    >>> parts = split_groups(["a", "a", "b", "b", "c", "c"], valid=1, test=1)
    >>> {part: len(examples) for part, examples in parts.items()}
    {'train': 2, 'valid': 2, 'test': 2}
    """
    names, group, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    classes = [set[str]() for _ in names]
    for number, label in zip(
        group.tolist(), labels if len(labels) else itertools.repeat(""), strict=False
    ):
        classes[number].add(label)
    generator, alike = torch.Generator().manual_seed(seed), dict[frozenset[str], list[int]]()
    for number in torch.randperm(len(names), generator=generator).tolist():
        alike.setdefault(frozenset(classes[number]), []).append(number)
    divisible = [numbers for numbers in alike.values() if len(numbers) > 1]
    least = 2 if len(divisible) == 1 else 1  # so that test and valid have one each
    wanted, held = {"test": test, "valid": valid}, {"test": list[int](), "valid": list[int]()}
    for numbers in divisible:
        count = max(least, round((test + valid) / len(group) * len(numbers)))
        for number in numbers[: min(count, len(numbers) - 1)]:
            filled = {part: sizes[held[part]].sum() / wanted[part] for part in held}
            held[min(filled, key=filled.__getitem__)].append(number)
    if not held["valid"]:
        got = f"{counted(len(names), 'group')}, as {brief(', '.join(names.tolist()))}"
        raise ValueError(
            f"groups must be three or more, or in two classes two each, for three splits; got {got}"
        )
    order = torch.randperm(len(group), generator=generator)
    chosen = {
        part: torch.from_numpy(np.isin(group, held[part]))[order] for part in ("valid", "test")
    }
    train = order[~(chosen["valid"] | chosen["test"])]
    return {"train": train[:limit]} | {part: order[where] for part, where in chosen.items()}


def counts(n: int, valid: float, test: float) -> dict[str, int]:
    """Fractions of ``n`` as counts of at least one."""
    return {"valid": max(1, round(valid * n)), "test": max(1, round(test * n))}


def describe_split(parts: Mapping[str, Tensor], seed: int, how: str = "") -> str:
    """One sentence for the notes of a data set."""
    counts = ", ".join(f"{part} {len(index)}" for part, index in parts.items())
    return f"split {how}by seed {seed}: {counts}"


def condition_fields(
    c: Any, parts: Mapping[str, Tensor], where: str | Path, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of :class:`Data` for conditions of all examples and the indices of each split.

    Whole numbers and words (n,) are labels, numbered in the order of ``classes`` or alphabetically;
    whole numbers are numbers (n, 1), too. All others are numbers: (n, size), and images (n, C, H, W)
    or, with 1 or 3 channels, (n, H, W, C).
    """
    c = np.asarray(c)
    n = 1 + max(int(index.max()) for index in parts.values() if len(index))
    if len(c) < n or c.ndim == 3 or c.ndim > 4 or c.dtype.kind not in "biufUSO":
        wanted = "a row for each example: labels (n,), numbers (n, size) or images (n, C, H, W)"
        raise ValueError(
            f"the conditions of {where} must be {wanted}, {n} in all, got {c.dtype} of shape {c.shape}"
        )
    fields: dict[str, Any] = {}
    if c.ndim == 1 and c.dtype.kind not in "f":
        words = c.astype(str) if c.dtype.kind == "O" else c
        values, numbers = np.unique(words, return_inverse=True)
        names = tuple(classes or map(str, values))
        number_of = torch.tensor([names.index(str(value)) for value in values])
        labels = number_of[torch.from_numpy(numbers)]
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


# ── Anything as data


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
    """A :class:`Data` from a tensor, an array or a data set, divided into three splits.

    Floats are continuous and are standardised by the training split. Integers are grey levels 0 …
    ``levels`` − 1: vectors (D,), or images (H, W), (H, W, C) or (C, H, W), also images of PIL.

    Args:
        source: a tensor or an array (N, …); a map-style data set, whose items may be tuples that
            begin with the example; or three of these, (train, valid, test). A :class:`Data` is
            returned as it is.
        name: of the result.
        levels: how many grey levels integers have; by default 256 for images of uint8.
        valid, test: fractions of ``source``, unless it is divided already.
        seed: of the split.
        limit: the training split keeps only its first ``limit`` examples.
        centered: grey levels are scaled to [−1, 1], else to [0, 1].
        flip: whether training should flip images horizontally at random.
        c: conditions of p(x|c), a row for each example of ``source``, see :func:`condition_fields`;
            True takes the second entries of the items.
        where: what error messages call ``source``.

    Raises:
        ValueError: ``source`` cannot be used. Items of a data set are checked when they are read.

    Example:
        >>> data = as_data(torch.randn(100, 2))
        >>> len(data.train), len(data.valid), len(data.test), data.shape
        (80, 10, 10, (2,))
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, tuple):
        splits = _divided_before(source, levels, limit, where)
    else:
        splits = _divided(source, levels, where, valid=valid, test=test, seed=seed, limit=limit)
    train = splits.sets["train"]
    require(not flip or len(train.shape) == 3, "flip", flip, f"false for shape {train.shape}")
    fields: dict[str, Any] = {**splits.sets}
    if c is not False:
        rows = second_entries(source, where) if c is True else c
        wanted = f"{splits.total} rows"
        require(len(rows) == splits.total, f"the conditions of {where}", len(rows), wanted)
        fields |= condition_fields(rows, splits.parts, where)
    return Data(
        name=name,
        scaling=Scaling.images(splits.levels, centered) if splits.levels else train.standardised(),
        shape=train.shape,
        flip=flip,
        notes=[splits.note],
        fingerprint=splits.fingerprint,
        **fields,
    )


@dataclass(frozen=True)
class _Splits:
    """Three splits of ``total`` examples, by name: the examples, and their indices."""

    sets: dict[str, Source]
    parts: dict[str, Tensor]
    total: int
    levels: int | None
    fingerprint: str
    note: str


def _divided(
    source: Any,
    levels: int | None,
    where: str | Path,
    *,
    valid: float,
    test: float,
    seed: int,
    limit: int | None,
) -> _Splits:
    """The splits of a source that is not divided."""
    examples, levels = _examples(source, levels, where)
    n = len(examples)
    parts = split(n, **counts(n, valid, test), seed=seed, limit=limit)
    sets = {part: examples.select(index) for part, index in parts.items()}
    return _Splits(sets, parts, n, levels, examples.fingerprint(), describe_split(parts, seed))


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
                f"item {i} of {where} must be a pair (x, c) where there is a condition, got {brief(item)}"
            )
        rows.append(item[1] if isinstance(item[1], str) else np.asarray(item[1]))
    return np.array(rows)


def _examples(source: Any, levels: int | None, where: str | Path) -> tuple[Source, int | None]:
    """The examples of a tensor, an array or a map-style data set, and their grey levels."""
    if isinstance(source, TensorDataset):
        source = source.tensors[0]
    if isinstance(source, InMemory):
        source = source.tensor
    if isinstance(source, OnDemand):
        return source, source.levels
    if hasattr(source, "dtype"):
        array, levels = events(source, levels, where)
        return InMemory(torch.from_numpy(array)), levels
    wanted = "give a tensor, an array, a map-style data set or three of these (train, valid, test)"
    if isinstance(source, str | Mapping | IterableDataset) or not hasattr(source, "__getitem__"):
        hint = "; give its .dataset" if hasattr(source, "dataset") else ""
        raise ValueError(f"{where} cannot be a {type(source).__name__}: {wanted}{hint}")
    examples = OnDemand(source, levels, where)
    return examples, examples.levels


def _divided_before(
    source: tuple, levels: int | None, limit: int | None, where: str | Path
) -> _Splits:
    """The splits (train, valid, test), whose indices count on from one to the next."""
    sets: dict[str, Source] = {}
    kinds = set()
    for part, given in zip(SPLITS, source, strict=True):
        sets[part], found = _examples(given, levels, f"the {part} split of {where}")
        kinds.add((sets[part].shape, found))
    if len(kinds) > 1:
        got = ", ".join(f"{part} of shape {examples.shape}" for part, examples in sets.items())
        raise ValueError(
            f"the splits of {where} must be of one shape and number of grey levels, got {got}"
        )
    prints = "".join(examples.fingerprint() for examples in sets.values())
    sets["train"] = sets["train"].select(torch.arange(len(sets["train"]))[:limit])
    starts = itertools.accumulate(map(len, source), initial=0)
    parts = {
        part: start + torch.arange(len(sets[part]))
        for part, start in zip(SPLITS, starts, strict=False)
    }
    fingerprint = hashlib.sha256(prints.encode()).hexdigest()
    sizes = ", ".join(f"{part} {len(examples)}" for part, examples in sets.items())
    return _Splits(
        sets, parts, sum(map(len, source)), found, fingerprint, f"divided before: {sizes}"
    )


# ── By name

SHARED = {  # options of as_data, for data sets that return no Data
    name: parameter.annotation
    for name, parameter in inspect.signature(as_data).parameters.items()
    if name not in ("source", "name", "where")
}


def load_data(name: str, **options: object) -> Data:
    """The data set of that name.

    Args:
        name: a built-in name (a key of ``indm.names.BUILT_IN["data"]``), or
            ``package.module:Name``, a function or class that returns a :class:`Data` or anything
            that :func:`as_data` takes.
        options: arguments of the data set; those that it does not have go to :func:`as_data`.

    Raises:
        Untrusted: code outside this package that is not trusted, see :func:`indm.names.trust`.
        ValueError: an unknown name or option, or data that cannot be used.

    Example: a density of known entropy, uniform on 8 of the 16 squares of a board.

        >>> data = load_data("checkerboard", samples=1000, test_samples=100)
        >>> len(data.train), len(data.test), data.shape, round(data.entropy, 4)  # the area is 2, the entropy log 2
        (1000, 100, (2,), 0.6931)
    """
    check_data(name, **options)
    loader = find("data", name)
    taken = set(arguments_of(loader))
    if takes_any_name(loader):
        taken |= set(options) - (set(SHARED) if _needs_as_data(loader) else set())
    rest: dict[str, Any] = {
        option: value for option, value in options.items() if option not in taken
    }
    source = loader(**{option: value for option, value in options.items() if option in taken})
    source = source.data() if isinstance(source, Loader) else source
    if isinstance(source, Data) and rest:
        raise ValueError(
            f"data.{min(rest)} is no option of data {name!r}, which returns a Data, divided and scaled"
        )
    return as_data(source, name=name, where=f"data {name!r}", **rest)


def without_download(table: Mapping[str, Any]) -> dict[str, Any]:
    """The ``[data]`` table of a run for :func:`load_data` without a download."""
    own = arguments_of(find("data", table["name"]))
    return {**table, "download": False} if "download" in own else dict(table)


def check_data(name: str, **options: object) -> None:
    """ValueError unless there is such a data set with such options; its files are not read."""
    loader = find("data", name)
    if is_outside(place_of("data", name)):
        check_made("data", name, loader, Data, Loader, Dataset, Tensor, np.ndarray)
    more = SHARED if _needs_as_data(loader) else {}
    check_arguments(loader, options, table="data", what=f"data {name!r}", more=more)


def _needs_as_data(loader: Callable[..., Any]) -> bool:
    """Whether ``loader`` may return something else than a :class:`Data`, by its annotation."""
    is_loader = isinstance(loader, type) and issubclass(loader, Loader)
    return not is_loader and inspect.signature(loader).return_annotation not in (Data, "Data")
