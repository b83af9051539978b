"""What users would pick instead: flows of zuko and a Gaussian mixture on the data of the study, at equal CPU time.

    python -m research.flow_gain.others digits fashion-mnist-16
    python -m research.flow_gain.others emoji-32 --path PACKAGE
    python -m research.flow_gain.others                               # the table of all records alone

Splits and test images are those of ``study.py``, grey levels are uniformly dequantized, and bits/dim are of the
raw data, as everywhere. Every training has the same processor seconds on one thread, validations included, keeps its
best validated state, and ends early where a third of its time has not bettered that. Settings are chosen one axis after
the other, by the validation split (seed 0); the best is then trained with each of ``--seeds`` seeds, and tested. Every
training is a row of ``flow_gain-others.csv`` and is never made again.
"""

import argparse
import copy
import functools
import itertools
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zuko
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from indm.workbench.data.base import Data, stack
from indm.workbench.evaluation.statistics import mean_and_error, over_seeds
from research.flow_gain.cells import STUDIES, data_of
from research.flow_gain.tables import TITLES, bound, records_of
from research.flow_gain.tables import seconds as cpu_seconds
from research.markdown import in_table
from research.records import RECORDS, Records, made_by

SECONDS = {"digits": 60, "fashion-mnist-16": 120, "emoji-32": 600}
BATCH_SIZE, CLIP, WEIGHT_DECAY = 128, 5.0, 1e-4  # of the flows
CHECKS = 30  # validations of a training, at most
PATIENCE = 1 / 3  # of a training's time without a better validation
REPEATS = 4  # draws of the test images' noise
Setting = dict[str, Any]
SPACES: list[Setting] = [{"logit": None}, {"logit": 1e-6}, {"logit": 0.05}]
FLOW: list[list[Setting]] = [
    [{"lr": 1e-3}, {"lr": 3e-3}],
    [{"transforms": 3, "width": 256}, {"transforms": 6, "width": 128}],
]
SMALL = [("full", 10), ("full", 1), ("full", 30), ("diag", 100)]
LARGE = [("full", 1), ("full", 2), ("diag", 30), ("diag", 100)]  # a full covariance of emoji has 4.7 million numbers


NAMES = {"maf": "masked autoregressive flow", "nsf": "neural spline flow", "mixture": "Gaussian mixture"}


def axes(model: str, data: str) -> list[list[Setting]]:
    """What the search may choose from, axis by axis; it starts at the first of each."""
    if model != "mixture":
        return [SPACES, *FLOW]
    kinds = LARGE if data == "emoji-32" else SMALL
    return [
        SPACES,
        [{"covariance": kind, "components": n} for kind, n in kinds],
        [{"floor": 1e-2}, {"floor": 1e-3}, {"floor": 1e-1}],
    ]


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Space:
    """y = (x − shift)/scale, or of logit(m + (1 − 2m)(x + 1)/2) in place of x: one map for all entries.

    Args:
        logit: m; None is no logit.
    """

    logit: float | None
    shift: float = 0.0
    scale: float = 1.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y (B, d) and the log-determinant (B,) of x (B, *event) in (−1, 1)."""
        y, log_det = x.double().flatten(1), x.new_zeros(len(x), dtype=torch.float64)
        if self.logit is not None:
            s = self.logit + (1 - 2 * self.logit) * (y + 1) / 2
            y = s.log() - (-s).log1p()
            log_det = (math.log(0.5 - self.logit) - s.log() - (-s).log1p()).sum(1)
        return (y - self.shift) / self.scale, log_det - math.log(self.scale) * y.shape[1]

    def standardised(self, x: Tensor) -> "Space":
        """With mean 0 and variance 1 over all entries of ``x``."""
        std, mean = torch.std_mean(self(x)[0])
        return Space(self.logit, mean.item(), std.item())


class Flow:
    """A flow of zuko, trained by AdamW with a rate that falls linearly to 0 over the second half of the time."""

    batch = BATCH_SIZE  # examples of a step

    def __init__(self, name: str, dims: int, transforms: int, width: int, lr: float):
        self.flow = getattr(zuko.flows, name.upper())(dims, transforms=transforms, hidden_features=(width, width))
        self.lr, self.optimizer = lr, torch.optim.AdamW(self.flow.parameters(), lr, weight_decay=WEIGHT_DECAY)

    def step(self, y: Tensor, spent: float) -> None:
        """Learn from y (B, d); ``spent`` is the share of the time that has gone."""
        self.optimizer.param_groups[0]["lr"] = self.lr * min(1.0, 2 * max(0.0, 1 - spent))
        self.optimizer.zero_grad()
        (-self.flow().log_prob(y.float()).mean() / y.shape[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), CLIP)
        self.optimizer.step()

    @torch.no_grad()
    def log_prob(self, y: Tensor) -> Tensor:
        """log p(y), (B,)."""
        return torch.cat([self.flow().log_prob(part.float()).double() for part in y.split(BATCH_SIZE)])

    def parameters(self) -> int:
        return sum(p.numel() for p in self.flow.parameters())


class Mixture:
    """A Gaussian mixture of scikit-learn: a step is one of EM, on all examples with new noise."""

    batch = None

    def __init__(self, covariance: str, components: int, floor: float, seed: int):
        self.mixture = GaussianMixture(
            components, covariance_type=covariance, reg_covar=floor, max_iter=1, warm_start=True, random_state=seed
        )

    def step(self, y: Tensor, spent: float) -> None:
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            self.mixture.fit(y.numpy())

    def log_prob(self, y: Tensor) -> Tensor:
        return torch.from_numpy(self.mixture.score_samples(y.numpy()))

    def parameters(self) -> int:
        return self.mixture._n_parameters()


def made(model: str, dims: int, setting: Setting, seed: int) -> Flow | Mixture:
    own = {name: value for name, value in setting.items() if name != "logit"}
    return Mixture(seed=seed, **own) if model == "mixture" else Flow(model, dims, **own)


# ── Trainings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(data: Data, name: str, setting: Setting, seed: int, seconds: float, part: str, most: int) -> dict:
    """The record of one training: bits/dim of the first ``most`` examples of the split ``part``, valid or test."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    raw, noisy = stack(data.train), functools.partial(data.scaling.to_model, generator=generator)
    model, space = made(name, math.prod(data.shape), setting, seed), Space(setting.get("logit"))
    space = space.standardised(noisy(raw[: 8 * BATCH_SIZE]))

    def bits(model: Flow | Mixture, x: Tensor) -> Tensor:
        y, log_det = space(x)
        nats = -model.log_prob(y) - log_det - data.scaling.log_volume(data.shape)
        return nats / (math.prod(data.shape) * math.log(2))

    valid = noisy(stack(data.valid, most))
    best, lowest, best_step, best_at = model, math.inf, 0, 0.0
    start, spent, steps, checks = time.process_time(), 0.0, 0, 0
    while spent < 1 and spent - best_at < PATIENCE:
        rows = raw if model.batch is None else raw[torch.randint(len(raw), (model.batch,), generator=generator)]
        model.step(space(noisy(rows))[0], spent)
        steps, spent = steps + 1, (time.process_time() - start) / seconds
        if spent >= min(1, (checks + 1) / CHECKS):
            checks, value = math.floor(spent * CHECKS), bits(model, valid).mean().item()
            if value < lowest:
                best, lowest, best_step, best_at = copy.deepcopy(model), value, steps, spent
    if not math.isfinite(lowest):
        return {"setting": setting, "seed": seed, "valid": None, "steps": steps}
    record = {"setting": setting, "seed": seed, "valid": lowest, "steps": steps, "best_step": best_step}
    record |= {"cpu_seconds": round(spent * seconds, 1), "parameters": model.parameters()}
    if part == "test":
        x = stack(data.test, most)
        each = torch.stack([bits(best, noisy(x)) for _ in range(REPEATS)]).mean(0)
        record |= {"test": mean_and_error(each), "test_bits": [round(value, 4) for value in each.tolist()]}
    return record | {"zuko": zuko.__version__} | made_by(seed)


