"""Samplers on the latent: from the prior at T to ε, each a class whose step reads like its equation.

A new one-step sampler is a subclass of :class:`Sampler` with its ``step``. Samples are decoded once, at the end.
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import arguments_of, check_types, hints_of
from indm.conditions import all_rows, at_rows
from indm.likelihood import decode_with_log_prob, latents_of
from indm.messages import nearest
from indm.names import BUILT_IN, find
from indm.objective import ancestral_step
from indm.ode import Points, adams, converge, interpolatory_weights
from indm.rng import randn_like
from indm.score import (
    context_of,
    denoise,
    may_ripple,
    probability_flow,
    with_context,
)
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, evaluation_mode, expand_like

FLOW_TOLERANCE = 1e-4  # of the probability flow: of 256 grey levels an eightieth
STEPS = 25  # by default
FEW = 25  # steps in which, or in fewer, a network with ripples in t is not resolved
RESOLVING = 400  # steps by default where a network may have ripples in t
LONGEST_STEP, FEWEST_STEPS = 2.4, 4  # of its first solution, on the clock −log SNR
FIRST_RESOLVING = 128  # steps of the first solution for a network that may have ripples in t
VARIANCES = tuple(10.0**k for k in range(-5, 2))  # of directions of the latents that it is balanced for, towards data
OUTWARD_VARIANCES = VARIANCES[2:]  # away from data: in few steps, rates of the other would not be stable
LEAST_WEIGHT = 0.1  # of the clock in :func:`steps_in_time`
SAMPLERS = BUILT_IN["sampler"]  # the names of the samplers of this package; make_sampler makes one


class Sampler:
    """A rule that carries z_T ~ π to z_ε, by the generative SDE or by its probability flow.

    To write a one-step sampler, derive from this class, set ``order``, and define :meth:`step`. Constructor arguments
    are its options: make it a frozen dataclass, or keep each argument as an attribute of the same name. A sampler that
    remembers earlier steps, or chooses its own, defines :meth:`solve` instead. Nothing has to be registered:
    ``indm.sample(model, 8, sampler=Mine())``, on the command line ``--sampler my_package.module:Mine``.

    Attributes:
        order: of convergence in the step size: of the solution for the probability flow, of moments for the SDE.
        stochastic: whether it draws noise: then its samples are not a function of z_T.
        needs_scalar_sde: whether all entries of the latent must share one SDE (see :attr:`LinearSDE.is_scalar`).
        adaptive: whether it chooses its own steps.
        evaluations_per_step: of the score.

    Example: Euler's rule for the probability flow.

        >>> class Euler(Sampler):
        ...     order = 1
        ...     def step(self, score, z, t, s, generator=None):
        ...         f, g, delta = (expand_like(v, z) for v in (score.sde.drift(t), score.sde.diffusion(t), s - t))
        ...         return z + (f * z - 0.5 * g**2 * score(z, t)) * delta
        >>> make_sampler(Euler).order
        1
    """

    order: ClassVar[int]
    stochastic: ClassVar[bool] = False
    needs_scalar_sde: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    evaluations_per_step: ClassVar[int] = 1

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        """The times T = t_0 > … > t_steps = ε between which it steps, (steps + 1,) in float64."""
        return log_snr_grid(sde, steps)

    def step(self, score, z: Batch, t: PerSample, s: PerSample, generator: torch.Generator | None = None) -> Tensor:
        """z_s from z_t for s < t; ``score(z, t)`` is ∇log p_t, ``score.sde`` its SDE."""
        raise NotImplementedError(f"{type(self).__name__} must define step, or solve")

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        """z_ε from z_T, and the evaluations of the score for one sample.

        Raises:
            ValueError: the SDE differs between the entries of the latent, and this sampler cannot take that.
        """
        self.check(score.sde)
        for t, s in intervals(self.grid(score.sde, steps), z, progress):
            z = self.step(score, z, t, s, generator)
        return z, steps * self.evaluations_per_step

    def check(self, sde: LinearSDE) -> None:
        """ValueError where this sampler cannot take the SDE."""
        if self.needs_scalar_sde and not sde.is_scalar:
            able = [name for name in SAMPLERS if not find("sampler", name).needs_scalar_sde]
            raise ValueError(
                f"sampler must be one of {', '.join(able)} where entries have clocks of their own, got "
                f"{type(self).__name__}"
            )

    def options(self) -> dict[str, Any]:
        """Its constructor arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def able_samplers(model, names: Iterable[str]) -> list[str]:
    """Those of the samplers ``names`` that take the model's SDE."""
    return [name for name in names if model.is_scalar or not make_sampler(name).needs_scalar_sde]


