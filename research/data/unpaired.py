"""Folders of drawings that exist in several styles: training images without pairs, and test pairs."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

TEST = 200  # pairs


def unrepeated(*styles: Sequence[bytes]) -> list[int]:
    """The positions whose drawing is the only one of its looks in every style.

    Example:

        >>> unrepeated([b"a", b"b", b"b", b"c"], [b"x", b"y", b"z", b"w"])
        [0, 3]
    """
    counts = [Counter(style) for style in styles]
    drawn = enumerate(zip(*styles, strict=True))
    return [
        i
        for i, looks in drawn
        if all(count[one] == 1 for count, one in zip(counts, looks, strict=True))
    ]


def divided(positions: Sequence[int], test: int) -> tuple[list[int], list[int], list[int]]:
    """``test`` positions for pairs, and two halves of the rest, in an order that is drawn once and
    for all.

    Raises:
        ValueError: fewer than ``test`` + 2 positions.
    """
    if len(positions) < test + 2:
        raise ValueError(
            f"test must be at most the {len(positions)} different drawings less 2, got {test}"
        )
    order = random.Random(0).sample(positions, len(positions))
    half = (len(order) + test) // 2
    return order[:test], order[test:half], order[half:]


def write(
    out: Path, names: Sequence[str], styles: Mapping[str, Sequence[Image.Image]], test: int
) -> dict[str, int]:
    """Write ``out/STYLE`` for training and ``out/STYLE-test``, and return how many images are in
    each.

    The first style has one half of the training drawings and all others have the other half. The
    test folders have the same names. Drawings that are repeated in a style are left out.

    Args:
        out: the folder to write; made if need be.
        names: of the drawings, without suffix.
        styles: the drawings in each style, in the order of ``names``.
        test: number of test pairs.
    """
    kept = unrepeated(*([image.tobytes() for image in images] for images in styles.values()))
    pairs, first, second = divided(kept, test)
    counts = {}
    for number, (style, images) in enumerate(styles.items()):
        for folder, part in ((style, second if number else first), (f"{style}-test", pairs)):
            counts[folder] = len(part)
            (out / folder).mkdir(parents=True, exist_ok=True)
            for i in part:
                images[i].save(out / folder / f"{names[i]}.png")
    return counts
