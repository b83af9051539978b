"""Two data sets A and B and what carries one into the other: two models trained in one go, or one bridge; the files
translated with them.

The folder of a pair holds an ordinary run for each side, ``a`` and ``b``, of the same recipe but for its data. A bridge
is an ordinary run of a recipe with ``[data_b]`` and ``train.terminal``.
"""

import errno
import glob
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from indm.config.checks import check_whole_numbers
from indm.data.arrays import read_events
from indm.data.images import SUFFIXES, read_image, square
from indm.data.registry import load_data
from indm.evaluation import plots
from indm.evaluation.comparison import table
from indm.evaluation.extractor import load_or_train
from indm.evaluation.translation_metrics import COLUMNS, limits, row, translation_metrics, two_classes
from indm.files import atomic
from indm.messages import reason
from indm.model import INDM
from indm.runs.folder import open_run
from indm.runs.provenance import provenance, weights_hash
from indm.tensors import squared_norm
from indm.training.pairs import SIDES
from indm.translation import DIRECTIONS, STEPS, Arrival, Route, bridge, two_models

ARRAY_SUFFIXES = {".npz", ".npy"}
SHEET = "sheet"  # a picture beside the results, so that an image of that name keeps its suffix
IN_SHEET = 64  # results that the contact sheet shows, at most
TOLD = "translation.json"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors that no other image is spared
FEWEST_SCORED, MOST_SCORED = 20, 2000  # results that are compared with the data of B


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is that of a run, or of a pair of them."""
    return (folder / "recipe.toml").is_file() or is_pair(folder)


def is_pair(folder: Path) -> bool:
    return all((folder / side / "recipe.toml").is_file() for side in SIDES)


@dataclass(frozen=True)
class Opened:
    """What translates, as read from disk.

    Attributes:
        folders: the run folders of the models, in the order in which a route meets them.
        models: one for a bridge, else two.
        direction: of a bridge, and of a pair's folder.
        data, data_b: the ``[data]`` tables of the side where the route begins and of that where it ends.
    """

    folders: tuple[Path, ...]
    models: tuple[INDM, ...]
    direction: str
    data: dict
    data_b: dict

    def route(self, **options) -> Route:
        """See :func:`indm.translation.two_models` and :func:`indm.translation.bridge` for the options."""
        return (
            bridge(*self.models, self.direction, **options)
            if len(self.models) == 1
            else two_models(*self.models, **options)
        )


def open_runs(folders: Sequence[Path], direction: str = "forward") -> Opened:
    """Two runs, from the first to the second; or one bridge, or one pair, in either ``direction``.

    Raises:
        ValueError: one run that is no bridge, a direction for two runs, more than two.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'forward' or 'backward', got {direction!r}")
    turn = direction == "backward"
    if len(folders) == 1 and is_pair(folders[0]):
        folders = [folders[0] / side for side in (reversed(SIDES) if turn else SIDES)]
    elif len(folders) == 2 and turn:
        folders = list(reversed(folders))
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"one or two run folders must come first, got {len(folders)}")
    models, found = zip(*(open_run(folder) for folder in folders), strict=True)
    tables = [recipe["data"] for recipe in found]
    if len(folders) == 1:
        if "data_b" not in found[0] or not found[0]["train"]["terminal"]:
            raise ValueError(
                f"{folders[0]} is no bridge (a recipe with [data_b] and train.terminal); give a second run after it"
            )
        tables.append(found[0]["data_b"])
        tables = list(reversed(tables)) if turn else tables
    return Opened(tuple(folders), models, direction, *tables)


@dataclass(frozen=True)
class Item:
    """One example: the ``name`` of its result, the ``source`` it comes from, and how to ``read`` it, (C, H, W) or (D,)
    in data units with a note of what was done to it; ``row`` of an array, None of an image file."""

    name: str
    source: Path
    read: Callable[[], tuple[Tensor, str]]
    row: int | None = None


def find(sources: Sequence[Path], model: INDM, data: dict, strict: bool = False) -> list[Item]:
    """The examples in files, folders (searched recursively), glob patterns, ``.npz`` and ``.npy`` arrays.

    Args:
        model: whose shape and grey levels they must have; images of another size are cut and resized as ``data`` (the
            ``[data]`` table of a run on a folder) says, else by the largest centred square.
        strict: an image of another size, or what is no image, is an error.

    Raises:
        ValueError: nothing found, an array of another shape, an image where the model has no images.
    """
    items: list[Item] = []
    for source in sources:
        files = _files(source)
        if not files:
            raise ValueError(f"no image or array found in '{source}'; png, jpeg, webp, … and npz, npy would do")
        for file, name in files:
            if file.suffix.lower() in ARRAY_SUFFIXES:
                items += _rows(file, name, model)
            elif len(model.shape) != 3 or model.shape[0] not in (1, 3):
                raise ValueError(
                    f"{file}: events of shape {model.shape} are no image files; an .npz of arrays would do"
                )
            else:
                items.append(Item(name, file, _reader(file, model, data, strict)))
    names = Counter(item.name for item in items if item.row is None) + Counter([SHEET])
    items = [_with_suffix(item) if names[item.name] > 1 and item.row is None else item for item in items]
    written = Counter(
        name for item in items for name in (item.name, *(f"{beside}/{item.name}" for beside in ("cycle", "strips")))
    )
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} names of results come twice, such as {twice[0]!r}; translate them apart")
    return items


