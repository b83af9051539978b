"""``indm translate``: files of A translated into files of B, with a report."""

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from indm.workbench.data.images import Example
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.provenance import provenance, weights_hash
from indm.workbench.translation.routes import SHEET, Item, TranslationRuns, find_items

REPORT = "translation.json"
IN_SHEET = 64  # most results in the sheet


def translate_files(
    runs: TranslationRuns,
    sources: Sequence[Path],
    out: Path,
    options: TranslationOptions,
    *,
    progress: bool = True,
) -> dict:
    """Translate the examples in ``sources`` (see :func:`find_items`) into ``out``.

    An image becomes ``NAME.png``, and an array ``NAME.npz`` with ``samples`` and the numbers of
    their ``rows``, of which failed ones are left out. ``sheet.png`` has sources and results. The
    way back, if it is wanted, goes to ``cycle/NAME.png``.

    Returns:
        The content of ``translation.json``: a row for each example with its distance from the
        source and its errors, ``failed`` with a reason for each, times, evaluations, options and
        models.

    Raises:
        ValueError: bad options, nothing found, or a result would replace a source.
        OSError: a file cannot be written; the report has the examples until then.
    """
    route = runs.route(
        method=options.method,
        strength=options.strength,
        stochastic=options.stochastic,
        guidance=options.guidance,
        steps=options.steps,
        tol=options.tol,
    )
    if options.cycle:
        route.back()  # an error now if there is no way back
    model = route.models[0]
    items = find_items(sources, model, runs.data)
    check_sources_stay(items, out, ["cycle"] if options.cycle else [])
    weights = {str(folder): weights_hash(folder) for folder in runs.folders}
    translation = Translation(route, options, out)
    try:
        with tqdm(total=len(items), desc="translating", unit="image", disable=not progress) as bar:
            for first in range(0, len(items), options.batch_size):
                batch = items[first : first + options.batch_size]
                translation.add(batch)
                bar.update(len(batch))
    finally:
        used = runs.folders if options.method == "flow" else runs.folders[-1:]
        report = translation.finish() | {
            "models": [str(folder) for folder in used],
            "levels": model.scaling.levels,
            "direction": runs.direction,
            **({} if runs.classes == (None, None) else {"classes": list(runs.classes)}),
            "options": asdict(options),
            "provenance": provenance(options.seed, weights),
        }
        atomic.json_object(out / REPORT, report)
    return report


@dataclass(frozen=True)
class Translated:
    """One translated example in data units.

    ``errors`` are the largest differences between the way back and the start of the route:
    "cycle_error_rounded", and "cycle_error_max" before rounding and before the noise of a bridge is
    removed.
    """

    result: Num[Tensor, "*event"]  # the example as one of B
    returned: Num[Tensor, "*event"] | None = None  # translated back to A
    errors: dict[str, float] = field(default_factory=dict)


