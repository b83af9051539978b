"""bench/translation.py and bench/forward.py: that their pages have the tables of the committed records."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import forward
import translation

RECORDS = Path(translation.__file__).parent / "records"


@pytest.mark.parametrize(("study", "tables"), [(translation, 4), (forward, 3)])
def test_a_page_has_the_tables_of_the_records(study, tables):
    name = Path(study.__file__).stem
    page = study.PAGE.read_text("utf-8")
    assert page.count("<!-- table ") == page.count("<!-- end -->") == tables
    made = study.with_tables(page, lambda data: study.table(RECORDS / name / data))
    assert made == page, f"python bench/{name}.py writes them, see there"


def test_a_table_has_means_over_trainings_and_the_largest_cycle(tmp_path):
    one = {"frechet": 3.0, "frechet_standard_error": 0.5, "frechet_floor": 1.0, "nfe": 10, "seconds_per_image": 0.5}
    for seed, frechet in enumerate((2.0, 4.0)):
        more = {"frechet": frechet, "cycle_error_max": 0.1 + seed, "cycle_error_median": 0.02, "parameters": 1234}
        translation.kept(tmp_path / str(seed) / "indm.json", lambda more=more: one | more)
    translation.kept(tmp_path / "0" / "copy.json", lambda: one | {"nfe": 0})
    rows = [line.strip("| ").split(" | ") for line in translation.table(tmp_path).splitlines()]
    assert rows[0][:3] == ["method", "trainings", "Fréchet distance to B"]
    assert rows[2] == ["two INDMs", "2", "3 ± 1", "0.02, 1.1", "1,234", "10", "0.5"]
    assert rows[3] == ["copy of the source", "1", "3 ± 0.5", "–", "–", "–", "–"]
    assert rows[4][2] == "1"
