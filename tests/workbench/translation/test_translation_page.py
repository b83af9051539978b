"""The page to look at a translation: what is on it is what was written, and a browser moves it as it should."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from browsers import NARROW, WIDE, keep, overflow
from pages import Reader, assert_alone
from PIL import Image
from toys import framed, pixels

from indm.model import build_model
from indm.scaling import Scaling
from indm.translation import two_models
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.translation import translate
from indm.workbench.translation.routes import BRIDGE, TranslationRuns
from indm.workbench.translation.translate import ERRORS, made_by, sentences, translate_files

NAMES = ['a "quoted" <b>&amp;', "b/it's", "dark", "Mu\u0308sli"]  # the last as macOS writes it
QUICK = TranslationOptions(steps=8, cycle=True, page=True)


def a_model(seed, shape=(3, 8, 8), scaling=None):
    """A model of weights at random, so that all images on a route differ."""
    torch.manual_seed(seed)
    net = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net}
    model = build_model(tables, shape, scaling or Scaling.images(256)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.04 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, and the folders of two models."""
    home = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = home / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = 60 if name == "dark" else 256
        Image.fromarray(rng.integers(0, shade, (8, 8, 3), dtype=np.uint8)).save(path)
    for seed, side in enumerate("ab"):
        (home / side).mkdir()
        a_model(seed).save(home / side)
    return home


def opened(home):
    return TranslationRuns((home / "a", home / "b"), (a_model(0), a_model(1)), {}, {})


def translated(home, out, options=QUICK):
    return translate_files(opened(home), [home / "images"], out, options, progress=False)


@pytest.fixture(scope="module")
def made(home, tmp_path_factory):
    """The results of a run with a page, and what its report says."""
    out = tmp_path_factory.mktemp("made")
    return out, translated(home, out)


def cards(out):
    """The pictures of each card, by what they are."""
    found = []
    for tag, attributes in Reader((out / "index.html").read_text("utf-8")).elements:
        kind = attributes.get("class")
        if tag == "figure":
            found.append(card := {"source": [], "route": [], "result": []})
            place = "source"
        elif tag == "div" and kind == "route":
            place = "route"
        elif tag == "img":
            data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
            place = "result" if attributes["alt"] == "result" else place
            card[place].append(np.asarray(Image.open(io.BytesIO(data))).astype(int))
    return found


def test_the_page_is_one_file_and_says_what_was_done(home, made):
    out, report = made
    reader = assert_alone((out / "index.html").read_text("utf-8"))
    names = [row["name"] for row in report["examples"]]
    assert sorted(names) == sorted(NAMES) and reader.text("b") == names
    said = reader.text("p")
    assert said[: len(sentences(report))] == sentences(report)
    assert f"Made by two models: {home / 'a'}, then {home / 'b'}; direction forward; 8 steps; strength 1." in said
    assert any(line.startswith("All 4 translated images.") for line in said)
    labels = {attributes["for"] for tag, attributes in reader.elements if tag == "label"}
    assert labels == {attributes["id"] for tag, attributes in reader.elements if tag == "input"}


def test_sources_and_results_are_those_of_the_files(made):
    out, report = made
    for card, row in zip(cards(out), report["examples"], strict=True):
        assert len(card["source"]) == 1 and np.array_equal(card["source"][0], pixels(row["source"]))
        assert np.array_equal(card["result"][-1], pixels(out / f"{row['name']}.png"))


def test_the_way_is_that_of_a_strip(home, made, tmp_path):
    """Eight frames of a leg unless --strip says how many, and their times."""
    out, _ = made
    for frames, page in ((8, out), (3, tmp_path)):
        report = translated(home, tmp_path, replace(QUICK, strip=frames))
        routes = [card["route"] for card in cards(page)]
        for route, row in zip(routes, report["examples"], strict=True):
            (strip,) = framed(pixels(tmp_path / "strips" / f"{row['name']}.png"), side=8)
            assert len(strip) == 2 * frames and np.array_equal(route, strip)
        assert len({frame.tobytes() for route in routes for frame in route}) > 4 * frames
    sliders = {a["id"]: a for tag, a in Reader((tmp_path / "index.html").read_text("utf-8")).elements if tag == "input"}
    words = json.loads(sliders["route"]["data-words"])
    assert words == [f"t = {t}" for t in ("1e-05, up", "0.5, up", "1, up", "1, down", "0.5, down", "1e-05, down")]
    assert sliders["route"]["max"] == "5" and not (out / "strips").exists()


