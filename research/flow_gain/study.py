"""What the flow is worth: linear diffusion, one elementwise spline, INDM and the plain flow, as fairly as we can.

    python -m research.flow_gain costs digits          # cost of a step of every side, alone on the machine
    python -m research.flow_gain search digits         # rates and sizes of each cell, on the validation split
    python -m research.flow_gain final digits          # trainings at the chosen settings, tested once
    python -m research.flow_gain capacity digits       # the gain along widths of score and flow, and along the budget
    python -m research.flow_gain beyond digits         # other flows than the chosen ones, on validation
    python -m research.flow_gain flags emoji-32 --path PACKAGE     # flags of countries, which no model has seen
    python -m research.flow_gain table digits fashion-mnist-16 emoji-32 --figures research/figures

Data are digits, fashion-mnist-16 and emoji-32 (with ``--path PACKAGE``). Every side, under every dequantization, gets
the seconds that the linear side under uniform dequantization takes for the budget of its study, times ``--budget``, as
a number of steps: a step's cost is measured in turns, in one process. Each cell has its own rates, average and size or
schedule of the flow, by the same number of trainings (``cells.axes``); a setting is chosen at its own budget.

Every training is a row in the tables ``flow_gain-*.csv`` of ``--records`` and is never made again; killed and started
again, a command goes on. ``--jobs`` processes train side by side, with one thread each.
"""

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from indm.workbench.recipes import recipe as recipes
from research.data import recipe_file
from research.flow_gain.cells import (
    DEQUANTIZATIONS,
    FIRST_SEED,
    RATES,
    SIDES,
    STUDIES,
    Axis,
    Setting,
    Training,
    axes,
    costs,
    searched,
    tested,
    validated,
)
from research.flow_gain.tables import capacity_figure, capacity_table, family_table, main_table
from research.records import RECORDS, Records, Row

WIDTHS, BUDGETS = (16, 32, 48, 64), (1, 2, 4)  # of the score; times the study's budget
FLOW_WIDTHS = (8, 16, 32, 64)
MIXED = [{"name": "elementwise"}, {"name": "linear", "channels": 3}]
OTHERS: dict[str, tuple[str, Setting]] = {  # by name, the side and what is changed
    "bins=16": ("elementwise", {"flow.bins": 16}),
    "shared=none": ("elementwise", {"flow.shared": "none"}),  # a spline that knows its place
    "mixed-colours": ("elementwise", {"flow": "compose", "flow.flows": MIXED}),  # a 1×1 map after the spline
    "two-scales": ("indm", {"flow.levels": 2, "flow.depth": 4}),
    "three-scales": ("indm", {"flow.levels": 3, "flow.depth": 4}),
    "larger-seldom": ("indm", {"flow.levels": 2, "flow.depth": 8, "flow.width": 64, "train.flow_update_every": 4}),
}
FITS = {  # the others that differ from the recipe's flow and fit the images
    "digits": ("bins=16", "shared=none", "two-scales", "larger-seldom"),
    "fashion-mnist-16": ("bins=16", "shared=none", "three-scales", "larger-seldom"),
    "emoji-32": ("bins=16", "shared=none", "mixed-colours", "three-scales", "larger-seldom"),
}


def table_of(o: argparse.Namespace, kind: str) -> Records:
    return Records(o.records / f"flow_gain-{kind}.csv")


def named(o: argparse.Namespace, data: str) -> str:
    """Of the data and the budget, in the tables."""
    return data if o.budget == 1 else f"{data}-x{o.budget:g}"


