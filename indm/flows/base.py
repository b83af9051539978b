"""The contract of a normalizing flow h_φ, and the flows that need no mathematics of their own."""

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.conditions import given, rows_of
from indm.tensors import (
    Batch,
    PerSample,
    double,
    evaluation_mode,
    event_size,
    float64_device,
    full_precision,
)

# Of max|h(x) − z|/max(1, max|z|). Rounding in single precision leaves as much if h expands
# twentyfold. It is a hundredth of half a grey level of 256.
TOLERANCE = 5e-5
Mapped = tuple[Batch, PerSample]  # z and log|det ∂z/∂x|


class Inverse(NamedTuple):
    """What :meth:`Flow.solve_inverse` returns: x, and how well h(x) = z holds for each sample.

    Attributes:
        x: (B, *event).
        residual: max|h(x) − z| over a sample's entries, relative to max(1, max|z|), (B,).
        iterations: evaluations of the flow that it took, integers (B,); 0 for a formula.
        converged: whether the residual is at most the tolerance, booleans (B,).
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def magnitude(z: Tensor) -> Tensor:
    """max(1, max|z|) of each sample, (B,): what residuals are relative to."""
    return z.flatten(1).abs().amax(1).clamp_min(1.0)


class Constrained(nn.Module):
    """A module whose parameters, or parameters of its parts, must meet a constraint."""

    def check(self) -> None:
        """Check the constraints of all parts; a part with a constraint overrides this.

        Raises:
            RuntimeError: a constraint is violated; it is named.
        """
        for name, part in _constrained_parts(self):
            try:
                part.check()
            except RuntimeError as error:
                raise RuntimeError(f"{name}.{error}") from error


def _constrained_parts(module: nn.Module) -> list[tuple[str, Constrained]]:
    """The nearest constrained modules below ``module``, by name; each checks its own parts."""
    parts: list[tuple[str, Constrained]] = []
    for name, child in module.named_children():
        if isinstance(child, Constrained):
            parts.append((name, child))
        else:
            parts += [(f"{name}.{below}", part) for below, part in _constrained_parts(child)]
    return parts


class Flow(Constrained, ABC):
    """An invertible map h_φ that keeps the shape of a batch: x (B, *event) → z (B, *event).

    To write a flow, define :meth:`forward`, and

    - ``inverse_step(z)`` where the inverse is a formula: subclass :class:`ExactFlow`;
    - :meth:`solve_inverse` where it is computed iteratively: subclass :class:`Flow`.

    Let it start at or near the identity, and keep every constructor argument as an attribute of the
    same name. If z = h(x) is cheaper without log|det|, define :meth:`latent`, too. If h is not
    invertible for all parameters, define :meth:`check`.

    Example: one scale and shift for all entries.

        >>> class Affine(ExactFlow):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.log_scale = torch.nn.Parameter(torch.tensor(0.5))
        ...         self.shift = torch.nn.Parameter(torch.tensor(1.0))
        ...     def forward(self, x, *, generator=None):
        ...         return self.log_scale.exp() * x + self.shift, (event_size(x) * self.log_scale).expand(len(x))
        ...     def inverse_step(self, z):
        ...         return (z - self.shift) * (-self.log_scale).exp()
        >>> flow, x = Compose([Affine(), Affine()]), torch.randn(4, 3)
        >>> z, log_det = flow(x)
        >>> log_det.tolist()
        [3.0, 3.0, 3.0, 3.0]
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5)
        True

    A flow that sees a condition, h(x, c), is :class:`~indm.conditions.Conditioned` or has such
    parts.

    Attributes:
        is_identity: whether h(x) = x, so that an image is the latent itself, as
            :class:`~indm.dequantization.GreyLevels` needs it.
        is_elementwise: whether each entry of z depends on the same entry of x alone.
        has_log_det: False if :meth:`forward` returns something else than log|det| of one map.
        inverse_is_formula: whether autograd can differentiate :meth:`solve_inverse`.
    """

    is_identity = False
    is_elementwise = False
    has_log_det = True
    inverse_is_formula = False

    @abstractmethod
    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        """z = h(x) and log|det ∂z/∂x| in nats, (B,); ``generator`` feeds what is random."""

    def latent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """z = h(x) alone, where log|det| is not needed; ``generator`` as in :meth:`forward`."""
        return self(x, generator=generator)[0]

    @abstractmethod
    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        """The inverse x, and how well h(x) = z holds for each sample.

        No gradient flows through an iterative inverse.
        """

    def inverse(self, z: Tensor, tol: float = TOLERANCE) -> Tensor:
        """x with h(x) = z, in full precision also under autocast.

        Samples whose residual stays above ``tol`` in single precision are solved again in double.

        Raises:
            RuntimeError: samples, which are named, are not solved in double precision either.
        """
        with full_precision(z.device):
            x, residual, iterations, converged = self.solve_inverse(z, tol=tol)
            failed = (~converged).nonzero().flatten()
            if len(failed) and z.dtype != torch.float64:
                retried = self._in_double(failed, z.device).solve_inverse(
                    double(z[failed]), tol=tol
                )
                x, residual, iterations, converged = (
                    first.index_put((failed,), second.to(first))
                    for first, second in zip(
                        (x, residual, iterations, converged), retried, strict=True
                    )
                )
        failed = (~converged).nonzero().flatten()
        if len(failed):
            shown = ", ".join(map(str, failed[:10].tolist())) + (", …" if len(failed) > 10 else "")
            of = f"{len(failed)} of {len(z)} samples (indices {shown})"
            raise RuntimeError(
                f"inverse did not reach tol={tol:g} for {of}; largest residual {residual.max().item():.2g} after "
                f"{int(iterations.max())} iterations; allow a larger tol, or compute in float64"
            )
        return x

    def _in_double(self, rows: Tensor, device: torch.device) -> "Flow":
        """A copy in float64 for these rows of a batch on ``device``."""
        flow, c = copy.deepcopy(self).to(float64_device(device), torch.float64), rows_of(self)
        return flow if c is None else given(flow, c[rows].to(float64_device(device)))

    def at_bounds(self) -> list[str]:
        """Warnings of parameters at a bound; most flows have none."""
        return []

    def check_density(self, purpose: str) -> None:
        """ValueError if a flow in it has no log|det| of one map, which ``purpose`` needs."""
        for part in self.modules():
            if isinstance(part, Flow) and not part.has_log_det:
                raise ValueError(
                    f"flow must give the log-determinant of one map for {purpose}, got {type(part).__name__}; make the "
                    "INDM with the flow inside it, or with flow.at(code)"
                )


def measured_inverse(flow: Flow, x: Tensor, z: Tensor, iterations: Tensor, tol: float) -> Inverse:
    """x as h⁻¹(z), with its residual by one pass of h."""
    with torch.no_grad():
        residual = (flow.latent(x) - z).flatten(1).abs().amax(1) / magnitude(z)
    return Inverse(x, residual, iterations, residual <= tol)


class ExactFlow(Flow):
    """A flow whose inverse is a differentiable formula; subclasses define ``inverse_step``.

    Example: the entries in reverse, of which |det| is 1.

        >>> class Reverse(ExactFlow):
        ...     def forward(self, x, *, generator=None):
        ...         return x.flip(1), x.new_zeros(len(x))
        ...     def inverse_step(self, z):
        ...         return z.flip(1)
        >>> flow, x = Reverse(), torch.randn(4, 3)
        >>> flow.inverse_is_formula, torch.equal(flow.inverse(flow.latent(x)), x)
        (True, True)
    """

    inverse_is_formula = True

    @abstractmethod
    def inverse_step(self, z: Batch) -> Batch:
        """x with h(x) = z, exactly up to rounding."""

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        x = self.inverse_step(z)
        zero = z.new_zeros(len(z))
        return Inverse(x, zero, zero.long(), x.flatten(1).isfinite().all(1))


class Identity(ExactFlow):
    """h(x) = x: an INDM with it is the ordinary linear diffusion (ScoreSDE).

    Example:

        >>> x = torch.randn(2, 3)
        >>> z, log_det = Identity()(x)
        >>> torch.equal(z, x), log_det.tolist()
        (True, [0.0, 0.0])
    """

    is_identity = True
    is_elementwise = True

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        return x, x.new_zeros(x.shape[0])

    def inverse_step(self, z: Batch) -> Batch:
        return z


class Frozen(Flow):
    """Another flow as a constant: no gradient, and 0 in place of log|det|.

    A training loss with it differs by a constant and trains the score alone. It costs one pass of h.

    Args:
        flow: the flow that gives h.

    Example: the map of another flow, here z = 2x, without its log-determinant and its gradient.

        >>> inner, x = ActNorm(3), torch.randn(2, 3)
        >>> _ = inner.log_scale.data.fill_(0.6931471806)  # log 2
        >>> z, log_det = Frozen(inner)(x)
        >>> torch.allclose(z, 2 * x), log_det.tolist(), z.requires_grad
        (True, [0.0, 0.0], False)
    """

    has_log_det = False

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow
        self.is_elementwise = flow.is_elementwise
        self.is_identity = flow.is_identity
        self.inverse_is_formula = flow.inverse_is_formula

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        with torch.no_grad():
            return self.flow.latent(x, generator=generator), x.new_zeros(x.shape[0])

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        return self.flow.solve_inverse(z, tol=tol)


class Compose(Flow):
    """h = flows[-1] ∘ … ∘ flows[0].

    Args:
        flows: the flows in the order in which they are applied to the data.

    Example: log-determinants add up, and the last flow is undone first.

        >>> scale, move, x = ActNorm(3), ActNorm(3), torch.randn(2, 3)
        >>> _ = scale.log_scale.data.fill_(0.5), move.shift.data.fill_(1.0)
        >>> flow = Compose([scale, move])
        >>> z, log_det = flow(x)
        >>> torch.equal(z, move.latent(scale.latent(x))), log_det.tolist()
        (True, [1.5, 1.5])
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(self, flows: list[Flow]):
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.is_elementwise = all(flow.is_elementwise for flow in flows)
        self.inverse_is_formula = all(flow.inverse_is_formula for flow in flows)

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        log_det = x.new_zeros(x.shape[0])
        for flow in self.flows:
            x, step = flow(x, generator=generator)
            log_det = log_det + step
        return x, log_det

    def latent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        for flow in self.flows:
            x = flow.latent(x, generator=generator)
        return x

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Inverse:
        """Invert each flow to a tenth of ``tol``, and certify the result by one pass of h."""
        x, iterations = z, torch.zeros(len(z), dtype=torch.long, device=z.device)
        for flow in reversed(self.flows):
            x, _, steps, _ = flow.solve_inverse(x, tol=tol / 10)
            iterations = iterations + steps
        return measured_inverse(self, x, z, iterations, tol)


