"""Conditional regression: splits, the measures of normal laws, the tables of the page, and a command in miniature."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from research.records import Records
from research.tables import regression


@pytest.fixture
def data(tmp_path):
    """A table in the format of the repository: two features, and a target in whole numbers, called wine."""
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
    np.testing.assert_allclose(fitted.cell(np.zeros((5, 1)), y, 1e-5), fitted.log_prob(np.zeros((5, 1)), y), atol=1e-4)


def test_the_linear_law_is_the_one_of_most_likelihood(data):
    X, y, *_ = regression.rows_of(data / "wine-quality-red" / "data", 0)
    best = regression.linear(X, y, 0, 1.0, 1.0).log_prob(X, y).mean()
    weight, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(270)]), y)
    for change in (0.9, 1.0, 1.1):
        mean = np.column_stack([X, np.ones(270)]) @ (change * weight)
        other = norm.logpdf(y, mean, (y - mean).std()).mean()
        assert best == pytest.approx(other) if change == 1 else best > other
    constant = np.column_stack([X, np.full(270, 3.0)])
    assert regression.linear(constant, y, 0, 1.0, 1.0).log_prob(constant, y).mean() == pytest.approx(best)


def test_a_command_makes_each_row_once_and_goes_on(data, capsys):
    """indm is near the linear law, which is true here but for the grid, and its cells have probabilities."""
    run = [*["--tables", "wine", "--splits", "0", "7", "--seconds", "4", "--methods"], "indm-cells", "linear"]
    run = [*run, "--data", str(data), "--records", str(data)]
    regression.main(run)
    made = Records(data / "regression.csv")
    rows = {row["method"]: row for row in made.rows()}
    assert rows.keys() == {"mc-dropout", "indm-cells", "linear"} and rows["mc-dropout"]["log_p"] == -1.5
    assert rows["linear"]["cell_log_p"] - 0.25 < rows["indm-cells"]["log_p"] < 0 and rows["linear"]["above"] == 0
    before = made.path.read_bytes()
    regression.main(run)
    assert made.path.read_bytes() == before


def test_a_kernel_density_has_the_width_that_cross_validation_of_scikit_learn_chooses():
    draws = np.random.default_rng(0).normal(size=(20, 3)) * [0.1, 1.0, 30.0]
    y = np.array([0.05, 2.0, -10.0])
    for i, found in enumerate(regression.kernel_log_prob(draws, y)):
        widths = {"bandwidth": draws[:, i].std() * np.logspace(-3, 3, 10)}
        chosen = GridSearchCV(KernelDensity(), widths, cv=3).fit(draws[:, [i]]).best_estimator_
        assert found == pytest.approx(chosen.score_samples([[y[i]]])[0])


def test_gains_are_those_of_splits_that_both_methods_have(tmp_path):
    made = Records(tmp_path / "regression.csv")
    for split in range(3):
        cell = made.at(table="yacht", split=split)
        cell.at(method="indm").add({"rows": [277, 6], "above": 0.5, "fit_cpu_seconds": 9.0, "log_p": float(split)})
        cell.at(method="mc-dropout").add({"log_p": 0.0})
        cell.at(method="linear").add({"log_p": split - 1.0})
        if split < 2:
            cell.at(method="ngboost").add({"log_p": split + 0.25 - 0.5 * split})
    header, _, line = [[cell.strip() for cell in row.split("|")[1:-1]] for row in regression.summary(made).splitlines()]
    row = dict(zip(header, line, strict=True))
    assert row["splits"] == "3" and row["indm"] == "1.00 ± 0.58" and row["indm − linear"] == "+1.00 ± 0.00"
    assert row["indm − ngboost"] == "+0.00 ± 0.25 (2)" and row["ngboost"] == "0.50 ± 0.25 (2)"
    assert row["indm − treeffuser"] == "–" and row["level or best"] == "yes" and row["above the grid"] == "50%"
    assert regression.is_level(np.array([-1.0, 0.9])) and not regression.is_level(np.array([-1.0, -0.9]))
