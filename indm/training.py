"""One training loop: flow and score together, from a recipe to a run folder, on whatever devices accelerate finds.

A run folder holds ``recipe.toml`` (resolved), ``versions.json``, ``metrics.jsonl``, ``checkpoint.pt`` (all that
``resume`` needs) with the ones before it in ``checkpoints/``, ``model.safetensors`` with ``model.json`` (the averaged
model), ``best/`` (that of the best validation) and, at the end, ``summary.json``.

A step whose loss or gradient is not finite is left out, on all processes alike. After many in a row the run goes back
to its last checkpoint, at half the learning rates; when that has been of no help it stops and says what was not finite.
"""

import copy
import importlib.util
import itertools
import math
import resource
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from indm import checkpoints, reading, recipes, runs
from indm.data import Data, flip_horizontally, load_data, loader, stack
from indm.draws import for_rows, part_of
from indm.flows import Frozen, Identity, require_one_map
from indm.flows.residual import check_contractions
from indm.images import count_unreadable
from indm.knobs import isometry_defect, normal_law, terminal_nll
from indm.likelihood import latent_reference
from indm.logbook import LOOK_EVERY, Fault, Logbook, Means
from indm.model import INDM, build_model
from indm.objective import fid_loss, flow_loss, mle_loss, nelbo, soft_truncation
from indm.recipes import Recipe, Training
from indm.sampling import centre_prior
from indm.sde import event_size

OBJECTIVES = {"mle": mle_loss, "fid": fid_loss, "flow": flow_loss}
Draw = Callable[[Tensor, torch.Generator], Tensor]  # (x, generator) ↦ nats, (B,)
LARGEST_CONTROLLED = 1024  # dimensions up to which validation has a control variate
MOST_IN_MEMORY = 20_000  # examples of the law that x_T shall have
BAR = "{percentage:3.0f}% {bar:20} {elapsed}<{remaining}{postfix}"


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


class EMA:
    """``model``, a deep copy whose parameters follow θ̄ ← d_n θ̄ + (1 − d_n) θ with d_n = min(decay, (1+n)/(10+n))."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        """Take in the weights after optimizer step ``n`` (from 1).

        Real buffers are averaged like weights, so that the statistics of a batch norm are those of the weights before
        it; others are copied.
        """
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, weight)
            else:
                averaged.copy_(current)


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
        self.data_b = load_data(**recipe["data_b"]) if "data_b" in recipe and self.options.terminal else None
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
        torch.manual_seed(self.options.seed + 1)  # of all processes: see indm.draws

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
        check_contractions(model.flow)
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
        between = self.step % self.options.flow_every and count_parameters(self.model.score)
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
            OSError: it cannot be read.
        """
        a, state = self.accelerator, {}
        found: list[Path | Exception | None] = [None]
        if a.is_main_process:
            try:
                found[0], state = checkpoints.newest(run)
            except (ValueError, OSError) as error:
                found[0] = error
        broadcast_object_list(found)
        if isinstance(found[0], Exception):
            raise found[0]
        state = state or checkpoints.read(found[0])
        try:
            self._take(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{found[0]} is no checkpoint of this recipe: {reading.reason(error)}") from error
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


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    trainer: Callable[[Recipe, Data, Accelerator], Trainer] | None = None,
) -> dict:
    """Train what ``recipe`` describes, in the run folder ``out``.

    Args:
        recipe: tables as in :mod:`indm.recipes`.
        out: the run folder; must not hold a run already, unless ``resume``.
        resume: go on from the checkpoint in ``out``. Steps, data order and random numbers continue exactly. A run that
            was ended before its first checkpoint begins anew.
        progress: show a bar.
        trainer: what is trained, and how one step is made: :class:`Trainer` unless given.

    Returns:
        The summary that is written at the end; its ``interrupted`` says that a signal (Ctrl-C, SIGTERM) ended the
        run early, after its checkpoint was written.

    Raises:
        ValueError: a mistake in the recipe, a folder with another run, an unreadable checkpoint.
        RuntimeError: the loss became infinite or NaN, and lower learning rates were of no help.
        OSError: something could not be written; what had been saved is as it was.
    """
    recipe, out = recipes.resolve(recipe), Path(out)
    options = recipes.options_of(recipe, "train")
    check_trackers(options.trackers)
    accelerator = make_accelerator(options, out)
    runs.check_folder(out, recipe, resume)
    resume = resume and not checkpoints.nothing_saved(out)
    with accelerator.main_process_first():
        data = load_data(**recipe["data"])
    trainer = (trainer or Trainer)(recipe, data, accelerator)
    if resume:
        trainer.load(out)
    if accelerator.is_main_process:
        runs.describe(out, recipe, accelerator.device, data.notes)
        say_what_is_lost(out, trainer.step)
    with Logbook(trainer, out, recipe) as log, runs.interruptible() as interrupted:
        if not resume:
            trainer.save(out)  # a folder that cannot be written is found out now
        stopped = loop(trainer, out, log, interrupted, progress and accelerator.is_main_process)
        if not trainer.skipped_in_row or trainer.progress >= 1:
            trainer.save(out)
        summary = summarise(trainer, out, stopped)
        if accelerator.is_main_process:
            if options.latent_mean:
                with_centred_prior(trainer).save(out)
            runs.write_json(out / "summary.json", summary)
    return summary


