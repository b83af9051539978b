"""Photographs of fruits in twenty classes: ``python -m research.data.fruits FOLDER OUT``.

FOLDER is ``fruits-360`` of the repository nzmonzmp/dataset-fruits (Fruits-360 by M. Oltean and H.
Muresan, MIT). Its folders ``Training`` and ``Test`` have one folder for each of 103 kinds. A kind
is a film of a single fruit that turns in front of white, 100×100 pixels a frame; the two folders
divide its frames. Here all frames of a kind are together:

    indm train fruits.toml --data.path OUT                       # data.groups "subfolder": a kind
    is in one split

:data:`NAMES` says which kinds are in which class. Kinds were chosen by eye at 32×32 pixels, before
any training.
"""

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from PIL import Image
from tyro.conf import Positional, arg

from indm.checks import counted
from indm.files import atomic
from indm.workbench.cli.common import DONE, Common
from indm.workbench.data.images import read_image
from research.command import main
from research.data import thinned

SIDE = 32
MOST = 2000  # frames of a class
NAMES = {
    "apple": (
        "Apple Braeburn", "Apple Crimson Snow", "Apple Golden 1", "Apple Golden 2", "Apple Golden 3",
        "Apple Granny Smith", "Apple Pink Lady", "Apple Red 1", "Apple Red 2", "Apple Red 3", "Apple Red Delicious",
        "Apple Red Yellow 1", "Apple Red Yellow 2",
    ),
    "avocado": ("Avocado", "Avocado ripe"),
    "banana": ("Banana", "Banana Lady Finger", "Banana Red"),
    "chestnut": ("Chestnut",),
    "coconut": ("Cocos",),
    "dragon fruit": ("Pitahaya Red",),
    "kiwi": ("Kiwi",),
    "lemon": ("Lemon",),
    "lychee": ("Lychee",),
    "melon": ("Cantaloupe 1", "Cantaloupe 2", "Melon Piel de Sapo"),
    "mulberry": ("Mulberry",),
    "orange": ("Clementine", "Mandarine", "Orange", "Tangelo"),
    "peach": ("Nectarine", "Peach", "Peach Flat"),
    "pear": ("Pear", "Pear Abate", "Pear Kaiser", "Pear Monster", "Pear Red", "Pear Williams"),
    "pepper": ("Pepper Green", "Pepper Red", "Pepper Yellow"),
    "pineapple": ("Pineapple", "Pineapple Mini"),
    "star fruit": ("Carambula",),
    "strawberry": ("Strawberry", "Strawberry Wedge"),
    "tomato": ("Tomato 1", "Tomato 3", "Tomato 4", "Tomato Cherry Red", "Tomato Maroon"),
    "walnut": ("Walnut",),
}  # fmt: skip
LEFT_OUT = {
    "a ball without a mark: another name would do as well": (
        "Apricot", "Cherry 1", "Cherry 2", "Cherry Rainier", "Cherry Wax Black", "Cherry Wax Red",
        "Cherry Wax Yellow", "Grape Blue", "Grape Pink", "Grape White", "Grape White 2", "Grape White 3",
        "Grape White 4", "Grapefruit Pink", "Grapefruit White", "Huckleberry", "Lemon Meyer", "Maracuja",
        "Passion Fruit", "Peach 2", "Physalis", "Plum", "Plum 2", "Plum 3", "Redcurrant", "Tomato Yellow",
    ),
    "few know it by its looks": (
        "Cactus fruit", "Granadilla", "Guava", "Kaki", "Kohlrabi", "Kumquats", "Mangostan", "Papaya",
        "Pepino", "Physalis with Husk", "Pomegranate", "Pomelo Sweetie", "Quince", "Rambutan", "Salak", "Tamarillo",
    ),
    "not as one expects it: unripe, or of another colour or shape": (
        "Dates", "Hazelnut", "Limes", "Mango", "Raspberry", "Tomato 2",
    ),
}  # fmt: skip


def frames_of(folder: Path, kind: str) -> list[Path]:
    """All frames of a kind in the order of its turns.

    Raises:
        ValueError: there are none.
    """
    frames = [
        path for part in ("Training", "Test") for path in (folder / part / kind).glob("*.jpg")
    ]
    if not frames:
        raise ValueError(f"FOLDER must be fruits-360 with Training/{kind}/*.jpg, got '{folder}'")
    return sorted(frames, key=_turn)


def _turn(path: Path) -> list[str | int]:
    """The axis and the number of a frame: "r2_31_100.jpg" comes before "r2_100_100.jpg"."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.stem)]


def left_out(frames: Sequence[Path], most: int) -> list[Path]:
    """At most ``most`` of the frames that :func:`thinned` leaves out, equally far apart."""
    used = {*thinned(frames, most)}
    return thinned([frame for frame in frames if frame not in used], most)


def shrink(source: Path, out: Path) -> None:
    """Write a photograph as a PNG of 32×32 pixels."""
    small = read_image(source).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    atomic.whole(out, partial(small.save, format="PNG"))


def convert(folder: Path, out: Path, most: int = MOST, between: bool = False) -> dict[str, int]:
    """Write ``out/NAME/KIND/FRAME.png``, and return how many there are of each name.

    Args:
        folder: ``fruits-360``.
        out: where to write; made if need be.
        most: frames of a name, shared equally by its kinds; their turns are thinned to that.
        between: write frames that are left out otherwise.

    Raises:
        ValueError: naming a kind that is missing.
    """
    choose = left_out if between else thinned
    chosen = {
        out / name / kind / f"{path.stem}.png": path
        for name, kinds in NAMES.items()
        for kind in kinds
        for path in choose(frames_of(folder, kind), most // len(kinds))
    }
    with ThreadPoolExecutor() as pool:
        list(pool.map(shrink, chosen.values(), chosen))
    return {name: sum(path.parts[-3] == name for path in chosen) for name in NAMES}


@dataclass
class Fruits(Common):
    """Make a folder of 32×32 PNGs, OUT/NAME/KIND/FRAME.png, of the photographs of Fruits-360."""

    module: ClassVar[str] = "research.data.fruits"

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The folder fruits-360, with Training and Test."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write, with one subfolder for each class."""
    most: int = MOST
    """Frames of a class, at most."""
    between: bool = False
    """Write frames that are left out otherwise: of the same fruits, and never trained on."""

    def run(self) -> int:
        for name, count in convert(self.folder, self.out, self.most, self.between).items():
            print(f"{name}: {counted(count, 'frame')}, {counted(len(NAMES[name]), 'kind')}")
        return DONE


if __name__ == "__main__":
    sys.exit(main(Fruits))
