"""The instrument: a filter, a curve and a filter, the same for all examples.

Recorded signals have passed through such a chain: a microphone, a compander and a room; or a lens,
a tone curve and a sharpening. A histogram cannot undo it, because the last filter hides the curve
from the marginals. Whitening cannot undo it, because the curve hides the first filter from the
covariances.
"""

import math

import torch
from torch import Tensor, nn

from indm.checks import require
from indm.flows.base import ExactFlow, Mapped
from indm.flows.coupling import (
    SharedSpline,
    batch_of_channels,
    rows_of_channels,
    usual_bound,
)
from indm.tensors import Batch, full_precision

AT_BOUND = 0.98  # share of the bound from which a log-gain is said to stand at it


class CircularFilter(nn.Module):
    """A positive or complex gain for each frequency of a circle or a torus, 1 at first.

    A real frequency, which is its own negative (0, and half of an even size), has a positive gain. The others come in
    pairs k and −k of one log-gain and opposite phases, so that real signals stay real.

    Args:
        channels: each has its own gains.
        size: (H, W) of the torus; (1, D) is a circle.
        most: bound of the absolute log-gains.
    """

    def __init__(self, channels: int, size: tuple[int, int], most: float):
        super().__init__()
        self.size, self.most = size, most
        height, width = size
        half = width // 2 + 1
        column = torch.arange(height)[:, None].expand(height, half)
        row = torch.arange(half).expand(height, half)
        code = column * width + row
        negative = (-column % height) * width + (-row % width)
        own = torch.minimum(code, negative)  # the frequency that has the parameters of k and −k
        self.modes, place = own.unique(return_inverse=True)
        is_real = torch.zeros(len(self.modes), dtype=torch.bool)
        is_real[place[code == negative]] = True
        n_pairs = int((~is_real).sum())
        turn = torch.where(is_real[place], 0, torch.where(code == own, 1, -1))
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("turn", turn, persistent=False)
        self.register_buffer(
            "pair", ((~is_real).cumsum(0) - 1)[place].clamp_min(0), persistent=False
        )
        self.register_buffer("times", torch.where(is_real, 1, 2), persistent=False)
        self.log_gain = nn.Parameter(torch.zeros(channels, len(self.modes)))
        self.phase = nn.Parameter(torch.zeros(channels, max(n_pairs, 1)))

    def logs(self) -> Tensor:
        """The log-gain of each mode within its bound, (C, modes)."""
        return self.most * (self.log_gain / self.most).tanh()

    def gain(self) -> Tensor:
        """The complex gains as ``torch.fft.rfft2`` orders frequencies, (C, H, W // 2 + 1)."""
        phase = self.phase[:, self.pair] * self.turn
        return torch.polar(self.logs().exp()[:, self.place], phase)

    def mean_log(self) -> Tensor:
        """The mean log-gain over all frequencies, (C,)."""
        return (self.logs() * self.times).sum(1) / self.times.sum()

    def log_det(self) -> Tensor:
        """log|det| of the filter on all channels, a number."""
        return (self.logs() * self.times).sum()

    def forward(self, x: Tensor, inverted: bool = False) -> Tensor:
        """x (B, C, H, W) filtered, or with the filter undone."""
        gain = 1 / self.gain() if inverted else self.gain()
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, self.size)

    def at_bound(self) -> list[str]:
        """The frequencies whose log-gain stands at its bound, as text."""
        stands = (self.logs().abs() >= AT_BOUND * self.most).nonzero().tolist()
        names = []
        for channel, mode in stands:
            column, row = divmod(int(self.modes[mode]), self.size[1])
            frequency = str(row) if self.size[0] == 1 else f"({column}, {row})"
            names.append(
                f"{frequency} of channel {channel}" if len(self.log_gain) > 1 else frequency
            )
        return names


