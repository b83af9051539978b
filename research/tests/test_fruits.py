"""The folder that is made of Fruits-360: which frames, of what size, and that its kinds stay
together.
"""

import itertools

import numpy as np
import pytest
from PIL import Image

from indm.workbench.data.base import SPLITS, load_data
from research.command import main
from research.data import fruits

KINDS = list(itertools.chain(*fruits.NAMES.values()))


@pytest.fixture
def films(tmp_path):
    """Four frames of each kind, a square of 60 pixels on white that is of the kind's own grey
    level.
    """
    folder = tmp_path / "fruits-360"
    for i, kind in enumerate(KINDS):
        picture = np.full((100, 100, 3), 255, np.uint8)
        picture[20:80, 20:80] = 3 * i
        for part, frame in (("Training", "0"), ("Training", "2"), ("Test", "10"), ("Test", "r_1")):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / kind / f"{frame}_100.jpg")
    return folder


def test_every_kind_is_in_one_name_or_left_out_for_one_reason():
    left_out = list(itertools.chain(*fruits.LEFT_OUT.values()))
    assert len(KINDS) + len(left_out) == len({*KINDS, *left_out}) == 103 and len(fruits.NAMES) == 20


def test_frames_are_thinned_and_shrunk_by_the_mean_of_their_pixels(films, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(fruits.Fruits, [str(films), str(out), "--most", "6"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == 20
        and said[1] == "avocado: 6 frames, 2 kinds"
        and said[4] == "coconut: 4 frames, 1 kind"
    )
    frames = sorted(path.name for path in (out / "avocado" / "Avocado").iterdir())
    assert frames == ["0_100.png", "10_100.png", "2_100.png"], (
        "three of four, in the order of the turns"
    )
    with Image.open(out / "avocado" / "Avocado" / "0_100.png") as image:
        pixels = np.asarray(image).astype(float)
    assert (
        main(fruits.Fruits, [str(films), str(tmp_path / "between"), "--most", "6", "--between"])
        == 0
    )
    others = sorted(path.name for path in (tmp_path / "between" / "avocado" / "Avocado").iterdir())
    assert others == ["r_1_100.png"] and "coconut: 0 frames" in capsys.readouterr().out, (
        "what is left"
    )
    level = 3 * KINDS.index("Avocado")
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(pixels[10:22, 10:22], level, atol=3)
    np.testing.assert_allclose(pixels[[0, -1]], 255, atol=2)
    assert pixels.mean() == pytest.approx(255 - 0.36 * (255 - level), abs=2), "overshoot is clipped"


def test_the_recipes_data_keep_a_kind_in_one_split(films, tmp_path):
    fruits.convert(films, tmp_path / "out")
    data = load_data("folder", path=tmp_path / "out", size=32, classes=True, groups="subfolder")
    assert data.classes == tuple(sorted(fruits.NAMES))
    kinds = [set(data.groups[part].tolist()) for part in SPLITS]
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == len(KINDS)
    several = {i for i, name in enumerate(data.classes) if len(fruits.NAMES[name]) > 1}
    assert {*data.labels["valid"].tolist(), *data.labels["test"].tolist()} == several
    assert set(data.labels["train"].tolist()) == set(range(20))


def test_a_kind_that_is_missing_is_named(films, tmp_path):
    with pytest.raises(ValueError, match="must be fruits-360 with Training/Apple Braeburn"):
        fruits.convert(films / "Training", tmp_path / "out")
