"""Tables of numbers, strings and missing entries as numbers and codes: what each column is, and
back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from indm.tables.columns import (
    LARGEST_X,
    Array,
    Columns,
    best_edges,
    is_inside,
)
from indm.tables.named import DATES

NONE = np.zeros((1, 0))  # an array without conditions


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: in messages.
        values: of a column of categories, in the order of their codes; of a column with spikes, the
            spikes, whose codes begin at 1; else empty. Spikes with only one other value are
            categories.
        is_number, is_whole: whether there are numbers that are no spikes, and whole ones, which get
            noise.
        constant: the value of a column that never varies, which is left out, as one of fewer than
            two entries is.
        map: numbers to latents, without conditions; of a column with numbers.
    """

    name: str
    values: tuple[Any, ...] = ()
    is_number: bool = False
    is_whole: bool = False
    constant: Any = None
    map: Columns | None = None

    @property
    def is_out(self) -> bool:
        """Whether it is left out of the density."""
        return not self.is_number and not self.values

    @property
    def is_absent(self) -> bool:
        """Whether it is left out for want of entries, so that draws lack them."""
        return self.is_out and self.constant is None

    @property
    def is_named(self) -> bool:
        """Whether a value is the name of a category, not a number."""
        return not self.is_number and any(not isinstance(value, float) for value in self.values)

    @property
    def size(self) -> int:
        """The number of codes; 0 for a column without codes."""
        return len(self.values) + (self.is_number and bool(self.values))

    def encoded(self, entries: Array) -> tuple[Array, Array]:
        """Numbers, NaN where there is none, and codes, −1 where an entry is missing; ValueError for
        an entry that does not fit.
        """
        missing = are_missing(entries)
        numbers, codes = np.full(len(entries), np.nan), np.where(missing, -1, 0)
        if self.is_out and not isinstance(self.constant, float):
            return numbers, codes
        if not self.is_number and self.values:
            known = {value: i for i, value in enumerate(self.values)}
            for i in np.flatnonzero(~missing):
                if entries[i] not in known:
                    some = ", ".join(map(str, self.values[:8])) + (
                        ", …" if len(self.values) > 8 else ""
                    )
                    raise ValueError(
                        f"{self.name} must hold one of {some}, got {entries[i]!r} in row {i}"
                    )
                codes[i] = known[entries[i]]
            return numbers, codes
        numbers[~missing] = as_numbers(entries[~missing], self.name)
        for code, spike in enumerate(self.values, 1):
            codes[numbers == spike] = code
        numbers[codes > 0] = np.nan
        if self.is_whole:
            broken = np.flatnonzero(numbers != np.floor(numbers))
            broken = broken[~np.isnan(numbers[broken])]
            if len(broken):
                raise ValueError(
                    f"{self.name} must hold whole numbers, got {numbers[broken[0]]:g} in row {broken[0]}"
                )
        return numbers, codes