def default_sampler(model) -> str:
    """UniPC, the best in few steps; Heun's method where each entry of the latent has an SDE of its own."""
    return "unipc" if model.is_scalar else "heun"


def default_steps(model) -> int:
    """25, and 400 where the network may have ripples in t."""
    return RESOLVING if may_ripple(model.score) else STEPS


def make_sampler(sampler: str | type[Sampler] | Sampler, **options: Any) -> Sampler:
    """A sampler from its name, its class, or itself.

    Args:
        sampler: a name in :data:`SAMPLERS`, ``"package.module:Class"`` (see :func:`indm.trust`), a class, or an object.
        options: arguments of the class.

    Raises:
        ValueError: an unknown name (with the nearest that exists), an option that the sampler does not have, or a value
            that it does not take.

    >>> make_sampler("pc", snr=0.1)
    PredictorCorrector(snr=0.1)
    """
    if isinstance(sampler, Sampler):
        if options:
            raise ValueError(f"{next(iter(options))} must be given to {type(sampler).__name__} where it is made")
        return sampler
    kind = find("sampler", sampler)
    if not (isinstance(kind, type) and issubclass(kind, Sampler)):
        raise ValueError(f"sampler must be a subclass of indm.sampling.Sampler, got {sampler!r}")
    known = arguments_of(kind)
    for name, value in options.items():
        if name not in known:
            others = [repr(other) for other in SAMPLERS if name in inspect.signature(find("sampler", other)).parameters]
            hint = f"; {' and '.join(others)} has it" if others else nearest(name, known) if known else ""
            raise ValueError(f"{name} must be left out with sampler {sampler!r}, got {value}{hint}")
    check_types(options, hints_of(kind, known), "sampler.")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
    except TypeError as error:
        raise ValueError(f"sampler {sampler!r} cannot be made from {options}: {error}") from error


def log_snr_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in log-SNR, (steps + 1,) in float64."""
    low, high = sde.log_snr(torch.tensor([sde.T, sde.eps], dtype=torch.float64))
    times = sde.time(torch.lerp(low, high, torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    times[0], times[-1] = sde.T, sde.eps
    return times


def time_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε of :func:`steps_in_time`, (steps + 1,) in float64."""
    start, end = (-sde.log_snr(torch.tensor([sde.T, sde.eps], dtype=torch.float64))).tolist()
    times = sde.time(-torch.tensor(steps_in_time(sde)(start, end, steps), dtype=torch.float64))
    times[0], times[-1] = sde.T, sde.eps
    return times


def uniform_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in t, (steps + 1,) in float64."""
    return torch.linspace(sde.T, sde.eps, steps + 1, dtype=torch.float64)


def intervals(grid: Tensor, z: Tensor, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (t, s) of successive times of ``grid``, each (B,) like ``z``; with ``progress``, under a bar."""
    grid = grid.to(z.device, z.dtype)
    pairs = itertools.pairwise(grid)
    for t, s in tqdm(pairs, total=len(grid) - 1, desc="sampling", leave=False, disable=not progress):
        yield t.expand(len(z)), s.expand(len(z))


def _check_positive(name: str, value: object, usual: float, most: int = 1) -> None:
    """ValueError unless ``value`` is a positive, finite number, or a tuple of up to ``most`` of them."""
    numbers = value if isinstance(value, tuple) else (value,)
    positive = all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
    if not (1 <= len(numbers) <= most and positive):
        raise ValueError(f"{name} must be positive and finite, got {value}; {usual:g} is usual")


