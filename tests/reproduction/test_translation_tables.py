"""bench/translation.py: that docs/translation.md has the tables of the committed records."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import translation


def test_the_page_has_the_tables_of_the_records():
    page = translation.PAGE.read_text("utf-8")
    records = Path(translation.__file__).parent / "records" / "translation"
    assert page.count("<!-- table ") == len(list(records.iterdir())) == 4
    made = translation.with_tables(page, lambda name: translation.table(records / name))
    assert made == page, "python bench/translation.py digits-3-8 --table writes them"


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
