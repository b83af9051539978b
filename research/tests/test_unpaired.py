"""Characters in two typefaces and faces in three colourings: no pair in training, and test pairs
that none has seen.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from research.command import main
from research.data import glyphs, punks
from research.data.unpaired import divided, unrepeated, write

TYPEFACES = Path(matplotlib.get_data_path(), "fonts", "ttf")
FACES = 12


def names(folder):
    return {path.stem for path in folder.iterdir()}


def check_folders(out, first, *others):
    """The training folder of the first style shares no name with any other folder; nor do test and
    training ones.
    """
    tested = names(out / f"{first}-test")
    for style in others:
        assert names(out / f"{style}-test") == tested
        assert not names(out / first) & names(out / style)
        assert not tested & (names(out / style) | names(out / first))


@pytest.mark.parametrize("count, test", [(9, 3), (10, 3), (2, 0)])
def test_every_position_is_in_one_part_and_halves_are_alike(count, test):
    pairs, first, second = divided(range(100, 100 + count), test)
    assert sorted([*pairs, *first, *second]) == list(range(100, 100 + count))
    assert len(pairs) == test and 0 <= len(second) - len(first) <= 1
    assert divided(range(100, 100 + count), test) == (pairs, first, second)
    with pytest.raises(ValueError, match=f"{count} different drawings less 2"):
        divided(range(count), count - 1)


def test_a_drawing_that_one_style_repeats_is_in_no_folder(tmp_path):
    levels = {"a": [10, 20, 30, 40, 50], "b": [1, 2, 3, 3, 5]}
    assert unrepeated(*(list(map(bytes, zip(each, strict=True))) for each in levels.values())) == [
        0,
        1,
        4,
    ]
    styles = {
        style: [Image.new("L", (24, 24), level) for level in each] for style, each in levels.items()
    }
    assert write(tmp_path, list("vwxyz"), styles, 1) == {"a": 1, "a-test": 1, "b": 1, "b-test": 1}
    check_folders(tmp_path, "a", "b")
    assert set.union(*(names(tmp_path / folder) for folder in ("a", "b", "a-test"))) == set("vwz")
    for style, each in levels.items():
        for path in (tmp_path / style).iterdir():
            assert set(np.asarray(Image.open(path)).flat) == {each["vwxyz".index(path.stem)]}


def test_characters_are_those_of_both_fonts_and_named_by_their_code(tmp_path, capsys):
    fonts = {
        "sans": TYPEFACES / "DejaVuSansDisplay.ttf",
        "serif": TYPEFACES / "DejaVuSerifDisplay.ttf",
    }
    shared = set.intersection(*map(glyphs.code_points, fonts.values()))
    flags = [word for name, file in fonts.items() for word in (f"--{name}", str(file))]
    assert main(glyphs.Glyphs, [str(tmp_path), "--test", "2", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["sans", "sans-test", "serif", "serif-test"]
    check_folders(tmp_path, "sans", "serif")
    made = set.union(*(names(tmp_path / style) for style in ("sans", "serif", "sans-test")))
    assert {int(name, 16) for name in made} < shared and len(made) > 4
    with Image.open(next((tmp_path / "serif").iterdir())) as image:
        assert image.mode == "L" and image.size == (24, 24)


def test_a_character_stands_on_its_baseline_in_the_middle():
    pixels = np.asarray(
        glyphs.draw("I", ImageFont.truetype(str(TYPEFACES / "DejaVuSans.ttf"), glyphs.SIDE))
    )
    rows, columns = np.nonzero(pixels < 128)
    assert rows.max() == glyphs.BASELINE - 1 and pixels[0, 0] == 255 and pixels.min() < 50
    assert (columns.min() + columns.max()) / 2 == pytest.approx((glyphs.SIDE - 1) / 2, abs=1)


@pytest.fixture
def sheets(tmp_path):
    """Twelve faces in four columns: a square on nothing, by number, and in each style of another
    colour.
    """
    folder = tmp_path / "collection"
    folder.mkdir()
    for channel, style in enumerate(punks.STYLES):
        sheet = np.zeros((72, 96, 4), np.uint8)
        for number in range(FACES):
            top, left = 24 * (number // 4), 24 * (number % 4)
            sheet[top + 4 : top + 20, left + 4 : left + 20, [channel, 3]] = 100 + number, 255
        Image.fromarray(sheet).save(folder / f"{style}.png")
    return folder


def test_faces_are_tiles_on_plain_paper(sheets, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(punks.Punks, [str(sheets), str(out), "--test", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        line for style in punks.STYLES for line in (f"{style}: 4 faces", f"{style}-test: 4 faces")
    ]
    check_folders(out, *punks.STYLES)
    assert names(out / "goldenpunks") == names(out / "halloweenpunks")
    for channel, style in enumerate(punks.STYLES):
        for path in (out / style).iterdir():
            pixels = np.asarray(Image.open(path))
            assert tuple(pixels[0, 0]) == (0x63, 0x85, 0x96)
            assert pixels[12, 12].tolist() == [
                (100 + int(path.stem)) * (i == channel) for i in range(3)
            ]


def test_what_is_not_there_is_named(sheets, tmp_path):
    (sheets / "goldenpunks.png").unlink()
    with pytest.raises(ValueError, match=r"FOLDER must hold goldenpunks\.png"):
        punks.convert(sheets, tmp_path / "out")
    Image.new("RGB", (25, 24)).save(sheets / "goldenpunks.png")
    with pytest.raises(ValueError, match="multiples of 24, got 25×24"):
        punks.convert(sheets, tmp_path / "out")
    with pytest.raises(ValueError, match="fonts-noto-cjk"):
        glyphs.convert({"sans": tmp_path / "sans.ttc"}, tmp_path / "out")
