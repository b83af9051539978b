"""The benchmark: its table, its rows, and, where the package is installed, its simulators and two small fits."""

import csv
import importlib.util

import numpy as np
import pytest
import torch

from research.posteriors import sbibm, study
from research.records import Records

INSTALLED = importlib.util.find_spec("sbibm") is not None
needs_sbibm = pytest.mark.skipif(not INSTALLED, reason="sbibm is not installed: research/posteriors/sbibm.md")
SMALL = ("--simulations", 200, "--draws", 50, "--observations", 1, "--seeds", 0, "--seconds", 2)


@pytest.fixture
def few_fresh_pairs(monkeypatch):
    monkeypatch.setattr(sbibm, "FRESH", 50)


def run(home, *arguments):
    sbibm.main([str(part) for part in ("--home", home, *SMALL, *arguments)])
    return Records(home / "sbibm.csv")


def test_the_table_has_means_over_seeds_and_the_published_numbers(tmp_path):
    table = Records(tmp_path / "sbibm.csv")
    measured = {"fit_cpu_seconds": 10.0, "outside": [0.0, 0.5], "log_p": 1.25}
    for seed, c2st in enumerate(([0.5, 0.6], [0.7, 0.8])):
        cell = table.at(task="two_moons", seed=seed, method="indm")
        cell.add(measured | {"c2st": c2st, "ended_itself": seed == 0})
    lines = [line.strip("| ").split(" | ") for line in sbibm.markdown(table).splitlines()]
    row = dict(zip(lines[0], lines[2], strict=True))
    assert len(lines) == 2 + 10
    assert row["C2ST indm"] == "0.650 ± 0.100" and row["published NPE"] == "0.606 (0.586)" and row["C2ST npe"] == "–"
    assert (
        row["outside indm"] == "0.25 ± 0.00"
        and row["indm ended by itself"] == "1 of 2"
        and row["log p indm"] == "1.25 ± 0.00"
    )


@pytest.mark.parametrize("share, seeds", [(0.5, [0, 10]), (0.9, [0, 10]), (0.0, range(0, 10 * study.MOST_TRIES, 10))])
def test_draws_outside_the_prior_are_rejected_and_fill_up_what_has_nearly_none(share, seeds):
    drawn = []

    def draw(x, n, seed):
        drawn.append(seed)
        return np.where(np.arange(n)[:, None] < share * n, 0.0, 2.0)

    found, kept = study.within(lambda theta: theta[:, 0] < 1, study.Fitted(draw, None, {}), np.zeros(1), 10)
    assert kept == pytest.approx(share, abs=0.02) and found.shape == (10, 1) and drawn == list(seeds)
    assert (found < 1).all() == (share > 0)


def simulated(task, theta, n):
    return task.get_simulator()(theta.expand(n, -1)).double()


@needs_sbibm
@pytest.mark.parametrize("name", sbibm.RATES)
def test_the_true_parameters_explain_the_observations(name):
    """Over ten observations, squared deviations from the mean of simulations have the size of a χ²; of other θ, not."""
    torch.manual_seed(0)
    task = sbibm.task_of(name)
    change = torch.ones(task.dim_parameters)
    change[0] = 1.1
    squares = {"true": [], "changed": []}
    for observation in range(1, 11):
        theta, x = task.get_true_parameters(observation), task.get_observation(observation)[0].double()
        for key, value in {"true": theta, "changed": theta * change}.items():
            draws = simulated(task, value, 40)
            counts = draws.mean(0) > 5 if name == "sir" else slice(None)  # where a binomial law is nearly normal
            of, at = (draws, x) if name == "sir" else (draws.log(), x.log())
            squares[key].append((((at - of.mean(0)) / of.std(0)) ** 2)[counts])
    true, changed = (torch.cat(squares[key]) for key in ("true", "changed"))
    assert abs(true.mean() - 1) < 4 * (2 / len(true)) ** 0.5
    assert changed.mean() > 3


@needs_sbibm
def test_every_task_has_observations_and_a_prior():
    for name in sbibm.PUBLISHED:
        task = sbibm.task_of(name)
        reference = task.get_reference_posterior_samples(1).double().numpy()
        assert task.name == name and sbibm.inside(task, reference).all()
        assert task.get_observation(1).shape == (1, task.dim_data)


@needs_sbibm
def test_a_row_is_made_once(tmp_path, monkeypatch, few_fresh_pairs):
    """Two methods draw from the prior: NPE ends by itself, and simulations are kept."""
    limits = []

    def prior(theta, x, seed, limit, **options):
        limits.append(limit)
        return study.Fitted(lambda x, n, seed: theta[:n], lambda theta, x: np.zeros(len(theta)), {})

    monkeypatch.setattr(sbibm, "METHODS", {"indm": prior, "npe": prior})
    monkeypatch.setattr(sbibm.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(sbibm.importlib.util, "find_spec", lambda name: True)
    table = run(tmp_path, "--tasks", "gaussian_mixture")
    (row,) = table.at(method="npe").rows()
    assert limits == [2.0, float("inf")] and row["ended_itself"] and row["outside"] == [0] and row["c2st"][0] > 0.7
    with table.path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 3 and len(list((tmp_path / "simulations").glob("*.npz"))) == 1
    table.path.write_text("".join(line for line in table.path.read_text().splitlines(True) if ",npe," not in line))
    (again,) = run(tmp_path, "--tasks", "gaussian_mixture").at(method="npe").rows()
    assert len(limits) == 3 and again["c2st"] == row["c2st"]


@needs_sbibm
def test_two_tasks_in_miniature(tmp_path, few_fresh_pairs):
    table = run(tmp_path, "--tasks", "two_moons", "gaussian_linear_uniform", "--methods", "indm")
    assert [row["task"] for row in table.rows()] == ["gaussian_linear_uniform", "two_moons"]
    for row in table.rows():
        assert 0.35 < row["c2st"][0] <= 1 and 0 <= row["outside"][0] < 1 and row["fit_cpu_seconds"] < 10
