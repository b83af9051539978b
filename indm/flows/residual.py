"""Residual flows: blocks x ↦ x + g(x) with Lip(g) < 1, for images and for vectors.

Source: Chen et al. 2019, "Residual Flows for Invertible Generative Modeling", https://arxiv.org/abs/1906.02735.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.flows.base import Batch, Compose, Flow, PerSample, Squeeze, Unsqueeze
from indm.flows.log_det import ExactLogDet, PowerSeries

LogDet = ExactLogDet | PowerSeries


class ContractiveLinear(nn.Module):
    """A convolution (zero-padded, stride 1) or a dense map whose induced norm is at most ``coeff``.

    The free parameter is divided by max(1, norm/coeff), so the constraint holds again after every optimizer step.

    Args:
        in_shape: event shape of the input, (C, H, W) or (D,).
        out_channels: size of the first axis of the output.
        kernel: side of the kernel for images (odd).
        norm: 2 (spectral norm on this very event shape, by power iteration) or inf (largest absolute row sum).
        coeff: the bound, in (0, 1).

    Training makes one warm power iteration for each forward pass; evaluation iterates to convergence, once for
    each new value of the parameter.
    """

    def __init__(self, in_shape: tuple[int, ...], out_channels: int, kernel: int, norm: float, coeff: float):
        super().__init__()
        if norm not in (2, math.inf):
            raise ValueError(f"norm must be 2 (spectral) or inf (largest absolute row sum), got {norm}")
        if not 0 < coeff < 1:
            raise ValueError(f"coeff must lie in (0, 1) for an invertible block, got {coeff}; 0.98 is usual")
        self.norm, self.coeff, self.padding = norm, coeff, kernel // 2
        self.image = len(in_shape) == 3
        weight = torch.empty(out_channels, in_shape[0], *((kernel, kernel) if self.image else ()))
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # A 1×1 convolution has the same norm on every image size.
        probe_shape = (in_shape[0], 1, 1) if self.image and kernel == 1 else in_shape
        self.register_buffer("right_vector", F.normalize(torch.randn(1, *probe_shape).flatten(1)).view(1, *probe_shape))
        self._converged_for = None

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + bias."""
        return F.conv2d(x, weight, bias, padding=self.padding) if self.image else F.linear(x, weight, bias)

    def apply_transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """Wᵀ y."""
        return F.conv_transpose2d(y, weight, padding=self.padding) if self.image else F.linear(y, weight.T)

    def induced_norm(self) -> Tensor:
        """Norm of the free parameter's map, a scalar with a gradient."""
        if self.norm == math.inf:
            return self.weight.abs().flatten(1).sum(1).max()
        self._power_iteration()
        return self.apply_weight(self.right_vector, self.weight).norm()

    @torch.no_grad()
    def _power_iteration(self, tol: float = 1e-4, max_iterations: int = 1000) -> None:
        state = (self.weight.data_ptr(), self.weight._version)
        if not self.training and self._converged_for == state:
            return
        v, previous = self.right_vector, -1.0
        for _ in range(1 if self.training else max_iterations):
            w = self.apply_transpose(self.apply_weight(v, self.weight), self.weight)
            growth = w.norm()
            if growth == 0:
                break
            v = w / growth
            if not self.training and growth <= previous * (1 + tol**2):
                break
            previous = growth
        self.right_vector.copy_(v)
        self._converged_for = None if self.training else state

    def constrained_weight(self) -> Tensor:
        """The weight that the map applies: induced norm at most ``coeff``."""
        return self.weight / (self.induced_norm() / self.coeff).clamp_min(1.0)


