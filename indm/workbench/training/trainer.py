"""The state of a training run, and one step of it: the model, its average, the optimizer and how
far the run is.

:class:`Trainer` writes checkpoints and the averaged model; the loop over its steps is
:func:`indm.workbench.training.loop.train`.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn

from indm import names
from indm.checks import reason, require
from indm.conditions import Condition, NoCondition, sees_condition
from indm.dequantization import check_raw, decoder_of, from_data
from indm.flows.base import Flow, check_flow
from indm.likelihood import latent_reference
from indm.model import build_model, count_parameters
from indm.objective import Objective, flow_nll, nelbo, objective_of, soft_truncation
from indm.score import base_of
from indm.sde.linear import check_sde
from indm.tensors import (
    SEED_STRIDE,
    evaluation_mode,
    noisy,
    random_states,
    restore_random_states,
    widest,
)
from indm.training import (
    DEAD,
    REVIVALS,
    SLOWER,
    Descent,
    FlowUse,
    NoiseLevels,
    TrainingStep,
    learning_rate_factor,
    size_and_spread,
)
from indm.workbench.data.base import Data, check_kind, load_data, stack
from indm.workbench.data.examples import InMemory, Paired, flip_horizontally, loader
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.recipes.recipe import Recipe, model_tables
from indm.workbench.runs.devices import by_main_process
from indm.workbench.training import checkpoints
from indm.workbench.training.parts import (
    check_condition,
    check_loss,
    check_parts,
    check_shapes,
    penalties_of,
    with_condition,
)

# (x, generator) or, of a model with a condition, (x, generator, c) ↦ nats, (B,)
Draw = Callable[..., Tensor]
LARGEST_CONTROLLED = 1024  # dimensions up to which validation has a control variate
FLOW_PATIENCE = 3  # validations without a gain, which end the training of the flow alone
LOOKED_AT = 256  # validation examples at which a network is seen to be dead
# Kept by a checkpoint, beside weights, moments and random states:
KEPT_FIELDS = (
    "step", "seconds", "opening", "began", "began_seconds", "flow_bounds", "best_flow",
    "loudest", "revivals", "is_silenced",
)  # fmt: skip


class Trainer(Descent):
    """The model, its average, the optimizer and the place in the run: what a checkpoint holds, and
    one step of it.

    Args:
        recipe: resolved, see :mod:`indm.workbench.recipes.recipe`.
        data: what is trained on.
        accelerator: devices, precision and processes.
        model: what is trained; by default the objective builds it from the recipe.
        objective: by default the one that the recipe names.

    A subclass may change how the model is made (:meth:`build_model`), the optimizer
    (:meth:`build_optimizer`) and the step (:meth:`build_step`, :meth:`step_arguments`,
    :meth:`forward_backward`).
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        accelerator: Accelerator,
        *,
        model: nn.Module | None = None,
        objective: Objective | None = None,
    ):
        self.options: TrainOptions = recipe.train
        self.objective = objective or objective_of(names.find("objective", self.options.objective))
        self.data, self.accelerator = data, accelerator
        self.data_b = self._second_data(recipe)
        self.micro_batch_size = self._batch_size_of_a_pass()
        self.recipe = recipe = with_condition(recipe, data)
        torch.manual_seed(self.options.seed)
        layout = torch.channels_last if accelerator.device.type == "cuda" else torch.preserve_format
        self.model = self._checked(model, recipe).to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self.condition: Condition = getattr(self.model, "condition", NoCondition())
        self._try_outside_parts()
        optimizer = self.build_optimizer(
            [group for group in self.parameter_groups() if group["params"]]
        )
        super().__init__(self.model, optimizer, self.options.ema, self.options.clip)
        self.seconds = 0.0
        # share for one of flow and score
        self.alone = 0.0 if self.options.first == "both" else self.options.alone
        self.opening = self.alone > 0  # until flow and score are trained together
        self.began_seconds = 0.0  # before the schedule of the rates began
        self.flow_bounds: list[float] = []  # validations of the flow alone
        self.best_flow: dict[str, Tensor] | None = None  # the average at the lowest of them
        is_behind = self.options.first == "flow"
        self.first_score = copy.deepcopy(self.model.score.state_dict()) if is_behind else None
        self.loudest = 0.0  # size of the network's output, the largest so far
        # new beginnings of a dead network; whether it is dead all the same
        self.revivals, self.is_silenced = 0, False
        self.noise_levels = self._noise_levels()
        self.network = accelerator.prepare_model(self.build_step(recipe).train())
        self._seed_this_process()

    def _noise_levels(self) -> NoiseLevels | None:
        """The source of noise levels that are drawn where gradients are large; None where they are
        even.
        """
        is_even = (
            self.options.noise_levels == "even"
            or self.options.soft_truncation
            or not self.objective.takes("noise_levels")
        )
        known = base_of(self.model.score) is not None and decoder_of(self.model) is None
        return None if is_even or not known else NoiseLevels(self.model.sde)

    def _seed_this_process(self) -> None:
        torch.manual_seed(
            self.options.seed + 1 + self.step + SEED_STRIDE * self.accelerator.process_index
        )

    def _checked(self, model: nn.Module | None, recipe: Recipe) -> nn.Module:
        """``model``, or the model of ``recipe``, on the CPU, its condition fitted to the data;
        ValueError if unfit.
        """
        model = self.build_model(recipe) if model is None else model
        check_parts(model, self.options, self.objective)
        train = self.data.train  # what is read on demand is checked as it is read
        check_raw(model, stack(train, None if isinstance(train, InMemory) else 2))
        if not model.condition.is_none:
            check_condition(model.condition, self.data)
            model.condition.fit(self.data.rows(model.condition, "train"))
        return model

    def _second_data(self, recipe: Recipe) -> Data | None:
        """The data of ``[data_b]``, where a penalty needs them."""
        if recipe.data_b is None or not self.options.terminal:
            return None
        with self.accelerator.main_process_first():
            second = load_data(recipe.data_b.name, **recipe.data_b.options)
        check_kind(second, self.data, "data have", "data_b")
        return second

    def _batch_size_of_a_pass(self) -> int:
        """The examples of one forward pass of one process."""
        size, parts = (
            self.options.batch_size,
            self.options.accumulate * self.accelerator.num_processes,
        )
        multiple = (
            f"a multiple of {parts} (accumulated batches × processes) and " if parts > 1 else ""
        )
        wanted = f"{multiple}at most the {len(self.data.train)} training examples"
        require(not size % parts and size <= len(self.data.train), "train.batch_size", size, wanted)
        return size // parts

    def build_model(self, recipe: Recipe) -> nn.Module:
        """The module to train, on the CPU, with ``scaling``, ``shape``, ``trained_parts`` and
        ``save(folder)``.
        """
        return build_model(model_tables(recipe), self.data.shape, self.data.scaling)

    def _try_outside_parts(self) -> None:
        """See that parts from outside this package return what they must, before anything is
        written.
        """
        packages = {package_of(module) for module in self.model.modules()}
        loss_package = getattr(self.objective.loss, "__module__", "").split(".")[0]
        if {*packages, loss_package} <= {"torch", "indm"}:
            return
        model, x = self.example()
        check_shapes(model, x)
        if package_of(model.sde) != "indm":
            check_sde(model.sde)
        if any(
            isinstance(part, Flow) and package_of(part) != "indm" for part in model.flow.modules()
        ):
            check_flow(model.flow, x)
        known = {"eps": None, "progress": 0.0}
        check_loss(
            self.objective, model, x, {k: v for k, v in known.items() if self.objective.takes(k)}
        )

    def example(self, n: int = 2) -> tuple[nn.Module, Tensor]:
        """The model and the first ``n`` training examples in model units, at whose conditions it is
        given.
        """
        raw = stack(self.data.train, n)
        model = (
            self.model if self.condition.is_none else self.model.given(self.c_of("train", len(raw)))
        )
        return model, from_data(model, raw.to(next(model.parameters()).device))[0]

    def c_of(self, split: str, n: int | None = None) -> Tensor | None:
        """The conditions of the first ``n`` examples of a split (all by default); None for a model
        without one.
        """
        return None if self.condition.is_none else self.data.rows(self.condition, split)[:n]

    def parameter_groups(self) -> list[dict]:
        """The parts of the model, each with its own highest learning rate and weight decay, where
        there are such.
        """
        options = self.options
        return [
            {"name": name, "params": list(part.parameters())}
            | {
                key: getattr(options, f"{name}_{key}", getattr(options, key))
                for key in ("lr", "weight_decay")
            }
            for name, part in self.model.trained_parts.items()
        ]

    def build_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """An optimizer that leaves all as it is where its ``found_inf`` is 1, as fused ones do on
        the device.
        """
        return torch.optim.AdamW(groups, betas=self.options.betas, fused=True)

    def build_step(self, recipe: Recipe) -> nn.Module:
        """The objective as a module, (raw, **step_arguments) ↦ (loss, terms), see
        :class:`TrainingStep`.
        """
        penalties = penalties_of(
            self.options, self.model, self.data, self.data_b, self.accelerator.device
        )
        return TrainingStep(self.model, self.objective, penalties, self.options.initial_noise)

    def step_arguments(self) -> dict:
        """Arguments of the coming step beside its batches, drawn once for all of them."""
        step_arguments: dict = {"flow_use": self.flow_use()}
        if step_arguments["flow_use"] is FlowUse.ALONE:
            return step_arguments
        if self.objective.takes("eps"):
            k = self.options.soft_truncation
            step_arguments["eps"] = soft_truncation(self.model.sde, k) if k else None
        if self.objective.takes("progress"):
            step_arguments["progress"] = self.progress
        if self.noise_levels is not None:
            step_arguments["noise_levels"] = self.noise_levels
        return step_arguments

    def flow_use(self) -> FlowUse:
        """The use of the flow in the coming step. Where the score has nothing to train, every step
        trains the flow.
        """
        if self.opening and not self.opening_is_over:
            return FlowUse.ALONE if self.options.first == "flow" else FlowUse.LEFT_OUT
        between = self.step % self.options.flow_update_every
        return FlowUse.FROZEN if between and count_parameters(self.model.score) else FlowUse.TRAINED

    @property
    def progress(self) -> float:
        """Share of the budget that is spent; the run is over at 1."""
        return self._share(self.step, self.seconds)

    def _share(self, step: int, seconds: float) -> float:
        return max(step / self.options.steps, seconds / self.options.seconds)

    @property
    def opening_is_over(self) -> bool:
        """Whether the share of the opening is spent, or the flow that is trained alone no longer
        gains.
        """
        bounds = self.flow_bounds
        is_stale = len(bounds) > FLOW_PATIENCE and min(bounds[-FLOW_PATIENCE:]) >= min(
            bounds[:-FLOW_PATIENCE]
        )
        return is_stale or self.progress >= self.alone

    @property
    def is_flow_alone(self) -> bool:
        """Whether the flow has been trained without the score until now."""
        return self.opening and self.options.first == "flow"

    def note(self, bound: float) -> None:
        """Take in the ``bound`` of a validation: while the flow is trained alone, its best state is
        kept; behind it, a dead network begins anew.
        """
        if self.is_flow_alone:
            if bound < min(self.flow_bounds, default=math.inf):
                self.best_flow = copy.deepcopy(self.ema.model.state_dict())
            self.flow_bounds.append(bound)
        elif self.first_score is not None and self.factor == 1:
            self._revive()

    def _revive(self) -> None:
        """Begin the score anew at a third of its rate where it is dead, see
        :func:`indm.training.size_and_spread`.
        """
        states = random_states(self.accelerator.device)
        model, x = self.example(LOOKED_AT)
        with evaluation_mode(model):
            z, _ = model.encode(x)
            size, spread = size_and_spread(
                model.score, z, torch.Generator(z.device).manual_seed(self.options.seed)
            )
        restore_random_states(states, self.accelerator.device)
        self.loudest = max(self.loudest, size)
        self.is_silenced = self.loudest >= DEAD > spread
        if not self.is_silenced or self.revivals == REVIVALS:
            return
        self.loudest, self.revivals, self.is_silenced = 0.0, self.revivals + 1, False
        for score in (self.model.score, self.ema.model.score):
            score.load_state_dict(self.first_score)
        for parameter in self.model.score.parameters():
            self.optimizer.state.pop(parameter, None)

    def _end_opening(self) -> None:
        """Train flow and score together from here on; after the flow alone anew, from the best
        state of the flow.
        """
        self.opening = False  # also where the run is made longer
        if self.options.first == "flow":
            self.model.load_state_dict(self.best_flow or self.ema.model.state_dict())
            self.restart()
            self.began_seconds, self.best_flow = self.seconds, None

    def batches(self) -> Iterator[Any]:
        """Raw batches without end from the present step on, of this process; their order depends on
        seed and epoch.

        With a condition, batches are pairs of raw data and c.
        """
        o = self.options
        steps_per_epoch = len(self.data.train) // o.batch_size
        first_epoch, skipped_steps = divmod(self.step, steps_per_epoch)
        c = self.c_of("train")
        dataset = self.data.train if c is None else Paired(self.data.train, c)
        for epoch in itertools.count(first_epoch):
            order: dict[str, Any] = {
                "shuffle": True,
                "seed": o.seed,
                "epoch": epoch,
                "drop_last": True,
            }
            examples = loader(dataset, self.micro_batch_size, workers=o.workers, **order)
            # making an iterator must not draw from the stream of the steps
            examples.generator = torch.Generator()
            a = self.accelerator
            own = prepare_data_loader(
                examples, a.device, a.num_processes, a.process_index, put_on_device=True
            )
            skipped = skipped_steps * o.accumulate if epoch == first_epoch else 0
            yield from itertools.islice(
                skip_first_batches(own, skipped), steps_per_epoch * o.accumulate - skipped
            )

    def prepare_batch(self, raw: Tensor) -> Tensor:
        """Flipped at random where the data allow it."""
        return flip_horizontally(raw) if self.data.flip else raw

    def steps(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Train until the budget is spent, a step at a time; after :meth:`load` from the step that
        was loaded.

        Yields:
            The terms of :meth:`train_step`, and the share of the budget that was spent before the
            step.
        """
        batches, at = iter(()), None
        while self.progress < 1:
            batches = batches if at == self.step else self.batches()
            before, started = self.progress, time.perf_counter()
            terms = self.train_step(batches)
            self.seconds += time.perf_counter() - started
            at = self.step
            yield terms, before

    def train_step(self, batches: Iterator[Tensor]) -> dict[str, Tensor]:
        """One optimizer step, see :meth:`advance`; the terms are in nats, means over the batch."""
        if self.opening and self.opening_is_over:
            self._end_opening()
        step_arguments = self.step_arguments()
        gradients = partial(self.forward_backward, batches, step_arguments)
        terms = self.advance(
            gradients, self.factor_of, partial(self.accelerator.reduce, reduction="sum")
        )
        if self.noise_levels is not None and self.accelerator.num_processes > 1:
            squares = self.noise_levels.squares.to(self.accelerator.device)
            self.noise_levels.squares = self.accelerator.reduce(squares, reduction="mean").cpu()
        return terms

    def agree(self, stops: bool) -> bool:
        """Whether any process ``stops``; all get the main one's clock. No process may act alone on
        either.
        """
        a = self.accelerator
        if a.num_processes == 1:
            return stops
        own = torch.tensor(
            [float(stops), self.seconds * a.is_main_process],
            dtype=widest(a.device),
            device=a.device,
        )
        stopping, self.seconds = a.reduce(own).tolist()
        return stopping > 0

    @property
    def factor(self) -> float:
        """The share of the highest rates at which the coming step trains, of all parts."""
        o, begun = self.options, self._share(self.began, self.began_seconds)
        progress = (self.progress - begun) / ((self.alone if self.is_flow_alone else 1.0) - begun)
        return learning_rate_factor(self.step - self.began, progress, o.warmup, o.decay)

    def factor_of(self, part: str) -> float:
        """:attr:`factor`, lower for a flow that was trained first and for a score that was dead at
        higher rates.
        """
        if part == "score":
            return self.factor * SLOWER**self.revivals
        is_slow = part == "flow" and self.options.first == "flow" and not self.opening
        return self.factor * (self.options.joint_factor if is_slow else 1.0)

    def forward_backward(
        self, batches: Iterator[Tensor], step_arguments: dict
    ) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batches of one step; the means of its terms."""
        means: dict[str, Tensor] = {}
        for i in range(self.options.accumulate):
            last = i == self.options.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                batch = next(batches)
                raw, given = (
                    (batch, ()) if isinstance(batch, Tensor) else (batch[0], tuple(batch[1:]))
                )
                loss, terms = self.network(self.prepare_batch(raw), *given, **step_arguments)
                self.accelerator.backward(loss / self.options.accumulate)
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value / self.options.accumulate
        return means

    @property
    def unit(self) -> str:
        """Unit of likelihoods: bits/dim where the data have grey levels, else total nats of the raw
        data.
        """
        return "bits/dim" if self.model.scaling.levels else "nats"

    def in_units(self, nats: float) -> float:
        """Nats of the raw data in the :attr:`unit`."""
        return nats / (
            math.prod(self.model.shape) * math.log(2) if self.model.scaling.levels else 1.0
        )

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """The bound (:func:`bound_of`) of the averaged model on validation examples, every time
        with the same noise.

        With a second data set, also −log p(x_T) of its validation examples, as ``valid_terminal``.
        Both with the noise that training adds.
        """
        model, o, size = self.ema.model, self.options, self.recipe.evaluate.batch_size

        def of(raw: Tensor, draw: Draw, noise: float, c: Tensor | None = None) -> float:
            nats = drawn(raw, draw, model, self.accelerator, size, o.seed, noise=noise, c=c)
            return self.in_units(nats.mean().item())

        raw = stack(self.data.valid, o.validate_examples)
        bound = of(raw, bound_of(model, raw, o.seed), o.initial_noise, self.c_of("valid", len(raw)))
        validation: dict[str, Any] = {"valid_nelbo": bound, "unit": self.unit}
        if self.data_b is not None:
            second = stack(self.data_b.valid, o.validate_examples)
            validation["valid_terminal"] = of(
                second,
                lambda x, generator: flow_nll(model, x, generator=generator),
                o.terminal_noise,
            )
        return validation

    def save(self, run: Path, log: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, with the state of the ``log``, and the averaged model into ``run``.
        Collective.

        Each file is written whole or not at all.
        """
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # states of all processes
            "random": gather_object([random_states(self.accelerator.device)]),
            "log": log or {},
            "squares": self.noise_levels and self.noise_levels.squares,
            **{name: getattr(self, name) for name in KEPT_FIELDS},
        }
        if self.accelerator.is_main_process:
            checkpoints.write(run, state, self.options.keep_last)
            self.ema.model.save(run)
        self.accelerator.wait_for_everyone()

    def load(self, run: Path) -> dict[str, Any]:
        """Go back to the newest intact state in ``run``; the state of the log in it. Collective.

        The main process finds it, and all take that very one. The number of processes may have been
        another one.

        Raises:
            ValueError: it is one of another model.
            FileNotFoundError: none is intact.
            OSError, RuntimeError, MemoryError: it cannot be read now.
        """
        path = by_main_process(lambda: checkpoints.newest(run)[0])
        state = checkpoints.read(path)
        try:
            return self._take(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a checkpoint of this recipe: {reason(error)}"
            ) from error

    def _take(self, state: dict) -> dict[str, Any]:
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in KEPT_FIELDS:
            setattr(self, name, state[name])
        if self.noise_levels is not None and state["squares"] is not None:
            self.noise_levels.squares = state["squares"]
        if len(state["random"]) == self.accelerator.num_processes:
            restore_random_states(
                state["random"][self.accelerator.process_index], self.accelerator.device
            )
        else:
            self._seed_this_process()
        return state["log"]


def bound_of(model: nn.Module, raw: Tensor, seed: int) -> Draw:
    """Draws an upper bound of −log p of a batch x of ``raw`` under ``model``, nats in model units,
    (B,).

    It is the NELBO. A Gaussian law of the latents removes most of its noise, where fitting one
    costs next to nothing.
    """
    model.flow.check()
    small = math.prod(model.shape) <= LARGEST_CONTROLLED
    one_latent = not sees_condition(model.flow)
    reference = latent_reference(model, raw, seed=seed) if small and one_latent else None

    def draw(x: Tensor, generator: torch.Generator, c: Tensor | None = None) -> Tensor:
        log_q = x.new_zeros(len(x))  # model units
        return nelbo(
            model, x, c=c, times=2, reference=reference, log_q=log_q, generator=generator
        ).total

    return draw


def drawn(
    raw: Tensor,
    draw: Draw,
    model: nn.Module,
    accelerator: Accelerator,
    batch_size: int,
    seed: int,
    *,
    noise: float = 0.0,
    c: Tensor | None = None,
) -> Tensor:
    """``draw`` of all of ``raw`` with normal noise of that deviation, at conditions ``c`` if there
    are any, nats of the raw data (N,).

    Each process does its share, and all get all of them. The noise of a batch depends on its index
    alone, so that the result does not depend on the processes.
    """
    a, batches = accelerator, raw.split(batch_size)
    nats = [torch.zeros(len(batch), device=a.device) for batch in batches]
    generator = torch.Generator(a.device)
    for index in range(a.process_index, len(batches), a.num_processes):
        generator.manual_seed(seed + SEED_STRIDE * index)
        x, log_q = from_data(model, batches[index].to(a.device), generator=generator)
        x = noisy(x, noise, generator)
        at = () if c is None else (c[index * batch_size :][: len(x)],)
        nats[index] = (draw(x, generator, *at) + log_q).float()
    return a.reduce(torch.cat(nats), "sum")


def package_of(module: nn.Module) -> str:
    """The top-level package that the class of ``module`` comes from."""
    return type(module).__module__.split(".")[0]
