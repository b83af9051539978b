"""The log of a run, metrics.jsonl, and the line that its bar shows.

The log has means of the loss terms, validations, and the steps that were left out, with the cause.
It looks for these before a line is written, and every 50 steps: the device leaves a step out by
itself, and only :meth:`MetricsLog.look` makes the host wait for it.
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

PENALTIES = ("terminal",)  # terms beside the NELBO that are shown
BEST = "best"  # the folder of the averaged model with the best validation, in that of the run
# sums of other terms: not the cause where one of those is not finite either
TOTALS = ("loss", "nelbo")
LOOK_EVERY = 50  # steps


class MetricsLog:
    """Writes ``metrics.jsonl``, from the main process; every process calls it alike.

    With the ``state`` of an earlier log it continues this one; None begins a new log.
    """

    def __init__(self, trainer: Trainer, run: Path, state: dict[str, Any] | None):
        self.trainer, self.path = trainer, run / "metrics.jsonl"
        self.best_file = run / BEST / "validation.json"
        self.best: dict[str, Any] = {}  # step and valid_nelbo of the best validation
        # sum and number of each term since the last line, of this process
        self.totals: dict[str, Tensor] = {}
        # steps left out in all, the last validation
        self.skipped, self.validation = 0, dict[str, Any]()
        # steps left out in a row, and the terms that they had
        self.in_row, self.terms_in_row = 0, set[str]()
        self.unread: list[dict[str, Tensor]] = []
        self.newest: dict[str, float] = {}  # terms of the last line that had them
        self._continue(state)

    def state(self) -> dict[str, Any]:
        """State that the log of a resumed run needs beside its lines. Collective."""
        totals = gather_object([{name: total.cpu() for name, total in self.totals.items()}])
        return {"totals": totals, "skipped": self.skipped, "validation": self.validation}

    def _continue(self, state: dict[str, Any] | None) -> None:
        """Continue from ``state``, and drop the lines after it; the best model stays."""
        a, best, lines = self.trainer.accelerator, self.best_file, list[dict]()
        if state:
            self.best = by_main_process(
                lambda: untrusted.json_object(best) if best.exists() else {}
            )
            lines = [
                line for line in read_metrics(self.path.parent) if line["step"] <= self.trainer.step
            ]
            # this process's totals, or the mean if the number of processes has changed
            all_totals = state["totals"]
            own = (
                all_totals if len(all_totals) != a.num_processes else [all_totals[a.process_index]]
            )
            self.totals = {
                k: sum(totals[k] for totals in own).to(a.device) / len(own) for k in own[0]
            }
            self.skipped, self.validation = state["skipped"], state["validation"]
        if a.is_main_process:
            atomic.text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in the terms of one step, see
        :meth:`indm.workbench.training.trainer.Trainer.train_step`.
        """
        self.unread.append(terms)
        counts = terms["skipped"] <= 0
        for name, term in terms.items():  # without waiting for the device
            value = torch.where(counts, term, torch.zeros_like(term))
            self.totals[name] = self.totals.get(name, 0.0) + torch.stack(
                [value, counts.to(value.dtype)]
            )

    def _means(self) -> dict[str, Tensor]:
        return {
            name: total / count for name, (total, count) in self.totals.items() if name != "skipped"
        }

    def look(self) -> None:
        """Write down the steps that were left out since the last look. Collective.

        A row ends at a step that has all terms of those in it: steps behind a frozen flow do not
        end one of steps that train the flow.

        Raises:
            RuntimeError: there were ``train.max_skipped_steps`` in a row.
        """
        unread, self.unread = self.unread, []
        skipped = torch.stack([terms["skipped"] for terms in unread]).tolist() if unread else []
        trainer, first = self.trainer, self.trainer.step - len(unread) + 1
        for step, (terms, left_out) in enumerate(zip(unread, skipped, strict=True), first):
            if left_out:
                self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
                self.terms_in_row |= terms.keys()
                cause = self._cause(terms)
                self._write({"skipped": self.skipped, "not_finite": cause}, step)
                if self.in_row == trainer.options.max_skipped_steps:
                    raise self._diverged(cause, step)
            elif self.terms_in_row <= terms.keys():
                self.in_row, self.terms_in_row = 0, set()

    def _diverged(self, cause: str, step: int) -> RuntimeError:
        run = self.path.parent
        return RuntimeError(
            f"{cause} became infinite or NaN by step {step}; {run} keeps its last checkpoint: continue it with a lower "
            "train.lr, train.flow_lr or train.clip"
        )

    def _cause(self, terms: dict[str, Tensor]) -> str:
        """The terms that are not finite, on whichever process; else the gradients."""
        broken = [
            k
            for k, v in terms.items()
            if not math.isfinite(self.trainer.accelerator.reduce(v).item())
        ]
        gradients = {name for name in broken if name.endswith("_grad_norm")}
        parts = [name for name in broken if name not in gradients and name not in TOTALS]
        return ", ".join(
            parts or [name for name in broken if name not in gradients] or sorted(gradients)
        )

    def log_step(self) -> None:
        """Write the means since the last call (terms in nats, the NELBO as in validation).
        Collective.
        """
        trainer = self.trainer
        terms = {
            name: trainer.accelerator.reduce(mean, "mean").item()
            for name, mean in self._means().items()
        }
        terms = self._in_units(terms)
        self.newest |= terms
        self.totals = {}
        rates = {f"{group['name']}_lr": group["lr"] for group in trainer.optimizer.param_groups}
        self._write(terms | rates, trainer.step)

    def _in_units(self, terms: dict[str, float]) -> dict[str, float]:
        """The finite terms (none where all steps were left out), with the NELBO in bits/dim or
        nats.
        """
        terms = {name: value for name, value in terms.items() if math.isfinite(value)}
        if {"nelbo", "log_q"} <= terms.keys():
            terms["nelbo"] = self.trainer.in_units(terms["nelbo"] + terms["log_q"])
        return terms

    def line(self) -> str:
        """Step, loss, validation and learning rate, for a person who watches.

        The loss is the NELBO where there is one: this process's mean since the last line of the
        log, or that line's.
        """
        trainer = self.trainer
        terms = self.newest | self._in_units(
            {name: mean.item() for name, mean in self._means().items()}
        )
        parts = [f"step {trainer.step}"]
        if "nelbo" in terms:
            parts += [f"NELBO {terms['nelbo']:.3f} {trainer.unit}"]
            parts += [f"{name} {terms[name]:.4g}" for name in PENALTIES if name in terms]
        elif "loss" in terms:  # steps with a frozen flow have none
            parts += [
                f"{name} {terms[name]:.4g}"
                for name in ("loss", *trainer.objective.shown)
                if name in terms
            ]
        if self.validation:
            parts += [f"validation {self.validation['valid_nelbo']:.3f}"]
        # train.lr, that of the score where it has parameters
        rate = trainer.optimizer.param_groups[0]["lr"]
        return ", ".join([*parts, f"rate {rate:.2g}"])

    def log_validation(self) -> None:
        """Validate and write the result, and keep the averaged model if it is the best so far.

        Raises:
            RuntimeError: not all of it is finite.
        """
        trainer = self.trainer
        validation = trainer.validate()
        broken = [
            name
            for name, value in validation.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
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
