"""The results of a translation as files: images, arrays, strips, the sheet."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from indm.evaluation.translation_sources import SHEET, Example, Item
from indm.files import atomic
from indm.messages import reason

REPORT, PAGE = "translation.json", "index.html"
SIDES = ("source", "result", "back again")  # of an example, on the sheet
IN_SHEET = 64  # results that the sheet shows, at most
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors that every other result would meet, too


def result_path(out: Path, item: Item) -> Path:
    """Where the result of ``item`` is written; the rows of an array go into one file."""
    return out / (f"{item.name}.png" if item.row is None else f"{item.name.rsplit('-', 1)[0]}.npz")


def check_sources_stay(items: Sequence[Item], out: Path, beside: Sequence[str]) -> None:
    """ValueError where a result would be written over one of the sources, by whatever name or link.

    Args:
        items: what will be translated.
        out: where results will be written.
        beside: the folders in ``out`` that will hold a picture for each item: "cycle", "strips".
    """
    results = {out / REPORT, out / PAGE, out / f"{SHEET}.png"}
    for item in items:
        results |= {result_path(out, item)} | {out / folder / f"{item.name}.png" for folder in beside}
    sources = {_file(item.source) for item in items}
    over = sorted(path for path in results if _file(path) in sources)
    if over:
        raise ValueError(f"{over[0]} is one of the sources, and a result would be written over it; use another --out")


def _file(path: Path) -> tuple[int, int] | None:
    """Which file on which disk; None where there is none."""
    try:
        status = path.stat()
        return status.st_dev, status.st_ino
    except OSError:
        return None


def picture(image: Tensor, levels: int) -> Image.Image:
    """An image (C, H, W) in grey levels, pixel for pixel, in 256 of them."""
    pixels = (image.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


class ResultWriter:
    """Writes results into a folder, image by image, arrays and the sheet at the end.

    Args:
        out: the folder, made if need be.
        levels: number of grey levels; None of vectors.
        grey: whether pictures of the source's side, and of the result's, are written in grey.
        size: of results: that of the "model", or of what was cut out of the "source".

    ``failed`` holds the reason for each item that could not be written, by name.
    """

    def __init__(
        self,
        out: Path,
        levels: int | None,
        grey: tuple[bool, bool] = (False, False),
        size: Literal["model", "source"] = "model",
    ):
        self.out, self.levels, self.grey, self.size = out, levels, grey, size
        self.failed: dict[str, str] = {}
        self.shown: list[tuple[Tensor, ...]] = []
        self.arrays: dict[Path, list[tuple[Item, Tensor]]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        item: Item,
        source: Example,
        result: Tensor,
        returned: Tensor | None,
        frames: Tensor | None,
        times: Sequence[float],
    ) -> bool:
        """Write a result, or keep it until its array is complete; for an image what was carried back into ``cycle``;
        the way, ``frames`` at ``times``, into ``strips``.

        Returns:
            Whether that was possible.

        Raises:
            OSError: nothing more can be written to the disk.
        """
        try:
            if frames is not None:
                self._save_strip(self.out / "strips" / f"{item.name}.png", frames, times)
            if item.row is None:
                self._save(result_path(self.out, item), self._like(source, result))
                if returned is not None:
                    self._save(self.out / "cycle" / f"{item.name}.png", self._picture(returned, self.grey[0]))
        except OSError as error:
            self._fail([item], error)
            return False
        if item.row is not None:
            self.arrays.setdefault(item.source, []).append((item, result))
        return True

    def show(self, *columns: Tensor) -> None:
        """Put source, result and, if it was made, the way back on the sheet, as long as there is room."""
        if len(self.shown) < IN_SHEET:
            self.shown.append(columns)

    def finish(self) -> set[Path]:
        """Write the arrays and the sheet; the sources of the arrays that could not be written."""
        lost = set()
        for source, rows in self.arrays.items():
            items, results = zip(*rows, strict=True)
            try:
                self._save_array(items, torch.stack(results))
            except OSError as error:
                self._fail(items, error)
                lost.add(source)
        if self.shown:
            self._save_sheet(self.out / f"{SHEET}.png")
        return lost

    def _fail(self, items: Sequence[Item], error: OSError) -> None:
        if error.errno in DISK_ERRORS:
            raise error
        self.failed |= {item.name: reason(error) for item in items}

    def _picture(self, pixels: Tensor, grey: bool) -> Image.Image:
        image = picture(pixels, cast(int, self.levels))
        return image.convert("L") if grey else image

    def _like(self, source: Example, result: Tensor) -> Image.Image:
        """The picture of a result, of the size that was asked for and as opaque as its source."""
        image = self._picture(result, self.grey[1])
        if self.size == "source" and source.sides:
            image = image.resize(source.sides[::-1], Image.Resampling.BICUBIC)
        if source.alpha is not None:
            image.putalpha(source.alpha.resize(image.size, Image.Resampling.BILINEAR))
        return image

    def _save(self, path: Path, image: Image.Image) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.whole(path, lambda beside: image.save(beside, format="PNG"))

    def _save_strip(self, path: Path, frames: Tensor, times: Sequence[float]) -> None:
        """Frames (N, C, H, W) in a row, each with its time above it."""
        from indm.evaluation import plots, sheets

        path.parent.mkdir(parents=True, exist_ok=True)
        panel = sheets.Panel(frames, len(frames), tops=sheets.time_words(times))
        plots.save_pixels(sheets.sheet([panel], cast(int, self.levels)), path)

    def _save_array(self, items: Sequence[Item], results: Tensor) -> None:
        path = result_path(self.out, items[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"samples": results.numpy(), "levels": np.array(self.levels or 0)}
        atomic.whole(path, atomic.arrays_into(content | {"rows": np.array([item.row for item in items])}))

    def _save_sheet(self, path: Path) -> None:
        from indm.evaluation import plots, sheets

        columns = [torch.stack(column) for column in zip(*self.shown, strict=True)]
        if columns[0].ndim == 4:
            plots.save_pixels(sheets.in_turns(dict(zip(SIDES, columns, strict=False)), cast(int, self.levels)), path)
        elif columns[0].ndim == 2 and columns[0].shape[1] > 1:
            panels = {name: points.float() for name, points in zip(SIDES, columns, strict=False)}
            plots.save_pixels(plots.samples_picture(panels, 0, {}), path)