class Squeeze(ExactFlow):
    """Space to depth: (C, H, W) → (4C, H/2, W/2), a permutation, which :class:`Unsqueeze` undoes.

    Example: each square of four pixels becomes the channels of one.

        >>> image = torch.arange(8.0).reshape(1, 1, 2, 4)  # 0 1 2 3 above 4 5 6 7
        >>> z, log_det = Squeeze()(image)
        >>> z.shape, z[0, :, 0, 0].tolist(), log_det.tolist()
        (torch.Size([1, 4, 1, 2]), [0.0, 1.0, 4.0, 5.0], [0.0])
    """

    def forward(
        self, x: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, PerSample]:
        return nn.functional.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse_step(self, z: Batch) -> Tensor:
        return nn.functional.pixel_shuffle(z, 2)


class Unsqueeze(ExactFlow):
    """Depth to space: (4C, H, W) → (C, 2H, 2W), the inverse of :class:`Squeeze`.

    Example:

        >>> x = torch.randn(2, 8, 3, 3)
        >>> z, log_det = Unsqueeze()(x)
        >>> z.shape, torch.equal(Squeeze().latent(z), x), log_det.tolist()
        (torch.Size([2, 2, 6, 6]), True, [0.0, 0.0])
    """

    def forward(
        self, x: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, PerSample]:
        return nn.functional.pixel_shuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse_step(self, z: Batch) -> Tensor:
        return nn.functional.pixel_unshuffle(z, 2)


