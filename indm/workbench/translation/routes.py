"""The examples that are to be translated, the runs that carry data set A into data set B, and batches of one route.

Two models, one model of classes, or one bridge. The folder of a pair holds an ordinary run of each data set, ``a`` and
``b``, of the same recipe but for its data. A bridge is an ordinary run of a recipe with ``[data_b]`` and
``train.terminal``.
"""

import functools
import glob
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Num
from torch import Tensor

from indm.model import INDM
from indm.tensors import double
from indm.translation import DIRECTIONS, Route, bridge, sdedit, two_models
from indm.workbench.data import arrays
from indm.workbench.data.arrays import read_events
from indm.workbench.data.images import SUFFIXES, fitted, read_image, shown_part
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.folder import is_run, open_run
from indm.workbench.training.pairs import SIDES, is_bridge, is_pair, noise_of

BRIDGE = "terminal bridge"
ARRAY_SUFFIXES = {".npz", ".npy"}
SHEET = "sheet"  # a picture beside the results, so that an image of that name keeps its suffix


class Example(NamedTuple):
    """One example as read: ``pixels`` (C, H, W) or (D,) in data units; a ``note`` says how they were changed."""

    pixels: Num[Tensor, "*event"]
    note: str = ""


@dataclass(frozen=True)
class Item:
    """One example to be translated.

    Attributes:
        name: of its result, without suffix.
        source: the file that it is in.
        read: reads the example.
        row: of an array; None of an image file.
    """

    name: str
    source: Path
    read: Callable[[], Example]
    row: int | None = None


def find(sources: Sequence[Path], model: INDM, data: dict) -> list[Item]:
    """The examples in files, folders (searched recursively), glob patterns, ``.npz`` and ``.npy`` arrays, and tables of
    vectors in ``.csv`` files (but not ``.csv`` files inside folders).

    Args:
        model: whose shape and grey levels they must have.
        data: the ``[data]`` table of a run on a folder, see :func:`image_reader`.

    Raises:
        ValueError: nothing found, an array of another shape, an image where the model has no images, or two results of
            one name.
    """
    items: list[Item] = []
    as_arrays = ARRAY_SUFFIXES | arrays.SUFFIXES if len(model.shape) == 1 else ARRAY_SUFFIXES
    for file, name in found_in(sources):
        if file.suffix.lower() in as_arrays:
            array = read_events(file, model.scaling.levels)
            if tuple(array.shape[1:]) != model.shape:
                raise ValueError(f"{file} must hold events of shape {model.shape}, got {tuple(array.shape[1:])}")
            rows = enumerate(functools.partial(Example, pixels) for pixels in array)
            items += [Item(f"{name}-{row:05d}", file, read, row) for row, read in rows]
        elif len(model.shape) != 3 or model.shape[0] not in (1, 3):
            raise ValueError(f"{file}: events of shape {model.shape} are no image files; .npz, .npy or .csv would do")
        else:
            items.append(Item(name, file, image_reader(file, model, data)))
    # Two images of one name keep their suffixes.
    names = Counter(item.name for item in items if item.row is None) + Counter([SHEET])
    items = [
        replace(item, name=f"{item.name}{item.source.suffix}") if item.row is None and names[item.name] > 1 else item
        for item in items
    ]
    written = Counter(f"{folder}{item.name}" for item in items for folder in ("", "cycle/", "strips/"))
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} names of results come twice, such as {twice[0]!r}; translate them apart")
    return items


def found_in(sources: Sequence[Path]) -> list[tuple[Path, str]]:
    """:func:`files_of` all sources; a ValueError where one of them has none."""
    found = []
    for source in sources:
        files = files_of(source)
        if not files:
            raise ValueError(f"no image or array found in '{source}'; png, jpeg, webp, … and npz, npy, csv would do")
        found += files
    return found


def files_of(source: Path) -> list[tuple[Path, str]]:
    """Files and the names of their results, without suffix: in a folder, with the path below it."""
    if source.is_dir():
        known = SUFFIXES | ARRAY_SUFFIXES
        below = sorted(path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in known)
        below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
        return [(source / path, str(path.with_suffix(""))) for path in below if (source / path).is_file()]
    matches = [source] if source.is_file() else sorted(map(Path, {*glob.glob(str(source), recursive=True)}))
    return [(path, path.stem) for path in matches if path.is_file()]


