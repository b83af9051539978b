"""``indm translate --page``: a translation to look at. Source, way and result of each image on one self-contained page,
with sliders along the way and of strength, and a search by file name; all of it works by keyboard and on a phone."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from indm.evaluation.page import Page, image, slider
from indm.evaluation.translation_results import picture
from indm.evaluation.translation_runs import BRIDGE
from indm.messages import one_line

MOST = 48  # images on the page; each has some twenty pictures
FRAMES = 8  # of each leg of the way, without --strip
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
ERROR = (255, 0, 160)  # the colour of the cycle's error: one that is rare in photographs

ERRORS = {  # of an image, by the key in its row of the report
    "cycle_error_max": "error of the cycle at most",
    "cycle_error_rounded": "after rounding",
    "written_cycle_error_max": "from the result as written",
    "solver_error_max": "of the solver about",
}


@dataclass(frozen=True)
class Shown:
    """An image on the page; all pictures are (C, H, W) in grey levels.

    Attributes:
        row: what the report says of it.
        source: the image.
        results: by strength; None where there is none.
        frames: along the way, (frames, C, H, W); None where there are none.
        error: of the cycle, absolute and before rounding; None where no cycle was made.
    """

    row: dict
    source: Tensor
    results: dict[float, Tensor | None]
    frames: Tensor | None = None
    error: Tensor | None = None


def write_page(
    path: Path,
    report: dict,
    conclusion: Sequence[str],
    tables: Sequence[list[tuple[str, ...]]],
    shown: Sequence[Shown],
    way: Sequence[str],
    levels: int,
) -> None:
    """Write the page.

    Args:
        path: of the file.
        report: what ``translation.json`` holds.
        conclusion: paragraphs on top.
        tables: of scores, as rows.
        shown: the images, at least one.
        way: the words for each frame.
        levels: number of grey levels.
    """
    strength = report["options"]["strength"]
    largest = max((one.error.max().item() for one in shown if one.error is not None), default=None)
    page = Page("Translated images", ["translation"])
    page.conclude(conclusion)
    page.text(made_by(report))
    for rows in tables:
        page.table(rows)
    page.text(_what_is_seen(len(shown), report))
    page.add(_controls(list(shown[0].results), strength, way, largest))
    cards = "\n".join(_card(one, strength, way, levels, largest) for one in shown)
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
    parts += [f"up by noise of seed {options['seed']}"] if _is_random(options) else []
    parts += [f"from noise of seed {options['seed']} in the images"] if how == BRIDGE else []
    parts += [f"{len(report['failed'])} not translated, see translation.json"] if report["failed"] else []
    return one_line("; ".join(parts) + ".")


def _what_is_seen(n: int, report: dict) -> str:
    """How many images there are, and what the numbers and the way belong to."""
    whole, options = len(report["examples"]), report["options"]
    several = f"The first {n} of {whole}" if n < whole else f"All {whole}"
    text = f"{several} translated images. Their numbers and the way are those of strength {options['strength']:g}."
    return text + (" The noise of the way is another draw than that of the result." if _is_random(options) else "")


def _is_random(options: dict) -> bool:
    return options["stochastic"] or options["method"] == "sdedit"


def _controls(strengths: list[float], strength: float, way: Sequence[str], largest: float | None) -> str:
    """The search, the sliders, and the switch of the cycle's error."""
    parts = [
        '<div class="control"><label for="search">Search by file name</label><output for="search"></output>'
        '<input type="search" id="search"></div>',
        slider("way", "Along the way", way, _turn(way)),
        slider("strength", "Strength of the result", [f"{s:g}" for s in strengths], strengths.index(strength)),
    ]
    if largest is not None:
        parts.append(
            '<div class="control"><input type="checkbox" id="cycle"><label for="cycle">Error of the cycle</label>'
            f"<small>Over the source; full colour: {_short(largest)} grey levels.</small></div>"
        )
    return '<section class="controls" aria-label="Controls">{}</section>'.format("\n".join(parts))


def _turn(way: Sequence[str]) -> int:
    """The frame at which the way begins on the page: that in the middle, where a route of two models turns."""
    return (len(way) - 1) // 2


def _card(one: Shown, strength: float, way: Sequence[str], levels: int, largest: float | None) -> str:
    name, file = one_line(one.row["name"]), one_line(Path(one.row["source"]).name)
    notes = [f"{one.row['distance_rms']:.1f} grey levels from its source"]
    notes += [one.row["note"]] if "note" in one.row else []
    notes += [f"{words} {_short(one.row[key])}" for key, words in ERRORS.items() if key in one.row]
    source = image(picture(one.source, levels), "source")
    if one.error is not None:
        source = image(_overlay(one.error, largest), "error of the cycle", "error") + source
    frames = [None] * len(way) if one.frames is None else list(one.frames)
    words = [f"strength {s:g}" for s in one.results]
    results = _stack("strength", list(one.results.values()), words, list(one.results).index(strength), levels)
    return (
        f'<figure class="card" data-names="{html.escape(f"{name} {file}")}"><div class="pictures">'
        f"<div>{source}source</div><div>{_stack('way', frames, way, _turn(way), levels)}way</div>"
        f"<div>{results}result</div></div>"
        f"<figcaption><b>{html.escape(name)}</b><br>{html.escape(', '.join(notes))}</figcaption></figure>"
    )


def _short(value: float) -> str:
    """Two digits, and a power of ten for small values only."""
    return f"{float(f'{value:.2g}'):g}"


def _stack(name: str, pictures: Sequence[Tensor | None], words: Sequence[str], at: int, levels: int) -> str:
    """Pictures of which one is seen, as the slider ``name`` says."""
    parts = []
    for i, (pixels, word) in enumerate(zip(pictures, words, strict=True)):
        hidden = i != at
        if pixels is None:
            parts.append(f"<span{' hidden' * hidden}>not reached</span>")
        else:
            parts.append(image(picture(pixels, levels), word, hidden=hidden))
    return f'<div class="{name}">{"".join(parts)}</div>'


def _overlay(error: Tensor, largest: float | None) -> Image.Image:
    """Colour as dense as the error of a pixel, that of its worst channel, is to the largest."""
    dense = (error.double().amax(0) / (largest or 1) * 255).round().numpy().astype(np.uint8)
    return Image.fromarray(np.dstack([*(np.full_like(dense, value) for value in ERROR), dense]))
