"""Faces of 24×24 pixels in several colourings: ``python -m research.data.punks FOLDER OUT``.

FOLDER is ``collection`` of the repository cryptopunksnotdead/awesome-24px (CC0): punks.png is a
sheet of 10,000 faces, goldenpunks.png and halloweenpunks.png have the same faces in other colours.
``OUT/punks`` has one half of the training faces, the other two have the other half.
``OUT/NAME-test`` have the same faces, which no training folder has.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from PIL import Image
from tyro.conf import Positional, arg

from indm.workbench.cli.common import DONE, Common
from indm.workbench.data.images import read_image
from research.command import main
from research.data.unpaired import TEST, write

SIDE = 24
PAPER = "#638596"  # behind transparent pixels
STYLES = ("punks", "goldenpunks", "halloweenpunks")


def tiles(sheet: Path) -> list[Image.Image]:
    """The faces of a sheet in rows, on :data:`PAPER`.

    Raises:
        ValueError: naming a sheet that is missing or whose sides are not multiples of 24.
    """
    if not sheet.is_file():
        raise ValueError(f"FOLDER must hold {sheet.name}, got '{sheet.parent}'")
    image = read_image(sheet, PAPER)
    if image.width % SIDE or image.height % SIDE:
        raise ValueError(
            f"{sheet} must have sides that are multiples of {SIDE}, got {image.width}×{image.height}"
        )
    tops, lefts = range(0, image.height, SIDE), range(0, image.width, SIDE)
    return [image.crop((left, top, left + SIDE, top + SIDE)) for top in tops for left in lefts]


def convert(folder: Path, out: Path, test: int = TEST) -> dict[str, int]:
    """:func:`research.data.unpaired.write` the faces of all sheets, named by their number on the
    sheet.
    """
    styles = {style: tiles(folder / f"{style}.png") for style in STYLES}
    return write(out, [f"{number:04}" for number in range(len(styles[STYLES[0]]))], styles, test)


@dataclass
class Punks(Common):
    """Make folders of 24×24 PNGs of sheets of faces: OUT/NAME to train, OUT/NAME-test with the same
    faces.
    """

    module: ClassVar[str] = "research.data.punks"

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The folder of the sheets."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write."""
    test: int = TEST
    """Number of test pairs."""

    def run(self) -> int:
        for folder, count in convert(self.folder, self.out, self.test).items():
            print(f"{folder}: {count} faces")
        return DONE


if __name__ == "__main__":
    sys.exit(main(Punks))
