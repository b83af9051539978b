"""``indm translate``: files of A translated into files of B, with a report of how well."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.config.options import TranslationOptions
from indm.data.images import SUFFIXES
from indm.evaluation.batch_translation import BatchTranslator, KeptBatches, Translated
from indm.evaluation.diagnosis import conclusions_of_translation
from indm.evaluation.extractor import load_or_train
from indm.evaluation.general_features import PACKAGE, general_features, weights_file
from indm.evaluation.results import table
from indm.evaluation.translation_metrics import COLUMNS, limits, row, translation_metrics, two_classes
from indm.evaluation.translation_page import FRAMES, MOST, STRENGTHS, Shown, write_page
from indm.evaluation.translation_results import PAGE, REPORT, ResultWriter, check_sources_stay
from indm.evaluation.translation_runs import TranslationRuns
from indm.evaluation.translation_sources import Example, Item, find, found_in
from indm.evaluation.translation_truth import against_truth, check_truth, truth_of, truth_rows
from indm.files import atomic
from indm.messages import reason
from indm.model import INDM
from indm.runs.processes import run_lock
from indm.runs.provenance import provenance, weights_hash
from indm.tensors import double, squared_norm
from indm.translation import Route

UNFINISHED = ".unfinished"  # folder of batches, until a translation is whole
OF_REPORT = ("page", "score", "truth", "size", "keep_alpha", "strict")  # options that no translation depends on
FEWEST_SCORED, MOST_SCORED = 20, 2000  # results that are compared, with the data of B or with their counterparts


def route_of(runs: TranslationRuns, options: TranslationOptions) -> Route:
    """The way from A to B.

    Raises:
        ValueError: a bad option, or a cycle where no way leads back.
    """
    shared: dict = {"strength": options.strength, "steps": options.steps, "tol": options.tol}
    if options.method == "sdedit":
        if options.guidance != 1:
            raise ValueError(f"guidance must be 1 for method 'sdedit', got {options.guidance:g}: it has no model of A")
        route = runs.sdedit(**shared)
    else:
        route = runs.route(stochastic=options.stochastic, guidance=options.guidance, **shared)
    if options.cycle:
        route.back()
    if options.errors and options.tol is None and options.steps < 2 * len(route.legs):
        raise ValueError(f"errors needs steps of at least {2 * len(route.legs)}, to halve them, got {options.steps}")
    return route


def check_sources(sources: Sequence[Path], options: TranslationOptions) -> None:
    """See, before any model is opened, that there is something to translate, and enough of it for the scores.

    Raises:
        ValueError: there is not.
    """
    files = [file for source in sources for file, _ in found_in(source)]
    if all(file.suffix.lower() in SUFFIXES for file in files):  # an array may hold many
        check_scored(len(files), options)
    if options.truth is not None:
        check_truth(sources, Path(options.truth))
    if options.truth is not None or (options.score and find_spec(PACKAGE)):
        weights_file()


def check_scored(n: int, options: TranslationOptions) -> None:
    """ValueError where ``n`` examples are too few for the scores that are asked for."""
    if options.score and n < FEWEST_SCORED:
        raise ValueError(f"score needs at least {FEWEST_SCORED} examples, got {n}; leave out --score, or give more")


def check_page(model: INDM, options: TranslationOptions) -> None:
    """ValueError where a page is asked for, and what ``model`` translates are no images."""
    if options.page and (len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.scaling.levels is None):
        raise ValueError(f"page needs images, got events of shape {model.shape}; leave out --page")


def translate_files(
    runs: TranslationRuns,
    sources: Sequence[Path],
    out: Path,
    options: TranslationOptions,
    *,
    resume: bool = False,
    progress: bool = True,
) -> dict:
    """Translate what lies in ``sources`` into ``out``, see :func:`~indm.evaluation.translation_sources.find`.

    Writes ``NAME.png`` for every image, ``NAME.npz`` for every array (``samples``, and the numbers of their ``rows``:
    one that failed is left out), ``sheet.png`` with sources and results in turns, and ``translation.json``; on request
    the way there as ``strips/NAME.png``, the way back as ``cycle/NAME.png``, and ``index.html``, a page to look at.
    Until all is done, translated batches are kept in ``.unfinished``; with ``resume`` these are not made again.

    Returns:
        What ``translation.json`` holds: a row for each example (its distance from the source, and the errors that were
        asked for), ``failed`` with the reason for each that could not be read, translated or written, times,
        evaluations, options, models; and ``conclusions`` on models that have hardly learned, see
        :func:`indm.evaluation.diagnosis.conclusions_of_translation`.

    Raises:
        ValueError: bad options, nothing found, a result that would be written over a source, nothing to resume, or
            another process at work in ``out``.
        OSError: nothing more can be written; the report names what was done until then.
    """
    route = route_of(runs, options)
    check_page(route.models[0], options)
    items = find(
        sources, route.models[0], runs.data, grey=runs.grey[0], strict=options.strict, alpha=options.keep_alpha
    )
    check_scored(len(items), options)
    if options.score and options.method == "sdedit" and len({*runs.folders}) < len(runs.folders):
        raise ValueError(f"score needs the data of A, too; name its run before {runs.folders[0]}, or leave out --score")
    if options.score and (n := len(runs.sides[1].test)) < FEWEST_SCORED:
        raise ValueError(f"score needs at least {FEWEST_SCORED} test examples of B, got {n}; leave out --score")
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
    about = {
        "models": [str(folder) for folder in (runs.folders if options.method == "flow" else runs.folders[-1:])],
        "kind": runs.kind,
        "direction": runs.direction,
        **({} if runs.classes == (None, None) else {"classes": list(runs.classes)}),
        "options": asdict(options),
        "provenance": provenance(options.seed, weights),
    }
    made_by = {key: value for key, value in asdict(options).items() if key not in OF_REPORT}
    made_by |= {"runs": [runs.direction, runs.classes, runs.noise, *weights.values()]}
    batches = KeptBatches(BatchTranslator(route, options), out / UNFINISHED, made_by)
    work = FileTranslation(batches, ResultWriter(out, route.models[0].scaling.levels, runs.grey, options.size))
    try:
        with tqdm(total=len(items), desc="translating", unit="image", disable=not progress) as bar:
            for first in range(0, len(items), options.batch_size):
                batch = items[first : first + options.batch_size]
                work.add(batch)
                bar.update(len(batch))
    finally:
        report = work.finish() | {"seconds_per_example": batches.seconds / max(1, batches.n)} | about
        atomic.json_object(out / REPORT, report)
    if report["examples"] and options.strength == 1:  # else little is meant to change
        levels = route.models[0].scaling.levels
        report["conclusions"] = conclusions_of_translation(mean_distance(report), levels, runs.folders)
        atomic.json_object(out / REPORT, report)
    if options.score and len(work.scored) >= FEWEST_SCORED:
        _, raw, translated = work.compared()
        report["scores"] = score(runs, raw, translated, out, progress)
        atomic.json_object(out / REPORT, report)
    if options.truth is not None and len(work.scored) > 1:
        names, raw, translated = work.compared()
        target, features = route.models[1], general_features(cast(int, route.models[1].scaling.levels))
        truth = truth_of(names, Path(options.truth), target, runs.data_b, runs.grey[1])
        report["truth"] = against_truth(raw, translated, truth, features.features, features.levels)
        report["truth"] |= {"extractor": features.provenance}
        atomic.json_object(out / REPORT, report)
    if options.page and report["examples"]:
        shown = [one for one in work.shown if one[0] in report["examples"]]
        add_page(out / PAGE, report, runs, options, shown, progress)
    return report


def score(runs: TranslationRuns, source: Tensor, result: Tensor, out: Path, progress: bool = True) -> dict:
    """See :func:`~indm.evaluation.translation_metrics.translation_metrics`; the classifier of both sides' data is
    kept in ``out/extractor``. General features count where their weights are installed.
    """
    a, b = runs.sides
    extractor = load_or_train(out / "extractor", two_classes(a, b), progress=progress)
    general = general_features(cast(int, b.scaling.levels)) if find_spec(PACKAGE) else None
    numbers = translation_metrics(source, result, b, extractor, 1, general and general.features)
    return numbers | {"extractor": extractor.provenance, "general": general and general.provenance}


def add_page(
    path: Path,
    report: dict,
    runs: TranslationRuns,
    options: TranslationOptions,
    translations: Sequence[tuple[dict, Tensor, Translated]],
    progress: bool = True,
) -> None:
    """Write the page on ``translations``: what the report says of each, its source, and what was made of it.

    Their frames, and their results at other strengths, are made here, as by a run on these images alone.
    """
    raw = torch.stack([source for _, source, _ in translations])
    options = replace(options, cycle=False, errors=False)
    with_frames = replace(options, strip=options.strip or FRAMES)
    made, way = {}, BatchTranslator(route_of(runs, options), with_frames)
    strengths = {s for s in STRENGTHS if s < 1 or options.method == "flow"} | {options.strength}
    for strength in tqdm(sorted(strengths), desc="the page", disable=not progress):
        other = replace(options, strength=strength, strip=0)
        translate = way if strength == options.strength else BatchTranslator(route_of(runs, other), other)
        made[strength] = [one for part in raw.split(options.batch_size) for one in translate.each(part)]
    shown = []
    for i, (line, source, written) in enumerate(translations):
        reached = {strength: one for strength, ones in made.items() if isinstance(one := ones[i], Translated)}
        results = {strength: reached[strength].result if strength in reached else None for strength in made}
        frames = reached[options.strength].frames if options.strength in reached else None
        shown.append(Shown(line, source, results | {options.strength: written.result}, frames, written.cycle_error))
    levels = cast(int, runs.models[0].scaling.levels)
    write_page(path, report, sentences(report), score_tables(report), shown, way.words(), levels)


class FileTranslation:
    """A translation under way: reads, translates and writes batches, and names what could not be."""

    def __init__(self, batches: KeptBatches, writer: ResultWriter):
        self.batches, self.translate, self.writer = batches, batches.translate, writer
        self.options = self.translate.options
        self.rows: list[dict] = []
        self.shown: list[tuple[dict, Tensor, Translated]] = []  # on the page
        self.scored: list[tuple[str, Tensor, Tensor]] = []
        self.failed: dict[str, str] = {}

    def add(self, items: list[Item]) -> None:
        """Translate a batch of items; those that cannot be read, translated or written are named in ``failed``."""
        read = [(item, example) for item in items if (example := self._read(item))]
        if read:
            self._add(read)

    def _read(self, item: Item) -> Example | None:
        try:
            return item.read()
        except (ValueError, OSError) as error:
            if self.options.strict:
                raise ValueError(f"strict: {item.source}: {error}") from error
            self.failed[item.name] = reason(error)
            return None

    def _add(self, read: list[tuple[Item, Example]]) -> None:
        translations = self.batches.each(torch.stack([example.pixels for _, example in read]))
        for (item, example), translated in zip(read, translations, strict=True):
            if isinstance(translated, RuntimeError):
                self.failed[item.name] = reason(translated)
                continue
            pictures = translated.returned, translated.frames, self.translate.times
            if not self.writer.write(item, example, translated.result, *pictures):
                continue
            raw = example.pixels
            self.rows.append(_row(item, example, translated))
            if self.options.page and len(self.shown) < MOST:
                self.shown.append((self.rows[-1], raw, translated))
            if (self.options.score or self.options.truth) and len(self.scored) < MOST_SCORED:
                self.scored.append((item.name, raw, translated.result))
            back = () if translated.returned is None else (translated.returned,)
            self.writer.show(raw, translated.result, *back)

    def compared(self) -> tuple[list[str], Tensor, Tensor]:
        """Names, sources and results of those that are compared with data."""
        names, raw, results = zip(*self.scored, strict=True)
        return list(names), torch.stack(raw), torch.stack(results)

    def finish(self) -> dict:
        """Write what is left; the rows, what failed, and the evaluations of one example."""
        lost = {str(source) for source in self.writer.finish()}
        rows = [line for line in self.rows if line["source"] not in lost]
        return {"examples": rows, "failed": self.failed | self.writer.failed, "nfe": self.translate.nfe}


def _row(item: Item, example: Example, translated: Translated) -> dict:
    """What the report says of one example."""
    raw = example.pixels
    distance = squared_norm(double(translated.result[None]) - double(raw[None])).sqrt().item()
    line = {"name": item.name, "source": str(item.source), "distance_rms": distance / math.sqrt(raw.numel())}
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
    return sum(line["distance_rms"] for line in report["examples"]) / len(report["examples"])


def summary(report: dict) -> str:
    """What came of a translation: a line of numbers, one for each conclusion, the scores."""
    return "\n".join([*sentences(report), *map(table, score_tables(report))])


def sentences(report: dict) -> list[str]:
    """The lines of the summary before the scores."""
    rows = report["examples"]
    if not rows:
        return [f"0 translated, {len(report['failed'])} failed"]
    distance = f"distance from the source {mean_distance(report):.1f} (RMS, mean over examples)"
    parts = [f"{len(rows)} translated", distance]
    resized = sum("note" in line for line in rows)
    parts += [f"{resized} resized"] if resized else []
    if report["options"]["cycle"]:
        parts.append(f"error of the cycle at most {max(line['cycle_error_max'] for line in rows):.2g}")
    if report["options"]["errors"]:
        parts.append(f"of the solver about {max(line['solver_error_max'] for line in rows):.2g}")
    parts.append(f"{report['nfe']} evaluations, {report['seconds_per_example']:.2g} s each")
    lines = [", ".join(parts), *report.get("conclusions", ())]
    if report["options"]["score"] and "scores" not in report:
        lines.append(f"no scores: they need at least {FEWEST_SCORED} results")
    if "scores" in report:
        scores = report["scores"]
        lines += ["no SSIM: pip install 'indm[metrics]'"] if scores["ssim"] is None else []
        lines += ["no general features: pip install 'indm[features]'"] if scores["general"] is None else []
    return lines


def score_tables(report: dict) -> list[list[tuple[str, ...]]]:
    """The scores against the data of B, and against true counterparts, as rows; those that there are."""
    tables = []
    if "scores" in report:
        rows = {"results": row(report["scores"])} | limits(report["scores"])
        tables.append([("", *COLUMNS.values()), *((title, *cells) for title, cells in rows.items())])
    if "truth" in report:
        tables.append(truth_rows(report["truth"]))
    return tables
