"""Images that are no squares, and of other sizes than the model's, through all commands as a user
goes.
"""

import numpy as np
import pytest
from PIL import Image
from toys import SMALL, error_of

from indm.workbench.cli.main import main
from indm.workbench.data.images import read_example
from indm.workbench.recipes import recipe as recipes
from indm.workbench.translation.routes import open_runs

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

SIDES = (8, 12)


def bars(folder, mode, sides, n=56, seed=0):
    """Pictures of one bar on black, grey or red."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(n):
        image = np.zeros((*sides, 3), np.uint8)
        left = rng.integers(0, sides[1] // 2)
        image[:, left : left + sides[1] // 3] = rng.integers(120, 250) * np.array(
            (1, 1, 1) if mode == "L" else (1, 0.2, 0)
        )
        Image.fromarray(image).convert(mode).save(folder / f"{mode}-{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("bars")
    return bars(home / "grey", "L", SIDES), bars(home / "red", "RGB", (20, 36), seed=1)


def test_sizes_of_their_own_are_brought_to_one_canvas(folders, tmp_path):
    options = [
        "--data.size=8x12",
        "--data.channels=3",
        "--data.test=0.4",
        "--train.steps=2",
        "--train.batch_size=8",
    ]
    assert (
        main(
            ["train-pair", *map(str, folders), "--out", str(tmp_path), *options, *SMALL, "--quiet"]
        )
        == 0
    )
    assert [recipes.load(tmp_path / side)["data"]["size"] for side in "ab"] == ["8x12", "8x12"]
    assert open_runs([tmp_path]).models[1].shape == (3, *SIDES)


def test_a_photograph_is_cut_to_the_shape_of_the_model(tmp_path):
    """The largest rectangle of 8:12 in 30×40 is 27×40, in the middle."""
    array = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png")
    read = read_example(tmp_path / "photo.png", (3, *SIDES), 256, {})
    cut = Image.fromarray(array[2:29]).resize((12, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(read.pixels.permute(1, 2, 0).numpy(), np.asarray(cut))


def test_sides_that_a_flow_or_a_network_cannot_divide_are_errors_by_name(folders, tmp_path, capsys):
    common = [
        "train",
        "folder",
        "--data.path",
        folders[1],
        "--out",
        tmp_path / "run",
        "--quiet",
        "--train.steps=2",
    ]
    error = error_of(capsys, *common, "--flow", "coupling", "--data.size", "9x12")
    assert (
        "scales=1 squeezes 1 times, so height and width must be divisible by 2, got shape (3, 9, 12)"
        in error
    )
    ncsnpp = [
        "--net",
        "ncsnpp",
        "--net.multipliers=[1,1,1]",
        "--flow",
        "identity",
        "--data.size",
        "8x14",
    ]
    error = error_of(capsys, *common, *ncsnpp)
    assert (
        "sides divisible by 4" in error
        and "multipliers (1, 1, 1)" in error
        and "(3, 8, 14)" in error
    )
    for size in ("8x", "8x12x3", "[8,12,3]", "wide", "[]"):
        assert "size must be a side of squares, or height x width as" in error_of(
            capsys, *common, "--data.size", size
        )
    assert "at least 8 pixels" in error_of(capsys, *common, "--data.size", "7x12")
