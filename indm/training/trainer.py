"""What a checkpoint holds and what one step does: the model, its average, the optimizer, the place in the run.

:class:`Trainer` knows nothing of files but the checkpoint; the loop over its steps is :func:`indm.training.loop.train`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn

from indm.config import recipes
from indm.config.options import Training
from indm.config.recipes import Recipe
from indm.data.base import Data, stack
from indm.data.batches import flip_horizontally, loader
from indm.data.registry import load_data
from indm.files import untrusted
from indm.flows import Frozen, Identity, require_one_map
from indm.likelihood import latent_reference
from indm.messages import reason
from indm.model import INDM, build_model, count_parameters
from indm.objective import fid_loss, flow_loss, mle_loss, nelbo, soft_truncation
from indm.rng import for_rows, part_of
from indm.runs.processes import by_main_process
from indm.tensors import event_size
from indm.training import checkpoints
from indm.training.ema import EMA
from indm.training.metrics_log import Means
from indm.training.penalties import isometry_defect, normal_law, terminal_nll

OBJECTIVES = {"mle": mle_loss, "fid": fid_loss, "flow": flow_loss}
Draw = Callable[[Tensor, torch.Generator], Tensor]  # (x, generator) ↦ nats, (B,)
LARGEST_CONTROLLED = 1024  # dimensions up to which validation has a control variate
MOST_IN_MEMORY = 20_000  # examples of the law that x_T shall have


class TrainingStep(nn.Module):
    """The objective as one forward pass, x ↦ (loss, terms), so that data parallelism sees every parameter in it.

    What the score is trained behind has a name: the "joint" flow, the same "frozen" (neither log-determinant nor
    gradient), or "none" (the identity, at which the flow begins, so that nothing jumps when it enters).
    """

    def __init__(self, model: INDM, options: Training, terminal_law: Callable[[int], Tensor] | None = None):
        super().__init__()
        self.options, self.terminal_law = options, terminal_law
        flows = {"joint": model.flow, "frozen": Frozen(model.flow), "none": Identity()}
        self.models = nn.ModuleDict({k: INDM(f, model.score, model.scaling, model.shape) for k, f in flows.items()})

    def forward(self, x: Tensor, eps: float | None, behind: str) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.models[behind]
        loss, terms = OBJECTIVES[self.options.objective](model, x, eps=eps)
        if behind == "joint" and self.options.isometry:
            terms["isometry"] = isometry_defect(model.flow, x).mean()
            loss = loss + self.options.isometry * terms["isometry"]
        if behind == "joint" and self.terminal_law is not None:
            terms["terminal"] = terminal_nll(model.flow, model.sde, self.terminal_law(len(x))).mean()
            loss = loss + self.options.terminal * terms["terminal"] / event_size(x)
        # Behind a frozen flow the loss lacks the log-determinant.
        known = {"denoising": terms["denoising"]} if behind == "frozen" else {"loss": loss, **terms}
        return loss, {name: term.detach() for name, term in known.items()}


def learning_rate_factor(step: int, progress: float, warmup: int, decay: float) -> float:
    """Linear rise over the first ``warmup`` steps, 1, linear fall to 0 over the last fraction ``decay`` of the run."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = min(1.0, (1 - progress) / decay) if decay else 1.0
    return rise * max(fall, 0.0)


def check_parts(model: INDM, options: Training) -> None:
    """All that has parameters is trained, and every step has something to train.

    Raises:
        ValueError: naming the keys of the recipe that are at odds.
    """
    flow, score = count_parameters(model.flow), count_parameters(model.score)
    if options.objective == "flow" and score:
        raise ValueError(
            f'train.objective "flow" needs net.name "zero" and an sde.name without parameters, got {score} parameters '
            'that it would not train; "mle" and "fid" train flow and score'
        )
    if options.objective == "flow" and model.sde.prior_std != 1:
        raise ValueError(
            'train.objective "flow" needs an SDE whose prior is N(0, I), the law that the score of net.name "zero" '
            f'knows, got one of deviation {model.sde.prior_std:g}; use sde.name "vp" or "subvp"'
        )
    if options.objective == "flow" and options.latent_mean:
        raise ValueError('train.latent_mean must be false for train.objective "flow", whose prior is N(0, I)')
    if not score and options.pretrain:
        raise ValueError(f"train.pretrain must be 0 where the score has nothing to train, got {options.pretrain:g}")
    if options.isometry:
        require_one_map(model.flow, "train.isometry")
    if not score and not flow:
        raise ValueError(
            "flow.name and net.name must leave something to train, got a flow and a score without parameters"
        )


