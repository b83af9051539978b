"""What the study compares, and how one training is made: data, sides with their search, costs of a step.

A cell is a data set, a dequantization and a side. All sides have the recipe's score network, batch and schedule; a
*setting* is what the search chooses, as changes of the recipe.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
from indm.workbench.training.costs import interleaved_seconds, trainer_of
from indm.workbench.training.trainer import Trainer
from research.data import recipe_file
from research.lab.distances import frechet_distance
from research.lab.extractor import Extractor, GeneralFeatures, general_features, load_or_train
from research.lab.statistics import jackknife
from research.records import Records, made_by

PARTS = {"truncated-normal": "research.noise:TruncatedNormal"}  # names in the records
DEQUANTIZATIONS = ("uniform", "variational", "truncated-normal")  # the most informative first, as are the sides
SIDES: dict[str, dict[str, Any]] = {
    "linear": {"flow": "identity", "train.flow_update_every": 1},
    "elementwise": {"flow": "elementwise", "train.flow_update_every": 1},
    "indm": {"flow": "coupling"},
    "flow": {"flow": "coupling", "net": "zero", "train.objective": "flow", "train.flow_update_every": 1},
}
Setting = dict[str, Any]
Axis = tuple[Setting, ...]
# Averages that one training keeps. After n steps a decay is at most (1 + n)/(10 + n): 0.971 after 300, 0.985 after 600.
EMA_DECAYS = (0.9, 0.97, 0.999)
RATES = (
    "train.lr",
    "train.flow_lr",
    "train.dequantization_lr",
    "train.forward_lr",
)  # which leave the cost of a step as it is
FIRST_SEED = 1  # of the final trainings; the search has seed 0
LARGEST_ERROR = 0.05  # of a cost: above, something else is running
ROUNDS, STEPS_A_ROUND = 8, 6  # of the measured costs; a round holds whole cycles of flow_update_every


@dataclass(frozen=True)
class Study:
    """One data set's part; its name is that of its recipe.

    Args:
        budget: training steps of the linear side under uniform dequantization; all others get as many seconds.
        seeds: final trainings of a cell.
        elementwise: the last axis of the search of the elementwise flow.
        iw: test images of the importance-weighted bound, of the first seed; 20 s each, as its divergence is exact.
        examples: test images, at most.
    """

    budget: int
    seeds: int
    elementwise: Axis
    iw: int = 0
    examples: int = 1000


def options(key: str, *values: Any) -> Axis:
    """An axis of the search; it starts at the first value."""
    return tuple({key: value} for value in values)


SLOWER = {"train.flow_lr": 3e-3}
STUDIES = {
    "digits": Study(600, 5, ({}, SLOWER), iw=8),
    "fashion-mnist-16": Study(300, 5, ({}, SLOWER)),
    "fashion-mnist": Study(150, 3, ({}, SLOWER)),
    "emoji-32": Study(300, 3, ({}, {"flow.shared": "channel"})),
}
VALID_EXAMPLES, NLL_EXAMPLES, IW_DRAWS = 500, 64, 8


def size(levels: int, depth: int, width: int) -> Setting:
    return {"flow.levels": levels, "flow.depth": depth, "flow.width": width}


def axes(data: str, dequantization: str, side: str) -> list[Axis]:
    """The axes along which a cell's setting is searched, one after the other.

    That takes 1 + Σ (values − 1) trainings: 4 for every side, and 5 where the dequantization is learned.
    """
    scores = options("train.lr", 1e-3, 2e-3)
    own: dict[str, list[Axis]] = {
        "linear": [options("train.lr", 1e-3, 2e-3, 5e-4, 4e-3)],
        "elementwise": [scores, options("train.flow_lr", 1e-2, 3e-2), STUDIES[data].elementwise],
        "indm": [scores, options("train.flow_lr", 1e-3, 3e-3), options("train.flow_update_every", 1, 3)],
        "flow": [(size(2, 8, 64), size(3, 4, 64)), options("train.flow_lr", 3e-3, 1e-2, 1e-3)],
    }
    noise = [options("train.dequantization_lr", 1e-3, 3e-3)] if dequantization == "variational" else []
    return own[side] + noise


def searched(dequantization: str) -> str:
    """That whose settings and cost of a step it has: truncated normal noise has no parameters, as uniform noise."""
    return "uniform" if dequantization == "truncated-normal" else dequantization


def name_of(setting: Mapping[str, Any]) -> str:
    """A setting as a file is called by it."""
    return ",".join(f"{key.split('.')[-1]}={value}" for key, value in setting.items()) or "recipe"


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        data, dequantization, side: the cell.
        setting: changes of the recipe.
        steps: optimizer steps.
        seed: of weights, batches and noise.
        path: of the data, where the recipe leaves it open.
    """

    data: str
    dequantization: str
    side: str
    setting: Setting
    steps: int
    seed: int = 0
    path: str | None = None

    def recipe(self) -> Recipe:
        changes: Setting = {"train.steps": self.steps, "train.seconds": math.inf, "train.seed": self.seed}
        changes |= {} if self.path is None else {"data.path": self.path}
        eps = recipes.load(recipe_file(self.data))["sde"].get("eps")
        if "sde" in self.setting and eps is not None:  # another SDE has the ε of the data
            changes["sde.eps"] = eps
        changes["dequantization"] = PARTS.get(self.dequantization, self.dequantization)
        return recipes.recipe(recipe_file(self.data), changes | SIDES[self.side] | self.setting)

    def trainer(self) -> Trainer:
        """What trains it."""
        recipe = self.recipe()
        with indm.trust("research"):
            return Trainer(recipe, data_of(self.data, self.path), make_accelerator(recipe.train))

    @property
    def cost_key(self) -> str:
        """The cell and what of the setting decides about the cost of a step."""
        structure = {key: value for key, value in self.setting.items() if key not in RATES}
        return f"{searched(self.dequantization)} {self.side} {name_of(structure)}"


