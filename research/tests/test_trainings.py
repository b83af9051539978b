"""Trainings at planned cost: the error of a measured cost, and the steps that a budget affords."""

import numpy as np
import pytest

from research.lab import costs
from research.lab.costs import median_and_error
from research.lab.trainings import Training, affordable


def test_the_error_of_a_median_is_that_of_normal_values_and_bears_one_disturbed():
    draws = np.random.default_rng(0).normal(1.2, 0.1, (4000, 9))
    medians, errors = zip(*(median_and_error(row.tolist()) for row in draws), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(medians), rel=0.15)
    calm, disturbed = draws[0].tolist(), [*draws[0, :8].tolist(), 60.0]
    assert median_and_error(disturbed)[1] < 2 * median_and_error(calm)[1]


def test_a_training_has_the_steps_that_its_budget_affords_and_rates_cost_nothing():
    job = Training("digits", "uniform", "elementwise", {"train.lr": 1e-3, "net.channels": 16}, 1)
    assert job.cost_key == "uniform elementwise channels=16"
    assert affordable(job, {job.cost_key: 0.8}, 600).steps == 750
    assert affordable(job, {job.cost_key: 0.8}, 0.1).steps == 1


def test_costs_are_ratios_within_a_round_and_the_first_round_warms_up(monkeypatch):
    rounds, clock = iter([50.0, 1.0, 7.0, 1.0]), [0.0]  # how much slower a round is
    monkeypatch.setattr(costs, "ROUNDS", 4)
    monkeypatch.setattr(costs, "STEPS_A_ROUND", 1)
    monkeypatch.setattr(costs.time, "process_time", lambda: clock[0])

    def unit():
        unit.slow = next(rounds)
        clock[0] += unit.slow

    def own():
        clock[0] += 1.5 * unit.slow

    seconds = costs.seconds_in_turns({"unit": unit, "own": own})
    assert seconds["unit"] == [1.0, 7.0, 1.0]
    assert costs.relative_cost(seconds["own"], seconds["unit"]) == {"cost": 1.5, "error": 0.0, "milliseconds": 1500.0}