# ── of the generative SDE ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """z_s = z − [f z − g² s_θ] Δ + g √Δ n, Δ = t − s, on a uniform grid (the reverse-time SDE).

    Example: for N(0, I) and its exact score under VP, −z, it takes z to (1 − βΔ/2) z + √(βΔ) n.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> sde, z, t = VPSDE(), torch.randn(3, 2), torch.full((3,), 0.5)
        >>> z_s = EulerMaruyama().step(ScoreModel(Zero(), sde), z, t, t - 0.01, torch.Generator().manual_seed(0))
        >>> rate, n = 0.01 * sde.beta(t)[:, None], torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(z_s, (1 - rate / 2) * z + rate.sqrt() * n, atol=1e-5)
        True
    """

    order = 1
    stochastic = True

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        return uniform_grid(sde, steps)

    def step(self, score, z: Batch, t: PerSample, s: PerSample, generator: torch.Generator | None = None) -> Tensor:
        delta, g = expand_like(t - s, z), expand_like(score.sde.diffusion(t), z)
        drift = expand_like(score.sde.drift(t), z) * z - g**2 * score(z, t)
        return z - drift * delta + g * delta.sqrt() * randn_like(z, generator)


@dataclass(frozen=True)
class Ancestral(Sampler):
    """z_s from q(z_s|z_t, z_0) at z_0 = E[z_0|z_t], in equal steps of log-SNR.

    ``indm.nelbo(…, ancestral=steps)`` bounds −log p of what it samples.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239.

    Example: where all data are one point, here 0, few steps are as good as many: z_ε has the deviation σ_ε.

        >>> from indm import VPSDE
        >>> class Point(torch.nn.Module):
        ...     sde = VPSDE()
        ...     def forward(self, z, t):
        ...         return -z / expand_like(self.sde.sigma(t) ** 2, z)
        >>> z, _ = Ancestral().solve(Point(), torch.randn(5000, 2), steps=3)
        >>> torch.allclose(z.std(), Point.sde.sigma(torch.tensor(1e-5)), rtol=0.1)
        True
    """

    order = 1
    stochastic = True

    def step(self, score, z: Batch, t: PerSample, s: PerSample, generator: torch.Generator | None = None) -> Tensor:
        mean, std = ancestral_step(score, z, t, s)
        return mean + std * randn_like(z, generator)


@dataclass(frozen=True)
class SDEDPMSolver2M(Sampler):
    r"""SDE-DPM-Solver++(2M): :class:`Ancestral` steps with the prediction D = E[z_0|z_t] extrapolated to their middle.

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} e^{-h} z_t + \alpha_s (1 - e^{-2h}) (D_t + \tfrac{h}{2h'} (D_t - D_{t'}))
              + \sigma_s \sqrt{1 - e^{-2h}}\, n

    h and h' are the lengths in λ = ½ log SNR of this step and of the one before, which began at t'.

    Source: Lu et al. 2022, "DPM-Solver++", https://arxiv.org/abs/2211.01095.

    Example: N(0, I) under VP. The variance of samples is near 1 in steps in which it is not by ``Ancestral``.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(20_000, 2)
        >>> ours, theirs = (rule.solve(score, z, steps=25)[0] for rule in (SDEDPMSolver2M(), Ancestral()))
        >>> abs(ours.var().item() - 1) < 0.1, theirs.var().item() < 0.8
        (True, True)
    """

    order = 2
    stochastic = True

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        sde, before = score.sde, tuple[Tensor, ...]()  # the last prediction, and h'
        for t, s in intervals(self.grid(sde, steps), z, progress):
            h = expand_like(0.5 * (sde.log_snr(s) - sde.log_snr(t)), z)
            prediction = middle = denoise(score, z, t)
            if before:
                middle = prediction + 0.5 * h / before[1] * (prediction - before[0])
            alpha, sigma, shrunk = (
                expand_like(v, z) for v in (sde.alpha(s), sde.sigma(s), sde.sigma(s) / sde.sigma(t))
            )
            mean = shrunk * (-h).exp() * z - alpha * torch.expm1(-2 * h) * middle
            z = mean + sigma * (-torch.expm1(-2 * h)).sqrt() * randn_like(z, generator)
            before = prediction, h
        return z, steps


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of reverse diffusion, then one Langevin step at its end, on a uniform grid.

    Args:
        snr: signal-to-noise ratio of the Langevin steps; of two numbers, the first is the ratio at T and the second at
            ε, linear in time in between. Published with VE: 0.16 on CIFAR-10, 0.17 on CelebA; INDM: 0.14 to 0.16,
            0.15. The Langevin steps leave a bias of order snr², which more steps do not remove.

    Source: Song et al. 2021, algorithms 2–5, https://arxiv.org/abs/2011.13456.

    Example: N(0, I) and its exact score, whose law stays what it is.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score = ScoreModel(Zero(), VPSDE())
        >>> z, evaluations = PredictorCorrector(snr=0.1).solve(score, torch.randn(5000, 2), steps=50)
        >>> evaluations, abs(z.std().item() - 1) < 0.1
        (100, True)
    """

    order = 1
    stochastic = True
    evaluations_per_step = 2

    snr: float | tuple[float, ...] = 0.16

    def __post_init__(self):
        _check_positive("snr", self.snr, usual=0.16, most=2)

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        return uniform_grid(sde, steps)

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        numbers = self.snr if isinstance(self.snr, tuple) else (self.snr,)
        first, last = numbers[0], numbers[-1]
        for i, (t, s) in enumerate(intervals(self.grid(score.sde, steps), z, progress), start=1):
            z = reverse_diffusion_step(score, z, t, s, generator)
            z = langevin_step(score, z, s, first + (last - first) * i / steps, generator)
        return z, steps * self.evaluations_per_step