class Translation:
    """A translation in progress: batches are written at once, arrays and the sheet at the end."""

    def __init__(self, route: Route, options: TranslationOptions, out: Path):
        self.route = route
        self.options = options
        self.out = out
        self.seconds = 0.0
        self.nfe = 0
        scaling = route.models[0].scaling
        self.levels = cast(int, scaling.levels)
        self.generator = torch.Generator(scaling.scale.device).manual_seed(options.seed)
        self.rows: list[dict] = []  # one for each example in the report
        self.failed: dict[str, str] = {}  # reasons, by name
        # sources and translations for the sheet
        self.kept: list[tuple[Tensor, Translated]] = []
        self.arrays: dict[Path, list[tuple[Item, Tensor]]] = {}

    def add(self, items: list[Item]) -> None:
        """Translate a batch of items and write their results."""
        examples = [(item, self._read(item)) for item in items]
        read = [(item, example) for item, example in examples if example]
        if not read:
            return
        started = time.perf_counter()
        translations = self.each(torch.stack([example.pixels for _, example in read]))
        self.seconds += time.perf_counter() - started
        for (item, example), translated in zip(read, translations, strict=True):
            if isinstance(translated, RuntimeError):
                self.failed[item.name] = reason(translated)
                continue
            self._write(item, translated)
            difference = double(translated.result) - double(example.pixels)
            distance = difference.square().mean().sqrt().item()
            row = {"name": item.name, "source": str(item.source), "distance_rms": distance}
            row |= {"note": example.note} if example.note else {}
            self.rows.append(row | translated.errors)
            if len(self.kept) < IN_SHEET:
                self.kept.append((example.pixels, translated))

    def _read(self, item: Item) -> Example | None:
        try:
            return item.read()
        except (ValueError, OSError) as error:
            self.failed[item.name] = reason(error)
            return None

    def each(self, raw: Num[Tensor, "batch *event"]) -> list[Translated | RuntimeError]:
        """The translations of examples; if the batch fails, each alone, or its error."""
        try:
            return [*self.translated(raw)]
        except RuntimeError as error:
            return [error] if len(raw) == 1 else [self.each(one)[0] for one in raw.split(1)]

    def translated(self, raw: Num[Tensor, "batch *event"]) -> list[Translated]:
        """The translations of a batch; RuntimeError if an inverse did not converge."""
        source, target = (model.scaling for model in self.route.models)
        seed = self.options.seed
        there = self.route.translate(raw, seed, generator=self.generator)
        self.nfe = max(self.nfe, there.nfe)
        results = target.to_data(there.x).cpu()
        if not self.options.cycle:
            return [*map(Translated, results)]
        x, back = self.route.source(raw, seed), self.route.back().follow(there.end)
        exact = (back.end - x) * source.scale
        rounded = double(source.to_data(back.end)) - double(source.to_data(x))
        largest = [difference.abs().flatten(1).amax(1).tolist() for difference in (exact, rounded)]
        errors = [
            {"cycle_error_max": a, "cycle_error_rounded": b} for a, b in zip(*largest, strict=True)
        ]
        return [*map(Translated, results, source.to_data(back.x).cpu(), errors)]

    def _write(self, item: Item, translated: Translated) -> None:
        """Write the pictures of one result; results from an array are written at the end."""
        if item.row is not None:
            self.arrays.setdefault(item.source, []).append((item, translated.result))
            return
        images = {result_path(self.out, item): picture(translated.result, self.levels)}
        if translated.returned is not None:
            images[self.out / "cycle" / f"{item.name}.png"] = picture(
                translated.returned, self.levels
            )
        for path, shown in images.items():
            atomic.whole(path, functools.partial(shown.save, format="PNG"))

    def finish(self) -> dict:
        """Write arrays and the sheet; the first part of the report."""
        for pairs in self.arrays.values():
            items, results = zip(*pairs, strict=True)
            content = {
                "samples": torch.stack(results).numpy(),
                "levels": np.array(self.levels or 0),
            }
            content |= {"rows": np.array([item.row for item in items])}
            atomic.whole(result_path(self.out, items[0]), atomic.arrays_into(content))
        if self.kept:
            self._save_sheet(self.out / f"{SHEET}.png")
        each = self.seconds / max(1, len(self.rows) + len(self.failed))
        return {
            "examples": self.rows,
            "failed": self.failed,
            "nfe": self.nfe,
            "seconds_per_example": each,
        }

    def _save_sheet(self, path: Path) -> None:
        from indm.workbench.figures import plots, sheets  # they load matplotlib

        sources, translations = zip(*self.kept, strict=True)
        columns = {
            "source": torch.stack(sources),
            "result": torch.stack([one.result for one in translations]),
        }
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
    """ValueError if a result in ``out``, or in its folders ``beside``, would replace a source."""
    results = {out / REPORT, out / f"{SHEET}.png"}
    for item in items:
        results.add(result_path(out, item))
        results |= {out / folder / f"{item.name}.png" for folder in beside}
    sources = {item.source.resolve() for item in items}
    over = sorted(path for path in results if path.resolve() in sources)
    if over:
        raise ValueError(
            f"out must be another folder: a result would be written over the source {over[0]}"
        )


def summary(report: dict) -> str:
    """The result of a translation in one line."""
    rows, options = report["examples"], report["options"]
    if not rows:
        return f"0 translated, {len(report['failed'])} failed"
    distance, levels = sum(row["distance_rms"] for row in rows) / len(rows), report["levels"]
    unit = f"of {levels} grey levels"
    parts = [
        f"{len(rows)} translated",
        f"distance from the source {distance:.1f} {unit} (RMS, mean over examples)",
    ]
    resized = sum("note" in row for row in rows)
    parts += [f"{resized} resized"] if resized else []
    if options["cycle"]:
        error = max(row["cycle_error_max"] for row in rows)
        cure = " (more steps make it smaller)" if error >= 1 else ""
        parts.append(f"error of the cycle at most {error:.3g} {unit}{cure}")
    parts += [f"{report['nfe']} evaluations", f"{report['seconds_per_example']:.2g} s each"]
    return ", ".join(parts)


def picture(pixels: Num[Tensor, "c h w"], levels: int) -> Image.Image:
    """An image in grey levels as one of 256 levels."""
    pixels = (pixels.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
