r"""Likelihoods with error bars by the probability-flow ODE: log p(x) with its gradient, bounds, and
log p of samples.

.. math:: \log p(x) = \log|\det \partial h/\partial x| + \log\det\alpha_\epsilon + \log p_\epsilon(z_\epsilon),
          \quad z_\epsilon = \alpha_\epsilon h(x), \qquad
          \log p_\epsilon(z_\epsilon) = \log\pi(z_T) + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2
          s)\,dt

is the density of h⁻¹(z_ε/α_ε), where the probability flow carries z_T ~ π to z_ε. The NELBO bounds
the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from indm import ode
from indm.checks import NLL_ERROR, require
from indm.conditions import sees_condition
from indm.dequantization import check_raw, constant_log_q, from_data
from indm.gaussian import GaussianReference
from indm.objective import reconstruction as reconstruction_of
from indm.ode import (
    Solution,
    State,
    adams,
    basis,
    error_of_integral,
    offsets,
    rademacher,
    solve,
    value_and_divergence,
)
from indm.protocols import Model, Score
from indm.score import (
    closed_flow,
    context_of,
    has_kinks,
    is_smooth,
    probability_flow,
    unguided,
    with_context,
)
from indm.tensors import (
    Batch,
    PerSample,
    check_units,
    evaluation_mode,
    event_size,
    event_sum,
    expand_like,
    full_precision,
    outside_inference,
    randn_like,
)

NEAR_SIGMAS = 1e-3  # step of a finite difference, in σ
# error of the divergence of E[z_0|z_t] a dimension: 0.04 bits/dim for each factor of e in σ/α
WRONG_SLOPE = 0.03
SMALL = 16  # dimensions of a vector up to which the divergence is exact by default
START, END = 0, 1  # ε and T


@dataclass(frozen=True)
class WhitenedFlow:
    """The probability flow of (v, ∫ excess divergence/d), in the coordinate v in which the Gaussian
    ``law`` is at rest.

    The divergence is ``exact``, or estimated by the probes (B, n, *event) of a call, which has the
    rows ``given`` of c.
    """

    score: Score
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

    def __call__(
        self, clock: PerSample, state: State, probe: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        w = self.latent(state[0], clock)
        score = with_context(self.score, given)
        if self.exact and not torch.is_grad_enabled() and (closed := closed_flow(score, clock)):
            velocity, divergence = closed(w)
        else:
            along, field = basis(w) if self.exact else probe, probability_flow(score, clock)
            velocity, divergence = value_and_divergence(field, w, along)
        excess = divergence - (
            self.law.trace(clock, w) if self.exact else self.law.divergence(probe, clock)
        )
        return self.law.whitened_velocity(state[0], w, velocity, clock), excess / event_size(w)

    def at(self, end: int, like: Tensor) -> tuple[PerSample, Tensor]:
        """The clock and √(α² + σ²) at ε (:data:`START`) or T (:data:`END`), one for each row of
        ``like``.
        """
        sde = self.score.sde
        return like.new_full((len(like),), sde.clock_span()[end]), sde.marginal_std(
            sde.endpoints(like)[end]
        )

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
        """d log p/dclock along the way; log π is quadratic, so that half the difference is its
        derivative.
        """
        (v, _), (velocity, divergence) = state, slope
        return (
            0.5 * (self.log_prior(v + velocity) - self.log_prior(v - velocity))
            + v.shape[1] * divergence
        )

    def solve(
        self, z: Batch, end: int, probe: Tensor, nll_error: float, steps: int | None
    ) -> Solution:
        """The state at T from z_ε (``end`` is :data:`START`), or at ε from z_T, to ``nll_error`` or
        in ``steps``.
        """
        tol = nll_error * event_size(z) * math.log(2)
        options: dict[str, Any] = (
            {"tol": tol} if steps is None else {"tol": tol, "steps": steps, "most": steps}
        )
        options |= {
            "watch": self.rate,
            "drift": self.drift,
            "context": (probe, *context_of(self.score)),
        }
        options |= {"smooth": is_smooth(self.score), "kinks": has_kinks(self.score)}
        span = self.score.sde.clock_span()
        return solve(self, self.state(z, end), span[end], span[1 - end], **options)


def whitened_flow(
    score: Score,
    z: Batch,
    probes: int,
    exact: bool | None,
    reference: GaussianReference | None,
    generator: torch.Generator | None,
) -> tuple[WhitenedFlow, Tensor]:
    """The flow of latents like ``z`` and the probe of its divergence, drawn from ``generator``
    unless it is exact.

    By default it is exact where that is cheaper (d ≤ ``probes``), in two dimensions, and for
    vectors of up to 16.
    """
    exact = event_size(z) <= max(probes, SMALL if z.ndim == 2 else 2) if exact is None else exact
    law = GaussianReference.standard(z) if reference is None else reference
    probe = z.new_zeros(len(z)) if exact else rademacher(z, probes, generator)
    return WhitenedFlow(score, law, tuple(z.shape[1:]), exact), probe


@outside_inference
def check_gradient(score: Score, z: Batch) -> float:
    """Compare products with the Jacobian of a score at noised latents ``z`` with finite
    differences.

    J is the Jacobian of E[z_0|z_t], at σ/α of half and of twice the root mean square of ``z``.
    Where a few samples differ, many must differ by more than their noise, so that kinks and half
    precision are not errors.

    Returns:
        An estimate of how far the rounding of the network moves log p, nats, from second
        differences of its output.

    Raises:
        ValueError: autograd does not see a part of the network, so that log p would be wrong.
    """
    if not len(z) or closed_flow(score, z.new_zeros(1)) is not None:
        return 0.0
    off, rounding = _slope_errors(score, z, min(max(len(z) // 2, 1), 4))
    if bool((off.mean(1).abs() > WRONG_SLOPE).any()):
        n = max(16, 1024 // event_size(z))
        off, _ = _slope_errors(score, z, n)
        if bool((off.mean(1).abs() > (4 * off.std(1) / math.sqrt(n)).clamp_min(WRONG_SLOPE)).any()):
            raise ValueError(
                "network must have its whole gradient in x, got one whose divergence by autograd is off by "
                f"{off.mean(1).abs().max():.2g} a dimension; call it without torch.no_grad, detach and NumPy"
            )
    return rounding


@torch.no_grad()
def _slope_errors(score: Score, z: Batch, n: int) -> tuple[Float[Tensor, "2 n"], float]:
    """Errors of v·Jv a dimension, as that of E[z_0|z_t], at two noise levels, and the rounding of
    log p in nats.
    """
    generator, rows = (
        torch.Generator(z.device).manual_seed(0),
        torch.arange(2 * n, device=z.device) % n % len(z),
    )
    z_0, score = z[rows], with_context(score, tuple(c[rows] for c in context_of(score)))
    span, scale = score.sde.clock_span(), z.square().mean().sqrt().item() or 1.0
    clock = (
        z.new_tensor([0.5 * scale, 2 * scale])
        .log()
        .mul(2)
        .clamp(min(span), max(span))
        .repeat_interleave(n)
    )
    alpha, q = (expand_like((sign * clock).sigmoid().sqrt(), z_0) for sign in (-1, 1))
    w, v = alpha * z_0 + q * randn_like(z_0, generator), rademacher(z_0, 1, generator)
    field = probability_flow(score, clock)
    value, product = value_and_divergence(field, w, v)
    v = NEAR_SIGMAS * q * v[:, 0]
    above, below = field(w + v), field(w - v)
    along = ((above - below) * v / (2 * (NEAR_SIGMAS * q).square())).flatten(1).sum(1)
    noise = (
        (above + below - 2 * value)
        .unflatten(0, (2, n))
        .flatten(1)
        .square()
        .mean(1)
        .amax()
        .sqrt()
        .item()
    )
    # half of it in every entry at all levels
    rounding = 0.5 * noise * event_size(z) * abs(span[END] - span[START])
    return 2 * (product - along).unflatten(0, (2, n)) / event_size(z), rounding


@dataclass(frozen=True)
class LikelihoodReport:
    """Negative log-likelihoods of a batch, with names as in :class:`indm.NELBO`.

    :attr:`nats` and :attr:`bits_per_dim` are of the raw data.

    Attributes:
        total: (B,), with the reconstruction term: an estimate of an upper bound of −log p(x), nats
            in model units.
        reconstruction: (B,), that term; without it the number is not a likelihood of x.
        log_q: (B,), log q(x|raw), see :func:`indm.dequantization.from_data`.
        solver_error: (B,), an estimate of the error of ``total`` by the ODE solver and the rounding
            of the network, nats, which is not a bound (``docs/likelihood.md`` says how often it
            covers the true error).
        nfe: evaluations of the network, the mean over samples (each has its own steps) rounded up.
        settings: ε, the steps or the error that was asked for, divergence.
        dims: dimensions of one event.
        grey_levels: of the data; None of continuous data, whose table has no bits/dim.

    Example: two samples of two dimensions, with 2 and 4 bits.

        >>> nats, none = math.log(2) * torch.tensor([2.0, 4.0], dtype=torch.float64), torch.zeros(2)
        >>> report = LikelihoodReport(nats, none, none, none, nfe=20, settings={}, dims=2)
        >>> f"{report.bits_per_dim:.3f} ± {report.standard_error():.3f} bits/dim"
        '1.500 ± 0.500 bits/dim'
    """

    total: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    log_q: Float[Tensor, " batch"]
    solver_error: Float[Tensor, " batch"]
    nfe: int
    settings: dict
    dims: int
    grey_levels: int | None = None

    @property
    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return self.log_q + self.total

    @property
    def bits_per_dim(self) -> float:
        """Mean over the batch of −log₂ p of the raw data, per dimension."""
        return self.nats.mean().item() / (self.dims * math.log(2))

    @property
    def without_reconstruction(self) -> Float[Tensor, " batch"]:
        """(B,), −log p of z_ε with the flow's volume, nats in model units: for comparison with
        numbers published so.
        """
        return self.total - self.reconstruction

    def standard_error(self) -> float:
        """Standard error over the batch of :attr:`bits_per_dim`."""
        if len(self.total) < 2:
            raise ValueError(f"standard_error needs at least 2 samples, got {len(self.total)}")
        return (self.nats.std() / math.sqrt(len(self.total))).item() / (self.dims * math.log(2))

    def __str__(self) -> str:
        """The mean of −log p over the batch with its standard error, as a small table."""
        n = len(self.total)
        units = {"nats": 1.0} | ({"bits/dim": self.dims * math.log(2)} if self.grey_levels else {})
        lines = [" " * 24 + "".join(f"{unit:>12}{'±':>10}" for unit in units)]
        rows = {"-log p": self.nats, "without reconstruction": self.nats - self.reconstruction}
        for name, nats in rows.items():
            mean, error = (
                nats.mean().item(),
                nats.std().item() / math.sqrt(n) if n > 1 else math.nan,
            )
            lines.append(
                f"{name:24}" + "".join(f"{mean / u:12.4f}{error / u:10.4f}" for u in units.values())
            )
        error = self.solver_error.mean().item()
        in_bits = f", {error / units['bits/dim']:.1g} bits/dim" if self.grey_levels else ""
        lines.append(
            f"{n} samples of {self.dims} dimensions, {self.nfe} evaluations of the network"
        )
        return "\n".join([*lines, f"error of the ODE solver, estimated: {error:.1g} nats{in_bits}"])


@outside_inference
def nll(
    model: Model,
    x: Float[Tensor, "batch *event"],
    *,
    c: Any = None,
    probes: int = 1,
    exact: bool | None = None,
    nll_error: float = NLL_ERROR,
    steps: int | None = None,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> LikelihoodReport:
    r"""−log p(x) by the probability-flow ODE on the latent, from one draw of z_ε for each sample.

    .. math:: \log p = \log|\det \partial h/\partial x| + \log\pi(z_T)
              + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt - \log q(z_\epsilon|z_0) + \log
              p(z_0|z_\epsilon)

    The ODE is solved over the clock −log SNR in equal steps, in the coordinate in which a Gaussian
    law of the latents is at rest (:class:`indm.gaussian.GaussianReference`). Only the difference
    from that law's divergence is estimated.

    Args:
        model: an INDM.
        x: data in model units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: −log p(x|c).
        probes: Rademacher probes for the divergence, the same all along the path.
        exact: compute the exact divergence, by d products in place of ``probes``; default: where
            that is cheaper (d ≤ ``probes``), in two dimensions, and for vectors of up to 16.
        nll_error: largest estimate of the solver's error of a sample, bits per dimension. A sample
            with a larger one is solved again in twice as many steps, up to 256; what is above it
            then says so in ``solver_error``.
        steps: this many steps instead (8 or more), whatever their error.
        eps: truncation, at least the SDE's own, which is the default.
        reference: the Gaussian law; default N(0, I). A law fitted to the data's latents
            (:func:`latent_reference`) takes fewer steps and leaves less noise.
        log_q: log q(x|raw), the second result of ``model.from_data(raw)``; needed for other noise
            than uniform.
        generator: of z_ε and the probes; by default the global one.

    Raises:
        ValueError: an option out of range, no ``log_q``, or a network without its whole gradient.
        RuntimeError: the score is not finite.

    Example:

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> report = nll(indm.build_model(tables, (2,)), torch.zeros(100, 2))  # latents N(0, I)
        >>> abs(report.bits_per_dim - 0.5 * math.log2(2 * math.pi)) < 0.1
        True
    """
    check_units(x)
    check_solver(probes, steps, nll_error)
    log_q = constant_log_q(model, x) if log_q is None else log_q
    model = unguided(model).given(c, len(x)).truncated(eps)
    with evaluation_mode(model):
        flow, start = start_of(model, x, probes, exact, reference, generator)
        reconstruction = reconstruction_of(model, start.z, start.noise)
        log_prob, error, nfe = start.solved(flow, nll_error, steps)
        settings: dict[str, Any] = {"nll_error": nll_error} | (
            {} if steps is None else {"steps": steps}
        )
        divergence_by = "exact" if flow.exact else f"Hutchinson, {probes} Rademacher probe(s)"
        settings |= {"eps": model.sde.eps, "divergence": divergence_by}
    evaluations = math.ceil(nfe.sum().item() / max(len(nfe), 1))
    levels = model.scaling.levels
    values = reconstruction - log_prob, reconstruction, log_q, error
    return LikelihoodReport(*values, evaluations, settings, event_size(x), levels)


@dataclass(frozen=True)
class Start:
    """The start of a likelihood's ODE: z_0, the noise of z_ε, log|det ∂z/∂x|, the divergence's
    probe, the rounding.
    """

    z: Batch
    noise: Batch
    log_det: PerSample
    probe: Tensor
    rounding: PerSample

    def rows(self, rows: Tensor) -> "Start":
        return Start(*(part[rows] for part in vars(self).values()))

    def solved(
        self, flow: WhitenedFlow, nll_error: float, steps: int | None = None
    ) -> tuple[PerSample, PerSample, Tensor]:
        """log p without reconstruction, an estimate of its solver's error, both nats, and
        evaluations, (B,) each.
        """
        sde = flow.score.sde
        z_eps = sde.perturb(self.z, sde.endpoints(self.z)[START], self.noise)
        solution = flow.solve(z_eps, START, self.probe, nll_error, steps)
        return (
            self.log_det + flow.log_prob(solution.state),
            solution.error + self.rounding,
            solution.nfe,
        )


def start_of(
    model: Model,
    x: Batch,
    probes: int,
    exact: bool | None,
    reference: GaussianReference | None,
    generator: torch.Generator | None,
) -> tuple[WhitenedFlow, Start]:
    """The flow of latents and what it sets out from at data ``x``; in evaluation mode and at the
    truncation set.
    """
    # Drawn before the flow's own probes, so that models compared at one seed share them.
    noise = randn_like(x, generator)
    flow, probe = whitened_flow(model.score, x, probes, exact, reference, generator)
    z, log_det = model.encode(x, generator=generator)
    return flow, Start(
        z, noise, log_det, probe, torch.full_like(log_det, check_gradient(model.score, z))
    )


@outside_inference
def importance_bound(
    model: Model,
    raw: Num[Tensor, "batch *event"],
    *,
    c: Any = None,
    draws: int = 8,
    exact: bool | None = True,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    **solver: Any,
) -> LikelihoodReport:
    r"""The importance-weighted bound of −log P(raw), from ``draws`` K of the noise of grey levels
    and of z_ε.

    .. math:: \log P(\text{raw}) \ge E \log \frac1K \sum_{k=1}^K \frac{p(x_k)}{q(x_k|\text{raw})}

    The bound of −log P falls with K. Of continuous data it is one of −log p(raw).

    Args:
        model: an INDM.
        raw: data in data units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: log P(raw|c).
        draws: K.
        exact: the exact divergence, by d products for each evaluation. An estimate of it (False),
            as one of log|det|, adds noise to each log-weight; noise of variance v makes the bound
            up to v/2 nats too good.
        batch_size: draws at a time.
        **solver: ``probes``, ``nll_error``, ``steps``, ``eps`` and ``reference``, as in
            :func:`nll`.

    Returns:
        ``nats`` are −log P(raw) of each image; ``total``, ``reconstruction`` and ``solver_error``
        are weighted means.

    Raises:
        ValueError: an option out of range, or wrong raw data, see :meth:`indm.Scaling.check`.
        RuntimeError: the score is not finite.

    Source: Burda et al. 2016, "Importance Weighted Autoencoders", https://arxiv.org/abs/1509.00519.

    Example:

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> model = indm.build_model(tables, (1, 2, 2), indm.Scaling.images(256))
        >>> raw = torch.full((3, 1, 2, 2), 128)
        >>> importance_bound(model, raw, draws=4).nats.shape
        torch.Size([3])
    """
    check_raw(model, raw)
    require(draws >= 1, "draws", draws, "at least 1", "8 is usual")
    reports, c = [], model.rows(c, len(raw))
    for rows in torch.arange(len(raw)).repeat_interleave(draws).split(batch_size):
        part = model.given(c, rows=rows)
        with evaluation_mode(part):
            x, log_q = from_data(part, raw[rows], generator=generator)
        reports.append(nll(part, x, exact=exact, log_q=log_q, generator=generator, **solver))
    total, reconstruction, log_q, error = (
        torch.cat([getattr(report, name) for report in reports]).unflatten(0, (len(raw), draws))
        for name in ("total", "reconstruction", "log_q", "solver_error")
    )
    log_weights = -total - log_q
    bound, shares = log_weights.logsumexp(1) - math.log(draws), log_weights.softmax(1)
    total, reconstruction, error = (
        (shares * values).sum(1) for values in (total, reconstruction, error)
    )
    evaluations = sum(report.nfe * len(report.total) for report in reports)
    nfe = math.ceil(evaluations / (len(raw) * draws))
    settings = reports[0].settings | {"draws": draws}
    return LikelihoodReport(
        total,
        reconstruction,
        -total - bound,
        error,
        nfe,
        settings,
        math.prod(raw.shape[1:]),
        model.scaling.levels,
    )


def latents_of(
    model: Model,
    raw: Tensor,
    *,
    c: Any = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n *event"]:
    """h(x) of data in data units (n, *event) at conditions ``c``, ``batch_size`` at a time;
    ``generator`` dequantizes.
    """
    latents, sees = [], sees_condition(model.flow)
    c = model.rows(c, len(raw)) if sees else None
    for rows in torch.arange(len(raw)).split(batch_size):
        part = model.given(c, rows=rows) if sees else model
        with evaluation_mode(part):
            x, _ = from_data(part, raw[rows], generator=generator)
            latents.append(part.flow.latent(x, generator=generator))
    return torch.cat(latents)


def latent_reference(
    model: Model,
    raw: Tensor,
    *,
    c: Any = None,
    batch_size: int = 256,
    seed: int = 0,
    most: int = 10_000,
) -> GaussianReference:
    """The Gaussian law of the latents of the first ``most`` samples, at ``c`` of
    :meth:`indm.INDM.given`, for control.
    """
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    options: dict[str, Any] = {"batch_size": batch_size, "generator": generator}
    c = model.rows(c, len(raw))
    return GaussianReference.fit(
        latents_of(model, raw[:most], c=None if c is None else c[:most], **options)
    )


@outside_inference
def log_prob(
    model: Model,
    x: Float[Tensor, "batch *event"],
    *,
    c: Any = None,
    probes: int = 1,
    exact: bool | None = None,
    steps: int = ode.FEWEST_STEPS,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""log p(x), nats of model units: the density of h⁻¹(z_ε/α_ε), where the probability flow takes
    z_T ~ π to z_ε.

    .. math:: \log|\det \partial h/\partial x| + \log\det\alpha_\epsilon + \log\pi(z_T)
              + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt, \qquad z_\epsilon =
              \alpha_\epsilon h(x)

    It is "without reconstruction": it integrates to 1 and is the density of the samples of
    :func:`indm.sample_with_log_prob`. (:func:`indm.nll` bounds the density of x drawn from
    p(z_0|z_ε).)

    It can be differentiated once, in x and in the parameters of flow, score and SDE. For the
    gradient every evaluation of the network is made again: memory holds the activations of one of
    them, and a step adds twice the size of x.

    Residual flows above 64 dimensions estimate log|det| and its gradient; exact is
    ``use_log_det(flow, evaluation=ExactLogDet())``.

    Args:
        x: data in model units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: log p(x|c).
        probes, exact: of the divergence, as in :func:`indm.nll`; by default exact for vectors of up
            to
            16 dimensions. Otherwise log p is the estimate by ``probes``, with its gradient.
        steps: equal steps of the ODE, each with two evaluations of the network.
        eps: truncation, at least the SDE's own, which is the default.
        reference: the Gaussian law in whose coordinate the ODE is solved, as in :func:`indm.nll`.
        generator: of the probes, and of an estimate of log|det|. With the same state in every call,
            log p is one function of x, as a Monte Carlo chain needs.

    Raises:
        ValueError: an option out of range, a flow without a density, or a network without its whole
            gradient.

    Warns:
        RuntimeWarning: from 8 steps on, where the solver's estimated error is above 1e-3 bits/dim
        of an x.

    Example:

        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))  # its density is N(0, I)
        >>> x = torch.tensor([[1.0, -2.0]], requires_grad=True)
        >>> model.log_prob(x).sum().backward()
        >>> torch.allclose(x.grad, torch.tensor([[-1.0, 2.0]]), atol=1e-4)
        True
    """
    model.flow.check_density("log_prob")
    check_units(x)
    require(probes >= 1, "probes", probes, "at least 1")
    require(steps >= 1, "steps", steps, "at least 1", f"{ode.FEWEST_STEPS} is usual")
    model = unguided(model).given(c, len(x)).truncated(eps)
    score, sde = model.score, model.sde
    parameters = tuple(parameter for parameter in score.parameters() if parameter.requires_grad)

    def recomputed(field: Callable[..., State]) -> Callable[..., State]:
        """``field`` without a graph: it is evaluated once more for its gradient."""

        def evaluate(clock: Tensor, *tensors: Tensor) -> State:
            with _differentiated(model):
                return field(clock, tensors[:2], *tensors[2:])

        def call(clock: Tensor, state: State, *given: Tensor) -> State:
            return _Recomputed.apply(evaluate, 3 + len(given), clock, *state, *given, *parameters)

        return call

    with _differentiated(model):
        flow, probe = whitened_flow(score, x, probes, exact, reference, generator)
        z, log_det = model.encode(x, generator=generator)
        check_gradient(score, z.detach())
        log_alpha = sde.log_alpha(sde.endpoints(z)[START])
        begin, span = flow.state(expand_like(log_alpha.exp(), z) * z, START), sde.clock_span()
        field, drift = recomputed(flow), recomputed(flow.drift)
        options: dict[str, Any] = {"drift": drift, "context": (probe, *context_of(score))}
        if steps >= ode.FEWEST_WITH_ERROR:
            options |= {"watch": torch.no_grad()(flow.rate), "between": offsets(steps)}
        found = adams(field, begin, *span, steps=steps, **options)
        if steps >= ode.FEWEST_WITH_ERROR:
            step = abs(span[END] - span[START]) / steps
            error = error_of_integral(
                torch.stack(found.watched),
                torch.stack(found.between),
                step,
                z.dtype,
                is_smooth(score),
                has_kinks(score),
            )
            warn_unsolved(
                error, x, NLL_ERROR, f"in {steps} steps; steps={2 * steps} makes it smaller"
            )
        return log_det + event_sum(log_alpha, z) + flow.log_prob(found.state)