def run(o: argparse.Namespace, data: str, model: str) -> None:
    """The search of one model, axis by axis, and its final trainings."""
    seconds = o.seconds or SECONDS[data]

    def record(part: str, setting: Setting, seed: int) -> dict:
        cell = table_of(o).at(data=data, seconds=seconds, model=model, part=part, setting=setting, seed=seed)
        most, new = STUDIES[data].examples, not cell.rows()
        found = cell.kept(lambda: train(data_of(data, o.path), model, setting, seed, seconds, part, most))
        if new:
            print(data, model, part, setting, seed, found["valid"], *found.get("test", ()), flush=True)
        return found

    choices = axes(model, data)
    setting: Setting = {key: value for axis in choices for key, value in axis[0].items()}
    for axis in choices:
        candidates = [setting | values for values in axis]
        scores = [record("valid", candidate, 0)["valid"] for candidate in candidates]
        setting = candidates[min(range(len(axis)), key=lambda i: math.inf if scores[i] is None else scores[i])]
    for seed in range(1, 1 + o.seeds):
        record("test", setting, seed)


def table_of(o: argparse.Namespace) -> Records:
    return Records(o.records / "flow_gain-others.csv")


def table(others: Records, final: Records) -> str:
    """Bits/dim of each model, over seeds and over images, in Markdown; then those of the study under uniform noise."""
    rows = []

    def cell(row: dict) -> tuple[str, float, str]:
        return row["data"], row["seconds"], row["model"]

    for data, of_data in itertools.groupby(
        sorted(others.at(part="test").rows(), key=cell), key=lambda row: row["data"]
    ):
        for (_, limit, model), group in itertools.groupby(of_data, key=cell):
            records = list(group)
            mean, error = over_seeds([record["test"][0] for record in records])
            images = mean_and_error(torch.tensor([record["test_bits"] for record in records]).mean(0))[1]
            shown = f"{mean:.3f} ± {error:.3f} ± {images:.3f}"
            spent = f"{cpu_seconds(records)} of {limit:g}"
            rows.append((data, NAMES[model], shown, len(records), f"{records[0]['parameters']:,}", spent))
        of_study = {title: records_of(final, data, "uniform", side) for side, title in TITLES.items()}
        for title, records in of_study.items():
            if not records:
                continue
            parameters = f"{sum(records[0]['parameters'].values()):,}"
            rows.append((data, title, bound(records), len(records), parameters, cpu_seconds(records)))
    return in_table("data", "model", "bits/dim ± seeds ± images", "seeds", "parameters", "CPU s", rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--models", nargs="+", choices=("mixture", "maf", "nsf"), default=("mixture", "maf", "nsf"))
    parser.add_argument("--seconds", type=float, help="of the processor, a training; default 60, 120 and 600")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--path", help="of the images, for emoji-32")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    o = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    for data, model in itertools.product(o.data, o.models):
        run(o, data, model)
    print(table(table_of(o), Records(o.records / "flow_gain-final.csv")))


if __name__ == "__main__":
    main()
