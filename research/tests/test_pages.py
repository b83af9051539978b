"""Pages of the record: tables are those of the records, no error stands outside markers, and pages are short."""

import math
import re

import numpy as np
import pytest

from research.markdown import ERROR, MARKED, errors_outside, in_table, with_tables, words
from research.pages import PAGES, ROOT, SHOWN, shown
from research.records import Records
from research.tables import flows
from research.translation import study as translation

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
    assert text.count("<!-- table ") + text.count("<!-- value ") == text.count("<!-- end -->") == markers
    for kind, what, found in MARKED.findall(text):
        made = with_tables(f"<!-- {kind} {what} --><!-- end -->", shown)
        assert made == f"<!-- {kind} {what} -->{found}<!-- end -->", f"make records writes {what} into {name(page)}"


def test_every_table_is_on_a_page():
    on_pages = {what.partition(":")[0] for page in PAGES for _, what, _ in MARKED.findall(page.read_text("utf-8"))}
    assert on_pages == SHOWN.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_number_with_an_error_stands_outside_markers(page):
    assert errors_outside(page.read_text("utf-8")) == [], "it comes from a record: research/README.md, Records"


@pytest.mark.parametrize("text", ["NELBO 1.9 ± 0.1", "| 1.9 ± .1 |", "    1.9 ±0.1", "each ± 0.011"])
def test_a_number_with_an_error_is_seen(text):
    marked = f"<!-- value x -->{text}<!-- end -->"
    assert errors_outside(f"a\n{text}\n{marked}\n") == [text] and not errors_outside(marked)
    assert not ERROR.search("± one standard error, ±τ")


@pytest.mark.parametrize("page", STUDIES, ids=name)
def test_a_page_of_research_has_at_most_800_words(page):
    assert words(page.read_text("utf-8")) <= 800


def test_pictures_of_studies_are_shown_on_a_page():
    pages = " ".join(page.read_text("utf-8") for page in STUDIES)
    pictures = {path.name for path in (ROOT / "research" / "figures").iterdir()}
    assert pictures == set(re.findall(r"\]\([^)]*figures/([^)/]+)\)", pages)) - {"translation-bridge.png"}


def test_a_table_has_means_over_trainings_and_the_largest_cycle(tmp_path):
    made = Records(tmp_path / "translation.csv")
    one = {"frechet": 3.0, "frechet_standard_error": 0.5, "frechet_floor": 1.0, "nfe": 10, "seconds_per_image": 0.5}
    for seed, frechet in enumerate((2.0, 4.0)):
        more = {"frechet": frechet, "cycle_error_max": 0.1 + seed, "cycle_error_median": 0.02, "parameters": 1234}
        made.at(seed=seed, method="indm").add(one | more)
    made.at(seed=0, method="copy").add(one | {"nfe": 0})
    rows = [line.strip("| ").split(" | ") for line in translation.table(made).splitlines()]
    assert rows[0][:3] == ["method", "trainings", "Fréchet distance to B"]
    assert rows[2] == ["two INDMs", "2", "3 ± 1", "0.02, 1.1", "1,234", "10"]
    assert rows[3] == ["copy of the source", "1", "3 ± 0.5", "–", "–", "–"]
    assert rows[4][2] == "1"


def test_an_error_of_images_that_trainings_share_is_added(tmp_path):
    made = Records(tmp_path / "translation.csv")
    for seed, frechet in enumerate((2.0, 4.0)):
        made.at(seed=seed).add({"frechet": frechet, "frechet_standard_error": 3.0})
    assert translation.columns(made.rows(), ["frechet"]) == [f"3 ± {math.hypot(1, 3):.1g}"]
    assert translation.columns(made.rows()[:1], ["frechet"]) == ["2 ± 3"]
    assert translation.columns(made.rows(), ["ssim"]) == ["–"]


def test_the_error_of_a_table_of_numbers_is_over_splits_and_rows():
    nats = np.array([[1.0, 3.0], [5.0, 7.0]])
    assert flows.over_splits(nats) == (4.0, pytest.approx(math.hypot(2, nats.std(ddof=1) / 2)))
    assert flows.over_splits(nats[:1]) == (2.0, pytest.approx(1.0))


def test_a_table_of_cycles_has_the_steps_across(tmp_path):
    made = Records(tmp_path / "cycles.csv")
    error = {"median": 0.1, "largest": 2.0}
    lines = [{"steps": steps, "nfe": steps, "cycle": error, "distance": error} for steps in translation.STEPS]
    made.at(data="digits-3-8", method="ddib").add({"cycles": lines})
    rows = [line.strip("| ").split(" | ") for line in translation.cycle_table(made).splitlines()]
    assert rows[2] == ["digits-3-8, DDIB (linear)", *["0.1 / 2"] * len(translation.STEPS)]


def test_a_sentence_has_a_cell_of_a_table(monkeypatch):
    rows = [("x", "y z", "-1 ± 2"), ("x", "w", "3")]
    monkeypatch.setitem(SHOWN, "made", lambda first: in_table(first, "b c", "d e", rows=rows))
    assert shown("cell:made:a:x/y_z:d_e") == "−1 ± 2" and shown("cell:made:a:x/w:d") == "3"
    with pytest.raises(ValueError, match="unpack"):
        shown("cell:made:a:x:d")  # two rows


def test_flows_are_compared_with_linear_models_in_pairs_of_trainings(tmp_path):
    made = Records(tmp_path / "translation.csv")
    for seed, (flow, linear) in enumerate(((2.0, 1.0), (7.0, 4.0))):
        for method, frechet in (("indm", flow), ("ddib", linear)):
            made.at(data="digits-3-8", method=method, seed=seed).add({"frechet": frechet})
    made.at(data="digits-3-8", method="ddib", seed=2).add({"frechet": 100.0})  # without a partner
    assert translation.paired_table(made).splitlines()[2:] == [
        "| digits-3-8 | two INDMs − DDIB (linear) | 2 | +2.0 ± 1.0 |"
    ]
