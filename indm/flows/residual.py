"""Residual flows: blocks x ↦ x + g(x) with Lip(g) < 1, for images and for vectors.

Source: Chen et al. 2019, "Residual Flows for Invertible Generative Modeling",
https://arxiv.org/abs/1906.02735.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import check_word, require
from indm.conditions import Conditioned, features_of
from indm.flows.base import (
    TOLERANCE,
    ActNorm,
    Compose,
    Constrained,
    Flow,
    Inverse,
    Mapped,
    Squeeze,
    Unsqueeze,
    magnitude,
)
from indm.flows.contraction import ExactLogDet, PowerSeries, fixed_point
from indm.tensors import Batch, full_precision, image_or_vector, zeroed

# Activations of slope at most 1, by name: φ(v) = value(ωv)/ω with its derivative slope(ωv), and ω.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "sin": (torch.sin, torch.cos, 2 * math.pi),
    "softplus": (F.softplus, torch.sigmoid, 1.0),
    "elu": (F.elu, lambda u: u.clamp(max=0.0).exp(), 1.0),
    "lcube": (
        lambda u: u - u.clamp(-1.0, 1.0) + u.clamp(-1.0, 1.0) ** 3 / 3,
        lambda u: u.clamp(-1.0, 1.0) ** 2,
        1.0,
    ),
    # not smooth: NonlinearDiffusion cannot use it
    "relu": (torch.relu, lambda u: (u > 0).to(u.dtype), 1.0),
    "identity": (lambda u: u, torch.ones_like, 1.0),
}
ActivationName = Literal["sin", "softplus", "elu", "lcube", "relu", "identity", "swish"]


class Activation(nn.Module):
    """One of :data:`FUNCTIONS`; blocks take its frequency ω into their weights."""

    def __init__(self, name: str):
        super().__init__()
        check_word("activation", name, (*FUNCTIONS, "swish"))
        self.name = name
        self.frequency = 1.0 if name == "swish" else FUNCTIONS[name][2]

    def value(self, u: Tensor) -> Tensor:
        return FUNCTIONS[self.name][0](u)

    def slope(self, u: Tensor) -> Tensor:
        """Derivative of :meth:`value`."""
        return FUNCTIONS[self.name][1](u)

    def forward(self, v: Tensor) -> Tensor:
        """φ(v)."""
        return self.value(self.frequency * v) / self.frequency


class Swish(Activation):
    """v sigmoid(bv)/1.1 with a learned b = softplus(β) > 0.

    Source: Chen et al. 2019, "Residual Flows", §3.3 (LipSwish), https://arxiv.org/abs/1906.02735.
    """

    def __init__(self) -> None:
        super().__init__("swish")
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def value(self, u: Tensor) -> Tensor:
        return u * (F.softplus(self.beta) * u).sigmoid() / 1.1

    def slope(self, u: Tensor) -> Tensor:
        bu = F.softplus(self.beta) * u
        gate = bu.sigmoid()
        return gate * (1 + bu * (1 - gate)) / 1.1


def activation_of(name: ActivationName) -> Activation:
    """The activation of that name, one of :data:`ActivationName`; KeyError of another one."""
    return Swish() if name == "swish" else Activation(name)


LogDet = ExactLogDet | PowerSeries
Norm = float | str
# weight and bias of each map; a bias may be (B, out), one for each sample
Weights = list[tuple[Tensor, Tensor]]


class ContractiveLinear(Constrained):
    """A zero-padded convolution or a dense map whose induced norm is at most ``coeff``.

    The free parameter is divided by max(1, norm/coeff) each time it is used, so the constraint
    holds for every value of it.

    Args:
        in_shape: event shape of the input, (C, H, W) or (D,).
        out_channels: size of the first axis of the output.
        kernel: side of the kernel for images (odd).
        norm: 2 (spectral norm), inf (largest absolute row sum) or "rows" (the same bound, but only
            the rows whose sum is too large are divided, each by its own: the paper's).
        coeff: the bound, in (0, 0.98].
    """

    def __init__(
        self, in_shape: tuple[int, ...], out_channels: int, kernel: int, norm: Norm, coeff: float
    ):
        super().__init__()
        self.norm, self.coeff = norm, coeff
        self.image = len(in_shape) == 3
        self.padding = kernel // 2 if self.image else 0
        weight = torch.empty(out_channels, in_shape[0], *((kernel, kernel) if self.image else ()))
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + bias, the bias (out,) or (B, out)."""
        if bias is not None and bias.ndim == 2:
            y = self.apply_weight(x, weight)
            return y + (bias[:, :, None, None] if self.image else bias).to(y.dtype)
        if self.image:
            return F.conv2d(x, weight, bias, padding=self.padding)
        return F.linear(x, weight, bias)

    def apply_transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """Wᵀ y."""
        if self.image:
            return F.conv_transpose2d(y, weight, padding=self.padding)
        return F.linear(y, weight.T)

    def induced_norm(self, weight: Tensor | None = None) -> Tensor:
        """The norm of the map by ``weight``, by default the free parameter.

        For padded convolutions it is an upper bound.
        """
        weight = self.weight if weight is None else weight
        if self.norm in ("rows", math.inf):
            return row_sums(weight).max()
        if self.padding == 0:
            return torch.linalg.matrix_norm(weight.flatten(1), 2)
        return convolution_norm(weight)

    def constrained_weight(self) -> Tensor:
        """The weight that the map applies: induced norm at most ``coeff``."""
        norm = row_sums(self.weight) if self.norm == "rows" else self.induced_norm()
        return self.weight / (norm / self.coeff).clamp_min(1.0)

    @torch.no_grad()
    def check(self) -> None:
        """RuntimeError if the norm of the applied weight exceeds its bound by more than rounding."""
        finite = bool(self.weight.isfinite().all())
        norm = float(self.induced_norm(self.constrained_weight())) if finite else math.nan
        if not norm <= self.coeff * (1 + 1e-4):
            raise RuntimeError(
                f"weight has norm {norm:g} where its bound is {self.coeff:g}: the flow need not be invertible"
            )


def row_sums(weight: Tensor) -> Tensor:
    """Absolute sum of each row, (out, 1, …), to divide the weight by."""
    return weight.abs().sum(tuple(range(1, weight.ndim)), keepdim=True)


def convolution_norm(weight: Tensor, frequencies: int = 32) -> Tensor:
    """The spectral norm max ‖Ŵ(ω)‖₂ of a convolution (outputs, inputs, k, k), differentiable.

    The maximum is over ``frequencies``² frequencies. Between them, a 3×3 kernel exceeds the result
    by less than 2 % (1/cos(2π/``frequencies``)).

    Source: Sedghi et al. 2019, "The Singular Values of Convolutional Layers",
    https://arxiv.org/abs/1805.10408.
    """
    with torch.no_grad():
        transform = torch.fft.rfft2(weight, s=(frequencies, frequencies)).permute(2, 3, 0, 1)
        columns = transform.shape[-1]
        transform = transform.flatten(0, 1)
        gram = (
            transform.mH @ transform if columns <= transform.shape[-2] else transform @ transform.mH
        )
        # tr G² / tr G ≤ λ_max(G) ≤ √tr G² leaves few frequencies that can have the largest one
        square = gram.abs().square().sum((-2, -1))
        trace = (
            gram.diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp_min(torch.finfo(weight.dtype).tiny)
        )
        candidates = (~(square.sqrt() < 0.9999 * (square / trace).max())).nonzero().flatten()
        best = int(candidates[torch.linalg.eigvalsh(gram[candidates])[:, -1].argmax()])
        left, _, right = torch.linalg.svd(transform[best], full_matrices=False)
        row, column = divmod(best, frequencies // 2 + 1)
        taps = torch.arange(weight.shape[-1], device=weight.device, dtype=weight.dtype)
        angle = -2 * math.pi / frequencies * (row * taps[:, None] + column * taps)
        phase = torch.polar(torch.ones_like(angle), angle)
    return (left[:, 0].conj() @ (weight * phase).sum((-2, -1)) @ right[0].conj()).real


class ResidualBlock(Conditioned, Flow):
    """x ↦ x + g(x) with g = W₃ φ W₂ φ W₁ (φ), by default with φ(x) = sin(2πx)/(2π).

    A condition changes the bias of W₁, but not the Lipschitz constant in x.

    Args:
        shape: event shape, (C, H, W) or (D,).
        width: hidden channels.
        norm, coeff: see :class:`ContractiveLinear`; Lip(g) ≤ coeff³.
        preactivate: apply φ before the first map too.
        activation: φ, a name in :data:`~indm.flows.residual.ActivationName`.
        features: numbers of the condition that the block sees.

    Log-determinants are exact where that is cheap, up to 3 dimensions in training and 64 in
    evaluation. Otherwise training estimates the log-determinant of a random sixteenth of the batch
    only: its noise is small compared with that of the score's part of the gradient. The block
    starts at the identity (W₃ = 0).

    Example: whatever the weights, the Lipschitz constant of g is at most coeff³.

        >>> block = ResidualBlock((3,), 8, norm=2.0, coeff=0.9, preactivate=False)
        >>> for parameter in block.parameters():
        ...     _ = nn.init.normal_(parameter)
        >>> x, y = torch.randn(2, 100, 3)
        >>> g_x, g_y = block.latent(x) - x, block.latent(y) - y
        >>> bool(((g_x - g_y).norm(dim=1) <= 0.9**3 * (x - y).norm(dim=1) + 1e-4).all())
        True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        norm: Norm,
        coeff: float,
        preactivate: bool,
        activation: ActivationName = "sin",
        features: int = 0,
    ):
        super().__init__()
        hidden = (width, *shape[1:])
        self.preactivate, self.features = preactivate, features
        self.maps = nn.ModuleList(
            ContractiveLinear(inputs, outputs, kernel, norm, coeff)
            for inputs, outputs, kernel in [
                (shape, width, 3),
                (hidden, width, 1),
                (hidden, shape[0], 3),
            ]
        )
        self.activations = nn.ModuleList(
            activation_of(activation) for _ in range(3 if preactivate else 2)
        )
        self.frequency = self.activations[0].frequency  # ω of φ(v) = value(ωv)/ω
        zeroed(self.maps[-1])
        if features:
            self.condition = nn.Linear(features, width, bias=False)
        d = math.prod(shape)
        self.training_log_det: LogDet = ExactLogDet() if d <= 3 else PowerSeries(1, 1.0, share=16)
        self.evaluation_log_det: LogDet = ExactLogDet() if d <= 64 else PowerSeries(20, 2.0)

    def _weights(self) -> Weights:
        """Weight and bias of the three maps, which contain the factors ω of φ.

        Kernels are channels-last for speed.
        """
        with full_precision(self.maps[0].weight.device):
            first, second, third = (linear.constrained_weight() for linear in self.maps)
            if self.preactivate:
                first = first / self.frequency
            weights = [self.frequency * first, second, third / self.frequency]
            if self.maps[0].image:
                weights = [
                    weight.contiguous(memory_format=torch.channels_last) for weight in weights
                ]
            c, bias = self.seen(self.maps[0].bias), self.maps[0].bias
            bias = bias if c is None else bias + self.condition(c)
            biases = [self.frequency * bias, self.frequency * self.maps[1].bias, self.maps[2].bias]
            return list(zip(weights, biases, strict=True))

    def _angles(self, x: Tensor, weights: Weights) -> Iterator[tuple[Tensor | None, Tensor]]:
        """For each map the input of the activation before it, None without one, and its output."""
        for i, (linear, (weight, bias)) in enumerate(zip(self.maps, weights, strict=True)):
            angle = x if i > 0 else self.frequency * x if self.preactivate else None
            x = linear.apply_weight(
                x if angle is None else self.activations[i - len(self.maps)].value(angle),
                weight,
                bias,
            )
            yield angle, x

    def _evaluate(self, x: Tensor, weights: Weights) -> Tensor:
        """g(x); under autocast it is computed in the precision of the convolutions."""
        for _, output in self._angles(x, weights):
            x = output
        return x

    def _log_det(self, x: Tensor, weights: Weights, estimator: LogDet, generator) -> Tensor:
        """log|det(I + J)| from the slopes of the activations at ``x``, in full precision."""
        slopes = [
            x.new_ones(()) if angle is None else self.activations[i - len(self.maps)].slope(angle)
            for i, (angle, _) in enumerate(self._angles(x, weights))
        ]
        if self.preactivate:
            slopes[0] = self.frequency * slopes[0]

        def jvp(v: Tensor) -> Tensor:
            for linear, (weight, _), slope in zip(self.maps, weights, slopes, strict=True):
                v = linear.apply_weight(_scale(v, slope), weight)
            return v

        def vjp(u: Tensor) -> Tensor:
            for linear, (weight, _), slope in reversed(
                list(zip(self.maps, weights, slopes, strict=True))
            ):
                u = _scale(linear.apply_transpose(u, weight), slope)
            return u

        return estimator(jvp, vjp, x, generator)

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        weights = self._weights()
        estimator = self.training_log_det if self.training else self.evaluation_log_det
        rows = estimator.rows(len(x), generator, x.device)
        z = x + self._evaluate(x, weights)
        with full_precision(x.device):
            part = rows.step * self._log_det(x[rows], _of_rows(weights, rows), estimator, generator)
        return z, part.new_zeros(len(x)).slice_scatter(part, 0, rows.start, rows.stop, rows.step)

    def latent(self, x: Batch, *, generator: torch.Generator | None = None) -> Batch:
        return x + self._evaluate(x, self._weights())

    @torch.no_grad()
    def solve_inverse(
        self, z: Batch, tol: float = TOLERANCE, max_iterations: int = 1000
    ) -> Inverse:
        """The fixed point of x ↦ z − g(x), see :func:`fixed_point`."""
        weights = self._weights()

        def contraction(x: Tensor, rows: Tensor) -> Tensor:
            return z[rows] - self._evaluate(x, _of_rows(weights, rows))

        x, residual, evaluations = fixed_point(
            contraction, z, tol, magnitude(z), max_iterations=max_iterations
        )
        return Inverse(x, residual, evaluations, residual <= tol)


def _of_rows(weights: Weights, rows: slice | Tensor) -> Weights:
    """The weights for these rows of a batch."""
    return [
        (weight, bias[rows] if bias.ndim == 2 and len(bias) > 1 else bias)
        for weight, bias in weights
    ]


def residual_chain(
    shape: tuple[int, ...],
    blocks: tuple[int, ...],
    block: Callable[[tuple[int, ...], bool], Flow],
    squeeze: bool = False,
    actnorm: bool = False,
) -> list[Flow]:
    """Groups of residual blocks with squeezes between them.

    ``block`` takes a shape and whether to pre-activate.
    """
    image_or_vector(shape)
    image, squeezes = len(shape) == 3, len(blocks) - 1 + squeeze
    wanted = f"of sides divisible by {2**squeezes}, which blocks={blocks} and squeeze={squeeze} halve {squeezes} times"
    fits = not image or not (shape[1] % 2**squeezes or shape[2] % 2**squeezes)
    require(fits, "shape", shape, wanted, f"use fewer groups, such as blocks=({sum(blocks)},)")
    flows: list[Flow] = []
    for group, count in enumerate(blocks):
        if image and (group > 0 or squeeze):
            flows.append(Squeeze())
            shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        if actnorm and group == 0:
            flows.append(ActNorm(shape[0]))
        for i in range(count):
            flows.append(block(shape, group > 0 or i > 0))
            flows += [ActNorm(shape[0])] if actnorm else []
    return flows + ([Unsqueeze() for _ in range(squeezes)] if image else [])


def checked_norm(norm: Norm) -> Norm:
    """2.0, inf or "rows"; ValueError of anything else."""
    is_known = str(norm) in ("2", "2.0", "inf", "rows")
    require(is_known, "norm", norm, '2 (spectral), inf (largest absolute row sum) or "rows"')
    return norm if norm == "rows" else float(norm)


def check_coeff(coeff: float) -> None:
    """ValueError for a Lipschitz bound of which inverses may not exist."""
    require(0 < coeff <= 0.98, "coeff", coeff, "in (0, 0.98] for a block that is invertible")


class ResidualFlow(Compose):
    """A residual flow: groups of residual blocks, with squeezes of images between the groups.

    Args:
        shape: event shape, (C, H, W) or (D,).
        blocks: number of blocks in each group; 2^(groups−1) must divide H and W of images, which
            are squeezed (space to depth) between groups.
        width: hidden channels of every block.
        norm: induced norm that is constrained: inf (cheap), "rows" (the same for each row: the
            paper's) or 2 (spectral).
        coeff: bound on the norm of each linear map.
        activation: of every block, a name in :data:`~indm.flows.residual.ActivationName`.
        squeeze: also squeeze images before the first group.
        actnorm: add an :class:`ActNorm` before the first block and after every one.
        condition: (features,) of the condition that the blocks see; () for none.

    The published CIFAR-10 flow is ``blocks=(16, 16), width=512, norm="rows"``.

    Example: it has an inverse whatever its parameters, whose residual is known for each sample.

        >>> flow, z = ResidualFlow((3,), blocks=(2,), width=8, coeff=0.9), torch.randn(5, 3)
        >>> for parameter in flow.parameters():
        ...     _ = nn.init.normal_(parameter)
        >>> x, residual, iterations, converged = flow.solve_inverse(z)
        >>> converged.tolist(), torch.allclose(flow.latent(x), z, atol=1e-3)
        ([True, True, True, True, True], True)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: tuple[int, ...] = (4, 4),
        width: int = 64,
        norm: Norm = math.inf,
        coeff: float = 0.98,
        activation: ActivationName = "sin",
        squeeze: bool = False,
        actnorm: bool = False,
        condition: tuple[int, ...] = (),
    ):
        shape, blocks, norm = tuple(shape), tuple(blocks), checked_norm(norm)
        check_coeff(coeff)
        features = features_of(condition)

        def block(event: tuple[int, ...], preactivate: bool) -> ResidualBlock:
            return ResidualBlock(event, width, norm, coeff, preactivate, activation, features)

        super().__init__(residual_chain(shape, blocks, block, squeeze, actnorm))
        self.shape, self.blocks, self.width = shape, blocks, width
        self.norm, self.coeff, self.activation = norm, coeff, activation
        self.squeeze, self.actnorm, self.condition = squeeze, actnorm, tuple(condition)


def use_log_det(
    flow: Flow, *, training: LogDet | None = None, evaluation: LogDet | None = None
) -> None:
    """Set the log-determinant estimators of every residual block in ``flow``.

    None leaves that of training or of evaluation as it is.

    Example: the exact log-determinant, which by default is estimated above 64 dimensions.

        >>> flow = ResidualFlow((1, 10, 10), blocks=(1,), width=4).eval()
        >>> flow.flows[0].evaluation_log_det
        PowerSeries(exact_terms=20, further_terms=2.0, probes=1, share=1)
        >>> use_log_det(flow, evaluation=ExactLogDet())
        >>> flow.flows[0].evaluation_log_det
        ExactLogDet()
    """
    for block in flow.modules():
        if isinstance(block, ResidualBlock):
            block.training_log_det = training or block.training_log_det
            block.evaluation_log_det = evaluation or block.evaluation_log_det


def _scale(v: Tensor, slope: Tensor) -> Tensor:
    """slope · v for a stack v (K·B, ...) and slope (B, ...) or scalar; B may be 0."""
    if slope.ndim == 0:
        return slope * v
    copies = len(v) // max(len(slope), 1)
    return (v.reshape(copies, *slope.shape) * slope).reshape(v.shape)