def reverse_diffusion_step(score, z: Tensor, t: Tensor, s: Tensor, generator=None) -> Tensor:
    """z_s = (2 − a) z + G² s_θ + G n for the forward kernel z_t = a z_s + G n from s to t."""
    a, variance = (expand_like(v, z) for v in score.sde.transition_moments(s, t))
    return (2 - a) * z + variance * score(z, t) + variance.sqrt() * randn_like(z, generator)


def langevin_step(score, z: Tensor, t: Tensor, snr: float, generator=None) -> Tensor:
    """z + η s_θ + √(2η) n with η = 2 (snr ‖n‖/‖s_θ‖)², norms averaged over the batch."""
    s, noise = score(z, t), randn_like(z, generator)
    norms = [v.flatten(1).norm(dim=1).mean() for v in (noise, s)]
    eta = 2 * (snr * norms[0] / norms[1]) ** 2
    return z + eta * s + (2 * eta).sqrt() * noise


# ── of the probability flow ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Heun's rule for the probability flow as dy/dν = ε̂, y = z/α, ν = σ/α, ε̂ = −σ s_θ; equal steps in log-SNR.

    Source: Karras et al. 2022, "Elucidating the Design Space", algorithm 1, https://arxiv.org/abs/2206.00364.

    Example: N(0, I) under VP, where z_ε is z_T. Twice the steps leave a quarter of the error.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> rough, fine = ((Heun().solve(score, z, steps=steps)[0] - z).norm() for steps in (40, 80))
        >>> bool(3.5 < rough / fine < 4.5)
        True
    """

    order = 2
    evaluations_per_step = 2

    def step(self, score, z: Batch, t: PerSample, s: PerSample, generator: torch.Generator | None = None) -> Tensor:
        alpha_t, alpha_s = (expand_like(score.sde.alpha(time), z) for time in (t, s))
        return self._step(score, z / alpha_t, t, s) * alpha_s

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        alpha_eps, alpha_T = (expand_like(score.sde.alpha(time), z) for time in score.sde.endpoints(z))
        y = z / alpha_T
        for t, s in intervals(self.grid(score.sde, steps), z, progress):
            y = self._step(score, y, t, s)
        return y * alpha_eps, steps * self.evaluations_per_step

    def _step(self, score, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """y_s from y_t."""
        sde = score.sde

        def noise(y: Tensor, t: Tensor) -> Tensor:
            return -expand_like(sde.sigma(t), y) * score(expand_like(sde.alpha(t), y) * y, t)

        delta = expand_like(sde.sigma(s) / sde.alpha(s) - sde.sigma(t) / sde.alpha(t), y)
        slope = noise(y, t)
        return y + 0.5 * delta * (slope + noise(y + delta * slope, s))


class ExponentialAdams(Sampler):
    """The probability flow as d(z/σ)/dλ = e^λ E[z_0|z_t], λ = ½ log SNR: multistep, one evaluation a step.

    The exponential is integrated exactly, the prediction E[z_0|z_t] as the polynomial through its last values: of a
    predictor of order p the last p. With a ``corrector``, of order p + 1, each step is repeated once the prediction at
    its end is known, with that value added; the prediction itself is not computed again. Where the network may have
    ripples in t, steps are those of :func:`steps_in_time`.
    """

    needs_scalar_sde = True
    corrector: ClassVar[bool] = False

    def times(self, score, steps: int) -> Tensor:
        """The times between which it steps: its grid, or :func:`time_grid` where the network may have ripples in t."""
        return time_grid(score.sde, steps) if may_ripple(score) else self.grid(score.sde, steps)

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        self.check(score.sde)
        sde, grid, points_kept = score.sde, self.times(score, steps), self.order - self.corrector
        alpha, sigma, half = (v.tolist() for v in (sde.alpha(grid), sde.sigma(grid), 0.5 * sde.log_snr(grid)))

        def advance(z: Tensor, i: int, points: list[tuple[float, Tensor]]) -> Tensor:
            weights = exponential_weights([node for node, _ in points], half[i], half[i + 1])
            change = sum(weight * value for weight, (_, value) in zip(weights, points, strict=True))
            return sigma[i + 1] / sigma[i] * z + alpha[i + 1] * change

        points: list[tuple[float, Tensor]] = []  # (λ, prediction), newest first
        before = z
        for i, (t, _) in enumerate(intervals(grid, z, progress)):
            points = [(half[i], denoise(score, z, t)), *points[:points_kept]]
            if self.corrector and i > 0:
                z = advance(before, i - 1, points)
            before, z = z, advance(z, i, points[:points_kept])
        return z, steps


def exponential_weights(nodes: list[float], start: float, end: float) -> list[float]:
    r"""w_j with :math:`\sum_j w_j p(\lambda_j) = \int_{start}^{end} e^{\lambda - end} p(\lambda)\,d\lambda` for every
    polynomial p of a degree below the number of ``nodes`` λ_j."""
    h = end - start
    moments = [-math.expm1(-h)]  # of the powers of (λ − start)/h
    for j in range(1, len(nodes)):
        moments.append(1.0 - j / h * moments[-1])
    return interpolatory_weights(nodes, start, end, moments)


@dataclass(frozen=True)
class DPMSolver2M(ExponentialAdams):
    """DPM-Solver++(2M): second-order multistep, one evaluation a step, see :class:`ExponentialAdams`.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2, https://arxiv.org/abs/2211.01095.

    Example: N(0, I) under VP, where z_ε is z_T. Twice the steps leave a quarter of the error.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> rough, fine = ((DPMSolver2M().solve(score, z, steps=steps)[0] - z).norm() for steps in (40, 80))
        >>> bool(3.5 < rough / fine < 4.5)
        True
    """

    order = 2


@dataclass(frozen=True)
class DPMSolver3M(ExponentialAdams):
    """DPM-Solver++(3M): third-order multistep, one evaluation a step. Source: as :class:`DPMSolver2M`.

    Example: N(0, I) under VP, where z_ε is z_T. It is nearer than ``DPMSolver2M`` in twice as many steps.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> ours, theirs = DPMSolver3M().solve(score, z, steps=40)[0], DPMSolver2M().solve(score, z, steps=80)[0]
        >>> bool((ours - z).norm() < (theirs - z).norm())
        True
    """

    order = 3


@dataclass(frozen=True)
class UniPC(ExponentialAdams):
    """UniPC: DPM-Solver++(3M) with a corrector of fourth order that costs no evaluation.

    Source: Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867 (with exact integrals of the interpolant).

    Example: N(0, I) under VP, where z_ε is z_T. It is nearer than ``DPMSolver3M`` in as many evaluations.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> (ours, count), (theirs, as_many) = (rule.solve(score, z, steps=20) for rule in (UniPC(), DPMSolver3M()))
        >>> count, as_many, bool((ours - z).norm() < (theirs - z).norm())
        (20, 20, True)
    """

    order = 4
    corrector = True


@dataclass(frozen=True)
class AdaptiveODE(Sampler):
    """The probability-flow ODE in as many steps as an error of ``tol`` takes, see :func:`follow_flow`.

    Args:
        tol: largest root mean square error of a sample's latent, in units of its standard deviation √(α² + σ²).

    Example: N(0, I) under VP, where z_ε is z_T.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> z_eps, evaluations = AdaptiveODE(tol=1e-3).solve(score, z)
        >>> bool((z_eps - z).square().mean(1).sqrt().max() < 1e-3)
        True
    """

    order = 4
    adaptive = True

    tol: float = FLOW_TOLERANCE

    def __post_init__(self):
        _check_positive("tol", self.tol, usual=FLOW_TOLERANCE)

    def solve(
        self,
        score,
        z: Batch,
        *,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        """z_ε from z_T, and the evaluations of the sample that took the most; ``steps`` is not used."""
        return follow_flow(score, z, score.sde.T, score.sde.eps, tol=self.tol, progress=progress)


def follow_flow(
    score,
    z: Tensor,
    t: float,
    s: float,
    *,
    tol: float = FLOW_TOLERANCE,
    steps: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, int]:
    """z at time s from z at time t, in either direction, by the probability-flow ODE on the clock −log SNR.

    Steps are equal on the clock. A network that may have ripples in t needs more of them where t changes quickly: there
    they are those of :func:`steps_in_time`, by Adams' method of order 2: higher ones amplify what they do not resolve.

    Args:
        tol: largest root mean square error of a sample, in units of √(α² + σ²): :func:`indm.ode.converge`, in the
            coordinate of :func:`balance`.
        steps: use :func:`indm.ode.adams` with this many steps instead, in that coordinate, too.

    Returns:
        z_s, and the evaluations of the score for the sample that took the most.

    Warns:
        RuntimeWarning: ``tol`` is out of reach.
    """
    sde = score.sde
    ends = -sde.log_snr(torch.tensor([t, s], dtype=torch.float64))
    start, end = ends.tolist()
    variances = VARIANCES if end < start else OUTWARD_VARIANCES
    log_c_end = balance(ends[1:], variances)[0]

    def coordinate(clock: Tensor) -> tuple[Tensor, Tensor]:
        """c of z = c v √(α² + σ²), which is 1 at the end, and d log c/dclock, for rows like those of z."""
        log_c, rate = balance(clock, variances)
        return expand_like((log_c - log_c_end).exp().to(z), z), expand_like(rate.to(z), z)

    def field(clock: Tensor, state: tuple[Tensor, ...], *given: Tensor) -> tuple[Tensor, ...]:
        (v,), (c, rate) = state, coordinate(clock)
        bar.update()
        return (probability_flow(with_context(score, given), clock)(c * v) / c - rate * v,)

    before, after = (expand_like(sde.marginal_std(z.new_full((len(z),), time)), z) for time in (t, s))
    state: tuple[Tensor, ...] = (z / before / coordinate(ends[:1])[0],)
    options: dict[str, Any] = {"context": context_of(score)}
    if may_ripple(score):
        options |= {"points": steps_in_time(sde), "order": 2}
    with tqdm(desc="probability flow (evaluations)", leave=False, disable=not progress) as bar:
        if steps is not None:
            (v,), nfe, _, _ = adams(field, state, start, end, steps=steps, **options)
            return after * v, nfe
        first = max(FEWEST_STEPS, math.ceil(abs(end - start) / LONGEST_STEP))
        if may_ripple(score):
            first = max(first, math.ceil(FIRST_RESOLVING * abs(t - s) / sde.T))
        solution = converge(field, state, start, end, tol=tol, first=first, **options)
    return after * solution.state[0], int(solution.nfe.max())


def steps_in_time(sde: LinearSDE) -> Points:
    """Points on the clock −log SNR, equally spaced in a mean of t and the clock, each as a share of its way.

    The clock has a weight of 25 steps, at least 0.1: up to 25 steps are equal on the clock.
    """

    def points(start: float, end: float, steps: int) -> list[float]:
        clock = torch.linspace(start, end, 10_001, dtype=torch.float64)
        t = sde.time(-clock)
        weight = min(1.0, max(LEAST_WEIGHT, FEW / steps))
        along = (1 - weight) * (t - t[0]) / (t[-1] - t[0]) + weight * (clock - start) / (end - start)
        return np.interp(np.linspace(0, 1, steps + 1), along.numpy(), clock.numpy()).tolist()

    return points


def balance(clock: PerSample, variances: tuple[float, ...]) -> tuple[PerSample, PerSample]:
    r"""log c and d log c/dclock of the coordinate v = z_t/(c √(α_t² + σ_t²)), r = e^clock = σ²/α²:

    .. math:: c^2 = \prod_i \left(\frac{\lambda_i + r}{1 + r}\right)^{1/n}

    The probability flow of N(0, λI) keeps z_t/√(λα_t² + σ_t²). In z_t/√(α_t² + σ_t²), which is kept for λ = 1, it
    stretches a direction of variance λ ≪ 1 by e^{clock/2} from r = λ to 1, and steps of a whole unit are not stable on
    the way back. Latents have directions of many variances, those of images of clothes from 1e-4 to 8. In the geometric
    mean of the coordinates for n ``variances`` λ_i, rates are about half as large, and directions are still nearly at
    rest at both ends. Away from data nothing is unstable in z_t/√(α_t² + σ_t²), but balance makes errors smaller.
    """
    r = clock.exp()[..., None]
    own = r.new_tensor(variances)
    log_c = 0.5 * ((own + r) / (1 + r)).log().mean(-1)
    return log_c, 0.5 * (r / (own + r) - r / (1 + r)).mean(-1)


# ── from z_T to data ─────────────────────────────────────────────────────────────────────────────────────────────


def sample(
    model,
    shape_or_n: int | tuple[int, ...],
    *,
    c: Any = None,
    guidance: float = 1.0,
    sampler: str | type[Sampler] | Sampler | None = None,
    steps: int | None = None,
    eps: float | None = None,
    temperature: float = 1.0,
    last_denoising: bool = True,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples: prior → reverse process on the latent → h_φ⁻¹.

    Args:
        model: an INDM.
        shape_or_n: how many (the model then knows its event shape), or the whole shape with the batch axis.
        c: the condition, of a model that has one: for all samples or one for each, see :meth:`indm.INDM.given`. Of a
            model that knows p(x), too (``condition.drop``), None samples that.
        guidance: w of :class:`indm.score.GivenScore`: above 1 samples are more typical of c and less diverse, at two
            evaluations each. Only 1, which is the model, has a likelihood.
        sampler: a name in :data:`SAMPLERS`, or a :class:`Sampler`, such as ``PredictorCorrector(snr=0.1)``; default:
            "unipc", and "heun" where each entry of the latent has an SDE of its own.
        steps: time steps ("ode" takes as many as its tolerance needs); default: :func:`default_steps`.
        eps: truncation at which the reverse process ends; default: the SDE's own, which is also the least.
        temperature: factor on the latent before it is decoded; 1.0 samples the model.
        last_denoising: z_0 is E[z_0 | z_ε] at the end; else it is z_ε/α_ε.
        batch_size: samples at a time.

    Returns:
        x in model units, (n, *event); ``model.scaling.to_data`` gives grey levels.

    Raises:
        ValueError: an unknown sampler, a sampler that cannot take the SDE, or a number out of range.
        RuntimeError: where the flow's inverse did not converge (see ``Flow.inverse``).

    Warns:
        RuntimeWarning: the network does not say that it is smooth in t (``is_smooth``), as the published ones are not,
            and the sampler takes 25 steps or fewer.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))  # its density is N(0, I)
        >>> sample(model, 8, sampler="heun", steps=10).shape
        torch.Size([8, 2])
    """
    steps = default_steps(model) if steps is None else steps
    check_counts(steps=steps)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}; 1 samples the model")
    sampler = make_sampler(default_sampler(model) if sampler is None else sampler)
    if steps <= FEW and not sampler.adaptive and may_ripple(model.score):
        warnings.warn(
            f"the network may have ripples in t, and samples in {steps} steps may then be far from converged ones; "
            f"leave steps out to take {RESOLVING}",
            RuntimeWarning,
            stacklevel=2,
        )
    model, parts = model.truncated(eps), []
    with evaluation_mode(model):
        for _, part, z_T in prior_batches(model, shape_or_n, c, guidance, batch_size, generator, progress):
            z, _ = solve_latent(part, z_T, sampler, steps, last_denoising, generator=generator, progress=progress)
            parts.append(part.decode(temperature * z))
    return torch.cat(parts)


