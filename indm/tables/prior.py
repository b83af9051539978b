"""Priors of simulators: the box of their support, and their density."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

ROUNDING = 1e-6  # of a box's width: a parameter that far outside of it is inside, but for the rounding of single floats
CLEARANCE = 1e-7  # of a box's width: how far inside it is then put

Array = np.ndarray


class Prior:
    """A law of d parameters whose support is a box.

    Args:
        law: None, for all of the line; low and high of a box, numbers or arrays (d,); or a torch distribution.
        d: parameters.
        whole: indices of those that are whole numbers, which may be on an end of the box.

    Raises:
        ValueError: the support is not a box of d parameters, or low is above high.

    Example:

        >>> prior = Prior(([0.0, -1.0], [2.0, 1.0]), 2)
        >>> prior.log_prob(np.array([[1.0, 0.0], [3.0, 0.0]])).round(4)  # −log 4
        array([-1.3863,    -inf])
    """

    def __init__(self, law: Any, d: int, whole: Any = ()):
        self.law, self.is_none, self.is_whole = law, law is None, np.isin(np.arange(d), list(whole))
        if isinstance(law, Distribution):
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                self._like = law.sample()  # of its dtype and device
        ends: Any = (-np.inf, np.inf) if law is None else _ends(law.support) if isinstance(law, Distribution) else law
        if not hasattr(ends, "__len__") or len(ends) != 2:
            raise ValueError(f"prior must be a pair (low, high), or a torch distribution, got {ends!r}")
        try:
            self.low, self.high = (np.broadcast_to(array(end), (d,)) for end in ends)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"prior must have as ends numbers, or arrays of {d}, one for each column of theta, got shapes "
                f"{[np.shape(end) for end in ends]}; theta comes first in fit(theta, x)"
            ) from error
        for i in np.flatnonzero(self.low > self.high)[:1]:
            raise ValueError(
                f"prior must have low below high, got {self.low[i]:g} and {self.high[i]:g} for parameter {i}"
            )

    @property
    def bounds(self) -> dict[int, tuple[float, float]] | None:
        """Of :class:`indm.DensityEstimator`."""
        return None if self.is_none else dict(enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True)))

    @property
    def interval(self) -> Array:
        """Low and high, (2, d)."""
        return np.stack([self.low, self.high])

    def within(self, theta: Array) -> Array:
        """``theta`` (n, d) with what rounding put on an end of the box, or just outside of it, inside."""
        with np.errstate(invalid="ignore"):
            width = np.where(np.isfinite(self.high - self.low), self.high - self.low, 0)
        near = (theta >= self.low - ROUNDING * width) & (theta <= self.high + ROUNDING * width) & ~self.is_whole
        return np.where(near, theta.clip(self.low + CLEARANCE * width, self.high - CLEARANCE * width), theta)

    def log_prob(self, theta: Array) -> Array:
        """Nats, (n,), of ``theta`` (n, d); −∞ outside of the box.

        Raises:
            ValueError: it has no density, being None or an infinite box.
        """
        is_law = isinstance(self.law, Distribution)
        if not (is_law or np.isfinite(self.interval).all()):
            raise ValueError("prior must have a density for several observations: give a finite box or a distribution")
        inside, found = ((theta >= self.low) & (theta <= self.high)).all(1), np.full(len(theta), -np.inf)
        found[inside] = self._log_prob(theta[inside]) if is_law else -np.log(self.high - self.low).sum()
        return found

    def _log_prob(self, theta: Array) -> Array:
        """By a law of vectors, or by d independent laws of numbers, in its own precision and inside its support."""
        rounded, low, high = (torch.tensor(part, dtype=self._like.dtype) for part in (theta, *self.interval))
        inner = rounded.clamp(low.nextafter(high), high.nextafter(low))
        values = torch.where(torch.from_numpy(self.is_whole), rounded, inner)
        log_p = array(self.law.log_prob(values.to(self._like.device)))
        return log_p.sum(1) if log_p.ndim == 2 else log_p


def array(rows: Any, dtype: Any = np.float64) -> Array:
    """Numbers as an array, also those of a tensor on any device."""
    return np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows, dtype=dtype)


def finite(rows: Any, name: str, may_miss: bool = False) -> Array:
    """:func:`array`, or ValueError where an entry is not a real number, is infinite, or missing unless it may be."""
    given = array(rows, None)
    try:
        casting: Any = "unsafe" if given.dtype == object else "same_kind"  # not complex numbers, nor dates
        found = given.astype(np.float64, casting=casting, copy=False)
    except (TypeError, ValueError) as error:
        what = f"{name} must be real numbers, got {given.dtype}"
        raise ValueError(f"{what}; turn dates into numbers, such as days") from error
    if not (np.isfinite(found) | (may_miss & np.isnan(found))).all():
        raise ValueError(f"{name} must be finite numbers, got {'infinity' if may_miss else 'NaN or infinity'}")
    return found


def _ends(support: Any) -> tuple[Any, Any]:
    """Low and high of a support that is a box."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.cat):
        parts = zip(support.cseq, support.lengths, strict=True)
        low, high = np.concatenate([[np.broadcast_to(array(end), n) for end in _ends(part)] for part, n in parts], 1)
        return low, high
    bounded = hasattr(support, "lower_bound"), hasattr(support, "upper_bound")
    if support is not constraints.real and not any(bounded):
        raise ValueError(f"prior must have a box as its support, got {support}")
    return (support.lower_bound if bounded[0] else -np.inf), (support.upper_bound if bounded[1] else np.inf)
