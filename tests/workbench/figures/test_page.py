"""What a reader does on a page, in a browser: sort and copy tables, enlarge pictures."""

import numpy as np
import pytest
from pages import assert_alone
from PIL import Image

from indm.workbench.figures.page import Page

ROWS = [("", "NELBO, nats", "word"), ("b", "1,200.5 ± 3", "x"), ('a "q"', "−3.5 ± 1", "z"), ("c", "–", "y")]
NASTY = "<b>&\"'x"
CAPTION = 'A picture with a "name"'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interactive")
    Image.fromarray(np.full((60, 200, 3), 120, np.uint8)).save(folder / "a.png")
    page = Page("Interactive")
    page.table(ROWS)
    page.picture(folder / "a.png", CAPTION)
    page.write(folder / "index.html")
    return folder / "index.html"


@pytest.fixture
def page(file, visit):
    return visit(file.as_uri(), permissions=["clipboard-read", "clipboard-write"])


def test_page_holds_everything_and_escapes_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    page = Page(f"title {NASTY}")
    page.heading(f"heading {NASTY}")
    page.text(f"text {NASTY}")
    page.conclusion += [f"so {NASTY}", "and more"]
    page.table([("", f"head {NASTY}"), (f"cell {NASTY}", "worse")])
    page.picture(tmp_path / "a.png", f"caption {NASTY}")
    page.write(tmp_path / "index.html")

    text = (tmp_path / "index.html").read_text("utf-8")
    reader = assert_alone(text)
    assert text.startswith("<!doctype html>") and ("meta", {"charset": "utf-8"}) in reader.elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.elements
    found = {"title": "title", "h1": "title", "h2": "heading", "figcaption": "caption", "th": "head"}
    assert {tag: "".join(reader.text(tag)) for tag in found} == {tag: f"{word} {NASTY}" for tag, word in found.items()}
    assert reader.text("p") == [f"so {NASTY}", "and more", f"text {NASTY}"]
    assert reader.text("td") == [f"cell {NASTY}", "worse"]
    classes = [attributes["class"] for tag, attributes in reader.elements if tag == "td"]
    assert classes == [f"cell {NASTY}", "worse"] and ".worse" in "".join(reader.text("style"))
    assert [a["alt"] for tag, a in reader.elements if tag == "img"] == [f"caption {NASTY}"]
    assert reader.images() == [(tmp_path / "a.png").read_bytes()]
    order = [text.index(f">{word} ") for word in ("title", "so", "heading", "text", "head", "cell", "caption")]
    assert order == sorted(order)


def test_tables_are_sorted_and_copied(page):
    def column():
        return page.locator("td:first-child").all_text_contents()

    head = page.locator("th").nth(1)
    button = head.get_by_role("button")
    for order, expected in (("ascending", ['a "q"', "b", "c"]), ("descending", ["b", 'a "q"', "c"]),
                            ("none", ["b", 'a "q"', "c"])):  # fmt: skip
        button.press("Enter")
        assert head.get_attribute("aria-sort") == order and column() == expected  # a cell without a number is last
    page.locator("th").nth(2).get_by_role("button").click()
    assert column() == ["b", "c", 'a "q"'] and head.get_attribute("aria-sort") == "none"
    line = {"a": '"a ""q""",−3.5 ± 1,z\n', "b": 'b,"1,200.5 ± 3",x\n', "c": "c,–,y\n"}
    for order in ("bca", "acb"):
        page.get_by_role("button", name="Copy as CSV").click()
        page.get_by_role("button", name="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == ',"NELBO, nats",word\n' + "".join(line[name] for name in order)
        page.get_by_role("button", name="Copy as CSV").wait_for()
        page.locator("th").nth(2).get_by_role("button").click()
        page.evaluate("navigator.clipboard.writeText = undefined")  # as where a page is not secure


def test_a_picture_is_enlarged(page):
    opener, dialog = page.get_by_role("button", name=f"Enlarge: {CAPTION}"), page.get_by_role("dialog")
    opener.press("Enter")
    dialog.get_by_text("100 %").wait_for()

    def width():
        return dialog.locator("img").bounding_box()["width"]

    assert width() == 200 and dialog.get_attribute("aria-label") == CAPTION
    page.keyboard.press("+")
    assert width() == 400
    dialog.get_by_role("button", name="Larger").click()
    assert width() == 600
    for _ in range(9):
        dialog.get_by_role("button", name="Smaller").click()
    assert width() == 50 and dialog.get_by_text("25 %").is_visible()
    page.keyboard.press("Escape")
    assert dialog.is_hidden() and opener.evaluate("button => button === document.activeElement")
    opener.click()
    dialog.get_by_role("button", name="Close").click()
    assert dialog.is_hidden()
