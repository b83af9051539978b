"""One monotone spline of grey levels for all entries of an event: the least flow that can warp a histogram."""

import math

import torch
from torch import Tensor, nn

from indm.flows.base import ExactFlow
from indm.flows.coupling import RationalQuadratic, usual_bound
from indm.tensors import Batch, PerSample


class SharedSpline(RationalQuadratic):
    """The spline with the same parameters in a whole row: y (G, N), raw parameters (G, size)."""

    def _bin(self, v: Tensor, raw: Tensor, along: int) -> tuple[Tensor, ...]:
        knots = self._knots(raw[:, : 2 * self.bins])
        slopes = self._slopes(self._padded(raw[:, 2 * self.bins :]))
        lower, size = knots[..., :-1], knots.diff()
        bins = torch.stack([lower[:, 0], size[:, 0], lower[:, 1], size[:, 1], slopes[:, :-1], slopes[:, 1:]])
        index = torch.searchsorted(knots[:, along, 1:-1].detach().contiguous(), v.detach().contiguous(), right=True)
        index = index + self.bins * torch.arange(len(raw), device=v.device)[:, None]
        return bins.flatten(1).index_select(1, index.flatten()).unflatten(1, v.shape).unbind()


class ElementwiseFlow(ExactFlow):
    """The same monotone rational-quadratic spline for all entries, or one for each channel or entry.

    It starts at the identity. It changes the histogram of grey levels and knows nothing of an image: 23 parameters.
    Under uniform dequantization every common grey level is a box in the density, whose sharp edges such a spline learns
    in a few dozen steps. So a comparison with a flow that does more is fair only beside this one.

    Args:
        shape: event shape, (C, H, W) or (D,).
        shared: "all" for one spline, "channel" for one for each entry of the first axis, C or D, "none" for one for
            each entry of the event.
        bins, bound: of the spline, which lives on [−bound, bound]; None is 1.5 for images, which reach from −1 to 1,
            and 4 for vectors, which are standardised.

    Source: Durkan et al. 2019, "Neural Spline Flows", https://arxiv.org/abs/1906.04032.

    Example:

        >>> flow = ElementwiseFlow((3, 8, 8))
        >>> sum(parameter.numel() for parameter in flow.parameters())
        23
    """

    is_elementwise = True

    def __init__(self, shape: tuple[int, ...], shared: str = "all", bins: int = 8, bound: float | None = None):
        super().__init__()
        groups = {"all": 1, "channel": shape[0], "none": math.prod(shape)}
        if shared not in groups:
            raise ValueError(f'shared must be "all", "channel" or "none", got {shared!r}')
        bound = usual_bound(shape) if bound is None else bound
        self.shape, self.shared, self.bins, self.bound = tuple(shape), shared, bins, bound
        self.spline = SharedSpline(bins, bound)
        self.raw = nn.Parameter(torch.zeros(groups[shared], self.spline.size))

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        z, log_slope = self.spline(self._rows(x), self.raw)
        return self._batch(z, x), self._batch(log_slope, x).flatten(1).sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        return self._batch(self.spline.inverse(self._rows(z), self.raw), z)

    def _rows(self, x: Tensor) -> Tensor:
        """The entries that share a spline, (G, N)."""
        if self.shared == "none":
            return x.flatten(1).T
        return x.transpose(0, 1).flatten(1) if self.shared == "channel" else x.reshape(1, -1)

    def _batch(self, rows: Tensor, like: Tensor) -> Tensor:
        """What :meth:`_rows` made of ``like``, as a batch again."""
        if self.shared == "none":
            return rows.T.reshape(like.shape)
        if self.shared == "channel":
            return rows.unflatten(1, (len(like), *like.shape[2:])).transpose(0, 1)
        return rows.view(like.shape)