def sample_with_log_prob(
    model,
    shape_or_n: int | tuple[int, ...],
    *,
    c: Any = None,
    eps: float | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **solver: Any,
) -> tuple[Tensor, Tensor]:
    """Samples h_φ⁻¹(z_ε/α_ε) of the probability flow and their log p(x), from one solve of the ODE.

    They are the samples of ``sample(…, sampler="ode", last_denoising=False)``, and log p(x) is :meth:`INDM.log_prob`.

    Args:
        model, shape_or_n, c, eps, batch_size: as of :func:`sample`.
        **solver: ``probes``, ``exact``, ``nll_error``, ``steps`` and ``reference``, as in :func:`indm.log_likelihood`.

    Returns:
        x in model units, (n, *event), and log p(x) in nats, (n,).

    Raises:
        ValueError: a number out of range, or a flow without a density.
        RuntimeError: the score is not finite, or the flow's inverse did not converge.

    Example: the normalising constant of a density from samples of a model near it.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> x, log_prob = sample_with_log_prob(indm.build_model(tables, (2,)), 1000)
        >>> weights = (-x.square().sum(1) - log_prob).exp()  # exp(−‖x‖²) integrates to π
        >>> abs(weights.mean().item() - math.pi) < 0.3
        True
    """
    model, parts = model.truncated(eps), []
    with evaluation_mode(model):
        for _, part, z_T in prior_batches(model, shape_or_n, c, 1.0, batch_size, generator, progress):
            x, log_prob, _ = decode_with_log_prob(part, z_T, generator=generator, **solver)
            parts.append((x, log_prob))
    samples, log_probs = zip(*parts, strict=True)
    return torch.cat(samples), torch.cat(log_probs)


