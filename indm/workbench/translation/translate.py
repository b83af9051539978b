"""``indm translate``: files of A translated into files of B, with a report of how well."""

import functools
import html
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

from indm.checks import one_line, reason
from indm.files import atomic
from indm.tensors import double
from indm.translation import Route
from indm.workbench.figures.page import Page, image, short, slider
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.provenance import provenance, weights_hash
from indm.workbench.translation.routes import (
    BRIDGE,
    SHEET,
    BatchTranslator,
    Example,
    Item,
    Translated,
    TranslationRuns,
    find,
)

NEAR_SOURCE = 3 / 256  # distance of a result from its source, as a share of the grey levels
REPORT, PAGE = "translation.json", "index.html"
IN_SHEET = 64  # results that the sheet shows, at most
MOST = 48  # images on the page; each has some twenty pictures
FRAMES = 8  # pictures of each leg of the route, by default
Kept = tuple[dict, Tensor, Translated]  # row of the report, source in grey levels, what was made of it
ERRORS = {  # words for an image's errors, by the key in its row of the report
    "cycle_error_max": "error of the cycle at most",
    "cycle_error_rounded": "after rounding",
}


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
    model = route.models[0]
    if options.page and (len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.scaling.levels is None):
        raise ValueError(f"page must be false: it needs images, got events of shape {model.shape}")
    items = find(sources, model, runs.data)
    check_sources_stay(items, out, options.folders())
    weights = {str(folder): weights_hash(folder) for folder in runs.folders}
    translation = Translation(BatchTranslator(route, options), out)
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
            report["conclusions"] = conclusions(report, runs.folders)
        atomic.json_object(out / REPORT, report)
    if options.page and report["examples"]:
        frames = options.strip or FRAMES
        ways = ["up" if leg.start < leg.end else "down" for leg in route.legs for _ in range(frames)]
        words = [f"t = {t:.2g}, {way}" for t, way in zip(route.times(frames), ways, strict=True)]
        write_page(out / PAGE, report, sentences(report), words, translation.kept[:MOST])
    return report


def route_of(runs: TranslationRuns, options: TranslationOptions) -> Route:
    """The route from A to B; a ValueError for a bad option, or a cycle along a route that leads nowhere back."""
    shared: dict = {"strength": options.strength, "steps": options.steps, "tol": options.tol}
    if options.method == "sdedit":
        if options.guidance != 1:
            raise ValueError(f"guidance must be 1 for method 'sdedit', got {options.guidance:g}: it has no model of A")
        route = runs.sdedit(**shared)
    else:
        route = runs.route(stochastic=options.stochastic, guidance=options.guidance, **shared)
    if options.cycle:
        route.back()
    return route


class Translation:
    """A translation under way: reads, translates and writes batches; arrays and the sheet are written at the end.

    Attributes:
        rows: of the report.
        failed: the reason for each item that could not be read or translated, by name.
        kept: row, source and translation of the first, which the sheet and the page show.
    """

    def __init__(self, translate: BatchTranslator, out: Path):
        self.translate, self.out, self.seconds = translate, out, 0.0
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
            distance = (double(translated.result) - double(example.pixels)).square().mean().sqrt().item()
            row = {"name": item.name, "source": str(item.source), "distance_rms": distance}
            self.rows.append(row | ({"note": example.note} if example.note else {}) | translated.errors)
            if len(self.kept) < IN_SHEET:
                self.kept.append((self.rows[-1], example.pixels, translated))

    def _read(self, item: Item) -> Example | None:
        try:
            return item.read()
        except (ValueError, OSError) as error:
            self.failed[item.name] = reason(error)
            return None

    def _write(self, item: Item, source: Example, translated: Translated) -> None:
        """Write the pictures of one result; a result from an array is kept until the array's rows are complete."""
        if self.options.strip and translated.frames is not None:
            from indm.workbench.figures import plots, sheets  # they load matplotlib

            strip = sheets.strip(translated.frames, self.translate.times)
            plots.save_pixels(sheets.sheet([strip], self.levels, 1), self.out / "strips" / f"{item.name}.png")
        if item.row is not None:
            self.arrays.setdefault(item.source, []).append((item, translated.result))
            return
        images = {result_path(self.out, item): picture(translated.result, self.levels)}
        if translated.returned is not None:
            images[self.out / "cycle" / f"{item.name}.png"] = picture(translated.returned, self.levels)
        for path, shown in images.items():
            atomic.whole(path, functools.partial(shown.save, format="PNG"))

    def finish(self) -> dict:
        """Write arrays and sheet; the rows, what failed, and the evaluations of one example."""
        for pairs in self.arrays.values():
            items, results = zip(*pairs, strict=True)
            content = {"samples": torch.stack(results).numpy(), "levels": np.array(self.levels or 0)}
            content |= {"rows": np.array([item.row for item in items])}
            atomic.whole(result_path(self.out, items[0]), atomic.arrays_into(content))
        if self.kept:
            self._save_sheet(self.out / f"{SHEET}.png")
        each = self.seconds / max(1, len(self.rows) + len(self.failed))
        return {
            "examples": self.rows, "failed": self.failed, "nfe": self.translate.nfe, "seconds_per_example": each
        }  # fmt: skip

    def _save_sheet(self, path: Path) -> None:
        from indm.workbench.figures import plots, sheets  # they load matplotlib

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
        raise ValueError(f"out must be another folder: a result would be written over the source {over[0]}")