def say_what_is_lost(run: Path, step: int) -> None:
    """Warn where the run had come further than the state from which it goes on."""
    reached = max((line["step"] for line in runs.read_metrics(run)), default=0)
    if reached > step:
        warnings.warn(
            f"{run} had come to step {reached} at least; it goes on from its checkpoint of step {step}, and does the "
            f"{reached - step} steps in between again",
            stacklevel=3,
        )


def loop(trainer: Trainer, out: Path, log: Logbook, interrupted: threading.Event, progress: bool) -> bool:
    """Step until the budget is spent or ``interrupted``; log, validate and save on the way.

    No state is saved while steps are being left out: the last one saved is one that could be trained from.

    Returns:
        Whether it was interrupted, the same on all processes.
    """
    o, batches, stops = trainer.options, trainer.batches(), False

    def due(every: int) -> bool:
        return trainer.step % every == 0

    with tqdm(total=1.0, initial=min(trainer.progress, 1.0), disable=not progress, bar_format=BAR) as bar:
        while trainer.progress < 1 and not stops:
            started = time.perf_counter()
            log.add(trainer.train_step(batches))
            trainer.seconds += time.perf_counter() - started
            stops = agree(trainer, interrupted)
            over = trainer.progress >= 1
            logs, validates, saves = over or due(o.log_every), over or due(o.validate_every), due(o.checkpoint_every)
            fault = log.look() if logs or validates or saves or due(LOOK_EVERY) else None
            if not fault and logs:
                bar.set_postfix_str(log.log_step(), refresh=False)
            if not fault and validates:
                fault = log.log_validation()
            if fault:
                recover(trainer, out, log, fault)
                batches = trainer.batches()
                continue
            if o.keep_every and due(o.keep_every) and trainer.accelerator.is_main_process:
                trainer.ema.model.save(out / "snapshots" / str(trainer.step))
            if saves and not over and not trainer.skipped_in_row:
                trainer.save(out)
            bar.update(min(trainer.progress, 1.0) - bar.n)
        log.look()
    return stops


def recover(trainer: Trainer, out: Path, log: Logbook, fault: Fault) -> None:
    """Back to a state that was saved, at lower rates.

    Raises:
        RuntimeError: it has been done as often as the recipe allows.
    """
    if trainer.rollbacks == trainer.options.rollbacks:
        raise RuntimeError(
            f"{fault.cause} became infinite or NaN by step {fault.step}, and again after "
            f"{trainer.rollbacks} returns to a checkpoint, each at half the learning rates; the checkpoints before it "
            f"are kept, and {out / 'metrics.jsonl'} says which batches. Lower train.lr or train.flow_lr, or raise "
            "train.warmup, in a new run"
        )
    trainer.roll_back(out)
    log.log_rollback(fault)
    if trainer.accelerator.is_main_process:
        warnings.warn(
            f"{fault.cause} was infinite or NaN by step {fault.step}; going on from step {trainer.step} at "
            f"{trainer.rate:g} of the learning rates",
            stacklevel=2,
        )


