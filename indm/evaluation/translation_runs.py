"""The runs that carry data set A into data set B: two models, or one bridge.

The folder of a pair holds an ordinary run for each side, ``a`` and ``b``, of the same recipe but for its data. A bridge
is an ordinary run of a recipe with ``[data_b]`` and ``train.terminal``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indm.model import INDM
from indm.runs.folder import is_run, open_run
from indm.training.pairs import SIDES, is_pair
from indm.translation import DIRECTIONS, Route, bridge, two_models


def is_run_or_pair(folder: Path) -> bool:
    """Whether ``folder`` is that of a run, or of a pair of them."""
    return is_run(folder) or is_pair(folder)


@dataclass(frozen=True)
class TranslationRuns:
    """The models that translate, and the data of both sides.

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


def open_runs(folders: Sequence[Path], direction: str = "forward") -> TranslationRuns:
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
    models, recipes = zip(*(open_run(folder) for folder in folders), strict=True)
    tables = [recipe["data"] for recipe in recipes]
    if len(folders) == 1:
        if "data_b" not in recipes[0] or not recipes[0]["train"]["terminal"]:
            raise ValueError(
                f"{folders[0]} is no bridge (a recipe with [data_b] and train.terminal); give a second run after it"
            )
        tables.append(recipes[0]["data_b"])
        tables = list(reversed(tables)) if turn else tables
    return TranslationRuns(tuple(folders), models, direction, *tables)
