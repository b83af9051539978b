"""Samplers of the probability flow in given steps, whose linear part is integrated exactly."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from indm.ode import interpolatory_weights
from indm.sampling.base import Sampler, intervals, time_grid
from indm.score import denoise, may_ripple
from indm.tensors import Batch, PerSample, expand_like


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
        sde = score.sde
        alpha_t, alpha_s, sigma_t, sigma_s = (
            expand_like(v, z) for v in (sde.alpha(t), sde.alpha(s), sde.sigma(t), sde.sigma(s))
        )
        y, delta = z / alpha_t, sigma_s / alpha_s - sigma_t / alpha_t
        slope = -sigma_t * score(z, t)
        slope = 0.5 * (slope - sigma_s * score(alpha_s * (y + delta * slope), s))
        return alpha_s * (y + delta * slope)


class ExponentialAdams(Sampler):
    """The probability flow as d(z/σ)/dλ = e^λ E[z_0|z_t], λ = ½ log SNR: multistep, one evaluation a step.

    The exponential is integrated exactly, the prediction E[z_0|z_t] as the polynomial through its last values: of a
    predictor of order p the last p. With a ``corrector``, of order p + 1, each step is repeated once the prediction at
    its end is known, with that value added; the prediction itself is not computed again. Where the network may have
    ripples in t, steps are those of :func:`steps_in_time`.
    """

    needs_scalar_sde = True
    corrector: ClassVar[bool] = False

    def solve(
        self, score, z: Batch, *, steps: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> tuple[Tensor, int]:
        self.check(score.sde)
        sde, points_kept = score.sde, self.order - self.corrector
        grid = time_grid(sde, steps) if may_ripple(score) else self.grid(sde, steps)
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
    """DPM-Solver++(2M): second-order multistep, one evaluation a step.

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
class UniPC(ExponentialAdams):
    """UniPC: a predictor of third order with a corrector of fourth order that costs no evaluation.

    Source: Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867 (with exact integrals of the interpolant).

    Example: N(0, I) under VP, where z_ε is z_T. It is nearer than ``DPMSolver2M`` in as many evaluations.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> score, z = ScoreModel(Zero(), VPSDE()), torch.randn(5, 2, dtype=torch.float64)
        >>> (ours, count), (theirs, as_many) = (rule.solve(score, z, steps=20) for rule in (UniPC(), DPMSolver2M()))
        >>> count, as_many, bool((ours - z).norm() < (theirs - z).norm())
        (20, 20, True)
    """

    order = 4
    corrector = True
