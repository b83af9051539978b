"""Pictures of a translation: one self-contained page with the route and result of each image, and strips of several
runs below one another."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from indm.checks import one_line
from indm.workbench.figures.page import Page, image, short, slider
from indm.workbench.translation.routes import BRIDGE, Translated

MOST = 48  # images on the page; each has some twenty pictures
FRAMES = 8  # of each leg of the route, without --strip
ERROR = (255, 0, 160)  # the colour of the cycle's error: one that is rare in photographs

Kept = tuple[dict, Tensor, Translated]  # row of the report, source in grey levels, what was made of it
ERRORS = {  # of an image, by the key in its row of the report
    "cycle_error_max": "error of the cycle at most",
    "cycle_error_rounded": "after rounding",
    "solver_error_max": "of the solver about",
}


def picture(pixels: Num[Tensor, "c h w"], levels: int) -> Image.Image:
    """An image in grey levels, pixel for pixel, in 256 of them."""
    pixels = (pixels.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def write_page(
    path: Path, report: dict, conclusion: Sequence[str], route: Sequence[str], translations: Sequence[Kept]
) -> None:
    """Write the page on ``translations``: the row of the report, the source and what was made of it.

    ``route`` has the words of each frame.
    """
    errors = [one.cycle_error.max().item() for _, _, one in translations if one.cycle_error is not None]
    largest = max(errors, default=None)
    page = Page("Translated images", [Path(__file__)])
    page.conclude(conclusion)
    page.text(made_by(report))
    n, total = len(translations), len(report["examples"])
    page.text(f"{f'The first {n} of {total}' if n < total else f'All {total}'} translated images.")
    page.add(_controls(route, largest))
    cards = "\n".join(_card(*one, route, report["levels"], largest) for one in translations)
    page.add(f'<main class="cards">\n{cards}\n</main>')
    page.write(path)


def made_by(report: dict) -> str:
    """How the results were made, in a line."""
    options = report["options"]
    how = "SDEdit" if options["method"] == "sdedit" else report["kind"]
    parts = [f"Made by {how}: " + ", then ".join(report["models"])]
    parts += ["from {} to {}".format(*report["classes"])] if "classes" in report else []
    parts += [f"direction {report['direction']}"]
    parts += [f"{options['steps']} steps" if options["tol"] is None else f"tolerance {options['tol']:g}"]
    parts += [f"strength {options['strength']:g}"]
    parts += [f"guidance {options['guidance']:g}"] if options["guidance"] != 1 else []
    is_random = options["stochastic"] or options["method"] == "sdedit"
    parts += [f"up by noise of seed {options['seed']}"] if is_random else []
    parts += [f"from noise of seed {options['seed']} in the images"] if how == BRIDGE else []
    parts += [f"{len(report['failed'])} not translated, see translation.json"] if report["failed"] else []
    return one_line("; ".join(parts) + ".")


def _controls(route: Sequence[str], largest: float | None) -> str:
    """The search, the slider, and the switch of the cycle's error."""
    parts = [
        '<div class="control"><label for="search">Search by file name</label><output for="search"></output>'
        '<input type="search" id="search"></div>',
        slider("route", "Along the route", route, _middle(route)),
    ]
    if largest is not None:
        parts.append(
            '<div class="control"><input type="checkbox" id="cycle"><label for="cycle">Error of the cycle</label>'
            f"<small>Over the source; full colour: {short(largest)} grey levels.</small></div>"
        )
    return '<section class="controls" aria-label="Controls">{}</section>'.format("\n".join(parts))


def _middle(route: Sequence[str]) -> int:
    """The first frame that is shown: that in the middle, where a route of two models turns."""
    return (len(route) - 1) // 2


def _card(
    row: dict, source: Tensor, translated: Translated, route: Sequence[str], levels: int, largest: float | None
) -> str:
    name, file = one_line(row["name"]), one_line(Path(row["source"]).name)
    notes = [f"{row['distance_rms']:.1f} grey levels from its source"]
    notes += [row["note"]] if "note" in row else []
    notes += [f"{words} {short(row[key])}" for key, words in ERRORS.items() if key in row]
    first = image(picture(source, levels), "source")
    if translated.cycle_error is not None:
        first = image(_overlay(translated.cycle_error, largest), "error of the cycle", "error") + first
    frames = zip(cast(Tensor, translated.frames), route, strict=True)
    stack = [image(picture(one, levels), word, hidden=i != _middle(route)) for i, (one, word) in enumerate(frames)]
    return (
        f'<figure class="card" data-names="{html.escape(f"{name} {file}")}"><div class="pictures">'
        f'<div>{first}source</div><div><div class="route">{"".join(stack)}</div>route</div>'
        f"<div>{image(picture(translated.result, levels), 'result')}result</div></div>"
        f"<figcaption><b>{html.escape(name)}</b><br>{html.escape(', '.join(notes))}</figcaption></figure>"
    )


def _overlay(error: Tensor, largest: float | None) -> Image.Image:
    """Colour as dense as the error of a pixel, that of its worst channel, is to the largest."""
    dense = (error.double().amax(0) / (largest or 1) * 255).round().numpy().astype(np.uint8)
    return Image.fromarray(np.dstack([*(np.full_like(dense, value) for value in ERROR), dense]))


@dataclass(frozen=True)
class FrameStrip:
    """The route of one image, frame by frame.

    Attributes:
        title: what makes it.
        times: of the frames.
        frames: in grey levels, from the source on.
        levels: number of grey levels.
    """

    title: str
    times: Sequence[float]
    frames: Num[Tensor, "n c h w"]
    levels: int


def write_strips(strips: Sequence[FrameStrip], path: Path) -> None:
    """Write strips as one picture, each with its title and its times above it."""
    from indm.workbench.figures import plots, sheets  # which load matplotlib

    panels = [
        sheets.Panel(strip.frames, len(strip.frames), title=strip.title, tops=sheets.time_words(strip.times))
        for strip in strips
    ]
    plots.save_pixels(sheets.sheet(panels, strips[0].levels, across=1), path)
