"""Coupling flows: exact log-determinant and an exact inverse, both at the cost of one pass.

Sources: Dinh et al. 2017, "Real NVP", https://arxiv.org/abs/1605.08803; Kingma & Dhariwal 2018,
"Glow", https://arxiv.org/abs/1807.03039; Durkan et al. 2019, "Neural Spline Flows",
https://arxiv.org/abs/1906.04032.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import check_counts, check_word, require
from indm.conditions import Conditioned, features_of
from indm.flows.base import (
    TOLERANCE,
    ActNorm,
    Compose,
    ExactFlow,
    Flow,
    Inverse,
    Mapped,
    Squeeze,
    Unsqueeze,
)
from indm.tensors import Batch, event_size, expand_like, full_precision, zeroed

TransformName = Literal["affine", "spline"]
StartName = Literal["identity", "rotation"]


@runtime_checkable
class Transform(Protocol):
    """A monotone map of each entry, y ↦ z and log dz/dy, each (B, *event).

    Its raw parameters are (B, size, *event).
    """

    @property
    def size(self) -> int: ...

    def __call__(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, z: Tensor, raw: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Affine:
    """y ↦ y exp(s) + b with s = m tanh(a/m) for ``max_log_scale`` m.

    The raw parameters of each entry are (a, b); at 0 it is the identity.
    """

    max_log_scale: float = 1.0
    size = 2

    def __call__(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale(raw[:, 0]), raw[:, 1]
        return y * log_scale.exp() + shift, log_scale

    def inverse(self, z: Tensor, raw: Tensor) -> Tensor:
        """y that is mapped to z."""
        return (z - raw[:, 1]) * (-self._log_scale(raw[:, 0])).exp()

    def _log_scale(self, a: Tensor) -> Tensor:
        if math.isinf(self.max_log_scale):
            return a
        return self.max_log_scale * (a / self.max_log_scale).tanh()


class Bin(NamedTuple):
    """A piece of a spline, of each entry: y in [left, left + width] → z in [lower, lower + height]."""

    left: Tensor
    width: Tensor
    lower: Tensor
    height: Tensor
    left_slope: Tensor
    right_slope: Tensor


@dataclass(frozen=True)
class RationalQuadratic:
    """The monotone rational-quadratic spline on [−bound, bound]; outside it is the identity.

    It is the identity everywhere at raw parameters 0.

    Args:
        bins: number K of bins, 2 to 999; the raw parameters of an entry are K widths, K heights and
            K − 1 inner slopes.
        bound: half the side of the square in which the spline lives; slopes are 1 at its corners.
    """

    bins: int = 8
    bound: float = 1.5
    least = 1e-3  # smallest share of a bin in the side, and smallest slope of a knot

    def __post_init__(self):
        fits = 2 <= self.bins < 1 / self.least
        require(fits, "bins", self.bins, "2 to 999", "8 is usual")

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def __call__(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inside = y.abs() < self.bound
        within = torch.where(inside, y, torch.zeros_like(y))
        x0, width, y0, height, d0, d1 = self._bin(within, raw, along=0)
        slope = height / width
        u = (within - x0) / width
        quotient = slope + (d1 + d0 - 2 * slope) * u * (1 - u)
        z = y0 + height * (slope * u**2 + d0 * u * (1 - u)) / quotient
        rise = slope**2 * (d1 * u**2 + 2 * slope * u * (1 - u) + d0 * (1 - u) ** 2)
        log_slope = rise.log() - 2 * quotient.log()
        return torch.where(inside, z, y), torch.where(inside, log_slope, torch.zeros_like(y))

    def inverse(self, z: Tensor, raw: Tensor) -> Tensor:
        """y that is mapped to z: the root of a quadratic, in the form that does not cancel."""
        inside = z.abs() < self.bound
        within = torch.where(inside, z, torch.zeros_like(z))
        x0, width, y0, height, d0, d1 = self._bin(within, raw, along=1)
        slope, rise = height / width, within - y0
        excess = rise * (d1 + d0 - 2 * slope)
        a, b, c = height * (slope - d0) + excess, height * d0 - excess, -slope * rise
        u = 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0.0).sqrt())
        return torch.where(inside, x0 + width * u, z)

    def _bin(self, v: Tensor, raw: Tensor, along: int) -> Bin:
        """The bin in which ``v`` lies."""
        knots = self._knots(raw[:, : 2 * self.bins])
        index = (v.unsqueeze(1) >= knots[:, along, 1:-1]).sum(1, keepdim=True)
        ends = torch.cat([index, index + 1], dim=1)
        lower, upper = knots.gather(2, ends.unsqueeze(1).expand(-1, 2, *ends.shape[1:])).unbind(2)
        slopes = self._slopes(self._padded(raw[:, 2 * self.bins :]).gather(1, ends))
        size = upper - lower
        return Bin(lower[:, 0], size[:, 0], lower[:, 1], size[:, 1], slopes[:, 0], slopes[:, 1])

    def _slopes(self, raw: Tensor) -> Tensor:
        """Slopes of knots from raw ones; 1 from 0."""
        return self.least + (1 - self.least) * F.softplus(raw + math.log(math.e - 1))

    @staticmethod
    def _padded(raw: Tensor) -> Tensor:
        """Raw slopes of all knots, (B, K + 1, …), from those of the inner ones; 0 at both ends."""
        return F.pad(raw.transpose(1, -1), (1, 1)).transpose(1, -1)

    def _knots(self, raw: Tensor) -> Tensor:
        """Knots along x and y, (B, 2, K + 1, …), from raw widths and heights (B, 2 K, …)."""
        shares = self.least + (1 - self.least * self.bins) * raw.unflatten(
            1, (2, self.bins)
        ).softmax(2)
        inner = self.bound * (2 * shares[:, :, :-1].cumsum(2) - 1)
        end = torch.full_like(inner[:, :, :1], self.bound)
        return torch.cat([-end, inner, end], dim=2)


def usual_bound(shape: tuple[int, ...]) -> float:
    """The usual bound of a spline: images lie in [−1, 1], standardised vectors mostly in [−4, 4]."""
    return 1.5 if len(shape) == 3 else 4.0


def transform_of(
    transform: TransformName, bins: int, bound: float, max_log_scale: float
) -> Affine | RationalQuadratic:
    """The transform that a flow's options name, "spline" or "affine"."""
    transforms: dict[str, Affine | RationalQuadratic] = {
        "affine": Affine(max_log_scale),
        "spline": RationalQuadratic(bins, bound),
    }
    check_word("transform", transform, transforms)
    return transforms[transform]


