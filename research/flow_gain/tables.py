"""Tables and the figure of the study, from its records."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from indm.evaluation.plots import save_figure
from indm.evaluation.statistics import Difference, judged, over_seeds, paired_by_examples
from indm.evaluation.style import DATA_COLOUR, colours_of, styled
from research.flow_gain.cells import DEQUANTIZATIONS, SIDES
from research.markdown import in_table
from research.records import Records

TITLES = {"linear": "linear", "elementwise": "elementwise", "indm": "INDM", "flow": "plain flow"}
# All differences that get a verdict, written down before anything was trained: data, dequantization, side − side.
FAMILY = tuple(
    (data, dequantization, "indm", other)
    for data in ("digits", "fashion-mnist-16")
    for dequantization, other in (("variational", "linear"), ("uniform", "elementwise"), ("variational", "elementwise"))
)
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
    return f"{d.difference:+.4f} ± {d.standard_error:.4f}" if d else ""


def main_table(final: Records, names: Sequence[str]) -> str:
    """Data × dequantization × side."""
    rows = []
    for data, dequantization, side in itertools.product(names, DEQUANTIZATIONS, SIDES):
        records = records_of(final, data, dequantization, side)
        if not records:
            continue
        mean, over = over_seeds([float(bits(r).mean()) for r in records])
        images = np.mean([bits(r) for r in records], axis=0)
        nll = [r["nll"][0] for r in records]
        linear = records_of(final, data, dequantization, "linear")
        rows.append((
            data, dequantization, TITLES[side],
            f"{mean:.4f} ± {'–' if math.isnan(over) else f'{over:.4f}'} ± "
            f"{images.std(ddof=1) / math.sqrt(len(images)):.4f}",
            "" if None in nll else f"{np.mean(nll):.4f}", weighted(records),
            signed(difference(records, linear)) if side != "linear" else "", len(records), records[0]["steps"],
            seconds(records),
            f"{sum(records[0]['parameters'].values()):,}", settings(records[0]),
        ))  # fmt: skip
    columns = (
        "data", "dequantization", "side", "NELBO, bits/dim ± seeds ± images", "NLL", "IW-NLL − NLL", "− linear",
        "seeds", "steps", "CPU seconds", "parameters", "chosen",
    )  # fmt: skip
    return in_table(*columns, rows=rows)


def weighted(records: list[dict]) -> str:
    """What importance weights gain over the NLL of the same images, bits/dim, of the seed that has them."""
    gains = []
    for record in (record for record in records if "iw_nats" in record):
        nats = np.array(record["iw_nats"])
        gains.append((nats - record["nll_nats"][: len(nats)]) / (record["dims"] * math.log(2)))
    return f"{np.mean(gains):+.4f} ± {np.std(gains, ddof=1) / math.sqrt(np.size(gains)):.4f}" if gains else ""


def seconds(records: list[dict]) -> str:
    """Of the processor; nothing where records are of before these were kept."""
    known = [record["cpu_seconds"] for record in records if "cpu_seconds" in record]
    return f"{np.mean(known):.0f}" if known else ""


def settings(record: dict) -> str:
    values = {key.partition(".")[2]: value for key, value in record["setting"].items()} | {"ema": record["ema"]}
    return ", ".join(f"{key} {value}" for key, value in values.items())


def family_table(final: Records, names: Sequence[str]) -> str:
    """The differences that get a verdict, adjusted as one family."""
    found = {}
    for member in FAMILY:
        data, dequantization, *sides = member
        pair = [records_of(final, data, dequantization, side) if data in names else [] for side in sides]
        found[member] = difference(*pair)
    tested = {member: d for member, d in found.items() if d}
    unmade = [Difference(0.0, 2, 1.0)] * (len(FAMILY) - len(tested))  # p = 1: the family is as large as it was planned
    verdicts = dict(zip(tested, judged([*tested.values(), *unmade]), strict=False))
    rows = []
    for (data, dequantization, a, b), d in tested.items():
        v = verdicts[data, dequantization, a, b]
        p = ["" if v[key] is None else f"{v[key]:.2g}" for key in ("p", "p_holm")]
        rows.append((data, dequantization, f"{TITLES[a]} − {TITLES[b]}", signed(d), d.seeds, *p, v["verdict"]))
    missing = f"\n\n{len(found) - len(tested)} of {len(found)} are not made yet." if len(tested) < len(found) else ""
    columns = ("data", "dequantization", "difference", "bits/dim", "seeds", "p", "Holm's p", "verdict")
    return in_table(*columns, rows=rows) + missing


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
    columns = ("data", "dequantization", "score channels", "flow width", "budget")
    table = in_table(*columns, "elementwise − linear", "INDM − linear", rows=rows)
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
