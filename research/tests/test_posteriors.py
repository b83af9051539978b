"""Posteriors by which estimators are judged: against quadrature, importance weights and closed forms; and the judge."""

import sys

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from research.posteriors import study as posteriors
from research.posteriors.simulators import SIMULATORS, SLCP, LinearGaussian, TwoMoons, ensemble
from research.records import Records


def numbers(seed=0):
    return np.random.default_rng(seed)


def grid(low, high, n=600):
    """Points (n², 2) in the middles of even cells, and the area of a cell."""
    axes = [a + (np.arange(n) + 0.5) * (b - a) / n for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return points, np.prod(np.subtract(high, low)) / n**2


def has_means_of(rows, points, mass):
    """Whether means of waves of rows equal the means of the masses at points."""
    for frequency in (1, 4, 16):
        for wave in (np.sin, np.cos):
            of_rows, of_points = wave(frequency * rows), wave(frequency * points)
            error = of_rows.std(0) / np.sqrt(len(rows)) + 1e-4
            assert (np.abs(of_rows.mean(0) - mass @ of_points) < 4 * error).all()


def test_two_moons_has_the_likelihood_of_its_draws():
    theta = np.array([0.3, -0.5])
    points, cell = grid([0.0, -0.8], [0.3, -0.4])
    mass = np.exp(TwoMoons().log_likelihood(np.tile(theta, (len(points), 1)), points)) * cell
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    has_means_of(TwoMoons().simulated(np.tile(theta, (5000, 1)), numbers()), points, mass)


@pytest.mark.parametrize("x", [(0.0, 0.1), (-0.7, 0.4)])  # at the second, the prior cuts both moons
def test_the_posterior_of_two_moons_is_prior_times_likelihood(x):
    moons, x = TwoMoons(), np.array(x)
    points, cell = grid([-1, -1], [1, 1], 1000)
    mass = np.exp(moons.log_likelihood(points, x)) * cell
    mass, evidence = mass / mass.sum(), mass.sum()
    assert (evidence > 1.99) == (x[0] == 0)  # over the two moons, of the mass that a prior without an end has
    likely = mass > 1e-7
    expected = np.log(mass[likely] / cell)
    assert moons.log_posterior(points[likely], x) == pytest.approx(expected, abs=0.015)  # 200,000 draws
    assert moons.log_posterior(np.array([[1.01, 0.0]]), x)[0] == -np.inf
    has_means_of(moons.posterior(x, 5000, numbers()), points, mass)


def test_the_posterior_of_the_linear_gaussian_is_by_bayes():
    simulator = LinearGaussian()
    theta, x = simulator.pairs(5, numbers())
    prior, evidence = multivariate_normal(np.zeros(10), 0.1), multivariate_normal(np.zeros(10), 0.2)
    expected = prior.logpdf(theta) + simulator.log_likelihood(theta, x) - evidence.logpdf(x)
    assert [simulator.log_posterior(t[None], v)[0] for t, v in zip(theta, x, strict=True)] == pytest.approx(expected)
    drawn = simulator.posterior(x[0], 20_000, numbers())
    assert drawn.mean(0) == pytest.approx(x[0] / 2, abs=0.01)
    assert np.cov(drawn.T) == pytest.approx(0.05 * np.eye(10), abs=0.003)


def test_slcp_is_four_points_of_a_normal_law():
    theta = SLCP().prior(20, numbers())
    x = SLCP().simulated(theta, numbers(1))
    for row, value, log_likelihood in zip(theta, x, SLCP().log_likelihood(theta, x), strict=True):
        a, b, rho = row[2] ** 2, row[3] ** 2, np.tanh(row[4])
        law = multivariate_normal(row[:2], [[a**2, rho * a * b], [rho * a * b, b**2]])
        assert log_likelihood == pytest.approx(law.logpdf(value.reshape(4, 2)).sum(), rel=1e-9)
    draws = SLCP().simulated(np.tile([1.0, -2.0, 1.5, 0.5, 1.0], (20_000, 1)), numbers())
    expected = np.array([[2.25**2, np.tanh(1.0) * 2.25 * 0.25], [np.tanh(1.0) * 2.25 * 0.25, 0.25**2]])
    assert draws.mean(0) == pytest.approx(np.tile([1.0, -2.0], 4), abs=0.05)
    assert np.cov(draws.T) == pytest.approx(np.kron(np.eye(4), expected), abs=0.12)


def test_the_chains_of_slcp_have_the_means_of_weighted_prior_draws():
    """Started apart, they agree with each other and with importance weights, signs apart; all four modes are equal."""
    simulator = SLCP()
    x = simulator.simulated(np.array([[0.5, -0.5, -1.7, 1.6, 0.4]]), numbers(3))[0]
    drawn = simulator.prior(500_000, numbers(4))
    weight = simulator.log_likelihood(drawn, x)
    weight = np.exp(weight - weight.max()) / np.exp(weight - weight.max()).sum()
    effective = 1 / (weight**2).sum()
    assert effective > 500
    chains = [simulator.posterior(x, 1000, numbers(5 + i), 800, spread) for i, spread in enumerate((1.0, 0.1))]
    for chain in chains:
        for f in (np.abs, np.square):
            mean = weight @ f(drawn)
            error = np.sqrt(weight @ (f(drawn) - mean) ** 2 * (1 / effective + 1 / len(chain)))
            assert (np.abs(f(chain).mean(0) - mean) < 4.5 * error).all()
        assert np.abs((chain[:, 2:4] > 0).mean(0) - 0.5).max() < 0.06
        assert abs((chain[:, 2] * chain[:, 3] > 0).mean() - 0.5) < 0.06
    assert posteriors.c2st(*chains) == pytest.approx(0.5, abs=0.045)


def test_ensembles_forget_where_they_started():
    """A correlated normal law in other units, from far away."""
    root = np.array([[3.0, 0, 0], [2.0, 0.5, 0], [-1.0, 0.3, 0.1]])
    law = multivariate_normal([5.0, 0.0, 1.0], root @ root.T)
    for start in (-20.0, 30.0):
        walkers = ensemble(law.logpdf, start + numbers().normal(size=(2000, 3)), 400, numbers(1))
        rest = np.linalg.solve(root, (walkers - law.mean).T)
        assert rest.mean(1) == pytest.approx(np.zeros(3), abs=0.1)
        assert np.cov(rest) == pytest.approx(np.eye(3), abs=0.15)
        assert (rest**4).mean(1) == pytest.approx(3 * np.ones(3), abs=0.8)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_two_sets_are_told_apart_as_well_as_can_be(shift):
    """For unit normal laws at a distance δ, the best share of right answers is Φ(δ/2)."""
    first, second = numbers().normal(size=(2, 1000, 2)) * [1e3, 1e-3]
    second = second + shift * np.array([600.0, 8e-4])
    assert posteriors.c2st(first, second) == pytest.approx(norm.cdf(shift / 2), abs=0.03)


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Two observations, 50 draws each, and a method that knows the posterior, with a fifth of its draws outside."""
    monkeypatch.setattr(posteriors, "OBSERVATIONS", 2)
    monkeypatch.setattr(posteriors, "DRAWS", 50)
    fits, simulator = [], TwoMoons()

    def known(theta, x, seed, seconds):
        fits.append((len(theta), seed))

        def draw(x, n, seed):
            theta = simulator.posterior(x, n, numbers(seed))
            return np.where(np.arange(n)[:, None] % 5 == 0, 2.0, theta)

        def log_prob(theta, x):
            return np.log(0.8) + np.maximum(simulator.log_posterior(theta, x[0]), -100.0)

        return posteriors.Fitted(draw, log_prob, {})

    monkeypatch.setattr(posteriors, "METHODS", {"indm": known, "npe": known})
    posteriors.observed.cache_clear()
    yield tmp_path, fits
    posteriors.observed.cache_clear()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["posteriors", *map(str, arguments)])
    posteriors.main()


def test_a_training_is_made_once_and_draws_outside_the_prior_are_rejected(quick, monkeypatch, capsys):
    out, fits = quick
    monkeypatch.setattr(posteriors.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(posteriors.importlib.metadata, "version", lambda name: "0")
    arguments = ("two-moons", "--pairs", 30, "--seeds", 2, "--records", out)
    run(monkeypatch, *arguments)
    assert fits == [(30, 0), (30, 0), (30, 1), (30, 1)]
    table = Records(out / "posteriors.csv").at(simulator="two-moons", pairs=30)
    (made,) = table.at(method="indm", seed=0).rows()
    assert made["inside"] == pytest.approx([0.8, 0.8]) and made["divergence"] == pytest.approx([0, 0], abs=0.02)
    lines = table.path.read_text().splitlines(keepends=True)
    table.path.write_text("".join(line for line in lines if ",30,npe,1," not in line))
    run(monkeypatch, *arguments)
    assert fits[4:] == [(30, 1)]
    assert "| two-moons | 30 | 2 | 0." in capsys.readouterr().out


def test_without_sbi_its_trainings_are_left_out(quick, monkeypatch, capsys):
    out, fits = quick
    monkeypatch.setattr(posteriors.importlib.util, "find_spec", lambda name: None)
    run(monkeypatch, "linear-gaussian", "--pairs", 30, "--seeds", 0, "--records", out)
    assert "npe is left out because sbi is not installed: pip install sbi" in capsys.readouterr().out and not fits


def test_observations_are_those_of_the_simulator():
    assert set(SIMULATORS) == {"linear-gaussian", "two-moons", "slcp"}
    for simulator in SIMULATORS.values():
        theta, x = simulator.pairs(7, numbers())
        assert simulator.inside(theta).all() and len(x) == 7 and np.isfinite(simulator.log_likelihood(theta, x)).all()
