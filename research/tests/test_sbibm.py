"""The benchmark: its table, its rows, and, where the package is installed, its simulators and two
small fits.
"""

import csv
import importlib.util

import numpy as np
import pytest
import torch
from scipy.stats import lognorm, norm

from research.posteriors import sbibm, study
from research.records import Records

INSTALLED = importlib.util.find_spec("sbibm") is not None
needs_sbibm = pytest.mark.skipif(
    not INSTALLED, reason="sbibm is not installed: research/posteriors/sbibm.md"
)
SMALL = ("--simulations", 200, "--draws", 50, "--seconds", 2)


@pytest.fixture
def few(monkeypatch):
    """Few fresh pairs, one seed and one observation."""
    monkeypatch.setattr(sbibm, "FRESH", 50)
    monkeypatch.setattr(sbibm, "SEEDS", dict.fromkeys(sbibm.METHODS, (0,)))
    monkeypatch.setattr(sbibm, "observations", lambda name: [1])


def run(home, *arguments):
    sbibm.main([str(part) for part in ("--home", home, *SMALL, *arguments)])
    return Records(home / "sbibm.csv")


def test_the_tables_have_means_over_seeds_and_the_published_numbers(tmp_path):
    """A task of three observations and one of ten, a method without log p, and tasks that were not
    run.
    """
    table = Records(tmp_path / "sbibm.csv")
    for task in ("two_moons", "sir"):
        for seed, c2st in enumerate(([0.5, 0.6], [0.7, 0.8])):
            for method in sbibm.METHODS:
                log_p = None if method == "npse" else 1.25
                table.at(task=task, seed=seed, method=method).add({"c2st": c2st, "log_p": log_p})
    found = {}
    for key in ("c2st", "log_p"):
        head, _, *lines = (
            line.strip("| ").split(" | ") for line in sbibm.markdown(table, key).splitlines()
        )
        found[key] = [dict(zip(head, line, strict=True)) for line in lines]
        assert [row["task"] for row in found[key]] == ["two_moons", "sir"] and found[key][0][
            "seeds"
        ] == "2, 2"
    assert (
        found["c2st"][0]["indm"] == "0.650 ± 0.100" and found["c2st"][0]["published NPE"] == "0.606"
    )
    assert found["c2st"][1]["published NPE"] == "0.841" and len(sbibm.observations("sir")) == 3
    assert found["log_p"][1]["fmpe"] == "1.25 ± 0.00" and found["log_p"][1]["npse"] == "–"
    assert len(found["log_p"][0]) == len(found["c2st"][0]) - 2


def test_the_table_of_parents_has_them_at_each_budget(tmp_path):
    table = Records(tmp_path / "sbibm.csv")
    for seconds, method in (
        (120.0, "indm"),
        (480.0, "indm"),
        (120.0, "flow"),
        (120.0, "flow first"),
    ):
        cell = table.at(seconds=seconds, task="slcp", method=method, seed=0)
        cell.add({"c2st": [0.5, 0.6], "log_p": seconds})
    _, _, *lines = sbibm.parents_table(table).splitlines()
    assert lines == ["| slcp | 120 | 0.550 | 0.550 | 0.550 | 120.00 | 120.00 | 120.00 |"]


def test_a_box_is_a_transform_of_any_method_with_its_jacobian():
    """θ is uniform, log-normal and normal; a method that finds their law on the line exactly has
    log p exactly.
    """
    numbers, given = np.random.default_rng(0), []
    theta = np.column_stack(
        [numbers.uniform(-1, 3, 500), numbers.lognormal(size=500), numbers.normal(size=500)]
    )

    def fit(line, x, seed, seconds):
        given.append(line)
        return study.Fitted(
            lambda x, n, seed: line[:n], lambda line, x: norm.logpdf(line).sum(1), {}
        )

    fitted = sbibm.boxed(fit, np.array([[-1.0, 0.0, -np.inf], [3.0, np.inf, np.inf]]))(
        theta, theta, 0, 1.0
    )
    assert (np.abs(given[0].mean(0)) < 0.15).all() and (np.abs(given[0].std(0) - 1) < 0.1).all()
    np.testing.assert_allclose(fitted.draw(theta[0], 100, 0), theta[:100])
    exact = np.log(1 / 4) + lognorm.logpdf(theta[:, 1], 1) + norm.logpdf(theta[:, 2])
    np.testing.assert_allclose(fitted.log_prob(theta, theta), exact, atol=1e-9)