def _files(source: Path) -> list[tuple[Path, str]]:
    """Files and the names of their results, without suffix: below a folder, with the path below it."""
    if source.is_dir():
        known = SUFFIXES | ARRAY_SUFFIXES
        below = sorted(path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in known)
        below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
        return [(source / path, str(path.with_suffix(""))) for path in below if (source / path).is_file()]
    if source.is_file():
        return [(source, source.stem)]
    return [(path, path.stem) for path in map(Path, sorted(_matching(source))) if path.is_file()]


def _matching(pattern: Path) -> set[str]:
    """What a glob pattern matches; its ``**`` follows no links, as two that lead back have ever more ways through."""
    if "**" not in pattern.parts:
        return set(glob.glob(str(pattern)))
    at, found = pattern.parts.index("**"), set()
    below = Path(*pattern.parts[at + 1 :] or ("*",))
    for top in glob.glob(str(Path(*pattern.parts[:at]))):
        for folder, inner, _ in os.walk(top):
            inner[:] = [name for name in inner if not name.startswith(".")]
            found |= _matching(Path(glob.escape(folder)) / below)
    return found


def _with_suffix(item: Item) -> Item:
    return Item(f"{item.name}{item.source.suffix}", item.source, item.read)


def _rows(file: Path, name: str, model: INDM) -> list[Item]:
    array = read_events(file, model.scaling.levels)
    if tuple(array.shape[1:]) != model.shape:
        raise ValueError(f"{file} must hold events of shape {model.shape}, got {tuple(array.shape[1:])}")
    return [Item(f"{name}-{row:05d}", file, lambda row=row: (array[row], ""), row) for row in range(len(array))]


def _reader(file: Path, model: INDM, data: dict, strict: bool) -> Callable[[], tuple[Tensor, str]]:
    channels, height, width = model.shape
    options = {key: data[key] for key in ("resize", "crop") if key in data}

    def read() -> tuple[Tensor, str]:
        image, note = read_image(file), ""
        if image.size == (width, height):
            pixels = F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))
        elif strict or height != width:
            raise ValueError(f"{image.width}×{image.height} pixels, and the model has {width}×{height}")
        else:
            pixels = square(image, width, channels, **options)
            note = f"resized from {image.width}×{image.height}"
        return (pixels.double() * (model.scaling.levels - 1) / 255).round().to(torch.uint8), note

    return read


@dataclass(frozen=True)
class Options:
    """How to translate and what to write beside the results."""

    strength: float = 1.0
    stochastic: bool = False
    steps: int = STEPS
    tol: float | None = None
    seed: int = 0
    strip: int = 0  # frames of each leg on the strip; 0 for none
    cycle: bool = False
    score: bool = False  # of the results against the data of both sides
    strict: bool = False
    batch_size: int = 64

    def __post_init__(self):
        check_whole_numbers(self)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}; 64 is usual")
        if self.strip < 0 or self.strip == 1:
            raise ValueError(f"strip must be 0 for none or at least 2 frames, got {self.strip}")


def translate_files(
    opened: Opened, sources: Sequence[Path], out: Path, options: Options, *, progress: bool = True
) -> dict:
    """Translate what lies in ``sources`` into ``out``, see :func:`find`.

    Writes for every image ``NAME.png``, for every array ``NAME.npz`` (``samples``, and of which ``rows`` they are, as
    one that failed has none), ``sheet.png`` with sources and results in turns,
    and ``translation.json``; on request the way there as ``strips/NAME.png`` and the way back as ``cycle/NAME.png``.

    Returns:
        What ``translation.json`` holds: a row for each example (its distance from the source, the error of its cycle),
        ``failed`` with the reason for each that could not be read, translated or written, times, evaluations, options,
        models.

    Raises:
        ValueError: bad options, nothing found, or a result that would be written over a source.
        OSError: nothing can be written any more; what was done by then is told of.
    """
    route = opened.route(strength=options.strength, stochastic=options.stochastic, steps=options.steps, tol=options.tol)
    if options.cycle:
        route.back()  # says so where there is none
    items = find(sources, route.models[0], opened.data, options.strict)
    check_sources_stay(items, out, options)
    work = _Work(route, out, options)
    started = time.perf_counter()
    try:
        with tqdm(total=len(items), desc="translating", unit="image", disable=not progress) as bar:
            for first in range(0, len(items), options.batch_size):
                batch = items[first : first + options.batch_size]
                work.add(batch)
                bar.update(len(batch))
    finally:
        report = work.finish() | {
            "seconds_per_example": (time.perf_counter() - started) / len(items),
            "models": [str(folder) for folder in opened.folders],
            "direction": opened.direction,
            "options": asdict(options),
            "provenance": provenance(options.seed, {str(f): weights_hash(f) for f in opened.folders}),
        }
        atomic.json_object(out / TOLD, report)
    if options.score and len(work.kept) >= FEWEST_SCORED:
        report["scores"] = score(opened, *(torch.stack(side) for side in zip(*work.kept, strict=True)), out, progress)
        atomic.json_object(out / TOLD, report)
    return report


