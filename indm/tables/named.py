"""Columns of tables by index or name, and what data frames say of theirs."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from indm.checks import few_values

FEWEST_ROWS = 10  # rows that a table must have
REPEATED = 0.2  # share of a column's rows with one value, above which there is a warning
DATES = (
    "turn dates into numbers, such as days: (pd.to_datetime(dates) - pd.Timestamp('2000-01-01')).dt.days, or into "
    "columns of .dt.year and .dt.month"
)


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
    if isinstance(table, np.ma.MaskedArray):
        return np.ma.filled(table.astype(object), np.nan)
    return table


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
    few = few_values(columns)
    if few:
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