def data_of(name: str, path: str | None, other: Setting | None = None) -> Data:
    """The data of a recipe, those from ``path`` or with ``other`` settings."""
    changes = ({} if path is None else {"data.path": path}) | (other or {})
    return _loaded(name, tuple(changes.items()))


@functools.cache
def _loaded(name: str, changes: tuple[tuple[str, Any], ...]) -> Data:
    with indm.trust("research"):
        return load_data(**recipes.recipe(recipe_file(name), dict(changes))["data"])


Averages = dict[float, torch.nn.Module]  # by their decay


def train(job: Training, at: Mapping[int, Callable[[Averages], None]] | None = None) -> tuple[Averages, dict]:
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
        if at and trainer.step in at:
            at[trainer.step](models)
    return models, {
        "setting": job.setting,
        "steps": job.steps,
        "cpu_seconds": round(spent, 1),  # of one thread: they count no neighbours
        "parameters": {name: count_parameters(part) for name, part in trainer.model.trained_parts.items()},
        "seed": job.seed,
        **made_by(job.seed),
    }


def bits_of(part: Mapping[str, Any]) -> list[float | None]:
    """Mean and standard error in bits/dim, of one part of an evaluation; None where it is not finite."""
    numbers = part["with_reconstruction"]
    values = (numbers["bits_per_dim"], numbers["bits_per_dim_standard_error"])
    return [round(value, 6) if math.isfinite(value) else None for value in values]


def valid_bits(job: Training, averages: Averages) -> dict[str, float | None]:
    """Bits/dim of validation examples, the NELBO of each average."""
    raw = stack(data_of(job.data, job.path).valid, VALID_EXAMPLES)
    found = {decay: indm.evaluate(model, raw, [indm.Bound()], progress=False) for decay, model in averages.items()}
    return {str(decay): bits_of(own.report["nelbo"])[0] for decay, own in found.items()}


def validated(job: Training) -> dict:
    """The record of a training of the search: bits/dim of validation examples for each average."""
    averages, record = train(job)
    return record | {"valid": valid_bits(job, averages)}


