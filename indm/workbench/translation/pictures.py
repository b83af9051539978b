"""One self-contained page with the route and result of each translated image."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from indm.messages import one_line
from indm.workbench.figures.page import Page, image, short, slider
from indm.workbench.translation.routes import BRIDGE, Translated

MOST = 48  # images on the page; each has some twenty pictures
FRAMES = 8  # of each leg of the route, without --strip
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
    page = Page("Translated images", [Path(__file__)])
    page.conclude(conclusion)
    page.text(made_by(report))
    n, total = len(translations), len(report["examples"])
    page.text(f"{f'The first {n} of {total}' if n < total else f'All {total}'} translated images.")
    middle = (len(route) - 1) // 2  # where a route of two models turns
    controls = slider("route", "Along the route", route, middle)
    page.add(f'<section class="controls" aria-label="Controls">{controls}</section>')
    cards = "\n".join(_card(*one, route, middle, report["levels"]) for one in translations)
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


def _card(row: dict, source: Tensor, translated: Translated, route: Sequence[str], middle: int, levels: int) -> str:
    notes = [f"{row['distance_rms']:.1f} grey levels from its source"]
    notes += [row["note"]] if "note" in row else []
    notes += [f"{words} {short(row[key])}" for key, words in ERRORS.items() if key in row]
    frames = zip(cast(Tensor, translated.frames), route, strict=True)
    stack = [image(picture(one, levels), word, hidden=i != middle) for i, (one, word) in enumerate(frames)]
    name, first, last = html.escape(one_line(row["name"])), picture(source, levels), picture(translated.result, levels)
    return (
        f'<figure class="card"><div class="pictures"><div>{image(first, "source")}source</div>'
        f'<div><div class="route">{"".join(stack)}</div>route</div><div>{image(last, "result")}result</div></div>'
        f"<figcaption><b>{name}</b><br>{html.escape(', '.join(notes))}</figcaption></figure>"
    )
