"""Trainings of a recipe's model that are planned to cost the same, and what is measured of them."""

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import indm
from indm.model import count_parameters
from indm.training import EMA
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import make_accelerator
from indm.workbench.training.trainer import Trainer
from research.data import recipe_file
from research.lab import distances
from research.lab.costs import costs_in_turns, step_of
from research.lab.extractor import Extractor, GeneralFeatures, general_features, load_or_train
from research.records import Records, made_by

BUDGETS = {"digits": 600, "fashion-mnist-16": 300, "fashion-mnist": 150, "emoji-32": 300}  # steps of linear diffusion
Setting = dict[str, Any]
Averages = dict[float, torch.nn.Module]  # averages of a model, keyed by their decay
# Averages that one training keeps. After n steps a decay is at most (1 + n)/(10 + n): 0.971 after 300, 0.985 after 600.
EMA_DECAYS = (0.9, 0.97, 0.999)
RATES = ("train.lr", "train.flow_lr", "train.dequantization_lr")  # settings that do not change the cost of a step
VALID_EXAMPLES = 500
LARGEST_ERROR = 0.05  # error of a cost, relative: above, something else is running


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        data: name of the recipe.
        dequantization, flow: names of the parts.
        setting: changes of the recipe.
        steps: optimizer steps.
        seed: of weights, batches and noise.
        path: of the data, where the recipe leaves it open.
    """

    data: str
    dequantization: str
    flow: str
    setting: Setting
    steps: int
    seed: int = 0
    path: str | None = None

    def recipe(self) -> Recipe:
        changes: Setting = {"train.steps": self.steps, "train.seconds": math.inf, "train.seed": self.seed}
        changes |= {} if self.path is None else {"data.path": self.path}
        changes |= {"dequantization": self.dequantization, "flow": self.flow, "train.flow_update_every": 1}
        return recipes.recipe(recipe_file(self.data), changes | self.setting)

    def trainer(self) -> Trainer:
        """The trainer of its recipe."""
        recipe = self.recipe()
        with indm.trust("research"):
            return Trainer(recipe, data_of(self.data, self.path), make_accelerator(recipe.train))

    @property
    def cost_key(self) -> str:
        """The parts, and what of the setting decides about the cost of a step."""
        structure = {key: value for key, value in self.setting.items() if key not in RATES}
        changed = ",".join(f"{key.split('.')[-1]}={value}" for key, value in structure.items())
        return f"{self.dequantization} {self.flow} {changed or 'recipe'}"


@functools.cache
def data_of(name: str, path: str | None) -> Data:
    """The data of a recipe, those in ``path`` where the recipe leaves it open."""
    with indm.trust("research"):
        return load_data(**recipes.recipe(recipe_file(name), {} if path is None else {"data.path": path})["data"])


def train(job: Training, at: Mapping[int, Callable[[Averages], None]]) -> tuple[Averages, dict]:
    """The averaged models by their decay, and what a record says of the training.

    Args:
        job: the training.
        at: what is done with the averages after a step; its seconds are not counted.
    """
    trainer = job.trainer()
    averages = {decay: EMA(trainer.model, decay) for decay in EMA_DECAYS}
    models = {decay: average.model for decay, average in averages.items()}
    batches, spent = trainer.batches(), 0.0
    while trainer.step < job.steps:
        started = time.process_time()
        trainer.train_step(batches)
        for average in averages.values():
            average.update(trainer.model, trainer.step)
        spent += time.process_time() - started
        if trainer.step in at:
            at[trainer.step](models)
    return models, {
        "setting": job.setting,
        "steps": job.steps,
        "cpu_seconds": round(spent, 1),  # seconds of one thread, which neighbours do not change
        "parameters": {name: count_parameters(part) for name, part in trainer.model.trained_parts.items()},
        "seed": job.seed,
        **made_by(job.seed),
    }


def valid_bits(job: Training, averages: Averages) -> dict[str, float | None]:
    """Bits/dim of validation examples, the NELBO of each average; None where it is not finite."""
    raw = stack(data_of(job.data, job.path).valid, VALID_EXAMPLES)
    found = {}
    for decay, model in averages.items():
        report = indm.evaluate(model, raw, [indm.Bound()], progress=False).report
        bits = report["nelbo"]["with_reconstruction"]["bits_per_dim"]
        found[str(decay)] = round(bits, 6) if math.isfinite(bits) else None
    return found


@functools.cache
def reader(folder: Path, data: Data) -> Extractor | GeneralFeatures:
    """The features that compare images: of a classifier of these data in ``folder``, or general ones without labels."""
    return load_or_train(folder, data, progress=False) if data.labels else general_features(data.scaling.levels)


@functools.cache
def _features_of_training(folder: Path, data: Data, most: int) -> torch.Tensor:
    return reader(folder, data).features(stack(data.train, most))


def frechet(raw: torch.Tensor, data: Data, most: int, folder: Path) -> dict[str, float]:
    """The Fréchet distance of images ``raw`` from the first ``most`` training images, and its standard error."""
    return distances.frechet(reader(folder, data).features(raw), _features_of_training(folder, data, most))


def costs(table: Records, jobs: Sequence[Training]) -> dict[str, float]:
    """The cost of a step of each job, by its key, relative to linear diffusion under uniform noise.

    Costs missing from ``table`` are measured in turns and added to it.

    Raises:
        RuntimeError: the rounds disagree: the machine has more to do.
    """
    known = {row["step"]: row["cost"] for row in table.rows()}
    missing = {job.cost_key: step_of(job.recipe()) for job in jobs if job.cost_key not in known}
    if missing:
        unit = replace(jobs[0], dequantization="uniform", flow="identity", setting={})
        rows = costs_in_turns({unit.cost_key: step_of(unit.recipe())} | missing, unit.cost_key)
        noisy = {key: rows[key] for key in missing if rows[key]["error"] > LARGEST_ERROR * rows[key]["cost"]}
        for key in missing.keys() - noisy.keys():
            table.at(step=key).add(rows[key])
            known[key] = rows[key]["cost"]
        if noisy:
            raise RuntimeError(
                f"{len(noisy)} of {len(missing)} costs are uncertain by more than {LARGEST_ERROR:.0%}: {noisy}; "
                "measure them while nothing else runs"
            )
    return {job.cost_key: known[job.cost_key] for job in jobs}


def affordable(job: Training, costs: Mapping[str, float], budget: float) -> Training:
    """The training in as many steps as cost what ``budget`` steps of linear diffusion do."""
    return replace(job, steps=max(1, round(budget / costs[job.cost_key])))


def run(tasks: Sequence[tuple], jobs: int) -> None:
    """Call the tasks, each a function and its arguments, in processes of one thread each."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        try:
            for done in as_completed([pool.submit(*task) for task in tasks]):
                print(done.result(), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
