"""The page of mistakes says what is said."""

import runpy
from pathlib import Path

import pytest

from indm.messages import near_path

BENCH = Path(__file__).parents[2] / "bench" / "mistakes.py"


def test_the_page_of_mistakes_is_true_and_none_of_them_writes_anything(tmp_path, monkeypatch):
    """Each is one line with the exit status 2, or the page is not made."""
    mistakes = runpy.run_path(str(BENCH))
    mistakes["furnish"](tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert mistakes["page"]() == mistakes["PAGE"].read_text("utf-8"), "python bench/mistakes.py writes it anew"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert sum(len(lines.strip().splitlines()) for lines in mistakes["MISTAKES"].values()) >= 40


@pytest.mark.parametrize(
    "wrong, hint",
    [("photo", "; did you mean '{}/photos'?"), ("zzz", ""), ("nowhere/photos", "")],
)
def test_a_path_that_is_not_there_has_a_neighbour(wrong, hint, tmp_path):
    (tmp_path / "photos").mkdir()
    assert near_path(tmp_path / wrong) == hint.format(tmp_path)
