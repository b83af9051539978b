"""Priors of simulators: the box of their support, or its map to the line, and their density."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints

# share of a box's width: a parameter outside by less was inside, before single floats rounded it
ROUNDING = 1e-6
CLEARANCE = 1e-7  # share of a box's width: how far inside such a parameter is then put

Array = np.ndarray


class Prior:
    """A law of d parameters θ, whose support is a box or the image of all vectors under a map.

    Below, *numbers* are θ if the support is a box. Otherwise they are the vectors that torch's map
    of the support takes to θ, like stick-breaking for a simplex. If torch has no map, they are θ
    without bounds.

    Args:
        law: None, for all of the line; low and high of a box, numbers or arrays (d,); or a torch
            distribution.
        d: parameters.
        whole: indices of those that are whole numbers, which may be on an end of the box.

    Attributes:
        low, high: of the numbers, (k,), infinite where there is no box.
        map: of numbers to θ; None where they are the same.

    Example:

        >>> prior = Prior(([0.0, -1.0], [2.0, 1.0]), 2)
        >>> prior.log_prob(np.array([[1.0, 0.0], [3.0, 0.0]])).round(4)  # −log 4
        array([-1.3863,    -inf])
    """

    def __init__(self, law: Any, d: int, whole: Any = ()):
        self.law = law
        self.is_none = law is None
        self.d = d
        self.map = None
        ends = (-np.inf, np.inf) if law is None else law
        if isinstance(law, Distribution):
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                self._like = law.sample()  # a draw, for its dtype and device
            ends, self.map = _support(law)
        low, high = ends
        k = d if self.map is None else self.map.inverse_shape((d,))[0]
        self.low = np.broadcast_to(array(low), (k,))
        self.high = np.broadcast_to(array(high), (k,))
        self.is_whole = np.isin(np.arange(len(self.low)), list(whole))

    @property
    def bounds(self) -> dict[int, tuple[float, float]] | None:
        """Low and high of each parameter, as :class:`indm.DensityEstimator` takes them; None
        without a prior.
        """
        if self.is_none:
            return None
        return dict(enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True)))

    @property
    def interval(self) -> Array:
        """Low and high, (2, d)."""
        return np.stack([self.low, self.high])

    def numbers(self, theta: Array) -> Array:
        """The numbers (n, k) of θ (n, d)."""
        return theta if self.map is None else self.map.inv(torch.from_numpy(theta)).numpy()

    def parameters(self, numbers: Array) -> Array:
        """θ (…, d) of numbers (…, k)."""
        return numbers if self.map is None else self.map(torch.from_numpy(numbers)).numpy()

    def log_volume(self, numbers: Array) -> Array:
        """log|det ∂θ/∂numbers|, (n,)."""
        if self.map is None:
            return np.zeros(len(numbers))
        u = torch.from_numpy(numbers)
        found = self.map.log_abs_det_jacobian(u, self.map(u)).numpy()
        return found.reshape(len(found), -1).sum(1)

    def within(self, theta: Array) -> Array:
        """``theta`` (n, d) with values that rounding put on an end of the box or just outside
        moved inside.
        """
        with np.errstate(invalid="ignore"):
            width = np.where(np.isfinite(self.high - self.low), self.high - self.low, 0)
        near = (
            (theta >= self.low - ROUNDING * width)
            & (theta <= self.high + ROUNDING * width)
            & ~self.is_whole
        )
        return np.where(
            near, theta.clip(self.low + CLEARANCE * width, self.high - CLEARANCE * width), theta
        )

    def drawn(self, theta: Array) -> Array:
        """The numbers of θ (n, d) that were drawn from this prior; ValueError outside of its box."""
        numbers = self.within(self.numbers(theta))
        outside = np.argwhere((numbers < self.low) | (numbers > self.high))
        if len(outside):
            row, i = outside[0]
            box = f"where it is from {self.low[i]:g} to {self.high[i]:g}"
            got = f"{numbers[row, i]:g} in row {row} of parameter {i}"
            raise ValueError(f"theta must be drawn from the prior, got {got}, {box}")
        return numbers

    def log_prob(self, theta: Array) -> Array:
        """Nats, (n,), of numbers ``theta`` (n, k); −∞ outside of the box; ValueError for a law
        without a density.
        """
        is_law = isinstance(self.law, Distribution)
        if not (is_law or np.isfinite(self.interval).all()):
            raise ValueError(
                "prior must have a density for several observations: give a finite box or a distribution"
            )
        inside = ((theta >= self.low) & (theta <= self.high)).all(1)
        found = np.full(len(theta), -np.inf)
        if is_law:
            found[inside] = self._log_prob(theta[inside])
        else:
            found[inside] = -np.log(self.high - self.low).sum()
        return found

    def _log_prob(self, theta: Array) -> Array:
        """By a law of vectors, or by d independent laws of numbers, in its own precision and inside
        its support.
        """
        if self.map is not None:
            return array(
                self.law.log_prob(self.map(torch.from_numpy(theta)).to(self._like))
            ) + self.log_volume(theta)
        rounded, low, high = (
            torch.tensor(part, dtype=self._like.dtype) for part in (theta, *self.interval)
        )
        inner = rounded.clamp(low.nextafter(high), high.nextafter(low))
        values = torch.where(torch.from_numpy(self.is_whole), rounded, inner)
        log_p = array(self.law.log_prob(values.to(self._like.device)))
        return log_p.sum(1) if log_p.ndim == 2 else log_p


def array(rows: Any, dtype: Any = np.float64) -> Array:
    """Numbers as an array; a tensor may be on any device."""
    return np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows, dtype=dtype)


def finite(rows: Any, name: str, may_miss: bool = False) -> Array:
    """:func:`array`, or ValueError where an entry is not a real number, is infinite, or missing
    unless it may be.
    """
    given = array(rows, None)
    # not complex numbers, nor dates
    casting: Any = "unsafe" if given.dtype == object else "same_kind"
    found = given.astype(np.float64, casting=casting, copy=False)
    if not (np.isfinite(found) | (may_miss & np.isnan(found))).all():
        raise ValueError(
            f"{name} must be finite numbers, got {'infinity' if may_miss else 'NaN or infinity'}"
        )
    return found


def _support(law: Distribution) -> tuple[tuple[Any, Any], Transform | None]:
    """Low and high of the numbers of a law, and the map of numbers to θ where its support is not a
    box.
    """
    line = -np.inf, np.inf
    try:
        ends = _ends(law.support)
        return (line, biject_to(law.support)) if ends is None else (ends, None)
    except NotImplementedError:  # a law that does not say its support, or one without a map
        return line, None


def _ends(support: Any) -> tuple[Any, Any] | None:
    """Low and high of a support that is a box, else None."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.cat):
        parts = [(_ends(part), n) for part, n in zip(support.cseq, support.lengths, strict=True)]
        if any(ends is None for ends, _ in parts):
            return None
        low, high = np.concatenate(
            [[np.broadcast_to(array(end), n) for end in ends] for ends, n in parts if ends], 1
        )
        return low, high
    bounded = hasattr(support, "lower_bound"), hasattr(support, "upper_bound")
    if support is not constraints.real and not any(bounded):
        return None
    return (support.lower_bound if bounded[0] else -np.inf), (
        support.upper_bound if bounded[1] else np.inf
    )
