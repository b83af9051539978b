"""What every training shares: the pass, the update of the weights and of their moving average, the
noise levels, the rates, and the sign by which a network is seen to be dead.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
LEVELS = 8  # noise levels at which a network's output is measured
DEAD = 1e-3  # a network whose spread is lower at all of them is dead
REVIVALS = 4  # how often a dead network begins anew, at most
SLOWER = 1 / 3  # factor of its rate, each time


@dataclass(frozen=True)
class Penalty:
    """A term ``weight`` · ``value(model, x)`` of the loss, in the steps that train the flow.

    It is logged under its ``name``. One ``in_nats`` is in nats per sample, and enters the loss per
    dimension.
    """

    name: str
    weight: float
    value: Callable[[nn.Module, Tensor], Tensor]
    in_nats: bool = False


class FlowUse(Enum):
    """How a step uses the flow in front of the score."""

    TRAINED = "trained"
    FROZEN = "frozen"  # without log-determinant and gradient
    # replaced by the identity, as which a flow starts: the loss does not jump when it enters
    LEFT_OUT = "left out"
    ALONE = "alone"  # trained by its own likelihood, without the score


class TrainingStep(nn.Module):
    """One pass, raw data ↦ (loss, terms), as a module: data parallelism sees every parameter.

    The loss is the objective and the penalties. If the noise of grey levels is learned, it
    includes the log-density of that noise, the term ``log_q``. A model with a condition is trained
    at the rows ``c`` of the batch. Normal noise of deviation ``noise`` is added to the data.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        penalties: Sequence[Penalty] = (),
        noise: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.objective = objective
        self.penalties = tuple(penalties)
        self.noise = noise

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
        if c is not None:
            model = model.given(c, drops=True)
        x, log_q = from_data(model, raw)
        if flow_use is FlowUse.FROZEN:
            # without its log-density learned noise would shrink
            x = noisy(x.detach(), self.noise)
            loss, terms = self.objective.loss(model, x, **step_arguments)
            return loss, _detached(terms, self.objective.frozen_terms)
        x = noisy(x, self.noise)
        if flow_use is FlowUse.ALONE:
            loss, terms = flow_loss(model, x)
        else:
            loss, terms = self.objective.loss(model, x, **step_arguments)
        dimensions = event_size(x)
        log_q = log_q.mean().to(loss.dtype)
        if log_q.requires_grad:
            loss = loss + log_q / dimensions
        terms = {**terms, "log_q": log_q}
        if flow_use is not FlowUse.LEFT_OUT:
            for penalty in self.penalties:
                value = penalty.value(model, x)
                terms[penalty.name] = value
                loss = loss + penalty.weight * value / (dimensions if penalty.in_nats else 1)
        terms = {"loss": loss, **terms}
        return loss, _detached(terms, terms)


