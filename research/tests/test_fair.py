"""Fair rivals: densities of mass one, the start of the estimator, and a run that goes on."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, truncnorm

from indm import DensityEstimator
from research.data import real_tables
from research.lab import zuko_flows
from research.records import Records
from research.tables import fair, flows, real

NUMBERS = np.random.default_rng(0)
CURVED = NUMBERS.normal(size=(600, 2)) * [1.0, 0.4]
CURVED[:, 1] += 0.5 * CURVED[:, 0] ** 2
AXES = np.linspace(-6, 6, 81), np.linspace(-4, 14, 121)
GRID = np.stack(np.meshgrid(*AXES, indexing="ij"), 2).reshape(-1, 2)
CELL = (AXES[0][1] - AXES[0][0]) * (AXES[1][1] - AXES[1][0])


def mass(log_prob):
    return np.exp(log_prob(GRID)).sum() * CELL


def counted(monkeypatch, step):
    """A clock that goes on by ``step`` seconds each time it is read."""
    clock = itertools.count()
    monkeypatch.setattr(zuko_flows.time, "perf_counter", lambda: step * next(clock))


@pytest.mark.parametrize("name", ["nsf", "maf", "mixture"])
def test_a_rival_has_mass_one_and_is_near_the_truth(name, monkeypatch):
    counted(monkeypatch, 0.01)
    fit = fair.OTHERS.get(name) or (lambda *rest: fair.flow(name, 1e-2, *rest))
    log_prob, setting = fit(CURVED[100:], CURVED[:100], flows.Space(CURVED, [], 0), 0, 1.0)
    true = norm.logpdf(CURVED[:, 0]) + norm.logpdf(CURVED[:, 1], 0.5 * CURVED[:, 0] ** 2, 0.4)
    assert mass(log_prob) == pytest.approx(1.0, abs=0.03) and setting["valid"]
    assert (true - log_prob(CURVED)).mean() < 0.25


def test_a_flow_has_its_rate_and_trains_again_where_it_ended(monkeypatch):
    seen = []

    def ended(one, *_):
        seen.append(one.rates)
        one.best_step, one.ended = 7, "plateau"
        return iter(())

    monkeypatch.setattr(zuko_flows.race, "train", ended)
    counted(monkeypatch, 1.0)
    _, setting = fair.flow("nsf", 0.03, CURVED, CURVED, flows.Space(CURVED, [], 0), 0, 4.0)
    assert seen == [[0.03]] * setting["runs"] and setting["runs"] > 1 and setting["step"] == 7


def test_a_forest_has_the_density_of_its_leaves():
    """Two trees: one leaf, and two leaves split at 0 in the first column."""
    infinite = np.inf
    leaves = [
        (0, 0, 1.0, (0.2, 0.5), (1.0, 2.0), (-infinite, -infinite), (infinite, infinite)),
        (1, 1, 0.25, (-1.0, 0.0), (0.5, 1.0), (-infinite, -infinite), (0.0, infinite)),
        (1, 2, 0.75, (1.0, 1.0), (2.0, 0.3), (0.0, -infinite), (infinite, infinite)),
    ]
    rows = [
        {"tree": t, "nodeid": n, "variable": f"c{i}", "mean": m[i], "sd": s[i], "min": a[i],
         "max": b[i], "cvg": share}
        for t, n, share, m, s, a, b in leaves
        for i in (1, 0)
    ]  # fmt: skip
    table = pd.DataFrame(rows)

    def apply(z):
        return np.column_stack([np.zeros(len(z), int), np.where(z[:, 0] <= 0, 1, 2)])

    found = SimpleNamespace(
        params=table.drop(columns="cvg"), bnds=table, num_trees=2, clf=SimpleNamespace(apply=apply)
    )
    trees = fair.leaves_of(found, ["c0", "c1"])
    one = norm.logpdf(GRID, [0.2, 0.5], [1.0, 2.0]).sum(1)
    left = truncnorm.pdf(GRID[:, 0], -infinite, 2.0, -1.0, 0.5) * norm.pdf(GRID[:, 1])
    right = truncnorm.pdf(GRID[:, 0], -0.5, infinite, 1.0, 2.0) * norm.pdf(GRID[:, 1], 1.0, 0.3)
    two = np.where(GRID[:, 0] <= 0, 0.25 * left, 0.75 * right)
    expected = 0.5 * (np.exp(one) + two)
    np.testing.assert_allclose(np.exp(fair.forest_density(found, trees, GRID)), expected, rtol=1e-9)
    del trees[1][1]  # a leaf without rows: the tree has no mass there
    part = fair.forest_density(found, trees, np.array([[-1.0, 0.0]]))
    assert part == pytest.approx(norm.logpdf([-1, 0], [0.2, 0.5], [1, 2]).sum() - np.log(2))


def test_the_log_of_an_interval_is_precise_in_both_tails():
    a, b = np.array([-40.0, 38.0, -1.0, -np.inf]), np.array([-38.0, 40.0, 1.0, np.inf])
    expected = [norm.logcdf(-38.0), norm.logcdf(-38.0), np.log(norm.cdf(1) - norm.cdf(-1)), 0.0]
    np.testing.assert_allclose(fair.log_interval(a, b), expected, atol=1e-10)


@pytest.mark.parametrize("flow", [False, True])
def test_the_start_is_the_density_without_the_network(flow):
    """Where the network made no step both are equal; behind a flow the start has mass one."""
    steps = 40 if flow else 0
    options = {"max_seconds": 1e4, "random_state": 0, "progress": False, "max_components": 2}
    found = DensityEstimator(max_steps=steps, flow=flow, n_models=1, **options).fit(CURVED)
    assert mass(lambda X: fair.start_log_prob(found, X)) == pytest.approx(1.0, abs=0.03)
    if not flow:
        expected = found.score_samples(CURVED)
        np.testing.assert_allclose(fair.start_log_prob(found, CURVED), expected, atol=0.01)


def test_words_gaps_and_columns_of_few_values_leave():
    rows = np.arange(60.0)
    frame = pd.DataFrame(
        {"kept": rows, "word": ["a"] * 60, "few": rows % 19, "most": np.where(rows < 31, 0, rows)}
    )
    frame["half"] = np.where(rows < 30, 0, rows)
    np.testing.assert_array_equal(real_tables.telling(frame), frame[["kept", "half"]])
    frame.loc[3, "kept"] = np.nan
    assert len(real_tables.telling(frame)) == 59


def test_a_run_has_each_rate_once_and_then_the_best(tmp_path, monkeypatch):
    values = dict(zip(fair.RATES, (1.0, 3.0, 2.0), strict=True)) | {None: 0.5}
    made, rates = [], fair.RATES

    def record(job, parts, *_):
        made.append((job["method"], job["rate"]))
        return {"setting": {"valid": values[job["rate"]]}}

    monkeypatch.setattr(fair, "record", record)
    monkeypatch.setattr(real, "columns_of", lambda *_: None)
    table = Records(tmp_path / "fair.csv").at(seconds=1.0, table="x")
    for seed in (0, 1, 0):
        fair.block(table, CURVED, 1.0, seed, rates, fair.METHODS)
    first, then = made[: 2 * 3 + 4], made[2 * 3 + 4 :]
    assert len(set(first)) == 10 and len(then) == 6
    assert {rate for _, rate in then} == {None, fair.RATES[1]}


def test_the_table_says_what_the_correction_adds_and_who_is_ahead(tmp_path):
    """The rate that validates best is not the best of the test; ARF lacks a seed and is left out."""
    made = Records(tmp_path / "fair.csv").at(seconds=1.0, table="sml")
    rows = NUMBERS.normal(size=(2, 40))
    for seed, own in enumerate(rows):
        found = {
            "nsf": (0.01, own - 1, -1.0),
            "maf": (0.01, own - 2, 0.0),
            "mixture": (None, own - 3, 0.0),
        }
        found["kde"] = (None, own - 4, 0.0)
        if seed == 0:
            found["arf"] = (None, own + 9, 0.0)
        for name, (rate, nats, valid) in found.items():
            row = {"setting": {"valid": valid}, "test_nats": nats}
            made.at(seed=seed, method=name, rate=rate).add(row)
        made.at(seed=seed, method="nsf", rate=0.03).add(
            {"setting": {"valid": -2.0}, "test_nats": own + 5}
        )
        whole = {"setting": {"starts": ["flow"]}, "test_nats": own, "start_nats": own - 0.25}
        made.at(seed=seed, method="indm", rate=None).add(whole | {"rows": 99, "columns": 3})
    line = fair.summary(Records(tmp_path / "fair.csv").at(seconds=1.0)).splitlines()[-1]
    assert line.startswith("| sml | 99 × 3 | 2 | ")
    assert "| flow | +0.250 ± 0.000 | -1.00 ± 0.00 | -2.00 ± 0.00 | " in line
    assert "| -4.00 ± 0.00 | – | nsf | -1.00 | ahead | " in line
