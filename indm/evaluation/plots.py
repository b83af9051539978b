"""Pictures as PNG: grids of images, densities beside samples, the plane as a diffusion sees it, learning curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from indm.data.densities import Density
from indm.evaluation import sheets, style
from indm.evaluation.style import DATA_COLOUR, say_empty, styled
from indm.files import atomic

SIDE = 5  # images along a side of a panel of samples
IN_ROW = 16  # images of a class
IN_GRID = 256  # images of a grid, at most
AXES = {"step": "optimizer step", "seconds": "training time (s)", "spent": "optimizer steps × cost of a step"}


def save_grid(images: Tensor, levels: int, path: Path, columns: int | None = None) -> None:
    """Write the first :data:`IN_GRID` images (N, C, H, W) in grey levels as a grid, small ones enlarged by a whole
    number."""
    save_pixels(sheets.grid(images[:IN_GRID], levels, columns), path)


def save_classes(images: Tensor, levels: int, labels: Sequence[str], path: Path) -> None:
    """Write images (N, C, H, W) of the classes ``labels``, as many of each, one class after the other, a row a class.

    At most :data:`IN_ROW` of each are shown.
    """
    each = len(images) // len(labels)
    shown = images.unflatten(0, (len(labels), each))[:, :IN_ROW]
    panel = sheets.Panel(shown.flatten(0, 1), columns=shown.shape[1], rows=labels)
    save_pixels(sheets.sheet([panel], levels), path)


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write bytes (height, width, 3) as PNG."""
    atomic.whole(path, pixels_into(pixels))


def pixels_into(pixels: np.ndarray) -> atomic.Write:
    """What writes bytes (height, width, 3) as PNG."""
    return lambda path: Image.fromarray(pixels).save(path, format="PNG")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    atomic.whole(path, figure_into(figure))


def figure_into(figure: Figure) -> atomic.Write:
    """What writes ``figure`` as PNG, after the last touch of :func:`indm.evaluation.style.finish`."""
    style.finish(figure)
    return styled(lambda path: figure.savefig(path, format="png", dpi=style.DPI))


