"""What a reader does on a page, in a browser: sort and copy tables, read charts, enlarge pictures."""

import re

import numpy as np
import pytest
from browsers import overflow
from pages import assert_alone
from PIL import Image

from indm.workbench.evaluation.page import Line, Page, View

ROWS = [("", "NELBO, nats", "word"), ("b", "1,200.5 ± 3", "x"), ('a "q"', "−3.5 ± 1", "z"), ("c", "–", "y")]
FIRST, SECOND = "</script><b>&", "second"
CAPTION = 'A picture with a "name"'
OPTIONS = ["--train.flow_lr 1e-3", "--nll-error 0.01", "--data-b.path", "--resume"]


def view(name, log, *lines):
    made = [Line(title, points, colour) for title, colour, points in lines]
    return View(name, f"{name} x", f"{name} y", made, log)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interactive")
    Image.fromarray(np.full((60, 200, 3), 120, np.uint8)).save(folder / "a.png")
    page = Page("Interactive")
    page.conclude([f"With {' or '.join(OPTIONS * 6)}."])
    page.text(f"Of runs/ann--tiny ({', '.join(OPTIONS)}).")
    page.table(ROWS)
    views = [
        view("plain", False, (FIRST, "#0072b2", [[0, 1.0, 0.5], [1, 2.0, 0.0]]),
             (SECOND, None, [[0, 5.0, 0.0], [1, 4.0, 0.0]])),
        view("fractions", False, (FIRST, "#0072b2", [[0, 1.0, 0.0], [0.5, 2.0, 0.0]])),
        view("log", True, (FIRST, "#0072b2", [[1, 0.001, 0.0], [10, 0.1, 0.0], [100, 10.0, 0.0]])),
    ]  # fmt: skip
    page.chart(views, folder / "a.png", CAPTION)
    page.picture(folder / "a.png", f"{CAPTION}, too")
    page.write(folder / "index.html")
    return folder / "index.html"


@pytest.fixture
def page(file, visit):
    return visit(file.as_uri(), permissions=["clipboard-read", "clipboard-write"])


def test_the_page_stays_one_file_whatever_lines_are_called(file):
    reader = assert_alone(file.read_text("utf-8"))
    assert "b" not in {tag for tag, _ in reader.elements} and len(reader.images("zoomable")) == 2


def test_no_line_ends_within_an_option(file, visit):
    for width in range(340, 400, 20):
        options = visit(file.as_uri(), viewport={"width": width, "height": 700}).locator("code")
        assert options.all_text_contents() == OPTIONS * 7
        assert set(options.evaluate_all("all => all.map(one => one.getClientRects().length)")) == {1}


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


def test_charts_are_read_by_pointer_and_keys(page):
    svg, tip = page.locator("svg"), page.locator(".tip")
    places = {}
    for circle in svg.locator("circle").all():
        x, y = (float(circle.get_attribute(name)) for name in ("cx", "cy"))
        svg.hover(position={"x": x + 3, "y": y - 3})
        places[tip.text_content()] = x, y
    points = [f"{FIRST}: 1 ± 0.5 at 0", f"{FIRST}: 2 at 1", f"{SECOND}: 5 at 0", f"{SECOND}: 4 at 1"]
    assert list(places) == points
    (x, one), (_, two), (_, five), (_, four) = places.values()
    assert five < four < two < one and (one - two) == pytest.approx(four - five)  # a unit each, five on top
    (bar,) = svg.locator("path:not([class])").all()
    _, low, high = map(float, re.findall(r"[\d.]+", bar.get_attribute("d")))
    assert (low - one, one - high) == pytest.approx([(one - two) / 2] * 2)

    ticks = svg.locator("text")
    assert ticks.all_text_contents()[-3:] == ["0", "1", "plain x"]  # whole numbers have no ticks between them
    page.get_by_label("View").select_option("fractions")
    assert "0.2" in ticks.all_text_contents()
    page.get_by_label("View").select_option("plain")

    svg.focus()
    svg.press("Escape")
    assert tip.is_hidden()
    for key, point in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowRight", 1), ("ArrowDown", 3), ("ArrowLeft", 2),
                       ("ArrowUp", 0)):  # fmt: skip
        svg.press(key)
        assert tip.text_content() == points[point]
    page.get_by_label(FIRST).uncheck()
    assert svg.locator("circle").count() == 2 and tip.is_hidden()
    page.get_by_label(FIRST).check()
    assert svg.locator("circle").count() == 4

    page.get_by_label("View").select_option("log")
    xs, ys = zip(
        *((float(c.get_attribute("cx")), float(c.get_attribute("cy"))) for c in svg.locator("circle").all()),
        strict=True,
    )
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1]) and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2])
    *left, one, ten, hundred, name = ticks.all_text_contents()
    assert [one, ten, hundred, name] == ["1", "10", "100", "log x"] and {"0.1", "1", "10"} <= set(left)
    assert page.locator(".unit").text_content() == "log y"


def test_a_picture_is_enlarged(page):
    opener, dialog = page.get_by_role("button", name=f"Enlarge: {CAPTION}, too"), page.get_by_role("dialog")
    opener.press("Enter")
    dialog.get_by_text("100 %").wait_for()

    def width():
        return dialog.locator("img").bounding_box()["width"]

    assert width() == 200 and dialog.get_attribute("aria-label") == f"{CAPTION}, too"
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


def test_a_phone_in_the_dark_cuts_nothing_off(file, visit):
    page = visit(file.as_uri(), viewport={"width": 340, "height": 700}, color_scheme="dark")
    assert overflow(page) == 0 and page.locator("svg").bounding_box()["width"] < 340
    paper, ink = (
        [int(n) for n in re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]]
        for name in ("backgroundColor", "color")
    )
    assert max(paper) < 64 and min(ink) > 160
