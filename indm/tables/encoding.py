"""Tables of numbers, strings and missing entries as numbers and codes: what each column is, and
back.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from indm.checks import few_values
from indm.tables.columns import (
    LARGEST_X,
    Array,
    Columns,
    are_near,
    best_edges,
    far_columns,
    is_inside,
)
from indm.tables.mixture import bounded

NONE = np.zeros((1, 0))  # an array without conditions
MOST_CATEGORIES = 1000  # categories of a column, at most: each row has a number for each of them
FEWEST_ROWS = 10  # rows that a table must have
REPEATED = 0.2  # share of a column's rows with one value, above which there is a warning
# share of the entries that are different, above which categories are names of rows
IDENTIFIERS = 0.9
FEWEST_IDENTIFIERS = 10  # different entries
DATES = (
    "turn dates into numbers, such as days: (pd.to_datetime(dates) - pd.Timestamp('2000-01-01')).dt.days, or into "
    "columns of .dt.year and .dt.month"
)
# as 2024-03-01, 1.3.2024, 1/3/24, 1 March 2024 or Mar 1, 2024, with a time of day or without
DAY = re.compile(
    r"\s*(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}|\d{1,2}/\d{1,2}/\d{2}"
    r"|\d{1,2}\.?[- ][A-Za-z]{3,9}\.?[- ,]+\d{4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})([T ]\d{1,2}:\d{2}.*)?\s*"
)
ADVICE = "drop a column of identifiers, turn dates and strings of numbers into numbers, or give rare values one name"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: in messages.
        values: of a column of categories, in the order of their codes; of a column with spikes, the
            spikes, whose codes begin at 1; else empty. Spikes beside one other value alone are
            categories.
        is_number, is_whole: whether there are numbers beside the spikes, and whole ones, which get
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

    def check_range(self, low: float, high: float) -> None:
        """ValueError where no number of the column is from ``low`` to ``high``."""
        values = [*self.values] if self.constant is None else [self.constant]
        if not self.is_number and not (
            values and all(isinstance(value, float) for value in values)
        ):
            raise ValueError(
                f"given must have a range of a column of numbers, got {low} to {high} of {self.name}"
            )
        if not any(low <= value <= high for value in values):
            lowest, highest = (np.inf, -np.inf) if self.map is None else self.map.interval[:, 0]
            if not (low < highest and (lowest <= high if self.is_whole else lowest < high)):
                raise ValueError(
                    f"given has a range of probability 0, {low} to {high} of {self.name}"
                )


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
                own, others = (
                    x[there, j : j + 1],
                    np.concatenate([np.delete(z, j, 1), one_hot], 1)[there],
                )
                edge, skewed = (
                    best_edges(own, others, column.interval),
                    np.flatnonzero(column.power != 1),
                )
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


def fitted_column(
    entries: Array,
    name: str,
    rng: np.random.RandomState,
    *,
    is_category: bool,
    is_whole: bool,
    interval: tuple[float, float],
    spikes: Sequence[Any],
) -> Column:
    """The kind and the map of a column whose rows are ``entries`` (n,).

    Raises:
        ValueError: strings that are all dates, unless it is named a category; categories that are
            too many, or nearly as many as entries, or have bounds or spikes; equal spikes; and as
            :meth:`Column.encoded`.
    """
    present = entries[~are_missing(entries)]
    if len(present) < 2:
        return Column(name)
    are_numbers = all(isinstance(spike, int | float | np.number) for spike in spikes)
    if not are_numbers or not np.isfinite(spikes).all() or len(set(spikes)) < len(spikes):
        raise ValueError(
            f"{name} must have different finite numbers as spikes, such as 0, got {spikes}"
        )
    if is_category or any(isinstance(entry, str | bool | np.bool_) for entry in present.flat):
        try:
            values = tuple(sorted(set(present), key=lambda value: (str(type(value)), value)))
        except TypeError as error:
            raise ValueError(
                f"{name} must hold strings, numbers or truth values as categories: {error}"
            ) from error
        if not is_category and all(
            isinstance(value, str) and DAY.fullmatch(value) for value in values
        ):
            raise ValueError(
                f"{name} must hold numbers or categories, got dates such as {values[0]!r}; {DATES}, or name the column "
                "in categories"
            )
        few = max(FEWEST_IDENTIFIERS, IDENTIFIERS * len(present))
        if len(values) > min(few, MOST_CATEGORIES):
            raise ValueError(
                f"{name} must have at most {MOST_CATEGORIES:,} categories, in several rows each, got {len(values):,} "
                f"in {len(present):,} rows, from {values[0]!r} to {values[-1]!r}: {ADVICE}"
            )
        if np.isfinite(interval).any() or spikes or is_whole:
            raise ValueError(
                f"{name} has categories, so it cannot have bounds, spikes or whole numbers"
            )
        return Column(name, constant=values[0]) if len(values) == 1 else Column(name, values)
    spikes = [float(spike) for spike in spikes]
    plain = Column(name, tuple(spikes), True, is_whole)
    x, _ = plain.encoded(present)
    x = x[~np.isnan(x)]
    low, high = interval
    outside = x[(x < low) | (x > high) | ((not is_whole) & ((x == low) | (x == high)))]
    if len(outside):
        above, below = ("at least", "at most") if is_whole else ("above", "below")
        raise ValueError(
            f"{name} must be {above} {low:g} and {below} {high:g}, its bounds, got {outside[0]:g}; widen them, or "
            "declare a value that many rows have in spikes"
        )
    # beside the spikes one value, or none
    if not len(x) or (not is_whole and are_near(x.min(), x.max())):
        values = (*spikes, *map(float, x[:1]))
        return Column(name, values) if len(values) > 1 else Column(name, constant=values[0])
    noisy = (x + (1 - rng.uniform(size=len(x)) if is_whole else 0))[:, None]
    ends = np.array([[low], [high + is_whole]])
    return Column(
        name, tuple(spikes), True, is_whole, map=best_map(noisy, ends, rng, may_bend=not is_whole)
    )


def best_map(x: Array, interval: Array, rng: np.random.RandomState, may_bend: bool) -> Columns:
    """The map of a column x (n, 1) to a latent that is most nearly normal, on rows that did not fit
    it: the plain one, unless the gain of another is above its standard error.
    """
    none = np.zeros((len(x), 0))
    is_far = bool(far_columns(x)[0]) and not np.isfinite(interval).any()
    fits: list[tuple[list[int], bool]] = [
        ([], False),
        *[([], True)] * is_far,
        *[([0], is_far)] * may_bend,
    ]
    order = rng.permutation(len(x))
    train, valid = order[len(x) // 5 :], order[: len(x) // 5]
    found = []
    for skewed, far in fits:
        options = np.array(skewed, dtype=int), np.array([far]), interval
        columns = Columns.fitted(x[train], none[train], *options)
        z = columns.latents(x[valid], none[valid])
        found.append((-0.5 * z[:, 0] ** 2 + columns.log_volume(x[valid]), options))
    best = found[0]
    for other in found[1:]:
        gain = bounded(other[0] - best[0])
        best = other if len(valid) > 1 and gain.mean() > gain.std() / np.sqrt(len(gain)) else best
    return Columns.fitted(x, none, *best[1])


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


class NamedColumns:
    """Columns of a fitted estimator by index or name."""

    n_features_in_: int

    def _places(self, table: Any) -> Any:
        """The places of the fitted columns in a table: by name in a data frame that has the same
        names.
        """
        names, own = list(getattr(self, "feature_names_in_", ())), names_of(table)
        return (
            [own.index(name) for name in names] if names and set(names) == set(own) else slice(None)
        )

    def _table(self, table: Any, reset: bool) -> Any:
        """:func:`checked_table`; unless it is fitted (``reset``), a data frame of the same names
        has their order.
        """
        table = checked_table(table)
        return table if reset or not is_frame(table) else table.iloc[:, self._places(table)]

    def _index(self, column: Any, argument: str) -> int:
        """The index of a column that ``argument`` names."""
        names = list(getattr(self, "feature_names_in_", ()))
        if isinstance(column, str) and column in names:
            return names.index(column)
        if (
            isinstance(column, int | np.integer)
            and not isinstance(column, bool)
            and 0 <= column < self.n_features_in_
        ):
            return int(column)
        known = f"the names {', '.join(names)}, or " if names else ""
        raise ValueError(
            f"{argument} must hold columns of X ({known}indices 0 … {self.n_features_in_ - 1}), got {column!r}"
        )

    def _indices(self, columns: Any, argument: str) -> list[int]:
        """The indices of columns, or of one, that ``argument`` names."""
        alone = isinstance(columns, str | int | np.integer)
        return [self._index(column, argument) for column in ([columns] if alone else columns)]

    def _name(self, i: Any) -> str:
        """A column in words."""
        named = getattr(self, "feature_names_in_", None)
        return f"column {i}" if named is None else f"column {i} ({named[i]})"

    def _interval_of(self, i: int, pair: Any, argument: str = "bounds") -> tuple[float, float]:
        """The ends of a column's interval, infinite where they are None; ValueError where they are
        not two in order.
        """
        if np.shape(pair) == (2,):
            low, high = (
                inf if end is None else end
                for end, inf in zip(pair, (-np.inf, np.inf), strict=True)
            )
            if all(isinstance(end, int | float | np.number) for end in (low, high)) and low < high:
                return low, high
        raise ValueError(
            f"{argument} must be a lower and a higher number or None, got {pair} of {self._name(i)}"
        )


def is_frame(table: Any) -> bool:
    """Whether it is a data frame of pandas."""
    return hasattr(table, "iloc") and table.ndim == 2


def checked_table(table: Any) -> Any:
    """A table in which masked entries are NaN; ValueError for a data frame in which two columns
    have one name.
    """
    if is_frame(table) and not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"columns of X must have different names, got {twice!r} twice; rename one")
    return (
        np.ma.filled(table.astype(object), np.nan)
        if isinstance(table, np.ma.MaskedArray)
        else table
    )


def names_of(table: Any) -> list[Any]:
    """Names of the columns of a data frame; none of other tables."""
    return list(table.columns) if is_frame(table) else []


def problems_of(table: Any) -> Iterator[str]:
    """The reason why each column of a data frame is not of finite numbers, "" where it is."""
    for i, kind in enumerate(table.dtypes if is_frame(table) else ()):
        try:
            numbers = table.iloc[:, i].to_numpy(dtype=float, na_value=np.nan)
        except (TypeError, ValueError):
            numbers = np.zeros(0)
        found = {
            "missing entries": table.iloc[:, i].isna().any(),
            f"entries of type {kind}": kind.kind in "mM" or not len(numbers),
            "infinite values": np.isinf(numbers).any(),
        }
        yield " and ".join(name for name, there in found.items() if there)


def warn_of_few_values(columns: dict[str, np.ndarray], stacklevel: int) -> None:
    """UserWarnings that name columns of numbers of few values, and of one value in many rows."""
    if few := few_values(columns):
        warnings.warn(
            f"{few}, and any other value looks like an outlier. Name whole numbers in discrete; a factor makes others "
            "whole",
            stacklevel=stacklevel,
        )
    for name, entries in columns.items():
        values, counts = np.unique(entries, return_counts=True)
        if counts.max() > REPEATED * len(entries) and not few_values({name: entries}):
            warnings.warn(
                f"{name} is {values[counts.argmax()]:g} in {counts.max() / len(entries):.0%} of its rows, where the "
                "density is arbitrarily high: declare this value in spikes of JointDensityEstimator",
                stacklevel=stacklevel,
            )
