"""Flows of zuko trained as well as the estimator's own: by the code that trains that one, at a
rate of one's choice, and at conditions.

Weights are averaged and the average is validated, the batch grows at a plateau of validation, the
rate falls at the next one or at the end of the seconds, and the best validated state is kept.
"""

import time
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from indm.tables import fit as fitting
from indm.tables import race

# share of the seconds that must be left for another training from other weights
RESTART = 0.25
MOST_STEPS = 10**9


class OfZuko(nn.Module):
    """A flow of zuko that maps z at c to h and log|det|."""

    def __init__(self, kind: str, columns: int, conditions: int, **options: Any):
        super().__init__()
        self.inner = getattr(zuko.flows, kind)(columns, conditions, **options)
        self.conditions = conditions

    def at(self, c: Tensor) -> Any:
        """The law of z at c, (n, conditions)."""
        return self.inner(c) if self.conditions else self.inner()

    def forward(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(c).transform.call_and_ladj(z)

    def nats(self, z: Tensor, c: Tensor) -> Tensor:
        """−log p(z|c), (n,)."""
        h, log_det = self(z, c)
        return -fitting.STANDARD_SDE.prior_log_prob(h) - log_det


class ZukoTraining(fitting.FlowTraining):
    """The package's training of a flow, of a flow of zuko at conditions and at another rate."""

    def __init__(self, flow: Any, held: Tensor, c_held: Tensor, rate: float):
        self.c_held = c_held
        super().__init__(flow, held)
        self.rates = [rate for _ in self.rates]

    @torch.no_grad()
    def _errors(self) -> Tensor:
        return self.ema.model.nats(self.held, self.c_held)

    def _gradients(self, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        self.model.nats(z, c).mean().backward()
        return {}


def trained(
    kind: str,
    options: dict[str, Any],
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    rate: float,
    seed: int,
    seconds: float,
) -> tuple[OfZuko, dict[str, Any]]:
    """The flow of z at c of the best validation in these seconds, and how its training went.

    A training that ends at a plateau with enough seconds left is followed by another from other
    weights. ``train`` and ``held`` are pairs of z (n, columns) and c (n, conditions).
    """
    z, c = train
    until, best, runs = time.perf_counter() + seconds, None, 0
    while runs == 0 or until - time.perf_counter() > RESTART * seconds:
        torch.manual_seed(seed + 1000 * runs)
        flow = OfZuko(kind, z.shape[1], c.shape[1], **options)
        one = ZukoTraining(flow, *held, rate)
        course = race.train(
            one, lambda i: (z[i], c[i]), len(z), fitting.FLOW_BATCH, MOST_STEPS, until
        )
        for _ in course:
            pass
        best = one if best is None or one.lowest.mean() < best.lowest.mean() else best
        runs += 1
    assert best is not None
    setting = {
        "lr": rate,
        "step": best.best_step,
        "steps": best.step,
        "ended": best.ended,
        "runs": runs,
        "valid": -best.lowest.mean().item(),
    }
    return best.best, setting
