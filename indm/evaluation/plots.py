"""Pictures as PNG: grids of images, strips along a path, densities beside samples, the plane as a diffusion sees it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from indm.data.densities import Density
from indm.files import atomic

DPI = 120  # of figures


def tile(images: Tensor, levels: int, columns: int | None = None) -> np.ndarray:
    """A grid of images (N, C, H, W) in grey levels as (height, width, 3) in [0, 1]; channels by mean if not 1 or 3."""
    pixels = images.float() / (levels - 1)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(1, keepdim=True)
    columns = columns or math.ceil(math.sqrt(len(images)))
    return make_grid(pixels, nrow=columns, padding=1, pad_value=0.5).permute(1, 2, 0).clamp(0, 1).numpy()


def save_grid(images: Tensor, levels: int, path: Path, columns: int | None = None) -> None:
    """Write a grid of images as PNG, small ones enlarged to whole multiples."""
    grid = tile(images, levels, columns)
    factor = max(1, 640 // max(grid.shape[:2]))
    pixels = (grid.repeat(factor, 0).repeat(factor, 1) * 255).round().astype(np.uint8)
    atomic.whole(path, lambda beside: Image.fromarray(pixels).save(beside, format="PNG"))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    atomic.whole(path, figure_into(figure))


def figure_into(figure: Figure) -> atomic.Write:
    """What writes ``figure`` as PNG. Names of runs are in it, and what is between two $ in them is no formula."""
    for text in figure.findobj(Text):
        if "$" in text.get_text():
            text.set_parse_math(False)
    return lambda path: figure.savefig(path, format="png", dpi=DPI)


def scatter(samples: Tensor, reference: Tensor | None, density: Density | None, path: Path) -> None:
    """Samples (N, 2 or more) beside the density, or beside ``reference`` data; alone where there are none."""
    if reference is None:
        figure = Figure(figsize=(4, 4), layout="constrained")
        dots(figure.subplots(), samples, "samples")
        return save_figure(figure, path)
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    low, high = (torch.quantile(reference[:, :2], q, dim=0) for q in (0.001, 0.999))
    (x0, y0), (x1, y1) = (low - 0.1 * (high - low)).tolist(), (high + 0.1 * (high - low)).tolist()
    if density is not None:
        background(left, density, (x0, x1, y0, y1))
    else:
        dots(left, reference, "data")
    dots(right, samples, "samples")
    right.set(xlim=(x0, x1), ylim=(y0, y1))
    save_figure(figure, path)


def background(axes: Axes, density: Density, extent: tuple[float, float, float, float], scaling=None) -> None:
    """A density of the plane as colours; ``extent`` in units of ``scaling`` where that is given."""
    x0, x1, y0, y1 = extent
    grid = torch.cartesian_prod(torch.linspace(x0, x1, 300), torch.linspace(y0, y1, 300))
    values = density.log_prob(grid if scaling is None else scaling.to_data(grid)).exp().reshape(300, 300).T
    axes.imshow(values.numpy(), origin="lower", extent=extent, cmap="viridis")
    axes.set_title("density")


def dots(axes: Axes, points: Tensor, title: str) -> None:
    axes.plot(*points[:, :2].numpy().T, ".", markersize=2, alpha=0.5)
    axes.set(title=title, aspect="equal")


def arrows(axes: Axes, points: Tensor, vectors: Tensor, title: str) -> None:
    """A vector field at points of the plane, arrows scaled to the largest."""
    axes.quiver(*points.T.numpy(), *vectors.T.numpy(), angles="xy", width=0.004)
    axes.set(title=f"{title}, largest {vectors.norm(dim=1).max():.2g}", aspect="equal")


def ellipses(axes: Axes, points: Tensor, matrices: Tensor, title: str) -> None:
    """The images of the unit circle under 2×2 ``matrices`` at ``points``, scaled so that the largest just fit."""
    angle = torch.linspace(0, 2 * math.pi, 40)
    circle = torch.stack([angle.cos(), angle.sin()])
    scale = (points[1:] - points[:-1]).norm(dim=1).min() / (2 * torch.linalg.matrix_norm(matrices, 2).max())
    for point, outline in zip(points, scale * matrices @ circle, strict=True):
        axes.plot(*(point[:, None] + outline).numpy(), color="C0", linewidth=0.8)
    axes.set(title=f"{title}, largest {torch.linalg.matrix_norm(matrices, 2).max():.2g}", aspect="equal")


def learning_curves(axes: Axes, groups: Mapping[str, Sequence[list[dict]]], against: str, unit: str) -> None:
    """Validation NELBO ``against`` "step" or "seconds"; a colour for each group of curves (lines of metrics)."""
    for number, (label, curves) in enumerate(groups.items()):
        for i, lines in enumerate(curves):
            points = [m[against] for m in lines], [m["valid_nelbo"] for m in lines]
            axes.plot(*points, ".-", color=f"C{number}", label=None if i else label)
    axes.set(xlabel=against, ylabel=f"validation NELBO ({unit})")
    axes.legend()