@pytest.mark.parametrize(
    "share, seeds", [(0.5, [0, 10]), (0.9, [0, 10]), (0.0, range(0, 10 * study.MOST_TRIES, 10))]
)
def test_draws_outside_the_prior_are_rejected_and_fill_up_what_has_nearly_none(share, seeds):
    drawn = []

    def draw(x, n, seed):
        drawn.append(seed)
        return np.where(np.arange(n)[:, None] < share * n, 0.0, 2.0)

    found, kept = study.within(
        lambda theta: theta[:, 0] < 1, study.Fitted(draw, None, {}), np.zeros(1), 10
    )
    assert (
        kept == pytest.approx(share, abs=0.02) and found.shape == (10, 1) and drawn == list(seeds)
    )
    assert (found < 1).all() == (share > 0)


def simulated(task, theta, n):
    return task.get_simulator()(theta.expand(n, -1)).double()


@pytest.mark.filterwarnings("ignore:max_seconds ended the fit", "ignore:the network found nothing")
@pytest.mark.parametrize("corrected", [False, True])
def test_a_flow_with_and_without_a_diffusion_behind_it_has_the_density_of_its_draws(
    corrected, monkeypatch
):
    """θ is 3 x + a mixture of two Gaussians, in a fit that ends at once: log q integrates to 1, and
    draws follow it.
    """
    monkeypatch.setattr(study, "PATIENCE", 5)
    numbers = np.random.default_rng(0)
    x = 5 + 4 * numbers.standard_normal((600, 1))
    theta = 3 * x + numbers.choice([-2, 2], (600, 1)) + 0.5 * numbers.standard_normal((600, 1))
    fitted = study.flow_first(theta, x, 0, 6.0, corrected)
    grid, at = np.linspace(-10, 10, 401), np.array([6.0])
    density = np.exp(fitted.log_prob(18 + grid[:, None], at))
    assert density.sum() * 0.05 == pytest.approx(1, abs=0.02)
    drawn = np.histogram(fitted.draw(at, 4_000, 0) - 18, np.linspace(-10, 10, 11))[0] / 4_000
    assert np.abs(drawn - density[:400].reshape(10, 40).sum(1) * 0.05).sum() < 0.08
    assert ("steps" in fitted.setting) == corrected


@needs_sbibm
@pytest.mark.parametrize("name", sbibm.RATES)
def test_the_true_parameters_explain_the_observations(name):
    """Over ten observations, squared deviations from the mean of simulations have the size of a χ²;
    of other θ, not.
    """
    torch.manual_seed(0)
    task = sbibm.task_of(name)
    change = torch.ones(task.dim_parameters)
    change[0] = 1.1
    squares = {"true": [], "changed": []}
    for observation in range(1, 11):
        theta, x = (
            task.get_true_parameters(observation),
            task.get_observation(observation)[0].double(),
        )
        for key, value in {"true": theta, "changed": theta * change}.items():
            draws = simulated(task, value, 40)
            # where a binomial law is nearly normal
            counts = draws.mean(0) > 5 if name == "sir" else slice(None)
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
def test_a_row_is_made_once(tmp_path, monkeypatch, few):
    """Two methods draw from the prior: NPE ends by itself, and simulations are kept."""
    limits = []

    def prior(theta, x, seed, limit):
        limits.append(limit)
        return study.Fitted(lambda x, n, seed: theta[:n], lambda theta, x: np.zeros(len(theta)), {})

    monkeypatch.setattr(sbibm, "fit_of", lambda method, task: prior)
    monkeypatch.setattr(sbibm.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(sbibm.importlib.util, "find_spec", lambda name: True)
    table = run(tmp_path, "--tasks", "gaussian_mixture", "--methods", "indm", "npe")
    (row,) = table.at(method="npe").rows()
    assert (
        limits == [2.0, float("inf")]
        and row["ended_itself"]
        and row["outside"] == [0]
        and row["c2st"][0] > 0.7
    )
    with table.path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 3 and len(list((tmp_path / "simulations").glob("*.npz"))) == 1
    table.path.write_text(
        "".join(line for line in table.path.read_text().splitlines(True) if ",npe," not in line)
    )
    (again,) = (
        run(tmp_path, "--tasks", "gaussian_mixture", "--methods", "indm", "npe")
        .at(method="npe")
        .rows()
    )
    assert len(limits) == 3 and again["c2st"] == row["c2st"]


@needs_sbibm
def test_two_tasks_in_miniature(tmp_path, few):
    table = run(tmp_path, "--tasks", "two_moons", "gaussian_linear_uniform", "--methods", "indm")
    assert [row["task"] for row in table.rows()] == ["gaussian_linear_uniform", "two_moons"]
    for row in table.rows():
        assert (
            0.35 < row["c2st"][0] <= 1
            and 0 <= row["outside"][0] < 1
            and row["fit_cpu_seconds"] < 10
        )