class Conditioner(nn.Module):
    """The network from one half to the raw parameters of the other: (B, a, …) → (B, size, b, …).

    It has 3×3, 1×1 and 3×3 convolutions for images, channels-last for speed, and dense layers for
    vectors. A dense layer of a condition c of ``features`` numbers is added to the first layer. The
    output starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        width: int,
        image: bool,
        activation: Callable[[], nn.Module] = nn.SiLU,
        features: int = 0,
    ):
        super().__init__()
        self.size = size

        def layer(a: int, b: int, kernel: int) -> nn.Module:
            return nn.Conv2d(a, b, kernel, padding=kernel // 2) if image else nn.Linear(a, b)

        layers = [
            layer(inputs, width, 3),
            activation(),
            layer(width, width, 1),
            activation(),
            zeroed(layer(width, size * outputs, 3)),
        ]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if features:
            self.condition = nn.Linear(features, width, bias=False)

    def forward(self, a: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.layers[0](a)
        if c is not None:
            h = h + expand_like(self.condition(c), h)
        return self.layers[1:](h).to(a.dtype).unflatten(1, (self.size, -1))


class Coupling(Conditioned, ExactFlow):
    """(a, b) ↦ (a, T(b; θ(a, c))) for the two halves a and b of axis 1.

    Args:
        shape: event shape, (C, H, W) or (D,) with C or D at least 2.
        transform: T, which acts on each entry.
        width, activation, features: of the :class:`Conditioner` θ.
        flip: keep the second half and transform the first.

    Example: the first half stays as it is, so that the second can be found again.

        >>> flow, x = Coupling((4,), 8, Affine()), torch.randn(5, 4)
        >>> _ = nn.init.normal_(flow.conditioner.layers[-1].weight)
        >>> z, log_det = flow(x)
        >>> torch.equal(z[:, :2], x[:, :2]), torch.equal(z, x), torch.allclose(flow.inverse(z), x, atol=1e-4)
        (True, False, True)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        transform: Transform,
        flip: bool = False,
        activation: Callable[[], nn.Module] = nn.SiLU,
        features: int = 0,
    ):
        super().__init__()
        self.transform, self.flip, self.features = transform, flip, features
        self.sizes = [shape[0] // 2, shape[0] - shape[0] // 2]
        kept, moved = reversed(self.sizes) if flip else self.sizes
        self.conditioner = Conditioner(
            kept, moved, transform.size, width, len(shape) == 3, activation, features
        )

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.flip else (first, second)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.flip else [kept, moved], dim=1)

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        kept, moved = self._halves(x)
        moved, log_slope = self.transform(moved, self.conditioner(kept, self.seen(kept)))
        return self._join(kept, moved), log_slope.flatten(1).sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        kept, moved = self._halves(z)
        return self._join(
            kept, self.transform.inverse(moved, self.conditioner(kept, self.seen(kept)))
        )