def check_second(data: Data, second: Data) -> None:
    """ValueError where two data sets are not of one kind."""
    for what, a, b in (
        ("events of shape", tuple(data.shape), tuple(second.shape)),
        ("grey levels", data.scaling.levels, second.scaling.levels),
    ):
        if a != b:
            raise ValueError(f"data_b must have {what} {a}, as data have, got {b}")


# Of a trainer, beside tensors and what each process has of its own.
KEPT = ("step", "seconds", "pretraining", "validation", "skipped", "rollbacks", "rate")


class Trainer:
    """The model, its average, the optimizer and the place in the run: what a checkpoint holds, and one step of it.

    Another model trains by the same loop in a subclass that makes it and its step: :meth:`build_model`,
    :meth:`parameter_groups`, :meth:`build_step`, :meth:`conditions` and :meth:`bound`.
    """

    shown = ("flow", "denoising", "prior")  # terms of the loss beside the progress bar

    def __init__(self, recipe: Recipe, data: Data, accelerator: Accelerator):
        self.options: Training = recipes.options_of(recipe, "train")
        self.data, self.accelerator = data, accelerator
        self.data_b = None
        if "data_b" in recipe and self.options.terminal:
            with accelerator.main_process_first():
                self.data_b = load_data(**recipe["data_b"])
        parts = self.options.accumulate * accelerator.num_processes
        if self.options.batch_size % parts or self.options.batch_size > len(data.train):
            raise ValueError(
                f"train.batch_size must be a multiple of {parts} (accumulated batches × processes) and at most the "
                f"{len(data.train)} training examples, got {self.options.batch_size}"
            )
        self.micro_batch_size = self.options.batch_size // parts
        self.validation_batch_size = recipes.options_of(recipe, "evaluate").batch_size
        torch.manual_seed(self.options.seed)
        model = self.build_model(recipe)
        layout = torch.channels_last if accelerator.device.type == "cuda" else torch.preserve_format
        self.model = model.to(accelerator.device, memory_format=layout)
        self.ema = EMA(self.model, self.options.ema)
        self.optimizer = self.build_optimizer([group for group in self.parameter_groups() if group["params"]])
        self.step, self.seconds = 0, 0.0
        self.pretraining = self.options.pretrain > 0
        self.means, self.validation, self.best = Means(), {}, {}
        self.skipped, self.skipped_in_row = 0, Counter()  # in all, and in a row of each kind of step: see Logbook
        self.rate, self.rollbacks, self.fell_back = 1.0, 0, False
        self.saved_step: int | None = None
        self.network = accelerator.prepare_model(self.build_step(recipe).train())
        torch.manual_seed(self.options.seed + 1)  # of all processes: see indm.rng

    def build_model(self, recipe: Recipe) -> nn.Module:
        """What is trained, on the CPU: a module with ``scaling``, ``shape`` and ``save(folder)``."""
        model = build_model(recipes.model_of(recipe), shape=self.data.shape, scaling=self.data.scaling)
        check_parts(model, self.options)
        return model

    def parameter_groups(self) -> list[dict]:
        """The parts of the model, each with a learning ``rate``, weight decay and gradient norm of its own."""
        o, score, flow = self.options, self.model.score, self.model.flow
        return [
            {"name": "score", "params": list(score.parameters()), "rate": o.lr, "weight_decay": o.weight_decay},
            {"name": "flow", "params": list(flow.parameters()), "rate": o.flow_lr, "weight_decay": o.flow_weight_decay},
        ]

    def build_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """An optimizer that leaves all as it is where its ``found_inf`` is 1, as fused ones do on the device."""
        return torch.optim.AdamW(groups, lr=self.options.lr, betas=self.options.betas, fused=True)

    def build_step(self, recipe: Recipe) -> nn.Module:
        """The objective as a module, (x, **conditions) ↦ (loss, terms to be logged), see :class:`TrainingStep`."""
        return TrainingStep(self.model, self.options, self._terminal_law())

    def conditions(self) -> dict:
        """What the coming step is told beside its batches, drawn once for all of them."""
        k = self.options.soft_truncation
        return {"eps": soft_truncation(self.model.sde, k) if k else None, "behind": self.behind()}

    def bound(self, model: nn.Module, raw: Tensor) -> Draw:
        """What draws an upper bound of −log p of a batch x of ``raw`` under ``model``, nats in model units, (B,).

        A Gaussian law of the latents takes most of the noise out of it, where fitting one costs next to nothing.
        """
        model.flow.check()
        small = math.prod(model.shape) <= LARGEST_CONTROLLED
        reference = latent_reference(model, raw, seed=self.options.seed) if small else None
        return lambda x, generator: nelbo(model, x, times=2, reference=reference, generator=generator).total

    def _terminal_law(self) -> Callable[[int], Tensor] | None:
        """What draws examples of the law that x_T shall have, in model units; None where none is asked for."""
        if not self.options.terminal:
            return None
        device, scaling = self.accelerator.device, self.model.scaling
        if self.data_b is None:
            return normal_law(scaling.to_model(stack(self.data.train, MOST_IN_MEMORY).to(device)))
        check_second(self.data, self.data_b)
        raw, flip = stack(self.data_b.train, MOST_IN_MEMORY), self.data_b.flip

        def draw(n: int) -> Tensor:
            drawn = raw[for_rows(n, lambda n: torch.randint(len(raw), (n,)))].to(device)
            return scaling.to_model(flip_horizontally(drawn) if flip else drawn)

        return draw

    def behind(self) -> str:
        """What the coming step trains the score behind, see :class:`TrainingStep`; once the flow is in, it stays.

        Where the score has nothing to train, the flow takes part in every step.
        """
        self.pretraining = self.pretraining and self.progress < self.options.pretrain
        if self.pretraining:
            return "none"
        between = self.step % self.options.flow_update_every and count_parameters(self.model.score)
        return "frozen" if between else "joint"

    @property
    def progress(self) -> float:
        """How much of the budget is spent; the run is over at 1."""
        return max(self.step / self.options.steps, self.seconds / self.options.seconds)

    def batches(self) -> Iterator[Tensor]:
        """Raw batches without end from the present step on, of this process; their order depends on seed and epoch."""
        o = self.options
        steps_per_epoch = len(self.data.train) // o.batch_size
        first_epoch, skipped_steps = divmod(self.step, steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            examples = loader(
                self.data.train,
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

    def prepare_batch(self, raw: Tensor) -> Tensor:
        """Model units, flipped at random where the data allow it."""
        return self.model.scaling.to_model(flip_horizontally(raw) if self.data.flip else raw)

    def train_step(self, batches: Iterator[Tensor]) -> dict[str, Tensor]:
        """One optimizer step; the loss, its terms in nats (means over the batch) and the gradient norms.

        Where one of them is not finite on any process, model and optimizer stay as they are, and ``skipped`` is 1. The
        fused optimizer sees to that on the device, so that the host need not wait for it; the average goes on towards
        the weights.
        """
        o, conditions = self.options, self.conditions()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]  # a batch norm's change in the pass
        for group in self.optimizer.param_groups:
            warmup = max(o.warmup, o.flow_warmup) if group["name"] == "flow" else o.warmup
            group["lr"] = self.rate * group["rate"] * learning_rate_factor(self.step, self.progress, warmup, o.decay)

        sums: dict[str, Tensor] = {}
        for i in range(o.accumulate):
            last = i == o.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                raw = next(batches)
                with part_of(self.accelerator.process_index * len(raw), self.accelerator.num_processes * len(raw)):
                    loss, terms = self.network(self.prepare_batch(raw), **conditions)
                self.accelerator.backward(loss / o.accumulate)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value / o.accumulate

        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                sums[f"{group['name']}_grad_norm"] = nn.utils.clip_grad_norm_(group["params"], o.clip)
        finite = torch.stack([value.isfinite() for value in sums.values()]).all()
        skipped = self.accelerator.reduce((~finite).float(), "sum").clamp_max(1.0)
        self.optimizer.found_inf = skipped
        self.optimizer.step()
        for buffer, before in buffers:
            buffer.copy_(torch.where(skipped > 0, before, buffer))
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, self.step)
        return sums | {"skipped": skipped}

    def in_units(self, nats: Tensor | float) -> tuple[float, str]:
        """Nats in model units as bits/dim where the data have grey levels, else as total nats of the raw data."""
        scaling, shape = self.model.scaling, self.model.shape
        if scaling.levels:
            return float(scaling.bits_per_dim(nats, shape)), "bits/dim"
        return float(nats + scaling.log_scale(shape)), "nats"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The :meth:`bound` of the averaged model on validation examples, every time with the same noise.

        With a second data set, also −log p(x_T) of its validation examples, as ``valid_terminal``.
        """
        model, raw = self.ema.model, stack(self.data.valid, self.options.validate_examples)
        value, unit = self.in_units(self._drawn(raw, self.bound(model, raw)).mean())
        found = {"valid_nelbo": value, "unit": unit}
        if self.data_b is not None:
            second = stack(self.data_b.valid, self.options.validate_examples)
            nats = self._drawn(second, lambda x, g: terminal_nll(model.flow, model.sde, x, generator=g))
            found["valid_terminal"], _ = self.in_units(nats.mean())
        return found

    def _drawn(self, raw: Tensor, draw: Draw) -> Tensor:
        """``draw`` of all of ``raw``, nats (N,): each process does its share of the batches, and all get all of them.

        The noise of a batch depends on its place alone, so that the result does not depend on the processes.
        """
        a, nats = self.accelerator, []
        generator = torch.Generator(a.device)
        for index, part in enumerate(raw.split(self.validation_batch_size)):
            if index % a.num_processes == a.process_index:
                generator.manual_seed(self.options.seed + 1_000_003 * index)
                x = self.ema.model.scaling.to_model(part.to(a.device), generator=generator)
                nats.append(draw(x, generator).float())
            else:
                nats.append(torch.zeros(len(part), device=a.device))
        return a.reduce(torch.cat(nats), "sum")

    def place_of(self, step: int) -> dict[str, int]:
        """Which batch ``step`` (from 1) took: its epoch, and its place in the epoch's order, both from 0."""
        epoch, batch = divmod(step - 1, len(self.data.train) // self.options.batch_size)
        return {"epoch": epoch, "batch": batch}

    def save(self, run: Path) -> None:
        """Write the checkpoint and the averaged model into ``run``, each file whole or not at all. Collective."""
        random = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "means": gather_object([self.means.state()]),
            **{name: getattr(self, name) for name in KEPT},
        }
        if self.accelerator.is_main_process:
            checkpoints.write(run, state, self.options.keep_last)
            self.ema.model.save(run)
        self.saved_step, self.fell_back = self.step, False
        self.accelerator.wait_for_everyone()

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
            self._take(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            untrusted.check_memory_was_had(path, error)
            raise ValueError(f"{path} is no checkpoint of this recipe: {reason(error)}") from error
        self.saved_step = self.step

    def _take(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in KEPT:
            setattr(self, name, state[name])
        self.skipped_in_row.clear()
        a, random = self.accelerator, state["random"]
        self.means.restore(state["means"], a.process_index, a.num_processes, a.device)
        torch.set_rng_state(random["cpu"])
        if a.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], a.device)

    def roll_back(self, run: Path) -> None:
        """Go back to the newest state in ``run`` at half the learning rates.

        Where the run has just come from there, that was of no use, and it is set aside for the one before it.
        """
        seconds, skipped, rate, rollbacks = self.seconds, self.skipped, self.rate / 2, self.rollbacks + 1
        if self.fell_back and self.accelerator.is_main_process:
            checkpoints.drop_newest(run)
        self.load(run)
        self.seconds, self.skipped, self.rate, self.rollbacks, self.fell_back = seconds, skipped, rate, rollbacks, True