def image_reader(file: Path, model: INDM, data: dict) -> Callable[[], Example]:
    """A function that reads an image file as an example of ``model``.

    ``data`` is the ``[data]`` table of a run on a folder: how images of another size are cut and resized, by default by
    the largest centred part of the model's aspect ratio, and the ``background`` of those with transparency, by default
    white.
    """
    channels, height, width = model.shape

    def read() -> Example:
        image = read_image(file, data.get("background", "white"))
        shown = shown_part(image, (height, width), data.get("crop", True))
        pixels = fitted(shown, (channels, height, width), data.get("resize", "bilinear"), crop=False)
        pixels = (pixels.double() * (cast(int, model.scaling.levels) - 1) / 255).round().to(torch.uint8)
        note = "" if image.size == (width, height) else f"resized from {image.width}×{image.height}"
        return Example(pixels, note)

    return read


# ── Runs and routes ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TranslationRuns:
    """The models that translate, and the data of A and B.

    Attributes:
        folders: the run folders of the models, in the order in which a route meets them.
        models: one for a bridge, else two; of classes, one and the same.
        data, data_b: the ``[data]`` tables of where the route begins and of where it ends.
        direction: of a bridge, and of a pair's folder.
        classes: of models of p(x|c), c where the route begins and where it ends.
        noise: of a bridge, with which A and B were learned.
    """

    folders: tuple[Path, ...]
    models: tuple[INDM, ...]
    data: dict
    data_b: dict
    direction: str = "forward"
    classes: tuple[Any, Any] = (None, None)
    noise: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of_two(cls, source: Path, target: Path) -> "TranslationRuns":
        """The models of A and of B, from the first to the second."""
        (a, of_a), (b, of_b) = open_run(source), open_run(target)
        return cls((source, target), (a, b), of_a.data.table(), of_b.data.table())

    @classmethod
    def of_bridge(cls, run: Path) -> "TranslationRuns":
        """One model whose diffusion leads from A to B; a ValueError for any other."""
        model, recipe = open_run(run)
        if recipe.data_b is None or not is_bridge(recipe):
            raise ValueError(
                f"{run} is not a bridge (indm train-bridge): give a second run after it, or two classes of a model of "
                "classes as its condition"
            )
        return cls((run,), (model,), recipe.data.table(), recipe.data_b.table(), noise=noise_of(recipe))

    @classmethod
    def of_classes(cls, run: Path, classes: tuple[str, str]) -> "TranslationRuns":
        """One model of classes, from the first of two to the second; a ValueError for other classes."""
        model, recipe = open_run(run)
        condition = model.condition
        if not condition.is_class:
            of = "p(x)" if condition.is_none else f"p(x|{type(condition).__name__.lower()})"
            raise ValueError(f"condition needs a model of classes, got one of {of}")
        a, b = (condition.labels[condition.number(name)] for name in classes)
        return cls((run,), (model, model), recipe.data.table(), recipe.data.table(), classes=(a, b))

    def backward(self) -> "TranslationRuns":
        """From B to A."""
        a, b = self.classes
        return replace(
            self, folders=self.folders[::-1], models=self.models[::-1], direction="backward",
            data=self.data_b, data_b=self.data, classes=(b, a),
        )  # fmt: skip

    @property
    def is_bridge(self) -> bool:
        """Whether one model leads from one end of its diffusion to the other."""
        return len(self.models) == 1

    @property
    def kind(self) -> str:
        """In words."""
        if self.classes != (None, None):
            return "one class-conditional model"
        return BRIDGE if self.is_bridge else "two models"

    def sdedit(self, **options) -> Route:
        """See :func:`indm.translation.sdedit` for the options; a ValueError where no model makes data of B from
        noise."""
        if self.is_bridge:
            raise ValueError(
                f"method 'sdedit' needs a model that makes data of B from noise; {self.folders[0]} is a bridge, whose "
                "noise is B"
            )
        return sdedit(self.models[1], c=self.classes[1], **options)

    def route(self, *, guidance: float = 1.0, **options) -> Route:
        """See :func:`indm.translation.two_models` and :func:`indm.translation.bridge` for the options.

        Raises:
            ValueError: guidance without a model of classes.
        """
        if guidance != 1 and self.classes == (None, None):
            raise ValueError(f"guidance {guidance:g} requires one class-conditional model, got {self.kind}")
        if self.is_bridge:
            return bridge(self.models[0], self.direction, noise=self.noise, **options)
        source, target = self.models
        return two_models(source, target, c=self.classes, guidance=guidance, **options)


