"""The map from rows of a table to latents, against finite differences and laws of known density."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit
from scipy.stats import multivariate_normal, norm, yeojohnson_llf

from indm import DensityEstimator
from indm.tables.columns import (
    Columns,
    best_edges,
    far_columns,
    from_line,
    log_slope,
    moments,
    moments_of_most,
    most_likely_power,
    to_line,
)

POWERS = np.array([0.0, 0.3, 1.0, 1.7, 2.0])


def map_of(
    rows: int = 400, far: bool = False, reach: float = 50.0
) -> tuple[Columns, np.ndarray, np.ndarray]:
    """A map with fixed powers, rows far into both tails and their conditions; convex ones bend up
    to ``reach``.
    """
    numbers = np.random.default_rng(0)
    c = numbers.normal(size=(rows, 2))
    X = (
        3.0
        + numbers.standard_t(3, (rows, 5)) * [1e-3, 1.0, 2.0, 50.0, 1.0]
        + c @ numbers.normal(size=(2, 5))
    )
    columns = Columns.fitted(X, c, np.arange(5), np.full(5, far))
    return replace(columns, power=POWERS, reach=np.array([[-reach], [reach]]).repeat(5, 1)), X, c


@pytest.mark.parametrize("reach", [50.0, 0.5])
@pytest.mark.parametrize("far", [False, True])
def test_rows_come_back_from_their_latents(far, reach):
    columns, X, c = map_of(far=far, reach=reach)
    np.testing.assert_allclose(columns.rows(columns.latents(X, c), c), X, rtol=1e-9)


@pytest.mark.parametrize("reach", [50.0, 0.5])
@pytest.mark.parametrize("far", [False, True])
def test_log_volume_is_that_of_finite_differences(far, reach):
    columns, X, c = map_of(20, far, reach)
    jacobian = np.empty((20, 5, 5))
    for j, step in enumerate(1e-5 * columns.scale):
        shift = step * np.eye(5)[j]
        jacobian[:, j] = (columns.latents(X + shift, c) - columns.latents(X - shift, c)) / (
            2 * step
        )
    np.testing.assert_allclose(columns.log_volume(X), np.linalg.slogdet(jacobian)[1], atol=1e-6)


@pytest.mark.parametrize("power", POWERS)
def test_a_power_is_linear_beyond_the_fitted_rows_and_a_density_integrates_to_one(power):
    numbers, none = np.random.default_rng(0), np.zeros((200_001, 0))
    columns = Columns.fitted(numbers.normal(size=(50, 1)), none[:50], np.array([0]))
    columns = replace(columns, power=np.array([power]), reach=np.array([[-1.0], [0.7]]))
    u = np.sinh(np.linspace(-40, 40, len(none)))  # so that the log-normal tails are there
    X = columns.centre + columns.scale * u[:, None]
    density = norm.logpdf(columns.latents(X, none)[:, 0]) + columns.log_volume(X)
    assert np.trapezoid(np.exp(density), X[:, 0]) == pytest.approx(1, abs=1e-6)
    far = np.array([[-1e9], [-1e8], [0], [1e8], [1e9]])
    latents = columns.latents(far, none[:5])[:, 0]
    assert (np.abs(latents) < 1e10).all()  # a square would be 1e18
    np.testing.assert_allclose(columns.rows(latents[:, None], none[:5]), far, rtol=1e-6, atol=1e-9)


def test_latents_are_white_and_without_what_is_linear_in_c():
    numbers = np.random.default_rng(1)
    c = numbers.normal(size=(20_000, 1))
    X = numbers.normal(size=(20_000, 3)) @ numbers.normal(size=(3, 3)) + c * [1.0, -5.0, 0.0]
    z = Columns.fitted(X, c, np.array([], dtype=int)).latents(X, c)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.02)
    np.testing.assert_allclose(z.T @ c / len(c), 0, atol=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_skewed_column_becomes_symmetric_and_a_normal_one_stays(sign):
    numbers = np.random.default_rng(2)
    X = np.stack([sign * np.exp(numbers.normal(size=5_000)), numbers.normal(size=5_000)], 1)
    columns = Columns.fitted(X, np.zeros((5_000, 0)), np.array([0, 1]))
    z = columns.latents(X, np.zeros((5_000, 0)))[:, 0]
    # of 1,000,000 log-normal ones it is 6
    assert abs(((z - z.mean()) ** 3).mean() / z.std() ** 3) < 1.2
    assert columns.power[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["skewed", "normal", "rare"])
def test_a_power_is_that_of_the_highest_likelihood_by_scipy(kind):
    u = np.random.default_rng(0).normal(size=200)
    u = {"skewed": -np.exp(u), "normal": u, "rare": 1.0 * (u > 2)}[kind]
    u = (u - u.mean()) / u.std()
    best = minimize_scalar(
        lambda power: -yeojohnson_llf(power, u), bounds=(0, 2), method="bounded"
    ).x
    assert most_likely_power(u) == pytest.approx(best, abs=1e-8)


def test_a_few_far_values_do_not_decide_the_scale():
    numbers = np.random.default_rng(4)
    X = numbers.normal(5.0, 2.0, (1_000, 3))
    X[7, 1], X[8, 1] = 1e6, -1e9
    X[:, 2] = np.where(numbers.random(1_000) < 0.97, 0, X[:, 2])  # quantiles of 5 and 95 % are 0
    assert far_columns(X).tolist() == [False, True, False]
    centre, scale = moments_of_most(X)
    np.testing.assert_allclose(centre, [5, 5, 0], atol=0.2)
    np.testing.assert_allclose(scale[:2], 2, atol=0.2)
    z = Columns.fitted(X, np.zeros((1_000, 0)), np.array([], dtype=int), far_columns(X)).latents(
        X, np.zeros((1_000, 0))
    )
    assert np.ptp(np.delete(z[:, 1], [7, 8])) > 1 and np.abs(z).max() < 50
    assert not far_columns(np.full((20, 1), 7.0)).any()


@pytest.mark.parametrize("unit", [1e200, 1e-200, 1e300])
def test_moments_neither_overflow_nor_vanish(unit):
    X = np.random.default_rng(5).normal(3.0, 2.0, (100, 2))
    np.testing.assert_allclose(moments(unit * X), (unit * X.mean(0), unit * X.std(0)), rtol=1e-12)
    assert (np.array(moments(X)) == [X.mean(0), X.std(0)]).all()


def test_powers_are_used_where_validation_says_so():
    """Log-normal rows of known density: a power about the mean does most of what their logarithm
    does.
    """
    numbers = np.random.default_rng(3)
    y = numbers.normal(size=(1_500, 3)) @ [[1.0, 0.7, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]]
    X, rows = np.exp(y), slice(1_000, None)
    estimator = DensityEstimator(max_steps=0, n_models=1, max_components=1, random_state=0).fit(
        X[:1_000]
    )
    covariance = np.cov(y.T)
    quadratic = np.einsum("ni,ij,nj->n", y[rows], np.linalg.inv(covariance), y[rows])
    gaussian = multivariate_normal(X[:1_000].mean(0), np.cov(X[:1_000].T)).logpdf(X[rows]).mean()
    truth = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1]) - y[rows].sum(1)
    assert estimator.columns_.power.max() < 0.2
    assert truth.mean() - estimator.score(X[rows]) < 0.35 * (truth.mean() - gaussian)


@pytest.mark.parametrize("low, high", [(2.0, 5.0), (2.0, np.inf), (-np.inf, 5.0)])
def test_a_column_with_bounds_stays_within_and_comes_back(low, high):
    numbers = np.random.default_rng(7)
    X = np.clip(numbers.uniform(2, 5, (500, 1)), 2 + 1e-9, 5 - 1e-9)
    interval, c = np.array([[low], [high]]), np.zeros((500, 0))
    columns = Columns.fitted(X, c, np.array([0]), interval=interval)
    np.testing.assert_allclose(columns.rows(columns.latents(X, c), c), X, rtol=1e-12)
    far = columns.rows(numbers.normal(0, 20, (500, 1)), c)
    assert ((far >= low) & (far <= high)).all()
    steps = [columns.latents(X[:50] + shift, c[:50])[:, 0] for shift in (1e-6, -1e-6)]
    inside = (X[:50, 0] > 2.001) & (X[:50, 0] < 4.999)
    slope = np.log((steps[0] - steps[1]) / 2e-6)
    np.testing.assert_allclose(columns.log_volume(X[:50])[inside], slope[inside], atol=1e-4)


def test_a_uniform_column_becomes_a_normal_one():
    X = np.random.default_rng(8).uniform(-1, 1, (20_000, 1))
    z = Columns.fitted(
        X, np.zeros((20_000, 0)), np.array([], dtype=int), interval=np.array([[-1.0], [1.0]])
    )
    latents = z.latents(X, np.zeros((20_000, 0)))
    assert (latents**4).mean() == pytest.approx(3.0, abs=0.15)


EDGES = [np.nan, 0.3, 0.03]


@pytest.mark.parametrize("edge", EDGES)
def test_a_box_is_mapped_to_the_line_and_back_up_to_its_ends(edge):
    interval = np.array([[-2.0], [3.0]])
    share = np.concatenate([10.0 ** -np.arange(1.0, 16), np.linspace(0.01, 0.5, 50)])[:, None]
    X = np.concatenate([-2 + 5 * share, 3 - 5 * share])
    line = to_line(X, interval, edge)
    back = from_line(line, interval, edge)
    assert np.isfinite(line).all()
    np.testing.assert_allclose(
        np.minimum(back + 2, 3 - back), np.minimum(X + 2, 3 - X), rtol=1e-10, atol=1e-15
    )
    X = X[np.minimum(X + 2, 3 - X) > 1e-6][:, None]
    step = 1e-4 * np.minimum(X + 2, 3 - X)
    rise = np.log(
        (to_line(X + step, interval, edge) - to_line(X - step, interval, edge)) / (2 * step)
    )
    np.testing.assert_allclose(log_slope(X, interval, edge), rise, atol=1e-5)


@pytest.mark.parametrize("edge", EDGES)
def test_what_comes_from_the_line_is_inside_of_the_box_and_has_a_density(edge):
    interval = np.array([[5.0], [6.0]])
    X = from_line(np.array([[-1e3], [-40.0], [-8.5], [8.5], [40.0], [1e3]]), interval, edge)
    assert ((X > 5) & (X < 6)).all() and np.isfinite(log_slope(X, interval, edge)).all()


@pytest.mark.parametrize("edge", EDGES[1:])
def test_the_logit_is_solved_for_as_by_bisection(edge):
    y = np.array([[-3.0], [-1.0], [-0.4], [0.0], [1e-9], [0.97], [1.0], [1.03], [2.0]])
    roots = [
        brentq(lambda v, y=y: np.tanh(v / 2) + edge * v - y, -200, 200, xtol=1e-14) for y in y[:, 0]
    ]
    found = from_line(y, np.array([[0.0], [1.0]]), edge)[:, 0]
    np.testing.assert_allclose(found, expit(np.array(roots)), atol=1e-15, rtol=1e-10)


def test_a_box_is_linear_inside_where_that_is_more_likely():
    numbers = np.random.default_rng(9)
    c = numbers.uniform(-1, 1, (2_000, 1))
    follows = np.clip(0.9 * c[:, 0] + 0.05 * numbers.normal(size=2_000), -0.999, 0.999)
    X = np.stack([numbers.uniform(-1, 1, 2_000), follows, numbers.normal(size=2_000)], 1)
    interval = np.array([[-1.0, -1.0, -np.inf], [1.0, 1.0, np.inf]])
    edges = best_edges(X, c, interval)
    assert np.isnan(edges[[0, 2]]).all() and edges[1] in (0.3, 0.03)
    columns = Columns.fitted(X, c, np.array([], dtype=int), interval=interval)
    np.testing.assert_array_equal(columns.edge, edges)
    jacobian = np.stack(
        [(columns.latents(X + d, c) - columns.latents(X - d, c)) / 2e-6 for d in 1e-6 * np.eye(3)],
        1,
    )
    inside = (np.abs(X[:, :2]) < 0.99).all(1)
    np.testing.assert_allclose(
        columns.log_volume(X)[inside], np.linalg.slogdet(jacobian)[1][inside], atol=1e-4
    )
