"""One step of a training run; :func:`indm.workbench.training.loop.train` is the loop."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from indm.objective import soft_truncation
from indm.tensors import SEED_STRIDE, random_states, restore_random_states, widest
from indm.training import Descent, FlowUse, NoiseLevels, TrainingStep
from indm.workbench.training.batches import Batches
from indm.workbench.training.schedule import Place, Schedule, Upkeep
from indm.workbench.training.validation import Revival, Validation


@dataclass(kw_only=True, eq=False)
class Parts:
    """The parts of a training; :func:`indm.workbench.training.parts.read` makes them.

    Attributes:
        accelerator: devices, precision and processes.
        batches: the training examples.
        step: model, objective and penalties as one pass.
        optimizer: of the model's parts, each at its highest rate. A fused one skips the step if its
            ``found_inf`` is 1.
        ema: decay of the average.
        clip: the largest gradient norm of a part.
        schedule: budget, opening and rates.
        validation: the validation of the averaged model.
        upkeep: when the run logs, validates and saves, and what it keeps.
        noise_levels: source of the times; None draws them evenly.
        soft_truncation: exponent of the random truncation; 0 always truncates at ε.
        seed: of the noise.
    """

    accelerator: Accelerator
    batches: Batches
    step: TrainingStep
    optimizer: torch.optim.Optimizer
    ema: float
    clip: float
    schedule: Schedule
    validation: Validation
    upkeep: Upkeep = field(default_factory=Upkeep)
    noise_levels: NoiseLevels | None = None
    soft_truncation: float = 0.0
    seed: int = 0


class Trainer(Descent):
    """A model in training on a data set, with the place in its schedule.

    A subclass may change the step (:meth:`prepare_batch`, :meth:`step_arguments`,
    :meth:`forward_backward`).
    """

    model: Any

    def __init__(self, parts: Parts):
        super().__init__(parts.step.model, parts.optimizer, parts.ema, parts.clip)
        self.parts = parts
        self.accelerator = parts.accelerator
        self.objective = parts.step.objective
        self.schedule = parts.schedule
        self.noise_levels = parts.noise_levels
        self.best_flow: dict[str, Tensor] | None = None  # the flow alone, at its best validation
        self.revival: Revival | None = None
        if self.schedule.first == "flow":
            self.revival = Revival(self.model.score, parts.batches.data, parts.seed)
        self.network = self.accelerator.prepare_model(parts.step.train())
        self._seed_this_process()

    def _seed_this_process(self) -> None:
        stride = SEED_STRIDE * self.accelerator.process_index
        torch.manual_seed(self.parts.seed + 1 + self.step + stride)

    @property
    def seconds(self) -> float:
        """The seconds of all steps so far."""
        return self.schedule.place.seconds

    @property
    def progress(self) -> float:
        """The share of the budget that is spent; the run is over at 1."""
        return self.schedule.progress(self.step)

    # ── Steps

    def steps(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Train until the budget is spent, one step at a time, from the present step on.

        Yields:
            The terms of :meth:`train_step`, and the share of the budget that was spent before it.
        """
        batches: Iterator[Any] = iter(())
        place = None  # of the next batch
        while self.progress < 1:
            if place != self.step:
                batches = self.batches()
            before = self.progress
            started = time.perf_counter()
            terms = self.train_step(batches)
            self.schedule.place.seconds += time.perf_counter() - started
            place = self.step
            yield terms, before

    def batches(self) -> Iterator[Any]:
        """Raw batches without end, from the present step on."""
        return self.parts.batches.after(self.step)

    def train_step(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One optimizer step, see :meth:`advance`; the terms are in nats, means over the batch."""
        if self.schedule.place.opening and self.schedule.opening_is_over(self.step):
            self._end_opening()
        gradients = partial(self.forward_backward, batches, self.step_arguments())
        factor = partial(self.schedule.factor_of, step=self.step)
        terms = self.advance(gradients, factor, partial(self.accelerator.reduce, reduction="sum"))
        if self.noise_levels is not None and self.accelerator.num_processes > 1:
            squares = self.noise_levels.squares.to(self.accelerator.device)
            self.noise_levels.squares = self.accelerator.reduce(squares, reduction="mean").cpu()
        return terms

    def step_arguments(self) -> dict[str, Any]:
        """The arguments of the coming step, the same for all of its batches."""
        arguments: dict[str, Any] = {"flow_use": self.schedule.flow_use(self.step)}
        if arguments["flow_use"] is FlowUse.ALONE:
            return arguments
        if self.objective.takes("eps"):
            k = self.parts.soft_truncation
            arguments["eps"] = soft_truncation(self.model.sde, k) if k else None
        if self.objective.takes("progress"):
            arguments["progress"] = self.progress
        if self.noise_levels is not None:
            arguments["noise_levels"] = self.noise_levels
        return arguments

    def forward_backward(
        self, batches: Iterator[Any], step_arguments: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Add the gradients of the mean loss over the batches of one step; the means of its terms."""
        means: dict[str, Tensor] = {}
        n = self.parts.batches.accumulate
        for i in range(n):
            is_last = i == n - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.network):
                batch = next(batches)
                raw, *given = (batch,) if isinstance(batch, Tensor) else batch
                loss, terms = self.network(self.prepare_batch(raw), *given, **step_arguments)
                self.accelerator.backward(loss / n)
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value / n
        return means

    def prepare_batch(self, raw: Tensor) -> Tensor:
        """The batch as the model sees it, flipped at random if the data allow it."""
        return self.parts.batches.prepared(raw)

    def _end_opening(self) -> None:
        """Train flow and score together; after the flow alone, start again from its best state."""
        self.schedule.end_opening(self.step)
        if self.schedule.first == "flow":
            self.model.load_state_dict(self.best_flow or self.ema.model.state_dict())
            self.restart()
            self.best_flow = None

    def agree(self, stops: bool) -> bool:
        """Whether any process ``stops``. All processes get the clock of the main one. Collective."""
        a = self.accelerator
        if a.num_processes == 1:
            return stops
        own = [float(stops), self.seconds * a.is_main_process]
        total = a.reduce(torch.tensor(own, dtype=widest(a.device), device=a.device))
        stopping, self.schedule.place.seconds = total.tolist()
        return stopping > 0

    # ── Validation

    def validate(self) -> dict[str, Any]:
        """The validation of the averaged model. Collective."""
        return self.parts.validation.of(self.ema.model)

    def note(self, bound: float) -> None:
        """Use the ``bound`` of a validation.

        The best state of the flow alone is kept. A network that died behind the flow begins again.
        """
        bounds = self.schedule.place.flow_bounds
        if self.schedule.is_flow_alone:
            if bound < min(bounds, default=math.inf):
                self.best_flow = copy.deepcopy(self.ema.model.state_dict())
            bounds.append(bound)
        elif self.revival is not None and self.schedule.factor(self.step) == 1:
            self.revival.look(self, self.schedule.place.health)

    # ── State

    def state(self) -> dict[str, Any]:
        """The state for :meth:`load`, with which the run continues exactly. Collective."""
        return {
            **super().state(),
            "place": self.schedule.place.state(),
            "best_flow": self.best_flow,
            "squares": self.noise_levels and self.noise_levels.squares,
            # of all processes
            "random": gather_object([random_states(self.accelerator.device)]),
        }

    def load(self, state: Any) -> None:
        """Load a :meth:`state`, which may have another number of processes."""
        super().load(state)
        self.schedule.place = Place.of(state["place"])
        self.best_flow = state["best_flow"]
        if self.noise_levels is not None and state["squares"] is not None:
            self.noise_levels.squares = state["squares"]
        if len(state["random"]) == self.accelerator.num_processes:
            own = state["random"][self.accelerator.process_index]
            restore_random_states(own, self.accelerator.device)
        else:
            self._seed_this_process()
