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

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

import indm
from indm.config import recipes
from indm.config.recipes import Recipe
from indm.data.base import stack
from indm.dequantization import from_data
from indm.diffusion import path_curvature, path_length
from indm.evaluation.plots import save_figure
from indm.evaluation.statistics import judged, mean_and_error, over_seeds
from indm.evaluation.style import colours_of, styled
from indm.likelihood import latent_reference
from indm.sampling import follow_flow, log_snr_grid
from indm.training.devices import make_accelerator
from indm.training.trainer import Trainer
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
from research.flow_gain.tables import bits, difference, difference_in, pairs_of, records_of, signed
from research.forward.likelihood import log_likelihood
from research.forward.model import ForwardINDM
from research.forward.objective import irreducible_gap, nelbo
from research.forward.scores import encoded, flow_score
from research.markdown import in_table, with_tables
from research.records import RECORDS, Records

NOISE = "truncated-normal"
PAGE = Path(__file__).with_name("README.md")
FIGURES = Path(__file__).parents[2] / "docs" / "figures"
FLOWS = {"linear": "none", "elementwise": "spline", "indm": "coupling"}  # of each side
SIDES = tuple(FLOWS)
PROCESSES: dict[str, Setting] = {
    "linear": {},
    "learned SDE": {"sde": "learned"},
    "coded": {"forward": "coded"},
    "learned mean": {"forward": "learned-mean"},
    "affine": {"forward": "affine"},
    "affine, learned SDE": {"forward": "affine", "sde": "learned"},
    "two scores": {"forward": "affine", "train.forward_lr": 1e-12},  # affine that stays linear
}
PARTS = {
    "learned": "research.forward.sde:LearnedSDE",
    "coded": "research.forward.coded:Coded",
    "learned-mean": "research.forward.learned:LearnedMean",
    "affine": "research.forward.learned:Affine",
}
FORWARD_RATES, SMALL_RATES = (1e-3, 3e-3), (3e-4,)  # of the search; of the wider one, too
SEEDS = 3  # of a cell
EQUAL_STEPS, WIDER = "equal-steps", "wider"
STEPS = (2, 4, 8, 16, 32)  # of samples
COLOUR = colours_of(PROCESSES)
BOUND_STEPS = (*STEPS, 100, 1000)  # of the bounds of ancestral samples
WAYS = 16  # images whose ways are measured
Cells = dict[tuple[str, str], list[dict]]  # records by side and process
Choices = dict[tuple[str, str], dict]


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


def flow_gain(records: Path, kind: str) -> Records:
    return Records(records / f"flow_gain-{kind}.csv")


def table_of(records: Path, kind: str) -> Records:
    return Records(records / f"forward-{kind}.csv")


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


def finals(records: Path, data: str, kind: str = "final") -> Cells:
    """The records of every cell that has some."""
    found: Cells = {cell: [] for cell in itertools.product(SIDES, PROCESSES)}
    for row in table_of(records, kind).at(data=data).rows():
        found[row["side"], row["process"]].append(row)
    return {cell: rows for cell, rows in found.items() if rows}


def choices(records: Path, data: str, kind: str) -> Choices:
    """What the search, or the wider one, chose in every cell that has been searched."""
    rows = table_of(records, "chosen").at(data=data, search=kind).rows()
    found = {(row["side"], row["process"]): row for row in rows}
    return {cell: found[cell] for cell in itertools.product(SIDES, PROCESSES) if cell in found}


def with_flow_gain(records: Path, data: str, cells: Cells) -> Cells:
    """The cells; where linear ones are missing, the first seeds of ``research.flow_gain``: the same trainings."""
    others = {(side, "linear"): records_of(flow_gain(records, "final"), data, NOISE, side)[:SEEDS] for side in SIDES}
    whole = others | cells
    return {cell: whole[cell] for cell in itertools.product(SIDES, PROCESSES) if whole.get(cell)}


def table(place: Path, data: str) -> str:
    """Side × process: bound, NLL, differences from the side's linear process and from no flow, gap; differences of
    processes over all sides, at equal cost and in as many steps; the wider search; bounds of few steps; samples and
    paths."""
    cells = with_flow_gain(place, data, finals(place, data))
    equal, wide = finals(place, data, EQUAL_STEPS), choices(place, data, WIDER)
    likelihoods = [
        (
            FLOWS[side], process, in_words([float(bits(record).mean()) for record in records], ".4f", ".4f"),
            in_words(numbers(records, "nll"), ".4f", ".4f"),
            signed(difference(records, cells[side, "linear"])) if process != "linear" else "",
            signed(difference(records, cells.get(("linear", process), []))) if side != "linear" else "",
            gap_of(records), len(records), records[0]["steps"],
        )
        for (side, process), records in cells.items()
    ]  # fmt: skip
    bounds = [
        (FLOWS[side], process, *(in_words(numbers(records, "ancestral", n), ".4g") for n in BOUND_STEPS))
        for (side, process), records in having("ancestral", cells).items()
    ]
    samples = [
        (
            FLOWS[side], process, *(in_words(numbers(records, key), ".2f", ".2f") for key in ("length", "curvature")),
            *(in_words(numbers(records, "frechet", n), ".1f", ".1f") for n in STEPS), len(records),
        )
        for (side, process), records in having("length", cells).items()
    ]  # fmt: skip
    head, in_steps = ("flow", "process"), [f"{n} steps" for n in BOUND_STEPS]
    tables = [
        in_table(*head, "NELBO", "NLL", "− linear", "− no flow", "gap", "seeds", "steps", rows=likelihoods),
        against_linear(cells, cells, "− linear"),
        *([against_linear(equal, cells, "− linear in as many steps")] if equal else []),
        *([search_table(choices(place, data, "search"), wide)] if wide else []),
        in_table(*head, *in_steps, rows=bounds),
        in_table(*head, "length", "curvature", *in_steps[: len(STEPS)], "seeds", rows=samples),
    ]
    return "\n\n".join(tables) + "\n"


