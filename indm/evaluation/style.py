"""How every figure looks: fonts, a colour for each model, ticks, one legend, and labels that are never cut."""

import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

DPI = 120  # of figures
FONT_SIZE = 10  # points
# Seven that people with any kind of colour vision tell apart, of Okabe & Ito 2008, "Color Universal Design", with grey
# in the place of yellow, which is too pale for lines. Black is for the data.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
DATA_COLOUR = "black"
LEAST = 50  # pixels that a label may take, in panels however small
WIDE_DECADES = 2.5  # from which on powers of ten alone are labelled

styled = matplotlib.rc_context(
    {
        "font.size": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.markersize": 5,
        "errorbar.capsize": 2,
    }
)
"""Decorates whatever makes figures."""


def colours_of(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, by their order; those after the seventh repeat."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(models))}


def say_empty(axes: Axes, why: str) -> None:
    """Write in a panel why there is nothing in it."""
    axes.text(0.5, 0.5, textwrap.fill(why, 32), ha="center", va="center", transform=axes.transAxes, color="0.35")
    axes.set(xticks=[], yticks=[])


@styled
def finish(figure: Figure) -> None:
    """The last touch before a figure is drawn: ticks of logarithmic axes, the legend below, labels in lines that fit.

    Names of runs are in the texts, and what is between two $ in them is no formula.
    """
    layout = ConstrainedLayoutEngine()
    figure.set_layout_engine(layout)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
                _label_log_ticks(axis)
    for text in figure.findobj(Text):
        text.set_parse_math("$" not in text.get_text())
    _add_legend(figure)
    broken = True
    while broken:  # a label of more lines leaves less room to the others
        layout.execute(figure)
        broken = any([_wrap_labels(axes) for axes in figure.axes])


def _wrap_labels(axes: Axes) -> bool:
    """Break title and labels into lines that fit; whether one had to be."""
    box = axes.get_window_extent()
    across = [_wrap(text, max(box.width, LEAST)) for text in (axes.title, axes.xaxis.label)]
    return _wrap(axes.yaxis.label, max(box.height, LEAST), vertical=True) or any(across)


def _label_log_ticks(axis: Axis) -> None:
    """At least two labels, as plain numbers, however short the axis is."""
    low, high = axis.get_view_interval()
    if math.log10(high / low) > WIDE_DECADES:
        return
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _add_legend(figure: Figure) -> None:
    """One legend for all panels, below them, in as many columns as fit."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
        for handle, text in zip(cast(Any, legend.legend_handles), legend.get_texts(), strict=True):
            handle.set_alpha(1)
            text.set_parse_math(False)
        width = legend.get_window_extent().width
        if width <= figure.bbox.width:
            return
        if columns > 1:
            legend.remove()
        else:
            for text in legend.get_texts():
                _wrap(text, 0.85 * figure.bbox.width)


def _wrap(text: Text, room: float, vertical: bool = False) -> bool:
    """Break a text into lines no longer than ``room`` pixels; whether it had to be."""
    before = text.get_text()

    def length(lines: str) -> float:
        text.set_text(lines)
        box = text.get_window_extent()
        return box.height if vertical else box.width

    text.set_text(in_lines(before, room, length))
    return text.get_text() != before


def in_lines(text: str, room: float, length: Callable[[str], float]) -> str:
    """Text broken into lines no longer than ``room`` by ``length``, within words where need be."""
    width, broken = max(map(len, text.split("\n"))), text
    while width > 1 and (excess := length(broken) / room) > 1:
        width = max(1, min(width - 1, math.floor(width / excess)))
        broken = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    return broken


@styled
def pixels_of(figure: Figure) -> np.ndarray:
    """A finished figure as (height, width, 3) bytes."""
    finish(figure)
    return rendered(figure)


def rendered(figure: Figure) -> np.ndarray:
    """A figure as it is, as (height, width, 3) bytes."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def stacked(*pictures: np.ndarray) -> np.ndarray:
    """Pictures (height, width, 3) below one another, in the middle of white paper."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        left = (width - picture.shape[1]) // 2
        sides = (left, width - picture.shape[1] - left)
        rows.append(np.pad(picture, ((0, 0), sides, (0, 0)), constant_values=255))
    return np.concatenate(rows)
