"""A lower bound of the mean log p of rows, without an ODE."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from indm.checks import require
from indm.tables import solve
from indm.tables.fit import bounds_of
from indm.tables.rows import noisy


def score_bound(
    estimator: Any, X: Any, c: Any, pairs: int, random_state: Any
) -> tuple[float, float]:
    """See :meth:`indm.DensityEstimator.score_bound`."""
    check_is_fitted(estimator)
    require(2 <= pairs <= solve.ROWS_AT_ONCE, "pairs", pairs, f"in [2, {solve.ROWS_AT_ONCE}]")
    X = estimator._read(X)
    c = estimator.standardised(c, len(X))
    if len(estimator.possible(X, c)) < len(X):
        return -math.inf, 0.0
    rng = check_random_state(random_state)
    generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))
    size = max(1, solve.ROWS_AT_ONCE // pairs)
    draws = pairs if len(estimator._whole) else 1  # of the noise in the discrete columns
    each = []
    for rows, at_c in zip(solve.batched(X, size), solve.batched(c, size), strict=True):
        repeated = np.repeat(rows[:, estimator.varies_], draws, axis=0)
        x = noisy(repeated, estimator._whole, rng)
        c_of_x = np.repeat(at_c, draws, axis=0)
        z = torch.from_numpy(estimator.columns_.latents(x, c_of_x))
        at, n = torch.from_numpy(c_of_x), pairs // draws
        bounds = [bounds_of(model, z, at, n, generator) for model in estimator.models_]
        values = torch.stack(bounds).mean(0).numpy() + estimator.columns_.log_volume(x)[:, None]
        each.append(values.reshape(len(rows), pairs))
    values = np.concatenate(each)
    error = np.sqrt(values.var(1, ddof=1).sum() / pairs) / len(values)
    return float(values.mean()), float(error)
