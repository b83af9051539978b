"""The affine map between data units and model units, and what it adds to a log-density."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from indm.checks import require
from indm.tensors import double, rand_like, widest

# to_model's noise is then half a level wide; with twice as many it would have no width
MOST_LEVELS = 2**20
AT_ONCE = 2**22  # numbers held in double precision at a time


def check_levels(levels: int) -> None:
    """ValueError for a number of grey levels that cannot be dequantized."""
    whole = levels % 1 == 0 and levels >= 2
    require(
        whole,
        "levels",
        levels,
        "at least 2 grey levels, a whole number, or None for continuous data",
    )
    require(
        levels <= MOST_LEVELS,
        "levels",
        levels,
        f"at most {MOST_LEVELS:,} grey levels",
        "store floats instead",
    )


def least_std(mean: Tensor, share: float) -> Tensor:
    """The deviation up to which numbers of that mean are constant: a share of it, or what single
    precision holds.
    """
    return (share * mean.abs()).clamp_min(torch.finfo(torch.float32).tiny)


class Scaling(nn.Module):
    r"""``x = (raw + u − shift) / scale``; ``u`` is dequantization noise where the data have grey
    levels.

    The noise (see :mod:`indm.dequantization`) lies in [m, 1 − m], m = :attr:`margin`, so that
    rounding carries no value into the next grey level.

    Args:
        shift, scale: numbers, or tensors that broadcast against one event (each feature
            standardised by itself).
        levels: number of grey levels 0 … levels−1 of integer data; None for continuous data.

    A log-density of ``x`` becomes one of the raw data by adding :meth:`log_volume`. With grey
    levels the result is a lower bound of their log-probability, −log P(raw) ≤ E[−log p(x) + log
    q(u)].

    >>> Scaling.images(levels=256).centre(torch.tensor([0, 128, 255]))  # the middles of the bins
    tensor([-0.9961,  0.0039,  0.9961])
    """

    def __init__(
        self, shift: Tensor | float = 0.0, scale: Tensor | float = 1.0, levels: int | None = None
    ):
        super().__init__()
        if levels is not None:
            check_levels(levels)
        self.levels = levels
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        require(
            bool((self.scale > 0).all()),
            "scale",
            scale,
            "positive",
            "give constant features a scale of 1",
        )

    @property
    def margin(self) -> float:
        """m, in grey levels; 0 for continuous data."""
        return 0.0 if self.levels is None else self.levels * 2.0**-22

    def is_identity(self) -> bool:
        """Whether model units are data units, as with ``Scaling()``."""
        return self.levels is None and bool((self.shift == 0).all() and (self.scale == 1).all())

    @classmethod
    def images(cls, levels: int = 256, centered: bool = True) -> "Scaling":
        """Grey levels to [−1, 1] (``centered``) or to [0, 1]."""
        return cls(levels / 2, levels / 2, levels) if centered else cls(0.0, float(levels), levels)

    @classmethod
    def between(cls, low: float = -1.0, high: float = 1.0, levels: int = 256) -> "Scaling":
        """Grey level 0 to ``low`` and the last one to ``high``, as networks see them that were
        trained without noise.

        >>> Scaling.between(-1, 1).centre(torch.tensor([0, 255]))
        tensor([-1.,  1.])
        """
        check_levels(levels)
        require(low != high, "high", high, f"another number than low, {low:g}")
        width = (levels - 1) / (high - low)  # grey levels in one model unit
        return cls(0.5 - low * width, width, levels)

    @classmethod
    def standardise(cls, vectors: Tensor) -> "Scaling":
        """Zero mean and unit variance for each feature of ``vectors`` (N, D, …); constant features
        keep scale 1.
        """
        require(len(vectors) > 0, "vectors", len(vectors), "at least 1 row")
        # in double precision, a part at a time
        parts = vectors.split(max(1, AT_ONCE // len(vectors)), dim=1)
        std, mean = map(
            torch.cat, zip(*(torch.std_mean(double(part), dim=0) for part in parts), strict=True)
        )
        return cls.from_moments(mean, std)

    @classmethod
    def standardise_parts(cls, parts: Iterable[Tensor]) -> "Scaling":
        """:meth:`standardise` of rows that come a part (n, …) at a time, each once; of two rows or
        more.
        """
        count = 0
        for part in parts:
            if count == 0:
                first = double(part[0])
                total, squares = torch.zeros_like(first), torch.zeros_like(first)
            shifted = double(part) - first  # so that the squares do not cancel
            total += shifted.sum(0)
            squares += shifted.square().sum(0)
            count += len(part)
        mean = total / count
        return cls.from_moments(
            first + mean, ((squares - count * mean**2) / (count - 1)).clamp(min=0).sqrt()
        )

    @classmethod
    def from_moments(cls, mean: Tensor, std: Tensor) -> "Scaling":
        """Data of that mean and deviation to zero mean and unit variance; constant features keep
        scale 1, and ValueError where all are constant.
        """
        varies = std > least_std(mean, 1e-8)
        require(
            bool(varies.any()),
            "data",
            f"{std.numel()} constant ones",
            "of one feature that varies, at least",
        )
        return cls(mean, torch.where(varies, std, torch.ones_like(std)))

    def check(self, raw: Tensor, shape: tuple[int, ...] | None = None) -> None:
        """ValueError unless ``raw`` is a tensor of data in data units, of events of that ``shape``
        where it is given.

        Data with grey levels must be whole numbers 0 … ``levels`` − 1. Except for uint8 with 256
        levels, the host waits for the device of ``raw``.

        >>> Scaling.images(256).check(torch.tensor([[0.0, 0.5, 1.0]]))
        Traceback (most recent call last):
        ValueError: raw must be whole numbers 0 … 255, got float32 from 0 to 1; multiply floats in [0, 1] by 255
        """
        if (
            not isinstance(raw, Tensor)
            or raw.ndim < 2
            or tuple(raw.shape[1:]) != tuple(shape or raw.shape[1:])
        ):
            wanted = "(n, …)" if shape is None else f"(n, {', '.join(map(str, shape))})"
            got = type(raw).__name__ if not isinstance(raw, Tensor) else f"shape {tuple(raw.shape)}"
            raise ValueError(f"raw must be a tensor of shape {wanted} in data units, got {got}")
        if (
            self.levels is None
            or not raw.numel()
            or (raw.dtype is torch.uint8 and self.levels >= 256)
        ):
            return
        low, high, most = raw.min().item(), raw.max().item(), self.levels - 1
        if low < 0 or high > most or (raw.is_floating_point() and bool((raw != raw.floor()).any())):
            hint = f"; multiply floats in [0, 1] by {most}" if 0 <= low <= high <= 1 else ""
            kind = str(raw.dtype).removeprefix("torch.")
            raise ValueError(
                f"raw must be whole numbers 0 … {most}, got {kind} from {low:g} to {high:g}{hint}"
            )

    def to_model(self, raw: Num[Tensor, "batch *event"], *, generator=None) -> Tensor:
        """Raw data to model units, in ``scale``'s dtype; adds uniform dequantization noise where
        there are levels.

        A model may have other noise: see :func:`indm.dequantization.from_data`.
        """
        raw = raw.to(self.scale)
        return (
            (raw - self.shift) / self.scale
            if self.levels is None
            else self.place(raw, rand_like(raw, generator))
        )

    def place(self, raw: Num[Tensor, "batch *event"], u: Float[Tensor, "batch *event"]) -> Tensor:
        """Grey levels with noise ``u`` in [0, 1] to model units, the noise squeezed into [m, 1 −
        m].
        """
        return (
            raw.to(self.scale) + self.margin + (1 - 2 * self.margin) * u - self.shift
        ) / self.scale

    def centre(self, raw: Num[Tensor, "batch *event"]) -> Tensor:
        """Raw data to model units without noise, grey levels to the middle of their interval."""
        half = 0.5 if self.levels is not None else 0.0
        return (raw.to(self.scale) + half - self.shift) / self.scale

    def to_data(self, x: Tensor) -> Tensor:
        """Model units to raw data: grey levels as integers (floored and clamped), or continuous
        values.
        """
        if self.levels is None:
            return x * self.scale + self.shift
        return self.level(x).to(torch.uint8 if self.levels <= 256 else torch.int32)

    def level(self, x: Tensor) -> Tensor:
        """The grey level in whose bin each entry of ``x`` lies, as int64; the first or last one
        beyond them.
        """
        assert self.levels is not None, "continuous data have no grey levels"
        return (x * self.scale + self.shift).floor().clamp(0, self.levels - 1).long()

    def log_volume(self, shape) -> float:
        """Σ log((1 − 2m)/scale), nats: what a unit of raw data, or the noise of one grey level,
        fills in model units.
        """
        return self._log_volume(shape).item()

    def log_volume_on_device(self, shape) -> Float[Tensor, ""]:
        """:meth:`log_volume` as a number of the device, for which the host need not wait, in its
        widest float.
        """
        return self._log_volume(shape).to(self.scale.device, widest(self.scale.device))

    def _log_volume(self, shape) -> Float[Tensor, ""]:
        log_scale = double(self.scale).log().expand(tuple(shape)).sum()
        return math.prod(shape) * math.log1p(-2 * self.margin) - log_scale