def mean_distance(report: dict) -> float:
    """Distance of results from their sources, RMS, mean over examples."""
    return sum(row["distance_rms"] for row in report["examples"]) / len(report["examples"])


def conclusions(report: dict, runs: Sequence[Path]) -> list[str]:
    """A warning that the models of images in ``runs`` have hardly learned; an empty list where all is well."""
    distance, levels = mean_distance(report), report["levels"]
    if levels is None or distance >= NEAR_SOURCE * levels:
        return []
    commands = " and ".join(f"'{shlex.join(['indm', 'evaluate', str(run)])}'" for run in dict.fromkeys(runs))
    return [
        f"The models translate every picture almost into itself: results are {distance:.1f} of {levels} grey levels "
        f"from their sources. Whether a model has learned its data, {commands} says."
    ]


def sentences(report: dict) -> list[str]:
    """Result of a translation in words: a line of numbers, and one for each conclusion."""
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
    parts.append(f"{report['nfe']} evaluations, {report['seconds_per_example']:.2g} s each")
    return [", ".join(parts), *report.get("conclusions", ())]


# ── The page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def picture(pixels: Num[Tensor, "c h w"], levels: int) -> Image.Image:
    """An image in grey levels, pixel for pixel, in 256 of them."""
    pixels = (pixels.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def write_page(
    path: Path, report: dict, conclusion: Sequence[str], route: Sequence[str], translations: Sequence[Kept]
) -> None:
    """Write the page on ``translations``: the row of the report, the source and what was made of it.

    ``route`` has the words of each frame.
    """
    page = Page("Translated images")
    page.conclude(conclusion)
    page.text(made_by(report))
    n, total = len(translations), len(report["examples"])
    page.text(f"{f'The first {n} of {total}' if n < total else f'All {total}'} translated images.")
    middle = (len(route) - 1) // 2  # where a route of two models turns
    controls = slider("route", "Along the route", route, middle)
    page.add(f'<section class="controls" aria-label="Controls">{controls}</section>')
    cards = "\n".join(_card(*one, route, middle, report["levels"]) for one in translations)
    page.add(f'<main class="cards">\n{cards}\n</main>')
    page.write(path)


def made_by(report: dict) -> str:
    """A line that says how the results were made."""
    options = report["options"]
    how = "SDEdit" if options["method"] == "sdedit" else report["kind"]
    parts = [f"Made by {how}: " + ", then ".join(report["models"])]
    parts += ["from {} to {}".format(*report["classes"])] if "classes" in report else []
    parts += [f"direction {report['direction']}"]
    parts += [f"{options['steps']} steps" if options["tol"] is None else f"tolerance {options['tol']:g}"]
    parts += [f"strength {options['strength']:g}"]
    parts += [f"guidance {options['guidance']:g}"] if options["guidance"] != 1 else []
    is_random = options["stochastic"] or options["method"] == "sdedit"
    parts += [f"up by noise of seed {options['seed']}"] if is_random else []
    parts += [f"from noise of seed {options['seed']} in the images"] if how == BRIDGE else []
    parts += [f"{len(report['failed'])} not translated, see translation.json"] if report["failed"] else []
    return one_line("; ".join(parts) + ".")


def _card(row: dict, source: Tensor, translated: Translated, route: Sequence[str], middle: int, levels: int) -> str:
    notes = [f"{row['distance_rms']:.1f} grey levels from its source"]
    notes += [row["note"]] if "note" in row else []
    notes += [f"{words} {short(row[key])}" for key, words in ERRORS.items() if key in row]
    frames = zip(cast(Tensor, translated.frames), route, strict=True)
    stack = [image(picture(one, levels), word, hidden=i != middle) for i, (one, word) in enumerate(frames)]
    name, first, last = html.escape(one_line(row["name"])), picture(source, levels), picture(translated.result, levels)
    return (
        f'<figure class="card"><div class="pictures"><div>{image(first, "source")}source</div>'
        f'<div><div class="route">{"".join(stack)}</div>route</div><div>{image(last, "result")}result</div></div>'
        f"<figcaption><b>{name}</b><br>{html.escape(', '.join(notes))}</figcaption></figure>"
    )
