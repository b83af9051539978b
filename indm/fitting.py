r"""Samples in few evaluations: the times and weights of a sampler, fitted to a model's own probability flow.

A solver in few steps errs by what it assumes between its points. What a model does there can be learned once, from a
hundred of its own trajectories, as a few dozen numbers: :func:`fit_sampler` makes a :class:`FittedSampler`.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor, nn
from tqdm.auto import tqdm

from indm.conditions import at_rows, condition_of
from indm.sampling import AdaptiveODE, DPMSolver2M, ExponentialAdams, Sampler, UniPC, check_counts, solve_latent
from indm.score import denoise
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, double, evaluation_mode

MOST_STEPS = 50  # of a fitted sampler; it has steps²/2 weights
NUMBERS, FEWEST, MOST = 4096, 64, 4096  # entries of latents that a fit has, and bounds on the trajectories
TOLERANCE = 1e-3  # of the converged trajectories, see AdaptiveODE
RULES = (UniPC(), DPMSolver2M())  # what a fit starts at, whichever is nearer
HISTORY, LEAST_GAIN = 30, 1e-6  # of L-BFGS: steps that it remembers; where it ends, as a share of the loss at the start

# Batches: the score of the flow at their conditions, z_T, and the z_0 to which it takes them.
Trajectories = list[tuple[nn.Module, Tensor, Tensor]]


@dataclass(frozen=True)
class FittedSampler(Sampler):
    r"""The probability flow through given times, where each state is a given combination of z_T and the predictions.

    .. math:: z_{t_i} = \frac{\sigma_{t_i}}{\sigma_T} z_T + \alpha_{t_i} \sum_{j<i} w_{ij} D_j, \qquad
              D_j = E[z_0 | z_{t_j}]

    Every multistep rule of the flow has this form: :meth:`of_rule`. One that was fitted ends at the denoised sample, so
    that there is no last denoising: n weights' rows are n evaluations of the score in all.

    Args:
        times: t_0, …, t_n; t_n is ε. They need not begin at T: at t_0 the state is z_T, scaled to σ of t_0.
        weights: n rows; the i-th has the i weights of the state at t_i.

    Source: Frankel et al. 2025, "S4S: Solving for a Diffusion Model Solver", https://arxiv.org/abs/2502.17423.

    Example: UniPC in 6 steps as times and weights, which lead to the same end.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> sampler, z_T = FittedSampler.of_rule(UniPC(), model.sde, 6), model.sde.prior_sample((5, 2))
        >>> z, evaluations = sampler.solve(model.score, z_T)
        >>> evaluations, torch.allclose(z, UniPC().solve(model.score, z_T, steps=6)[0], atol=1e-4)
        (6, True)
    """

    needs_scalar_sde: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    denoises: ClassVar[bool] = True

    times: Sequence[float]
    weights: Sequence[Sequence[float]]

    def __post_init__(self):
        object.__setattr__(self, "times", tuple(self.times))
        object.__setattr__(self, "weights", tuple(map(tuple, self.weights)))
        if [len(row) for row in self.weights] != [*range(1, len(self.times))] or not self.weights:
            raise ValueError(
                f"weights must be rows of 1, 2, … numbers, one row less than times, got rows of "
                f"{', '.join(str(len(row)) for row in self.weights)} for {len(self.times)} times"
            )
        for name, numbers in {"times": self.times, "weights": itertools.chain(*self.weights)}.items():
            if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} must be finite numbers, got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """The evaluations of the score."""
        return len(self.weights)

    @classmethod
    def of_rule(cls, rule: ExponentialAdams, sde: LinearSDE, steps: int) -> "FittedSampler":
        """The ``rule`` in so many steps as times and weights: what it makes of a unit impulse in each prediction."""
        impulses = _Impulses(sde, steps)
        z, _ = rule.solve(impulses, torch.zeros(1, steps, dtype=torch.float64), steps=steps)
        states = [*impulses.states[1:], z[0] / sde.alpha(sde.endpoints(z)[0])]
        rows = [state[: i + 1].tolist() for i, state in enumerate(states)]
        return cls(tuple(rule.grid(sde, steps).tolist()), tuple(map(tuple, rows)))

    def check(self, sde: LinearSDE) -> None:
        super().check(sde)
        if self.times[-1] != sde.eps:
            raise ValueError(f"eps must be {self.times[-1]:g}, for which this sampler was fitted, got {sde.eps:g}")

    def solve(
        self,
        score,
        z: Batch,
        *,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        """α_ε z_0 from z_T, and the evaluations; ``steps`` is not used."""
        self.check(score.sde)
        return combine(score, z, *self.numbers(), progress=progress), self.steps

    def numbers(self) -> tuple[Float[Tensor, " points"], list[Tensor]]:
        """Times and rows of weights, in float64."""
        rows = [torch.tensor(row, dtype=torch.float64) for row in self.weights]
        return torch.tensor(self.times, dtype=torch.float64), rows


class _Impulses(nn.Module):
    """The score whose i-th prediction E[z_0|z_t] is the i-th unit vector; keeps z_t/α_t of each evaluation."""

    def __init__(self, sde: LinearSDE, steps: int):
        super().__init__()
        self.sde, self.units, self.states = sde, torch.eye(steps, dtype=torch.float64), list[Tensor]()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        unit = self.units[len(self.states)]
        self.states.append(z[0] / alpha)
        return (alpha * unit - z) / sigma**2


def combine(
    score, z_T: Batch, times: Float[Tensor, " points"], weights: Sequence[Tensor], *, progress: bool = False
) -> Batch:
    """The last state of a :class:`FittedSampler`; differentiable in ``times`` and ``weights``, which are in float64."""
    alpha, sigma = score.sde.alpha(times).to(z_T), score.sde.sigma(times).to(z_T)
    start = z_T / score.sde.sigma(times.new_tensor(score.sde.T)).to(z_T)
    z, predictions = sigma[0] * start, list[Tensor]()
    for i, row in enumerate(tqdm(weights, desc="sampling", leave=False, disable=not progress), start=1):
        predictions.append(denoise(score, z, times[i - 1].to(z.device, z.dtype).expand(len(z))))
        change = sum(weight * prediction for weight, prediction in zip(row.to(z_T), predictions, strict=True))
        z = sigma[i] * start + alpha[i] * change
    return z


@dataclass(frozen=True)
class Fit:
    """What :func:`fit_sampler` found.

    Attributes:
        sampler: the fitted one.
        rms: root mean square distance of its z_0 from the converged ones, over held-out z_T.
        rms_before: that of the rule at which the fit started.

    Example: the result is never worse than the rule at which it started.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> fit = fit_sampler(indm.build_model(tables, (2,)), 2, samples=8, iterations=5)
        >>> fit.sampler.steps, fit.rms <= fit.rms_before
        (2, True)
    """

    sampler: FittedSampler
    rms: float
    rms_before: float


def fit_sampler(
    model,
    steps: int,
    *,
    c: Any = None,
    guidance: float = 1.0,
    samples: int | None = None,
    iterations: int = 60,
    seconds: float = math.inf,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Fit:
    r"""A sampler of ``steps`` evaluations whose z_0 are near those of the converged probability flow.

    From draws z_T of the prior, the flow is solved by the sampler "ode" to z_0 = E[z_0|z_ε]. The mean squared distance
    of the sampler's z_0 is minimised in its times and weights, by L-BFGS through its evaluations. It starts at UniPC or
    DPM-Solver++(2M), whichever is nearer. As many other draws are held out: where the result is no better on them, it
    is the rule at which it started.

    Args:
        model: an INDM, which is not changed.
        steps: evaluations of the score for one sample, all of them.
        c: conditions, of a model that has one, of which each trajectory has one at random: those of its data.
        guidance: of the trajectories, as :func:`indm.sample` takes it; an evaluation is then one of p(x|c) and of p(x).
        samples: trajectories to fit, and as many to hold out; by default as many as hold 4096 numbers, 64 to 4096.
        iterations: of L-BFGS, at most; it ends earlier where nothing moves any more.
        seconds: of the descent, at most; where they end it, the result depends on the machine.
        batch_size: trajectories at a time; memory holds all evaluations of one batch.

    Raises:
        ValueError: a number out of range, or an SDE that differs between the entries of the latent.

    Source: as :class:`FittedSampler`; learned times: Tong et al. 2025, "Learning to Discretize Denoising Diffusion
    ODEs", https://arxiv.org/abs/2405.15506.

    Example:
        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> fit = fit_sampler(model, 3, samples=16)
        >>> fit.rms < fit.rms_before
        True
        >>> indm.sample(model, 8, sampler=fit.sampler).shape
        torch.Size([8, 2])
    """
    samples = min(max(NUMBERS // math.prod(model.shape), FEWEST), MOST) if samples is None else samples
    check_counts(steps=steps, samples=samples, iterations=iterations, batch_size=batch_size)
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {steps}; 'unipc' in so many needs no fit")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}; inf is no bound")
    check_can_fit(model.sde)
    fitted, held_out = (
        _trajectories(model, c, guidance, samples, batch_size, generator, progress and f"{name} trajectories")
        for name in ("fitted", "held-out")
    )

    def rms(sampler: FittedSampler, trajectories: Trajectories) -> float:
        with evaluation_mode(model):
            return math.sqrt(sum(_squared_distance(sampler, *batch).item() for batch in trajectories) / samples)

    start = min((FittedSampler.of_rule(rule, model.sde, steps) for rule in RULES), key=lambda rule: rms(rule, fitted))
    with evaluation_mode(model, gradients=True):
        sampler = _descend(model.sde, start, fitted, iterations, seconds, progress)
    before, after = (rms(each, held_out) for each in (start, sampler))
    return Fit(sampler, after, before) if after < before else Fit(start, before, before)


def check_can_fit(sde: LinearSDE) -> None:
    """ValueError where no sampler can be fitted under the SDE."""
    if not sde.is_scalar:
        raise ValueError(
            "a fitted sampler needs an SDE that all entries of the latent share, got one that is learned entry by "
            "entry; the samplers 'heun' and 'ode' take it"
        )


def _trajectories(
    model, c: Any, guidance: float, samples: int, batch_size: int, generator: torch.Generator | None, bar: str | bool
) -> Trajectories:
    """Draws of the prior and of ``c``, and where the converged flow and the last denoising take them."""
    z_T = model.sde.prior_sample((samples, *model.shape), generator=generator, dtype=model.scaling.scale.dtype)
    if c is not None:
        c = condition_of(model, c).rows(c)
        c = c[torch.randint(len(c), (samples,), generator=generator, device=z_T.device).to(c.device)]
    batches, parts = torch.arange(samples).split(batch_size), list[tuple[nn.Module, Tensor, Tensor]]()
    for rows, part in zip(tqdm(batches, desc=str(bar), disable=not bar), z_T.split(batch_size), strict=True):
        here = at_rows(model, c, rows, guidance=guidance)
        parts.append((here.score, part, solve_latent(here, part, AdaptiveODE(TOLERANCE))[0]))
    return parts


def _squared_distance(sampler: FittedSampler | tuple[Tensor, list[Tensor]], score, z_T: Tensor, z_0: Tensor) -> Tensor:
    """Σ over a batch of the mean square over the entries of z_0, in float64."""
    times, weights = sampler.numbers() if isinstance(sampler, FittedSampler) else sampler
    off = combine(score, z_T, times, weights) / score.sde.alpha(times[-1]).to(z_0) - z_0
    return double(off).square().flatten(1).mean(1).sum()


class _Coordinates:
    r"""The numbers in which a sampler is fitted: λ_0, …, λ_{n-1} = ½ log SNR of its times, then its weights.

    A row of weights is divided by its sum where a constant prediction is integrated exactly, 1 − e^{λ_T − λ_i}: so it
    remains nearly right while its time moves.
    """

    def __init__(self, sde: LinearSDE, steps: int):
        self.sde, self.steps = sde, steps
        self.low, self.high = (0.5 * sde.log_snr(torch.tensor([sde.T, sde.eps], dtype=torch.float64))).unbind()
        self.bounds = [(self.low.item(), self.high.item())] * steps + [(None, None)] * (steps * (steps + 1) // 2)

    def sums(self, half: Tensor) -> Tensor:
        """Of the rows at times t_1, …, t_n, for λ_0, …, λ_{n-1}."""
        return -torch.expm1(self.low - torch.cat([half[1:], self.high[None]]))

    def encode(self, sampler: FittedSampler) -> np.ndarray:
        times, weights = sampler.numbers()
        half = 0.5 * self.sde.log_snr(times[:-1])
        return torch.cat([half, *(row / total for row, total in zip(weights, self.sums(half), strict=True))]).numpy()

    def decode(self, numbers: Float[Tensor, " numbers"]) -> tuple[Float[Tensor, " points"], list[Tensor]]:
        """Times and rows of weights."""
        half, *rows = numbers.split([self.steps, *range(1, self.steps + 1)])
        end = half.new_tensor([self.sde.eps])
        times = torch.cat([self.sde.time(2 * half).clamp(self.sde.eps, self.sde.T), end])
        return times, [row * total for row, total in zip(rows, self.sums(half), strict=True)]


class _OutOfTime(Exception):
    """The seconds of the descent are over."""


def _descend(
    sde: LinearSDE, start: FittedSampler, trajectories: Trajectories, iterations: int, seconds: float, progress: bool
) -> FittedSampler:
    """The nearest sampler to ``trajectories`` that L-BFGS meets on its way from ``start``."""
    coordinates, until, best = _Coordinates(sde, start.steps), time.monotonic() + seconds, (math.inf, start)
    with torch.no_grad():
        unit = sum(_squared_distance(start, *batch).item() for batch in trajectories)

    def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        theta, loss, gradient = torch.from_numpy(numbers.copy()).requires_grad_(), 0.0, np.zeros_like(numbers)
        for batch in trajectories:
            if time.monotonic() > until:
                raise _OutOfTime
            times, weights = coordinates.decode(theta)
            part = _squared_distance((times, weights), *batch)
            gradient += torch.autograd.grad(part, theta)[0].numpy()
            loss += part.item()
        if loss < best[0]:
            best = loss, FittedSampler(tuple(times.tolist()), tuple(tuple(row.tolist()) for row in weights))
        return loss / unit, gradient / unit

    with tqdm(total=iterations, desc=f"fit of {start.steps} steps", disable=not progress) as bar:
        options = {"maxiter": iterations, "maxcor": HISTORY, "ftol": LEAST_GAIN, "gtol": 0.0}
        search = {"jac": True, "method": "L-BFGS-B", "bounds": coordinates.bounds, "options": options}
        with contextlib.suppress(_OutOfTime):
            optimize.minimize(objective, coordinates.encode(start), callback=lambda _: bar.update(), **search)
    return best[1]
