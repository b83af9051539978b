"""Characters in two typefaces at 24×24 pixels, black on white:
``python -m research.data.glyphs OUT``.

The fonts are Noto Sans CJK and Noto Serif CJK (OFL 1.1), which Debian has:
``apt-get install fonts-noto-cjk``. ``OUT/sans`` and ``OUT/serif`` share no character;
``OUT/sans-test`` and ``OUT/serif-test`` have the same characters, which the other two lack. Images
are named by their code points, as 4e00.png.
"""

import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from tyro.conf import Positional, arg

from indm.workbench.cli.common import DONE, Common
from research.command import main
from research.data.unpaired import TEST, write

FONTS = Path("/usr/share/fonts/opentype/noto")
# pixels; in these fonts a square character ends 0.12 of its side below the baseline
SIDE, BASELINE = 24, 21


def code_points(font: Path) -> set[int]:
    """The characters that the first font in a file has, as code points.

    Raises:
        ValueError: the file is missing.
    """
    if not font.is_file():
        raise ValueError(
            f"--sans and --serif must be font files, got '{font}'; Debian's package fonts-noto-cjk has the default"
        )
    with TTFont(font, fontNumber=0, lazy=True) as opened:
        return set(opened.getBestCmap())


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One character on its baseline in the middle of a white square."""
    image = Image.new("L", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).text((SIDE / 2, BASELINE), character, "black", font, anchor="ms")
    return image


def convert(fonts: Mapping[str, Path], out: Path, test: int = TEST) -> dict[str, int]:
    """Draw every character that all ``fonts`` have, and :func:`research.data.unpaired.write` them.

    Characters that Unicode calls compatible with others (NFKC) are left out: they look alike.
    """
    shared = sorted(set.intersection(*map(code_points, fonts.values())))
    characters = [chr(point) for point in shared if unicodedata.is_normalized("NFKC", chr(point))]
    styles = {}
    for name, file in fonts.items():
        font = ImageFont.truetype(str(file), SIDE)
        styles[name] = [draw(character, font) for character in characters]
    return write(out, [f"{ord(character):x}" for character in characters], styles, test)


@dataclass
class Glyphs(Common):
    """Make folders of characters in two typefaces: OUT/NAME to train, OUT/NAME-test with the same
    characters.
    """

    module: ClassVar[str] = "research.data.glyphs"

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write."""
    sans: Path = FONTS / "NotoSansCJK-Regular.ttc"
    """File of the typeface without serifs."""
    serif: Path = FONTS / "NotoSerifCJK-Regular.ttc"
    """File of the typeface with serifs."""
    test: int = TEST
    """Number of test pairs."""

    def run(self) -> int:
        for folder, count in convert(
            {"sans": self.sans, "serif": self.serif}, self.out, self.test
        ).items():
            print(f"{folder}: {count} characters")
        return DONE


if __name__ == "__main__":
    sys.exit(main(Glyphs))
