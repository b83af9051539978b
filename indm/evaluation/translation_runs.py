"""The runs that carry data set A into data set B: two models, one model of classes, or one bridge.

The folder of a pair holds an ordinary run for each side, ``a`` and ``b``, of the same recipe but for its data. A bridge
is an ordinary run of a recipe with ``[data_b]`` and ``train.terminal``.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indm.conditions import condition_of
from indm.config import recipes
from indm.data.base import Data
from indm.data.registry import load_data, without_download
from indm.model import INDM
from indm.runs.folder import is_run, open_run
from indm.training.pairs import SIDES, is_bridge, is_pair, noise_of
from indm.translation import DIRECTIONS, Route, bridge, sdedit, two_models

BRIDGE = "terminal bridge"


def is_run_or_pair(folder: Path) -> bool:
    """Whether ``folder`` is that of a run, or of a pair of them."""
    return is_run(folder) or is_pair(folder)


@dataclass(frozen=True)
class TranslationRuns:
    """The models that translate, and the data of both sides.

    Attributes:
        folders: the run folders of the models, in the order in which a route meets them.
        models: one for a bridge, else two; of classes, one and the same.
        direction: of a bridge, and of a pair's folder.
        data, data_b: the ``[data]`` tables of the side where the route begins and of that where it ends.
        classes: of one model of classes, that of either side.
        noise: of a bridge, with which A and B were learned.
    """

    folders: tuple[Path, ...]
    models: tuple[INDM, ...]
    direction: str
    data: dict
    data_b: dict
    classes: tuple[str | None, str | None] = (None, None)
    noise: tuple[float, float] = (0.0, 0.0)

    @functools.cached_property
    def sides(self) -> tuple[Data, Data]:
        """The data of both sides."""
        whole = load_data(**without_download(self.data))
        both = (whole, whole if self.data_b == self.data else load_data(**without_download(self.data_b)))
        a, b = (data if name is None else data.of_class(name) for data, name in zip(both, self.classes, strict=True))
        return a, b

    @property
    def grey(self) -> tuple[bool, bool]:
        """Whether the images of either side are made grey, whatever the channels of its model."""
        a, b = (
            name in grey if isinstance(grey := data.get("grey", False), list) else grey
            for data, name in zip((self.data, self.data_b), self.classes, strict=True)
        )
        return a, b

    @property
    def kind(self) -> str:
        """In words."""
        if self.classes != (None, None):
            return "one model told the class"
        return BRIDGE if self.is_bridge else "two models"

    @property
    def is_bridge(self) -> bool:
        """Whether one model leads from one end of its diffusion to the other."""
        return len(self.models) == 1

    def sdedit(self, **options) -> Route:
        """See :func:`indm.translation.sdedit` for the options.

        Raises:
            ValueError: no model makes data of the other side from noise.
        """
        if self.is_bridge:
            raise ValueError(
                f"method 'sdedit' needs a model that makes data of B from noise; {self.folders[0]} is a bridge, whose "
                "noise is B"
            )
        return sdedit(self.models[1], c=self.classes[1], **options)

    def route(self, *, guidance: float = 1.0, **options) -> Route:
        """See :func:`indm.translation.two_models` and :func:`indm.translation.bridge` for the options.

        Raises:
            ValueError: guidance but for one model told the class.
        """
        if guidance != 1 and self.classes == (None, None):
            raise ValueError(f"guidance must be 1 but for one model told the class, got {guidance:g} for {self.kind}")
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
    """Two runs, from the first to the second; or one bridge, or one pair, in either ``direction``.

    With ``classes``, one run of a model of classes, from the first class to the second, or back; where it has two, they
    need not be given. With method "sdedit" one run is that of B, and stands in the place of both.

    Raises:
        ValueError: one run that is no bridge, more than two, classes that the one run does not have.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'forward' or 'backward', got {direction!r}")
    turn = direction == "backward"
    classes = classes or _two_classes(folders)
    if classes is not None:
        return _between_classes(folders, direction, classes[::-1] if turn else classes)
    if len(folders) == 1 and is_pair(folders[0]):
        folders = [folders[0] / side for side in (reversed(SIDES) if turn else SIDES)]
    elif len(folders) == 2 and turn:
        folders = list(reversed(folders))
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"one or two run folders must come first, got {len(folders)}")
    models, own = zip(*(open_run(folder) for folder in folders), strict=True)
    tables = [recipe["data"] for recipe in own]
    if len(folders) == 1 and method == "sdedit" and "data_b" not in own[0]:
        return TranslationRuns((*folders, *folders), (*models, *models), direction, *tables, *tables)
    if len(folders) == 1:
        if not is_bridge(own[0]):
            raise ValueError(
                f"{folders[0]} is no bridge (indm train-bridge): give a second run after it, or two classes of a model "
                "of classes as --condition"
            )
        a, b = (own[0][side] for side in (("data_b", "data") if turn else ("data", "data_b")))
        return TranslationRuns(tuple(folders), models, direction, a, b, noise=noise_of(own[0]))
    return TranslationRuns(tuple(folders), models, direction, *tables)


def _two_classes(folders: Sequence[Path]) -> tuple[str, str] | None:
    """The classes of one run that has two."""
    if len(folders) != 1 or not is_run(folders[0]):
        return None
    labels = recipes.load(folders[0]).get("condition", {}).get("labels", ())
    return tuple(labels) if len(labels) == 2 else None


def _between_classes(folders: Sequence[Path], direction: str, classes: tuple[str, ...]) -> TranslationRuns:
    if len(folders) != 1 or is_pair(folders[0]):
        raise ValueError(f"condition needs one run, of a model of both classes, got {', '.join(map(str, folders))}")
    model, recipe = open_run(folders[0])
    condition = condition_of(model, classes)
    if not condition.is_class:
        raise ValueError(f"condition needs a model of classes, got one of p(x|{type(condition).__name__.lower()})")
    source, target = (condition.labels[condition.typed(name)] for name in classes)
    return TranslationRuns(tuple(folders), (model, model), direction, recipe["data"], recipe["data"], (source, target))
