"""What each column of a table is: its numbers, whole numbers, spikes or categories, and its map."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indm.tables.columns import FAR, Array, Columns, are_near, far_columns, moments_of_most
from indm.tables.encoding import Column, Encoding, are_missing
from indm.tables.mixture import bounded
from indm.tables.named import DATES, warn_of_few_values
from indm.tables.questions import middle_latents

MOST_CATEGORIES = 1000  # categories of a column, at most: each row has a number for each of them
# share of the entries that are different, above which categories are names of rows
IDENTIFIERS = 0.9
FEWEST_IDENTIFIERS = 10  # different entries
# as 2024-03-01, 1.3.2024, 1/3/24, 1 March 2024 or Mar 1, 2024, with a time of day or without
DAY = re.compile(
    r"\s*(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}|\d{1,2}/\d{1,2}/\d{2}"
    r"|\d{1,2}\.?[- ][A-Za-z]{3,9}\.?[- ,]+\d{4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})([T ]\d{1,2}:\d{2}.*)?\s*"
)
ADVICE = "drop a column of identifiers, turn dates and strings of numbers into numbers, or give rare values one name"


@dataclass(frozen=True)
class Declared:
    """What an estimator's options say of a column: its name in messages, whether it is named a
    category or whole numbers, its interval, and its spikes.
    """

    name: str
    is_category: bool = False
    is_whole: bool = False
    interval: tuple[float, float] = (-np.inf, np.inf)
    spikes: Sequence[Any] = ()


def fitted_encoding(X: Array, declared: Sequence[Declared], rng: np.random.RandomState) -> Encoding:
    """The encoding of a table, with warnings of columns that are left out or look wrong.

    Raises:
        ValueError: what :func:`fitted_column` says, of all columns at once; no column varies.
    """
    columns, problems = [], []
    for entries, own in zip(X.T, declared, strict=True):
        try:
            columns.append(fitted_column(entries, own, rng))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(".\n".join(problems))
    if all(column.is_out for column in columns):
        raise ValueError("X must vary in a column, got one value or none in each")
    _warn_of_columns(columns, X)
    return Encoding(tuple(columns))


def _warn_of_columns(columns: Sequence[Column], X: Array) -> None:
    """UserWarnings of columns that are left out, of few values, or nearly names of rows."""
    constant = [
        f"{column.name}, {column.constant}"
        + (f" ({gaps:.0%} of the rows have none)" if gaps else "")
        for column, gaps in zip(columns, are_missing(X).mean(0), strict=True)
        if column.constant is not None
    ]
    absent = [column.name for column in columns if column.is_absent]
    if constant:
        named = ", ".join(constant)
        warnings.warn(f"left out of the density, as all have the same value: {named}", stacklevel=5)
    if absent:
        few = "left out of the density, as fewer than two rows have an entry"
        warnings.warn(f"{few}: {', '.join(absent)}", stacklevel=5)
    plain = {
        column.name: entries[~are_missing(entries)].astype(float)
        for column, entries in zip(columns, X.T, strict=True)
        if column.is_number and not (column.is_whole or column.values)
    }
    warn_of_few_values(plain, stacklevel=6)
    for column in columns:
        if not column.is_number and len(column.values) > len(X) / 2:
            many = f"{column.name} has {len(column.values)} categories in {len(X)} rows"
            advice = "leave out a column of names, and turn strings into numbers"
            warnings.warn(f"{many}: {advice}", stacklevel=5)


def warn_of_far_numbers(encoding: Encoding, x: Array) -> None:
    """UserWarning of the number that is farthest from most rows of its column, if it is far, in
    latents where the map is plain.
    """
    bends = np.array([encoding.map_of(i).far[0] for i in encoding.numbers])
    values = np.where(bends, x, middle_latents(encoding, x).numpy())
    off = np.zeros(x.shape)
    for j in range(x.shape[1]):
        there = np.flatnonzero(~np.isnan(x[:, j]))
        centre, scale = moments_of_most(values[there, j : j + 1])
        off[there, j] = np.abs(values[there, j] - centre) / np.where(scale > 0, scale, np.inf)
    if (off > FAR).any():
        row, farthest = np.unravel_index(off.argmax(), off.shape)
        named = encoding.columns[encoding.numbers[farthest]].name
        far = f"{x[row, farthest]:g} in {named}; where it is an error, correct or drop the row"
        warnings.warn(f"row {row} of X is far from the others: {far}", stacklevel=4)


def fitted_column(entries: Array, declared: Declared, rng: np.random.RandomState) -> Column:
    """The kind and the map of a column whose rows are ``entries`` (n,).

    Raises:
        ValueError: strings that are all dates, unless it is named a category; categories that are
            too many, or nearly as many as entries, or have bounds or spikes; and what
            :meth:`Column.encoded` raises.
    """
    present = entries[~are_missing(entries)]
    if len(present) < 2:
        return Column(declared.name)
    has_names = any(isinstance(entry, str | bool | np.bool_) for entry in present.flat)
    if declared.is_category or has_names:
        return _column_of_categories(present, declared)
    return _column_of_numbers(present, declared, rng)


def _column_of_categories(present: Array, declared: Declared) -> Column:
    name = declared.name
    values = tuple(sorted(set(present), key=lambda value: (str(type(value)), value)))
    are_dates = all(isinstance(value, str) and DAY.fullmatch(value) for value in values)
    if are_dates and not declared.is_category:
        raise ValueError(
            f"{name} must hold numbers or categories, got dates such as {values[0]!r}; {DATES}, or "
            "name the column in categories"
        )
    few = max(FEWEST_IDENTIFIERS, IDENTIFIERS * len(present))
    if len(values) > min(few, MOST_CATEGORIES):
        got = f"{len(values):,} in {len(present):,} rows, from {values[0]!r} to {values[-1]!r}"
        raise ValueError(
            f"{name} must have at most {MOST_CATEGORIES:,} categories, in several rows each, got "
            f"{got}: {ADVICE}"
        )
    if np.isfinite(declared.interval).any() or declared.spikes or declared.is_whole:
        raise ValueError(
            f"{name} has categories, so it cannot have bounds, spikes or whole numbers"
        )
    return Column(name, constant=values[0]) if len(values) == 1 else Column(name, values)


def _column_of_numbers(present: Array, declared: Declared, rng: np.random.RandomState) -> Column:
    name, is_whole = declared.name, declared.is_whole
    spikes = tuple(float(spike) for spike in declared.spikes)
    x, _ = Column(name, spikes, True, is_whole).encoded(present)
    x = x[~np.isnan(x)]
    low, high = declared.interval
    is_on_end = (not is_whole) & ((x == low) | (x == high))
    outside = x[(x < low) | (x > high) | is_on_end]
    if len(outside):
        above, below = ("at least", "at most") if is_whole else ("above", "below")
        raise ValueError(
            f"{name} must be {above} {low:g} and {below} {high:g}, its bounds, got "
            f"{outside[0]:g}; widen them, or declare a value that many rows have in spikes"
        )
    # one value that is no spike, or none
    if not len(x) or (not is_whole and are_near(x.min(), x.max())):
        values = (*spikes, *map(float, x[:1]))
        return Column(name, values) if len(values) > 1 else Column(name, constant=values[0])
    noisy = (x + (1 - rng.uniform(size=len(x)) if is_whole else 0))[:, None]
    ends = np.array([[low], [high + is_whole]])
    best = best_map(noisy, ends, rng, may_bend=not is_whole)
    return Column(name, spikes, True, is_whole, map=best)


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
