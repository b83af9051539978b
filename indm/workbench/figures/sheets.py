"""Sheets of images, all enlarged by one whole number so that pixels show, with words at the edges."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Num
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from indm.workbench.figures import plots
from indm.workbench.figures.plots import DATA_COLOUR, Colours, Pixels

SMALLEST = 64  # least pixels of an image's shorter side
WIDTH = 1100  # pixels of a sheet, about
PAD, GREY = 6, 0.6  # width in pixels and brightness of the lines between images
FEWEST_IN_ROW = 8  # least number of images side by side in a sheet of many
GAP = 12  # pixels around a panel
SIDE = 5  # images along a side of a panel of samples
MOST_OF_CLASS = 16  # most images of a class
IN_GRID = 256  # most images of a grid
FONT = ImageFont.truetype(
    Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"),
    round(plots.FONT_SIZE * plots.DPI / 72),
)
LINE = round(1.5 * FONT.size)  # pixels of a line of text


@dataclass(frozen=True)
class Panel:
    """A grid of images with words at its edges."""

    # (N, C, H, W) in grey levels, row by row; or why there are none
    images: Tensor | str
    columns: int
    title: str = ""  # above the grid
    rows: Sequence[str] = ()  # a word on the left of each row
    tops: Sequence[str] = ()  # a word above each column


def strip(frames: Num[Tensor, "n c h w"], times: Iterable[float], title: str = "") -> Panel:
    """The frames of a path in grey levels, with their times above them."""
    first, *others = (f"{t:.2g}" for t in times)
    return Panel(frames, len(frames), title, tops=[f"t = {first}", *others])


def enlargement(shape: torch.Size, room: int = 0) -> int:
    """The factor that enlarges images (…, H, W) to :data:`SMALLEST` pixels and a width of ``room``."""
    height, width = shape[-2:]
    return max(1, math.ceil(SMALLEST / min(height, width)), math.ceil(room / width))


def grid(
    images: Tensor, levels: int, columns: int | None = None, factor: int | None = None
) -> Pixels:
    """A grid of images (N, C, H, W) in grey levels as bytes, with grey lines between them.

    Channels are averaged if they are not 1 or 3. By default there are as many columns as rows, and
    images are enlarged by the ``factor`` of :func:`enlargement`.
    """
    pixels = images.float() / (levels - 1)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(1, keepdim=True)
    factor = factor or enlargement(images.shape)
    pixels = pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    lined = make_grid(pixels, nrow=columns, padding=PAD, pad_value=GREY)
    return (lined.permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)


def sheet(panels: Sequence[Panel], levels: int, across: int | None = None) -> Pixels:
    """Panels of images of one size as bytes, on white paper.

    At least one has images. By default as many are ``across`` as fit into :data:`WIDTH`.
    """
    tops = [word for panel in panels for word in panel.tops]
    words = [word for panel in panels for word in panel.rows]
    room = max((math.ceil(FONT.getlength(word)) + 4 for word in tops), default=0)
    left = max((math.ceil(FONT.getlength(word)) + GAP for word in words), default=0)
    factor = next(enlargement(p.images.shape, room) for p in panels if isinstance(p.images, Tensor))
    grids = [
        None if isinstance(panel.images, str) else grid(panel.images, levels, panel.columns, factor)
        for panel in panels
    ]
    largest = max(pixels.shape[:2] for pixels in grids if pixels is not None)
    pitch = GAP + left + largest[1]
    across = across or max(1, min(len(panels), WIDTH // pitch))
    paper = np.full((GAP, across * pitch + GAP, 3), 255, np.uint8)
    bands = [slice(first, first + across) for first in range(0, len(panels), across)]
    drawn = [_band(panels[b], grids[b], left, largest, paper.shape[1]) for b in bands]
    return np.concatenate([*drawn, paper])


def _band(
    panels: Sequence[Panel],
    grids: Sequence[Pixels | None],
    left: int,
    largest: tuple[int, ...],
    width: int,
) -> Pixels:
    """Panels side by side, with titles, and ``left`` pixels for the words of rows."""
    room = left + largest[1]
    titles = [plots.in_lines(panel.title, room / plots.DPI) for panel in panels]
    top = GAP + LINE * max(len(title.splitlines()) for title in titles)
    starts = [top + (LINE if panel.tops else 0) for panel in panels]
    heights = [largest[0] if pixels is None else len(pixels) for pixels in grids]
    lowest = max(start + height for start, height in zip(starts, heights, strict=True))
    paper = Image.new("RGB", (width, lowest), "white")
    pen = ImageDraw.Draw(paper)
    places = zip(panels, grids, starts, heights, strict=True)
    for i, (panel, pixels, start, height) in enumerate(places):
        x = GAP + i * (GAP + room)
        pen.text((x, top - 3), titles[i], "black", FONT, "ld")
        if pixels is None:
            why = plots.in_lines(str(panel.images), room / plots.DPI)
            pen.text((x + room / 2, top + height / 2), why, "black", FONT, "mm", align="center")
            continue
        for k, word in enumerate(panel.tops):
            middle = x + left + (k + 0.5) * pixels.shape[1] / panel.columns
            pen.text((middle, start - 3), word, "black", FONT, "md")
        for k, word in enumerate(panel.rows):
            middle = start + (k + 0.5) * height / len(panel.rows)
            pen.text((x + left - GAP // 2, middle), word, "black", FONT, "rm")
        paper.paste(Image.fromarray(pixels), (x + left, start))
    return np.array(paper)


def interleaved(rows: Mapping[str, Tensor], levels: int) -> Pixels:
    """Rows of images (N, C, H, W) of equal N below one another, in bands, with words on the left."""
    first = next(iter(rows.values()))
    fit = max(FEWEST_IN_ROW, WIDTH // (enlargement(first.shape) * first.shape[-1]))
    bands = math.ceil(len(first) / fit)
    columns = math.ceil(len(first) / bands)
    parts = zip(*(images.split(columns) for images in rows.values()), strict=True)
    panels = [Panel(torch.cat(part), len(part[0]), rows=list(rows)) for part in parts]
    return sheet(panels, levels, across=1)


def save_grid(
    images: Num[Tensor, "n c h w"], levels: int, path: Path, columns: int | None = None
) -> None:
    """Write the first :data:`IN_GRID` images in grey levels as a grid."""
    plots.save_pixels(grid(images[:IN_GRID], levels, columns), path)


def save_classes(
    images: Num[Tensor, "n c h w"], levels: int, labels: Sequence[str], path: Path
) -> None:
    """Write images of classes, a row for each of ``labels``, at most :data:`MOST_OF_CLASS` of each.

    There are equally many of each class, one class after the other.
    """
    shown = images.unflatten(0, (len(labels), -1))[:, :MOST_OF_CLASS]
    panel = Panel(shown.flatten(0, 1), columns=shown.shape[1], rows=labels)
    plots.save_pixels(sheet([panel], levels), path)


@plots.styled
def samples_picture(panels: Mapping[str, Tensor | str], levels: int, colours: Colours) -> Pixels:
    """Samples side by side as bytes: images, or points by their first two entries.

    ``panels`` has by title samples (N, C, H, W) in grey levels or (N, D), or why there are none.
    """
    if any(isinstance(samples, Tensor) and samples.ndim == 4 for samples in panels.values()):
        shown = {name: s if isinstance(s, str) else s[: SIDE**2] for name, s in panels.items()}
        return sheet([Panel(images, SIDE, name) for name, images in shown.items()], levels)
    columns, rows = min(len(panels), 3), math.ceil(len(panels) / 3)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows))
    for number, (name, samples) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        if isinstance(samples, Tensor) and samples.shape[1] > 1:
            plots.dots(axes, samples, name, colours.get(name, DATA_COLOUR))
            continue
        why = samples if isinstance(samples, str) else "single numbers: no picture of points"
        place: Any = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, textwrap.fill(why, 32), color="0.35", **place)
        axes.set(title=name, xticks=[], yticks=[])
    return plots.rendered(figure)
