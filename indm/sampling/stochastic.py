"""Samplers of the generative SDE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from indm.objective import ancestral_step
from indm.protocols import Score
from indm.sampling.base import Sampler, check_positive, intervals, uniform_grid
from indm.score import denoise
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, expand_like, randn_like


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """z_s = z − [f z − g² s_θ] Δ + g √Δ n, Δ = t − s, on a uniform grid (the reverse-time SDE).

    Example: N(0, I) and its exact score, whose law stays what it is.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> z, _ = EulerMaruyama().solve(ScoreModel(Zero(), VPSDE()), torch.randn(5000, 2), steps=100)
        >>> abs(z.std().item() - 1) < 0.1
        True
    """

    order = 1
    stochastic = True

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        return uniform_grid(sde, steps)

    def step(self, score: Score, z: Batch, t: PerSample, s: PerSample, generator=None) -> Tensor:
        delta, g = expand_like(t - s, z), expand_like(score.sde.diffusion(t), z)
        drift = expand_like(score.sde.drift(t), z) * z - g**2 * score(z, t)
        return z - drift * delta + g * delta.sqrt() * randn_like(z, generator)


@dataclass(frozen=True)
class Ancestral(Sampler):
    """z_s from q(z_s|z_t, z_0) at z_0 = E[z_0|z_t], in equal steps of log-SNR.

    ``indm.nelbo(…, ancestral=steps)`` bounds −log p of what it samples.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models",
    https://arxiv.org/abs/2006.11239.

    Example: where all data are one point, here 0, few steps are as good as many: z_ε has the
    deviation σ_ε.

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

    def step(self, score: Score, z: Batch, t: PerSample, s: PerSample, generator=None) -> Tensor:
        mean, std = ancestral_step(score, z, t, s)
        return mean + std * randn_like(z, generator)


@dataclass(frozen=True)
class SDEDPMSolver2M(Sampler):
    r"""SDE-DPM-Solver++(2M): :class:`Ancestral` steps with the prediction D = E[z_0|z_t]
    extrapolated to their middle.

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} e^{-h} z_t + \alpha_s (1 - e^{-2h}) (D_t + \tfrac{h}{2h'} (D_t - D_{t'}))
              + \sigma_s \sqrt{1 - e^{-2h}}\, n

    h and h' are the lengths in λ = ½ log SNR of this step and of the one before, which began at t'.

    Source: Lu et al. 2022, "DPM-Solver++", https://arxiv.org/abs/2211.01095.

    Example: N(0, I) under VP. The variance of samples is near 1 in steps in which it is not by
    ``Ancestral``.

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
        self,
        score: Score,
        z: Batch,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        sde, before = score.sde, tuple[Tensor, ...]()  # the last prediction, and h'
        for t, s in intervals(self.grid(sde, steps), z, progress):
            h = expand_like(0.5 * (sde.log_snr(s) - sde.log_snr(t)), z)
            prediction = middle = denoise(score, z, t)
            if before:
                middle = prediction + 0.5 * h / before[1] * (prediction - before[0])
            alpha, sigma, ratio = (
                expand_like(v, z) for v in (sde.alpha(s), sde.sigma(s), sde.sigma(s) / sde.sigma(t))
            )
            mean = ratio * (-h).exp() * z - alpha * torch.expm1(-2 * h) * middle
            z = mean + sigma * (-torch.expm1(-2 * h)).sqrt() * randn_like(z, generator)
            before = prediction, h
        return z, steps


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of reverse diffusion, then one Langevin step at its end, on a uniform grid.

    Args:
        snr: signal-to-noise ratio of the Langevin steps; of two numbers, the first is the ratio at
            T and the second at ε, linear in time in between. Published with VE: 0.16 on CIFAR-10,
            0.17 on CelebA; INDM: 0.14 to 0.16, 0.15. The Langevin steps leave a bias of order snr²,
            which more steps do not remove.

    Source: Song et al. 2021, algorithms 2–5, https://arxiv.org/abs/2011.13456.

    Example: N(0, I) and its exact score, whose law stays what it is.

        >>> from indm import ScoreModel, VPSDE
        >>> from indm.nets import Zero
        >>> z, nfe = PredictorCorrector(snr=0.1).solve(ScoreModel(Zero(), VPSDE()), torch.randn(5000, 2), steps=50)
        >>> nfe, abs(z.std().item() - 1) < 0.1
        (100, True)
    """

    order = 1
    stochastic = True
    evaluations_per_step = 2

    snr: float | tuple[float, ...] = 0.16

    def __post_init__(self):
        check_positive("snr", self.snr, usual=0.16, most=2)

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        return uniform_grid(sde, steps)

    def solve(
        self,
        score: Score,
        z: Batch,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        numbers = self.snr if isinstance(self.snr, tuple) else (self.snr,)
        first, last = numbers[0], numbers[-1]
        for i, (t, s) in enumerate(intervals(self.grid(score.sde, steps), z, progress), start=1):
            z = reverse_diffusion_step(score, z, t, s, generator)
            z = langevin_step(score, z, s, first + (last - first) * i / steps, generator)
        return z, steps * self.evaluations_per_step


def reverse_diffusion_step(score: Score, z: Tensor, t: Tensor, s: Tensor, generator=None) -> Tensor:
    """z_s = (2 − a) z + G² s_θ + G n for the forward kernel z_t = a z_s + G n from s to t."""
    a, variance = (expand_like(v, z) for v in score.sde.transition_moments(s, t))
    return (2 - a) * z + variance * score(z, t) + variance.sqrt() * randn_like(z, generator)


def langevin_step(score: Score, z: Tensor, t: Tensor, snr: float, generator=None) -> Tensor:
    """z + η s_θ + √(2η) n with η = 2 (snr ‖n‖/‖s_θ‖)², norms averaged over the batch."""
    s, noise = score(z, t), randn_like(z, generator)
    norms = [v.flatten(1).norm(dim=1).mean() for v in (noise, s)]
    eta = 2 * (snr * norms[0] / norms[1]) ** 2
    return z + eta * s + (2 * eta).sqrt() * noise
