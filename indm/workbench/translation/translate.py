"""``indm translate``: files of A translated into files of B, with a report of how well."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import reason
from indm.files import atomic
from indm.tensors import double
from indm.translation import Route
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.provenance import provenance, weights_hash
from indm.workbench.translation.pictures import FRAMES, MOST, FrameStrip, Kept, picture, write_page, write_strips
from indm.workbench.translation.routes import (
    SHEET,
    BatchTranslator,
    Example,
    Item,
    Translated,
    TranslationRuns,
    find,
    route_of,
)

NEAR_SOURCE = 3 / 256  # distance of a result from its source, as a share of the grey levels
REPORT, PAGE = "translation.json", "index.html"
IN_SHEET = 64  # results that the sheet shows, at most


def translate_files(
    runs: TranslationRuns,
    sources: Sequence[Path],
    out: Path,
    options: TranslationOptions,
    *,
    progress: bool = True,
) -> dict:
    """Translate what lies in ``sources`` into ``out``, see :func:`~indm.workbench.translation.routes.find`.

    Writes ``NAME.png`` for every image, ``NAME.npz`` for every array (``samples``, and the numbers of their ``rows``:
    one that failed is left out), ``sheet.png`` with sources and results, and ``translation.json``; on request the route
    as ``strips/NAME.png``, the way back as ``cycle/NAME.png``, and ``index.html``, a page to look at.

    Returns:
        What ``translation.json`` holds: a row for each example (its distance from the source, and the errors that were
        asked for), ``failed`` with the reason for each that could not be read or translated, times, evaluations,
        options, models; and ``conclusions`` on models that have hardly learned, see :func:`conclusions`.

    Raises:
        ValueError: bad options, nothing found, or a result that would be written over a source.
        OSError: a file cannot be written; the report names what was done until then.
    """
    route = route_of(runs, options)
    model, grey = route.models[0], runs.grey[0]
    if options.page and (len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.scaling.levels is None):
        raise ValueError(f"page needs images, got events of shape {model.shape}; leave out --page")
    items = find(sources, model, runs.data, grey=grey, strict=options.strict, alpha=options.keep_alpha)
    check_sources_stay(items, out, options.folders())
    weights = {str(folder): weights_hash(folder) for folder in runs.folders}
    translation = Translation(BatchTranslator(route, options), out, runs.grey)
    try:
        with tqdm(total=len(items), desc="translating", unit="image", disable=not progress) as bar:
            for first in range(0, len(items), options.batch_size):
                batch = items[first : first + options.batch_size]
                translation.add(batch)
                bar.update(len(batch))
    finally:
        report = translation.finish() | {
            "models": [str(folder) for folder in (runs.folders if options.method == "flow" else runs.folders[-1:])],
            "kind": runs.kind,
            "levels": model.scaling.levels,
            "direction": runs.direction,
            **({} if runs.classes == (None, None) else {"classes": list(runs.classes)}),
            "options": asdict(options),
            "provenance": provenance(options.seed, weights),
        }
        if report["examples"] and options.strength == 1:  # else little is meant to change
            report["conclusions"] = conclusions(mean_distance(report), model.scaling.levels, runs.folders)
        atomic.json_object(out / REPORT, report)
    if options.page and report["examples"]:
        words = _words(route, options.strip or FRAMES)
        write_page(out / PAGE, report, sentences(report), words, translation.kept[:MOST])
    return report


def _words(route: Route, frames: int) -> list[str]:
    """The time of each frame, and whether the route goes up there or down."""
    ways = ["up" if leg.start < leg.end else "down" for leg in route.legs for _ in range(frames)]
    return [f"t = {t:.2g}, {way}" for t, way in zip(route.times(frames), ways, strict=True)]


class Translation:
    """A translation under way: reads, translates and writes batches; arrays and the sheet are written at the end.

    Attributes:
        rows: of the report.
        failed: the reason for each item that could not be read or translated, by name.
        kept: row, source and translation of the first, which the sheet and the page show.
    """

    def __init__(self, translate: BatchTranslator, out: Path, grey: tuple[bool, bool]):
        self.translate, self.out, self.grey, self.seconds = translate, out, grey, 0.0
        self.options, self.levels = translate.options, cast(int, translate.route.models[0].scaling.levels)
        self.rows: list[dict] = []
        self.failed: dict[str, str] = {}
        self.kept: list[Kept] = []
        self.arrays: dict[Path, list[tuple[Item, Tensor]]] = {}

    def add(self, items: list[Item]) -> None:
        """Translate a batch of items and write their results; those for which that fails are named in ``failed``."""
        read = [(item, example) for item in items if (example := self._read(item))]
        if not read:
            return
        of_page = FRAMES if self.options.page and len(self.kept) < MOST else 0
        self.translate.frames = self.options.strip or of_page
        started = time.perf_counter()
        translations = self.translate.each(torch.stack([example.pixels for _, example in read]))
        self.seconds += time.perf_counter() - started
        for (item, example), translated in zip(read, translations, strict=True):
            if isinstance(translated, RuntimeError):
                self.failed[item.name] = reason(translated)
                continue
            self._write(item, example, translated)
            self.rows.append(_row(item, example, translated))
            if len(self.kept) < IN_SHEET:
                self.kept.append((self.rows[-1], example.pixels, translated))

    def _read(self, item: Item) -> Example | None:
        try:
            return item.read()
        except (ValueError, OSError) as error:
            if self.options.strict:
                raise ValueError(f"strict: {item.source}: {error}") from error
            self.failed[item.name] = reason(error)
            return None

    def _write(self, item: Item, source: Example, translated: Translated) -> None:
        """Write the pictures of one result, or keep it until its array is complete."""
        if self.options.strip and translated.frames is not None:
            strip = FrameStrip("", self.translate.times, translated.frames, self.levels)
            write_strips([strip], self.out / "strips" / f"{item.name}.png")
        if item.row is not None:
            self.arrays.setdefault(item.source, []).append((item, translated.result))
            return
        _save(result_path(self.out, item), self._like(source, translated.result))
        if translated.returned is not None:
            _save(self.out / "cycle" / f"{item.name}.png", self._picture(translated.returned, self.grey[0]))

    def finish(self) -> dict:
        """Write arrays and sheet; the rows, what failed, and the evaluations of one example."""
        for pairs in self.arrays.values():
            items, results = zip(*pairs, strict=True)
            self._save_array(items, torch.stack(results))
        if self.kept:
            self._save_sheet(self.out / f"{SHEET}.png")
        each = self.seconds / max(1, len(self.rows) + len(self.failed))
        return {
            "examples": self.rows, "failed": self.failed, "nfe": self.translate.nfe, "seconds_per_example": each
        }  # fmt: skip

    def _picture(self, pixels: Num[Tensor, "c h w"], grey: bool) -> Image.Image:
        image = picture(pixels, self.levels)
        return image.convert("L") if grey else image

    def _like(self, source: Example, result: Tensor) -> Image.Image:
        """The picture of a result, of the size that was asked for and as opaque as its source."""
        image = self._picture(result, self.grey[1])
        if self.options.size == "source" and source.sides:
            image = image.resize(source.sides[::-1], Image.Resampling.BICUBIC)
        if source.alpha is not None:
            image.putalpha(source.alpha.resize(image.size, Image.Resampling.BILINEAR))
        return image

    def _save_array(self, items: Sequence[Item], results: Tensor) -> None:
        path = result_path(self.out, items[0])
        content = {"samples": results.numpy(), "levels": np.array(self.levels or 0)}
        atomic.whole(path, atomic.arrays_into(content | {"rows": np.array([item.row for item in items])}))

    def _save_sheet(self, path: Path) -> None:
        from indm.workbench.figures import plots, sheets  # which load matplotlib

        _, sources, translations = zip(*self.kept, strict=True)
        columns = {"source": torch.stack(sources), "result": torch.stack([one.result for one in translations])}
        if self.options.cycle:
            columns["back again"] = torch.stack([one.returned for one in translations])
        first = columns["source"]
        if first.ndim == 4:
            plots.save_pixels(sheets.interleaved(columns, self.levels), path)
        elif first.ndim == 2 and first.shape[1] > 1:
            points: dict[str, Any] = {name: column.float() for name, column in columns.items()}
            plots.save_pixels(sheets.samples_picture(points, 0, {}), path)


def _save(path: Path, image: Image.Image) -> None:
    atomic.whole(path, lambda beside: image.save(beside, format="PNG"))


def result_path(out: Path, item: Item) -> Path:
    """Where the result of ``item`` is written; the rows of an array go into one file."""
    return out / (f"{item.name}.png" if item.row is None else f"{item.name.rsplit('-', 1)[0]}.npz")


def check_sources_stay(items: Sequence[Item], out: Path, beside: Sequence[str]) -> None:
    """ValueError where a result in ``out``, or a picture in its folders ``beside``, would be written over a source, by
    whatever name or link.
    """
    results = {out / REPORT, out / PAGE, out / f"{SHEET}.png"}
    for item in items:
        results |= {result_path(out, item)} | {out / folder / f"{item.name}.png" for folder in beside}
    sources = {item.source.resolve() for item in items}
    over = sorted(path for path in results if path.resolve() in sources)
    if over:
        raise ValueError(f"{over[0]} is one of the sources, and a result would be written over it; use another --out")


def _row(item: Item, example: Example, translated: Translated) -> dict:
    """What the report says of one example."""
    raw = example.pixels
    distance = (double(translated.result) - double(raw)).square().mean().sqrt().item()
    line = {"name": item.name, "source": str(item.source), "distance_rms": distance}
    line |= {"note": example.note} if example.note else {}
    if translated.cycle_error is not None and translated.cycle_error_rounded is not None:
        line["cycle_error_max"] = translated.cycle_error.max().item()
        line["cycle_error_rounded"] = translated.cycle_error_rounded.item()
    if translated.solver_error is not None:
        line["solver_error_max"] = translated.solver_error.item()
    return line


def mean_distance(report: dict) -> float:
    """Of results from their sources, RMS, mean over examples."""
    return sum(row["distance_rms"] for row in report["examples"]) / len(report["examples"])


def conclusions(distance: float, levels: int | None, runs: Sequence[Path]) -> list[str]:
    """What says that the models in ``runs`` have hardly learned; nothing where all is well.

    ``distance`` is that of results from their sources, RMS; of vectors (``levels`` None) it says nothing.
    """
    if levels is None or distance >= NEAR_SOURCE * levels:
        return []
    commands = " and ".join(f"'{shlex.join(['indm', 'evaluate', str(run)])}'" for run in dict.fromkeys(runs))
    return [
        f"The models translate every picture almost into itself: results are {distance:.1f} of {levels} grey levels "
        f"from their sources. Whether a model has learned its data, {commands} says."
    ]


def sentences(report: dict) -> list[str]:
    """What came of a translation: a line of numbers, and one for each conclusion."""
    rows, options = report["examples"], report["options"]
    if not rows:
        return [f"0 translated, {len(report['failed'])} failed"]
    parts, levels = [f"{len(rows)} translated"], f"of {report['levels']} grey levels"
    parts += [f"distance from the source {mean_distance(report):.1f} {levels} (RMS, mean over examples)"]
    resized = sum("note" in row for row in rows)
    parts += [f"{resized} resized"] if resized else []
    if options["cycle"]:
        error = max(row["cycle_error_max"] for row in rows)
        cure = " (more steps make it smaller)" if error >= 1 else ""
        parts.append(f"error of the cycle at most {error:.3g} {levels}{cure}")
    if options["errors"]:
        parts.append(f"of the solver about {max(row['solver_error_max'] for row in rows):.2g}")
    parts.append(f"{report['nfe']} evaluations, {report['seconds_per_example']:.2g} s each")
    return [", ".join(parts), *report.get("conclusions", ())]