class ActNorm(ExactFlow):
    """z = exp(log_scale) · x + shift with one scale and shift a channel (axis 1).

    It starts at the identity.

    Args:
        channels: size of axis 1 of the batch.

    Source: Kingma & Dhariwal 2018, "Glow", §3.1, https://arxiv.org/abs/1807.03039.

    Example: initialised on a batch, it standardises every channel of it.

        >>> flow, x = ActNorm(3), 5 + 2 * torch.randn(100, 3)
        >>> flow.initialize(x)
        >>> z, log_det = flow(x)
        >>> torch.allclose(z.mean(0), torch.zeros(3), atol=1e-4), torch.allclose(z.std(0), torch.ones(3), atol=1e-4)
        (True, True)
        >>> torch.allclose(log_det, -x.std(0).log().sum().expand(100), atol=1e-4)
        True
    """

    is_elementwise = True

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def _per_channel(self, v: Tensor, x: Tensor) -> Tensor:
        return v.reshape((1, -1) + (1,) * (x.ndim - 2))

    @torch.no_grad()
    def initialize(self, x: Batch) -> None:
        """Give every channel of h(x) zero mean and unit variance on this batch."""
        std, mean = torch.std_mean(x.transpose(0, 1).flatten(1), dim=1)
        self.log_scale.copy_(-std.clamp_min(1e-6).log())
        self.shift.copy_(-mean * self.log_scale.exp())

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        z = self._per_channel(self.log_scale.exp(), x) * x + self._per_channel(self.shift, x)
        return z, (self.log_scale.sum() * (event_size(x) // self.channels)).expand(x.shape[0])

    def inverse_step(self, z: Batch) -> Batch:
        return (z - self._per_channel(self.shift, z)) * self._per_channel(
            (-self.log_scale).exp(), z
        )


LARGEST_JACOBIAN = 1024  # dimensions up to which the Jacobian is formed
# noise on the parameters, as the log|det| of a flow that starts at the identity is 0
PERTURBATION = 0.1
# largest error of log|det|, relative to the sum of the absolute logs of the singular values
PRECISION = 1e-6


def check_flow(flow: Flow, x: Batch, *, seed: int = 0) -> None:
    """Check the log-determinant and the inverse of a flow, in double precision.

    log|det ∂h/∂x| is compared with the Jacobian by autograd, and h(h⁻¹(z)) with z: once as the flow
    is, and once with its parameters moved at random, both in evaluation mode. The flow itself is
    not changed. A random log-determinant, or one of more than 1024 dimensions, is not compared.

    Args:
        flow: any :class:`~indm.flows.Flow`.
        x: examples in model units, (B, *event); two are enough.
        seed: of the random moves.

    Raises:
        ValueError: the log-determinant or the inverse is wrong; the message says by how much.

    Example:

        >>> from indm.flows import CouplingFlow
        >>> check_flow(CouplingFlow((3,)), torch.randn(2, 3))
    """
    twin, x = copy.deepcopy(flow).to(float64_device(x.device), torch.float64), double(x)
    with evaluation_mode(twin), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _check(twin, x)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(PERTURBATION * torch.randn_like(parameter))
        _check(twin, x)


def _check(flow: Flow, x: Tensor) -> None:
    name = type(flow).__name__
    z, log_det = flow(x)
    if x[0].numel() <= LARGEST_JACOBIAN and torch.equal(flow(x)[1], log_det):
        logs = torch.linalg.svdvals(torch.stack([_jacobian(flow, sample) for sample in x])).log()
        error = (log_det - logs.sum(1)).abs()
        worst = int(error.argmax())
        if not bool((error <= PRECISION * (1 + logs.abs().sum(1))).all()):
            given, wanted = log_det[worst] + 0.0, logs[worst].sum()
            raise ValueError(
                f"flow {name} gives log|det ∂z/∂x| = {given:.6g} nats where its Jacobian has {wanted:.6g}"
            )
    again, _, _, converged = flow.solve_inverse(z, tol=TOLERANCE)
    missed = (flow.latent(again) - z).flatten(1).abs().amax(1) / magnitude(z)
    if not bool((missed[converged] <= TOLERANCE).all()) or not bool(converged.all()):
        raise ValueError(
            f"flow {name} does not invert itself: h(h⁻¹(z)) is off from z by {missed.max():.2g}"
        )


def _jacobian(flow: Flow, sample: Tensor) -> Float[Tensor, "d d"]:
    d = sample.numel()
    with torch.enable_grad():
        x = sample[None].detach().requires_grad_()
        rows = torch.eye(d, dtype=x.dtype, device=x.device)[:, None]
        (jacobian,) = torch.autograd.grad(flow.latent(x).flatten(1), x, rows, is_grads_batched=True)
    return jacobian.reshape(d, d)
