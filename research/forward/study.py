"""Which nonlinearity brings what: forward processes with and without a flow, at equal cost of their training.

    python -m research.forward costs digits         # cost of a step of every cell, alone on the machine
    python -m research.forward search digits        # rates of each cell, on the validation split
    python -m research.forward final digits         # trainings at the chosen rates, tested once
    python -m research.forward equal-steps digits   # trainings in as many steps as the linear process makes
    python -m research.forward wider digits         # the search with more rates, of the score, too
    python -m research.forward table digits         # also into README.md, with a figure

A cell is a side of ``research.flow_gain`` (no flow, a spline, the coupling flow) and a forward process, under truncated
normal noise. It has the side's setting, found there; the rate of the process and the average are its own. Trainings
are rows of the tables ``forward-*.csv``; a command goes on from there.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import indm
from indm.dequantization import from_data
from indm.diffusion import path_curvature, path_length
from indm.likelihood import latent_reference
from indm.sampling import follow_flow, log_snr_grid
from indm.workbench.data.base import stack
from indm.workbench.evaluation.statistics import mean_and_error
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import make_accelerator
from indm.workbench.training.trainer import Trainer
from research.flow_gain.cells import (
    NLL_EXAMPLES,
    STUDIES,
    VALID_EXAMPLES,
    Axis,
    Setting,
    Training,
    costs,
    data_of,
    frechet,
    options,
    reader,
    tested,
)
from research.flow_gain.study import done, named, run, search_cell, seeds
from research.forward.likelihood import log_likelihood
from research.forward.model import ForwardINDM
from research.forward.objective import irreducible_gap, nelbo
from research.forward.scores import encoded, flow_score
from research.forward.tables import (
    BOUND_STEPS,
    EQUAL_STEPS,
    NOISE,
    PROCESSES,
    SEEDS,
    SIDES,
    STEPS,
    WIDER,
    curves,
    everything,
    flow_gain,
    table_of,
)
from research.records import RECORDS, Records

FIGURES = Path(__file__).parents[1] / "figures"
PARTS = {
    "learned": "research.forward.sde:LearnedSDE",
    "coded": "research.forward.coded:Coded",
    "learned-mean": "research.forward.learned:LearnedMean",
    "affine": "research.forward.learned:Affine",
}
FORWARD_RATES, SMALL_RATES = (1e-3, 3e-3), (3e-4,)  # of the search; of the wider one, too
WAYS = 16  # images whose ways are measured


class RatedTrainer(Trainer):
    """Trains the process at a rate of its own."""

    rate: float

    def parameter_groups(self) -> list[dict]:
        groups = super().parameter_groups()
        return [group | ({"base_lr": self.rate} if group["name"] == "process" else {}) for group in groups]


class ProcessTraining(Training):
    """A training whose setting names a process by "forward", an SDE by "sde", and the rate "train.forward_lr"."""

    def recipe(self) -> Recipe:
        setting = dict(self.setting)
        process, sde, _ = (setting.pop(key, None) for key in ("forward", "sde", "train.forward_lr"))
        plain = replace(self, setting=setting)
        table = Training.recipe(plain)["sde"]
        base = table if sde is None else {"name": PARTS[sde], "eps": table["eps"]}
        changes: Setting = {"sde": PARTS[process], "sde.base": base} if process else {"sde": base.pop("name")}
        changes |= {"train.objective": "research.forward.objective:mle"} if process else {}
        changes |= {} if process else {f"sde.{key}": value for key, value in base.items()}
        return Training.recipe(replace(plain, setting=setting | changes))

    def trainer(self) -> Trainer:
        recipe, rate = self.recipe(), self.setting.get("train.forward_lr", 1e-3)
        kind = type("Rated", (RatedTrainer,), {"rate": rate})
        with indm.trust("research"):
            return kind(recipe, data_of(self.data, self.path), make_accelerator(recipe.train))


def axes(own: Setting, wide: bool) -> list[Axis]:
    """The axes along which a cell is searched from its ``own`` setting: the rate of the process where it has one;
    ``wide``: also a smaller one, and half the score's rate."""
    along: list[Axis] = [(own,)]
    if "forward" in own and "train.forward_lr" not in own:
        along.append(options("train.forward_lr", *FORWARD_RATES, *(SMALL_RATES if wide else ())))
    if wide:
        along.append(options("train.lr", own["train.lr"], own["train.lr"] / 2))
    return along


