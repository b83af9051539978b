"""Sheets of images: every image enlarged by one whole number, so that its pixels show, with words at its edges."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Num
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from indm.evaluation import plots
from indm.evaluation.plots import DATA_COLOUR, Colours, Limits, Pixels

SMALLEST = 64  # pixels of an image's shorter side, at least
WIDTH = 1100  # pixels of a sheet, about
PAD, GREY = 6, 0.6  # the lines between images: pixels, and brightness
FEWEST = 8  # images side by side in a sheet of many, at least, however large they are
GAP = 12  # pixels around a panel
SIDE = 5  # images along a side of a panel of samples
IN_ROW = 16  # images of a class
IN_GRID = 256  # images of a grid, at most
LINE = round(1.5 * plots.FONT_SIZE * plots.DPI / 72)  # pixels of a line of text


@dataclass(frozen=True)
class Panel:
    """A grid of images with what is written at its edges.

    Attributes:
        images: (N, C, H, W) in grey levels, row by row; or words that say why there are none.
        columns: of the grid.
        title: above it.
        rows: a word on the left of each row; none.
        tops: a word above each column; none.
    """

    images: Tensor | str
    columns: int
    title: str = ""
    rows: Sequence[str] = ()
    tops: Sequence[str] = ()


def time_words(times: Iterable[float]) -> list[str]:
    """What is written above the frames of a path."""
    first, *others = (f"{t:.2g}" for t in times)
    return [f"t = {first}", *others]


def enlargement(shape: torch.Size, room: int = 0) -> int:
    """By what images (…, H, W) are enlarged: to :data:`SMALLEST` pixels, and to a width of ``room``, at least."""
    height, width = shape[-2:]
    return max(1, math.ceil(SMALLEST / min(height, width)), math.ceil(room / width))


def grid(images: Tensor, levels: int, columns: int | None = None, factor: int | None = None) -> Pixels:
    """A grid of images (N, C, H, W) in grey levels as bytes, with lines of :data:`PAD` grey pixels around each.

    Channels are averaged if they are not 1 or 3. There are as many columns as rows by default, and images are enlarged
    by a ``factor`` with which they are visible.
    """
    pixels = images.float() / (levels - 1)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(1, keepdim=True)
    factor = factor or enlargement(images.shape)
    pixels = pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    lined = make_grid(pixels, nrow=columns, padding=PAD, pad_value=GREY).permute(1, 2, 0).clamp(0, 1)
    return (lined.numpy() * 255).round().astype(np.uint8)


def sheet(panels: Sequence[Panel], levels: int, across: int | None = None) -> Pixels:
    """Panels of images of one size, at least one, as bytes, on white; as many ``across`` as fit into :data:`WIDTH`."""
    pen = _Pen()
    room = max((pen.width(word) + 4 for panel in panels for word in panel.tops), default=0)
    left = max((pen.width(word) + GAP for panel in panels for word in panel.rows), default=0)
    factor = next(enlargement(p.images.shape, room) for p in panels if isinstance(p.images, Tensor))
    grids = [
        None if isinstance(panel.images, str) else grid(panel.images, levels, panel.columns, factor) for panel in panels
    ]
    largest = max(pixels.shape[:2] for pixels in grids if pixels is not None)
    pitch = GAP + left + largest[1]
    across = across or max(1, min(len(panels), WIDTH // pitch))
    top, placed = 0, []
    for first in range(0, len(panels), across):
        row = list(zip(panels, grids, strict=True))[first : first + across]
        titles = [pen.wrapped(panel.title, pitch - GAP) for panel, _ in row]
        top += GAP + LINE * max(map(len, titles))
        bottoms = []
        for i, ((panel, pixels), lines) in enumerate(zip(row, titles, strict=True)):
            x = i * pitch + GAP
            pen.write("\n".join(lines), x, top - LINE * len(lines), "left", "top")
            if pixels is None:
                why = "\n".join(pen.wrapped(str(panel.images), pitch - GAP))
                pen.write(why, x + (pitch - GAP) / 2, top + largest[0] / 2, "center", "center")
                bottoms.append(top + largest[0])
                continue
            start = _write_edges(pen, panel, pixels.shape, x + left, top)
            placed.append((start, x + left, pixels))
            bottoms.append(start + len(pixels))
        top = max(bottoms)
    return pen.on_paper(across * pitch + GAP, top + GAP, placed)


def interleaved(rows: Mapping[str, Tensor], levels: int) -> Pixels:
    """Images (N, C, H, W) of equal N, by the word on their left, below one another in as many bands as it takes."""
    first = next(iter(rows.values()))
    fit = max(FEWEST, WIDTH // (enlargement(first.shape) * first.shape[-1]))
    bands = math.ceil(len(first) / fit)
    columns = math.ceil(len(first) / bands)
    parts = zip(*(images.split(columns) for images in rows.values()), strict=True)
    panels = [Panel(torch.cat(part), len(part[0]), rows=list(rows)) for part in parts]
    return sheet(panels, levels, across=1)


def save_grid(images: Num[Tensor, "n c h w"], levels: int, path: Path, columns: int | None = None) -> None:
    """Write the first :data:`IN_GRID` images in grey levels as a grid, small ones enlarged by a whole number."""
    plots.save_pixels(grid(images[:IN_GRID], levels, columns), path)


def save_classes(images: Num[Tensor, "n c h w"], levels: int, labels: Sequence[str], path: Path) -> None:
    """Write images of the classes ``labels``, as many of each, one class after the other, a row a class.

    At most :data:`IN_ROW` of each are shown.
    """
    shown = images.unflatten(0, (len(labels), -1))[:, :IN_ROW]
    panel = Panel(shown.flatten(0, 1), columns=shown.shape[1], rows=labels)
    plots.save_pixels(sheet([panel], levels), path)


@plots.styled
def samples_picture(panels: Mapping[str, Tensor | str], levels: int, colours: Colours, limits: Limits = None) -> Pixels:
    """Samples side by side, as bytes: images, or points of which the first two entries are shown.

    ``panels`` has by title samples (N, C, H, W) in grey levels or (N, D), or words that say why there are none.
    """
    if any(isinstance(samples, Tensor) and samples.ndim == 4 for samples in panels.values()):
        shown = {name: s if isinstance(s, str) else s[: SIDE**2] for name, s in panels.items()}
        return sheet([Panel(images, SIDE, name) for name, images in shown.items()], levels)
    columns = min(len(panels), 3)
    figure = Figure(figsize=(3.4 * columns, 3.6 * -(-len(panels) // columns)))
    drawn = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axes, (name, samples) in zip(drawn, panels.items(), strict=False):
        if isinstance(samples, Tensor) and samples.shape[1] > 1:
            plots.dots(axes, samples, name, colours.get(name, DATA_COLOUR), limits)
        else:
            axes.set_title(name)
            plots.say_empty(axes, samples if isinstance(samples, str) else "single numbers: no picture of points")
    for axes in drawn[len(panels) :]:
        axes.remove()
    return plots.pixels_of(figure)


def stacked(*pictures: Pixels) -> Pixels:
    """Pictures below one another, in the middle of white paper."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        left = (width - picture.shape[1]) // 2
        sides = (left, width - picture.shape[1] - left)
        rows.append(np.pad(picture, ((0, 0), sides, (0, 0)), constant_values=255))
    return np.concatenate(rows)


