"""Figures in one style, as PNG: lines, samples beside densities, the plane as a diffusion sees it.

Fonts, a colour for each model, one legend, and labels in lines.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from indm.files import atomic
from indm.workbench.data.densities import Density
from indm.workbench.evaluation.page import View, short

DPI = 120  # of figures
FONT_SIZE = 10  # points
# Seven that people with any kind of colour vision tell apart, of Okabe & Ito 2008, "Color Universal Design", with grey
# instead of yellow, which is too pale for lines. Black is for the data.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
DATA_COLOUR = "black"
CHARACTER = 0.65 * FONT_SIZE / 72  # inches, about
Pixels = UInt8[np.ndarray, "height width 3"]
Colours = Mapping[str, str]  # by model, the same in all figures of a page; what has none is black
Limits = tuple[tuple[float, float], tuple[float, float]] | None  # of both axes

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


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def save_pixels(pixels: Pixels, path: Path) -> None:
    """Write bytes as PNG."""
    atomic.whole(path, pixels_into(pixels))


def pixels_into(pixels: Pixels) -> atomic.Write:
    """What writes bytes as PNG."""
    return lambda path: Image.fromarray(pixels).save(path, format="PNG")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    atomic.whole(path, figure_into(figure))


def figure_into(figure: Figure) -> atomic.Write:
    """What writes ``figure`` as PNG, after :func:`finish`."""
    finish(figure)
    return styled(lambda path: figure.savefig(path, format="png", dpi=DPI))


@styled
def pixels_of(figure: Figure) -> Pixels:
    """A finished figure as bytes."""
    finish(figure)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


# ── Style ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def say_empty(axes: Axes, why: str) -> None:
    """Write in a panel why there is nothing in it."""
    axes.text(0.5, 0.5, textwrap.fill(why, 32), ha="center", va="center", transform=axes.transAxes, color="0.35")
    axes.set(xticks=[], yticks=[])


@styled
def finish(figure: Figure) -> None:
    """Finish a figure that is drawn: one legend for all panels below them, long labels in several lines.

    Names of runs are in the texts, and what is between two $ in them is not a formula.
    """
    figure.set_layout_engine("constrained")
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        width, height = axes.bbox.width / figure.dpi, axes.bbox.height / figure.dpi
        for text, inches in ((axes.title, width), (axes.xaxis.label, width), (axes.yaxis.label, height)):
            text.set_text(in_lines(text.get_text(), 0.9 * inches * FONT_SIZE / float(text.get_fontsize())))
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
    """``text`` in lines of so many inches, about, at most."""
    return "\n".join(textwrap.fill(line, max(1, int(inches / CHARACTER))) for line in text.split("\n"))


# ── Panels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@styled
def lines_figure(views: Sequence[View], columns: int, size: tuple[float, float] = (5.0, 4.2)) -> Figure:
    """A panel of that ``size`` for each view, ``columns`` in a row, those of a row with one range of y."""
    rows = -(-len(views) // columns)
    figure = Figure(figsize=(max(6.0, columns * size[0]), rows * size[1]))
    panels = figure.subplots(rows, columns, sharey="row", squeeze=False).flat
    for i, (axes, view) in enumerate(zip(panels, views, strict=True)):
        draw_lines(axes, view)
        if i % columns:
            axes.set_ylabel("")
    return figure


def draw_lines(axes: Axes, view: View) -> None:
    """The lines of a view with their errors; references dashed; on logarithmic axes a tick at each x."""
    for line in view.lines:
        x, y, error = zip(*line.points, strict=True) if line.points else ((), (), ())
        if line.reference:
            axes.plot(x, y, "--", color=DATA_COLOUR, linewidth=0.8, label=line.name)
        elif any(error):
            axes.errorbar(x, y, error, fmt=".-", color=line.colour or DATA_COLOUR, label=line.name)
        else:
            axes.plot(x, y, ".-", color=line.colour or DATA_COLOUR, label=line.name)
    axes.set(xlabel=view.x, ylabel=view.y, title="" if view.name == view.x else view.name)
    places = sorted({x for line in view.lines for x, *_ in line.points})
    if not places:
        say_empty(axes, "no validation was logged in training")
    elif view.log:
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(places, labels=[f"{x:g}" for x in places])
        axes.xaxis.minorticks_off()
    else:
        axes.locator_params(axis="x", integer=all(isinstance(x, int) for x in places))


@styled
def scatter(samples: Tensor, reference: Tensor | None, density: Density | None, path: Path) -> None:
    """Samples (N, 2 or more) beside the density, or beside ``reference`` data; alone where there are none."""
    if reference is None:
        figure = Figure(figsize=(4, 4))
        dots(figure.subplots(), samples, "samples")
        return save_figure(figure, path)
    figure = Figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    low, high = (torch.quantile(reference[:, :2], q, dim=0) for q in (0.001, 0.999))
    (x0, y0), (x1, y1) = (low - 0.1 * (high - low)).tolist(), (high + 0.1 * (high - low)).tolist()
    if density is not None:
        background(left, density, (x0, x1, y0, y1))
    else:
        dots(left, reference, "data", DATA_COLOUR)
    dots(right, samples, "samples")
    right.set(xlim=(x0, x1), ylim=(y0, y1))
    save_figure(figure, path)


@styled
def points_by_class(
    columns: Mapping[str, Sequence[Tensor]], labels: Sequence[str], colours: Colours, limits: Limits
) -> Figure:
    """The first two entries of points (N, 2 or more), a row for each class, a column for each title."""
    figure = Figure(figsize=(3.4 * len(columns), 3.2 * len(labels)))
    panels = figure.subplots(len(labels), len(columns), sharex=True, sharey=True, squeeze=False)
    for column, (name, of_classes) in zip(panels.T, columns.items(), strict=True):
        for axes, label, points in zip(column, labels, of_classes, strict=True):
            dots(axes, points, f"{name}, {label}", colours.get(name, DATA_COLOUR), limits)
            axes.label_outer()
    return figure


def background(axes: Axes, density: Density, extent: tuple[float, float, float, float], scaling=None) -> None:
    """A density of the plane as colours; ``extent`` in units of ``scaling`` where there is one."""
    x0, x1, y0, y1 = extent
    grid = torch.cartesian_prod(torch.linspace(x0, x1, 300), torch.linspace(y0, y1, 300))
    values = density.log_prob(grid if scaling is None else scaling.to_data(grid)).exp().reshape(300, 300).T
    axes.imshow(values.numpy(), origin="lower", extent=extent, cmap="viridis")
    axes.set(title="density", xlabel="x₁", ylabel="x₂")


def dots(axes: Axes, points: Tensor, title: str, colour: str = COLOURS[0], limits: Limits = None) -> None:
    """The first two entries of points (N, 2 or more)."""
    axes.plot(*points[:, :2].numpy().T, ".", markersize=2, alpha=0.5, color=colour)
    axes.set(title=title, aspect="equal", xlabel="x₁", ylabel="x₂")
    axes.set(**({} if limits is None else {"xlim": limits[0], "ylim": limits[1]}))


def arrows(
    axes: Axes, points: Float[Tensor, "n 2"], vectors: Float[Tensor, "n 2"], title: str, colour: str = DATA_COLOUR
) -> None:
    """A vector field at points of the plane, arrows scaled to the largest."""
    axes.quiver(*points.T.numpy(), *vectors.T.numpy(), angles="xy", width=0.004, color=colour)
    axes.set(title=f"{title}, largest {short(vectors.norm(dim=1).max().item())}", aspect="equal")


def ellipses(
    axes: Axes, points: Float[Tensor, "n 2"], matrices: Float[Tensor, "n 2 2"], title: str, colour: str = DATA_COLOUR
) -> None:
    """The images of the unit circle under ``matrices`` at ``points``, scaled so that the largest just fit."""
    angle = torch.linspace(0, 2 * math.pi, 40)
    circle = torch.stack([angle.cos(), angle.sin()])
    largest = torch.linalg.matrix_norm(matrices, 2).max()
    scale = (points[1:] - points[:-1]).norm(dim=1).min() / (2 * largest)
    for point, outline in zip(points, scale * matrices @ circle, strict=True):
        axes.plot(*(point[:, None] + outline).numpy(), color=colour, linewidth=0.8)
    axes.set(title=f"{title}, largest {short(largest.item())}", aspect="equal")


@styled
def reliability_diagram(counts: Tensor, confidence: Tensor, accuracy: Tensor) -> Figure:
    """Accuracy over confidence in bins, with standard errors and counts; a calibrated classifier is on the diagonal.

    The arguments are those of :func:`indm.workbench.evaluation.classification.reliability`.
    """
    shown = counts > 0
    counts, confidence, accuracy = counts[shown], confidence[shown], accuracy[shown]
    figure = Figure(figsize=(4.5, 4.2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    error = (accuracy * (1 - accuracy) / counts).sqrt()
    axes.errorbar(confidence, accuracy, yerr=error, color=COLOURS[0], marker="o", label="the model")
    for x, y, count in zip(confidence.tolist(), accuracy.tolist(), counts.tolist(), strict=True):
        axes.annotate(f"{count:.0f}", (x, y), xytext=(4, -10), textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right", xlim=(0, 1.05), ylim=(0, 1.05))
    return figure