class ResidualBlock(Flow):
    """x ↦ x + g(x), g = W₃ φ W₂ φ W₁ (φ), with φ(x) = sin(2πx)/(2π): smooth, slope at most 1.

    Args:
        shape: event shape, (C, H, W) or (D,).
        width: hidden channels.
        norm, coeff: see :class:`ContractiveLinear`; Lip(g) ≤ coeff³.
        preactivate: apply φ before the first map too.

    ``training_log_det`` and ``evaluation_log_det`` are the estimators used in the two modes; both are exact where
    that is cheap (up to 3 dimensions in training, 64 in evaluation). It starts at the identity (W₃ = 0).
    """

    def __init__(self, shape: tuple[int, ...], width: int, norm: float, coeff: float, preactivate: bool):
        super().__init__()
        hidden = (width, *shape[1:])
        self.preactivate = preactivate
        self.maps = nn.ModuleList(
            ContractiveLinear(inputs, outputs, kernel, norm, coeff)
            for inputs, outputs, kernel in [(shape, width, 3), (hidden, width, 1), (hidden, shape[0], 3)]
        )
        nn.init.zeros_(self.maps[-1].weight)
        d = math.prod(shape)
        self.training_log_det: LogDet = ExactLogDet() if d <= 3 else PowerSeries(2, 2.0)
        self.evaluation_log_det: LogDet = ExactLogDet() if d <= 64 else PowerSeries(20, 2.0)

    def _evaluate(self, x: Tensor, weights: list[Tensor], slopes: list[Tensor] | None = None) -> Tensor:
        """g(x); appends the activations' derivatives to ``slopes`` (1 where the first map has none)."""
        for i, (linear, weight) in enumerate(zip(self.maps, weights, strict=True)):
            if i > 0 or self.preactivate:
                angle = 2 * math.pi * x
                if slopes is not None:
                    slopes.append(angle.cos())
                x = angle.sin() / (2 * math.pi)
            elif slopes is not None:
                slopes.append(x.new_ones(()))
            x = linear.apply_weight(x, weight, linear.bias)
        return x

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        weights = [linear.constrained_weight() for linear in self.maps]
        slopes: list[Tensor] = []
        g = self._evaluate(x, weights, slopes)

        def jvp(v: Tensor) -> Tensor:
            for linear, weight, slope in zip(self.maps, weights, slopes, strict=True):
                v = linear.apply_weight(_scale(v, slope), weight)
            return v

        def vjp(u: Tensor) -> Tensor:
            for linear, weight, slope in zip(reversed(self.maps), reversed(weights), reversed(slopes), strict=True):
                u = _scale(linear.apply_transpose(u, weight), slope)
            return u

        log_det = self.training_log_det if self.training else self.evaluation_log_det
        return x + g, log_det(jvp, vjp, x, generator)

    def latent(self, x: Batch) -> Batch:
        return x + self._evaluate(x, [linear.constrained_weight() for linear in self.maps])

    @torch.no_grad()
    def solve_inverse(self, z: Batch, tol: float = 1e-6, max_iterations: int = 1000):
        """Banach's iteration x ← z − g(x), each sample until its own residual is below ``tol``·max(1, max|z|)."""
        weights = [linear.constrained_weight() for linear in self.maps]
        x, residual = z.clone(), torch.full_like(z.flatten(1)[:, 0], math.inf)
        iterations = torch.zeros(len(z), dtype=torch.long, device=z.device)
        scale = z.flatten(1).abs().amax(1).clamp_min(1.0)
        active = torch.arange(len(z), device=z.device)
        for _ in range(max_iterations):
            step = z[active] - self._evaluate(x[active], weights)
            residual[active] = (step - x[active]).flatten(1).abs().amax(1) / scale[active]
            done = residual[active] <= tol
            active, step = active[~done], step[~done]
            if len(active) == 0:
                break
            x[active] = step
            iterations[active] += 1
        return x, residual, iterations, residual <= tol


class ResidualFlow(Compose):
    """Groups of residual blocks with a squeeze (space to depth) between groups, undone at the end.

    Args:
        shape: event shape, (C, H, W) or (D,).
        blocks: number of blocks in each group; images are squeezed between groups, so H and W must be divisible
            by 2^(groups−1). Vectors have the groups one after the other.
        width: hidden channels of every block.
        norm: induced norm that is constrained: 2 (spectral) or inf (the paper's).
        coeff: bound on the norm of each linear map.

    The published CIFAR-10 flow is ``blocks=(16, 16), width=512, norm=inf``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: tuple[int, ...] = (4, 4),
        width: int = 64,
        norm: float | str = 2,
        coeff: float = 0.98,
    ):
        shape, blocks, norm = tuple(shape), tuple(blocks), float(norm)
        if len(shape) not in (1, 3):
            raise ValueError(f"shape must be (C, H, W) for images or (D,) for vectors, got {shape}")
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks must name at least one block for each group, got {blocks}; (4, 4) is usual")
        image, factor = len(shape) == 3, 2 ** (len(blocks) - 1)
        if image and (shape[1] % factor or shape[2] % factor):
            raise ValueError(
                f"blocks={blocks} squeezes {len(blocks) - 1} times, so height and width must be divisible by "
                f"{factor}, got shape {shape}; use fewer groups, for example blocks=({sum(blocks)},)"
            )
        flows: list[Flow] = []
        event = shape
        for group, count in enumerate(blocks):
            if image and group > 0:
                flows.append(Squeeze())
                event = (4 * event[0], event[1] // 2, event[2] // 2)
            for i in range(count):
                flows.append(ResidualBlock(event, width, norm, coeff, preactivate=group > 0 or i > 0))
        flows += [Unsqueeze() for _ in blocks[1:]] if image else []
        super().__init__(flows)
        self.shape, self.blocks, self.width, self.norm, self.coeff = shape, blocks, width, norm, coeff


def use_log_det(flow: Flow, *, training: LogDet | None = None, evaluation: LogDet | None = None) -> None:
    """Choose the log-determinant estimators of every residual block in ``flow``; None leaves that mode as it is."""
    for block in flow.modules():
        if isinstance(block, ResidualBlock):
            block.training_log_det = training or block.training_log_det
            block.evaluation_log_det = evaluation or block.evaluation_log_det


def _scale(v: Tensor, slope: Tensor) -> Tensor:
    """slope · v for a stack v (K·B, ...) and slope (B, ...) or scalar."""
    return slope * v if slope.ndim == 0 else (v.reshape(-1, *slope.shape) * slope).reshape(v.shape)
