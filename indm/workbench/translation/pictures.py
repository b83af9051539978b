"""Pictures of a translation: one self-contained page with the route and result of each image, and strips of several
runs below one another."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from indm.messages import one_line
from indm.workbench.figures.page import Page, image, short, slider
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.translation.routes import (
    BRIDGE,
    BatchTranslator,
    Translated,
    TranslationRuns,
    route_of,
)

MOST = 48  # images on the page; each has some twenty pictures
FRAMES = 8  # of each leg of the route, without --strip
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
ERROR = (255, 0, 160)  # the colour of the cycle's error: one that is rare in photographs

ERRORS = {  # of an image, by the key in its row of the report
    "cycle_error_max": "error of the cycle at most",
    "cycle_error_rounded": "after rounding",
    "written_cycle_error_max": "from the result as written",
    "solver_error_max": "of the solver about",
}


def picture(pixels: Num[Tensor, "c h w"], levels: int) -> Image.Image:
    """An image in grey levels, pixel for pixel, in 256 of them."""
    pixels = (pixels.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


@dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        row: what the report says of it.
        source: the image, (C, H, W) in grey levels.
        results: by strength; None where there is none.
        frames: along the route, (frames, C, H, W); None where there are none.
        error: of the cycle, absolute and before rounding; None where no cycle was made.
    """

    row: dict
    source: Num[Tensor, "c h w"]
    results: dict[float, Tensor | None]
    frames: Num[Tensor, "frames c h w"] | None
    error: Float[Tensor, "c h w"] | None


def write_page(
    path: Path,
    report: dict,
    conclusion: Sequence[str],
    runs: TranslationRuns,
    options: TranslationOptions,
    translations: Sequence[tuple[dict, Tensor, Translated]],
    progress: bool = True,
) -> None:
    """Write the page on ``translations``: what the report says of each, its source, and what was made of it.

    Their frames, and their results at other strengths, are made here, as by a run on these images alone.
    """
    levels, strength = cast(int, runs.models[0].scaling.levels), options.strength
    words, shown = _at_strengths(runs, options, translations, progress)
    largest = max((one.error.max().item() for one in shown if one.error is not None), default=None)
    page = Page("Translated images", [Path(__file__)])
    page.conclude(conclusion)
    page.text(made_by(report))
    page.text(_what_is_shown(len(shown), report))
    page.add(_controls(list(shown[0].results), strength, words, largest))
    cards = "\n".join(_card(one, strength, words, levels, largest) for one in shown)
    page.add(f'<main class="cards">\n{cards}\n</main>')
    page.write(path)


def _at_strengths(
    runs: TranslationRuns,
    options: TranslationOptions,
    translations: Sequence[tuple[dict, Tensor, Translated]],
    progress: bool,
) -> tuple[list[str], list[Shown]]:
    """The words of each frame, and the images with their frames and their results at several strengths."""
    raw = torch.stack([source for _, source, _ in translations])
    options = replace(options, cycle=False, errors=False, strip=options.strip or FRAMES)
    strengths = {s for s in STRENGTHS if s < 1 or options.method == "flow"} | {options.strength}
    made: dict[float, list[Translated | RuntimeError]] = {}
    words: list[str] = []
    for strength in tqdm(sorted(strengths), desc="the page", disable=not progress):
        is_own = strength == options.strength
        own = options if is_own else replace(options, strength=strength, strip=0)
        translate = BatchTranslator(route_of(runs, own), own)
        words = translate.words() if is_own else words
        made[strength] = [one for part in raw.split(options.batch_size) for one in translate.each(part)]
    shown = []
    for i, (row, source, written) in enumerate(translations):
        reached = {s: one for s, ones in made.items() if isinstance(one := ones[i], Translated)}
        results = {s: reached[s].result if s in reached else None for s in made} | {options.strength: written.result}
        frames = reached[options.strength].frames if options.strength in reached else None
        shown.append(Shown(row, source, results, frames, written.cycle_error))
    return words, shown


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


def _what_is_shown(n: int, report: dict) -> str:
    """How many images there are, and what the numbers and the route belong to."""
    total, options = len(report["examples"]), report["options"]
    several = f"The first {n} of {total}" if n < total else f"All {total}"
    text = f"{several} translated images. Their numbers and the route are those of strength {options['strength']:g}."
    return text + (" The noise of the route is another draw than that of the result." if _is_random(options) else "")


def _is_random(options: Mapping) -> bool:
    return options["stochastic"] or options["method"] == "sdedit"


def _controls(strengths: list[float], strength: float, words: Sequence[str], largest: float | None) -> str:
    """The search, the sliders, and the switch of the cycle's error."""
    parts = [
        '<div class="control"><label for="search">Search by file name</label><output for="search"></output>'
        '<input type="search" id="search"></div>',
        slider("route", "Along the route", words, _middle(words)),
        slider("strength", "Strength of the result", [f"{s:g}" for s in strengths], strengths.index(strength)),
    ]
    if largest is not None:
        parts.append(
            '<div class="control"><input type="checkbox" id="cycle"><label for="cycle">Error of the cycle</label>'
            f"<small>Over the source; full colour: {short(largest)} grey levels.</small></div>"
        )
    return '<section class="controls" aria-label="Controls">{}</section>'.format("\n".join(parts))


def _middle(words: Sequence[str]) -> int:
    """The first frame that is shown: that in the middle, where a route of two models turns."""
    return (len(words) - 1) // 2


def _card(one: Shown, strength: float, words: Sequence[str], levels: int, largest: float | None) -> str:
    name, file = one_line(one.row["name"]), one_line(Path(one.row["source"]).name)
    notes = [f"{one.row['distance_rms']:.1f} grey levels from its source"]
    notes += [one.row["note"]] if "note" in one.row else []
    notes += [f"{words} {short(one.row[key])}" for key, words in ERRORS.items() if key in one.row]
    source = image(picture(one.source, levels), "source")
    if one.error is not None:
        source = image(_overlay(one.error, largest), "error of the cycle", "error") + source
    frames = [None] * len(words) if one.frames is None else list(one.frames)
    strengths = [f"strength {s:g}" for s in one.results]
    results = _stack("strength", list(one.results.values()), strengths, list(one.results).index(strength), levels)
    return (
        f'<figure class="card" data-names="{html.escape(f"{name} {file}")}"><div class="pictures">'
        f"<div>{source}source</div><div>{_stack('route', frames, words, _middle(words), levels)}route</div>"
        f"<div>{results}result</div></div>"
        f"<figcaption><b>{html.escape(name)}</b><br>{html.escape(', '.join(notes))}</figcaption></figure>"
    )


def _stack(name: str, pictures: Sequence[Tensor | None], words: Sequence[str], at: int, levels: int) -> str:
    """Pictures of which the slider ``name`` shows one."""
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