def check_sources_stay(items: Sequence[Item], out: Path, options: Options) -> None:
    """ValueError where a result has the place of one of the sources, by whatever name or link."""
    beside = [name for name, wanted in {"cycle": options.cycle, "strips": options.strip}.items() if wanted]
    results = {out / TOLD, out / f"{SHEET}.png"}
    for item in items:
        results |= {_result(out, item)} | {out / name / f"{item.name}.png" for name in beside}
    sources = {_file(item.source) for item in items}
    over = sorted(path for path in results if _file(path) in sources)
    if over:
        raise ValueError(f"{over[0]} is one of the sources, and a result would be written over it; use another --out")


def _result(out: Path, item: Item) -> Path:
    """Where the result of ``item`` is written, of an array's rows together."""
    return out / (f"{item.name}.png" if item.row is None else f"{item.name.rsplit('-', 1)[0]}.npz")


def _file(path: Path) -> tuple[int, int] | None:
    """Which file on which disk; None where there is none."""
    try:
        found = path.stat()
        return found.st_dev, found.st_ino
    except OSError:
        return None


def score(opened: Opened, source: Tensor, result: Tensor, out: Path, progress: bool = True) -> dict:
    """See :func:`~indm.evaluation.translation_metrics.translation_metrics`; the classifier of both sides' data is
    kept in ``out/extractor``.
    """
    a, b = (load_data(**table) for table in (opened.data, opened.data_b))
    extractor = load_or_train(out / "extractor", two_classes(a, b), progress=progress)
    return translation_metrics(source, result, b, extractor, label=1) | {"extractor": extractor.provenance}


