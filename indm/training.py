"""Parts that all trainings share: the pass, the update of the weights and their moving average, and
the schedules.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from indm.dequantization import from_data
from indm.flows.base import Frozen, Identity
from indm.model import INDM
from indm.objective import Objective, flow_loss, time_at
from indm.score import noise_parts
from indm.sde.linear import LinearSDE
from indm.tensors import event_size, noisy, randn_like, squared_norm, strata

CELLS = 24  # parts of the clock in which gradients are measured
UNIFORM_SHARE = 0.3  # share of the draws that are uniform on the clock
GRADIENT_MEMORY = 0.98  # weight of a cell's earlier measurements in their average
# noise levels of a spread; spread at all of them, below which a network is dead
LEVELS, DEAD = 8, 1e-3
REVIVALS, SLOWER = 4, 1 / 3  # new beginnings of a dead network, at most; factor of the rate in each


@dataclass(frozen=True)
class Penalty:
    """A term ``value(model, x)`` that is added with a ``weight`` to the loss in the steps that
    train the flow, under its ``name``; ``in_nats``: it is in nats per sample, and the loss takes it
    per dimension.
    """

    name: str
    weight: float
    value: Callable[[nn.Module, Tensor], Tensor]
    in_nats: bool = False


class FlowUse(Enum):
    """The ways a step can use the flow in front of the score."""

    TRAINED = "trained"
    FROZEN = "frozen"  # neither log-determinant nor gradient
    # the identity, which a flow starts as: the loss does not jump when the flow enters
    LEFT_OUT = "left out"
    ALONE = "alone"  # trained by its own likelihood; the score is left out


class TrainingStep(nn.Module):
    """Objective and penalties as one pass, raw data ↦ (loss, terms), so that data parallelism sees
    every parameter.

    If the noise of grey levels is learned, the loss includes its log-density, which is the term
    ``log_q``. A model with a condition is trained at the rows ``c`` of the batch. Normal noise of
    deviation ``noise`` is added to the data.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        penalties: Sequence[Penalty] = (),
        noise: float = 0.0,
    ):
        super().__init__()
        self.model, self.objective, self.penalties, self.noise = (
            model,
            objective,
            tuple(penalties),
            noise,
        )

    def with_flow(self, use: FlowUse) -> nn.Module:
        """The model with its flow used in that way."""
        if use in (FlowUse.TRAINED, FlowUse.ALONE):
            return self.model
        m: Any = self.model
        flow = Frozen(m.flow) if use is FlowUse.FROZEN else Identity()
        return INDM(flow, m.score, m.scaling, m.shape, m.dequantization, m.condition)

    def forward(
        self,
        raw: Tensor,
        c: Tensor | None = None,
        *,
        flow_use: FlowUse = FlowUse.TRAINED,
        **step_arguments: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.with_flow(flow_use)
        model = model if c is None else model.given(c, drops=True)
        x, log_q = from_data(model, raw)
        is_frozen = flow_use is FlowUse.FROZEN
        # else learned noise would shrink, without its log-density
        x = x.detach() if is_frozen else x
        x = noisy(x, self.noise)
        is_alone = flow_use is FlowUse.ALONE
        loss, terms = (
            flow_loss(model, x) if is_alone else self.objective.loss(model, x, **step_arguments)
        )
        if is_frozen:
            terms = {name: terms[name] for name in self.objective.frozen_terms if name in terms}
            return loss, {name: term.detach() for name, term in terms.items()}
        log_q = log_q.mean().to(loss.dtype)
        if log_q.requires_grad:
            loss = loss + log_q / event_size(x)
        terms = {**terms, "log_q": log_q}
        for penalty in () if flow_use is FlowUse.LEFT_OUT else self.penalties:
            terms[penalty.name] = penalty.value(model, x)
            loss = loss + penalty.weight * terms[penalty.name] / (
                event_size(x) if penalty.in_nats else 1
            )
        return loss, {name: term.detach() for name, term in {"loss": loss, **terms}.items()}


class NoiseLevels:
    """Draws the times of a training where its gradients are large.

    The extended clock of the bound (:func:`indm.objective.extended_clock`) is cut into cells, of
    which the first is the reconstruction. A cell is drawn in proportion to the root mean square of
    the gradients there, which is measured as training goes, and weighted so that the mean remains
    the bound.

    Args:
        sde: the linear SDE.

    Example: gradients that are all alike are drawn evenly.

        >>> from indm.sde import VPSDE
        >>> levels = NoiseLevels(VPSDE())
        >>> t, weight, cell = levels.draw(1000)
        >>> torch.allclose(weight, torch.tensor(levels.length), rtol=1e-4)
        True
    """

    def __init__(self, sde: LinearSDE):
        self.sde, self.length = sde, sde.log_snr_range() + 1.0
        edges = torch.cat([torch.zeros(1), torch.linspace(1.0, self.length, CELLS)])
        self.edges, self.widths = edges, edges.diff()
        self.squares = torch.ones(CELLS)  # mean square of the gradients in a cell

    @property
    def share(self) -> Tensor:
        """The probability of each cell."""
        mass = self.widths * self.squares.sqrt()
        return UNIFORM_SHARE * self.widths / self.length + (1 - UNIFORM_SHARE) * mass / mass.sum()

    def draw(
        self, n: int, generator: torch.Generator | None = None, uniform: bool = False
    ) -> tuple[Tensor, ...]:
        """Stratified times, the weights that make their mean an integral over the clock, and their
        cells, each (n,).
        """
        share = self.widths / self.length if uniform else self.share
        ends = share.cumsum(0).clamp_max(1.0)
        u = strata(n, generator=generator)
        cell = torch.searchsorted(ends, u).clamp_max(CELLS - 1)
        place = self.edges[cell] + self.widths[cell] * (
            (u - ends[cell] + share[cell]) / share[cell]
        ).clamp(0, 1)
        t = time_at(self.sde, place - 1, self.sde.eps).float()
        return torch.where(cell == 0, self.sde.eps, t), (self.widths / share)[cell].float(), cell

    def measure(self, cell: Tensor, square: Tensor) -> None:
        """Take in the squared gradients, ``square``, of draws in their ``cell``, each (n,)."""
        finite = square.isfinite()  # a skipped step has infinite or NaN gradients
        cell, square = cell[finite].cpu(), square[finite].cpu().float()
        counts = torch.bincount(cell, minlength=CELLS)
        means = torch.bincount(cell, square, minlength=CELLS) / counts.clamp_min(1)
        weight = torch.where(counts > 0, 1 - GRADIENT_MEMORY, 0.0)
        self.squares = torch.lerp(self.squares, means, weight)


class EMA:
    """``model``, a deep copy whose parameters follow θ̄ ← d_n θ̄ + (1 − d_n) θ with d_n =
    min(decay, (1+n)/(10+n)).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        """Take in the weights, and real buffers such as a batch norm's, after optimizer step ``n``
        (from 1).
        """
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, weight)
            else:
                averaged.copy_(current)


class Descent:
    """A model in training, with its optimizer, its average and its number of steps.

    Args:
        model: the model.
        optimizer: of the parameters, in groups that have names, each at its highest rate.
        decay: of the average ``ema``, see :class:`EMA`; with 0 it equals the weights.
        clip: the largest norm of the gradient of a group.

    Example: the mean of numbers minimises their squared distance.

        >>> model, x = nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [6.0]])
        >>> def gradients():
        ...     (model(0 * x) - x).square().mean().backward()
        ...     return {}
        >>> group = {"name": "model", "params": list(model.parameters())}
        >>> descent = Descent(model, torch.optim.Adam([group], lr=0.1, fused=True))
        >>> for progress in course(steps=200):
        ...     _ = descent.advance(gradients, learning_rate_factor(descent.step, progress, warmup=10, decay=0.5))
        >>> descent.step, round(model.bias.item(), 2)
        (200, 3.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        decay: float = 0.0,
        clip: float = math.inf,
    ):
        self.model, self.optimizer, self.ema, self.clip = model, optimizer, EMA(model, decay), clip
        self.step, self.began = 0, 0  # steps that were made, and those before the average began
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def advance(
        self,
        gradients: Callable[[], dict[str, Tensor]],
        factor: float | Callable[[str], float],
        total: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> dict[str, Tensor]:
        """Make a step; the terms of the loss, the gradient norm of each group, and ``skipped``.

        Where a term or a norm is not finite on any process, ``skipped`` is 1, and model and
        optimizer stay as they are; a fused optimizer sees to that on the device. The average still
        moves towards the weights.

        ``gradients`` computes them and returns the terms. ``factor`` is the share of the highest
        rates, for all groups or by their names. ``total`` sums a number over processes.
        """
        # what a pass changes, such as a batch norm's statistics, in place or by another tensor
        buffers = [
            (module, name, buffer.clone())
            for module in self.model.modules()
            # named_buffers takes a fifth of a step of small networks
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (factor(group["name"]) if callable(factor) else factor)
        terms = gradients()
        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                terms[f"{group['name']}_grad_norm"] = nn.utils.clip_grad_norm_(
                    group["params"], self.clip
                )
        finite = torch.stack([value.isfinite() for value in terms.values()]).all()
        skipped = total((~finite).float()).clamp_max(1.0)
        if is_fused := self.optimizer.defaults.get("fused"):
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        if is_fused or not skipped:
            self.optimizer.step()
        for module, name, before in buffers:
            after = module.get_buffer(name)
            after.copy_(torch.where(skipped > 0, before, after))
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, self.step - self.began)
        return terms | {"skipped": skipped}

    def restart(self) -> None:
        """Go on from the weights as they are, without moments and with a new average."""
        self.optimizer.state.clear()
        self.ema.model.load_state_dict(self.model.state_dict())
        self.began = self.step


@torch.no_grad()
def size_and_spread(
    score: nn.Module, z: Tensor, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """The size of a network's output, and half of its change when the noise changes its sign, at
    latents z (B, *event).

    Both are the root mean square over rows, at the one of :data:`LEVELS` noise levels where it is
    largest. A network whose size was above :data:`DEAD` and whose spread is below it is dead: its
    output is a constant, and its hidden layers have no gradients. That happens where the target is
    nearly all noise and the rate is too high.

    Example: a network that adds a constant.

        >>> from indm.nets import MLP
        >>> from indm.score import ScoreModel
        >>> from indm.sde import VPSDE
        >>> score = ScoreModel(MLP((2,), width=8), VPSDE())
        >>> _ = nn.init.ones_(score.backbone.output.bias)
        >>> size, spread = size_and_spread(score, torch.randn(10, 2))
        >>> round(size, 3), spread
        (1.414, 0.0)
    """
    sde = score.sde
    places = torch.linspace(0, sde.log_snr_range(), LEVELS, dtype=torch.float64)
    found = []
    for time_of_level in time_at(sde, places, sde.eps):
        t, noise = time_of_level.to(z).expand(len(z)), randn_like(z, generator)
        kernel = sde.kernel(t)
        both = [noise_parts(score, kernel.perturb(z, sign * noise), t)[1] for sign in (1, -1)]
        sizes = (
            0.5 * (squared_norm(both[0]) + squared_norm(both[1])),
            0.25 * squared_norm(both[0] - both[1]),
        )
        found.append(torch.stack([square.mean().sqrt() for square in sizes]))
    size, spread = torch.stack(found).amax(0).tolist()
    return size, spread


def course(
    steps: float = math.inf, deadline: float = math.inf, clock: Callable[[], float] | None = None
) -> Iterator[float]:
    """The share of a training that is over before each step, until all ``steps`` are made or the
    ``deadline`` is there.

    ``clock`` gives seconds, by default :func:`time.perf_counter`.
    """
    clock = clock or time.perf_counter
    started, step = clock(), 0
    while (progress := max(step / steps, (clock() - started) / max(deadline - started, 1e-9))) < 1:
        yield progress
        step += 1


def learning_rate_factor(step: int, progress: float, warmup: float, decay: float) -> float:
    """A linear rise, 1, and a linear fall to 0 over the last share ``decay`` of the run.

    The rise takes ``warmup`` steps, or that share of the run where it is below 1; then the first
    step has rate 0.
    """
    risen = (progress if warmup < 1 else step + 1) / warmup if warmup else 1.0
    fall = (1 - progress) / decay if decay else 1.0
    return min(risen, 1.0) * max(min(fall, 1.0), 0.0)
