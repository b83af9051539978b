"""A joint density at fixed values of some columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from indm.tables import solve
from indm.tables.columns import Array
from indm.tables.encoding import are_missing

# rows drawn for ranges before the draw is given up, or 100 for each row asked for
MOST_DRAWN = 50_000


def conditional(estimator: Any, given: Mapping[Any, Any]) -> "Conditional":
    """The density of all columns that are not ``given``: ``{"age": 30}``, by index or name.

    A pair is a range of numbers, ends included: ``{"age": (30, 40), "income": (None, 1e5)}``.
    Several categories are a set: ``{"city": ["Oslo", "Berlin"]}``. Both take draws only.
    ValueError for what is unknown, impossible, or out of bounds.
    """
    check_is_fitted(estimator)
    row = np.full((1, estimator.n_features_in_), np.nan, dtype=object)
    ranges: dict[int, Any] = {}
    for column, value in dict(given).items():
        i = estimator._index(column, "given")
        kind = estimator.encoding_.columns[i]
        if not np.ndim(value):
            row[0, i] = value
        elif kind.is_named:
            ranges[i] = np.array(value, dtype=object)
            kind.encoded(ranges[i])
        else:
            ranges[i] = estimator._interval_of(i, value, "a range in given")
    estimator._answers.check_possible(row)
    return Conditional(estimator, row[0], ranges)


@dataclass(frozen=True)
class Conditional:
    """The density of a table's columns at fixed values of others, from
    :meth:`JointDensityEstimator.conditional`.

    ``row`` has the given values, and NaN in other columns; ``ranges`` low and high, or categories,
    of columns by index.
    """

    estimator: Any
    row: Array
    ranges: Mapping[int, Any]

    @property
    def _is_given(self) -> Array:
        return ~are_missing(self.row)

    def score_samples(self, X) -> np.ndarray:
        """log p of rows ``X`` (n, columns), nats (n,), whose given columns are replaced; ValueError
        where a range is given.
        """
        if self.ranges:
            raise ValueError(
                "score_samples needs values in given, not ranges, which draws alone take"
            )
        X = self.estimator._validated(X, reset=False).astype(object)
        given = np.tile(self._is_given, (len(X), 1))
        X[:, self._is_given] = self.row[self._is_given]
        return self.estimator._answers.log_prob(X, ~given, given, solve.SOLVER_ERROR)

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        steps: int | None = None,
        gaps: bool = False,
    ) -> Any:
        """Whole rows, (n_samples, columns), with the given values in their columns; ``gaps`` are
        only in others.

        Rows outside of ranges are rejected. ValueError where too few of 50,000 draws, or of 100 for
        each row, are inside.
        """
        rng = check_random_state(random_state)
        found = self._inside(n_samples, rng, steps)
        if gaps:
            masks, counts = self.estimator.gaps_
            missing = masks[rng.choice(len(masks), n_samples, p=counts / counts.sum())]
            found[missing & ~self._is_given] = np.nan
        return self.estimator._as_fitted(found)

    def _inside(self, n: int, rng: np.random.RandomState, steps: int | None) -> Array:
        """``n`` rows inside all ranges."""
        steps = self.estimator.sampling_steps_ if steps is None else steps
        found = self._drawn(n, rng, steps)
        drawn = n
        with solve.bar_of(n, "draws in the ranges", self.estimator.progress) as bar:
            while len(found) < n:
                if drawn >= max(MOST_DRAWN, 100 * n):
                    few = f"{len(found)} of {drawn:,} draws in them, too few for n_samples={n}"
                    raise ValueError(f"given has ranges with {few}; widen them, or draw fewer rows")
                wanted = 1.2 * drawn * (n - len(found)) / max(len(found), 0.1)
                more = min(solve.ROWS_AT_ONCE, math.ceil(wanted))
                found = np.concatenate([found, self._drawn(more, rng, steps)])
                drawn += more
                bar.update(len(found) - bar.n)
        return found[:n]

    def _drawn(self, n: int, rng: np.random.RandomState, steps: int) -> Array:
        """The rows inside all ranges among ``n`` draws."""
        rows = self.estimator._answers.filled(np.tile(self.row, (n, 1)), rng, steps)
        inside = np.ones(n, dtype=bool)
        for i, allowed in self.ranges.items():
            if isinstance(allowed, tuple):
                low, high = allowed
                values = rows[:, i].astype(float)
                inside &= (low <= values) & (values <= high)
            else:
                inside &= np.isin(rows[:, i], allowed)
        return rows[inside]
