"""Networks, batches and rates: that its candidates are recipes, at one cost, and what its table says."""

import argparse
import math

import pytest

from research import quality
from research.lab.trainings import BUDGETS


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        nets=list(quality.NETS), path="emoji", records=tmp_path, jobs=1, budget=1, extractor=tmp_path
    )


@pytest.mark.parametrize("data", BUDGETS)
def test_every_candidate_is_a_recipe(options, data):
    options.path = "emoji" if data == "emoji-32" else None
    jobs = quality.candidates(options, data)
    assert len(jobs) == len(quality.NETS) * len(quality.RATES)
    usual = jobs["unet, the recipe's, rate 0.001"].recipe()
    assert {job.recipe()["net"]["name"] for job in jobs.values()} == {"unet", "research.networks.dit:DiT", "mlp"}
    others = quality.candidates(options, data, ("best", {"net.channels": 16, "train.lr": 2e-3}))
    assert list(others) == [f"{name}; best" for name in quality.OTHERS]
    assert all(job.recipe()["net"]["channels"] == 16 for job in others.values())
    assert others["a quarter of the batch; best"].recipe()["train"]["batch_size"] == usual["train"]["batch_size"] // 4
    assert all(job.recipe()["flow"] == usual["flow"] for job in (*jobs.values(), *others.values()))


def test_seconds_lie_on_straight_lines_and_those_of_what_diverged_are_none():
    record = {"curve": {"10": {"0.9": 4.0}, "20": {"0.9": 3.0}, "40": {"0.9": 2.5, "0.99": 2.0}}}
    assert quality.seconds_to(3.5, record, 2.0) == pytest.approx(2.0 * 15)
    assert quality.seconds_to(2.25, record, 2.0) == pytest.approx(2.0 * 35)
    assert quality.seconds_to(4.5, record, 2.0) == pytest.approx(2.0 * 10)
    assert quality.seconds_to(1.9, record, 2.0) is None
    assert quality.seconds_to(1.9, {"curve": {"10": {"0.9": None}}}, 2.0) is None


def test_a_budget_is_shared_by_costs_and_has_records_of_its_own(options):
    options.budget, options.nets, options.path = 4, ["unet, half the channels"], None
    jobs = quality.candidates(options, "digits").values()
    for job in jobs:
        quality.costs_of(options, "digits").at(step=job.cost_key).add({"cost": 0.8})
    assert {job.steps for job in quality.measured(options, "digits", jobs)} == {4 * BUDGETS["digits"] / 0.8}
    assert dict(quality.trainings(options, "digits").key) == {"data": "digits-x4"}


def test_the_table_has_the_best_rate_of_each_network_at_measured_costs(options):
    place, costs = quality.trainings(options, "digits"), quality.costs_of(options, "digits")
    made = {"unet, the recipe's": (0.2, 2.0), "unet, half the channels": (0.1, 1.8), "mlp": (0.1, None)}
    for name, (cost, best) in made.items():
        for rate, worse in ((1e-3, 0.0), (2e-3, 0.5)):
            job = quality.training(options, "digits", quality.NETS[name] | {"train.lr": rate})
            costs.at(step=job.cost_key).add({"cost": cost / 0.2, "milliseconds": 1e3 * cost, "error": 0.0})
            value = None if best is None else best + worse
            curve = {"50": {"0.9": None if best is None else value + 1}, "100": {"0.9": value}}
            record = {"setting": job.setting, "steps": 100, "parameters": {"score": 1000}, "curve": curve}
            place.at(name=f"{name}, rate {rate:g}").add(record | {"valid": value, "ema": 0.9})
    assert quality.best_of(place) == ("unet, half the channels, rate 0.001", {"net.channels": 16, "train.lr": 1e-3})
    lines = [line.split(" | ") for line in quality.table(options, "digits").splitlines()]
    assert lines[0][6] == "s to 2.000"
    rows = {line[1]: line[3:7] for line in lines[2:]}
    assert rows["unet, the recipe's, rate 0.001"] == ["200", "100", "2.000", "20"]
    assert rows["unet, half the channels, rate 0.001"] == ["100", "100", "1.800", "9"]
    assert rows["mlp, rate 0.001"] == ["100", "100", "–", "–"]
    assert math.isinf(quality.finite(None))
    assert place.at(name="mlp, rate 0.001").rows()[0]["valid"] is None
