"""Outliers: splits are the published ones, scores and measures are checked by hand, and rows are made once."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from research.records import Records
from research.tables import outliers


def table(folder, name, n, constant=False):
    """A file of N(0, 1) and 20 outliers of N(5, 1) in two columns, and one that is constant but in the first row."""
    y = (np.arange(n) < 20).astype(int)
    X = np.random.default_rng(0).normal(size=(n, 2)) + 5 * y[:, None]
    np.savez(folder / f"1_{name}.npz", X=np.column_stack([X, np.arange(n) == 0]) if constant else X, y=y)


def run(folder, *arguments):
    outliers.main([str(part) for part in ("--data", folder, "--records", folder, *arguments)])
    return Records(folder / "outliers.csv")


def test_the_published_tables_have_the_published_means():
    known = {"dte_np": 84.6, "knn": 84.3, "dte_c": 83.6, "ddpm": 81.6, "iforest": 79.2}
    rows = outliers.published()
    assert len(rows) == 43
    assert {column: round(float(np.mean([row[column] for row in rows])), 1) for column in known} == known


def test_small_tables_have_two_drawings_and_large_ones_lose_rows():
    assert outliers.drawings(999) == ("repeated", "permuted") and outliers.drawings(1000) == ("file",)
    repeated, permuted = (outliers.drawn(500, drawing, 3) for drawing in outliers.drawings(500))
    np.random.seed(3)
    assert (repeated == np.random.choice(np.arange(500), 1000, replace=True)).all()  # the original's draw
    assert sorted(permuted) == list(range(500)) != permuted.tolist()
    assert (outliers.drawn(1200, "file", 3) == np.arange(1200)).all()
    large = outliers.drawn(60_000, "file", 3)
    assert len(set(large.tolist())) == len(large) == 50_000


@pytest.mark.parametrize("drawing", ["repeated", "permuted"])
def test_half_of_the_normal_rows_are_fitted_and_only_repeats_are_tested_again(drawing):
    X, is_outlier = np.arange(400.0)[:, None], np.arange(400) % 4 == 0
    train, tested, outlying = outliers.split(X, is_outlier, drawing, 0)
    count = (~is_outlier[outliers.drawn(400, drawing, 0)]).sum()
    assert len(train) == round(count / 2) and (~outlying).sum() == count - len(train)
    assert train.mean() == pytest.approx(0, abs=1e-12) and train.std() == pytest.approx(1)
    shared = np.isin(tested, train).ravel()
    assert not shared[outlying].any() and shared[~outlying].any() == (drawing == "repeated")


def test_tested_rows_are_drawn_from_each_class_and_weighted():
    numbers = np.random.default_rng(0)
    is_outlier = np.arange(40_000) < 4_000
    score = numbers.normal(size=40_000) + is_outlier
    kept, weight = outliers.thinned(is_outlier, 0)
    assert np.bincount(is_outlier[kept]).tolist() == [300, 300]
    assert weight.sum() == pytest.approx(40_000) and weight[is_outlier[kept]].sum() == pytest.approx(4_000)
    found = outliers.judged(score[kept], is_outlier[kept], weight)
    assert found["auc"] == pytest.approx(roc_auc_score(is_outlier, score), abs=0.05)
    assert found["average_precision"] == pytest.approx(average_precision_score(is_outlier, score), abs=0.08)
    few, weight = outliers.thinned(is_outlier[3_990:4_020], 0)
    assert sorted(few) == list(range(30)) and (weight == 1).all()


def test_rows_without_a_density_tie_above_all_others():
    """Among 2 × 3 pairs, the scores ∞ (log p = −∞) and NaN tie with each other, and are above every finite score."""
    score, is_outlier = np.array([np.inf, 1.0, np.nan, 3.0, 0.0]), np.array([0, 0, 1, 1, 0], dtype=bool)
    assert outliers.judged(score, is_outlier, np.ones(5))["auc"] == pytest.approx(
        (0.5 + 1 + 1 + 0 + 1 + 1) / 6, abs=1e-5
    )


def test_neighbours_and_mixture_are_what_their_names_say():
    numbers = np.random.default_rng(0)
    X, rows = numbers.normal(size=(2_000, 3)), numbers.normal(size=(50, 3))
    distance = np.sort(np.linalg.norm(rows[:, None] - X, axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(outliers.neighbours(X, 0, 1.0)[0](rows), distance)
    score, setting = outliers.mixture(X, 0, 1.0)
    truth = 0.5 * (rows**2).sum(1) + 1.5 * np.log(2 * np.pi)
    assert np.abs(score(rows) - truth).mean() < 0.1 and setting["n_components"] == 1


def test_rows_are_made_once_and_columns_that_were_constant_are_counted(tmp_path, monkeypatch):
    """The third column is constant but in an outlier."""
    table(tmp_path, "small", 60, constant=True)
    command = ("--seeds", 0, "--seconds", 0.3, "--methods", "indm", "nearest neighbours")
    monkeypatch.setattr(outliers, "drawings", lambda n: ("permuted",))
    made = run(tmp_path, *command)
    rows = made.rows()
    assert [row["method"] for row in rows] == ["indm", "nearest neighbours"] and min(row["auc"] for row in rows) > 0.95
    assert rows[0]["sizes"] == [20, 3, 20, 20] and rows[0]["infinite"] == [0, 1] and rows[0]["fit_cpu_seconds"] < 5
    monkeypatch.setattr(outliers, "trained", None)
    assert run(tmp_path, *command).rows() == rows


def test_small_tables_come_first_and_a_folder_without_any_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table"):
        outliers.files(tmp_path)
    for name, n in {"a": 90, "b": 40, "c": 60}.items():
        table(tmp_path, name, n)
    assert list(outliers.files(tmp_path)) == ["b", "c", "a"]


def test_means_are_of_complete_seeds_and_differences_of_the_same_tables(tmp_path):
    made = Records(tmp_path / "outliers.csv")
    ours = {("wine", 0): 0.9, ("wine", 1): 0.8, ("yeast", 0): 0.5, ("yeast", 1): 0.6, ("wine", 2): 0.1}
    for (name, seed), auc in ours.items():
        drawing = "repeated" if name == "wine" else "file"
        measured = {"average_precision": 0.5, "sizes": [60, 13, 59, 10], "infinite": [1, 2]}
        seconds = {"fit_cpu_seconds": 60.2, "score_cpu_seconds": 4.0}
        for method, less in {"indm": 0.0, "forest": 0.1 if name == "wine" else 0.2}.items():
            made.at(table=name, drawing=drawing, seed=seed, method=method).add(measured | seconds | {"auc": auc - less})
    lines = [line.strip("| ").split(" | ") for line in outliers.means(made).splitlines()]
    found = {tuple(line[:2]): line[2:] for line in lines[2:]}
    assert found["published", "indm"] == ["2", "70.0", "+0.0", "50.0", "+0.0"]
    assert found["published", "forest"][:3] == ["2", "55.0", "+15.0 ± 5.0"]
    assert found["published", "mixture"] == ["–"] * 5 and found["without repeats", "forest"][0] == "1"
    known = {row["table"]: row["ddpm"] for row in outliers.published() if row["table"] in ("wine", "yeast")}
    assert found["published", "DDPM, as published"][1] == f"{np.mean(list(known.values())):.1f}"
    (wine, yeast) = outliers.of_tables(made).splitlines()[2:]
    assert wine == "| wine | repeated | 60 × 13 | 59 + 10 | 60.0 | – | 50.0 | – | – | 60 | 4 | 1 + 2 |"
    assert "file" in yeast


def test_a_look_up_knows_only_the_fitted_rows():
    X = np.random.default_rng(0).normal(size=(40, 3))
    score, _ = outliers.look_up(X, 0, 1.0)
    np.testing.assert_array_equal(score(np.concatenate([X[7:9], X[:2] + 1e-9])), [0, 0, 1, 1])


def test_tables_stand_apart_by_their_drawing_and_repeats(tmp_path, monkeypatch):
    """Means of differences: of two tables in the file, 10 and 20, and of a small one, 50 or 0 by its drawing."""
    made = Records(tmp_path / "outliers.csv")
    monkeypatch.setattr(outliers, "published", lambda: [{"table": t, "dte_np": 60.0} for t in "abcd"])
    lines = (("a", "file", 0.6), ("b", "file", 0.7), ("c", "repeated", 1.0), ("c", "permuted", 0.5), ("d", "file", 0.9))
    for table, drawing, auc in lines:
        copies = 0.5 + 0.1 * (drawing == "repeated" or table == "d")
        for method in outliers.METHODS:
            found = {"indm": auc, "look-up": copies}.get(method, 0.5)
            made.at(table=table, drawing=drawing, seed=0, method=method).add({"auc": found})
    assert outliers.parts(made).splitlines()[2:] == [
        "| file | no | 2 | 65.0 | +15.0 ± 5.0 | +15.0 ± 5.0 | +15.0 ± 5.0 | +15.0 ± 5.0 | +5.0 ± 5.0 |",
        "| file | yes | 1 | 90.0 | +40.0 | +40.0 | +40.0 | +30.0 | +30.0 |",
        "| permuted | no | 1 | 50.0 | +0.0 | +0.0 | +0.0 | +0.0 | – |",
        "| repeated | yes | 1 | 100.0 | +50.0 | +50.0 | +50.0 | +40.0 | +40.0 |",
    ]