def random_rotation(channels: int) -> Tensor:
    """A random orthogonal matrix (channels, channels), from the global random state."""
    return torch.linalg.qr(torch.randn(channels, channels)).Q


class InvertibleLinear(ExactFlow):
    """z = W x along axis 1, a 1×1 convolution of images.

    W = P L U with a unit lower triangular L. P and the signs of the diagonal of U are fixed.

    Args:
        channels: size of axis 1 of the batch.
        start: the initial W, "identity" or a random "rotation" (Glow's).

    Source: Kingma & Dhariwal 2018, "Glow", §3.2, https://arxiv.org/abs/1807.03039.

    Example: a rotation keeps lengths and volumes.

        >>> flow, x = InvertibleLinear(3, "rotation"), torch.randn(5, 3)
        >>> z, log_det = flow(x)
        >>> torch.allclose(z.norm(dim=1), x.norm(dim=1), atol=1e-4), torch.allclose(log_det, torch.zeros(5), atol=1e-4)
        (True, True)
    """

    def __init__(self, channels: int, start: StartName = "identity"):
        super().__init__()
        self.channels, self.start = channels, start
        starts: dict[str, Callable[[int], Tensor]] = {
            "identity": torch.eye,
            "rotation": random_rotation,
        }
        check_word("start", start, starts)
        weight = starts[start](channels)
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.off_diagonal = nn.Parameter(lower.tril(-1) + upper.triu(1))

    def _factors(self) -> tuple[Tensor, Tensor]:
        upper = self.off_diagonal.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.off_diagonal.tril(-1) + torch.eye(self.channels).to(upper), upper

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        with full_precision(x.device):
            lower, upper = self._factors()
            z = torch.einsum("ij,bj...->bi...", self.permutation @ lower @ upper, x)
        return z, (event_size(x) // self.channels * self.log_diagonal.sum()).expand(x.shape[0])

    def inverse_step(self, z: Batch) -> Batch:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(
            lower, self.permutation.mT, upper=False, unitriangular=True
        )
        return torch.einsum(
            "ij,bj...->bi...", torch.linalg.solve_triangular(upper, half, upper=True), z
        )


class SecondHalf(Flow):
    """A flow of the second half of the channels, between scales; the first half stays as it is.

    Args:
        flow: the flow of the second half, ⌈C/2⌉ of the C channels.

    Example: three of the five channels are standardised, two are as they were.

        >>> flow, x = SecondHalf(ActNorm(3)), 5 + 2 * torch.randn(100, 5)
        >>> flow.flow.initialize(x[:, 2:])
        >>> z, _ = flow(x)
        >>> torch.equal(z[:, :2], x[:, :2]), torch.allclose(z[:, 2:].std(0), torch.ones(3), atol=1e-4)
        (True, True)
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow, self.inverse_is_formula = flow, flow.inverse_is_formula

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        left, right = x.tensor_split([x.shape[1] // 2], dim=1)
        z, log_det = self.flow(right, generator=generator)
        return torch.cat([left, z], dim=1), log_det

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        left, right = z.tensor_split([z.shape[1] // 2], dim=1)
        x, residual, iterations, converged = self.flow.solve_inverse(right, tol=tol)
        converged = converged & left.flatten(1).isfinite().all(1)
        return Inverse(torch.cat([left, x], dim=1), residual, iterations, converged)


class CouplingFlow(Compose):
    """A coupling flow of images, in several scales, or of vectors, in one.

    Each step is an ActNorm, a 1×1 convolution and a coupling. A scale squeezes (space to depth),
    makes ``depth`` steps, passes half of its channels on to the next scale, and undoes the squeeze.
    So the latent has the shape of x, and its pixels stay in their places.

    Args:
        shape: event shape, (C, H, W) with H and W divisible by 2^scales, or (D,) with D at least 2.
        scales: number of scales of images.
        depth: coupling steps of each scale.
        width: hidden channels of the conditioners.
        transform: "spline" or "affine". The rational-quadratic spline can spread out values that
            many entries share, such as black and white, and fitted far better in our measurements.
        bins, bound: of the spline, which acts on [−bound, bound]; None is 1.5 for images, which
            reach from −1 to 1, and 4 for vectors, which are standardised.
        max_log_scale: bound of the affine log-scales, positive; inf leaves them free.
        start: of the 1×1 convolutions. With "identity" the whole flow starts at the identity, which
            is best for a diffusion (docs/choosing.md); "rotation" is Glow's.
        condition: (features,) of the condition that the conditioners see; () for none.

    Example: of images, at two scales; it starts at the identity.

        >>> flow, x = CouplingFlow((1, 8, 8), scales=2, depth=2, width=8), 2 * torch.rand(3, 1, 8, 8) - 1
        >>> z, log_det = flow(x)
        >>> torch.allclose(z, x, atol=1e-4), torch.allclose(log_det, torch.zeros(3), atol=1e-3)
        (True, True)
        >>> len(flow.flows), flow.inverse_is_formula
        (9, True)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scales: int = 1,
        depth: int = 4,
        width: int = 32,
        transform: TransformName = "spline",
        bins: int = 8,
        bound: float | None = None,
        max_log_scale: float | str = 1.0,
        start: StartName = "identity",
        condition: tuple[int, ...] = (),
    ):
        shape, max_log_scale, features = tuple(shape), float(max_log_scale), features_of(condition)
        bound = usual_bound(shape) if bound is None else bound
        kind = transform_of(transform, bins, bound, max_log_scale)
        check_counts(scales=scales, depth=depth, width=width)
        image, vector = len(shape) == 3, len(shape) == 1 and shape[0] >= 2
        require(image or vector, "shape", shape, "(C, H, W) for images or (D,) with D at least 2")
        if image and (shape[1] % 2**scales or shape[2] % 2**scales):
            divisible = f"height and width must be divisible by {2**scales}"
            raise ValueError(
                f"scales={scales} squeezes {scales} times, so {divisible}, got shape {shape}"
            )

        def steps(event: tuple[int, ...]) -> list[Flow]:
            flows: list[Flow] = []
            for i in range(depth):
                flows += [
                    ActNorm(event[0]),
                    InvertibleLinear(event[0], start),
                    Coupling(event, width, kind, i % 2 == 1, features=features),
                ]
            return flows

        def scale(event: tuple[int, ...], remaining: int) -> list[Flow]:
            event = (4 * event[0], event[1] // 2, event[2] // 2)
            finer = (
                [SecondHalf(Compose(scale((event[0] // 2, *event[1:]), remaining - 1)))]
                if remaining > 1
                else []
            )
            return [Squeeze(), *steps(event), *finer, Unsqueeze()]

        super().__init__(scale(shape, scales) if image else steps(shape))
        self.shape, self.scales, self.depth, self.width = shape, scales, depth, width
        self.transform, self.bins, self.bound = transform, bins, bound
        self.max_log_scale, self.start, self.condition = max_log_scale, start, tuple(condition)


@torch.no_grad()
def initialize_actnorms(flow: Flow, x: Batch) -> None:
    """Initialise every ActNorm in ``flow`` on this batch, in the order of the flow.

    Example: a flow that starts at the identity then standardises the batch.

        >>> flow, x = CouplingFlow((3,), transform="affine"), 5 + 2 * torch.randn(100, 3)
        >>> initialize_actnorms(flow, x)
        >>> z = flow.latent(x)
        >>> torch.allclose(z.mean(0), torch.zeros(3), atol=1e-3), torch.allclose(z.std(0), torch.ones(3), atol=1e-3)
        (True, True)
    """
    norms = [module for module in flow.modules() if isinstance(module, ActNorm)]
    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs: norm.initialize(inputs[0]))
        for norm in norms
    ]
    try:
        flow(x)
    finally:
        for hook in hooks:
            hook.remove()


def rows_of_channels(x: Tensor) -> Tensor:
    """The entries of each channel of a batch, (C, N)."""
    return x.transpose(0, 1).flatten(1)


def batch_of_channels(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`rows_of_channels` for a batch ``like`` the result."""
    return rows.unflatten(1, (len(like), *like.shape[2:])).transpose(0, 1)


class SharedSpline(RationalQuadratic):
    """The spline with the same parameters in a whole row: y (G, N), raw parameters (G, size)."""

    def _bin(self, v: Tensor, raw: Tensor, along: int) -> Bin:
        knots = self._knots(raw[:, : 2 * self.bins])
        slopes = self._slopes(self._padded(raw[:, 2 * self.bins :]))
        lower, size = knots[..., :-1], knots.diff()
        bins = torch.stack(
            [lower[:, 0], size[:, 0], lower[:, 1], size[:, 1], slopes[:, :-1], slopes[:, 1:]]
        )
        index = torch.searchsorted(
            knots[:, along, 1:-1].detach().contiguous(), v.detach().contiguous(), right=True
        )
        index = index + self.bins * torch.arange(len(raw), device=v.device)[:, None]
        return Bin(*bins.flatten(1).index_select(1, index.flatten()).unflatten(1, v.shape).unbind())


class ElementwiseFlow(ExactFlow):
    """One monotone rational-quadratic spline for all entries, or one for each channel or entry.

    It starts at the identity, and changes the histogram of grey levels alone. Under uniform
    dequantization every common grey level is a box in the density. Such a spline learns its sharp
    edges in a few dozen steps, so compare other flows with this one.

    Args:
        shape: event shape, (C, H, W) or (D,).
        shared: "all" for one spline, "channel" for one for each entry of the first axis, C or D,
            "none" for one for each entry of the event.
        bins, bound: of the spline, see :class:`CouplingFlow`.

    Example:

        >>> flow = ElementwiseFlow((3, 8, 8))
        >>> sum(parameter.numel() for parameter in flow.parameters())
        23
    """

    is_elementwise = True

    def __init__(
        self,
        shape: tuple[int, ...],
        shared: Literal["all", "channel", "none"] = "all",
        bins: int = 8,
        bound: float | None = None,
    ):
        super().__init__()
        groups = {"all": 1, "channel": shape[0], "none": math.prod(shape)}
        check_word("shared", shared, groups)
        bound = usual_bound(shape) if bound is None else bound
        self.shape, self.shared, self.bins, self.bound = tuple(shape), shared, bins, bound
        self.spline = SharedSpline(bins, bound)
        self.raw = nn.Parameter(torch.zeros(groups[shared], self.spline.size))

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        z, log_slope = self.spline(self._rows(x), self.raw)
        return self._batch(z, x), self._batch(log_slope, x).flatten(1).sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        return self._batch(self.spline.inverse(self._rows(z), self.raw), z)

    def _rows(self, x: Tensor) -> Tensor:
        """The entries that share a spline, (G, N)."""
        if self.shared == "none":
            return x.flatten(1).T
        return rows_of_channels(x) if self.shared == "channel" else x.reshape(1, -1)

    def _batch(self, rows: Tensor, like: Tensor) -> Tensor:
        """The rows that :meth:`_rows` made of ``like``, as a batch again."""
        if self.shared == "none":
            return rows.T.reshape(like.shape)
        if self.shared == "channel":
            return batch_of_channels(rows, like)
        return rows.view(like.shape)