def tested(
    job: Training,
    decay: float,
    whole: bool,
    more: Callable[[torch.nn.Module], dict[str, Any]] = lambda model: {},
    other: Setting | None = None,
) -> dict:
    """The record of a final training: likelihoods of test examples, with the nats of each.

    Args:
        job: the training.
        decay: of the average that is tested.
        whole: also the NLL and, of the first seed, the importance-weighted bound.
        more: what else the record has, of the model.
        other: of the data, where it is tested on others than it was trained on: on all of their splits.
    """
    data, study = data_of(job.data, job.path, other), STUDIES[job.data]
    splits = (data.train, data.valid, data.test) if other else (data.test,)
    raw = torch.cat([stack(split, study.examples) for split in splits])
    averages, record = train(job)
    model = averages[decay]
    draws = IW_DRAWS if whole and study.iw and job.seed == FIRST_SEED else 0
    measures = [indm.Bound()] + [indm.NLL(examples=NLL_EXAMPLES, each=True)] * whole
    measures += [indm.WeightedNLL(examples=study.iw, draws=draws)] if draws else []
    found = indm.evaluate(model, raw, measures, seed=job.seed, progress=False)
    report, nats = found.report, found.nats
    kinds = [kind for kind in ("nelbo", "nll", "iw") if kind in report]
    split = name_of(other) if other else "test"
    record |= {"ema": decay, "split": split, "dims": report["dims"], "dequantization": report["dequantization"]}
    record |= {kind: bits_of(report[kind]) for kind in kinds}
    record |= more(model)
    return record | {f"{kind}_nats": [round(value, 4) for value in nats[kind].tolist()] for kind in kinds}


@functools.cache
def reader(folder: Path, data: Data) -> Extractor | GeneralFeatures:
    """What tells images apart: the classifier of these data in ``folder``; of data without labels, general features."""
    return load_or_train(folder, data, progress=False) if data.labels else general_features(data.scaling.levels)


@functools.cache
def _features_of(folder: Path, data: Data, split: str, most: int) -> torch.Tensor:
    return reader(folder, data).features(stack(getattr(data, split), most))


def frechet(raw: torch.Tensor, data: Data, split: str, most: int, folder: Path) -> dict[str, float]:
    """The Fréchet distance of images ``raw`` from the first ``most`` of a split, and its standard error."""

    def distance(*sets: torch.Tensor) -> dict[str, float]:
        return {"frechet": frechet_distance(*sets)}

    return jackknife(distance, reader(folder, data).features(raw), _features_of(folder, data, split, most))


def median_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The median and its standard error, from the median distance to it: one disturbed round counts for little."""
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)  # σ of a normal law
    return middle, math.sqrt(math.pi / 2) * spread / math.sqrt(len(values))


def costs(table: Records, jobs: Sequence[Training]) -> dict[str, float]:
    """Cost of a step of each job, by its key, over that of the linear side under uniform dequantization.

    Those that the ``table`` has not are measured, all in turns in this process.

    Raises:
        RuntimeError: the rounds disagree: the machine has more to do.
    """
    known = {row["step"]: row["cost"] for row in table.rows()}
    missing = {job.cost_key: job.recipe() for job in jobs if job.cost_key not in known}
    if missing:
        unit = replace(jobs[0], dequantization="uniform", side="linear", setting={})
        trainers = {key: trainer_of(recipe) for key, recipe in ({unit.cost_key: unit.recipe()} | missing).items()}
        threads = dict.fromkeys(trainers, torch.get_num_threads())
        seconds = interleaved_seconds(trainers, threads, rounds=ROUNDS, steps=STEPS_A_ROUND, progress=False)
        noisy = {}
        for key in missing:
            ratios = [a / b for a, b in zip(seconds[key], seconds[unit.cost_key], strict=True)]
            cost, error = median_and_error(ratios)
            milliseconds = round(1e3 * statistics.median(seconds[key]), 1)
            row = {"cost": round(cost, 4), "error": round(error, 4), "milliseconds": milliseconds}
            if error > LARGEST_ERROR * cost:
                noisy[key] = row
            else:
                table.at(step=key).add(row)
                known[key] = row["cost"]
        if noisy:
            raise RuntimeError(
                f"{len(noisy)} of {len(missing)} costs are uncertain by more than {LARGEST_ERROR:.0%}: {noisy}; "
                "measure them while nothing else runs"
            )
    return {job.cost_key: known[job.cost_key] for job in jobs}
