"""Emoji of several vendors: what is rendered, under which name, and that a thing is in one split."""

import numpy as np
import pytest

from indm.workbench.data.base import SPLITS, load_data
from research.command import main
from research.data import vendors

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}">{drawn}</svg>'
BOX = SVG.replace("{drawn}", '<rect width="{w}" height="{h}" fill="{fill}"/>')
TONES = ("", "-1f3fb", "-1f3ff")


@pytest.fixture
def folders(tmp_path):
    """Twenty hands in three skin tones by two vendors, named as each does, beside flags, a mask and a sprite."""
    found = {name: tmp_path / "svg" / name for name in ("noto", "fluent")}
    for name, folder in found.items():
        folder.mkdir(parents=True)
        for code in [f"{0x1F440 + i:x}{tone}" for i in range(20) for tone in TONES] + ["1f1e9-1f1ea"]:
            stem = code.upper() if name == "noto" else f"{code}_color"
            (folder / f"{stem}.svg").write_text(BOX.format(w=36, h=36, fill="#c04000"))
    (found["fluent"] / "1f440_flat.svg").write_text(BOX.format(w=36, h=36, fill="black"))
    (found["noto"] / "sprite.svg").write_text("not a picture")
    return found


def test_a_thing_of_all_vendors_and_tones_is_in_one_split(folders, tmp_path, capsys):
    flags = [word for name, folder in folders.items() for word in (name, str(folder))]
    assert main(vendors.Vendors, [str(tmp_path / "out"), "--vendors", *flags]) == 0
    assert capsys.readouterr().out.splitlines() == ["noto: 60 emojis", "fluent: 60 emojis"]
    assert (tmp_path / "out" / "noto" / "1f440_1f440-1f3fb.png").exists()
    data = load_data("folder", path=tmp_path / "out", size=32, classes=True, groups="prefix")
    things = [data.groups[part].unique(return_counts=True) for part in SPLITS]
    assert [len(names) for names, _ in things] == [16, 2, 2]
    assert all(bool((counts == 6).all()) for _, counts in things)
    assert data.classes == ("fluent", "noto")
    assert [data.labels[part].bincount().tolist() for part in SPLITS] == [[48, 48], [6, 6], [6, 6]]


def test_a_drawing_is_centred_on_white_and_averaged(tmp_path):
    (tmp_path / "wide.svg").write_text(BOX.format(w=64, h=32, fill="#ff0000"))
    pixels = np.asarray(vendors.render(tmp_path / "wide.svg"))
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_array_equal(pixels[8:24], np.broadcast_to([255, 0, 0], (16, 32, 3)))
    assert (pixels[:8] == 255).all() and (pixels[24:] == 255).all()
    half = SVG.format(w=64, h=64, drawn='<rect x="33" width="31" height="64"/>')
    (tmp_path / "half.svg").write_text(half)
    halves = np.asarray(vendors.render(tmp_path / "half.svg"))[:, :, 0]
    np.testing.assert_allclose(halves[:, 16], 127.5, atol=1)
    assert (halves[:, :16] == 255).all() and (halves[:, 17:] == 0).all(), "the edge is in the middle of a pixel"


def test_a_file_that_is_no_drawing_is_named(tmp_path):
    (tmp_path / "1f600.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"1f600\.svg cannot be rendered"):
        vendors.convert({"noto": tmp_path}, tmp_path / "out")
    with pytest.raises(ValueError, match="--vendors must be a folder of SVGs"):
        vendors.chosen(tmp_path / "nothing")