@styled
def picture_of(figure: Figure) -> Image.Image:
    """A figure as a picture in memory, for a page that shows many."""
    style.finish(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=style.DPI)
    return Image.open(buffer)


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
def samples_picture(
    panels: Mapping[str, Tensor | str],
    levels: int,
    colours: Mapping[str, str],
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> np.ndarray:
    """Samples side by side, as (height, width, 3) bytes: images, or points of which the first two entries are shown.

    Args:
        panels: by title, samples (N, C, H, W) in grey levels or (N, D), or words that say why there are none.
        levels: number of grey levels.
        colours: of points, by title; black where there is none.
        limits: of both axes, for points.
    """
    if any(isinstance(samples, Tensor) and samples.ndim == 4 for samples in panels.values()):
        shown = {name: s if isinstance(s, str) else s[: SIDE**2] for name, s in panels.items()}
        return sheets.sheet([sheets.Panel(images, SIDE, name) for name, images in shown.items()], levels)
    columns = min(len(panels), 3)
    figure = Figure(figsize=(3.4 * columns, 3.6 * -(-len(panels) // columns)))
    drawn = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axes, (name, samples) in zip(drawn, panels.items(), strict=False):
        if isinstance(samples, Tensor) and samples.shape[1] > 1:
            dots(axes, samples, name, colours.get(name, DATA_COLOUR))
            axes.set(**({} if limits is None else {"xlim": limits[0], "ylim": limits[1]}))
        else:
            axes.set_title(name)
            say_empty(axes, samples if isinstance(samples, str) else "single numbers: no picture of points")
    for axes in drawn[len(panels) :]:
        axes.remove()
    return style.pixels_of(figure)


@styled
def points_by_class(
    columns: Mapping[str, Sequence[Tensor]],
    labels: Sequence[str],
    colours: Mapping[str, str],
    limits: tuple[tuple[float, float], tuple[float, float]] | None,
) -> Figure:
    """The first two entries of points, a row for each class.

    Args:
        columns: by title, points (N, 2 or more) of each class.
        labels: of the classes.
        colours: of points, by title; black where there is none.
        limits: of both axes.
    """
    figure = Figure(figsize=(3.4 * len(columns), 3.2 * len(labels)))
    panels = figure.subplots(len(labels), len(columns), sharex=True, sharey=True, squeeze=False)
    for column, (name, of_classes) in zip(panels.T, columns.items(), strict=True):
        for axes, label, points in zip(column, labels, of_classes, strict=True):
            dots(axes, points, f"{name}, {label}", colours.get(name, DATA_COLOUR))
            axes.set(**({} if limits is None else {"xlim": limits[0], "ylim": limits[1]}))
            axes.label_outer()
    return figure


def background(axes: Axes, density: Density, extent: tuple[float, float, float, float], scaling=None) -> None:
    """A density of the plane as colours; ``extent`` in units of ``scaling`` where that is given."""
    x0, x1, y0, y1 = extent
    grid = torch.cartesian_prod(torch.linspace(x0, x1, 300), torch.linspace(y0, y1, 300))
    values = density.log_prob(grid if scaling is None else scaling.to_data(grid)).exp().reshape(300, 300).T
    axes.imshow(values.numpy(), origin="lower", extent=extent, cmap="viridis")
    axes.set(title="density", xlabel="x₁", ylabel="x₂")


def dots(axes: Axes, points: Tensor, title: str, colour: str = style.COLOURS[0]) -> None:
    """The first two entries of points (N, 2 or more)."""
    axes.plot(*points[:, :2].numpy().T, ".", markersize=2, alpha=0.5, color=colour)
    axes.set(title=title, aspect="equal", xlabel="x₁", ylabel="x₂")


def arrows(axes: Axes, points: Tensor, vectors: Tensor, title: str, colour: str = DATA_COLOUR) -> None:
    """A vector field at points of the plane, arrows scaled to the largest."""
    axes.quiver(*points.T.numpy(), *vectors.T.numpy(), angles="xy", width=0.004, color=colour)
    axes.set(title=f"{title}, largest {_short(vectors.norm(dim=1).max().item())}", aspect="equal")


def ellipses(axes: Axes, points: Tensor, matrices: Tensor, title: str, colour: str = DATA_COLOUR) -> None:
    """The images of the unit circle under 2×2 ``matrices`` at ``points``, scaled so that the largest just fit."""
    angle = torch.linspace(0, 2 * math.pi, 40)
    circle = torch.stack([angle.cos(), angle.sin()])
    scale = (points[1:] - points[:-1]).norm(dim=1).min() / (2 * torch.linalg.matrix_norm(matrices, 2).max())
    for point, outline in zip(points, scale * matrices @ circle, strict=True):
        axes.plot(*(point[:, None] + outline).numpy(), color=colour, linewidth=0.8)
    axes.set(title=f"{title}, largest {_short(torch.linalg.matrix_norm(matrices, 2).max().item())}", aspect="equal")


def _short(value: float) -> str:
    """Two digits that count, and no exponent before a million: 130, not 1.3e+02."""
    return f"{float(f'{value:.2g}'):g}"


def learning_curves(
    axes: Axes, groups: Mapping[str, Sequence[list[dict]]], against: str, unit: str, colours: Mapping[str, str]
) -> None:
    """Validation NELBO ``against`` a key of :data:`AXES`: a curve (lines of metrics) for each run of a group."""
    for name, curves in groups.items():
        label = name if any(curves) else f"{name} (nothing was validated)"
        for i, lines in enumerate(curves):
            points = [m[against] for m in lines], [m["valid_nelbo"] for m in lines]
            axes.plot(*points, ".-", color=colours[name], label=None if i else label)
    axes.set(xlabel=AXES[against], ylabel=f"validation NELBO ({unit})")
    axes.locator_params(axis="x", integer=against == "step")
    if not any(lines for curves in groups.values() for lines in curves):
        say_empty(axes, "no validation was logged in training")


@styled
def reliability_diagram(counts: Tensor, confidence: Tensor, accuracy: Tensor) -> Figure:
    """Accuracy over confidence in bins, with standard errors and counts; a calibrated classifier is on the diagonal.

    The arguments are those of :func:`indm.evaluation.classification.reliability`.
    """
    shown = counts > 0
    counts, confidence, accuracy = counts[shown], confidence[shown], accuracy[shown]
    figure = Figure(figsize=(4.5, 4.2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    error = (accuracy * (1 - accuracy) / counts).sqrt()
    axes.errorbar(confidence, accuracy, yerr=error, color=style.COLOURS[0], marker="o", label="the model")
    for x, y, count in zip(confidence.tolist(), accuracy.tolist(), counts.tolist(), strict=True):
        axes.annotate(f"{count:.0f}", (x, y), xytext=(4, -10), textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right", xlim=(0, 1.05), ylim=(0, 1.05))
    style.finish(figure)
    return figure
