"""Conditional regression: splits, the measures of normal laws, the tables of the page, and a
command in miniature.
"""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from research.records import Records
from research.tables import regression


@pytest.fixture
def data(tmp_path):
    """A table in the format of the repository: two features, and a target in whole numbers, called
    wine.
    """
    numbers = np.random.default_rng(0)
    X = numbers.normal(size=(300, 2))
    y = np.round(5 + X[:, 0] - X[:, 1] + 0.5 * numbers.normal(size=300))
    folder = tmp_path / "wine-quality-red"
    for name in ("data", "results"):
        (folder / name).mkdir(parents=True)
    np.savetxt(folder / "data" / "data.txt", np.column_stack([X[:, 0], y, X[:, 1]]))
    np.savetxt(folder / "data" / "index_features.txt", [0.0, 2.0])
    np.savetxt(folder / "data" / "index_target.txt", [1.0])
    for split, order in enumerate((np.arange(300), np.arange(300)[::-1])):
        np.savetxt(folder / "data" / f"index_train_{split}.txt", order[:270])
        np.savetxt(folder / "data" / f"index_test_{split}.txt", order[270:])
    np.savetxt(folder / regression.RESULTS, [-1.5, -1.25])
    return tmp_path


def test_rows_are_those_of_the_split(data):
    X, y, X_test, y_test = regression.rows_of(data / "wine-quality-red" / "data", 1)
    table = np.loadtxt(data / "wine-quality-red" / "data" / "data.txt")
    assert X.shape == (270, 2) and X_test.shape == (30, 2)
    np.testing.assert_array_equal(X_test, table[:30][::-1][:, [0, 2]])
    np.testing.assert_array_equal(np.concatenate([y, y_test]), table[::-1, 1])


def test_the_mean_density_of_a_cell_is_an_integral():
    fitted = regression.normal(lambda X: (X[:, 0], np.full(len(X), 0.7)), {})
    y = np.array([-9.0, -0.2, 0.0, 0.3, 9.0])
    found = fitted.cell(np.zeros((5, 1)), y, 0.4)
    means = [quad(norm(0, 0.7).pdf, at - 0.2, at + 0.2, epsabs=0)[0] / 0.4 for at in y]
    np.testing.assert_allclose(found, np.log(means), rtol=1e-6)
    np.testing.assert_allclose(
        fitted.cell(np.zeros((5, 1)), y, 1e-5), fitted.log_prob(np.zeros((5, 1)), y), atol=1e-4
    )


def test_the_linear_law_is_the_one_of_most_likelihood(data):
    X, y, *_ = regression.rows_of(data / "wine-quality-red" / "data", 0)
    best = regression.linear(X, y, 0, 1.0, 1.0).log_prob(X, y).mean()
    weight, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(270)]), y)
    for change in (0.9, 1.0, 1.1):
        mean = np.column_stack([X, np.ones(270)]) @ (change * weight)
        other = norm.logpdf(y, mean, (y - mean).std()).mean()
        assert best == pytest.approx(other) if change == 1 else best > other
    constant = np.column_stack([X, np.full(270, 3.0)])
    assert regression.linear(constant, y, 0, 1.0, 1.0).log_prob(
        constant, y
    ).mean() == pytest.approx(best)


def test_a_command_makes_each_row_once_and_goes_on(data, capsys):
    """indm is near the linear law, which is true here but for the grid, and its cells have
    probabilities.
    """
    run = [
        *["--tables", "wine", "--splits", "0", "7", "--seconds", "4", "--methods"],
        "indm-cells",
        "linear",
    ]
    run = [*run, "--data", str(data), "--records", str(data)]
    regression.main(run)
    made = Records(data / "regression.csv")
    rows = {row["method"]: row for row in made.rows()}
    assert (
        rows.keys() == {"mc-dropout", "indm-cells", "linear"}
        and rows["mc-dropout"]["log_p"] == -1.5
    )
    assert sum(rows["linear"]["pit"]) == 30 and "crps" not in rows["indm-cells"]
    assert (
        rows["linear"]["cell_log_p"] - 0.25 < rows["indm-cells"]["log_p"] < 0
        and rows["linear"]["above"] == 0
    )
    before = made.path.read_bytes()
    regression.main(run)
    assert made.path.read_bytes() == before