def cells(o: argparse.Namespace) -> Iterator[tuple[str, str]]:
    return itertools.product(o.sides, o.processes)


def job_of(o: argparse.Namespace, data: str, side: str, process: str) -> Training:
    """One step of a cell: the side's setting of ``research.flow_gain`` with the process."""
    (found,) = flow_gain(o.records, "chosen").at(data=data, noise="uniform", side=side).rows()
    return ProcessTraining(data, NOISE, side, found["setting"] | PROCESSES[process], 1, path=o.path)


def measure_costs(o: argparse.Namespace, data: str) -> dict[str, float]:
    return costs(table_of(o.records, "costs").at(data=data), [job_of(o, data, *cell) for cell in cells(o)])


def as_forward(model: indm.INDM) -> ForwardINDM:
    """A model with a process, the linear one where it has none."""
    if isinstance(model, ForwardINDM):
        return model
    return ForwardINDM(model.flow, model.score, model.scaling, model.shape, model.dequantization)


def ways_of(model: ForwardINDM, x: torch.Tensor) -> torch.Tensor:
    """x_t along the probability flow from x, (times, n, *event): given a code of x, where there is one."""
    times, z = log_snr_grid(model.sde, 48).flip(0), model.flow.latent(x)
    score, _, _ = encoded(model.score, model.process, z, torch.Generator().manual_seed(0))
    path = [z]
    for t, s in itertools.pairwise(times.tolist()):
        path.append(follow_flow(flow_score(score), path[-1], t, s)[0])
    return torch.stack([model.decode(z) for z in path])


def test_cell(cell: Records, job: Training, decay: float, extractor: Path) -> str:
    """The likelihoods of a final training, its bounds and samples in few steps, its ways and its irreducible gap."""

    data = data_of(job.data, job.path)
    raw = stack(data.test, VALID_EXAMPLES)

    @torch.no_grad()
    def more(model: indm.INDM) -> dict:
        generator, model = torch.Generator().manual_seed(job.seed), as_forward(model.eval())
        x, log_q = from_data(model, raw, generator=generator)
        unit = x[0].numel() * math.log(2)
        few = {n: nelbo(model, x, times=min(n, 8), ancestral=n, generator=generator).total for n in BOUND_STEPS}
        gap = irreducible_gap(model, x, times=8, generator=generator)
        _, kl, _ = encoded(model.score, model.process, model.encode(x)[0], generator)
        law = latent_reference(model, stack(data.valid, VALID_EXAMPLES))
        solved = log_likelihood(model, x[:NLL_EXAMPLES], log_q=log_q[:NLL_EXAMPLES], reference=law, generator=generator)
        ancestral = {n: mean_and_error((nats + log_q) / unit) for n, nats in few.items()}
        nll = {"nll": mean_and_error(solved.nats() / unit), "nll_error": solved.solver_error.mean().item() / unit}
        ways = ways_of(model, x[:WAYS])
        return nll | {
            "ancestral": ancestral,
            "gap": mean_and_error(gap / unit),
            "kl": mean_and_error(kl / unit),  # of a code, where it bounds the gap
            "length": mean_and_error(path_length(ways)),
            "curvature": mean_and_error(path_curvature(ways)),
            "frechet": {n: distance_of(drawn(model, n)) for n in STEPS},
        }

    def distance_of(samples: torch.Tensor) -> tuple[float, ...]:
        return tuple(frechet(samples, data, "test", VALID_EXAMPLES, extractor).values())

    def drawn(model: ForwardINDM, steps: int) -> torch.Tensor:
        """As many samples as there are test images, by the one sampler of an ODE that all processes have."""
        generator = torch.Generator().manual_seed(job.seed)
        x = model.sample(len(raw), sampler="heun", steps=steps, generator=generator)
        return model.scaling.to_data(x)

    return done(cell, cell.kept(lambda: tested(job, decay, False, more)))