def open_runs(
    folders: Sequence[Path],
    direction: str = "forward",
    classes: tuple[str, str] | None = None,
    *,
    method: str = "flow",
) -> TranslationRuns:
    """Two runs or a pair of them; one run and two ``classes``, which need not be named where it has two; or one bridge.

    Method "sdedit" needs only the run of B.

    Raises:
        ValueError: one run that is not a bridge, more than two, classes that the one run does not have.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'forward' or 'backward', got {direction!r}")
    if direction == "backward":
        return open_runs(folders, "forward", classes, method=method).backward()
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"one or two run folders must come first, got {len(folders)}")
    run = folders[0]
    if len(folders) == 2 or is_pair(run):
        if classes is not None:
            raise ValueError(f"condition needs one run, of a model of both classes, got {', '.join(map(str, folders))}")
        return TranslationRuns.of_two(*(folders if len(folders) == 2 else (run / side for side in SIDES)))
    tables = recipes.load(run) if is_run(run) else {}
    if classes is None and len(labels := tables.get("condition", {}).get("labels", ())) == 2:
        classes = (labels[0], labels[1])
    if classes is not None:
        return TranslationRuns.of_classes(run, classes)
    if method == "sdedit" and "data_b" not in tables:
        return TranslationRuns.of_two(run, run)
    return TranslationRuns.of_bridge(run)


@dataclass(frozen=True)
class Translated:
    """One example translated, in data units; what was not asked for is None.

    Attributes:
        result: the example as one of B.
        frames: pictures along the route.
        returned: the result carried back to A.
        errors: the largest differences between the way back and the start of the route: "cycle_error_max", before
            rounding and before a bridge's noise is taken away, and "cycle_error_rounded".
    """

    result: Num[Tensor, "*event"]
    frames: Num[Tensor, "frames *event"] | None = None
    returned: Num[Tensor, "*event"] | None = None
    errors: dict[str, float] = field(default_factory=dict)


class BatchTranslator:
    """Translates batches by one route.

    Attributes:
        nfe: the most evaluations of one example.
        frames: how many of each leg of the route are made, 0 for none.
    """

    def __init__(self, route: Route, options: TranslationOptions):
        self.route, self.options, self.nfe, self.frames = route, options, 0, options.strip
        device = route.models[0].scaling.scale.device
        self.generator = torch.Generator(device).manual_seed(options.seed)

    @property
    def times(self) -> list[float]:
        """The time of each frame."""
        return self.route.times(self.frames) if self.frames else []

    def each(self, raw: Tensor) -> list[Translated | RuntimeError]:
        """As a call; where that fails, each example alone, and the error of those that fail."""
        try:
            return [*self(raw)]
        except RuntimeError as error:
            return [error] if len(raw) == 1 else [self.each(one)[0] for one in raw.split(1)]

    def __call__(self, raw: Num[Tensor, "batch *event"]) -> list[Translated]:
        """The translations of examples in data units.

        Raises:
            RuntimeError: an inverse did not converge.
        """
        source, target = self.route.models
        seed = self.options.seed
        there = self.route.translate(raw, seed, frames=self.frames, generator=self.generator)
        columns, errors = {"result": target.scaling.to_data(there.x).cpu()}, dict[str, Tensor]()
        if self.options.cycle:
            x, back = self.route.source(raw, seed), self.route.back().follow(there.end)
            columns["returned"] = source.scaling.to_data(back.x).cpu()
            errors["cycle_error_max"] = (back.end - x) * source.scaling.scale
            errors["cycle_error_rounded"] = double(source.scaling.to_data(back.end)) - double(source.scaling.to_data(x))
        if self.frames and raw.ndim == 4:  # frames of each leg in the data units of its model
            by_leg = zip(self.route.legs, there.frames.split(self.frames, 1), strict=True)
            columns["frames"] = torch.cat([leg.model.scaling.to_data(frames) for leg, frames in by_leg], 1).cpu()
        self.nfe = max(self.nfe, there.nfe)
        largest = {name: values.abs().flatten(1).amax(1).tolist() for name, values in errors.items()}
        return [
            Translated(
                **{name: column[i] for name, column in columns.items()},
                errors={name: values[i] for name, values in largest.items()},
            )
            for i in range(len(raw))
        ]
