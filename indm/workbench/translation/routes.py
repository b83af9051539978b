"""The examples to translate, and the runs that translate them: two models, one of classes, or a bridge.

The folder of a pair has a run of each data set, ``a`` and ``b``. A bridge is a run of a recipe with
``[data_b]`` and ``train.terminal``.
"""

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from indm.checks import require
from indm.model import INDM
from indm.translation import Direction, Route, bridge, sdedit, two_models
from indm.workbench.data import arrays
from indm.workbench.data.arrays import read_events
from indm.workbench.data.images import IMAGE_SUFFIXES, Example, read_example
from indm.workbench.runs.folder import open_run
from indm.workbench.training.pairs import SIDES, is_bridge, is_pair, noise_of

ARRAY_SUFFIXES = {".npz", ".npy"}
IN_FOLDERS = IMAGE_SUFFIXES | ARRAY_SUFFIXES
SHEET = "sheet"  # the picture of all results; an image of that name keeps its suffix


@dataclass(frozen=True)
class Item:
    """One example to translate."""

    name: str  # of the result, without suffix
    source: Path  # its file
    read: Callable[[], Example]
    row: int | None = None  # the row in an array; None for an image file


def find_items(sources: Sequence[Path], model: INDM, data: dict) -> list[Item]:
    """The examples in files, folders (recursive) and glob patterns, in grey levels of ``model``.

    A model of vectors also takes ``.csv`` files, but not those inside folders. ``data`` is the
    ``[data]`` table of a run, see :func:`read_example`.

    Raises:
        ValueError: nothing is found, an array has another shape, the model has no images, or two
            results have one name.
    """
    items, levels = list[Item](), model.scaling.levels
    as_arrays = ARRAY_SUFFIXES | {*arrays.SEPARATORS} if len(model.shape) == 1 else ARRAY_SUFFIXES
    for file, name in found_in(sources):
        if file.suffix.lower() in as_arrays:
            array = read_events(file, levels)
            if tuple(array.shape[1:]) != model.shape:
                raise ValueError(
                    f"{file} must hold events of shape {model.shape}, got {tuple(array.shape[1:])}"
                )
            for i, row in enumerate(array):
                items.append(Item(f"{name}-{i:05d}", file, partial(Example, row), i))
        elif len(model.shape) != 3 or model.shape[0] not in (1, 3):
            raise ValueError(
                f"{file}: events of shape {model.shape} are not images: give a .npz, .npy or .csv file"
            )
        else:
            items.append(Item(name, file, partial(read_example, file, model.shape, levels, data)))
    # two images of one name keep their suffixes
    names = Counter(item.name for item in items if item.row is None) + Counter([SHEET])
    items = [
        replace(item, name=f"{item.name}{item.source.suffix}")
        if item.row is None and names[item.name] > 1
        else item
        for item in items
    ]
    written = Counter(f"{folder}{item.name}" for item in items for folder in ("", "cycle/"))
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names of results come twice, such as {twice[0]!r}; translate them apart"
        )
    return items


