"""Samplers of the probability flow: with an exactly integrated linear part in given steps, or to a
stated tolerance.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.ode import adams, converge, interpolatory_weights
from indm.protocols import Score
from indm.sampling.base import Sampler, check_positive, intervals, steps_in_time, time_grid
from indm.score import context_of, denoise, is_smooth, probability_flow, with_context
from indm.tensors import Batch, PerSample, expand_like

FLOW_TOLERANCE = 1e-4  # tolerance of the probability flow: an eightieth of one of 256 grey levels
# longest step and fewest steps of the flow's first solution, on the clock −log SNR
LONGEST_STEP, FEWEST_FIRST = 2.4, 4
FIRST_RESOLVING = 128  # steps of the first solution for a network that may have ripples in t
# variances of latents for :func:`balance`, towards data
VARIANCES = tuple(10.0**k for k in range(-5, 2))
# away from data: in few steps, rates of the other variances would not be stable
OUTWARD_VARIANCES = VARIANCES[2:]


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Heun's rule for the probability flow as dy/dν = ε̂, y = z/α, ν = σ/α, ε̂ = −σ s_θ; equal
    steps in log-SNR.

    Source: Karras et al. 2022, "Elucidating the Design Space", algorithm 1,
    https://arxiv.org/abs/2206.00364.

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

    def step(self, score: Score, z: Batch, t: PerSample, s: PerSample, generator=None) -> Tensor:
        sde = score.sde
        alpha_t, alpha_s, sigma_t, sigma_s = (
            expand_like(v, z) for v in (sde.alpha(t), sde.alpha(s), sde.sigma(t), sde.sigma(s))
        )
        y, delta = z / alpha_t, sigma_s / alpha_s - sigma_t / alpha_t
        slope = -sigma_t * score(z, t)
        slope = 0.5 * (slope - sigma_s * score(alpha_s * (y + delta * slope), s))
        return alpha_s * (y + delta * slope)


class ExponentialAdams(Sampler):
    """The probability flow as d(z/σ)/dλ = e^λ E[z_0|z_t], λ = ½ log SNR: multistep, one evaluation
    a step.

    The exponential is integrated exactly, E[z_0|z_t] as the polynomial through its last values: of
    a predictor of order p the last p. With a ``corrector``, of order p + 1, each step is repeated
    with the prediction at its end added. Where the network may have ripples in t, steps are placed
    by :func:`steps_in_time`.
    """

    corrector: ClassVar[bool] = False

    def solve(
        self,
        score: Score,
        z: Batch,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        sde, points_kept = score.sde, self.order - self.corrector
        grid = self.grid(sde, steps) if is_smooth(score) else time_grid(sde, steps)
        alpha, sigma, half = (
            v.tolist() for v in (sde.alpha(grid), sde.sigma(grid), 0.5 * sde.log_snr(grid))
        )

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
    r"""w_j with
    :math:`\sum_j w_j p(\lambda_j) = \int_{start}^{end} e^{\lambda - end} p(\lambda)\,d\lambda` for
    every polynomial p of a degree below the number of ``nodes`` λ_j.
    """
    h = end - start
    moments = [-math.expm1(-h)]  # moments of the powers of (λ − start)/h
    for j in range(1, len(nodes)):
        moments.append(1.0 - j / h * moments[-1])
    return interpolatory_weights(nodes, start, end, moments)


@dataclass(frozen=True)
class DPMSolver2M(ExponentialAdams):
    """DPM-Solver++(2M): second-order multistep, one evaluation a step.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2, https://arxiv.org/abs/2211.01095.

    Example: N(0, I) under VP, where z_ε is z_T.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> rough, fine = ((DPMSolver2M().solve(score, z, steps=steps)[0] - z).norm() for steps in (40, 80))
        >>> bool(3.5 < rough / fine < 4.5)
        True
    """

    order = 2


@dataclass(frozen=True)
class UniPC(ExponentialAdams):
    """UniPC: a predictor of third order with a corrector of fourth order that costs no evaluation.

    Source: Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867 (with exact integrals of the
    interpolant).

    Example: as above, it is nearer than ``DPMSolver2M`` in as many evaluations.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> (ours, count), (theirs, as_many) = (rule.solve(score, z, steps=20) for rule in (UniPC(), DPMSolver2M()))
        >>> count, as_many, bool((ours - z).norm() < (theirs - z).norm())
        (20, 20, True)
    """

    order = 4
    corrector = True


# ── To a tolerance ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class AdaptiveODE(Sampler):
    """The probability-flow ODE in as many steps as an error of ``tol`` takes, see
    :func:`follow_flow`.

    Args:
        tol: largest root mean square error of a sample's latent, in units of its standard deviation
            √(α² + σ²).

    Example: N(0, I) under VP, where z_ε is z_T.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> z_eps, evaluations = AdaptiveODE(tol=1e-3).solve(ScoreModel(Zero(), VPSDE()), z)
        >>> bool((z_eps - z).square().mean(1).sqrt().max() < 1e-3)
        True
    """

    order = 4
    adaptive = True

    tol: float = FLOW_TOLERANCE

    def __post_init__(self):
        check_positive("tol", self.tol, usual=FLOW_TOLERANCE)

    def solve(
        self, score: Score, z: Batch, *, steps=None, generator=None, progress=False
    ) -> tuple[Tensor, int]:
        """z_ε from z_T, and the evaluations of the sample that took the most; ``steps`` is not
        used.
        """
        return follow_flow(score, z, score.sde.T, score.sde.eps, tol=self.tol, progress=progress)


def follow_flow(
    score: Score,
    z: Tensor,
    t: float,
    s: float,
    *,
    tol: float = FLOW_TOLERANCE,
    steps: Any = None,
    progress=False,
) -> tuple[Tensor, int]:
    """z at time s from z at time t, in either direction, by the probability-flow ODE on the clock
    −log SNR.

    Steps are equal on the clock, or as :func:`steps_in_time` says by Adams' method of order 2 where
    a network may have ripples in t: higher orders amplify ripples that the steps do not resolve.

    Args:
        tol: largest root mean square error of a sample, in units of √(α² + σ²):
            :func:`indm.ode.converge`, in the coordinate of :func:`balance`.
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
        """c of z = c v √(α² + σ²), which is 1 at the end, and d log c/dclock, in shapes that
        multiply z.
        """
        log_c, rate = balance(clock, variances)
        return expand_like((log_c - log_c_end).exp().to(z), z), expand_like(rate.to(z), z)

    def field(clock: Tensor, state: tuple[Tensor, ...], *given: Tensor) -> tuple[Tensor, ...]:
        (v,), (c, rate) = state, coordinate(clock)
        bar.update()
        return (probability_flow(with_context(score, given), clock)(c * v) / c - rate * v,)

    before, after = (
        expand_like(sde.marginal_std(z.new_full((len(z),), time)), z) for time in (t, s)
    )
    state: tuple[Tensor, ...] = (z / before / coordinate(ends[:1])[0],)
    options: dict[str, Any] = {"context": context_of(score)}
    if not is_smooth(score):
        options |= {"points": steps_in_time(sde), "order": 2}
    with tqdm(desc="probability flow (evaluations)", leave=False, disable=not progress) as bar:
        if steps is not None:
            found = adams(field, state, start, end, steps=steps, **options)
            return after * found.state[0], found.evaluations
        first = max(FEWEST_FIRST, math.ceil(abs(end - start) / LONGEST_STEP))
        if not is_smooth(score):
            first = max(first, math.ceil(FIRST_RESOLVING * abs(t - s) / sde.T))
        solution = converge(field, state, start, end, tol=tol, first=first, **options)
    return after * solution.state[0], int(solution.nfe.max())


def balance(clock: PerSample, variances: tuple[float, ...]) -> tuple[PerSample, PerSample]:
    r"""log c and d log c/dclock of the coordinate v = z_t/(c √(α_t² + σ_t²)), r = e^clock = σ²/α²:

    .. math:: c^2 = \prod_i \left(\frac{\lambda_i + r}{1 + r}\right)^{1/n}

    The probability flow of N(0, λI) keeps z_t/√(λα_t² + σ_t²). In z_t/√(α_t² + σ_t²), which is kept
    for λ = 1, it stretches a direction of variance λ ≪ 1 by e^{clock/2} from r = λ to 1, and steps
    of a whole unit are not stable on the way back. In the geometric mean of the coordinates for n
    ``variances`` λ_i, rates are about half as large, and directions are still nearly at rest at
    both ends.
    """
    r = clock.exp()[..., None]
    own = r.new_tensor(variances)
    log_c = 0.5 * ((own + r) / (1 + r)).log().mean(-1)
    return log_c, 0.5 * (r / (own + r) - r / (1 + r)).mean(-1)