def agree(trainer: Trainer, interrupted: threading.Event) -> bool:
    """Let all processes have the main one's clock; whether to stop as any was told to. None may act alone on either."""
    a = trainer.accelerator
    if a.num_processes == 1:
        return interrupted.is_set()
    said = [float(interrupted.is_set()), trainer.seconds * a.is_main_process]
    stops, trainer.seconds = a.reduce(torch.tensor(said, dtype=torch.float64, device=a.device)).tolist()
    return stops > 0


def plan(recipe: Recipe) -> dict:
    """What a run would be, without making it: parameters, data, and the seconds of one step on this machine."""
    recipe = recipes.resolve(recipe)
    accelerator = make_accelerator(recipes.options_of(recipe, "train"))
    trainer = Trainer(recipe, load_data(**recipe["data"]), accelerator)
    batches, cycle = trainer.batches(), max(3, trainer.options.flow_every)
    trainer.pretraining = False
    float(trainer.train_step(batches)["denoising"])
    started = time.perf_counter()
    for _ in range(cycle):
        float(trainer.train_step(batches)["denoising"])
    seconds = (time.perf_counter() - started) / cycle
    return {
        **{name.replace("_", " "): count for name, count in sizes(trainer).items()},
        "event shape": tuple(trainer.data.shape),
        "examples": {split: len(getattr(trainer.data, split)) for split in ("train", "valid", "test")},
        "device": str(accelerator.device),
        "seconds per step": seconds,
    }


@torch.no_grad()
def with_centred_prior(trainer: Trainer) -> INDM:
    """A copy of the averaged model whose prior sits at the mean latent of (up to 10,000) training examples."""
    model = copy.deepcopy(trainer.ema.model)
    centre_prior(model, stack(trainer.data.train, 10_000), batch_size=trainer.micro_batch_size)
    return model


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sizes(trainer: Trainer) -> dict[str, int]:
    """The parameters of each part of the model."""
    return {f"{g['name']}_parameters": sum(p.numel() for p in g["params"]) for g in trainer.parameter_groups()}


def check_trackers(trackers: tuple[str, ...]) -> None:
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"train.trackers needs {', '.join(missing)}: pip install 'indm[tracking]'")


def make_accelerator(options: Training, out: Path | None = None) -> Accelerator:
    """The devices and processes to train on; on a machine without accelerator the processes share its CPU."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=fast_precision() if options.mixed_precision == "auto" else options.mixed_precision,
        log_with=list(options.trackers) or None,
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # not all steps train the flow
    )


def fast_precision() -> str:
    """ "bf16" where this machine computes in it faster than in full precision, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, name, bool)() for name in instructions) else "no"


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts from what the parent process held
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def summarise(trainer: Trainer, out: Path, interrupted: bool) -> dict:
    """What the run came to: steps, seconds, validation, memory, disk. Collective.

    ``unreadable_images`` are those of the training data that any process met since the run was last started.
    """
    summary = {
        "interrupted": interrupted,
        "steps": trainer.step,
        "saved_step": trainer.saved_step,
        "seconds": round(trainer.seconds, 3),
        **trainer.validation,
        **({"best": trainer.best} if trainer.best else {}),
        "skipped_steps": trainer.skipped,
        "rollbacks": trainer.rollbacks,
        **sizes(trainer),
        "checkpoints_mib": round(checkpoints.mebibytes(out), 1),
        "peak_memory_mib": round(peak_memory_mib()),
        "unreadable_images": count_unreadable(
            trainer.data.train, lambda met: trainer.accelerator.reduce(met.to(trainer.accelerator.device))
        ),
    }
    if trainer.accelerator.device.type == "cuda":
        summary["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return summary