def raw_of(report):
    """The sources of the examples of a report, (N, C, H, W)."""
    return torch.stack([torch.from_numpy(pixels(row["source"])).permute(2, 0, 1) for row in report["examples"]])


def test_errors_of_each_image_are_stated(home, tmp_path):
    """The error of the cycle before and after rounding, against a route that is followed here."""
    options = TranslationOptions(steps=12, strength=0.6, cycle=True, page=True, batch_size=len(NAMES))
    report = translated(home, tmp_path, options)
    a, b = (a_model(seed) for seed in (0, 1))
    raw = raw_of(report)
    x = (raw + 0.5) / 128 - 1
    fine = two_models(a, b, strength=0.6, steps=12)
    there = fine.follow(x).x

    def largest(difference):
        return difference.flatten(1).abs().amax(1).tolist()

    back = fine.back().follow(there).x
    grey = (128 * (back + 1)).floor().clamp(0, 255)
    expected = {"cycle_error_max": largest(128 * (back - x)), "cycle_error_rounded": largest(grey - raw)}
    text = (tmp_path / "index.html").read_text("utf-8")
    for key, values in expected.items():
        assert [row[key] for row in report["examples"]] == pytest.approx(values, rel=1e-3, abs=1e-3)
        assert min(values) > 0 and text.count(ERRORS[key]) >= len(NAMES)


def test_a_page_shows_the_first_of_many(home, made, tmp_path, monkeypatch):
    monkeypatch.setattr(translate, "MOST", 2)
    translated(home, tmp_path, replace(QUICK, batch_size=1))
    assert len(cards(tmp_path)) == 2 and len(list(tmp_path.rglob("*.png"))) == 9
    assert "The first 2 of 4 translated images." in (tmp_path / "index.html").read_text("utf-8")


def test_vectors_have_no_page(tmp_path):
    vectors = [a_model(seed, (2,), Scaling()) for seed in (0, 1)]
    np.save(tmp_path / "points.npy", np.zeros((3, 2)))
    runs = TranslationRuns((tmp_path,) * 2, tuple(vectors), {}, {})
    with pytest.raises(ValueError, match=r"page must be false: it needs images, got events of shape \(2,\)"):
        translate_files(runs, [tmp_path / "points.npy"], tmp_path / "out", QUICK, progress=False)
    assert not (tmp_path / "out").exists()


def test_how_results_were_made_is_said_in_a_line(made):
    _, report = made
    options = report["options"] | {"tol": 1e-4, "strength": 0.5, "stochastic": True, "seed": 3}
    other = {"models": ["animals"], "classes": ["cat", "dog"], "failed": {"x": "no image"}, "options": options}
    other |= {"kind": "one class-conditional model"}
    assert made_by(report | other) == (
        "Made by one class-conditional model: animals; from cat to dog; direction forward; tolerance 0.0001; "
        "strength 0.5; up by noise of seed 3; 1 not translated, see translation.json."
    )
    noised = report["options"] | {"method": "sdedit"}
    assert made_by(report | {"models": ["b"], "options": noised, "kind": BRIDGE}).startswith("Made by SDEdit: b; ")
    assert made_by(report | {"kind": BRIDGE}).endswith("; from noise of seed 0 in the images.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_page_is_used_by_keyboard_in_any_window(made, visit, window, scheme):
    page = visit((made[0] / "index.html").as_uri(), viewport=window, color_scheme=scheme, offline=True)
    keep(page, f"translate-{scheme}")
    for key, place in (("End", 15), ("Home", 0)):
        slider = page.locator("#route")
        slider.press(key)
        words = json.loads(slider.get_attribute("data-words"))
        assert page.locator("output[for=route]").text_content() == words[place]
        for stack in page.locator(".route").all():
            seen = stack.locator("img").evaluate_all("all => all.map(one => one.checkVisibility())")
            assert seen == [i == place for i in range(len(words))]
    assert overflow(page) == 0
