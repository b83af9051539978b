"""Missing entries of a table filled by draws, and odd entries found, by a joint density."""

from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from indm.checks import require
from indm.tables.columns import Array
from indm.tables.encoding import are_missing
from indm.tables.named import is_frame


def imputed(estimator: Any, X: Any, n: int | None, random_state: Any) -> Any:
    """See :meth:`indm.JointDensityEstimator.impute`."""
    check_is_fitted(estimator)
    copies = 1 if n is None else n
    require(copies >= 1, "n", n, "at least 1, or None for one table")
    index = X.index if is_frame(X) else None
    X = estimator._validated(X, reset=False)
    answers = estimator._answers
    answers.check_possible(X)
    rng = check_random_state(random_state)
    known = np.tile(answers.near(X), (copies, 1))
    steps = estimator.sampling_steps_
    filled = answers.filled(np.tile(X, (copies, 1)), rng, steps, known)
    tables = [estimator._as_fitted(table, index) for table in np.split(filled, copies)]
    return tables[0] if n is None else tables


def log_prob_cells(estimator: Any, table: Any, tol: float) -> Array:
    """See :meth:`indm.JointDensityEstimator.log_prob_cells`."""
    check_is_fitted(estimator)
    X = estimator._validated(table, reset=False)
    answers = estimator._answers
    there = ~are_missing(X)
    scored = there & [not column.is_absent for column in answers.encoding.columns]
    # column by column, so that few questions are in a batch
    columns, rows = np.nonzero(scored.T)
    asked = np.eye(X.shape[1], dtype=bool)[columns]
    given = (there & answers.near(X))[rows] & ~asked
    own = np.arange(X.shape[1])[estimator._places(table)]  # where ``table`` has each column
    found = np.full(X.shape, np.nan)
    found[rows, own[columns]] = answers.log_prob(X[rows], asked, given, tol)
    return found
