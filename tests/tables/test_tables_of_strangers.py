"""Tables as they are found: repeats, masked entries, several problems at once, questions about
sets, interrupts.
"""

import warnings

import numpy as np
import pandas as pd
import pytest

from indm import DensityEstimator, JointDensityEstimator, PosteriorEstimator
from indm.tables import report
from indm.tables.fit import Training

FAST = {"max_steps": 0, "max_components": 1, "random_state": 0}


def rain(n: int = 300) -> np.ndarray:
    """A normal column, and one of which 70 % are exactly 0."""
    numbers = np.random.default_rng(0)
    return np.stack(
        [numbers.normal(size=n), numbers.exponential(size=n) * (np.arange(n) % 10 >= 7)], 1
    )


@pytest.mark.parametrize("kind", [DensityEstimator, JointDensityEstimator])
def test_a_value_in_many_rows_is_named(kind):
    with pytest.warns(
        UserWarning, match=r"column 1 is 0 in 70% of its rows.*spikes of JointDensityEstimator"
    ) as told:
        kind(**FAST).fit(rain())
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JointDensityEstimator(spikes={1: 0}, **FAST).fit(rain())


def test_masked_entries_are_missing():
    X = np.ma.masked_array(
        np.random.default_rng(0).normal(size=(200, 2)), mask=np.zeros((200, 2), bool)
    )
    X[::4, 1] = 1e6
    X[::4, 1] = np.ma.masked
    found = JointDensityEstimator(**FAST).fit(X)
    assert found.gaps_[1].tolist() == [150, 50] and np.abs(found.sample(100, 0)).max() < 10
    with pytest.raises(ValueError, match="NaN"):
        DensityEstimator(**FAST).fit(X)


