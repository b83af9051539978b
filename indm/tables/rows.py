"""Rows and conditions of a density of numbers: standardised, and with noise in whole numbers."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_array, check_consistent_length

from indm.tables.columns import FAR, Array, far_columns, moments, moments_of_most
from indm.tables.named import names_of


class Table(NamedTuple):
    """Rows (n, columns) and their conditions (n, k)."""

    X: Array
    c: Array

    def rows(self, chosen: Any) -> "Table":
        """Some rows, by a mask, indices or a slice."""
        return Table(self.X[chosen], self.c[chosen])


def noisy(X: Array, whole: Array, rng: np.random.RandomState) -> Array:
    """``X`` with uniform noise in its ``whole`` columns."""
    noise = np.zeros_like(X)
    # not 0, which may be a bound
    noise[:, whole] = 1 - rng.uniform(size=(len(X), len(whole)))
    return X + noise


def far_mask(X: Array, x: Array, interval: Array, names: list[str]) -> Array:
    """Mask of the columns that have values far from all others; a warning names the farthest.

    ``x`` are the rows ``X`` with noise in whole numbers.
    """
    far = far_columns(x) & ~np.isfinite(interval).any(0)
    if far.any():
        centre, scale = moments_of_most(x)
        off = np.where(far, np.abs(x - centre) / scale, 0)
        row, i = divmod(int(off.argmax()), off.shape[1])
        most = f"where most rows are within {2 * scale[i]:.4g} of {centre[i]:.4g}"
        warnings.warn(
            f"row {row} of X is far from the others: {X[row, i]:g} in {names[i]}, {most}; where it "
            "is an error, correct or drop the row",
            stacklevel=4,
        )
    return far


@dataclass(frozen=True)
class Conditions:
    """The scale of conditions that a density was fitted with.

    Args:
        names: of their columns, where they were a data frame.
        far: where one row has the leverage of all others, so that asinh is taken.
        mean, scale: of each column, (k,).
    """

    names: list[Any]
    far: Array
    mean: Array
    scale: Array

    @classmethod
    def fitted(cls, c: Any, rows: int) -> tuple["Conditions", Array]:
        """The scale of ``c``, a row for each of ``rows`` of X, and c standardised, (rows, k).

        Without c, k is 0.

        Raises:
            ValueError: they are not finite numbers, or not one row for each of X.
        """
        table = np.zeros((rows, 0)) if c is None else _array(c)
        table = table[:, None] if table.ndim == 1 else table
        check_consistent_length(range(rows), table)
        centre, spread = moments_of_most(table)
        far = (np.abs(table - centre) > spread * max(FAR, math.sqrt(rows))).any(0)
        mean, std = np.where(far, (centre, spread), moments(table))
        scale = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        found = cls(names_of(c), far, mean, scale)
        return found, found._scaled(table)

    def standardised(self, c: Any, rows: int) -> Array:
        """Standardised conditions (rows, k), of one for all rows or one for each.

        Raises:
            ValueError: they have other columns than in ``fit``, which may have got none, or are not
                finite numbers.
        """
        k = len(self.mean)
        table = np.zeros((rows, 0)) if c is None else _array(np.atleast_1d(c))
        if table.ndim == 1:
            table = table[:, None] if k == 1 else table[None]
        if table.shape[1] != k:
            raise ValueError(f"c must have {k} columns, as in fit(X, c=c), got {table.shape[1]}")
        names = names_of(c)
        if names and self.names and names != self.names:
            raise ValueError(
                f"c must have the columns {self.names} in this order, as in fit, got {names}"
            )
        return np.broadcast_to(self._scaled(table), (rows, k))

    def _scaled(self, c: Array) -> Array:
        u = (c - self.mean) / self.scale
        return np.where(self.far, np.arcsinh(u), u)


def _array(c: Any) -> Array:
    return check_array(c, dtype=np.float64, ensure_2d=False, input_name="c")