def _detached(terms: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The terms of these names, as far as there are any, without gradients."""
    return {name: terms[name].detach() for name in names if name in terms}


class NoiseLevels:
    """Draws the times of a training where its gradients are large.

    The extended clock of the bound (:func:`indm.objective.extended_clock`) is cut into cells; the
    first is the reconstruction. A cell is drawn in proportion to the root mean square of its
    gradients, which is measured during the training. Weights keep the mean of the loss equal to the
    bound.

    Args:
        sde: the linear SDE.

    Example: if all gradients are alike, times are drawn evenly.

        >>> from indm.sde import VPSDE
        >>> levels = NoiseLevels(VPSDE())
        >>> t, weight, cell = levels.draw(1000)
        >>> torch.allclose(weight, torch.tensor(levels.length), rtol=1e-4)
        True
    """

    def __init__(self, sde: LinearSDE):
        self.sde = sde
        self.length = sde.log_snr_range() + 1.0
        self.edges = torch.cat([torch.zeros(1), torch.linspace(1.0, self.length, CELLS)])
        self.widths = self.edges.diff()
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
        within = ((u - ends[cell] + share[cell]) / share[cell]).clamp(0, 1)
        place = self.edges[cell] + self.widths[cell] * within
        t = torch.where(cell == 0, self.sde.eps, time_at(self.sde, place - 1, self.sde.eps).float())
        weight = (self.widths / share)[cell].float()
        return t, weight, cell

    def measure(self, cell: Tensor, square: Tensor) -> None:
        """Add the squared gradients, ``square``, of draws to the averages of their ``cell``, (n,)."""
        finite = square.isfinite()  # a skipped step has infinite or NaN gradients
        cell = cell[finite].cpu()
        square = square[finite].cpu().float()
        counts = torch.bincount(cell, minlength=CELLS)
        means = torch.bincount(cell, square, minlength=CELLS) / counts.clamp_min(1)
        weight = torch.where(counts > 0, 1 - GRADIENT_MEMORY, 0.0)
        self.squares = torch.lerp(self.squares, means, weight)


class EMA:
    """A moving average of weights: ``model``, a deep copy whose parameters follow
    θ̄ ← d_n θ̄ + (1 − d_n) θ with d_n = min(decay, (1+n)/(10+n)).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        """Average the weights, and real buffers such as a batch norm's, after step ``n`` (from 1)."""
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
        optimizer: its parameter groups have names, and each has its highest rate.
        decay: of the average ``ema``, see :class:`EMA`; with 0 the average equals the weights.
        clip: the largest gradient norm of a group.

    Example: the mean of numbers minimises their squared distance.

        >>> model, x = nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [6.0]])
        >>> def gradients():
        ...     (model(0 * x) - x).square().mean().backward()
        ...     return {}
        >>> group = {"name": "model", "params": list(model.parameters())}
        >>> descent = Descent(model, torch.optim.Adam([group], lr=0.1, fused=True))
        >>> for progress in progress_until(steps=200):
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
        self.model = model
        self.optimizer = optimizer
        self.ema = EMA(model, decay)
        self.clip = clip
        self.step = 0  # steps made
        self.began = 0  # steps made before the average began
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def advance(
        self,
        gradients: Callable[[], dict[str, Tensor]],
        factor: float | Callable[[str], float],
        total: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> dict[str, Tensor]:
        """Make a step; the terms of the loss, the gradient norm of each group, and ``skipped``.

        If a term or a norm is not finite on any process, ``skipped`` is 1, and model and optimizer
        stay as they are. A fused optimizer decides this on the device. The average still moves
        towards the weights.

        Args:
            gradients: computes the gradients and returns the terms.
            factor: share of the highest rates, for all groups or by their names.
            total: sums a number over processes.
        """
        buffers = self._buffers()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (factor(group["name"]) if callable(factor) else factor)
        terms = gradients()
        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                norm = nn.utils.clip_grad_norm_(group["params"], self.clip)
                terms[f"{group['name']}_grad_norm"] = norm
        finite = torch.stack([value.isfinite() for value in terms.values()]).all()
        skipped = total((~finite).float()).clamp_max(1.0)
        is_fused = self.optimizer.defaults.get("fused")
        if is_fused:
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

    def _buffers(self) -> list[tuple[nn.Module, str, Tensor]]:
        """What a pass changes, such as a batch norm's statistics, in place or by a new tensor."""
        return [
            (module, name, buffer.clone())
            for module in self.model.modules()
            # named_buffers takes a fifth of a step of small networks
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restart(self) -> None:
        """Continue from the present weights, without moments and with a new average."""
        self.optimizer.state.clear()
        self.ema.model.load_state_dict(self.model.state_dict())
        self.began = self.step

    def state(self) -> dict[str, Any]:
        """What :meth:`load` goes back to: weights, average, moments and steps."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "began": self.began,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a :meth:`state`. The highest rates stay those of this training."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.began = state["began"]


@dataclass
class NetworkHealth:
    """Whether a network is dead, and how often it has begun anew.

    A dead network once added something to its start, and now adds a constant: its hidden layers
    have no gradients any more. That happens where the target is nearly all noise and the rate is
    too high. Each new beginning has :data:`SLOWER` times the rate.
    """

    largest_size: float = 0.0  # the largest size of its output since it began
    spread: float = math.inf  # of its output now, see size_and_spread
    revivals: int = 0
    is_silenced: bool = False  # dead after the last new beginning, too

    @property
    def factor(self) -> float:
        """The share of the rate that is left."""
        return SLOWER**self.revivals

    @property
    def is_dead(self) -> bool:
        """Whether the network has added something, and now adds a constant."""
        return self.largest_size >= DEAD > self.spread

    def record(self, size: float, spread: float) -> None:
        """Record the network's :func:`size_and_spread` now."""
        self.largest_size = max(self.largest_size, size)
        self.spread = spread

    def use_revival(self) -> bool:
        """Count a revival, and return True, if the network is dead and has a revival left.

        A dead network without one is silenced.
        """
        begins = self.is_dead and self.revivals < REVIVALS
        self.is_silenced = self.is_dead and not begins
        if begins:
            self.largest_size = 0.0
            self.revivals += 1
        return begins


@torch.no_grad()
def size_and_spread(
    score: nn.Module, z: Tensor, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """The size of a network's output, and half of its change when the noise changes its sign, at
    latents z (B, *event).

    Both are root mean squares over rows, at the one of :data:`LEVELS` noise levels where they are
    largest. A network with a size above :data:`DEAD` and a spread below it adds a constant.

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
        t = time_of_level.to(z).expand(len(z))
        noise = randn_like(z, generator)
        kernel = sde.kernel(t)
        plus, minus = (
            noise_parts(score, kernel.perturb(z, sign * noise), t)[1] for sign in (1, -1)
        )
        size = 0.5 * (squared_norm(plus) + squared_norm(minus))
        spread = 0.25 * squared_norm(plus - minus)
        found.append(torch.stack([size.mean().sqrt(), spread.mean().sqrt()]))
    largest = torch.stack(found).amax(0)
    return largest[0].item(), largest[1].item()


def progress_until(
    steps: float = math.inf, deadline: float = math.inf, clock: Callable[[], float] | None = None
) -> Iterator[float]:
    """The share of a training that is over before each step, until all ``steps`` are made or the
    ``deadline`` is reached.

    ``clock`` gives seconds, by default :func:`time.perf_counter`.
    """
    clock = clock or time.perf_counter
    started = clock()
    seconds = max(deadline - started, 1e-9)
    for step in itertools.count():
        progress = max(step / steps, (clock() - started) / seconds)
        if progress >= 1:
            return
        yield progress


def learning_rate_factor(step: int, progress: float, warmup: float, decay: float) -> float:
    """The share of the highest rate: a linear rise, 1, and a linear fall to 0 over the last share
    ``decay`` of the run.

    The rise takes ``warmup`` steps. A value below 1 is a share of the run; then the first step has
    rate 0.
    """
    risen = (progress if warmup < 1 else step + 1) / warmup if warmup else 1.0
    fall = (1 - progress) / decay if decay else 1.0
    return min(risen, 1.0) * max(min(fall, 1.0), 0.0)