def found_in(sources: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files and the names of their results: without suffix, and with the path inside a folder.

    Raises:
        ValueError: a source has none.
    """
    found = []
    for source in sources:
        if source.is_dir():
            below = (path.relative_to(source) for path in sorted(source.rglob("*")))
            shown = (path for path in below if not any(part.startswith(".") for part in path.parts))
            kept = [path for path in shown if path.suffix.lower() in IN_FOLDERS]
            files = [(source / path, str(path.with_suffix(""))) for path in kept]
        else:
            matches = [source]
            if not source.is_file():
                matches = sorted(map(Path, {*glob.glob(str(source), recursive=True)}))
            files = [(path, path.stem) for path in matches]
        files = [(path, name) for path, name in files if path.is_file()]
        if not files:
            raise ValueError(
                f"no image or array found in '{source}'; it takes png, jpeg, webp, …, npz, npy and csv"
            )
        found += files
    return found


# ── Runs and routes


@dataclass(frozen=True)
class TranslationRuns:
    """The models that translate, and the data of A and B."""

    folders: tuple[Path, ...]  # run folders of the models, in the order of the route
    models: tuple[INDM, ...]  # one for a bridge, else two; for classes, the same model twice
    data: dict  # the [data] table at the start of the route
    data_b: dict  # the table at its end
    direction: Direction = "forward"  # for a bridge, and for the folder of a pair
    classes: tuple[Any, Any] = (None, None)  # c at the start and the end, for models of p(x|c)
    noise: tuple[float, float] = (0.0, 0.0)  # deviations in A and B that a bridge has learned

    def backward(self) -> "TranslationRuns":
        """From B to A."""
        a, b = self.classes
        return replace(
            self, folders=self.folders[::-1], models=self.models[::-1], direction="backward",
            data=self.data_b, data_b=self.data, classes=(b, a),
        )  # fmt: skip

    def route(
        self,
        *,
        method: str = "flow",
        guidance: float = 1.0,
        stochastic: bool = False,
        **options: Any,
    ) -> Route:
        """The route from A to B, by :func:`indm.translation.two_models`, ``sdedit`` or ``bridge``.

        Raises:
            ValueError: guidance without a model of classes, or "sdedit" by a bridge.
        """
        fits = guidance == 1 or (method == "flow" and self.classes != (None, None))
        wanted = "1 without one class-conditional model of A and B"
        require(fits, "guidance", guidance, wanted)
        if len(self.models) == 1:
            wanted = f"'flow' for the bridge {self.folders[0]}, whose noise is B"
            require(method == "flow", "method", method, wanted)
            return bridge(
                self.models[0], self.direction, noise=self.noise, stochastic=stochastic, **options
            )
        source, target = self.models
        if method == "sdedit":
            return sdedit(target, c=self.classes[1], **options)
        return two_models(
            source, target, c=self.classes, guidance=guidance, stochastic=stochastic, **options
        )


def open_runs(
    folders: Sequence[Path],
    direction: Direction = "forward",
    classes: tuple[str, str] | None = None,
    *,
    method: str = "flow",
) -> TranslationRuns:
    """The models of two runs or a pair, of two ``classes`` of one run, or of a bridge.

    Classes need not be named if there are two. Method "sdedit" needs only the run of B.

    Raises:
        ValueError: one run that is not a bridge, more than two runs, or unknown classes.
    """
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"one or two run folders must come first, got {len(folders)}")
    if len(folders) == 1 and is_pair(folders[0]):
        folders = [folders[0] / side for side in SIDES]
    if len(folders) == 1:
        runs = _of_one(folders[0], classes, method)
    elif classes is None:
        (a, of_a), (b, of_b) = map(open_run, folders)
        tables = of_a.data.table(), of_b.data.table()
        runs = TranslationRuns((folders[0], folders[1]), (a, b), *tables)
    else:
        raise ValueError(
            f"condition needs one run, of a model of both classes, got {', '.join(map(str, folders))}"
        )
    return runs if direction == "forward" else runs.backward()


def _of_one(run: Path, classes: tuple[str, str] | None, method: str) -> TranslationRuns:
    """The classes of one model, its two ends, or the model of B alone."""
    model, recipe = open_run(run)
    condition, data = model.condition, recipe.data.table()
    if classes is None and len(recipe.labels) == 2:
        classes = (recipe.labels[0], recipe.labels[1])
    if classes is not None:
        kind = type(condition).__name__
        require(condition.is_class, "the model of one run", kind, "of classes, with two of them")
        a, b = (condition.labels[condition.number(name)] for name in classes)
        return TranslationRuns((run,), (model, model), data, data, classes=(a, b))
    if method == "sdedit" and recipe.data_b is None:
        return TranslationRuns((run,), (model, model), data, data)
    if recipe.data_b is None or not is_bridge(recipe):
        raise ValueError(
            f"{run} is not a bridge (indm train-bridge): give a second run after it, or two classes as the condition"
        )
    return TranslationRuns((run,), (model,), data, recipe.data_b.table(), noise=noise_of(recipe))