def prior_batches(
    model,
    shape_or_n: int | tuple[int, ...],
    c: Any,
    guidance: float,
    batch_size: int,
    generator: torch.Generator | None,
    progress: bool,
) -> Iterator[tuple[Tensor, Any, Batch]]:
    """Batches of z_T ~ π: the numbers of its samples, the model at their conditions, and z_T."""
    shape = (shape_or_n, *model.shape) if isinstance(shape_or_n, int) else tuple(shape_or_n)
    check_counts(shape_or_n=shape[0], batch_size=batch_size)
    c, batches = all_rows(model, c, shape[0]), torch.arange(shape[0]).split(batch_size)
    for rows in tqdm(batches, desc="batches", disable=not progress or len(batches) == 1):
        part, size = at_rows(model, c, rows, guidance=guidance), (len(rows), *shape[1:])
        yield rows, part, model.sde.prior_sample(size, generator=generator, dtype=model.scaling.scale.dtype)


def check_counts(**counts: int) -> None:
    """ValueError naming a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def solve_latent(
    model,
    z_T: Batch,
    sampler: Sampler,
    steps: int | None = None,
    last_denoising: bool = True,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Batch, int]:
    """z_0 from z_T by a sampler: z_ε/α_ε or, with ``last_denoising``, E[z_0|z_ε]; and the evaluations of the score.

    A model that has a condition, and was not given any, samples p(x), if it knows that.
    """
    model = at_rows(model, None, torch.arange(len(z_T)))
    with evaluation_mode(model):
        options: Any = {"steps": steps, "generator": generator, "progress": progress}
        score = model.score
        z, nfe = sampler.solve(score, z_T, **options)
        eps = score.sde.endpoints(z)[0]
        if not last_denoising:
            return z / expand_like(score.sde.alpha(eps), z), nfe
        return denoise(score, z, eps), nfe + 1


def change_in_twice_the_steps(
    model,
    x: Batch | None,
    z_T: Batch,
    sampler: Sampler,
    steps: int,
    *,
    temperature: float = 1.0,
    last_denoising: bool = True,
) -> PerSample:
    """How far samples are from those of the same z_T in twice as many steps: RMS over the entries, (B,).

    For a method of order p it is the error of the samples times 1 − 2⁻ᵖ, so 25 % too small at order 2 and 12 % at
    order 3. The unit is a grey level (values beyond the first and the last count as these), or of continuous data the
    deviation of a column: a unit of the model.

    Args:
        model: an INDM, at the conditions of the samples.
        x: samples in model units, from z_T in ``steps``.
        sampler: neither stochastic nor adaptive.

    Raises:
        ValueError: a stochastic or adaptive sampler.
    """
    if sampler.stochastic or sampler.adaptive:
        raise ValueError(f"sampler must take fixed steps without noise, got {sampler}")

    def solved(steps: int) -> Batch:
        z, _ = solve_latent(model, z_T, sampler, steps, last_denoising)
        return model.decode(temperature * z)

    with evaluation_mode(model):
        both, scaling = (x, solved(2 * steps)), model.scaling
        if scaling.levels is not None:
            both = tuple((part * scaling.scale + scaling.shift).clamp(0, scaling.levels) for part in both)
    return (both[0] - both[1]).flatten(1).square().mean(1).sqrt()


def centre_prior(
    model, raw: Tensor, *, c: Any = None, batch_size: int = 256, generator: torch.Generator | None = None
) -> None:
    """Put the mean of the prior where the diffusion takes the mean of data: α_T times the mean of h(x).

    Args:
        model: an INDM, which is changed.
        raw: data in data units, (n, *event).
        c: their conditions, where the flow sees one.
    """
    mean = latents_of(model, raw, c=c, batch_size=batch_size, generator=generator).mean(0, keepdim=True)
    sde = model.score.sde
    with torch.no_grad():
        sde.prior_mean = (expand_like(sde.alpha(sde.endpoints(mean)[1]), mean) * mean)[0]
