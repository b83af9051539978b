"""Tables and the figure of the study, from its records."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from indm.workbench.evaluation.statistics import Difference, judged, over_seeds, paired_by_examples
from indm.workbench.figures.plots import DATA_COLOUR, colours_of, save_figure, styled
from research.flow_gain.cells import DEQUANTIZATIONS, SIDES
from research.lab.statistics import UNMADE
from research.markdown import in_table
from research.records import Records

TITLES = {"linear": "linear", "elementwise": "spline", "indm": "INDM", "flow": "plain flow"}
# All differences that get a verdict, written down before anything was trained: data, dequantization, side − side.
FAMILY = tuple(
    (data, dequantization, "indm", other)
    for data in ("digits", "fashion-mnist-16")
    for dequantization, other in (("variational", "linear"), ("uniform", "elementwise"), ("variational", "elementwise"))
)
PLANNED = {"digits": 5, "fashion-mnist-16": 3}  # seeds; two of Fashion-MNIST were added after a look at three
COLOUR = colours_of(["linear", "indm", "elementwise"])
Capacity = dict[tuple[int, int, int], Difference]  # channels of the score, width of the flow, budget


def records_of(final: Records, data: str, dequantization: str, side: str) -> list[dict]:
    """The final records of a cell."""
    return final.at(data=data, noise=dequantization, side=side).rows()


def bits(record: dict) -> np.ndarray:
    """The NELBO of each test image, (n,), bits/dim."""
    return np.array(record["nelbo_nats"]) / (record["dims"] * math.log(2))


def pairs_of(a: list[dict], b: list[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The bits of both, for each seed that both have."""
    by_seed = [{record["seed"]: bits(record) for record in records} for records in (a, b)]
    return [tuple(values[seed] for values in by_seed) for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def difference_in(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Difference | None:
    """a − b over pairs of trainings."""
    return paired_by_examples(*map(np.stack, zip(*pairs, strict=True))) if pairs else None


def difference(a: list[dict], b: list[dict]) -> Difference | None:
    """a − b of the seeds that both have."""
    return difference_in(pairs_of(a, b))


def signed(d: Difference | None) -> str:
    return f"{d.difference:+.3f} ± {d.standard_error:.3f}" if d else ""


def main_table(final: Records, names: Sequence[str], noises: Sequence[str] = ("uniform", "variational")) -> str:
    """Data × dequantization × side: bound, NLL, differences from linear diffusion and from the spline, and the cost."""
    rows = []
    for data, noise, side in itertools.product(names, noises, SIDES):
        records = records_of(final, data, noise, side)
        if not records:
            continue
        others = [records_of(final, data, noise, other) if side != other else [] for other in ("linear", "elementwise")]
        rows.append((
            data, noise, TITLES[side], bound(records), likelihood(records),
            *(signed(difference(records, other)) for other in others), len(records), records[0]["steps"],
            seconds(records),
        ))  # fmt: skip
    columns = (
        "data",
        "noise",
        "model",
        "NELBO ± seeds ± images",
        "NLL",
        "− linear",
        "− spline",
        "seeds",
        "steps",
        "CPU s",
    )
    return in_table(*columns, rows=rows)


def likelihood(records: list[dict]) -> str:
    """The mean NLL of the images that have one, ± over seeds and images; nothing where some seeds have none."""
    if any("nll_nats" not in record for record in records):
        return ""
    bits = np.array([record["nll_nats"] for record in records]) / (records[0]["dims"] * math.log(2))
    mean = paired_by_examples(bits, np.zeros_like(bits))
    return f"{mean.difference:.3f} ± {mean.standard_error:.3f}"


def bound(records: list[dict]) -> str:
    """The mean NELBO, ± over seeds, ± over images."""
    mean, over = over_seeds([float(bits(record).mean()) for record in records])
    images = np.mean([bits(record) for record in records], axis=0)
    return f"{mean:.3f} ± {over:.3f} ± {images.std(ddof=1) / math.sqrt(len(images)):.3f}"


def noise_table(final: Records, names: Sequence[str]) -> str:
    """Learned and truncated normal noise less uniform noise, of each side; and under each INDM less the spline, and
    the spline less linear diffusion."""
    rows = []
    for data, side in itertools.product(names, SIDES):
        uniform = records_of(final, data, "uniform", side)
        others = (records_of(final, data, noise, side) for noise in ("variational", "truncated-normal"))
        rows.append((data, TITLES[side], *(signed(difference(records, uniform)) for records in others)))
    for (a, b), data in itertools.product((("indm", "elementwise"), ("elementwise", "linear")), names):
        pairs = ([records_of(final, data, n, side) for side in (a, b)] for n in DEQUANTIZATIONS[1:])
        rows.append((data, f"{TITLES[a]} − {TITLES[b]} under it", *(signed(difference(*pair)) for pair in pairs)))
    return in_table("data", "model", "learned − uniform", "truncated normal − uniform", rows=rows)


def gap_table(final: Records, names: Sequence[str]) -> str:
    """NELBO − NLL (ODE) of the images that have both, ± over seeds and images; and INDM's less the linear model's."""

    def gaps(data: str, noise: str, side: str) -> np.ndarray:
        records = records_of(final, data, noise, side)
        pairs = [(np.array(r["nelbo_nats"]), np.array(r["nll_nats"])) for r in records if "nll_nats" in r]
        unit = records[0]["dims"] * math.log(2)
        return np.stack([(nelbo[: len(nll)] - nll) / unit for nelbo, nll in pairs])

    rows = []
    for data, noise in itertools.product(names, DEQUANTIZATIONS[:2]):
        found = {side: gaps(data, noise, side) for side in ("linear", "elementwise", "indm")}
        alone = (signed(paired_by_examples(gap, np.zeros_like(gap))) for gap in found.values())
        apart = signed(paired_by_examples(found["indm"], found["linear"]))
        rows.append((data, noise, len(found["indm"]), *alone, apart))
    return in_table("data", "noise", "seeds", "linear", "spline", "INDM", "INDM − linear", rows=rows)


def across(final: Records, data: str, noise: str, side: str, other_noise: str, other: str) -> str:
    """A cell less another one, for a sentence."""
    d = difference(records_of(final, data, noise, side), records_of(final, data, other_noise, other))
    assert d is not None, (data, noise, side, other_noise, other)
    return f"{d.difference:+.3f} ± {d.standard_error:.3f}".replace("-", "−")


def cpu_range(final: Records, data: str) -> str:
    """CPU seconds of all cells of a data set, over those of linear diffusion under uniform noise."""
    cells = {
        cell: np.mean([record["cpu_seconds"] for record in records])
        for cell in itertools.product(DEQUANTIZATIONS[:2], SIDES)
        if (records := records_of(final, data, *cell))
    }
    ratios = [value / cells["uniform", "linear"] for value in cells.values()]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def seconds(records: list[dict]) -> str:
    """Of the processor; nothing where records are of before these were kept."""
    known = [record["cpu_seconds"] for record in records if "cpu_seconds" in record]
    return f"{np.mean(known):.0f}" if known else ""


def family_table(final: Records, names: Sequence[str]) -> str:
    """The differences that get a verdict, adjusted as one family: by all seeds, and by those that were planned."""
    found = []
    for data, noise, a, b in FAMILY:
        sides = [records_of(final, data, noise, side) if data in names else [] for side in (a, b)]
        found.append((difference(*sides), difference(*(records[: PLANNED[data]] for records in sides))))
    analyses = [judged([d or UNMADE for d in each]) for each in zip(*found, strict=True)]
    rows = []
    for (data, noise, a, b), pair, *verdicts in zip(FAMILY, found, *analyses, strict=True):
        if pair[0]:
            cells = ((d.seeds, signed(d), v["p_holm"], v["verdict"]) for d, v in zip(pair, verdicts, strict=True) if d)
            shown = ((seeds, bits, f"{p:.2g}", verdict) for seeds, bits, p, verdict in cells)
            rows.append((data, noise, f"{TITLES[a]} − {TITLES[b]}", *itertools.chain(*shown)))
    missing = f"\n\n{len(FAMILY) - len(rows)} of {len(FAMILY)} are not made yet." if len(rows) < len(FAMILY) else ""
    columns = ("data", "noise", "difference", "seeds", "bits/dim", "Holm's p", "verdict")
    return in_table(*columns, "planned seeds", *columns[4:], rows=rows) + missing


def flags_table(flags: Records) -> str:
    """Flags of countries, which no model has seen: bound, and less linear diffusion and the spline, ± over flags."""
    found = {row["side"]: [row] for row in flags.rows()}
    rows = []
    for side in (side for side in SIDES if side in found):
        mean, error = found[side][0]["nelbo"]
        others = (found[other] if side != other else [] for other in ("linear", "elementwise"))
        rows.append((TITLES[side], f"{mean:.3f} ± {error:.3f}", *(signed(difference(found[side], o)) for o in others)))
    return in_table("model", "NELBO, bits/dim", "− linear", "− spline", rows=rows)


def emoji_64_table(found: Records) -> str:
    rows = [
        (
            row["side"], "{:.3f} ± {:.3f}".format(*row["nelbo"]),
            "{:+.3f} ± {:.3f}".format(*row["minus_linear"]) if "minus_linear" in row else "", row["steps"],
        )
        for row in found.rows()
    ]  # fmt: skip
    return in_table("model", "NELBO, bits/dim ± images", "− linear", "steps", rows=rows)


def beyond_table(beyond: Records, chosen: Records) -> str:
    """Other flows, on validation images: bits/dim above the chosen flow of the same side under the same noise."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    of_flow = {"bins=16": "elementwise", "shared=none": "elementwise", "mixed-colours": "elementwise"}
    names = list(dict.fromkeys(row["data"] for row in beyond.rows()))
    for row in beyond.rows():
        side = of_flow.get(row["flow"], "indm")
        (own,) = chosen.at(data=row["data"], noise=row["noise"], side=side).rows()
        above = min(value for value in row["valid"].values() if value is not None) - own["valid"]
        rows.setdefault((TITLES[side], row["flow"], row["noise"]), {})[row["data"]] = f"{above:+.3f}"
    lines = [(*place, *(found.get(name, "") for name in names)) for place, found in sorted(rows.items())]
    return in_table("in place of", "tried", "noise", *names, rows=lines)


def cost_table(costs: Records) -> str:
    """What a training step costs, in steps of the linear diffusion, measured beside it."""
    steps = {
        "linear": "linear recipe", "spline": "elementwise recipe",
        "INDM, flow in every step": "indm flow_update_every=1", "in every third": "indm flow_update_every=3",
    }  # fmt: skip
    found = {(row["data"], row["step"]): row for row in costs.rows()}
    rows = []
    for data, noise in itertools.product(("digits", "fashion-mnist-16", "emoji-32"), DEQUANTIZATIONS[:2]):
        of_cell = (found.get((data, f"{noise} {step}")) for step in steps.values())
        cells = (f"{row['cost']:.2f} ± {row['error']:.2f}" if row and row["error"] else "1" for row in of_cell)
        rows.append((data, noise, *cells))
    return in_table("data", "noise", *steps, rows=rows)


def gains(capacity: Records, data: str, dequantization: str, side: str) -> Capacity:
    """side − linear along capacity and budget."""
    found: dict[str, dict[tuple[int, int, int], list[dict]]] = {side: {}, "linear": {}}
    for name, by_place in found.items():
        for record in records_of(capacity, data, dequantization, name):
            by_place.setdefault((record["channels"], record["width"], record["budget"]), []).append(record)
    linear = {(channels, budget): records for (channels, _, budget), records in found["linear"].items()}
    differences = {
        (channels, width, budget): difference(records, linear.get((channels, budget), []))
        for (channels, width, budget), records in found[side].items()
    }
    return {place: d for place, d in sorted(differences.items()) if d}


def slopes(points: Capacity) -> str:
    """Least squares of the differences in log₂ of budget and width: slopes for each doubling, and where they end."""
    places = np.array(list(points))
    if len({*places[:, 0]}) < 2 or len({*places[:, 2]}) < 2:
        return ""
    logs = np.log2(places[:, [0, 2]])
    design = np.column_stack([np.ones(len(logs)), logs])
    y = np.array([d.difference for d in points.values()])
    coefficients, residual, _, _ = np.linalg.lstsq(design, y, rcond=None)
    variance = float(residual[0]) / (len(y) - 3) * np.linalg.inv(design.T @ design)
    (_, width, budget), (_, width_error, budget_error) = coefficients, np.sqrt(variance.diagonal())
    at_most = y[logs[:, 1] == logs[:, 1].max()].mean()
    end = f"; on this line it is 0 at 2^{-at_most / budget:.1f} of the largest budget" if at_most * budget < 0 else ""
    return (
        f"{budget:+.4f} ± {budget_error:.4f} for each doubling of the budget, {width:+.4f} ± {width_error:.4f} for "
        f"each doubling of the score's width{end}"
    )


def capacities(capacity: Records, names: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Capacity]]]:
    """Data, dequantization, and the gains of each side, where there are any."""
    for data, dequantization in itertools.product(names, DEQUANTIZATIONS):
        sides = {side: gains(capacity, data, dequantization, side) for side in ("elementwise", "indm")}
        if any(sides.values()):
            yield data, dequantization, sides


def by_score(points: Capacity, usual: int) -> Capacity:
    """The points at the usual width of the flow."""
    return {place: d for place, d in points.items() if place[1] == usual}


def usual_width(points: Capacity) -> int:
    """The width of the flow that most of the points have."""
    widths = [width for _, width, _ in points]
    return max(set(widths), key=widths.count)


def capacity_table(capacity: Records, names: Sequence[str]) -> str:
    """Gains by width of the score, width of the flow and budget, with their slopes."""
    rows, notes = [], []
    for data, dequantization, sides in capacities(capacity, names):
        for place in sorted({place for points in sides.values() for place in points}):
            cells = [signed(points.get(place)) for points in sides.values()]
            rows.append((data, dequantization, *place, *cells))
        for side, points in sides.items():
            if points and (words := slopes(by_score(points, usual_width(points)))):
                notes.append(f"{data}, {dequantization}, {TITLES[side]} − linear: {words}.")
    columns = ("data", "noise", "score channels", "flow width", "budget")
    table = in_table(*columns, "spline − linear", "INDM − linear", rows=rows)
    return "\n\n".join([table, *notes])


@styled
def capacity_figure(capacity: Records, names: Sequence[str], path: Path) -> None:
    """A row for each data set and dequantization: the gains along the budget, at each width of the score, and along
    the width of the flow."""
    found = list(capacities(capacity, names))
    if not found:
        return
    widths = sorted({place[0] for _, _, sides in found for points in sides.values() for place in points})
    figure = Figure(figsize=(3 * (len(widths) + 1), 3 * len(found)))
    grid = figure.subplots(len(found), len(widths) + 1, squeeze=False, sharey="row")
    for row, (data, dequantization, sides) in zip(grid, found, strict=True):
        row[0].set_ylabel(f"{data}, {dequantization}:\ndifference from linear, bits/dim")
        for axes, channels in zip(row, [*widths, None], strict=True):
            axes.axhline(0, color=DATA_COLOUR, linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
            axes.set_title(f"score of {channels} channels" if channels else "width of the flow")
            axes.set_xlabel("budget" if channels else "hidden channels")
            for side, points in sides.items():
                usual = usual_width(points) if points else 0
                if channels:
                    line = {b: d for (c, _, b), d in by_score(points, usual).items() if c == channels}
                else:
                    swept = [place for place in points if place[1] != usual]
                    line = {w: d for (c, w, b), d in points.items() if any((c, b) == (s[0], s[2]) for s in swept)}
                if line:
                    values, errors = zip(*((d.difference, d.standard_error) for d in line.values()), strict=True)
                    axes.set_xticks(list(line), labels=list(map(str, line)))
                    axes.errorbar(list(line), values, errors, marker="o", color=COLOUR[side], label=TITLES[side])
    save_figure(figure, path)
