"""Emoji of several vendors, a class each: ``python -m research.data.vendors OUT --vendors noto FOLDER …``.

A FOLDER holds SVGs named by code points, in subfolders or not: ``packages/svgmoji__noto/svg`` (also ``blob`` and
``twemoji``; Apache-2.0 and CC-BY-4.0) of the repository svgmoji/svgmoji, ``assets`` of shuding/fluentui-emoji-unicode
(MIT). The wheel resvg_py renders them as OUT/VENDOR/CONCEPT_NAME.png (:func:`research.data.emoji.concept`), so that
"--data.groups prefix" keeps all drawings of a concept in one split:

    indm train folder --data.path OUT --data.classes true --data.groups prefix --condition classes --data.flip false
"""

import io
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from PIL import Image
from tyro.conf import Positional, arg

from indm.checks import counted, reason, require
from indm.files import atomic, check_plain
from indm.workbench.cli.common import DONE, Common
from research.command import main
from research.data.emoji import NAME, concept, is_flag

SIDE, ENLARGED = 32, 4  # pixels, and by how much larger it is rendered first


def code_of(path: Path) -> str:
    """The code points that a file is named by, as in the npm packages of emoji: "1F600_color.svg" is "1f600"."""
    return path.stem.lower().removesuffix("_color")


def chosen(folder: Path) -> dict[str, Path]:
    """The SVGs below a folder by their code points, without flags.

    Raises:
        ValueError: there are none.
    """
    files = {code_of(path): path for path in sorted(folder.rglob("*.svg"))}
    named = {code: path for code, path in files.items() if NAME.fullmatch(code) and not is_flag(code)}
    require(bool(named), "--vendors", str(folder), "a folder of SVGs that are named by code points, as 1f600.svg")
    return named


def render(path: Path, side: int = SIDE) -> Image.Image:
    """An SVG in the middle of a white square, as the mean of pixels of a larger picture.

    Raises:
        ValueError: naming a file that cannot be rendered.
    """
    import resvg_py

    large = side * ENLARGED
    try:
        check_plain(path)
        with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_path=str(path), width=large)), formats=["PNG"]) as image:
            drawn = image.convert("RGBA")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be rendered: {reason(error)}") from error
    drawn.thumbnail((large, large), Image.Resampling.BOX)
    paper = Image.new("RGBA", (large, large), "white")
    paper.alpha_composite(drawn, ((large - drawn.width) // 2, (large - drawn.height) // 2))
    return paper.convert("RGB").reduce(ENLARGED)


def convert(vendors: dict[str, Path], out: Path) -> dict[str, int]:
    """Write ``out/VENDOR/CONCEPT_NAME.png``, 32×32, and return how many there are of each vendor."""
    counts = {}
    for vendor, folder in vendors.items():
        found = chosen(folder)
        for code, path in found.items():
            atomic.whole(out / vendor / f"{concept(code)}_{code}.png", partial(render(path).save, format="PNG"))
        counts[vendor] = len(found)
    return counts


@dataclass
class Vendors(Common):
    """Make a folder of 32×32 PNGs, OUT/VENDOR/CONCEPT_NAME.png, of the SVGs of several vendors' emoji."""

    module: ClassVar[str] = "research.data.vendors"

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write, with one subfolder for each vendor."""
    vendors: Annotated[dict[str, Path], arg(metavar="NAME FOLDER …")] = field(default_factory=dict)
    """Names of vendors, each with its folder of SVGs."""

    def run(self) -> int:
        require(len(self.vendors) > 1, "--vendors", [*self.vendors], "two vendors or more, each with its folder")
        for vendor, count in convert(self.vendors, self.out).items():
            print(f"{vendor}: {counted(count, 'emoji')}")
        return DONE


if __name__ == "__main__":
    sys.exit(main(Vendors))
