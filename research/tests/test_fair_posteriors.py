"""Fair rivals on posteriors: a flow with its draws and its density, its rates, and the table."""

import itertools

import numpy as np
import pytest

from research.posteriors import fair, sbibm
from research.records import Records

NUMBERS = np.random.default_rng(0)


def test_a_flow_has_the_law_of_theta_at_x_in_its_own_units(monkeypatch):
    """θ ~ N(0, 3²) and x = θ + N(0, 1): the posterior has mean 0.9 x and deviation √0.9."""
    clock = itertools.count()
    monkeypatch.setattr(fair.time, "process_time", lambda: 0.01 * next(clock))
    theta = 3 * NUMBERS.normal(size=(2_000, 1))
    x = theta + NUMBERS.normal(size=(2_000, 1))
    found = fair.flow(1e-2, theta, x, 0, 1.5)
    draws = found.draw(np.array([2.0]), 2_000, 0)
    assert abs(draws.mean() - 1.8) < 0.2 and abs(draws.std() - 0.9**0.5) < 0.15
    axis = np.linspace(-4, 8, 201)[:, None]
    density = np.exp(found.log_prob(axis, np.array([2.0])))
    assert density.sum() * 0.06 == pytest.approx(1.0, abs=0.02)
    assert found.setting["valid"] == pytest.approx(found.log_prob(theta, x).mean(), abs=0.2)


def test_each_rate_is_tried_with_the_first_seed_and_the_best_goes_on(tmp_path):
    table = Records(tmp_path / "fair.csv")
    assert [rate for _, rate in fair.jobs(table, 3, ("nsf", "npse"))] == [*fair.RATES, None]
    for rate, value in zip(fair.RATES, (-2.0, -1.0, None), strict=True):
        table.at(seed=3, method="nsf", rate=rate).add({"valid_log_q": value})
    assert fair.jobs(table, 4, ("indm", "nsf")) == [("indm", None), ("nsf", fair.RATES[1])]


def test_the_table_has_the_rate_that_validates_best_next_to_what_is_published(tmp_path):
    table = Records(tmp_path / "fair.csv").at(task="slcp")
    for seed, c2st in ((3, 0.7), (4, 0.8)):
        table.at(seed=seed, method="indm", rate=None).add({"c2st": [c2st, c2st], "valid_log_q": 1})
        for rate, value, found in ((1e-3, -1.0, 0.9), (3e-3, -2.0, 0.6)):
            row = {"c2st": [found, found], "valid_log_q": value}
            table.at(seed=seed, method="nsf", rate=rate).add(row)
    line = fair.summary(Records(tmp_path / "fair.csv")).splitlines()[-1]
    cells = "| slcp | 0.750 ± 0.050 | 0.900 ± 0.000 | – | – | – | 0.663 | 0.72 |"
    assert line == cells


@pytest.mark.parametrize("method", fair.METHODS)
def test_a_box_is_the_rival_s_but_for_the_free_ones(method, monkeypatch):
    class Task:
        interval = np.array([[0.0], [1.0]])

    monkeypatch.setattr(sbibm, "prior", lambda task: task)
    monkeypatch.setattr(sbibm, "boxed", lambda fit, interval: "boxed")
    is_boxed = fair.fit_of(method, 1e-3, Task) == "boxed"
    assert is_boxed == (method in ("nsf", "npse"))