def against_linear(cells: Cells, linear: Cells, title: str) -> str:
    """Each process of ``cells`` less the linear one of ``linear`` over all flows and seeds, with Holm's correction over
    the processes."""
    differences = {}
    for process in PROCESSES:
        sides = [side for side in SIDES if process != "linear" and (side, process) in cells]
        if sides:
            pairs = [pairs_of(cells[side, process], linear[side, "linear"]) for side in sides]
            differences[process] = difference_in([*itertools.chain(*pairs)])
    rows = judged(list(differences.values()))
    lines = [
        (process, signed(d), d.seeds, "–" if row["p_holm"] is None else f"{row['p_holm']:.1g}", row["verdict"])
        for (process, d), row in zip(differences.items(), rows, strict=True)
    ]
    return in_table("process", title, "trainings", "Holm's p", "verdict", rows=lines)


def search_table(search: Choices, wide: Choices) -> str:
    """Bounds of validation images at the rates that both searches chose, of each cell that has a wider one."""
    rows = []
    for (side, process), choice in wide.items():
        row = [FLOWS[side], process]
        for found in (search, wide):
            value, linear = found[side, process]["valid"], found[side, "linear"]["valid"]
            row += [f"{value:.4f}", f"{value - linear:+.4f}" if process != "linear" else ""]
        rows.append((*row, *(choice["setting"].get(key, "") for key in ("train.lr", "train.forward_lr"))))
    columns = ("searched", "− linear", "searched wider", "− linear", "score's rate", "process's rate")
    return in_table("flow", "process", *columns, rows=rows)


def having(key: str, cells: Cells) -> Cells:
    """The records that have it: some have bounds alone, older ones no samples and paths."""
    found = {cell: [record for record in records if key in record] for cell, records in cells.items()}
    return {cell: records for cell, records in found.items() if records}


@styled
def curves(place: Path, data: str, out: Path) -> None:
    """Fréchet distances by steps, and bounds against those of the linear process; one column for each flow."""
    cells = having("ancestral", finals(place, data))
    sides = [side for side in SIDES if (side, "linear") in cells]
    figure = Figure(figsize=(3.4 * len(sides), 5.5))
    rows = figure.subplots(2, len(sides), sharex="row", sharey="row", squeeze=False)
    for (side, process), records in cells.items():
        column = rows[:, sides.index(side)]
        for axes, key, counts in zip(column, ("frechet", "ancestral"), (STEPS, BOUND_STEPS), strict=True):
            values = np.array([mean_of(records, key, n) for n in counts])
            if key == "ancestral":
                values = 100 * (values / [mean_of(cells[side, "linear"], key, n) for n in counts] - 1)
            axes.plot(counts, values, ".-", color=COLOUR[process], label=process)
    for axes, side in zip(rows[0], sides, strict=True):
        axes.set(title=f"flow: {FLOWS[side]}", xlabel="steps of samples", xscale="log", yscale="log")
        axes.xaxis.set(major_locator=FixedLocator(STEPS), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")
    for axes in rows[1]:
        axes.set(xlabel="steps of the bound", xscale="log")
    rows[0, 0].set_ylabel("Fréchet distance")
    rows[1, 0].set_ylabel("bound above linear, %")
    save_figure(figure, out)


def mean_of(records: list[dict], key: str, steps: int) -> float:
    values = numbers(records, key, steps)
    return over_seeds(values)[0] if values else math.nan


def numbers(records: list[dict], key: str, steps: int | None = None) -> list[float]:
    """A number that has an error beside it, of each record that has it; ``steps``: of so many."""
    found = [record.get(key, {}) if steps is None else record.get(key, {}).get(str(steps)) for record in records]
    return [value for value, *_ in filter(None, found)]


def in_words(values: list[float], form: str, of_error: str = "") -> str:
    """The mean over seeds, ± over them where there are several."""
    if not values:
        return "–"
    mean, error = over_seeds(values)
    return f"{mean:{form}}" + ("" if math.isnan(error) or not of_error else f" ± {error:{of_error}}")


def gap_of(records: list[dict]) -> str:
    """What even the best score leaves; of codes the KL divergence, below which it is."""
    kl = numbers(records, "kl") if records[0]["setting"].get("forward") == "coded" else []
    return f"< {math.ceil(1e4 * over_seeds(kl)[0]) / 1e4:.4f}" if kl else in_words(numbers(records, "gap"), ".4f")


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
            print(table(o.records, named(o, data)))
            curves(o.records, named(o, data), FIGURES / f"forward-{data}.png")
        PAGE.write_text(page(PAGE.read_text("utf-8"), o.records), "utf-8")
        return
    for data in o.data:
        print(json.dumps(measure_costs(o, data), indent=2))
        if o.command in COMMANDS:
            run(COMMANDS[o.command](o, data), o.jobs)


def page(text: str, records: Path) -> str:
    """The page with the tables of the records."""
    return with_tables(text, lambda data: table(records, data))
