r"""The density of h⁻¹(z_ε/α_ε), where the probability flow carries z_T ~ π to z_ε: at data, and of samples.

.. math:: \log p(x) = \log|\det \partial h/\partial x| + \log\det\alpha_\epsilon + \log p_\epsilon(z_\epsilon),
          \quad z_\epsilon = \alpha_\epsilon h(x), \qquad
          \log p_\epsilon(z_\epsilon) = \log\pi(z_T) + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from indm.flows.base import require_density
from indm.gaussian import GaussianReference
from indm.ode import (
    FEWEST,
    Solution,
    adams,
    basis,
    error_of_integral,
    offsets,
    rademacher,
    solve,
    value_and_divergence,
)
from indm.score import context_of, is_smooth, probability_flow, with_context
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, evaluation_mode, event_size, event_sum, expand_like, full_precision

NLL_ERROR = 1e-3  # bits/dim, of the solver
FEWEST_WITH_ERROR = 8  # steps that can be given an error
SMALL = 16  # dimensions of a vector up to which the divergence is exact by default
START, END = 0, 1  # ε and T
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class WhitenedFlow:
    """The probability flow of (v, ∫ excess divergence/d), in the coordinate v in which a Gaussian law is at rest.

    Args:
        score: of the latents.
        law: a Gaussian law of them.
        shape: of an event.
        exact: whether the divergence is exact; else by the probes (B, n, *event) that a call gets.

    A call takes the rows of c that the score was given as ``given``, for those samples that it is about.
    """

    score: nn.Module
    law: GaussianReference
    shape: tuple[int, ...]
    exact: bool

    def latent(self, v: Float[Tensor, "batch d"], clock: PerSample) -> Batch:
        """w = z_t/√(α_t² + σ_t²)."""
        return self.law.colour(v, clock).unflatten(1, self.shape)

    def drift(self, clock: PerSample, state: State, probe: Tensor, *given: Tensor) -> tuple[Tensor]:
        """The slope of v alone."""
        w = self.latent(state[0], clock)
        velocity = probability_flow(with_context(self.score, given), clock)(w)
        return (self.law.whitened_velocity(state[0], w, velocity, clock),)

    def __call__(self, clock: PerSample, state: State, probe: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        w = self.latent(state[0], clock)
        along, field = basis(w) if self.exact else probe, probability_flow(with_context(self.score, given), clock)
        velocity, divergence = value_and_divergence(field, w, along)
        excess = divergence - (self.law.trace(clock, w) if self.exact else self.law.divergence(probe, clock))
        return self.law.whitened_velocity(state[0], w, velocity, clock), excess / event_size(w)

    def at(self, end: int, like: Tensor) -> tuple[PerSample, Tensor]:
        """The clock and √(α² + σ²) at ε (:data:`START`) or T (:data:`END`), for rows like those of ``like``."""
        sde = self.score.sde
        return like.new_full((len(like),), sde.clock_span()[end]), sde.marginal_std(sde.endpoints(like)[end])

    def state(self, z: Batch, end: int) -> State:
        """The state in which z_ε or z_T sets out."""
        clock, std = self.at(end, z)
        return self.law.whiten(z / expand_like(std, z), clock), z.new_zeros(len(z))

    def colour(self, v: Float[Tensor, "batch d"], end: int) -> Batch:
        """z_ε or z_T."""
        clock, std = self.at(end, v)
        w = self.latent(v, clock)
        return expand_like(std, w) * w

    def log_prior(self, v: Float[Tensor, "batch d"]) -> PerSample:
        """log π(z_T)."""
        return self.score.sde.prior_log_prob(self.colour(v, END))

    def growth(self, state: State) -> PerSample:
        """log p_ε(z_ε) − log π(z_T) from the state at T."""
        v, excess = state
        (begin, start), (finish, end) = (self.at(side, v) for side in (START, END))
        divergence = v.shape[1] * excess + self.law.log_volume(finish) - self.law.log_volume(begin)
        return divergence + event_sum((end / start).log(), v)

    def log_prob(self, state: State) -> PerSample:
        """log p_ε(z_ε) from the state at T."""
        return self.log_prior(state[0]) + self.growth(state)

    def rate(self, state: State, slope: State) -> PerSample:
        """d log p/dclock along the way; log π is quadratic, so that half the difference is its derivative."""
        (v, _), (velocity, divergence) = state, slope
        return 0.5 * (self.log_prior(v + velocity) - self.log_prior(v - velocity)) + v.shape[1] * divergence

    def solve(self, z: Batch, end: int, probe: Tensor, nll_error: float, steps: int | None) -> Solution:
        """The state at T from z_ε (``end`` is :data:`START`), or at ε from z_T, to ``nll_error`` or in ``steps``."""
        tol = nll_error * event_size(z) * math.log(2)
        options: dict[str, Any] = {"tol": tol} if steps is None else {"tol": tol, "steps": steps, "most": steps}
        options |= {"watch": self.rate, "drift": self.drift, "context": (probe, *context_of(self.score))}
        options |= {"smooth": is_smooth(self.score)}
        span = self.score.sde.clock_span()
        return solve(self, self.state(z, end), span[end], span[1 - end], **options)


def whitened_flow(
    score: nn.Module,
    z: Batch,
    probes: int,
    exact: bool | None,
    reference: GaussianReference | None,
    generator: torch.Generator | None,
) -> tuple[WhitenedFlow, Tensor]:
    """The flow of latents like ``z`` and the probe of its divergence, drawn from ``generator`` unless it is exact.

    By default it is exact where that is cheaper (d ≤ ``probes``), in two dimensions, and for vectors of up to 16.
    """
    exact = event_size(z) <= max(probes, SMALL if z.ndim == 2 else 2) if exact is None else exact
    law = GaussianReference.standard(z) if reference is None else reference
    probe = z.new_zeros(len(z)) if exact else rademacher(z, probes, generator)
    return WhitenedFlow(score, law, tuple(z.shape[1:]), exact), probe


def log_prob(
    model,
    x: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    steps: int = FEWEST,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """:meth:`indm.INDM.log_prob`."""
    require_density(model.flow, "log_prob")
    check_probes(probes)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; {FEWEST} is usual")
    score = model.score
    parameters = tuple(parameter for parameter in score.parameters() if parameter.requires_grad)

    def recomputed(field: Callable[..., State]) -> Callable[..., State]:
        """``field`` without a graph: it is evaluated once more for its gradient, as it was evaluated first."""

        def evaluate(clock: Tensor, *tensors: Tensor) -> State:
            with _differentiated(model, eps):
                return field(clock, tensors[:2], *tensors[2:])

        def call(clock: Tensor, state: State, *given: Tensor) -> State:
            return _Recomputed.apply(evaluate, 3 + len(given), clock, *state, *given, *parameters)

        return call

    with _differentiated(model, eps) as sde:
        flow, probe = whitened_flow(score, x, probes, exact, reference, generator)
        z, log_det = model.encode(x, generator=generator)
        log_alpha = sde.log_alpha(sde.endpoints(z)[START])
        begin, span = flow.state(expand_like(log_alpha.exp(), z) * z, START), sde.clock_span()
        field, drift = recomputed(flow), recomputed(flow.drift)
        options: dict[str, Any] = {"drift": drift, "context": (probe, *context_of(score))}
        if steps >= FEWEST_WITH_ERROR:
            options |= {"watch": torch.no_grad()(flow.rate), "between": offsets(steps)}
        state, _, rates, others = adams(field, begin, *span, steps=steps, **options)
        if steps >= FEWEST_WITH_ERROR:
            step = abs(span[END] - span[START]) / steps
            error = error_of_integral(torch.stack(rates), torch.stack(others), step, z.dtype, is_smooth(score))
            _warn_unsolved(error, x, steps)
        return log_det + event_sum(log_alpha, z) + flow.log_prob(state)


def _warn_unsolved(error: PerSample, x: Batch, steps: int) -> None:
    """RuntimeWarning where the solver's error, in nats, is above :data:`NLL_ERROR` bits/dim.

    The text is the same for all batches, so that Python shows it once in a loop.
    """
    bits = error / (event_size(x) * math.log(2))
    if bool(((bits > NLL_ERROR) & bits.isfinite()).any()):
        warnings.warn(
            f"the error of log_prob's ODE solver is above {NLL_ERROR:g} bits/dim in {steps} steps; steps={2 * steps} "
            "makes it smaller, and solver_error of log_likelihood says how large it is",
            RuntimeWarning,
            stacklevel=4,
        )


def sample_with_log_prob(
    model,
    z_T: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    nll_error: float = NLL_ERROR,
    steps: int | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """x = h⁻¹(z_ε/α_ε), z_ε by the probability flow from z_T, and log p(x), by one solve of the ODE.

    It is the density of :meth:`indm.INDM.log_prob`, without a gradient. Where h⁻¹ is iterated, x is off by its
    tolerance, and so is log p(x) by that times its slope.

    Args:
        model: an INDM.
        z_T: draws of the prior, ``model.sde.prior_sample(…)``.
        probes, exact, nll_error, steps, reference: as in :func:`indm.log_likelihood`.
        generator: of the probes, and of an estimate of log|det|.

    Returns:
        x in model units, log p(x) in nats, and an estimate of its solver's error in nats.

    Raises:
        ValueError: an option out of range, or a flow without a density.
        RuntimeError: the score is not finite, or the flow's inverse did not converge.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> x, log_prob, error = sample_with_log_prob(model, model.sde.prior_sample((5, 2)), nll_error=1e-2)
        >>> torch.allclose(log_prob, -0.5 * x.square().sum(1) - math.log(2 * math.pi), atol=1e-4)
        True
    """
    require_density(model.flow, "log_prob")
    check_solver(probes, steps, nll_error)
    with evaluation_mode(model):
        sde = model.score.sde
        flow, probe = whitened_flow(model.score, z_T, probes, exact, reference, generator)
        solution = flow.solve(z_T, END, probe, nll_error, steps)
        v, excess = solution.state
        z = flow.colour(v, START)
        log_alpha = sde.log_alpha(sde.endpoints(z)[START])
        x = model.decode(z * expand_like((-log_alpha).exp(), z))
        _, log_det = model.encode(x, generator=generator)
        log_p_eps = sde.prior_log_prob(z_T) + flow.growth((v, -excess))
    return x, log_det + event_sum(log_alpha, z) + log_p_eps, solution.error


def check_probes(probes: int) -> None:
    """ValueError where there are none."""
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")


def check_nll_error(nll_error: float) -> None:
    """ValueError where it is not positive and finite."""
    if not 0 < nll_error < math.inf:
        raise ValueError(f"nll_error must be positive and finite, got {nll_error}; {NLL_ERROR:g} bits/dim is usual")


def check_solver(probes: int, steps: int | None, nll_error: float) -> None:
    """ValueError where one of these is out of range."""
    check_probes(probes)
    if steps is not None and steps < FEWEST_WITH_ERROR:
        raise ValueError(
            f"steps must be at least {FEWEST_WITH_ERROR}, or None for as many as nll_error needs, got {steps}; "
            f"{FEWEST} is usual"
        )
    check_nll_error(nll_error)


@contextmanager
def _differentiated(model, eps: float | None) -> Iterator[LinearSDE]:
    """Where a density and its gradient are computed: in evaluation mode and full precision, at truncation ``eps``."""
    sde = model.score.sde
    with (
        evaluation_mode(model, gradients=True),
        full_precision(sde.prior_mean.device),
        sde.truncated(eps),
        sdpa_kernel(SDPBackend.MATH),  # a fused attention cannot be differentiated twice
    ):
        yield sde


class _Recomputed(torch.autograd.Function):
    """function(*tensors[:count]), which also depends on the other ``tensors``: its parameters.

    Only ``tensors`` are kept for the gradient, for which the function is evaluated once more. (The checkpoints of torch
    evaluate a function again for every derivative that it takes inside.)
    """

    @staticmethod
    def forward(ctx, function: Callable[..., State], count: int, *tensors: Tensor) -> State:
        ctx.function, ctx.count = function, count
        ctx.save_for_backward(*tensors)
        return function(*tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx, *slopes: Tensor) -> Any:
        needed, tensors = ctx.needs_input_grad[2:], list(ctx.saved_tensors)
        for i in range(ctx.count):  # without what they come from, which may be made of the same parameters
            tensors[i] = tensors[i].detach().requires_grad_(needed[i])
        with torch.enable_grad():
            values = ctx.function(*tensors[: ctx.count])
        values, slopes = zip(*((v, s) for v, s in zip(values, slopes, strict=True) if v.requires_grad), strict=True)
        wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
        gradients = iter(torch.autograd.grad(values, wanted, slopes, allow_unused=True))
        return None, None, *(next(gradients) if needs else None for needs in needed)