def cells(o: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Dequantization and side, the most informative first."""
    return itertools.product(o.dequantizations, o.sides)


def structures(data: str, dequantization: str, side: str) -> list[Setting]:
    """What the search of a cell may choose that changes the cost of a step."""
    tables = [axis for axis in axes(data, dequantization, side) if not {*RATES} & {*axis[-1]}]
    return [merged(values) for values in itertools.product(*tables)]


def merged(settings: Iterable[Setting]) -> Setting:
    return dict(itertools.chain.from_iterable(setting.items() for setting in settings))


def jobs_of_costs(o: argparse.Namespace, data: str) -> list[Training]:
    return [
        Training(data, dequantization, side, setting, STUDIES[data].budget, path=o.path)
        for dequantization, side in cells(o)
        for setting in structures(data, dequantization, side)
    ]


def measure_costs(o: argparse.Namespace, data: str, jobs: Sequence[Training] = ()) -> dict[str, float]:
    """Costs of the search's cells, or of ``jobs``."""
    return costs(table_of(o, "costs").at(data=data), jobs or jobs_of_costs(o, data))


def affordable(job: Training, costs: dict[str, float], budget: float) -> Training:
    """The training in as many steps as cost what ``budget`` steps of linear diffusion do."""
    return replace(job, steps=max(1, round(budget / costs[job.cost_key])))


def search_cell(
    trainings: Records, choice: Records, job: Training, along: list[Axis], costs: dict[str, float], budget: float
) -> Row:
    """Search one cell's setting along its axes, one training after another; the row of the chosen one."""

    def afforded(setting: Setting) -> Training:
        return affordable(replace(job, setting=setting), costs, budget)

    def bits(setting: Setting) -> tuple[float, str]:
        """Of the best average, and which that is."""
        record = trainings.at(setting=setting).kept(lambda: validated(afforded(setting)))
        return min((float("inf") if value is None else value, decay) for decay, value in record["valid"].items())

    def choose() -> Row:
        best = merged(axis[0] for axis in along)
        for axis in along:
            best = min((best | value for value in axis), key=bits)
        value, decay = bits(best)
        made = 1 + sum(len(axis) - 1 for axis in along)
        return {"setting": best, "steps": afforded(best).steps, "ema": float(decay), "valid": value, "trainings": made}

    return choice.kept(choose)


def test(cell: Records, job: Training, decay: float, whole: bool) -> str:
    return done(cell, cell.kept(lambda: tested(job, decay, whole)))


def done(cell: Records, record: Row) -> str:
    """What is printed of a training."""
    found = record.get("nelbo", record.get("valid"))
    return " ".join(map(str, [cell.path.stem, *dict(cell.key).values(), found]))


def seeds(number: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + number)


def chosen(o: argparse.Namespace, data: str, dequantization: str, side: str) -> Row:
    cell = {"data": named(o, data), "noise": searched(dequantization), "side": side}
    found = table_of(o, "chosen").at(**cell).rows()
    if not found:
        raise SystemExit(f"{cell} is not searched: python -m research.flow_gain search {data}")
    return found[0]


def search(o: argparse.Namespace, data: str) -> list[tuple]:
    affords = measure_costs(o, data), o.budget * STUDIES[data].budget
    tables = [table_of(o, kind).at(data=named(o, data)) for kind in ("search", "chosen")]
    tasks = []
    for noise, side in cells(o):
        if noise == searched(noise):
            of_cell = [table.at(noise=noise, side=side) for table in tables]
            job = Training(data, noise, side, {}, 1, path=o.path)
            tasks.append((search_cell, *of_cell, job, axes(data, noise, side), *affords))
    return tasks


def final(o: argparse.Namespace, data: str, kind: str = "final") -> list[tuple]:
    tasks = []
    for seed in seeds(o.seeds or STUDIES[data].seeds):
        for dequantization, side in cells(o):
            choice = chosen(o, data, dequantization, side)
            job = Training(data, dequantization, side, choice["setting"], 1, seed, o.path)
            job = affordable(job, measure_costs(o, data), o.budget * STUDIES[data].budget)
            place = table_of(o, kind).at(data=named(o, data))
            cell = place.at(noise=dequantization, side=side, seed=seed)
            tasks.append((test, cell, job, choice["ema"], True))
    return sorted(tasks, key=lambda task: o.dequantizations.index(task[2].dequantization))


def capacity(o: argparse.Namespace, data: str) -> list[tuple]:
    """Linear, elementwise and INDM along the width of the score and the budget, and INDM along that of the flow."""
    recipe = recipes.load(recipe_file(data))
    usual = recipe["net"]["channels"], recipe["flow"].get("width", 32)
    grid = [(channels, usual[1], budget) for budget in BUDGETS for channels in WIDTHS]
    jobs = {}
    for dequantization in o.dequantizations:
        for seed in seeds(o.seeds or 1):
            for side in ("linear", "elementwise", "indm"):
                choice = chosen(o, data, dequantization, side)
                flows = [(usual[0], width, 1) for width in FLOW_WIDTHS if width != usual[1]] if side == "indm" else []
                for channels, width, budget in grid + flows:
                    widths = {"net.channels": channels} | ({"flow.width": width} if side == "indm" else {})
                    job = Training(data, dequantization, side, choice["setting"] | widths, 1, seed, o.path)
                    cell = table_of(o, "capacity").at(
                        data=named(o, data), noise=dequantization, side=side, channels=channels, width=width,
                        budget=budget, seed=seed,
                    )  # fmt: skip
                    jobs[cell] = (job, budget, choice["ema"])
    units = {w: Training(data, "uniform", "linear", {"net.channels": w}, 1, path=o.path) for w in (*WIDTHS, usual[0])}
    measured = measure_costs(o, data, [*(job for job, _, _ in jobs.values()), *units.values()])
    tasks = []
    for cell, (job, budget, decay) in sorted(jobs.items(), key=lambda item: item[1][1]):  # the smallest budget first
        unit = measured[units[job.setting["net.channels"]].cost_key]
        job = affordable(job, measured, o.budget * budget * STUDIES[data].budget * unit)
        tasks.append((test, cell, job, decay, False))
    return tasks


def beyond(o: argparse.Namespace, data: str) -> list[tuple]:
    """Other flows at the chosen rates, in as many steps as cost the same, with the seed of the search: validated."""
    jobs = {}
    for dequantization in o.dequantizations:
        for name in FITS[data]:
            side, changes = OTHERS[name]
            setting = chosen(o, data, dequantization, side)["setting"] | changes
            cell = table_of(o, "beyond").at(data=named(o, data), noise=dequantization, flow=name)
            jobs[cell] = Training(data, dequantization, side, setting, 1, path=o.path)
    missing = {cell: job for cell, job in jobs.items() if not cell.rows()}
    measured = measure_costs(o, data, [*missing.values()]) if missing else {}
    budget = o.budget * STUDIES[data].budget
    return [(validate, cell, affordable(job, measured, budget)) for cell, job in missing.items()]


def flags(o: argparse.Namespace, data: str) -> list[tuple]:
    """The final trainings of one seed again, tested on all flags, which the recipe leaves out."""
    tasks = final(o, data, "flags")
    return [(test_flags, cell, job, decay) for _, cell, job, decay, _ in tasks if job.seed == FIRST_SEED]


def test_flags(cell: Records, job: Training, decay: float) -> str:
    return done(cell, cell.kept(lambda: tested(job, decay, whole=False, other={"data.flags": "only"})))


def validate(cell: Records, job: Training) -> str:
    return done(cell, cell.kept(lambda: validated(job)))


def table(o: argparse.Namespace) -> None:
    """All tables and figures that the records give."""
    names = [named(o, data) for data in o.data]
    final, capacity = table_of(o, "final"), table_of(o, "capacity")
    print(main_table(final, names), family_table(final, names), capacity_table(capacity, names), sep="\n\n")
    if o.figures:
        capacity_figure(capacity, names, o.figures / "flow_gain-capacity.png")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("costs", "search", "final", "capacity", "beyond", "flags", "table"))
    parser.add_argument("data", nargs="+", choices=list(STUDIES))
    parser.add_argument("--budget", type=float, default=1, help="times the study's, a power of two")
    parser.add_argument("--seeds", type=int, help="of a cell; default: the study's, and 1 of the capacity")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--dequantizations", nargs="+", choices=DEQUANTIZATIONS, default=DEQUANTIZATIONS)
    parser.add_argument("--path", help="of the images, for emoji-32")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    parser.add_argument("--figures", type=Path, help="folder for the figure of the capacity")
    o = parser.parse_args()
    torch.set_num_threads(1)
    for data in o.data if o.command != "table" else ():
        if o.command == "costs":
            print(json.dumps(measure_costs(o, data), indent=2))
        else:
            tasks = {"search": search, "final": final, "capacity": capacity, "beyond": beyond, "flags": flags}
            run(tasks[o.command](o, data), o.jobs)
    if o.command == "table":
        table(o)