def test_crps_is_that_of_a_normal_law_and_ranks_are_its_distribution_function():
    y, draws = (
        np.array([-1.5, 0.2, 3.0]),
        0.3 + 0.7 * np.random.default_rng(0).normal(size=(40_000, 3)),
    )
    z = (y - 0.3) / 0.7
    # Gneiting & Raftery 2007
    exact = 0.7 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(regression.crps(draws, y), exact, atol=0.01)
    # four draws are without bias, too
    few = [regression.crps(part, y) for part in draws.reshape(-1, 4, 3)]
    np.testing.assert_allclose(np.mean(few, axis=0), exact, atol=0.01)
    np.testing.assert_allclose(regression.ranks(draws, y, 0), norm.cdf(z), atol=0.01)


def test_right_laws_cover_nine_of_ten_rows_and_have_even_ranks():
    draws = np.random.default_rng(0).normal(size=(100, 5_000)).round(1)  # ties are broken at random
    found = regression.judged(draws[1:], draws[0], 0)
    assert found["covered"] == pytest.approx(0.9, abs=0.015) and found["rmse"] == pytest.approx(
        1, abs=0.03
    )
    assert sum(found["pit"]) == 5_000 and np.ptp(found["pit"]) < 0.3 * 500
    assert np.ptp(regression.ranks(np.zeros((1, 1000)), np.ones(1000), 0)) == pytest.approx(
        0.5, abs=0.01
    )
    narrow = regression.judged(0.5 * draws[1:], draws[0], 0)
    assert narrow["covered"] < 0.7 and narrow["pit"][0] > 2 * narrow["pit"][4]


def test_a_gaussian_process_finds_a_curve_and_its_noise():
    numbers = np.random.default_rng(0)
    X, noise = numbers.uniform(-3, 3, (250, 2)), 0.3 * numbers.normal(size=250)
    curve = 5 * np.sin(X[:, 0]) + X[:, 1]
    fitted = regression.gaussian_process(X[:200], (curve + noise)[:200], 0, 1.0, 1.0)
    truth = norm.logpdf(noise[200:], 0, 0.3).mean()
    assert fitted.log_prob(X[200:], (curve + noise)[200:]).mean() == pytest.approx(truth, abs=0.1)
    assert fitted.drawn(X[200:]).mean(0) == pytest.approx(curve[200:], abs=0.4)


def test_laws_are_beside_indm_by_pairs_of_splits(tmp_path):
    made = Records(tmp_path / "regression.csv")
    for split in range(3):
        for method, more in {"indm": 0.0, "ngboost": 1.0}.items():
            found = {
                "log_p": split - more,
                "rmse": 2.0,
                "crps": more + 0.5,
                "covered": 0.9,
                "pit": [split, *[1] * 9],
            }
            if method == "indm" or split:
                made.at(table="wine", split=split, method=method).add(found)
    made.at(table="wine", split=1, method="mc-dropout").add({"log_p": 3.0})
    lines = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in regression.summary(made).splitlines()
    ]
    titles, _, ours, dropout, theirs, paper = lines
    row = dict(zip(titles, theirs, strict=True))
    assert ours[1:7] == ["indm", "3", "1 ± 0.58", "2 ± 0", "0.5 ± 0", "0.9 ± 0"]
    assert (
        row["splits"] == "2" and row["log p"] == "0.5 ± 0.5" and row["log p − indm's"] == "-1 ± 0"
    )
    assert row["CRPS − indm's"] == "+1 ± 0" and row["rows by tenths of F(y), %"] == "14" + 9 * " 10"
    assert (
        dropout[3:5] == ["3", "–"]
        and "+2" in dropout
        and paper[1:5] == ["its paper", "20", "-0.91", "0.63"]
    )