def warn_unsolved(error: PerSample, x: Batch, nll_error: float, advice: str) -> None:
    """RuntimeWarning where the error that a solver states, in nats, is above ``nll_error`` bits/dim
    of ``x``.
    """
    bits = error / (event_size(x) * math.log(2))
    if bool(((bits > nll_error) & bits.isfinite()).any()):
        message = f"the error of log_prob's ODE solver is above {nll_error:g} bits/dim"
        warnings.warn(f"{message} {advice}", RuntimeWarning, stacklevel=4)


@outside_inference
def decode_with_log_prob(
    model: Model,
    z_T: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    nll_error: float = NLL_ERROR,
    steps: int | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """x = h⁻¹(z_ε/α_ε), z_ε by the probability flow from z_T, and log p(x), by one solve of the
    ODE.

    It is the density of :meth:`indm.INDM.log_prob`, without a gradient. Where h⁻¹ is iterated, x is
    off by its tolerance.

    Args:
        model: an INDM.
        z_T: draws of the prior, ``model.sde.prior_sample(…)``.
        probes, exact, nll_error, steps, reference: as in :func:`indm.nll`.

    Returns:
        x in model units, log p(x) in nats, and an estimate of its solver's error in nats.

    Raises:
        ValueError: an option out of range, or a flow without a density.
        RuntimeError: the score is not finite, or the flow's inverse did not converge.

    Example:

        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
        >>> x, log_prob, error = decode_with_log_prob(model, model.sde.prior_sample((5, 2)), nll_error=1e-2)
        >>> torch.allclose(log_prob, -0.5 * x.square().sum(1) - math.log(2 * math.pi), atol=1e-4)
        True
    """
    model.flow.check_density("log_prob")
    check_solver(probes, steps, nll_error)
    with evaluation_mode(model):
        sde = model.score.sde
        flow, probe = whitened_flow(model.score, z_T, probes, exact, reference, generator)
        solution = flow.solve(z_T, END, probe, nll_error, steps)
        v, excess = solution.state
        z = flow.colour(v, START)
        error = solution.error + check_gradient(model.score, z)
        log_alpha = sde.log_alpha(sde.endpoints(z)[START])
        x = model.decode(z * expand_like((-log_alpha).exp(), z))
        _, log_det = model.encode(x, generator=generator)
        log_p_eps = sde.prior_log_prob(z_T) + flow.growth((v, -excess))
    return x, log_det + event_sum(log_alpha, z) + log_p_eps, error


def check_solver(probes: int, steps: int | None, nll_error: float) -> None:
    """ValueError where one of these is out of range."""
    require(probes >= 1, "probes", probes, "at least 1")
    wanted = f"at least {ode.FEWEST_WITH_ERROR}, or None for as many as nll_error needs"
    require(
        steps is None or steps >= ode.FEWEST_WITH_ERROR,
        "steps",
        steps,
        wanted,
        f"{ode.FEWEST_STEPS} is usual",
    )
    require(
        0 < nll_error < math.inf,
        "nll_error",
        nll_error,
        "positive and finite",
        f"{NLL_ERROR:g} bits/dim is usual",
    )


@contextmanager
def _differentiated(model: Model) -> Iterator[None]:
    """Where a density and its gradient are computed: in evaluation mode and full precision."""
    with (
        evaluation_mode(model, gradients=True),
        full_precision(model.sde.prior_mean.device),
        sdpa_kernel(SDPBackend.MATH),  # a fused attention cannot be differentiated twice
    ):
        yield


class _Recomputed(torch.autograd.Function):
    """function(*tensors[:count]), of parameters ``tensors[count:]``: it is evaluated once more for
    the gradient.
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
        # without what they come from, which may be made of the same parameters
        for i in range(ctx.count):
            tensors[i] = tensors[i].detach().requires_grad_(needed[i])
        with torch.enable_grad():
            values = ctx.function(*tensors[: ctx.count])
        values, slopes = zip(
            *((v, s) for v, s in zip(values, slopes, strict=True) if v.requires_grad), strict=True
        )
        wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
        gradients = iter(torch.autograd.grad(values, wanted, slopes, allow_unused=True))
        return None, None, *(next(gradients) if needs else None for needs in needed)
