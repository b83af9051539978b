"""Networks, batches and rates compared in the same seconds: bits/dim along the training, and Fréchet distance.

    python -m research.quality costs digits       # cost of a step of each network, alone on the machine
    python -m research.quality networks digits    # each at two rates, on the validation split
    python -m research.quality search digits      # and then what else, with the best one
    python -m research.quality table digits

Everything but the setting is the recipe's. Seconds are steps × the measured milliseconds of a step, of one thread, and
each training has as many of them as :data:`research.lab.trainings.BUDGETS` steps of linear diffusion take, times
``--budget``. Each is a row of ``quality.csv``; a command goes on from there.
"""

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import indm
from indm.workbench.data.base import Data
from indm.workbench.recipes import recipe as recipes
from research.data import recipe_file
from research.lab.trainings import (
    BUDGETS,
    Averages,
    Setting,
    Training,
    affordable,
    costs,
    data_of,
    frechet,
    reader,
    run,
    train,
    valid_bits,
)
from research.markdown import in_table
from research.records import RECORDS, Records

SAMPLES = 500
PARTS = (8, 4, 2, 1)  # bits/dim are measured after 1/8, 1/4, 1/2 and all of the steps
RATES = (1e-3, 2e-3)
OWN = "unet, the recipe's"
PATCHES: Setting = {"net": "research.networks.dit:DiT", "net.width": 96, "net.depth": 4, "net.patch": 2}
NETS: dict[str, Setting] = {
    "unet, a quarter of the channels": {"net.channels": 8},
    "unet, half the channels": {"net.channels": 16},
    OWN: {},
    "unet, 1.5 times the channels": {"net.channels": 48},
    "unet, two blocks a level": {"net.blocks": 2},
    "transformer of 2×2 patches": PATCHES,
    "mixer of 2×2 patches": PATCHES | {"net.mixing": "mlp"},
    "mlp": {"net": "mlp", "net.width": 512, "net.depth": 4},
}
OTHERS: dict[str, Setting] = {  # what else is tried at the best network and rate
    "half the batch": {"train.batch_size": 0.5},
    "a quarter of the batch": {"train.batch_size": 0.25},
    "float32": {"train.mixed_precision": "no"},
    "the score trained for samples": {"train.objective": "fid"},
}


def training(o: argparse.Namespace, data: str, setting: Setting) -> Training:
    """A training of the recipe with its noise and flow, and ``setting``; a batch below 1 is a part of the recipe's."""
    recipe = recipes.load(recipe_file(data))
    if setting.get("train.batch_size", 1) < 1:
        setting = setting | {"train.batch_size": int(setting["train.batch_size"] * recipe["train"]["batch_size"])}
    noise = recipe.get("dequantization", {"name": "uniform"})["name"]
    return Training(data, noise, recipe["flow"]["name"], setting, 1, path=o.path)


def candidates(o: argparse.Namespace, data: str, best: tuple[str, Setting] | None = None) -> dict[str, Training]:
    """Networks at each rate, or what else is tried at the ``best`` of these, a name and its setting."""
    if best is None:
        nets = itertools.product(o.nets, RATES)
        return {f"{net}, rate {rate:g}": training(o, data, NETS[net] | {"train.lr": rate}) for net, rate in nets}
    name, setting = best
    return {f"{other}; {name}": training(o, data, setting | change) for other, change in OTHERS.items()}


def trainings(o: argparse.Namespace, data: str) -> Records:
    """The table of the data, with the budget in their name where it is not 1."""
    return Records(o.records / "quality.csv").at(data=data if o.budget == 1 else f"{data}-x{o.budget:g}")


def costs_of(o: argparse.Namespace, data: str) -> Records:
    return Records(o.records / "quality-costs.csv").at(data=data)


def measured(o: argparse.Namespace, data: str, jobs: Iterable[Training]) -> list[Training]:
    """Each training in as many steps as cost the budget."""
    jobs = list(jobs)
    of_a_step = costs(costs_of(o, data), jobs)
    return [affordable(job, of_a_step, o.budget * BUDGETS[data]) for job in jobs]