class InstrumentFlow(ExactFlow):
    """A filter, a monotone spline and a filter, z = G ψ(F x): the inverse of an instrument.

    The instrument x = A₂ φ(A₁ u), with u = z, is the same for all examples. Signals lie on a circle,
    images on a torus. log|det| and inverse are exact and cost two Fourier transforms a filter. It
    starts at the identity. A signal of 64 points has 175 parameters.

    The attribute ``gain`` and the method ``curve`` give the instrument. Data determine it up to

    - *scale*: A₁ → aA₁ with φ(·) → φ(·/a) is the same instrument, and so is φ → bφ with A₂ → A₂/b.
      Here the gains of each filter have the geometric mean 1 over all frequencies, and the curve
      has the scales.
    - *sign*: the gains at frequency 0 are positive, and φ increases. Gains at half of the sampling
      rate are positive up to the delay. For an instrument of the other sign, multiply x by −1.
    - *delay*: A₁ → A₁S with A₂ → S⁻¹A₂ is the same instrument for a shift S. Here the largest entry
      of A₂'s response to an impulse is at place 0. If the law of u is stationary, u has a free
      delay of its own.
    - *phase*: a stationary Gaussian u on the circle does not determine the phases of A₁, which then
      stay 0 up to the delay. The flow alone, trained by `flow_loss`, only finds |A₁|. A diffusion
      behind it also finds the phases.

    Args:
        shape: event shape, (D,) or (C, H, W). Each channel has filters and a curve of its own.
        bins, bound: of the spline, see :class:`CouplingFlow`; outside of [−bound, bound] the curve
            is a line.
        max_log_gain: bound of the log-gains, positive and finite. If data have no power at a
            frequency, the log-gain moves to the bound, and training warns of it
            (:meth:`at_bounds`).

    Example: it starts at the identity, with an instrument that does nothing.

        >>> flow, x = InstrumentFlow((64,)), torch.randn(5, 64)
        >>> sum(parameter.numel() for parameter in flow.parameters())
        175
        >>> torch.allclose(flow(x)[0], x, atol=1e-5), flow.gain.shape
        (True, torch.Size([2, 33]))
        >>> torch.allclose(flow.curve(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 2.0]))
        True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bins: int = 16,
        bound: float | None = None,
        max_log_gain: float = 3.0,
    ):
        super().__init__()
        shape = tuple(shape)
        require(len(shape) in (1, 3), "shape", shape, "(D,) for signals or (C, H, W) for images")
        bound = usual_bound(shape) if bound is None else bound
        self.shape, self.bins, self.bound, self.max_log_gain = shape, bins, bound, max_log_gain
        self.torus = shape if len(shape) == 3 else (1, 1, shape[0])
        channels, *size = self.torus
        self.first = CircularFilter(channels, (size[0], size[1]), max_log_gain)
        self.last = CircularFilter(channels, (size[0], size[1]), max_log_gain)
        self.spline = SharedSpline(bins, bound)
        self.raw = nn.Parameter(torch.zeros(channels, self.spline.size))

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        self._check(x)
        with full_precision(x.device):
            y = self.first(x.unflatten(1, self.torus) if x.ndim == 2 else x)
            z, log_slope = self.spline(rows_of_channels(y), self.raw)
            z = self.last(batch_of_channels(z, y)).reshape(x.shape)
            log_det = batch_of_channels(log_slope, y).flatten(1).sum(1)
            return z, log_det + self.first.log_det() + self.last.log_det()

    def inverse_step(self, z: Batch) -> Batch:
        self._check(z)
        with full_precision(z.device):
            y = self.last(z.unflatten(1, self.torus) if z.ndim == 2 else z, inverted=True)
            x = batch_of_channels(self.spline.inverse(rows_of_channels(y), self.raw), y)
            return self.first(x, inverted=True).reshape(z.shape)

    @property
    def gain(self) -> Tensor:
        """The complex gains of the instrument's filters A₁ and A₂, in the convention of the class.

        They are (2, D // 2 + 1) for signals, as ``torch.fft.rfft`` orders frequencies, and (2, C, H, W // 2 + 1) for
        images, as ``torch.fft.rfft2`` does.
        """
        first, last = 1 / self.last.gain(), 1 / self.first.gain()
        first = first * self.last.mean_log().exp()[:, None, None]
        last = last * self.first.mean_log().exp()[:, None, None]
        delay = self._delay(last)
        gains = torch.stack([first * delay, last / delay])
        return gains[:, 0, 0] if len(self.shape) == 1 else gains

    def curve(self, v: Tensor) -> Tensor:
        """φ(v) of the instrument x = A₂ φ(A₁ u), entry by entry, in the convention of the class.

        v has any shape for one channel, and (C, …) for several, each of which has a curve of its own.
        """
        rows = v.reshape(len(self.raw), -1)
        before, after = self.last.mean_log(), self.first.mean_log()
        inner = self.spline.inverse(rows * (-before).exp()[:, None], self.raw)
        return (inner * (-after).exp()[:, None]).reshape(v.shape)

    def at_bounds(self) -> list[str]:
        notes = []
        for name, part in {"first": self.first, "last": self.last}.items():
            stands = part.at_bound()
            if stands:
                shown = ", ".join(stands[:5]) + (", …" if len(stands) > 5 else "")
                notes.append(
                    f"log-gains of the flow's {name} filter stand at max_log_gain={self.max_log_gain:g} at "
                    f"{len(stands)} frequencies ({shown})"
                )
        return notes

    def _delay(self, gain: Tensor) -> Tensor:
        """The gain of the whole delay that the filter ``gain`` has, (C, H, W // 2 + 1)."""
        _, height, width = self.torus
        place = torch.fft.irfft2(gain, (height, width)).abs().flatten(1).argmax(1)[:, None, None]
        column = torch.arange(height).to(gain.real)[:, None] * (place // width) / height
        row = torch.arange(width // 2 + 1).to(gain.real) * (place % width) / width
        angle = -2 * math.pi * (column + row)
        return torch.polar(torch.ones_like(angle), angle)

    def _check(self, x: Tensor) -> None:
        """ValueError for another shape, whose transform might fit."""
        require(x.shape[1:] == self.shape, "x", tuple(x.shape), f"of event shape {self.shape}")