def test_all_problems_of_a_table_are_in_one_error():
    n = 40
    frame = pd.DataFrame(
        {"age": np.arange(n) * 1.0, "city": ["Oslo", "Rome"] * (n // 2), "pay": np.arange(n) * 1.0}
    )
    frame.loc[3, "age"], frame.loc[5, "pay"] = np.nan, np.inf
    with pytest.raises(
        ValueError,
        match=r"missing entries in column 0 \(age\), .*column 1 \(city\), infinite .*\(pay\)",
    ):
        DensityEstimator(**FAST).fit(frame)
    frame["code"] = [*map(str, range(n - 1)), "n.a."]
    with pytest.raises(ValueError) as told:
        JointDensityEstimator(**FAST).fit(frame)
    assert "column 2 (pay) must hold numbers" in str(told.value) and "got inf" in str(told.value)
    assert "to 'n.a.': " in str(told.value) and "age" not in str(told.value)


@pytest.mark.parametrize(
    "text", ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%y", "%Y-%m-%d %H:%M", "%d %B %Y", "%b %d, %Y"]
)
def test_dates_as_strings_are_named_unless_they_are_categories(text):
    days = pd.Timestamp("2024-01-30") + pd.to_timedelta(np.arange(40) % 3, "D")
    frame = pd.DataFrame(
        {"size": np.random.default_rng(0).normal(size=40), "day": days.strftime(text)}
    )
    frame.loc[5, "day"] = None
    with pytest.raises(
        ValueError, match=r"column 1 \(day\) must hold numbers or categories, got dates"
    ):
        JointDensityEstimator(**FAST).fit(frame)
    assert JointDensityEstimator(categories=["day"], **FAST).fit(frame).encoding_.sizes == (3,)
    frame["day"] = ["1.2.10", "A 12", "2024"] * 13 + ["B-2-2024"]  # other words
    assert JointDensityEstimator(**FAST).fit(frame).encoding_.sizes == (4,)


def test_the_share_of_blanks_of_a_constant_column_is_told():
    X = rain()
    X[:, 1] = np.where(np.arange(300) < 3, 7.0, np.nan)
    with pytest.warns(
        UserWarning, match=r"same value: column 1, 7.0 \(99% of the rows have none\)"
    ):
        JointDensityEstimator(**FAST).fit(X)


def test_draws_given_a_set_of_categories_follow_their_shares():
    numbers = np.random.default_rng(0)
    city = numbers.choice(["Berlin", "Oslo", "Rome"], 2_000, p=[0.5, 0.2, 0.3])
    frame = pd.DataFrame({"city": city, "a": numbers.normal(size=2_000) + 3 * (city == "Oslo")})
    given = (
        JointDensityEstimator(max_steps=0, random_state=0)
        .fit(frame)
        .conditional({"city": ["Oslo", "Berlin"]})
    )
    draws = given.sample(1_000, random_state=0)
    assert set(draws["city"]) == {"Oslo", "Berlin"}
    assert (draws["city"] == "Oslo").mean() == pytest.approx(2 / 7, abs=0.06)
    with pytest.raises(ValueError, match="must hold one of Berlin, Oslo, Rome, got 'Paris'"):
        given.estimator.conditional({"city": ["Oslo", "Paris"]})
    with pytest.raises(
        ValueError, match=r"a range in given must be a lower and a higher number.* got \('x', 'y'\)"
    ):
        given.estimator.conditional({"a": ("x", "y")})


@pytest.mark.parametrize("kind", [DensityEstimator, JointDensityEstimator])
def test_an_interrupted_fit_keeps_the_best_so_far(kind, monkeypatch):
    update = Training.update

    def interrupted(self, *arguments):
        if self.step == 60:
            raise KeyboardInterrupt
        return update(self, *arguments)

    monkeypatch.setattr(Training, "update", interrupted)
    X = np.random.default_rng(0).normal(size=(300, 2))
    model = kind(max_components=2, width=8, depth=1, max_seconds=500, random_state=0)
    with pytest.warns(
        UserWarning, match="the fit was interrupted: the best density so far is kept"
    ):
        model.fit(X)
    assert model.ended_by_ == "interrupt" and np.isfinite(model.score_samples(X[:5])).all()


def test_a_posterior_of_constant_observations_is_a_guess_elsewhere():
    theta = np.random.default_rng(0).normal(size=(100, 1))
    posterior = PosteriorEstimator(n_models=1, max_steps=0, random_state=0).fit(
        theta, np.ones((100, 1))
    )
    posterior.log_prob([[0.0]], [1.0])
    with pytest.warns(UserWarning, match="x is unlike the simulated ones"):
        posterior.log_prob([[0.0]], [3.0])


def test_columns_of_a_frame_are_taken_by_name():
    numbers = np.random.default_rng(0)
    frame = pd.DataFrame(numbers.normal(size=(200, 3)) * [1, 10, 100], columns=["a", "b", "c"])
    other = frame[["c", "a", "b"]][:20]
    density, joint = DensityEstimator(**FAST).fit(frame), JointDensityEstimator(**FAST).fit(frame)
    for model in (density, joint):
        assert (model.score_samples(other) == model.score_samples(frame[:20])).all()
        for wrong in (other[["a", "b"]], other.rename(columns={"c": "d"})):
            with pytest.raises(ValueError, match="feature names should match"):
                model.score_samples(wrong)
    cells = joint.log_prob_cells(frame[:20])
    np.testing.assert_allclose(joint.log_prob_cells(other), cells[:, [2, 0, 1]])
    is_given = other.to_numpy() > 0
    by_name = joint.score_samples(frame[:20], given=is_given[:, [1, 2, 0]])
    for mask in (is_given, (other > 0), (other > 0)[["b", "a", "c"]]):
        np.testing.assert_allclose(joint.score_samples(other, given=mask), by_name)
    assert (joint.impute(other)["a"] == other["a"]).all()


@pytest.mark.parametrize(("processor", "told"), [(21.0, True), (70.0, False)])
def test_a_fit_with_little_processor_time_says_so(processor, told, monkeypatch):
    monkeypatch.setattr(report.time, "perf_counter", lambda: 1080.0)
    monkeypatch.setattr(report.time, "process_time", lambda: 5.0 + processor)
    with pytest.warns(
        UserWarning, match="max_seconds ended the fit while it still gained"
    ) as found:
        report.warn_of_time((0.5, 0.1), (1000.0, 5.0), stacklevel=2)
    assert (
        f"Its 80 seconds had {processor:.0f} of processor time" in str(found[0].message)
    ) == told