def bound_cell(cell: Records, job: Training, decay: float) -> str:
    """The bound of a final training alone."""
    return done(cell, cell.kept(lambda: tested(job, decay, False)))


def search(o: argparse.Namespace, data: str, kind: str = "search") -> list[tuple]:
    affords = measure_costs(o, data), o.budget * STUDIES[data].budget
    tasks = []
    for side, process in cells(o):
        job, of_cell = job_of(o, data, side, process), {"data": named(o, data), "side": side, "process": process}
        trainings, choice = (table_of(o.records, table).at(**of_cell) for table in ("search", "chosen"))
        tasks.append((search_cell, trainings, choice.at(search=kind), job, axes(job.setting, kind == WIDER), *affords))
    return tasks


def wider(o: argparse.Namespace, data: str) -> list[tuple]:
    """The search with more rates: whether one side was tuned better than another."""
    return search(o, data, WIDER)


def chosen(o: argparse.Namespace, data: str, side: str, process: str) -> dict:
    cell = {"data": named(o, data), "side": side, "process": process, "search": "search"}
    found = table_of(o.records, "chosen").at(**cell).rows()
    if not found:
        raise SystemExit(f"{cell} is not searched: python -m research.forward search {data}")
    return found[0]


def final(o: argparse.Namespace, data: str, kind: str = "final") -> list[tuple]:
    tasks, extractor = [], o.extractor / data
    alone = o.bounds_alone or kind == EQUAL_STEPS
    for seed, (side, process) in itertools.product(seeds(o.seeds), cells(o)):
        choice = chosen(o, data, side, process)
        like = choice if kind == "final" else chosen(o, data, side, "linear")
        job = ProcessTraining(data, NOISE, side, choice["setting"], like["steps"], seed, o.path)
        cell = table_of(o.records, kind).at(data=named(o, data), side=side, process=process, seed=seed)
        task = (cell, job, choice["ema"])
        tasks.append((bound_cell, *task) if alone else (test_cell, *task, extractor))
    if not alone:
        reader(extractor, data_of(data, o.path))  # is there before trainings ask for it together
    return tasks


def equal_steps(o: argparse.Namespace, data: str) -> list[tuple]:
    """Trainings in as many steps as the linear process makes, whatever a step costs."""
    others = [process for process in o.processes if process != "linear"]
    return final(argparse.Namespace(**vars(o) | {"processes": others}), data, EQUAL_STEPS)


COMMANDS = {"search": search, "final": final, EQUAL_STEPS: equal_steps, WIDER: wider}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("costs", *COMMANDS, "table"))
    parser.add_argument("data", nargs="+", choices=list(STUDIES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budget", type=float, default=1, help="times the study's")
    parser.add_argument("--bounds-alone", action="store_true", help="final trainings without NLL, samples and paths")
    parser.add_argument("--path", help="of the images, for emoji-32")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--extractor", type=Path, default=Path("runs/extractor"), help="folder of classifiers")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    o = parser.parse_args()
    torch.set_num_threads(1)
    if o.command == "table":
        for data in o.data:
            print(everything(o.records, named(o, data)))
            curves(o.records, named(o, data), FIGURES / f"forward-{data}.png")
        return
    for data in o.data:
        print(json.dumps(measure_costs(o, data), indent=2))
        if o.command in COMMANDS:
            run(COMMANDS[o.command](o, data), o.jobs)
