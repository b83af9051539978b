"""``indm translate``: files of A translated into files of B, with a report of how well."""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from indm.files import atomic, untrusted
from indm.messages import reason
from indm.tensors import double
from indm.translation import Route
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.devices import run_lock
from indm.workbench.runs.provenance import provenance, weights_hash
from indm.workbench.translation.pictures import MOST, FrameStrip, picture, write_page, write_strips
from indm.workbench.translation.routes import (
    SHEET,
    BatchTranslator,
    Example,
    Item,
    Translated,
    TranslationRuns,
    each_of,
    find,
    route_of,
)

NEAR_SOURCE = 3 / 256  # distance of a result from its source, as a share of the grey levels
REPORT, PAGE = "translation.json", "index.html"
UNFINISHED = ".unfinished"  # folder of batches, until a translation is complete
IN_SHEET = 64  # results that the sheet shows, at most
OF_REPORT = ("page", "size", "keep_alpha", "strict")  # options that no batch depends on


def translate_files(
    runs: TranslationRuns,
    sources: Sequence[Path],
    out: Path,
    options: TranslationOptions,
    *,
    resume: bool = False,
    progress: bool = True,
) -> dict:
    """Translate what lies in ``sources`` into ``out``, see :func:`~indm.workbench.translation.routes.find`.

    Writes ``NAME.png`` for every image, ``NAME.npz`` for every array (``samples``, and the numbers of their ``rows``:
    one that failed is left out), ``sheet.png`` with sources and results, and ``translation.json``; on request the route
    as ``strips/NAME.png``, the way back as ``cycle/NAME.png``, and ``index.html``, a page to look at. Until all is
    done, translated batches are kept in ``.unfinished``; with ``resume`` these are not made again.

    Returns:
        What ``translation.json`` holds: a row for each example (its distance from the source, and the errors that were
        asked for), ``failed`` with the reason for each that could not be read or translated, times, evaluations,
        options, models; and ``conclusions`` on models that have hardly learned, see
        :func:`conclusions`.

    Raises:
        ValueError: bad options, nothing found, a result that would be written over a source, nothing to resume, or
            another process at work in ``out``.
        OSError: a file cannot be written; the report names what was done until then.
    """
    route = route_of(runs, options)
    model, grey = route.models[0], runs.grey[0]
    if options.page and (len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.scaling.levels is None):
        raise ValueError(f"page needs images, got events of shape {model.shape}; leave out --page")
    items = find(sources, model, runs.data, grey=grey, strict=options.strict, alpha=options.keep_alpha)
    check_sources_stay(items, out, options.folders())
    unfinished = out / UNFINISHED
    if resume and not unfinished.exists():
        raise ValueError(f"resume: {out} holds no interrupted translation; leave out --resume")
    with run_lock(unfinished):
        if not resume:
            for batch in unfinished.glob("*.safetensors"):
                batch.unlink()
        report = _translate(runs, route, items, out, options, progress)
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _translate(
    runs: TranslationRuns, route: Route, items: list[Item], out: Path, options: TranslationOptions, progress: bool
) -> dict:
    """The report of :func:`translate_files`, and all that it writes."""
    weights = {str(folder): weights_hash(folder) for folder in runs.folders}
    made_by = {key: value for key, value in asdict(options).items() if key not in OF_REPORT}
    made_by |= {"runs": [runs.direction, runs.classes, runs.noise, *weights.values()]}
    batches = KeptBatches(BatchTranslator(route, options), out / UNFINISHED, made_by)
    translation = Translation(batches, out, runs.grey)
    try:
        with tqdm(total=len(items), desc="translating", unit="image", disable=not progress) as bar:
            for first in range(0, len(items), options.batch_size):
                batch = items[first : first + options.batch_size]
                translation.add(batch)
                bar.update(len(batch))
    finally:
        report = translation.finish() | {
            "seconds_per_example": batches.seconds / max(1, batches.n),
            "models": [str(folder) for folder in (runs.folders if options.method == "flow" else runs.folders[-1:])],
            "kind": runs.kind,
            "levels": route.models[0].scaling.levels,
            "direction": runs.direction,
            **({} if runs.classes == (None, None) else {"classes": list(runs.classes)}),
            "options": asdict(options),
            "provenance": provenance(options.seed, weights),
        }
        atomic.json_object(out / REPORT, report)
    if report["examples"] and options.strength == 1:  # else little is meant to change
        levels = route.models[0].scaling.levels
        report["conclusions"] = conclusions(mean_distance(report), levels, runs.folders)
    atomic.json_object(out / REPORT, report)
    if options.page and report["examples"]:
        write_page(out / PAGE, report, sentences(report), runs, options, translation.kept[:MOST], progress)
    return report


