"""Two folders of toy images, options of small trainings on them, and how results are read."""

import itertools

import numpy as np
from PIL import Image

from indm.workbench.cli.main import main

WITHOUT_NOISE = ["--train.terminal_noise", "0", "--train.initial_noise", "0"]
BY_COUPLING = ["--form", "terminal", "--flow", "coupling", *WITHOUT_NOISE]
SMALL = [
    "--flow.depth=1", "--flow.width=4", "--net.channels=4", "--net.blocks=1", "--net.multipliers=[1]",
    "--net.attention=[]", "--train.warmup=0", "--train.seconds=inf", "--train.log_every=1", "--train.validate_every=2",
    "--train.validate_examples=20",
]  # fmt: skip


def toy_folder(folder, hue, n=24, side=8, seed=0):
    """Discs of one colour on black: the other folder has them in another colour."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:side, :side]
    for i in range(n):
        centre, radius = rng.uniform(2, side - 2, 2), rng.uniform(1.5, 3)
        disc = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2)[..., None]
        pixels = (disc * np.array(hue) * rng.uniform(0.7, 1.0)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{hue[0]}-{i:02d}.png")
    return folder


def error_of(capsys, *arguments):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("indm: error: ") and error.count("\n") == 1, error
    return error


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def framed(picture, side):
    """The images of a sheet, row by row, found by the grey lines around them and brought back to
    their size: a ``side`` of squares, or height and width.
    """
    height, width = side if isinstance(side, tuple) else (side, side)
    line = (picture == 153).all(-1)

    def between(lines):
        places = np.flatnonzero(lines)
        return [(a + 1, b) for a, b in itertools.pairwise(places) if b - a >= 64]

    found = []
    for top, bottom in between(line.mean(1) > 0.5):
        found.append([])
        for left, right in between(line[top:bottom].all(0)):
            image, factor = picture[top:bottom, left:right], (bottom - top) // height
            assert (
                image.shape[:2] == (height * factor, width * factor)
                and min(height, width) * factor >= 64
            )
            small = image[::factor, ::factor]
            assert np.array_equal(small.repeat(factor, 0).repeat(factor, 1), image)
            found[-1].append(small)
    return found
