"""A control of the measurement: the gap NELBO − NLL under a score that is known exactly."""

import math

import torch
from torch import Tensor, nn

from indm.flows.base import Identity
from indm.model import INDM
from indm.sde.linear import VPSDE, LinearSDE
from indm.tensors import double
from indm.workbench.data.densities import EightGaussians
from indm.workbench.evaluation.likelihood import evaluate
from research.claims.verdicts import Check

CONTROL_DATA = "eight Gaussians"


class MixtureScore(nn.Module):
    """``factor`` times the exact score of z_t for data from eight Gaussians, under any linear SDE."""

    def __init__(self, sde: LinearSDE, factor: float = 1.0):
        super().__init__()
        self.sde, self.factor, self.density = sde, factor, EightGaussians()

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(double(t))[:, None, None], self.sde.sigma(double(t))[:, None, None]
        variance = (alpha * self.density.std) ** 2 + sigma**2
        difference = alpha * self.density.centres - double(z_t)[:, None]
        weight = (-0.5 * difference.square().sum(2, keepdim=True) / variance).softmax(1)
        return self.factor * (weight * difference / variance).sum(1).to(z_t)


def exact_score_control(seed: int = 0, points: int = 2000) -> list[Check]:
    """NELBO − NLL of the ODE with the exact score, which must be zero, and with 1.1 times it, which must not."""
    raw = EightGaussians().sample(points, generator=torch.Generator().manual_seed(seed))
    checks = []
    for factor, name in ((1.0, "the exact score"), (1.1, "1.1 times the exact score")):
        model = INDM(Identity(), MixtureScore(VPSDE(), factor), shape=(2,))
        _, nats = evaluate(model, raw, each=True, times=64, seed=seed, progress=False)
        gaps = nats["nelbo"] - nats["nll"]
        gap, error = gaps.mean().item(), (gaps.std() / math.sqrt(points)).item()
        is_zero, expected = abs(gap) <= 3 * error, factor == 1.0
        quantity, rule = f"control: NELBO − NLL (ODE) with {name}, nats", f"three standard errors, {points} points"
        outcome = "as expected" if is_zero == expected else "NOT as expected"
        checks.append(Check(quantity, gap, error, outcome, rule))
    return checks