class KeptBatches:
    """Translates batches and keeps each in ``folder``, so that a translation that was interrupted goes on.

    A batch of the same examples and the same ``made_by``, what else decides the results, is not made again. One with an
    example that failed is not kept. ``n`` examples took ``seconds``, those of kept batches included.
    """

    def __init__(self, translate: BatchTranslator, folder: Path, made_by: Mapping):
        self.translate, self.folder, self.made_by = translate, folder, json.dumps(made_by)
        self.n, self.seconds = 0, 0.0

    def each(self, raw: Tensor) -> list[Translated | RuntimeError]:
        """The translations of the next batch, or the errors of those that fail.

        Raises:
            OSError: the batch cannot be kept.
        """
        path = self.folder / f"{self._name(raw)}.safetensors"
        self.n += len(raw)
        if path.exists():
            return [*self._read(path)]
        started = time.perf_counter()
        ones = self.translate.each(raw)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        if all(isinstance(one, Translated) for one in ones):
            self._write(path, ones, seconds)
        return ones

    def _name(self, raw: Tensor) -> str:
        """A hash of all that decides the batch; the noise that is still to be drawn depends on the batches before."""
        noise = self.translate.generator.get_state()
        return hashlib.sha256(self.made_by.encode() + noise.numpy().tobytes() + raw.numpy().tobytes()).hexdigest()

    def _write(self, path: Path, ones: Sequence[Translated | RuntimeError], seconds: float) -> None:
        names = [name for name, value in vars(ones[0]).items() if value is not None]
        columns = {name: torch.stack([getattr(one, name) for one in ones]) for name in names}
        columns["noise"], columns["nfe"] = self.translate.generator.get_state(), torch.tensor(self.translate.nfe)
        columns["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        atomic.whole(path, atomic.weights_into(columns))

    def _read(self, path: Path) -> list[Translated]:
        columns = {name: tensor.clone() for name, tensor in untrusted.weights(path).items()}  # no file is held open
        self.translate.generator.set_state(columns.pop("noise"))
        self.translate.nfe = max(self.translate.nfe, int(columns.pop("nfe")))
        self.seconds += columns.pop("seconds").item()
        return each_of(columns)


class Translation:
    """A translation under way: reads, translates and writes batches; arrays and the sheet are written at the end.

    Attributes:
        rows: of the report.
        failed: the reason for each item that could not be read or translated, by name.
        kept: row, source and translation of the first, which the sheet and the page show.
    """

    def __init__(self, batches: KeptBatches, out: Path, grey: tuple[bool, bool]):
        self.batches, self.translate, self.out, self.grey = batches, batches.translate, out, grey
        self.options, self.levels = self.translate.options, cast(int, self.translate.route.models[0].scaling.levels)
        self.rows: list[dict] = []
        self.failed: dict[str, str] = {}
        self.kept: list[tuple[dict, Tensor, Translated]] = []
        self.arrays: dict[Path, list[tuple[Item, Tensor]]] = {}

    def add(self, items: list[Item]) -> None:
        """Translate a batch of items and write their results; those for which that fails are named in ``failed``."""
        read = [(item, example) for item in items if (example := self._read(item))]
        if not read:
            return
        translations = self.batches.each(torch.stack([example.pixels for _, example in read]))
        for (item, example), translated in zip(read, translations, strict=True):
            if isinstance(translated, RuntimeError):
                self.failed[item.name] = reason(translated)
            else:
                self._write(item, example, translated)
                self._keep(item, example, translated)

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
        if translated.frames is not None:
            strip = FrameStrip("", self.translate.times, translated.frames, self.levels)
            write_strips([strip], self.out / "strips" / f"{item.name}.png")
        if item.row is not None:
            self.arrays.setdefault(item.source, []).append((item, translated.result))
            return
        _save(result_path(self.out, item), self._like(source, translated.result))
        if translated.returned is not None:
            _save(self.out / "cycle" / f"{item.name}.png", self._picture(translated.returned, self.grey[0]))

    def _keep(self, item: Item, example: Example, translated: Translated) -> None:
        """Keep what the report, the page and the sheet need of one result."""
        self.rows.append(_row(item, example, translated))
        if len(self.kept) < IN_SHEET:
            self.kept.append((self.rows[-1], example.pixels, translated))

    def finish(self) -> dict:
        """Write arrays and sheet; the rows, what failed, and the evaluations of one example."""
        for pairs in self.arrays.values():
            items, results = zip(*pairs, strict=True)
            self._save_array(items, torch.stack(results))
        if self.kept:
            self._save_sheet(self.out / f"{SHEET}.png")
        return {"examples": self.rows, "failed": self.failed, "nfe": self.translate.nfe}

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


def _row(item: Item, example: Example, translated: Translated) -> dict:
    """What the report says of one example."""
    raw = example.pixels
    distance = (double(translated.result) - double(raw)).square().mean().sqrt().item()
    line = {"name": item.name, "source": str(item.source), "distance_rms": distance}
    line |= {"note": example.note} if example.note else {}
    if translated.cycle_error is not None and translated.cycle_error_rounded is not None:
        line["cycle_error_max"] = translated.cycle_error.max().item()
        line["cycle_error_rounded"] = translated.cycle_error_rounded.item()
    for name in ("written_cycle_error", "solver_error"):
        if (error := getattr(translated, name)) is not None:
            line[f"{name}_max"] = error.item()
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
