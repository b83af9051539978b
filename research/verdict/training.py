"""How a variant is trained: its steps at equal cost, their rates, and what enters or freezes on the way."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import indm
from indm.flows import Compose
from indm.model import INDM
from indm.training import Descent, FlowUse, TrainingStep, course, learning_rate_factor
from research.verdict.variants import Variant, with_flow, without_flow

BATCH, CLIP, DECAY, BETAS = 32, 1.0, 0.999, (0.9, 0.99)
WARMUP, FALL = 100, 0.5  # steps of the rise of a rate, share of the run in which it falls to 0
NOISE_RATE = 3e-3  # of learned noise
Costs = Mapping[str, float]  # of a step, by the key of Phase.cost_key


class Phase(Descent):
    """A model in training.

    Args:
        model: the model.
        variant: with its rates.
        loss: of the model and a batch.
    """

    def __init__(self, model: INDM, variant: Variant, loss: Callable = indm.mle_loss):
        optimizer = torch.optim.AdamW(groups_of(model, variant), betas=BETAS, weight_decay=0.0)
        super().__init__(model.train(), optimizer, DECAY, CLIP)
        self.loss, self.use = TrainingStep(model, indm.Objective(loss)), FlowUse.TRAINED

    def freeze(self) -> None:
        """Train the score alone from now on."""
        self.use = FlowUse.FROZEN

    def train_on(self, raw: Tensor, progress: float) -> float:
        """One step on raw images, when that share of the run is over; the loss."""
        factor = learning_rate_factor(self.step, progress, WARMUP, FALL)
        return self.advance(partial(self._gradients, raw), factor)["loss"].item()

    def _gradients(self, raw: Tensor) -> dict[str, Tensor]:
        loss, _ = self.loss(raw, flow_use=self.use)
        loss.backward()
        return {"loss": loss.detach()}


def groups_of(model: INDM, variant: Variant) -> list[dict[str, Any]]:
    """The parameters that are trained, with the rate of each part."""
    first, entering = parts_of_flow(model, variant)
    parts = {
        "score": (model.score, variant.lr),
        "spline": (first, variant.spline_lr),
        "entering": (entering, variant.lr * variant.flow_share),
        "noise": (model.dequantization, NOISE_RATE),
    }
    groups = [
        {"name": name, "params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
        for name, (part, rate) in parts.items()
        if part is not None
    ]
    return [group for group in groups if group["params"]]


def parts_of_flow(model: INDM, variant: Variant) -> tuple[nn.Module | None, nn.Module | None]:
    """The spline and the flow that has entered; None for one that the model has not."""
    if not isinstance(model.flow, Compose):
        return (model.flow if variant.spline else None), None
    *first, entering = model.flow.flows
    return (first[0] if first else None), entering


def shares(variant: Variant) -> dict[str, float]:
    """Which share of the steps each kind of step has: "without" the flow that enters, "with" it, "frozen"."""
    if variant.family is None:
        return {"without": 1.0}
    return {"without": variant.enters, "with": 1 - variant.enters - variant.frozen, "frozen": variant.frozen}


def cost_key(variant: Variant, kind: str) -> str:
    """What decides about the cost of a step of this kind."""
    bare = replace(variant, family=None) if kind == "without" else variant
    return bare.structure + (", frozen" if kind == "frozen" else "")


def steps_of(variant: Variant, budget: int, costs: Costs) -> int:
    """How many steps cost as much as ``budget`` steps of linear diffusion."""
    mean = sum(share * costs[cost_key(variant, kind)] for kind, share in shares(variant).items() if share)
    return round(budget / mean)


def batches(images: Tensor, seed: int, size: int = BATCH) -> Iterator[Tensor]:
    """Batches of random images without end: every image once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(size):
            if len(rows) == size:
                yield images[rows]


def train(
    variant: Variant,
    images: Tensor,
    steps: int,
    seed: int,
    look: Mapping[int, Callable[[INDM], None]] | None = None,
) -> tuple[INDM, INDM, dict[str, Any]]:
    """The averaged model, that with the flow as it is at the last step, and what a record says of the run.

    Args:
        variant: what is trained.
        images: raw training images.
        steps: of the optimizer.
        seed: of weights, batches and noise.
        look: what is done with the averaged model after a step; its seconds are not counted.
    """
    torch.manual_seed(seed)
    source, spent, losses = batches(images, seed), 0.0, []
    enters, freezes = round(variant.enters * steps), round((1 - variant.frozen) * steps)
    phase = Phase(without_flow(variant, tuple(images.shape[1:])), variant)
    for n, progress in enumerate(course(steps)):
        if n == enters and (n or variant.family):
            phase = Phase(with_flow(phase.model, variant) if variant.family else phase.model, variant)
        if n == freezes:
            phase.freeze()
        started = time.process_time()
        losses.append(phase.train_on(next(source), progress))
        spent += time.process_time() - started
        if look and n + 1 in look:
            look[n + 1](phase.ema.model)
    averaged: Any = phase.ema.model
    last = INDM(phase.model.flow, averaged.score, averaged.scaling, averaged.shape, averaged.dequantization).eval()
    not_finite = sum(not math.isfinite(loss) for loss in losses)
    return averaged, last, {"steps": steps, "cpu_seconds": round(spent, 1), "not_finite": not_finite}
