"""The examples that are to be translated, and the runs that carry data set A into data set B.

Two models, one model of classes, or one bridge. The folder of a pair holds an ordinary run of each
data set, ``a`` and ``b``, of the same recipe but for its data. A bridge is an ordinary run of a
recipe with ``[data_b]`` and ``train.terminal``.
"""

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

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
SHEET = "sheet"  # a picture beside the results, so that an image of that name keeps its suffix


@dataclass(frozen=True)
class Item:
    """One example to be translated."""

    name: str  # the result has this name, without suffix
    source: Path  # the file that it is in
    read: Callable[[], Example]
    row: int | None = None  # the row in an array; None for an image file


def find_items(sources: Sequence[Path], model: INDM, data: dict) -> list[Item]:
    """The examples in files, folders (searched recursively), glob patterns, ``.npz`` and ``.npy``
    arrays, and tables of vectors in ``.csv`` files (but not ``.csv`` files inside folders), with
    the shape and the grey levels of ``model``; ``data`` is the ``[data]`` table of a run on a
    folder, see :func:`read_example`.

    Raises:
        ValueError: nothing found, an array of another shape, an image where the model has no
            images, or two results of one name.
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
            items += [
                Item(f"{name}-{i:05d}", file, partial(Example, row), i)
                for i, row in enumerate(array)
            ]
        elif len(model.shape) != 3 or model.shape[0] not in (1, 3):
            raise ValueError(
                f"{file}: events of shape {model.shape} are not images: give a .npz, .npy or .csv file"
            )
        else:
            items.append(Item(name, file, partial(read_example, file, model.shape, levels, data)))
    # Two images of one name keep their suffixes.
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
    """Files and the names of their results, without suffix: in a folder, with the path below it.

    Raises:
        ValueError: a source without any.
    """
    found = []
    for source in sources:
        if source.is_dir():
            below = (path.relative_to(source) for path in sorted(source.rglob("*")))
            below = (path for path in below if not any(part.startswith(".") for part in path.parts))
            files = [
                (path, str(path.with_suffix("")))
                for path in below
                if path.suffix.lower() in IN_FOLDERS
            ]
            files = [(source / path, name) for path, name in files]
        else:
            matches = (
                [source]
                if source.is_file()
                else sorted(map(Path, {*glob.glob(str(source), recursive=True)}))
            )
            files = [(path, path.stem) for path in matches]
        files = [(path, name) for path, name in files if path.is_file()]
        if not files:
            raise ValueError(
                f"no image or array found in '{source}'; it takes png, jpeg, webp, …, npz, npy and csv"
            )
        found += files
    return found


# ── Runs and routes ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TranslationRuns:
    """The models that translate, and the data of A and B."""

    # the run folders of the models, in the order in which a route meets them
    folders: tuple[Path, ...]
    models: tuple[INDM, ...]  # one for a bridge, else two; for classes, the same model twice
    data: dict  # the [data] table of where the route begins
    data_b: dict  # the table of where it ends
    direction: Direction = "forward"  # for a bridge, and for the folder of a pair
    # c where the route begins and where it ends, for models of p(x|c)
    classes: tuple[Any, Any] = (None, None)
    noise: tuple[float, float] = (0.0, 0.0)  # with which a bridge learned A and B

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
        """The route from A to B: by "sdedit" with the model of B alone, through a bridge, or from
        model to model.

        The options go to :func:`indm.translation.two_models`, to its ``bridge`` or to its
        ``sdedit``.

        Raises:
            ValueError: guidance without a model of classes, or "sdedit" by a bridge.
        """
        is_guided = method == "flow" and self.classes != (None, None)
        require(
            is_guided or guidance == 1,
            "guidance",
            guidance,
            "1 without one class-conditional model of A and B",
        )
        if len(self.models) == 1:
            require(
                method == "flow",
                "method",
                method,
                f"'flow' for the bridge {self.folders[0]}, whose noise is B",
            )
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
    """Two runs or a pair of them; one run and two ``classes``, which need not be named where it has
    two; or one bridge.

    Method "sdedit" needs only the run of B.

    Raises:
        ValueError: one run that is not a bridge, more than two, classes that the one run does not
            have.
    """
    require(direction in get_args(Direction), "direction", direction, "'forward' or 'backward'")
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"one or two run folders must come first, got {len(folders)}")
    if len(folders) == 1 and is_pair(folders[0]):
        folders = [folders[0] / side for side in SIDES]
    if len(folders) == 1:
        runs = _of_one(folders[0], classes, method)
    elif classes is None:
        (a, of_a), (b, of_b) = map(open_run, folders)
        runs = TranslationRuns(
            (folders[0], folders[1]), (a, b), of_a.data.table(), of_b.data.table()
        )
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
        require(
            condition.is_class,
            "the model of one run",
            type(condition).__name__,
            "of classes, with two of them",
        )
        a, b = (condition.labels[condition.number(name)] for name in classes)
        return TranslationRuns((run,), (model, model), data, data, classes=(a, b))
    if method == "sdedit" and recipe.data_b is None:
        return TranslationRuns((run,), (model, model), data, data)
    if recipe.data_b is None or not is_bridge(recipe):
        raise ValueError(
            f"{run} is not a bridge (indm train-bridge): give a second run after it, or two classes of a model of "
            "classes as its condition"
        )
    return TranslationRuns((run,), (model,), data, recipe.data_b.table(), noise=noise_of(recipe))
