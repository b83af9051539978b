"""The pages of research.translation and research.forward have the tables of the committed records."""

import pytest

from research.forward import study as forward
from research.records import RECORDS, Records
from research.translation import study as translation


@pytest.mark.parametrize(("study", "tables"), [(translation, 4), (forward, 3)])
def test_a_page_has_the_tables_of_the_records(study, tables):
    page = study.PAGE.read_text("utf-8")
    assert page.count("<!-- table ") == page.count("<!-- end -->") == tables
    assert study.page(page, RECORDS) == page, f"the command `table` of {study.__name__} writes them, see there"


def test_a_table_has_means_over_trainings_and_the_largest_cycle(tmp_path):
    made = Records(tmp_path / "translation.csv")
    one = {"frechet": 3.0, "frechet_standard_error": 0.5, "frechet_floor": 1.0, "nfe": 10, "seconds_per_image": 0.5}
    for seed, frechet in enumerate((2.0, 4.0)):
        more = {"frechet": frechet, "cycle_error_max": 0.1 + seed, "cycle_error_median": 0.02, "parameters": 1234}
        made.at(seed=seed, method="indm").add(one | more)
    made.at(seed=0, method="copy").add(one | {"nfe": 0})
    rows = [line.strip("| ").split(" | ") for line in translation.table(made).splitlines()]
    assert rows[0][:3] == ["method", "trainings", "Fréchet distance to B"]
    assert rows[2] == ["two INDMs", "2", "3 ± 1", "0.02, 1.1", "1,234", "10", "0.5"]
    assert rows[3] == ["copy of the source", "1", "3 ± 0.5", "–", "–", "–", "–"]
    assert rows[4][2] == "1"


def test_a_table_of_cycles_has_the_steps_across(tmp_path):
    made = Records(tmp_path / "cycles.csv")
    error = {"median": 0.1, "largest": 2.0}
    lines = [{"steps": steps, "nfe": steps, "cycle": error, "distance": error} for steps in translation.STEPS]
    made.at(data="digits-3-8", method="ddib").add({"cycles": lines})
    rows = [line.strip("| ").split(" | ") for line in translation.cycle_table(made).splitlines()]
    assert rows[2] == ["digits-3-8, DDIB (linear)", *["0.1 / 2"] * len(translation.STEPS)]
