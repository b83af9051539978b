"""One forward pass of training as a module, and the schedule of the learning rates."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from indm.dequantization import from_data
from indm.flows.base import Frozen, Identity
from indm.model import INDM
from indm.objective import Objective
from indm.rng import noisy
from indm.tensors import event_size
from indm.training.penalties import Penalty

ROUNDING = 1e-9  # of a share, in intervals: three tenths of ten steps are three


class TrainingStep(nn.Module):
    """Objective and penalties as one pass, raw data ↦ (loss, terms), so that data parallelism sees every parameter.

    Of the noise of grey levels the loss has the log-density where it is learned; the terms have it as ``log_q``.

    A step trains the score behind the "joint" flow, behind the same flow "frozen" (neither log-determinant nor
    gradient), or behind "none" (the identity, which is what a flow starts as: nothing jumps when it enters). A model
    without a diffusion has the "joint" step alone. A model with a condition is trained at the rows ``c`` of the batch.
    Data are seen with normal noise of the deviation ``noise``.
    """

    def __init__(self, model: nn.Module, objective: Objective, penalties: Sequence[Penalty] = (), noise: float = 0.0):
        super().__init__()
        self.objective, self.penalties, self.noise = objective, tuple(penalties), noise
        self.models = nn.ModuleDict({"joint": model})
        if model.is_diffusion:
            flows = {"frozen": Frozen(model.flow), "none": Identity()}
            for name, flow in flows.items():
                parts = (model.score, model.scaling, model.shape, model.dequantization, model.condition)
                self.models[name] = INDM(flow, *parts)

    def forward(
        self, raw: Tensor, c: Tensor | None = None, *, behind: str = "joint", **conditions: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.models[behind] if c is None else self.models[behind].given(c, drops=True)
        x, log_q = from_data(model, raw)
        x = x.detach() if behind == "frozen" else x  # else learned noise would shrink, without its log-density
        x = noisy(x, self.noise)
        loss, terms = self.objective.loss(model, x, **conditions)
        if behind == "frozen":
            terms = {name: terms[name] for name in self.objective.frozen_terms if name in terms}
            return loss, {name: term.detach() for name, term in terms.items()}
        log_q = log_q.mean().to(loss.dtype)
        if log_q.requires_grad:
            loss = loss + log_q / event_size(x)
        terms = {**terms, "log_q": log_q}
        for penalty in self.penalties if behind == "joint" else ():
            terms[penalty.name] = penalty.value(model, x)
            loss = loss + penalty.weight * terms[penalty.name] / (event_size(x) if penalty.in_nats else 1)
        return loss, {name: term.detach() for name, term in {"loss": loss, **terms}.items()}


def learning_rate_factor(step: int, progress: float, warmup: float, decay: float) -> float:
    """A linear rise, 1, and a linear fall to 0 over the last share ``decay`` of the run.

    The rise takes ``warmup`` steps, or that share of the run where it is below 1; then the first step has rate 0.
    """
    risen = (progress if warmup < 1 else step + 1) / warmup if warmup else 1.0
    fall = (1 - progress) / decay if decay else 1.0
    return min(risen, 1.0) * max(min(fall, 1.0), 0.0)


def is_due(every: float, step: int, before: float, progress: float) -> bool:
    """Whether ``step``, which took the run from ``before`` to ``progress`` (shares of it), ends an interval.

    Intervals are of ``every`` steps, or of that share of the run where it is below 1.
    """
    if every >= 1:
        return step % every == 0  # never, where it is infinite
    return math.floor(progress / every + ROUNDING) > math.floor(before / every + ROUNDING)
