"""The curves of a report as its page draws them, see :meth:`indm.evaluation.page.Page.chart`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from indm.evaluation import plots
from indm.evaluation.style import DATA_COLOUR
from indm.report.figures import DISTANCES, by_sampler, kinds_of, line_of, quality_of
from indm.report.records import Record, by_group

View = dict[str, Any]
Colours = Mapping[str, str]
EVALUATIONS = "evaluations of the network"


def view_of(name: str, x: str, y: str, lines: list[dict], log: bool = False) -> View:
    return {"name": name, "x": x, "y": y, "log": log, "lines": lines}


def line(name: str, points: Sequence[tuple[float, float, float]], colours: Colours, reference: bool = False) -> dict:
    colour = colours.get(name, DATA_COLOUR)
    drawn = {"name": name, "colour": None if colour == DATA_COLOUR else colour, "reference": reference}
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    return drawn | {"points": [[x, y, error if math.isfinite(error) else 0.0] for x, y, error in finite]}


def curves(records: Sequence[Record], colours: Colours) -> list[View]:
    """Validation NELBO of each run, over steps and over seconds."""
    views = []
    for against in ("step", "seconds"):
        lines = [
            line(record.group, [(row[against], row["valid_nelbo"], 0.0) for row in record.curve], colours)
            for group in by_group(records).values()
            for record in group
        ]
        views.append(view_of(plots.AXES[against], plots.AXES[against], f"validation NELBO ({records[0].unit})", lines))
    return views


def gap(records: Sequence[Record], colours: Colours) -> list[View]:
    """NELBO − NLL over steps."""
    lines = [
        line(r.group, [(row["step"], row["gap"], row["standard_error"]) for row in r.measurements["gap"]], colours)
        for r in records
    ]
    return [view_of("gap", plots.AXES["step"], f"NELBO − NLL of the ODE ({records[0].unit})", lines)]


def quality(groups: Sequence[Sequence[Record]], colours: Colours) -> list[View]:
    """Distances to the test data over evaluations, a view for each distance and sampler."""
    first, views = groups[0][0].measurements["quality"], []
    for key in kinds_of(first):
        for sampler, measured in by_sampler(quality_of(groups)).items():
            lines = [line(name, line_of(seeds, sampler, key), colours) for name, seeds in measured.items()]
            ends = [row["nfe"] for seeds in measured.values() for row in seeds[0] if row["sampler"] == sampler]
            floor = [(x, first[0][key], 0.0) for x in (min(ends), max(ends))]
            lines.append(line("training data", floor, {}, reference=True))
            views.append(
                view_of(f"{DISTANCES[key]}, {sampler}", EVALUATIONS, f"{DISTANCES[key]} to test data", lines, True)
            )
    return views
