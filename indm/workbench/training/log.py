"""The log of a run, metrics.jsonl, and the line of its progress bar.

The log has means of the loss terms, validations, and skipped steps with their cause. The device
skips a step by itself. Only :meth:`MetricsLog.look` waits for it, before a line is written and
every 50 steps.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from indm.files import atomic, untrusted
from indm.workbench.runs.devices import by_main_process
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.trainer import Trainer
from indm.workbench.training.validation import in_units, unit_of

PENALTIES = ("terminal",)  # terms that are shown with the NELBO
BEST = "best"  # in the run folder, the averaged model with the best validation
TOTALS = ("loss", "nelbo")  # sums of other terms
LOOK_EVERY = 50  # steps


class MetricsLog:
    """Writes ``metrics.jsonl`` in the main process; every process makes the same calls.

    It continues the log of an earlier ``state``, or begins a new one if that is None.
    """

    def __init__(self, trainer: Trainer, run: Path, state: dict[str, Any] | None):
        self.trainer = trainer
        self.path = run / "metrics.jsonl"
        self.best_file = run / BEST / "validation.json"
        self.best: dict[str, Any] = {}  # step and valid_nelbo of the best validation
        self.validation: dict[str, Any] = {}  # the last one
        # sum and number of each term since the last line, of this process
        self.totals: dict[str, Tensor] = {}
        self.unread: list[dict[str, Tensor]] = []
        self.newest: dict[str, float] = {}  # terms of the last line that had them
        self.skipped = 0  # steps, in all
        self.in_row = 0  # skipped steps in a row
        self.terms_in_row: set[str] = set()  # the terms that these had
        lines = self._continued(state) if state else []
        if trainer.accelerator.is_main_process:
            atomic.text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def state(self) -> dict[str, Any]:
        """The state of the log, apart from its lines, for a resumed run. Collective."""
        totals = gather_object([{name: total.cpu() for name, total in self.totals.items()}])
        return {"totals": totals, "skipped": self.skipped, "validation": self.validation}

    def _continued(self, state: dict[str, Any]) -> list[dict]:
        """Continue from ``state`` and return the lines before it; the best model stays."""
        a, best = self.trainer.accelerator, self.best_file
        self.best = by_main_process(lambda: untrusted.json_object(best) if best.exists() else {})
        self.skipped = state["skipped"]
        self.validation = state["validation"]
        # this process's totals, or their mean if the number of processes has changed
        own = state["totals"]
        if len(own) == a.num_processes:
            own = [own[a.process_index]]
        self.totals = {k: sum(totals[k] for totals in own).to(a.device) / len(own) for k in own[0]}
        lines = read_metrics(self.path.parent)
        return [line for line in lines if line["step"] <= self.trainer.step]

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of one step of the trainer."""
        self.unread.append(terms)
        counts = terms["skipped"] <= 0
        for name, term in terms.items():  # without waiting for the device
            value = torch.where(counts, term, torch.zeros_like(term))
            added = torch.stack([value, counts.to(value.dtype)])
            self.totals[name] = self.totals.get(name, 0.0) + added

    def _means(self) -> dict[str, Tensor]:
        return {
            name: total / count for name, (total, count) in self.totals.items() if name != "skipped"
        }

    def look(self) -> None:
        """Write the steps that were skipped since the last look. Collective.

        A row of skipped steps ends at a step with all their terms: a step with a frozen flow does
        not end a row of steps that train the flow.

        Raises:
            RuntimeError: there were ``train.max_skipped_steps`` in a row.
        """
        unread, self.unread = self.unread, []
        if not unread:
            return
        skipped = torch.stack([terms["skipped"] for terms in unread]).tolist()
        first = self.trainer.step - len(unread) + 1
        for step, (terms, is_skipped) in enumerate(zip(unread, skipped, strict=True), first):
            if is_skipped:
                self.skipped += 1
                self.in_row += 1
                self.terms_in_row |= terms.keys()
                cause = self._cause(terms)
                self._write({"skipped": self.skipped, "not_finite": cause}, step)
                if self.in_row == self.trainer.parts.upkeep.max_skipped_steps:
                    raise self._diverged(cause, step)
            elif self.terms_in_row <= terms.keys():
                self.in_row = 0
                self.terms_in_row = set()

    def _diverged(self, cause: str, step: int) -> RuntimeError:
        return RuntimeError(
            f"{cause} became infinite or NaN by step {step}; {self.path.parent} keeps its last "
            "checkpoint: continue it with a lower train.lr, train.flow_lr or train.clip"
        )

    def _cause(self, terms: dict[str, Tensor]) -> str:
        """The terms that are not finite in any process; else their sums, else the gradients."""
        reduced = self.trainer.accelerator.reduce
        broken = [name for name, v in terms.items() if not math.isfinite(reduced(v).item())]
        gradients = {name for name in broken if name.endswith("_grad_norm")}
        sums = [name for name in broken if name not in gradients]
        parts = [name for name in sums if name not in TOTALS]
        return ", ".join(parts or sums or sorted(gradients))

    def log_step(self) -> None:
        """Write the means since the last call, in nats, the NELBO as in validation. Collective."""
        trainer = self.trainer
        reduced = trainer.accelerator.reduce
        terms = {name: reduced(mean, "mean").item() for name, mean in self._means().items()}
        terms = self._in_units(terms)
        self.newest |= terms
        self.totals = {}
        rates = {f"{group['name']}_lr": group["lr"] for group in trainer.optimizer.param_groups}
        self._write(terms | rates, trainer.step)

    def _in_units(self, terms: dict[str, float]) -> dict[str, float]:
        """The finite terms (none if all steps were skipped), with the NELBO in bits/dim or nats."""
        terms = {name: value for name, value in terms.items() if math.isfinite(value)}
        if {"nelbo", "log_q"} <= terms.keys():
            terms["nelbo"] = in_units(terms["nelbo"] + terms["log_q"], self.trainer.model)
        return terms

    def line(self) -> str:
        """Step, loss, validation and learning rate.

        The loss is the NELBO if there is one: the mean in this process since the last line of the
        log, or the mean in that line.
        """
        trainer = self.trainer
        means = {name: mean.item() for name, mean in self._means().items()}
        terms = self.newest | self._in_units(means)
        shown: tuple[str, ...] = ()
        parts = [f"step {trainer.step}"]
        if "nelbo" in terms:
            parts.append(f"NELBO {terms['nelbo']:.3f} {unit_of(trainer.model)}")
            shown = PENALTIES
        elif "loss" in terms:  # steps with a frozen flow have none
            shown = ("loss", *trainer.objective.shown)
        parts += [f"{name} {terms[name]:.4g}" for name in shown if name in terms]
        if self.validation:
            parts.append(f"validation {self.validation['valid_nelbo']:.3f}")
        # of the score if it has parameters
        rate = trainer.optimizer.param_groups[0]["lr"]
        return ", ".join([*parts, f"rate {rate:.2g}"])

    def log_validation(self) -> None:
        """Validate, write the result, and keep the averaged model if it is the best so far.

        Raises:
            RuntimeError: not all of it is finite.
        """
        trainer = self.trainer
        validation = trainer.validate()
        numbers = {name: v for name, v in validation.items() if isinstance(v, float)}
        broken = [name for name, value in numbers.items() if not math.isfinite(value)]
        if broken:
            raise self._diverged(", ".join(broken), trainer.step)
        self.validation = validation
        trainer.note(validation["valid_nelbo"])
        if validation["valid_nelbo"] < self.best.get("valid_nelbo", math.inf):
            self.best = {"step": trainer.step, "valid_nelbo": validation["valid_nelbo"]}
            if trainer.accelerator.is_main_process:
                trainer.ema.model.save(self.best_file.parent)
                atomic.json_object(self.best_file, self.best)
        self._write(validation, trainer.step)

    def _write(self, values: dict, step: int) -> None:
        if self.trainer.accelerator.is_main_process:
            line = {"step": step, "seconds": round(self.trainer.seconds, 3), **values}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