@indm.trust("research")
def measure(cell: Records, job: Training, extractor: Path) -> str:
    """Train, and keep bits/dim along the way and the Fréchet distance of samples from the training images."""
    curve: dict[str, Any] = {}

    def keep(models: Averages) -> None:
        mark = marks[len(curve)]
        quickest = min(models)  # whose average is the best early on
        curve[str(mark)] = valid_bits(job, models if mark == job.steps else {quickest: models[quickest]})

    def make() -> dict:
        models, record = train(job, dict.fromkeys(marks, keep))
        decay, best = min(curve[str(job.steps)].items(), key=lambda item: finite(item[1]))
        record |= {"curve": curve, "ema": float(decay), "valid": best}
        if best is not None:
            model = models[float(decay)]
            x = indm.sample(model, SAMPLES, generator=torch.Generator().manual_seed(0))
            record |= from_training(model.scaling.to_data(x), data_of(job.data, job.path), extractor)
        return record

    marks = [max(1, job.steps // part) for part in PARTS]
    return " ".join(str(part) for part in (*dict(cell.key).values(), cell.kept(make)["valid"]))


def finite(bits: float | None) -> float:
    """Infinite for None, what a training that diverged has."""
    return math.inf if bits is None else bits


def from_training(raw: torch.Tensor, data: Data, extractor: Path) -> dict[str, float]:
    """The Fréchet distance of images from those that are trained on, by the :func:`reader` in ``extractor``."""
    return frechet(raw, data, 10 * SAMPLES, extractor)


def search(o: argparse.Namespace, data: str) -> None:
    place, extractor = trainings(o, data), o.extractor / data
    reader(extractor, data_of(data, o.path))  # is there before trainings ask for it together

    def all_of(jobs: dict[str, Training]) -> None:
        affordable_ones = zip(jobs, measured(o, data, jobs.values()), strict=True)
        run([(measure, place.at(name=name), job, extractor) for name, job in affordable_ones], o.jobs)

    all_of(candidates(o, data))
    if o.command == "search":
        all_of(candidates(o, data, best_of(place)))


def best_of(place: Records) -> tuple[str, Setting]:
    """Name and setting of the network and rate of the fewest bits/dim."""
    best = min((row for row in place.rows() if ";" not in row["name"]), key=lambda row: finite(row["valid"]))
    return best["name"], best["setting"]


def seconds_to(target: float, record: dict, of_a_step: float) -> float | None:
    """Seconds until the training had ``target`` bits/dim, on straight lines between what was measured."""
    points = [(int(step), min(map(finite, values.values()))) for step, values in record["curve"].items()]
    for (s, a), (t, b) in itertools.pairwise([(0, math.inf), *points]):
        if b <= target:
            share = 1.0 if math.isinf(a) else (a - target) / (a - b)
            return (s + share * (t - s)) * of_a_step
    return None


def table(o: argparse.Namespace, data: str) -> str:
    """Each network at its best rate, what else was tried, and the seconds to where the recipe's network ends."""
    of_a_step = {row["step"]: row for row in costs_of(o, data).rows()}
    made = {row["name"]: row for row in trainings(o, data).rows()}
    rates = {net: [name for name in made if name.startswith(f"{net}, rate") and ";" not in name] for net in NETS}
    best = {net: min(names, key=lambda n: finite(made[n]["valid"]), default="") for net, names in rates.items()}
    own = finite(made[best[OWN]]["valid"]) if best[OWN] else math.inf
    unit = seconds_of_a_step(of_a_step)
    rows = []
    for name in (*filter(None, best.values()), *sorted(n for n in made if ";" in n)):
        record = made[name]
        cost = of_a_step[replace(training(o, data, record["setting"]), steps=record["steps"]).cost_key]["cost"]
        reached = seconds_to(own, record, unit * cost)
        rows.append((
            data, name, f"{record['parameters']['score']:,}", f"{1e3 * unit * cost:.0f}", record["steps"],
            "–" if record["valid"] is None else f"{record['valid']:.3f}", "–" if reached is None else f"{reached:.0f}",
            f"{record['frechet']:.1f} ± {record['frechet_standard_error']:.1f}" if "frechet" in record else "",
        ))  # fmt: skip
    columns = ("data", "what", "parameters", "ms a step", "steps", "bits/dim", f"s to {own:.3f}", "Fréchet")
    return in_table(*columns, rows=rows)


def summary(records: Path, names: Sequence[str]) -> str:
    """Each network at its better rate and what else was tried, across the data: bits/dim of validation images, seconds
    to what the recipe's network ends with, and the Fréchet distance of samples."""
    cells: dict[str, dict[str, str]] = {}
    for data in names:
        o = argparse.Namespace(records=records, budget=1, path=None)
        of_a_step = {row["step"]: row for row in costs_of(o, data).rows()}
        best: dict[str, dict] = {}
        for row in trainings(o, data).rows():
            what = row["name"].partition(";")[0] if ";" in row["name"] else row["name"].rpartition(", rate")[0]
            best[what] = min(row, best.get(what, row), key=lambda row: finite(row["valid"]))
        unit, own = seconds_of_a_step(of_a_step), finite(best[OWN]["valid"])
        for what, row in best.items():
            cost = of_a_step[replace(training(o, data, row["setting"]), steps=row["steps"]).cost_key]["cost"]
            reached = seconds_to(own, row, unit * cost)
            shown = f"{row['valid']:.3f}; {'–' if reached is None else round(reached)}; {row['frechet']:.1f}"
            cells.setdefault(what, {})[data] = shown
    order = [what for what in (*NETS, *OTHERS) if what in cells]
    return in_table("network", *names, rows=[(what, *(cells[what].get(data, "") for data in names)) for what in order])


def seconds_of_a_step(costs: dict[str, dict[str, float]]) -> float:
    """Seconds of a step of linear diffusion, whose cost is 1, from the recipe's step, which was measured beside it."""
    recipe = next(value for key, value in costs.items() if key.endswith("elementwise recipe"))
    return recipe["milliseconds"] / recipe["cost"] / 1e3


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("costs", "networks", "search", "table"))
    parser.add_argument("data", nargs="+", choices=list(BUDGETS))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--budget", type=float, default=1, help="times the usual")
    parser.add_argument("--path", help="of the images, for emoji-32")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--extractor", type=Path, default=Path("runs/extractor"), help="folder of classifiers")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    o = parser.parse_args()
    torch.set_num_threads(1)
    for data in o.data:
        if o.command == "table":
            print(table(o, data))
            continue
        measured(o, data, candidates(o, data).values())
        if o.command != "costs":
            search(o, data)


if __name__ == "__main__":
    main()
