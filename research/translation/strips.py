"""The way of one image from A to B by several runs, one below the other.

    python -m research.translation.strips PAIR ONE BRIDGE photo.jpg --out strip.png

There is a row for two models, one for a class-conditional model, followed by one for its SDEdit at ``--strength``, and
one for a bridge.
"""

import argparse
from pathlib import Path
from typing import cast

from torch import Tensor

from indm.flows import Identity
from indm.translation import Route
from indm.workbench.figures import plots, sheets
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.translation.routes import BatchTranslator, TranslationRuns, find, open_runs


def strips_of(folders: list[Path], image: Path, o: argparse.Namespace) -> list[sheets.Panel]:
    """The routes of ``image`` by the runs or pairs in ``folders``; the options are those of the program."""
    strips = []
    for folder in folders:
        runs = open_runs([folder])
        what = f"{runs.kind}{', linear' if isinstance(runs.models[0].flow, Identity) else ''} ({folder.name})"
        strips.append(_strip(what, runs, runs.route(steps=o.steps), image, o))
        if runs.classes != (None, None):
            route = runs.sdedit(strength=o.strength, steps=o.steps)
            strips.append(_strip(f"SDEdit {o.strength:g}, {what}", runs, route, image, o))
    return strips


def _strip(title: str, runs: TranslationRuns, route: Route, image: Path, o: argparse.Namespace) -> sheets.Panel:
    (item,) = find([image], route.models[0], runs.data)
    translate = BatchTranslator(route, TranslationOptions(strip=o.frames // len(route.legs), seed=o.seed))
    (translated,) = translate(item.read().pixels[None])
    return sheets.strip(cast(Tensor, translated.frames), translate.times, title)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, default=Path("strip.png"))
    parser.add_argument("--frames", type=int, default=12, help="pictures of a row, an even number")
    parser.add_argument("--strength", type=float, default=0.5, help="of SDEdit")
    parser.add_argument("--steps", type=int, default=120, help="evaluations of the networks for each row")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    levels = cast(int, open_runs(o.runs[:1]).models[0].scaling.levels)
    plots.save_pixels(sheets.sheet(strips_of(o.runs, o.image, o), levels, across=1), o.out)


if __name__ == "__main__":
    main()
