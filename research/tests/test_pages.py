"""Pages of the record: tables match the records, and no error stands outside markers."""

import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.spatial.distance import pdist

from indm.workbench.figures.plots import METHODS
from research.markdown import ERROR, MARKED, errors_outside, in_table, with_tables
from research.pages import PAGES, ROOT, SHOWN, shown
from research.tables import flows

STUDIES = [page for page in PAGES if page.is_relative_to(ROOT / "research")]


def name(page):
    return str(page.relative_to(ROOT))


def test_markers_are_replaced_and_the_rest_is_kept():
    page = "a\n<!-- table x:y -->\nold\n<!-- end -->\nis <!-- value z -->old<!-- end -->.\n"
    assert with_tables(page, str.upper) == (
        "a\n<!-- table x:y -->\nX:Y\n<!-- end -->\nis <!-- value z -->Z<!-- end -->.\n"
    )
    assert with_tables(with_tables(page, str.upper), str.upper) == with_tables(page, str.upper)
    assert in_table("a", "b", rows=[(1, "c")]) == "| a | b |\n| --- | --- |\n| 1 | c |"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_what_the_records_give(page):
    text = page.read_text("utf-8")
    markers = len(MARKED.findall(text))
    assert (
        text.count("<!-- table ") + text.count("<!-- value ")
        == text.count("<!-- end -->")
        == markers
    )
    for kind, what, found in MARKED.findall(text):
        made = with_tables(f"<!-- {kind} {what} --><!-- end -->", shown)
        assert made == f"<!-- {kind} {what} -->{found}<!-- end -->", (
            f"make records writes {what} into {name(page)}"
        )


def test_every_table_is_on_a_page():
    on_pages = {
        what.partition(":")[0]
        for page in PAGES
        for _, what, _ in MARKED.findall(page.read_text("utf-8"))
    }
    assert on_pages == SHOWN.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_number_with_an_error_stands_outside_markers(page):
    assert errors_outside(page.read_text("utf-8")) == [], (
        "it comes from a record: research/README.md, Records"
    )


@pytest.mark.parametrize(
    "text", ["NELBO 1.9 ± 0.1", "| 1.9 ± .1 |", "    1.9 ±0.1", "each ± 0.011"]
)
def test_a_number_with_an_error_is_seen(text):
    marked = f"<!-- value x -->{text}<!-- end -->"
    assert errors_outside(f"a\n{text}\n{marked}\n") == [text] and not errors_outside(marked)
    assert not ERROR.search("± one standard error, ±τ")


def test_pictures_of_studies_are_shown_on_a_page():
    pages = " ".join(page.read_text("utf-8") for page in STUDIES)
    pictures = {path.name for path in (ROOT / "research" / "figures").iterdir()}
    assert pictures == set(re.findall(r"\]\((?:\.\./)*figures/([^)/]+)\)", pages))


def test_the_error_of_a_table_of_numbers_is_over_splits_and_rows():
    nats = np.array([[1.0, 3.0], [5.0, 7.0]])
    assert flows.over_splits(nats) == (4.0, pytest.approx(math.hypot(2, nats.std(ddof=1) / 2)))
    assert flows.over_splits(nats[:1]) == (2.0, pytest.approx(1.0))


def test_a_sentence_has_a_cell_of_a_table(monkeypatch):
    rows = [("x", "y z", "-1 ± 2"), ("x", "w", "3")]
    monkeypatch.setitem(SHOWN, "made", lambda first: in_table(first, "b c", "d e", rows=rows))
    assert shown("cell:made:a:x/y_z:d_e") == "−1 ± 2" and shown("cell:made:a:x/w:d") == "3"
    with pytest.raises(ValueError, match="unpack"):
        shown("cell:made:a:x:d")  # two rows


def test_readers_with_any_colour_vision_tell_the_methods_apart():
    """Colours as the red- and the green-blind see them, by Machado et al. 2009 on linear RGB."""
    blind = [
        [[0.1521, 1.0526, -0.2047], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6727, 0.0471], [-0.0118, 0.0429, 0.9689]],
    ]
    colours = np.array([to_rgb(colour) for colour in METHODS.values()]) ** 2.2
    for seen in (np.eye(3), *map(np.array, blind)):
        shown = (colours @ seen.T).clip(0, 1) ** (1 / 2.2)
        assert pdist(shown).min() > 0.15
