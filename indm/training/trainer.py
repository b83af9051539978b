"""What a checkpoint holds and what one step does: the model, its average, the optimizer, the place in the run.

:class:`Trainer` knows nothing of files but the checkpoint; the loop over its steps is :func:`indm.training.loop.train`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn

from indm.conditions import Condition, rows_of_data
from indm.config import parts
from indm.config.options import Training
from indm.config.recipes import Recipe, model_of
from indm.data.base import Data, Examples, stack
from indm.data.batches import Paired, flip_horizontally, loader
from indm.data.registry import load_data
from indm.dequantization import from_data
from indm.files.memory import raise_if_out_of_memory
from indm.flows.base import Flow
from indm.flows.check import check_flow
from indm.messages import reason
from indm.model import build_model, count_parameters
from indm.objective import Objective, flow_nll, objective_of, soft_truncation
from indm.rng import part_of, random_states, restore_random_states
from indm.runs.processes import by_main_process
from indm.runs.signals import uncut
from indm.training import checkpoints, sharding
from indm.training.checks import check_condition, check_loss, check_parts, check_second, check_shapes
from indm.training.ema import EMA
from indm.training.memory import check_fits, within_memory
from indm.training.metrics_log import Means
from indm.training.penalties import penalties_of
from indm.training.resolving import with_condition
from indm.training.step import TrainingStep, learning_rate_factor
from indm.training.validation import Draw, bound_of, drawn

# Of a trainer, what a checkpoint holds beside tensors and what each process has of its own.
KEPT = ("step", "seconds", "pretraining", "validation", "skipped", "rollbacks", "lr_factor")


class Trainer:
    """The model, its average, the optimizer and the place in the run: what a checkpoint holds, and one step of it.

    Args:
        recipe: resolved, see :mod:`indm.config.recipes`.
        data: what is trained on.
        accelerator: devices, precision and processes.
        model: what is trained; by default the objective builds it from the recipe.
        objective: by default the one that the recipe names.

    A subclass may change how the model is made (:meth:`build_model`), the optimizer (:meth:`build_optimizer`), the
    step (:meth:`build_step`, :meth:`conditions`, :meth:`forward_backward`) and what validation draws (:meth:`bound`).
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
        self.options: Training = recipe.train
        self.objective = objective or objective_of(parts.find("objective", self.options.objective))
        self.data, self.accelerator = data, accelerator
        self.data_b = self._second_data(recipe)
        self.micro_batch_size = self._batch_size_of_a_pass()
        self.validation_batch_size = recipe.evaluate.batch_size
        recipe = with_condition(recipe, data)
        torch.manual_seed(self.options.seed)
        if model is None:
            with within_memory(accelerator):
                model = self.build_model(recipe)
        check_parts(model, self.options, self.objective)
        self.condition: Condition | None = getattr(model, "condition", None)
        if recipe.condition is not None and self.condition is None:
            raise ValueError(f"condition must be left out: a {type(model).__name__} that is trained here has none")
        if self.condition is not None:
            check_condition(self.condition, data)
            self.condition.fit(self.condition.rows_of(data, "train"))
        self.is_sharded = self.options.shard and accelerator.num_processes > 1
        layout = torch.channels_last if accelerator.device.type == "cuda" else torch.preserve_format
        self.model = model if self.is_sharded else model.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        if accelerator.device.type == "cpu" and not self.is_sharded:
            check_fits(self.model, self.micro_batch_size, accelerator)
        self._try_outside_parts()
        self.ema = EMA(self.model, self.options.ema)
        if self.is_sharded:
            self.hollow = sharding.without_weights(self.ema.model)
            sharding.shard(self.ema.model, accelerator)
            sharding.shard(self.model, accelerator, half=accelerator.mixed_precision == "bf16")
        groups = [group for group in self.parameter_groups() if group["params"]]
        groups = sharding.apart(groups, self.model.score.backbone) if self.options.shard else groups
        self.optimizer = self.build_optimizer(groups)
        self.step, self.seconds = 0, 0.0
        self.pretraining = self.options.pretrain > 0
        self.means = Means()
        self.validation: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.skipped = 0  # in all
        self.skipped_in_row: Counter[str] = Counter()  # in a row, of each kind of step: see MetricsLog
        self.lr_factor, self.rollbacks, self.fell_back = 1.0, 0, False
        self.saved_step: int | None = None
        step = self.build_step(recipe).train()
        self.network = accelerator.prepare_model(step, evaluation_mode=self.is_sharded)  # that is, without DDP
        torch.manual_seed(self.options.seed + 1)  # of all processes: see indm.rng

    def _second_data(self, recipe: Recipe) -> Data | None:
        """The data of ``[data_b]``, where a penalty needs them."""
        if recipe.data_b is None or not self.options.terminal:
            return None
        with self.accelerator.main_process_first():
            second = load_data(recipe.data_b.name, **recipe.data_b.options)
        check_second(self.data, second)
        return second

    def _batch_size_of_a_pass(self) -> int:
        """The examples of one forward pass of one process."""
        parts = self.options.accumulate * self.accelerator.num_processes
        if self.options.batch_size % parts or self.options.batch_size > len(self.data.train):
            raise ValueError(
                f"train.batch_size must be a multiple of {parts} (accumulated batches × processes) and at most the "
                f"{len(self.data.train)} training examples, got {self.options.batch_size}"
            )
        return self.options.batch_size // parts

    def build_model(self, recipe: Recipe) -> nn.Module:
        """What is trained, on the CPU: a module with ``scaling``, ``shape``, ``trained_parts`` and ``save(folder)``."""
        make = self.objective.build
        if make is not None:
            return make(recipe, self.data.shape, self.data.scaling)
        return build_model(model_of(recipe), self.data.shape, self.data.scaling)

    def _try_outside_parts(self) -> None:
        """See that parts from outside this package return what they must, before anything is written."""
        packages = {package_of(module) for module in self.model.modules()}
        loss_package = getattr(self.objective.loss, "__module__", "").split(".")[0]
        if {*packages, loss_package} <= {"torch", "indm"}:
            return
        model = self.model if self.condition is None else self.model.given(self.c_of("train", 2))
        x, _ = from_data(model, stack(self.data.train, 2).to(next(model.parameters()).device))
        if model.is_diffusion:
            check_shapes(model, x)
            if any(isinstance(part, Flow) and package_of(part) != "indm" for part in model.flow.modules()):
                check_flow(model.flow, x)
        known = {"eps": None, "progress": 0.0}
        check_loss(self.objective, model, x, {k: v for k, v in known.items() if self.objective.takes(k)})

    def c_of(self, split: str, n: int | None = None) -> Tensor | None:
        """The conditions of the first ``n`` examples of a split (all by default); None for a model without one."""
        return rows_of_data(self.model, self.data, split, n)

    @property
    def shown(self) -> tuple[str, ...]:
        """Terms of the loss beside the progress bar."""
        return self.objective.shown

    def parameter_groups(self) -> list[dict]:
        """The parts of the model, each with its own learning rate (before the schedule) and weight decay."""
        return [
            {
                "name": name,
                "params": list(part.parameters()),
                "base_lr": self._option_of(name, "lr"),
                "weight_decay": self._option_of(name, "weight_decay"),
            }
            for name, part in self.model.trained_parts.items()
        ]

    def _option_of(self, part: str, key: str) -> float:
        """``train.PART_KEY`` where there is such a key, else ``train.KEY``."""
        return getattr(self.options, f"{part}_{key}", getattr(self.options, key))

    def build_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """An optimizer that leaves all as it is where its ``found_inf`` is 1, as fused ones do on the device."""
        return torch.optim.AdamW(groups, lr=self.options.lr, betas=self.options.betas, fused=True)

    def build_step(self, recipe: Recipe) -> nn.Module:
        """The objective as a module, (raw, **conditions) ↦ (loss, terms to be logged), see :class:`TrainingStep`."""
        penalties = penalties_of(self.options, self.model, self.data, self.data_b, self.accelerator.device)
        return TrainingStep(self.model, self.objective, penalties, self.options.initial_noise)

    def conditions(self) -> dict:
        """What the coming step takes beside its batches, drawn once for all of them."""
        conditions: dict = {}
        if self.objective.takes("eps"):
            k = self.options.soft_truncation
            conditions["eps"] = soft_truncation(self.model.sde, k) if k else None
        if self.objective.takes("progress"):
            conditions["progress"] = self.progress
        return conditions | {"behind": self.behind()}

    def bound(self, model: nn.Module, raw: Tensor) -> Draw:
        """What draws an upper bound of −log p of a batch of ``raw``, see :func:`indm.training.validation.bound_of`."""
        return bound_of(model, raw, self.options.seed)

    def behind(self) -> str:
        """What the coming step trains the score behind, see :class:`TrainingStep`; once the flow is in, it stays.

        Where the score has nothing to train, the flow takes part in every step.
        """
        self.pretraining = self.pretraining and self.progress < self.options.pretrain
        if self.pretraining:
            return "none"
        between = self.model.is_diffusion and self.step % self.options.flow_update_every
        return "frozen" if between and count_parameters(self.model.score) else "joint"

    @property
    def progress(self) -> float:
        """How much of the budget is spent; the run is over at 1."""
        return max(self.step / self.options.steps, self.seconds / self.options.seconds)

    def batches(self) -> Iterator[Any]:
        """Raw batches without end from the present step on, of this process; their order depends on seed and epoch.

        Those of a model with a condition are pairs of raw data and c.
        """
        o = self.options
        steps_per_epoch = len(self.data.train) // o.batch_size
        first_epoch, skipped_steps = divmod(self.step, steps_per_epoch)
        dataset = self._examples()
        for epoch in itertools.count(first_epoch):
            examples = loader(
                dataset,
                self.micro_batch_size,
                shuffle=True,
                seed=o.seed,
                epoch=epoch,
                workers=o.workers,
                drop_last=True,
            )
            examples.generator = torch.Generator()  # making an iterator must not draw from the stream of the steps
            a = self.accelerator
            shard = prepare_data_loader(examples, a.device, a.num_processes, a.process_index, put_on_device=True)
            skipped = skipped_steps * o.accumulate if epoch == first_epoch else 0
            yield from itertools.islice(skip_first_batches(shard, skipped), steps_per_epoch * o.accumulate - skipped)

    def _examples(self) -> Examples | Paired:
        """The training data, paired with c for a model with a condition."""
        c = self.c_of("train")
        return self.data.train if c is None else Paired(self.data.train, c)

    def prepare_batch(self, raw: Tensor) -> Tensor:
        """Flipped at random where the data allow it."""
        return flip_horizontally(raw) if self.data.flip else raw

    def train_step(self, batches: Iterator[Tensor]) -> dict[str, Tensor]:
        """One optimizer step; the loss, its terms in nats (means over the batch) and the gradient norms.

        Where one of them is not finite on any process, model and optimizer stay as they are, and ``skipped`` is 1. The
        fused optimizer sees to that on the device, so that the host need not wait for it; the average still moves
        towards the weights.
        """
        conditions = self.conditions()
        buffers = [  # what a pass changes, such as a batch norm's statistics, in place or by another tensor
            (module, name, buffer.clone())
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._set_learning_rates()
        terms = self.forward_backward(batches, conditions)
        if self.is_sharded:
            sharding.average_gradients(self._parameters(), self.accelerator)
        for part, parameters in sharding.together(self.optimizer.param_groups).items():
            if any(p.grad is not None for p in parameters):
                terms[f"{part}_grad_norm"] = sharding.clip_grad_norm_(parameters, self.options.clip)
        finite = torch.stack([value.isfinite() for value in terms.values()]).all()
        skipped = self.accelerator.reduce((~finite).float(), "sum").clamp_max(1.0)
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        for module, name, before in buffers:
            after = module.get_buffer(name)
            after.copy_(torch.where(skipped > 0, before, after))
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, self.step)
        return terms | {"skipped": skipped}

    def _set_learning_rates(self) -> None:
        o = self.options
        for group in self.optimizer.param_groups:
            warmups = o.warmup, self._option_of(group["name"], "warmup")
            factors = (learning_rate_factor(self.step, self.progress, warmup, o.decay) for warmup in warmups)
            group["lr"] = self.lr_factor * group["base_lr"] * min(factors)

    def forward_backward(self, batches: Iterator[Tensor], conditions: dict) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batches of one step; the means of its terms."""
        means: dict[str, Tensor] = {}
        for i in range(self.options.accumulate):
            last = i == self.options.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                batch = next(batches)
                raw, given = (batch, ()) if isinstance(batch, Tensor) else (batch[0], tuple(batch[1:]))
                with part_of(self.accelerator.process_index * len(raw), self.accelerator.num_processes * len(raw)):
                    loss, terms = self.network(self.prepare_batch(raw), *given, **conditions)
                self.accelerator.backward(loss / self.options.accumulate)
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value / self.options.accumulate
        return means

    @property
    def unit(self) -> str:
        """Of likelihoods: bits/dim where the data have grey levels, else total nats of the raw data."""
        return "bits/dim" if self.model.scaling.levels else "nats"

    def in_units(self, nats: float) -> float:
        """Nats of the raw data in the :attr:`unit`."""
        return nats / (math.prod(self.model.shape) * math.log(2) if self.model.scaling.levels else 1.0)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """The :meth:`bound` of the averaged model on validation examples, every time with the same noise.

        With a second data set, also −log p(x_T) of its validation examples, as ``valid_terminal``. Both with the noise
        that training adds.
        """
        model, raw, o = self.ema.model, stack(self.data.valid, self.options.validate_examples), self.options
        c = self.c_of("valid", len(raw))
        bound = self.in_units(self._drawn(raw, self.bound(model, raw), o.initial_noise, c).mean().item())
        validation: dict[str, Any] = {"valid_nelbo": bound, "unit": self.unit}
        if self.data_b is not None:
            second = stack(self.data_b.valid, self.options.validate_examples)
            nats = self._drawn(second, lambda x, generator: flow_nll(model, x, generator=generator), o.terminal_noise)
            validation["valid_terminal"] = self.in_units(nats.mean().item())
        return validation

    def _drawn(self, raw: Tensor, draw: Draw, noise: float, c: Tensor | None = None) -> Tensor:
        size, seed = self.validation_batch_size, self.options.seed
        return drawn(raw, draw, self.ema.model, self.accelerator, size, seed, noise=noise, c=c)

    def place_of(self, step: int) -> dict[str, int]:
        """Which batch ``step`` (from 1) took: its epoch, and its place in the epoch's order, both from 0."""
        epoch, batch = divmod(step - 1, len(self.data.train) // self.options.batch_size)
        return {"epoch": epoch, "batch": batch}

    def save(self, run: Path) -> None:
        """Write the checkpoint and the averaged model into ``run``, each file whole or not at all. Collective."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(self.accelerator.device),
            "means": gather_object([self.means.state()]),
            **{name: getattr(self, name) for name in KEPT},
        }
        if self.options.shard:
            shards = by_main_process(lambda: checkpoints.new_shards(run, self.step))
            state = sharding.write(shards, state, self._parameters())
            state["shards"] = checkpoints.record_of(shards, self.accelerator)
        average = self.average()
        if self.accelerator.is_main_process:
            with uncut:
                checkpoints.write(run, state, self.options.keep_last)
                average.save(run)
                self.saved_step = self.step  # before the process may end, with last words that name it
        self.saved_step, self.fell_back = self.step, False
        self.accelerator.wait_for_everyone()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def average(self) -> nn.Module:
        """The averaged model in one piece. Collective.

        Where it is sharded, that is a copy on the CPU of the main process, and the others get one without weights.
        """
        return sharding.gathered(self.ema.model, self.hollow) if self.is_sharded else self.ema.model

    def save_average(self, folder: Path) -> None:
        """Write the averaged model into ``folder``. Collective."""
        average = self.average()
        if self.accelerator.is_main_process:
            average.save(folder)

    def load(self, run: Path) -> None:
        """Go back to the newest whole state in ``run``; the number of processes may be another one. Collective.

        The main process finds it, and all take that very one.

        Raises:
            ValueError: none is whole, or it is one of another model.
            OSError, MemoryError: it cannot be read now.
        """
        state: dict = {}

        def newest() -> Path:
            nonlocal state
            path, state = checkpoints.newest(run)
            return path

        path = by_main_process(newest)
        state = state or checkpoints.read(path)
        try:
            if "shards" in state:
                state |= {"model": self.model.state_dict(), "ema": self.ema.model.state_dict()}
                sharding.read(checkpoints.shards_of(path, state), state, self._parameters())
            self._take(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise_if_out_of_memory(path, error)
            raise ValueError(f"{path} is no checkpoint of this recipe: {reason(error)}") from error
        self.saved_step = self.step

    def _take(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in KEPT:
            setattr(self, name, state[name])
        self.skipped_in_row.clear()
        a = self.accelerator
        self.means.restore(state["means"], a.process_index, a.num_processes, a.device)
        restore_random_states(state["random"], a.device)

    def roll_back(self, run: Path) -> None:
        """Go back to the newest state in ``run`` at half the learning rates.

        Where the run has just come from there, that was of no use, and it is set aside for the one before it.
        """
        seconds, skipped, lr_factor, rollbacks = self.seconds, self.skipped, self.lr_factor / 2, self.rollbacks + 1
        if self.fell_back and self.accelerator.is_main_process:
            checkpoints.drop_newest(run)
        self.load(run)
        self.seconds, self.skipped, self.lr_factor, self.rollbacks = seconds, skipped, lr_factor, rollbacks
        self.fell_back = True


def package_of(module: nn.Module) -> str:
    """The top-level package that the class of ``module`` comes from."""
    return type(module).__module__.split(".")[0]
