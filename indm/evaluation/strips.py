"""``indm strip``: the ways of one image by several runs, x_t over t, one under the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Num
from torch import Tensor

from indm.config import recipes
from indm.config.options import StripOptions, TranslationOptions
from indm.evaluation import plots, sheets
from indm.evaluation.batch_translation import BatchTranslator
from indm.evaluation.translation_runs import TranslationRuns, open_runs
from indm.evaluation.translation_sources import find
from indm.flows import Identity
from indm.runs.folder import is_run
from indm.translation import Route


@dataclass(frozen=True)
class Row:
    """One way.

    Attributes:
        title: what makes it.
        times: of the frames.
        frames: (N, C, H, W) in grey levels, from the source on.
        levels: number of grey levels.
    """

    title: str
    times: Sequence[float]
    frames: Num[Tensor, "n c h w"]
    levels: int


def rows_of(
    folders: Sequence[Path],
    image: Path,
    options: StripOptions,
    direction: str = "forward",
    classes: tuple[str, str] | None = None,
) -> list[Row]:
    """The ways of ``image`` by the runs or pairs in ``folders``, each as :func:`open_runs` takes it alone.

    A model that is told the class has a second row, its SDEdit at ``options.strength``, if that is not 0.

    Args:
        classes: of models of many classes: that of the image, and the one that it becomes.

    Raises:
        ValueError: a run that translates nothing, several images, runs of different shapes or grey levels, guidance
            without a model told the class.
    """
    rows: list[Row] = []
    told = [is_run(folder) and "condition" in recipes.load(folder) for folder in folders]
    if options.guidance != 1 and not any(told):
        raise ValueError(f"guidance must be 1 but for a model told the class, got {options.guidance:g}")
    for folder, is_conditional in zip(folders, told, strict=True):
        runs = open_runs([folder], direction, classes if is_conditional else None)
        what = f"{runs.kind}{', linear' if isinstance(runs.models[0].flow, Identity) else ''} ({folder.name})"
        guidance = options.guidance if is_conditional else 1.0
        title = f"{what}, guidance {guidance:g}" if guidance != 1 else what
        rows.append(_row(title, runs, runs.route(steps=options.steps, guidance=guidance), image, options))
        if is_conditional and options.strength:
            route = runs.sdedit(strength=options.strength, steps=options.steps)
            rows.append(_row(f"SDEdit {options.strength:g}, {what}", runs, route, image, options))
    kinds = {(row.frames.shape, row.levels) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"runs must have events of one shape and the same grey levels, got {kinds}")
    return rows


def _row(title: str, runs: TranslationRuns, route: Route, image: Path, options: StripOptions) -> Row:
    model = route.models[0]
    items = find([image], model, runs.data, grey=runs.grey[0])
    if len(items) != 1 or len(model.shape) != 3 or model.scaling.levels is None:
        raise ValueError(f"strip needs one image, got {len(items)} examples of shape {model.shape} in {image}")
    way = BatchTranslator(route, TranslationOptions(strip=options.frames // len(route.legs), seed=options.seed))
    (translated,) = way(items[0].read().pixels[None])
    assert translated.frames is not None
    return Row(title, way.times, translated.frames, model.scaling.levels)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as one picture, each with its title and its times above it."""
    panels = [
        sheets.Panel(row.frames, len(row.frames), title=row.title, tops=sheets.time_words(row.times)) for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_pixels(sheets.sheet(panels, rows[0].levels, across=1), path)