def _write_edges(pen: "_Pen", panel: Panel, size: tuple[int, ...], left: int, top: int) -> int:
    """Write the words at the edges of a grid; those of the columns begin at ``top``. Returns where its pixels begin."""
    start = top + (LINE if panel.tops else 0)
    width, height = size[1] / panel.columns, size[0] / max(1, len(panel.rows))
    for i, word in enumerate(panel.tops):
        pen.write(word, left + (i + 0.5) * width, start - 3, "center", "bottom")
    for i, word in enumerate(panel.rows):
        pen.write(word, left - GAP // 2, start + (i + 0.5) * height, "right", "center")
    return start


class _Pen:
    """Measures words in pixels, collects them, and writes them."""

    def __init__(self) -> None:
        self.words: list[tuple[str, float, float, str, str]] = []

    def width(self, word: str) -> int:
        text = Figure(dpi=plots.DPI).text(0, 0, word, size=plots.FONT_SIZE, parse_math=False)
        return math.ceil(text.get_window_extent().width)

    def wrapped(self, text: str, room: int) -> list[str]:
        """Lines no wider than ``room``; none of no text."""
        return plots.in_lines(text, room / plots.DPI).split("\n") if text else []

    def write(self, text: str, x: float, y: float, horizontal: str, vertical: str) -> None:
        """``x`` and ``y`` in pixels from the upper left corner."""
        self.words.append((text, x, y, horizontal, vertical))

    def on_paper(self, width: int, height: int, placed: list[tuple[int, int, np.ndarray]]) -> Pixels:
        """White paper with all words and grids."""
        figure = Figure(((width + 0.5) / plots.DPI, (height + 0.5) / plots.DPI), dpi=plots.DPI)
        for text, x, y, horizontal, vertical in self.words:
            figure.text(
                x / width, 1 - y / height, text, ha=horizontal, va=vertical, size=plots.FONT_SIZE, parse_math=False
            )
        paper = plots.rendered(figure)
        for top, left, pixels in placed:
            paper[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return paper
