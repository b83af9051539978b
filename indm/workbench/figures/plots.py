"""Figures as PNG, in one style."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from indm.files import atomic

DPI = 120  # resolution of figures
FONT_SIZE = 10  # points
# colour-blind safe (Okabe & Ito 2008, "Color Universal Design"), with grey in place of yellow
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
DATA_COLOUR = "black"
GREY, BLUE, ORANGE, GREEN = COLOURS[6], *COLOURS[:3]
METHODS = {
    "linear diffusion": GREY,
    "INDM (spline)": BLUE,
    "INDM (coupling)": ORANGE,
    "flow alone": GREEN,
}
CHARACTER = 0.65 * FONT_SIZE / 72  # width in inches, about
Pixels = UInt8[np.ndarray, "height width 3"]
# the colour of each model in all figures of a page; others are black
Colours = Mapping[str, str]

PLOT_STYLE: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
}
"""Settings of matplotlib for all figures, also those of the tutorials."""

styled = matplotlib.rc_context(PLOT_STYLE)
"""A decorator for functions that make figures."""


def colours_of(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model, in order; they repeat after the seventh."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(models))}


def pixels_into(pixels: Pixels) -> atomic.Write:
    """The function that writes bytes as PNG."""
    return lambda path: Image.fromarray(pixels).save(path, format="PNG")


def save_pixels(pixels: Pixels, path: Path) -> None:
    """Write bytes as PNG."""
    atomic.whole(path, pixels_into(pixels))


@styled
def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, after :func:`finish`."""
    finish(figure)
    atomic.whole(path, lambda beside: figure.savefig(beside, format="png", dpi=DPI))


@styled
def rendered(figure: Figure) -> Pixels:
    """A finished figure as bytes."""
    finish(figure)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


@styled
def finish(figure: Figure) -> None:
    """Finish a figure: one legend below all panels, and long labels in several lines.

    Texts contain names of runs, so a $ in them does not begin a formula.
    """
    figure.set_layout_engine("constrained")
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        width, height = axes.bbox.width / figure.dpi, axes.bbox.height / figure.dpi
        rooms = ((axes.title, width), (axes.xaxis.label, width), (axes.yaxis.label, height))
        for text, inches in rooms:
            room = 0.9 * inches * FONT_SIZE / float(text.get_fontsize())
            text.set_text(in_lines(text.get_text(), room))
    if entries:
        names = [in_lines(name, 0.85 * figure.bbox.width / figure.dpi) for name in entries]
        longest = max(len(line) + 6 for name in names for line in name.split("\n"))
        columns = max(1, int(figure.bbox.width / figure.dpi / (longest * CHARACTER)))
        legend = figure.legend(entries.values(), names, loc="outside lower center", ncols=columns)
        for handle in cast(Any, legend.legend_handles):
            handle.set_alpha(1)
    for text in figure.findobj(Text):
        text.set_parse_math("$" not in text.get_text())


def in_lines(text: str, inches: float) -> str:
    """``text`` in lines of at most about so many inches."""
    width = max(1, int(inches / CHARACTER))
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


@styled
def scatter(samples: Tensor, reference: Tensor | None, path: Path) -> None:
    """Write a picture of samples (N, 2 or more), with ``reference`` data if there are any."""
    panels = {"samples": samples} if reference is None else {"data": reference, "samples": samples}
    figure = Figure(figsize=(4 * len(panels), 4))
    drawn = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, points) in zip(drawn, panels.items(), strict=True):
        dots(axes, points, title, DATA_COLOUR if title == "data" else COLOURS[0])
    if reference is not None:
        low, high = (torch.quantile(reference[:, :2], q, dim=0) for q in (0.001, 0.999))
        margin = 0.1 * (high - low)
        x0, y0 = (low - margin).tolist()
        x1, y1 = (high + margin).tolist()
        drawn[-1].set(xlim=(x0, x1), ylim=(y0, y1))
    save_figure(figure, path)


def dots(axes: Axes, points: Tensor, title: str, colour: str = COLOURS[0]) -> None:
    """Draw the first two entries of points (N, 2 or more)."""
    axes.plot(*points[:, :2].numpy().T, ".", markersize=2, alpha=0.5, color=colour)
    axes.set(title=title, aspect="equal", xlabel="x₁", ylabel="x₂")