@dataclass(frozen=True)
class Encoding:
    """The kinds of a table's columns, and the map from its rows to numbers, codes and latents.

    Rows are encoded as ``x`` (n, d), numbers with NaN where there are none, and ``codes`` (n, J),
    −1 where they are missing, of the columns that :attr:`numbers` and :attr:`categories` name.
    """

    columns: tuple[Column, ...]

    @property
    def numbers(self) -> Array:
        """The columns that have numbers, (d,)."""
        return np.array([i for i, column in enumerate(self.columns) if column.is_number], dtype=int)

    @property
    def categories(self) -> Array:
        """The columns that have codes, (J,)."""
        return np.array([i for i, column in enumerate(self.columns) if column.size], dtype=int)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of codes of each column in :attr:`categories`."""
        return tuple(self.columns[i].size for i in self.categories)

    @property
    def whole(self) -> Array:
        """Mask of the whole numbers among :attr:`numbers`, (d,)."""
        return np.array([self.columns[i].is_whole for i in self.numbers], dtype=bool)

    def map_of(self, i: int) -> Columns:
        """The map of a column that has numbers."""
        return cast(Columns, self.columns[i].map)

    def encoded(self, table: Array) -> tuple[Array, Array]:
        """``x`` and ``codes`` of rows (n, columns)."""
        parts = [
            column.encoded(entries) for column, entries in zip(self.columns, table.T, strict=True)
        ]
        n, codes = len(table), np.array([parts[i][1] for i in self.categories], dtype=int)
        x = np.array([parts[i][0] for i in self.numbers]).reshape(len(self.numbers), n).T
        return x, codes.reshape(len(self.categories), n).T

    def one_hot(self, codes: Array) -> Array:
        """The codes as numbers 0 and 1, (n, m); zeros where they are missing."""
        blocks = [np.equal.outer(codes[:, j], np.arange(size)) for j, size in enumerate(self.sizes)]
        return np.concatenate([np.zeros((len(codes), 0)), *blocks], 1).astype(float)

    def latents(self, x: Array) -> Array:
        """z of numbers that have their noise, (n, d)."""
        return self._mapped(lambda columns, part: columns.latents(part, NONE)[:, 0], x)

    def log_volume(self, x: Array) -> Array:
        """log|dz/dx| of each number, (n, d)."""
        return self._mapped(lambda columns, part: columns.log_volume(part), x)

    def given_others(self, x: Array, codes: Array) -> "Encoding":
        """The encoding whose columns with two bounds are mapped to the line as suits them best at
        the other columns.
        """
        z, one_hot = np.nan_to_num(self.latents(x)), self.one_hot(codes)
        columns = list(self.columns)
        for j, i in enumerate(self.numbers):
            column = self.map_of(i)
            if np.isfinite(column.interval).all():
                there = ~np.isnan(x[:, j])
                own = x[there, j : j + 1]
                others = np.concatenate([np.delete(z, j, 1), one_hot], 1)[there]
                edge = best_edges(own, others, column.interval)
                skewed = np.flatnonzero(column.power != 1)
                if edge != column.edge and not np.isnan(edge):
                    none = np.zeros((len(own), 0))
                    column = Columns.fitted(own, none, skewed, column.far, column.interval, edge)
                    columns[i] = replace(columns[i], map=column)
        return Encoding(tuple(columns))

    def _mapped(self, function: Callable[[Columns, Array], Array], x: Array) -> Array:
        found = np.full(x.shape, np.nan)
        for j, i in enumerate(self.numbers):
            there = np.flatnonzero(~np.isnan(x[:, j]))
            if len(there):
                found[there, j] = function(self.map_of(i), x[there, j : j + 1])
        return found

    def is_possible(self, x: Array) -> Array:
        """Whether each number is inside of its bounds or missing, (n, d)."""
        interval = np.concatenate(
            [np.zeros((2, 0)), *(self.map_of(i).interval for i in self.numbers)], 1
        )
        return np.isnan(x) | is_inside(x, interval, self.whole)

    def table(self, z: Array, codes: Array) -> Array:
        """Rows of the table with latents z (n, d), NaN where there are none, and ``codes``, (n,
        columns).

        They are of dtype object where a column has other than numbers.
        """
        entries = [value for column in self.columns for value in (*column.values, column.constant)]
        plain = all(isinstance(value, float | None) for value in entries)
        rows = np.full((len(z), len(self.columns)), np.nan, dtype=float if plain else object)
        for i, column in enumerate(self.columns):
            if column.constant is not None:
                rows[:, i] = column.constant
        for j, i in enumerate(self.numbers):
            there = np.flatnonzero(~np.isnan(z[:, j]))
            values = self.map_of(i).rows(z[there, j : j + 1], NONE)[:, 0]
            rows[there, i] = np.floor(values) if self.columns[i].is_whole else values
        for j, i in enumerate(self.categories):
            offset = int(self.columns[i].is_number)
            for code, value in enumerate(self.columns[i].values, offset):
                rows[codes[:, j] == code, i] = value
        return rows


def as_numbers(entries: Array, name: str) -> Array:
    """Entries as numbers; ValueError where one is not a finite number."""
    try:
        found = entries.astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        kinds = (
            ", ".join(sorted({type(entry).__name__ for entry in entries.flat} - {"int", "float"}))
            or "huge numbers"
        )
        raise ValueError(
            f"{name} must hold numbers, or be among the categories, got {kinds}; {DATES}"
        ) from error
    if not (np.abs(found) <= LARGEST_X).all():
        raise ValueError(
            f"{name} must hold numbers of at most {LARGEST_X:g}, got {found[np.abs(found).argmax()]:g}"
        )
    return found


def are_missing(entries: Array) -> Array:
    """Mask of missing entries: None, NaN or the missing value of pandas."""
    if entries.dtype.kind == "f":
        return np.isnan(entries)
    flat = [
        entry is None or type(entry).__name__ in ("NAType", "NaTType") or entry != entry
        for entry in entries.flat
    ]
    return np.array(flat, dtype=bool).reshape(entries.shape)