class _Work:
    """One translation under way: its results are written as they come."""

    def __init__(self, route: Route, out: Path, options: Options):
        self.route, self.out, self.options = route, out, options
        self.levels = route.models[0].scaling.levels
        self.device = route.models[0].scaling.scale.device
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.rows: list[dict] = []
        self.failed: dict[str, str] = {}
        self.shown: list[tuple[Tensor, ...]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.arrays: dict[Path, list[tuple[Item, Tensor]]] = {}
        self.nfe = 0
        out.mkdir(parents=True, exist_ok=True)

    def add(self, items: list[Item]) -> None:
        """Read, translate and write a batch; what cannot be read, translated or written is named, the rest goes on."""
        read: list[tuple[Item, Tensor, str]] = []
        for item in items:
            try:
                read.append((item, *item.read()))
            except (ValueError, OSError) as error:
                if self.options.strict:
                    raise ValueError(f"strict: {item.source}: {error}") from error
                self.failed[item.name] = reason(error)
        if not read:
            return
        try:
            self._translate(read)
        except RuntimeError:
            for alone in read:  # to know which one it was
                try:
                    self._translate([alone])
                except RuntimeError as error:
                    self.failed[alone[0].name] = reason(error)

    def _translate(self, read: list[tuple[Item, Tensor, str]]) -> None:
        raw = torch.stack([tensor for _, tensor, _ in read])
        source, target = self.route.models
        x = source.scaling.centre(raw.to(self.device))
        there = self.route.follow(x, frames=self.options.strip, generator=self.generator)
        results = target.scaling.to_data(there.x).cpu()
        back = self.route.back().follow(there.x) if self.options.cycle else None
        returned = None if back is None else source.scaling.to_data(back.x).cpu()
        errors = None if back is None else ((back.x - x) * source.scaling.scale).flatten(1).abs().amax(1).tolist()
        strips = self._strips(there) if self.options.strip and raw.ndim == 4 else None
        self.nfe = max(self.nfe, there.nfe)
        for i, (item, _, note) in enumerate(read):
            distance = squared_norm(results[i : i + 1].double() - raw[i : i + 1].double()).sqrt().item()
            line = {"name": item.name, "source": str(item.source), "distance_rms": distance / math.sqrt(raw[0].numel())}
            line |= {"note": note} if note else {}
            line |= {} if errors is None else {"cycle_error_max": errors[i]}
            beside = {} if strips is None else {"strips": strips[i]}
            beside |= {} if returned is None or item.row is not None else {"cycle": returned[i][None]}
            try:
                self._write(item, results[i], beside)
            except OSError as error:
                self._name(item, error)
                continue
            self.rows.append(line)
            if self.options.score and len(self.kept) < MOST_SCORED:
                self.kept.append((raw[i], results[i]))
            if len(self.shown) < IN_SHEET:
                self.shown.append((raw[i], results[i], *(() if returned is None else (returned[i],))))

    def _strips(self, there: Arrival) -> Tensor:
        """The frames in data units, (B, frames, *event)."""
        by_leg = there.frames.split(self.options.strip, 1)
        parts = [leg.model.scaling.to_data(f) for leg, f in zip(self.route.legs, by_leg, strict=True)]
        return torch.cat(parts, 1).cpu()

    def _write(self, item: Item, result: Tensor, beside: dict[str, Tensor]) -> None:
        """Write a result, or keep it for its array; and what goes by its name in the folders ``beside`` it."""
        for folder, shown in beside.items():
            self._save(self.out / folder / f"{item.name}.png", shown)
        if item.row is None:
            self._save(_result(self.out, item), result[None])
        else:
            self.arrays.setdefault(item.source, []).append((item, result))

    def _name(self, item: Item, error: OSError) -> None:
        """Note that ``item`` cannot be written; where no other can be either, that ends it all."""
        if error.errno in OF_THE_DISK:
            raise error
        self.failed[item.name] = reason(error)

    def _save(self, path: Path, images: Tensor) -> None:
        """Images (N, C, H, W) side by side as PNG, pixel for pixel."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (torch.cat(images.unbind(0), 2).double() * 255 / (self.levels - 1)).round().to(torch.uint8)
        image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
        atomic.whole(path, lambda beside: image.save(beside, format="PNG"))

    def finish(self) -> dict:
        """Write the arrays and the sheet; the rows, what failed, and the evaluations of one example."""
        for source, found in self.arrays.items():
            items, results = zip(*found, strict=True)
            try:
                self._save_array(items, torch.stack(results))
            except OSError as error:
                self.rows = [line for line in self.rows if line["source"] != str(source)]
                for item in items:
                    self._name(item, error)
        if self.shown:
            self._sheet(self.out / f"{SHEET}.png")
        return {"examples": self.rows, "failed": self.failed, "nfe": self.nfe}

    def _save_array(self, items: Sequence[Item], results: Tensor) -> None:
        path = _result(self.out, items[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"samples": results.numpy(), "levels": np.array(self.levels or 0)}
        atomic.whole(path, atomic.arrays_into(content | {"rows": np.array([item.row for item in items])}))

    def _sheet(self, path: Path) -> None:
        columns = [torch.stack(column) for column in zip(*self.shown, strict=True)]
        if columns[0].ndim == 4:
            together = torch.stack(columns, 1).flatten(0, 1)
            width = len(columns) * math.ceil(math.sqrt(len(self.shown) / len(columns)))
            plots.save_grid(together, self.levels, path, columns=width)
        elif columns[0].ndim == 2 and columns[0].shape[1] > 1:
            figure = Figure(figsize=(4 * len(columns), 4), layout="constrained")
            titles = ("source", "result", "back again")
            for axes, points, title in zip(figure.subplots(1, len(columns)), columns, titles, strict=False):
                plots.dots(axes, points.float(), title)
            plots.save_figure(figure, path)


def summary(report: dict) -> str:
    """What came of a translation, in one line."""
    rows = report["examples"]
    if not rows:
        return f"0 translated, {len(report['failed'])} failed"
    mean = sum(line["distance_rms"] for line in rows) / len(rows)
    parts = [f"{len(rows)} translated", f"distance from the source {mean:.1f} (RMS, mean over examples)"]
    resized = sum("note" in line for line in rows)
    parts += [f"{resized} resized"] if resized else []
    if report["options"]["cycle"]:
        parts.append(f"error of the cycle at most {max(line['cycle_error_max'] for line in rows):.2g}")
    parts.append(f"{report['nfe']} evaluations, {report['seconds_per_example']:.2g} s each")
    lines = [", ".join(parts)]
    if report["options"]["score"] and "scores" not in report:
        lines.append(f"no scores: they need at least {FEWEST_SCORED} results")
    if "scores" in report:
        rows = {"results": row(report["scores"])} | limits(report["scores"])
        lines.append(table([("", *COLUMNS.values()), *((title, *cells) for title, cells in rows.items())]))
    return "\n".join(lines)
