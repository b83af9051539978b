"""Tables and the figure of :mod:`research.forward.study`, from its records."""

import itertools
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from indm.workbench.evaluation.plots import colours_of, save_figure, styled
from indm.workbench.evaluation.statistics import over_seeds
from research.flow_gain.tables import bits, difference, records_of, seconds, signed
from research.markdown import in_table, with_error
from research.records import Records

NOISE = "truncated-normal"
FLOWS = {"linear": "none", "elementwise": "spline", "indm": "coupling"}  # of each side
SIDES = tuple(FLOWS)
PROCESSES: dict[str, dict] = {
    "linear": {},
    "learned SDE": {"sde": "learned"},
    "coded": {"forward": "coded"},
    "learned mean": {"forward": "learned-mean"},
    "affine": {"forward": "affine"},
    "affine, learned SDE": {"forward": "affine", "sde": "learned"},
    "two scores": {"forward": "affine", "train.forward_lr": 1e-12},  # affine that stays linear
}
EQUAL_STEPS, WIDER = "equal-steps", "wider"
SEEDS = 3  # of a cell
STEPS = (2, 4, 8, 16, 32)  # of samples
BOUND_STEPS = (*STEPS, 100, 1000)  # of the bounds of ancestral samples
COLOUR = colours_of(PROCESSES)
Cells = dict[tuple[str, str], list[dict]]  # records by side and process
Choices = dict[tuple[str, str], dict]


def flow_gain(records: Path, kind: str) -> Records:
    return Records(records / f"flow_gain-{kind}.csv")


def table_of(records: Path, kind: str) -> Records:
    return Records(records / f"forward-{kind}.csv")


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


def all_cells(place: Path, data: str) -> Cells:
    return with_flow_gain(place, data, finals(place, data))


def likelihood_table(place: Path, data: str) -> str:
    """Flow × process: bound, NLL, difference from the flow's linear process, and what the best score would leave."""
    cells = all_cells(place, data)
    rows = [
        (
            FLOWS[side], process, in_words([float(bits(record).mean()) for record in records], ".3f", ".3f"),
            in_words(numbers(records, "nll"), ".3f", ".3f"),
            signed(difference(records, cells[side, "linear"])) if process != "linear" else "",
            gap_of(records), len(records), records[0]["steps"], seconds(records),
        )
        for (side, process), records in cells.items()
    ]  # fmt: skip
    return in_table("flow", "process", "NELBO", "NLL", "− linear", "gap", "seeds", "steps", "CPU s", rows=rows)


def bound_table(place: Path, data: str) -> str:
    rows = [
        (FLOWS[side], process, *(of_seeds(numbers(records, "ancestral", n), len(records)) for n in BOUND_STEPS))
        for (side, process), records in having("ancestral", all_cells(place, data)).items()
    ]
    return in_table("flow", "process", *(f"{n} steps" for n in BOUND_STEPS), rows=rows)


def of_seeds(values: list[float], seeds: int) -> str:
    """The mean over seeds, and how many there are where that is not all of them."""
    return in_words(values, ".4g") + (f" ({len(values)} of {seeds})" if values and len(values) < seeds else "")


def sample_table(place: Path, data: str) -> str:
    rows = [
        (
            FLOWS[side], process, *(in_words(numbers(records, key), ".2f", ".2f") for key in ("length", "curvature")),
            *(in_words(numbers(records, "frechet", n), ".1f", ".1f") for n in STEPS), len(records),
        )
        for (side, process), records in having("length", all_cells(place, data)).items()
    ]  # fmt: skip
    return in_table("flow", "process", "length", "curvature", *(f"{n} steps" for n in STEPS), "seeds", rows=rows)


def few_steps_table(place: Path, data: str) -> str:
    """Fréchet distances of the linear process behind each flow less those without one, in pairs of seeds."""
    cells = having("frechet", all_cells(place, data))
    alone, rows = {row["seed"]: row for row in cells["linear", "linear"]}, []
    for side in SIDES[1:]:
        pairs = [(row, alone[row["seed"]]) for row in cells.get((side, "linear"), []) if row["seed"] in alone]
        if pairs:
            less = ([a["frechet"][str(n)][0] - b["frechet"][str(n)][0] for a, b in pairs] for n in STEPS)
            rows.append(
                (f"{FLOWS[side]} − none", *(with_error(*over_seeds(each), "+.1f") for each in less), len(pairs))
            )
    return in_table("flow", *(f"{n} steps" for n in STEPS), "seeds", rows=rows)


def nested_table(place: Path, data: str, kind: str = "final") -> str:
    """Each process less the linear one: the mean over the seeds of a flow, then over flows.

    Trainings of one seed under several flows are not independent: flows are what is counted, and two or three allow
    no test. ± is √(a² + b²), a over flows and b the mean error within a flow, since flows share seeds and images.
    """
    linear = all_cells(place, data)
    cells = linear if kind == "final" else finals(place, data, kind)
    sides = [side for side in SIDES if any((side, process) in cells for process in PROCESSES if process != "linear")]
    rows = []
    for process in PROCESSES:
        found = {
            side: difference(cells[side, process], linear[side, "linear"])
            for side in sides
            if process != "linear" and (side, process) in cells
        }
        if found:
            mean, flows = over_seeds([d.difference for d in found.values()], 0.0)
            within = sum(d.standard_error for d in found.values()) / len(found)
            over = f"{mean:+.3f} ± {math.hypot(flows, within):.3f}" if len(found) > 1 else ""
            rows.append((process, *(signed(found.get(side)) for side in sides), over))
    several = ["over flows"] if len(sides) > 1 else []
    rows = rows if several else [row[:-1] for row in rows]
    return in_table("process − linear", *(f"flow: {FLOWS[side]}" for side in sides), *several, rows=rows)


def everything(place: Path, data: str) -> str:
    """All tables of one data set."""
    cells = ((kind, finals(place, data, kind)) for kind in ("final", EQUAL_STEPS))
    wide = choices(place, data, WIDER)
    tables = [
        likelihood_table(place, data),
        *(nested_table(place, data, kind) for kind, found in cells if found),
        *([search_table(choices(place, data, "search"), wide)] if wide else []),
        bound_table(place, data),
        sample_table(place, data),
    ]
    return "\n\n".join(tables)


def wider_table(place: Path, data: str) -> str:
    return search_table(choices(place, data, "search"), choices(place, data, WIDER))


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
            values, errors = map(np.array, zip(*(over(records, key, n) for n in counts), strict=True))
            if key == "ancestral":
                linear = np.array([over(cells[side, "linear"], key, n)[0] for n in counts])
                values, errors = 100 * (values / linear - 1), 100 * errors / linear
            axes.errorbar(counts, values, errors, fmt=".-", color=COLOUR[process], label=process)
    for axes, side in zip(rows[0], sides, strict=True):
        axes.set(title=f"flow: {FLOWS[side]}", xlabel="steps of samples", xscale="log", yscale="log")
        axes.xaxis.set(major_locator=FixedLocator(STEPS), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")
    for axes in rows[1]:
        axes.set(xlabel="steps of the bound", xscale="log")
    rows[0, 0].set_ylabel("Fréchet distance")
    rows[1, 0].set_ylabel("bound above linear, %")
    save_figure(figure, out)


def over(records: list[dict], key: str, steps: int) -> tuple[float, float]:
    """The mean over seeds and its error, of so many steps."""
    values = numbers(records, key, steps)
    return over_seeds(values) if values else (math.nan, math.nan)


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
