"""Posteriors of a simulator: closed forms, finite differences, calibration."""

import copy
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from scipy.stats import gamma, multivariate_normal, norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import distributions as td
from torch import nn

from indm import DensityEstimator, JointDensityEstimator, PosteriorEstimator
from indm.likelihood import WhitenedFlow
from indm.tables import ascent, iid, resampling, summaries
from indm.tables.calibration import Calibration
from indm.tables.familiar import Familiar
from indm.tables.gradients import log_prob_with_gradient
from indm.tables.pictures import LEVELS
from indm.tables.prior import Prior
from indm.tables.resampling import Proposal, resampled
from indm.tables.start import Fits

SMALL = {
    "n_models": 1,
    "max_components": 1,
    "width": 8,
    "depth": 1,
    "max_steps": 0,
    "random_state": 0,
}
A, NOISE = np.array([[1.0, 0.5], [0.0, 1.0], [-1.0, 1.0]]), 1.0
STANDARD = td.Independent(td.Normal(torch.zeros(2), torch.ones(2)), 1)


def simulated(n, seed=0):
    """θ ~ N(0, I), x ~ N(A θ, I)."""
    numbers = np.random.default_rng(seed)
    theta = numbers.normal(size=(n, 2))
    return theta, theta @ A.T + NOISE * numbers.normal(size=(n, 3))


def law(xs):
    """p(θ|x_1 … x_m) in closed form."""
    covariance = np.linalg.inv(np.eye(2) + len(xs) * A.T @ A / NOISE**2)
    return multivariate_normal(xs.sum(0) @ A @ covariance / NOISE**2, covariance)


@pytest.fixture(scope="module")
def gaussian():
    return PosteriorEstimator(STANDARD, **SMALL).fit(*simulated(4000))


def boxed(n, seed=0):
    """θ uniform in a box, x = |θ| + noise, where both signs are possible."""
    numbers = np.random.default_rng(seed)
    theta = numbers.uniform([-1, 0], [1, 4], size=(n, 2))
    return theta, np.abs(theta) + 0.3 * numbers.normal(size=(n, 2))


@pytest.fixture(scope="module")
def box():
    """Two models, trained a little, within a box."""
    options = SMALL | {"n_models": 2, "max_steps": 50, "learning_rate": 1e-2}
    with pytest.warns(UserWarning, match="the network found nothing"):
        return PosteriorEstimator(([-1, 0], [1, 4]), **options).fit(*boxed(400))


@pytest.fixture
def coarse(monkeypatch):
    """The ODE of densities in 12 steps, whatever its error, where that is enough or the same on
    both sides.
    """
    solve = WhitenedFlow.solve
    monkeypatch.setattr(WhitenedFlow, "solve", lambda *arguments: solve(*arguments[:-1], 12))
    monkeypatch.setattr("indm.tables.solve.SOLVER_ERROR", 1000.0)


# ── one observation ───────────────────────────────────────────────────────────────────────────────


def test_draws_and_densities_of_a_linear_gaussian_simulator(gaussian):
    theta, x = simulated(100, seed=1)
    exact = np.array([law(row[None]).logpdf(t) for t, row in zip(theta, x, strict=True)])
    assert np.abs(gaussian.log_prob(theta, x) - exact).mean() < 0.06
    draws = gaussian.sample(600, x[:2], random_state=0)
    assert draws.shape == (2, 600, 2)
    for own, row in zip(draws, x[:2], strict=True):
        assert own.mean(0) == pytest.approx(law(row[None]).mean, abs=0.1)
        assert np.cov(own.T) == pytest.approx(law(row[None]).cov, abs=0.05)
    one = gaussian.sample(5, x[0], random_state=3)
    assert (
        one.shape == (5, 2)
        and (one == gaussian.sample(5, torch.tensor(x[0]), random_state=3)).all()
    )
    assert (one == gaussian.sample(5, x[:1], random_state=3)).all()  # as sbi has one observation


def test_gradients_are_those_of_the_closed_form(gaussian):
    theta, x = simulated(20, seed=1)
    exact = np.array(
        [
            -np.linalg.solve(law(r[None]).cov, t - law(r[None]).mean)
            for t, r in zip(theta, x, strict=True)
        ]
    )
    error = np.linalg.norm(gaussian.grad_log_prob(theta, x, steps=32) - exact, axis=1)
    assert error.mean() < 0.1 * np.linalg.norm(exact, axis=1).mean()


@pytest.mark.filterwarnings("ignore:the error of log_prob")
def test_gradients_are_finite_differences_of_log_prob(box, coarse):
    """Of a trained average of two models in a box."""
    draws, x, h = box.sample(2, [0.5, 1.0], random_state=0), [0.5, 1.0], 1e-3
    # (draws, column, side, d)
    ends = draws[:, None, None] + h * np.eye(2)[:, None] * np.array([1, -1])[:, None]
    log_p = box.log_prob(ends.reshape(-1, 2), x).reshape(2, 2, 2)
    differences = (log_p[..., 0] - log_p[..., 1]) / (2 * h)
    # what is left of a mixture at T, which log_prob of an untrained model does not have
    at_end = 5e-3
    assert box.grad_log_prob(draws, x, steps=12) == pytest.approx(differences, abs=at_end)
    assert np.isnan(box.grad_log_prob([[2.0, 1.0]], [0.5, 1.0])).all()


def test_the_mode_is_that_of_the_closed_form(gaussian, coarse, monkeypatch):
    monkeypatch.setattr(ascent, "MODE_DRAWS", 20)
    monkeypatch.setattr(ascent, "MODE_ODE_STEPS", 12)
    x = simulated(1, seed=2)[1]
    theta, log_p = gaussian.mode(x)
    assert theta == pytest.approx(law(x).mean, abs=0.05)
    assert log_p == pytest.approx(law(x).logpdf(law(x).mean), abs=0.15)
    assert log_p == pytest.approx(gaussian.log_prob(theta, x)[0])
    with pytest.raises(ValueError, match="x must be one observation, got 2"):
        gaussian.mode(simulated(2)[1])


def test_nothing_is_outside_of_the_prior(box, coarse):
    assert box.log_prob([[1.1, 1.0], [0.5, -0.1]], [0.5, 1.0]).tolist() == [-np.inf] * 2
    draws = box.sample(300, [1.2, 0.1], random_state=0)
    assert (
        (np.abs(draws[:, 0]) <= 1).all() and (draws[:, 1] >= 0).all() and (draws[:, 1] <= 4).all()
    )


def test_parameters_that_rounding_put_on_the_box_are_inside(coarse):
    theta, x = boxed(100)
    theta[0], theta[1, 0] = [1.0, 0.0], np.float32(1) + 1e-7
    posterior = PosteriorEstimator(([-1, 0], [1, 4]), **SMALL).fit(theta, x)
    assert np.isfinite(posterior.log_prob(theta[:2], x[:2])).all()


# ── as scikit-learn has an estimator ──────────────────────────────────────────────────────────────


def test_a_grid_search_scores_settings_by_the_mean_log_p_of_pairs(coarse):
    """θ ~ N(0, 1), x ~ N(θ, 1): the mean log p(θ|x) is −½ log πe; a prior's box that cuts the law
    of θ is worse.
    """
    numbers = np.random.default_rng(0)
    theta = numbers.normal(size=(400, 1))
    x, prior = theta + numbers.normal(size=theta.shape), (np.array([-50.0]), np.array([50.0]))
    search = GridSearchCV(
        PosteriorEstimator(**SMALL), {"prior": [None, prior], "estimator__width": [8]}, cv=2
    )
    found = search.fit(theta, x).best_estimator_
    assert search.cv_results_["mean_test_score"] == pytest.approx(
        -0.5 * np.log(np.pi * np.e), abs=0.1
    )
    assert found.score(theta, x) == found.log_prob(theta, x).mean()
    assert found.estimator_.bounds == (None if search.best_index_ == 0 else {0: (-50.0, 50.0)})


def test_a_clone_has_the_settings_and_no_fit(gaussian):
    given = PosteriorEstimator(STANDARD, nn.Linear(3, 1), **SMALL).set_params(estimator__width=5)
    copied = clone(given)
    assert copied.get_params()["estimator__width"] == 5 and copied.estimator is not given.estimator
    assert copied.embedding.weight.tolist() == given.embedding.weight.tolist()
    with pytest.raises(ValueError, match="not fitted yet"):
        clone(gaussian).sample(1, np.zeros(3))


# ── several observations ──────────────────────────────────────────────────────────────────────────


def test_several_observations_of_a_linear_gaussian_simulator(gaussian, coarse):
    """The density has the closed form but for what five posteriors are off; draws follow the
    density, by a grid.
    """
    xs = np.array([0.5, -1.0]) @ A.T + NOISE * np.random.default_rng(3).normal(size=(5, 3))
    mean, std = law(xs).mean, np.sqrt(law(xs).cov.diagonal())
    points = mean + std * np.stack(np.meshgrid(*[np.linspace(-4, 4, 13)] * 2), -1).reshape(-1, 2)
    log_p = gaussian.log_prob_iid(points, xs)
    mass = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    assert mass @ points == pytest.approx(mean, abs=0.3 * std.min())
    draws, effective = gaussian.sample_iid(400, xs, random_state=0)
    assert draws.shape == (400, 2) and effective > 200
    assert draws.mean(0) == pytest.approx(mass @ points, abs=4 * std.max() / np.sqrt(effective))
    assert np.cov(draws.T) == pytest.approx(np.cov(points.T, aweights=mass), abs=0.02)
    assert (
        gaussian.sample_iid(5, xs, random_state=1)[0]
        == gaussian.sample_iid(5, xs, random_state=1)[0]
    ).all()


def test_fifty_observations_beside_the_conjugate_normal(coarse):
    """θ ~ N(0, 1), x_i ~ N(θ, 1): N(Σ x_i/51, 1/51); the mean is off by what 50 posteriors of 4,000
    pairs add up.
    """
    theta, noise = np.random.default_rng(0).normal(size=(2, 4000, 1))
    posterior = PosteriorEstimator(td.Normal(torch.zeros(1), 1.0), **SMALL).fit(
        theta, theta + noise
    )
    for seed in range(3):
        numbers = np.random.default_rng(100 + seed)
        xs = numbers.normal() + numbers.normal(size=(50, 1))
        draws, effective = posterior.sample_iid(400, xs, random_state=0)
        assert effective > 300 and abs(draws.mean() - xs.sum() / 51) < 0.4 * 51**-0.5
        assert draws.std() == pytest.approx(51**-0.5, rel=0.15)


def test_few_draws_are_of_the_same_law_as_many(gaussian, coarse):
    """One draw for each of 150 seeds, from a posterior of two observations: mean and covariance of
    its closed form.
    """
    xs = np.array([0.5, -1.0]) @ A.T + np.zeros((2, 3))
    start = Proposal(np.ones(1), np.full((1, 2), -1.0), 4 * np.eye(2)[None])
    draws = [
        resampled(law(xs).logpdf, start, 1, np.random.RandomState(seed))[0][0]
        for seed in range(150)
    ]
    error = np.sqrt(law(xs).cov.diagonal() / 150)
    assert (np.abs(np.mean(draws, 0) - law(xs).mean) < 4 * error).all()
    assert np.std(draws, 0) == pytest.approx(np.sqrt(law(xs).cov.diagonal()), rel=0.3)
    assert [len(gaussian.sample_iid(n, xs, random_state=0)[0]) for n in (1, 2, 3)] == [1, 2, 3]


def test_a_proposal_of_fewer_effective_draws_than_dimensions_has_a_density():
    u, weight = np.random.default_rng(0).normal(size=(50, 3)), np.zeros(50)
    weight[:2] = 0.5
    proposal = Proposal.fitted(u, weight, np.random.RandomState(0))
    assert np.isfinite(proposal.log_prob(proposal.draws(20, np.random.RandomState(1)))).all()


def test_weights_correct_a_proposal_that_is_far_off(gaussian, monkeypatch, coarse):
    """Draws follow log_prob_iid, whatever comes first; where one round is not enough, the effective
    number says so.
    """
    xs = np.array([1.0, 1.0]) @ A.T + np.zeros((2, 3))
    start = Proposal(np.ones(1), np.full((1, 2), -3.0), 4 * np.eye(2)[None])
    monkeypatch.setattr(iid, "product", lambda *_: start)
    draws, effective = gaussian.sample_iid(400, xs, random_state=0)
    assert effective > 200 and draws.mean(0) == pytest.approx(law(xs).mean, abs=0.1)
    monkeypatch.setattr(resampling, "ROUNDS", 1)
    with pytest.warns(
        UserWarning, match="100 draws of a posterior of 2 observations are as good as"
    ):
        assert gaussian.sample_iid(100, xs, random_state=0)[1] < 10


def test_a_first_proposal_is_as_wide_as_the_prior_where_observations_say_nothing(
    monkeypatch, coarse
):
    theta, x = np.random.default_rng(0).normal(size=(2, 2000, 1))
    posterior, firsts = (
        PosteriorEstimator(td.Normal(torch.zeros(1), 1.0), **SMALL).fit(theta, x),
        [],
    )

    def noted(log_target, first, n, numbers):
        firsts.append(first)
        return resampled(log_target, first, n, numbers)

    monkeypatch.setattr(iid, "resampled", noted)
    posterior.sample_iid(50, [0.1, -0.2], random_state=0)
    latent = np.var(posterior.estimator_.columns_.latents(theta, np.zeros((2000, 1))))
    assert firsts[0].laws[0].shape.item() == pytest.approx(latent, rel=0.2)


def test_a_proposal_integrates_to_one_and_its_draws_follow_it():
    proposal = Proposal(
        np.array([0.3, 0.7]), np.array([[-2.0], [1.0]]), np.array([[[0.2]], [[1.0]]])
    )
    u = np.linspace(-60, 60, 120_001)
    mass = np.exp(proposal.log_prob(u[:, None])) * (u[1] - u[0])
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    draws = proposal.draws(4000, np.random.RandomState(0))
    assert (draws < 0).mean() == pytest.approx(mass[u < 0].sum(), abs=0.03)


def test_draws_have_the_two_peaks_of_a_density_known_up_to_a_constant():
    """From one wide law: peaks of 1/4 and 3/4, narrow in one direction."""
    peaks = [multivariate_normal([side, 0], np.diag([0.04, 0.0025])) for side in (-2, 2)]
    start = Proposal(np.ones(1), np.zeros((1, 2)), 4 * np.eye(2)[None])
    law = lambda u: 7.0 + np.log(0.25 * peaks[0].pdf(u) + 0.75 * peaks[1].pdf(u) + 1e-300)  # noqa: E731
    draws, effective = resampled(law, start, 1000, np.random.RandomState(0))
    left = draws[:, 0] < 0
    assert effective > 900 and left.mean() == pytest.approx(0.25, abs=0.05)
    assert draws[~left].mean(0) == pytest.approx([2, 0], abs=0.03)
    assert draws[~left].std(0) == pytest.approx([0.2, 0.05], rel=0.1)


def test_several_observations_need_a_prior(box, coarse, monkeypatch):
    theta, x = boxed(2)
    each = [box.log_prob(theta, row) for row in x]
    # solved in other batches
    assert box.log_prob_iid(theta, x) - sum(each) == pytest.approx(np.log(8.0), abs=1e-4)
    assert box.log_prob_iid([[2.0, 1.0]], x).tolist() == [-np.inf]
    monkeypatch.setattr(box, "prior_", Prior(None, 2))
    assert box.log_prob_iid(theta, x[0]) == pytest.approx(each[0])
    with pytest.raises(ValueError, match="prior must have a density for several observations"):
        box.log_prob_iid(theta, x)


# ── priors ────────────────────────────────────────────────────────────────────────────────────────

BOXES = {
    "none": (None, [-np.inf] * 2, [np.inf] * 2),
    "numbers": ((0, 1), [0, 0], [1, 1]),
    "arrays": (([0, -1], [1, np.inf]), [0, -1], [1, np.inf]),
    "uniform": (
        td.Independent(td.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0])), 1),
        [0, 1],
        [2, 5],
    ),
    "normal": (STANDARD, [-np.inf] * 2, [np.inf] * 2),
    "gamma": (td.Gamma(torch.ones(2), torch.ones(2)), [0, 0], [np.inf, np.inf]),
    "correlated": (
        td.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        [-np.inf] * 2,
        [np.inf] * 2,
    ),
}


@pytest.mark.parametrize("case", BOXES)
def test_the_box_of_a_prior(case):
    prior, low, high = BOXES[case]
    assert Prior(prior, 2).interval.tolist() == [low, high]


def test_the_box_of_laws_side_by_side():
    constraint = td.constraints.cat(
        [td.constraints.real, td.constraints.interval(0.0, 2.0)], 1, [1, 2]
    )
    prior = td.Normal(torch.zeros(3), 1.0)
    type_with_support = type(
        "Joint", (td.Normal,), {"support": td.constraints.independent(constraint, 1)}
    )
    prior.__class__ = type_with_support
    assert Prior(prior, 3).interval.tolist() == [[-np.inf, 0, 0], [np.inf, 2, 2]]


def test_a_law_that_is_on_no_box_is_on_the_line_by_its_map():
    law = td.Dirichlet(torch.tensor([2.0, 1.0, 3.0]))
    prior = Prior(law, 3)
    theta = law.sample((50,)).double().numpy()
    numbers = prior.numbers(theta)
    assert (
        numbers.shape == (50, 2)
        and np.isinf(prior.interval).all()
        and prior.interval.shape == (2, 2)
    )
    assert prior.parameters(numbers) == pytest.approx(theta, abs=1e-6)
    side = np.linspace(-12, 12, 400)
    grid = np.stack(np.meshgrid(side, side), 2).reshape(-1, 2)
    assert np.exp(prior.log_prob(grid)).sum() * (side[1] - side[0]) ** 2 == pytest.approx(
        1.0, abs=1e-4
    )
    step = 1e-5 * np.eye(2)
    jacobian = [
        (prior.parameters(numbers + d) - prior.parameters(numbers - d))[:, :2] / 2e-5 for d in step
    ]
    assert prior.log_volume(numbers) == pytest.approx(
        np.linalg.slogdet(np.stack(jacobian, 1))[1], abs=1e-5
    )


def test_a_posterior_on_a_simplex(coarse):
    """Counts of 30 throws: draws are on the simplex, and log p is one of its first two coordinates."""
    numbers, law = np.random.default_rng(0), td.Dirichlet(torch.ones(3))
    theta = numbers.dirichlet(np.ones(3), 2000)
    x = np.stack([numbers.multinomial(30, p) for p in theta])[:, :2]
    posterior = PosteriorEstimator(law, **SMALL).fit(theta, x)
    draws = posterior.sample(2000, x[0], random_state=0)
    assert (
        draws.shape == (2000, 3)
        and draws.sum(1) == pytest.approx(np.ones(2000))
        and (draws > 0).all()
    )
    counts = 1 + np.append(x[0], 30 - x[0].sum())
    assert draws.mean(0) == pytest.approx(counts / counts.sum(), abs=0.1)
    # the prior's density is 2
    assert np.exp(posterior.log_prob(theta, x[0])).mean() == pytest.approx(2.0, abs=0.3)
    assert np.isfinite(posterior.log_prob_iid(theta[:3], x[:2])).all()
    with pytest.raises(ValueError, match="the prior must have a box"):
        posterior.mode(x[0])


def test_log_densities_of_priors():
    theta = np.array([[0.5, 1.0], [2.0, -1.0]])
    assert Prior(STANDARD, 2).log_prob(theta) == pytest.approx(norm.logpdf(theta).sum(1), rel=1e-6)
    side_by_side = Prior(td.Gamma(torch.full((2,), 2.0), torch.ones(2)), 2)
    assert side_by_side.log_prob(theta) == pytest.approx(gamma(2).logpdf(theta).sum(1))


@pytest.mark.parametrize(
    "prior", [td.Uniform(torch.tensor([60.0]), torch.tensor([80.0])), ([60.0], [80.0])]
)
def test_several_observations_next_to_an_end_that_single_floats_do_not_resolve(prior, coarse):
    """The prior's density is 1/20 there, too, and torch's global generator stays as it is."""
    numbers = np.random.default_rng(0)
    theta = numbers.uniform(60, 80, (300, 1))
    x, state = theta + 6 * numbers.normal(size=theta.shape), torch.get_rng_state()
    posterior = PosteriorEstimator(prior, **SMALL).fit(theta, x)
    near = [[80 - 1e-7], [80.0], [60.0]]
    assert posterior.prior_.log_prob(np.array(near)) == pytest.approx(-np.log(20.0))
    each = sum(posterior.log_prob(near, [x_i]) for x_i in (70.0, 71.0, 69.0))
    assert posterior.log_prob_iid(near, [70.0, 71.0, 69.0]) == pytest.approx(
        each + 2 * np.log(20.0), rel=1e-6
    )
    for seed in range(4):
        assert posterior.sample_iid(300, [70.0, 71.0, 69.0], random_state=seed)[1] > 200
    assert torch.equal(torch.get_rng_state(), state)


def test_where_a_prior_is_zero_inside_its_box_so_is_the_posterior(gaussian, coarse, monkeypatch):
    monkeypatch.setattr(gaussian.prior_, "log_prob", lambda theta: np.full(len(theta), -np.inf))
    assert gaussian.log_prob_iid([[0.0, 0.0]], simulated(2)[1]).tolist() == [-np.inf]


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: PosteriorEstimator(estimator=DensityEstimator(), width=3),
            "options belong to the estimator .* width",
        ),
        (
            lambda: PosteriorEstimator((0, 1), bounds={0: (0, 1)}).fit([[0.5]], [[1]]),
            "bounds must be left out",
        ),
        (
            lambda: Prior((0, 1, 2), 2),
            "too many values to unpack",
        ),
        (
            lambda: PosteriorEstimator(([0] * 3, [1] * 3)).fit(np.ones((20, 2)), np.ones((20, 3))),
            r"shape \(2,\)",
        ),
        (
            lambda: PosteriorEstimator(([-9, 5], [9, 0])).fit(*simulated(20)),
            "drawn from the prior, got .* in row 0 of parameter 1, where it is from 5 to 0",
        ),
        (lambda: Prior(td.Uniform, 2), "unpack"),
        (lambda: Prior([td.Normal(0, 1)] * 2, 2), "Normal"),
        (
            lambda: PosteriorEstimator((0, 1)).fit([[0.5], [7]], [[1], [1]]),
            "drawn from the prior, got 7 in row 1",
        ),
        (
            lambda: PosteriorEstimator(
                STANDARD, nn.Flatten(), estimator=JointDensityEstimator()
            ).fit(*simulated(9)),
            "embedding must be left out",
        ),
        (
            lambda: PosteriorEstimator(embedding=nn.Flatten()).fit([[1.0]], [[1.0, np.nan]]),
            r"embedding must be left out .*; fill the gaps \(NaN\) of x, and mark them in a channel of their own",
        ),
        (
            lambda: PosteriorEstimator(embedding="sets", **SMALL).fit(*simulated(20)),
            "float",
        ),
        (
            lambda: PosteriorEstimator(embedding=nn.Linear(2, 2), **SMALL).fit(*simulated(20)),
            "shapes cannot be multiplied",
        ),
        (
            lambda: PosteriorEstimator().fit([[1.0]], [[1j]]),
            "complex128",
        ),
        (
            lambda: PosteriorEstimator().fit([[1.0]], np.zeros((1, 1), "M8[D]")),
            "M8",
        ),
        (
            lambda: PosteriorEstimator().fit([[1.0]], [[object()]]),
            "object",
        ),
        (
            lambda: PosteriorEstimator().sample(3, [1.0]),
            "PosteriorEstimator instance is not fitted yet",
        ),
        (
            lambda: PosteriorEstimator().log_prob([[1.0]], [1.0]),
            "PosteriorEstimator instance is not fitted yet",
        ),
        (lambda: PosteriorEstimator().gains_, "gains_"),
        (
            lambda: PosteriorEstimator(**SMALL).fit(simulated(20)[0], simulated(19)[1]),
            r"inconsistent numbers of samples: \[20, 19\]",
        ),
        (
            lambda: PosteriorEstimator(**SMALL).fit(*images(20)),
            "dim 4",
        ),
    ],
)
def test_errors(make, message):
    """Ours, or those of Python, numpy, torch and scikit-learn."""
    with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError), match=message):
        make()


def test_without_a_simulation_that_succeeded_there_is_no_fit():
    with (
        pytest.warns(UserWarning, match="left out 1 of 1 simulations"),
        pytest.raises(ValueError, match="0 sample"),
    ):
        PosteriorEstimator().fit([[1.0]], [[np.nan]])


def test_errors_of_a_fitted_one(gaussian):
    for use, message in (
        (
            lambda: gaussian.sample(5, np.zeros(2)),
            r"x must have shape \(3,\), or one axis more for several, got \(2,\)",
        ),
        (
            lambda: gaussian.log_prob(np.zeros((4, 3)), np.zeros(3)),
            r"theta must have shape \(n, 2\), got \(4, 3\)",
        ),
        (
            lambda: gaussian.calibration(np.zeros((4, 2)), np.zeros((3, 3))),
            r"inconsistent numbers of samples: \[4, 3\]",
        ),
        (
            lambda: gaussian.sample(5, [0.0, np.nan, 0.0]),
            "c contains NaN",
        ),
        (
            lambda: gaussian.log_likelihood(np.zeros(3), np.zeros((1, 2))),
            "log_likelihood needs an estimator of θ and x, such as JointDensityEstimator",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            use()


# ── calibration ───────────────────────────────────────────────────────────────────────────────────


def gaussian_draws(stretch, pairs=400, draws=99):
    """Truths of a closed-form posterior N(x/2, 1/2), and draws whose deviation is off by
    ``stretch``.
    """
    numbers = np.random.default_rng(0)
    theta = numbers.normal(size=(pairs, 2))
    centre = (theta + numbers.normal(size=theta.shape)) / 2
    return (
        theta,
        centre[:, None] + stretch * np.sqrt(0.5) * numbers.normal(size=(pairs, draws, 2)),
        centre,
    )


@pytest.mark.parametrize("stretch, passes", [(1.0, True), (1.5, False), (1 / 1.5, False)])
def test_calibrated_posteriors_pass_and_others_fail_in_both_measures(stretch, passes):
    theta, draws, _ = gaussian_draws(stretch)
    found = Calibration.of(theta, draws)
    worst = max(*found.p_values, found.tarp_p_value), min(*found.p_values, found.tarp_p_value)
    assert worst[1] > 0.01 if passes else worst[0] < 1e-3
    assert found.p_value == pytest.approx(min(1.0, 3 * worst[1]))


def test_ranks_and_coverage_of_wide_draws_have_their_closed_forms():
    """A rank below α of the draws is Φ(s Φ⁻¹(α)) likely; coverage is P(F(|θ − r|) < α), F the law
    of distances.
    """
    theta, draws, centre = gaussian_draws(1.5, 20_000)
    theta, draws = (
        (part - around)[..., :1] for part, around in ((theta, centre), (draws, centre[:, None]))
    )
    found, levels = Calibration.of(theta, draws), np.array([0.1, 0.3, 0.7, 0.9])
    assert (found.ranks < 100 * levels[:, None, None]).mean((1, 2)) == pytest.approx(
        norm.cdf(1.5 * norm.ppf(levels)), abs=0.015
    )
    truth, reference = np.random.default_rng(1).normal(size=(2, 100_000))
    distance = np.abs(truth - reference)
    share = norm.cdf((reference + distance) / 1.5) - norm.cdf((reference - distance) / 1.5)
    assert found.coverage(levels) == pytest.approx(
        [(share < level).mean() for level in levels], abs=0.015
    )


def test_equal_values_have_random_ranks():
    numbers = np.random.default_rng(0)
    theta, draws = numbers.integers(0, 3, (1000, 1)), numbers.integers(0, 3, (1000, 50, 1))
    assert Calibration.of(theta, draws).p_values > 0.01


LAWS = {
    "counts": lambda numbers, x, shape: numbers.poisson(x, shape),
    "binary": lambda numbers, x, shape: numbers.binomial(1, x / (1 + x), shape),
    "constant": lambda numbers, x, shape: np.full(shape, 3.0),
}


@pytest.mark.parametrize("law", LAWS)
def test_p_values_of_calibrated_whole_numbers_are_uniform(law):
    """Truth and draws are of one law at each x: in 100 repetitions p is below 5 % in 5 ± 2.2, below
    50 % in 50 ± 5.
    """
    numbers, p = np.random.default_rng(0), []
    for seed in range(100):
        x = np.exp(numbers.normal(size=(200, 1)))
        theta, draws = (
            LAWS[law](numbers, part, shape)
            for part, shape in ((x, (200, 1)), (x[:, None], (200, 49, 1)))
        )
        p.append(Calibration.of(theta.astype(float), draws.astype(float), seed=seed).tarp_p_value)
    assert (np.array(p) < 0.05).sum() <= 12 and 33 <= (np.array(p) < 0.5).sum() <= 67


def test_uniform_ranks_pass_where_bins_hold_different_numbers_of_them():
    """Twelve ranks in ten bins: p is below 50 % in 100 ± 7 of 200 repetitions."""
    numbers = np.random.default_rng(0)
    found = Calibration(numbers.integers(0, 12, (1000, 200)), np.zeros(1000, int), 11)
    assert 79 <= (found.p_values < 0.5).sum() <= 121


@pytest.mark.parametrize("draws", [1, 11])
def test_coverage_is_the_level_where_each_rank_is_there_once(draws):
    found = Calibration(np.zeros((draws + 1, 1), int), np.arange(draws + 1), draws)
    assert found.coverage(LEVELS) == pytest.approx(LEVELS)


def test_the_calibration_of_an_estimator(gaussian, tmp_path):
    theta, x = simulated(300, seed=5)
    found = gaussian.calibration(theta, x, 30)
    assert found.ranks.shape == (300, 2) and min(*found.p_values, found.tarp_p_value) > 0.01
    assert (
        str(found).startswith("p = ")
        and "θ0: p = " in str(found)
        and "300 pairs, 30 draws each" in str(found)
    )
    found.plot(tmp_path / "calibration.png", ["mass", "charge"])
    assert (tmp_path / "calibration.png").read_bytes()[:4] == b"\x89PNG"


def test_calibrated_curves_stay_in_the_band_of_the_figure(tmp_path, monkeypatch):
    """Of 1,000 curves of 300 uniform ranks 95 % stay in it at all levels, and not many more:
    Kolmogorov's law.
    """
    bands, ranks = [], np.random.default_rng(0).integers(0, 1001, (1000, 300))
    monkeypatch.setattr(
        Axes, "fill_between", lambda axes, x, low, high, **_: bands.append((low, high))
    )
    Calibration(ranks[:1].T, ranks[0], 1000).plot(tmp_path / "calibration.png")
    low, high = bands[0]
    curves = np.stack([Calibration(ranks[:1].T, tarp, 1000).coverage(LEVELS) for tarp in ranks])
    assert 0.93 < ((curves >= low) & (curves <= high)).all(1).mean() < 0.98


def test_coverage_finds_a_posterior_that_ignores_x(gaussian, monkeypatch):
    """Draws of the prior: their ranks are uniform, and the ranks of distances from a reference near
    θ are not.
    """
    prior = np.random.default_rng(0).normal(size=(300, 60, 2))
    monkeypatch.setattr(gaussian, "_sample", lambda *_: prior)
    found = gaussian.calibration(*simulated(300, seed=5), 60)
    assert found.p_values.min() > 0.01 and found.tarp_p_value < 1e-3


# ── observations unlike the simulated ones ────────────────────────────────────────────────────────


def test_an_observation_unlike_the_simulated_ones_warns(gaussian, recwarn, coarse):
    gaussian.sample(2, simulated(500, seed=6)[1])
    assert not recwarn
    for x in ([30.0, 0.0, 0.0], simulated(1)[1][0] + [0.0, 9.0, 0.0]):
        with pytest.warns(
            UserWarning, match="x is unlike the simulated ones: 1 of 1 is farther from their centre"
        ):
            gaussian.log_prob(np.zeros((1, 2)), x)


@pytest.mark.parametrize("tails", [np.inf, 2.0])
def test_fresh_rows_are_familiar_and_those_against_the_correlation_are_not(tails):
    numbers = np.random.default_rng(0)
    root = np.linalg.cholesky([[1.0, 0.95], [0.95, 1.0]])
    many = numbers.normal(size=(3, 1000, 2)) @ root.T
    many = (
        many if np.isinf(tails) else many / np.sqrt(numbers.chisquare(tails, (3, 1000, 1)) / tails)
    )
    familiar = Familiar(np.c_[many[0], np.full(1000, 7.0)])
    assert (familiar.distance(np.c_[many[1], np.full(1000, 7.0)]) > familiar.limit).sum() <= 5
    strange = np.array([[100.0, -100.0, 7.0], [0.0, 0.0, 9.0], [1e9, 1e9, 7.0]])
    assert (familiar.distance(strange) > familiar.limit).all()


# ── embeddings ────────────────────────────────────────────────────────────────────────────────────


def images(n, seed=0):
    """θ ~ N(0, 1), and images in which sin 2θ times a pattern is hidden by noise."""
    numbers = np.random.default_rng(seed)
    theta, pattern = numbers.normal(size=(n, 1)), np.random.default_rng(9).normal(size=(1, 1, 4, 4))
    return theta, (theta**2)[:, :, None, None] * pattern + 0.3 * numbers.normal(size=(n, 1, 4, 4))


def test_an_embedding_is_trained_with_the_posterior(coarse):
    """x tells |θ|: the density of images beside that of their numbers without an embedding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.SiLU(), nn.Linear(16, 2))
    before = [parameter.clone() for parameter in net.parameters()]
    options = SMALL | {"max_steps": 100, "width": 16, "learning_rate": 1e-2, "dropout": 0.0}
    theta, x = images(600)
    posterior = PosteriorEstimator(embedding=net, **options).fit(theta, x)
    assert all((a == b).all() for a, b in zip(before, net.parameters(), strict=True))
    fresh, at = images(60, seed=1)
    log_p = posterior.log_prob(fresh, at)
    assert log_p.mean() > norm.logpdf(fresh).mean() + 0.3
    assert posterior.sample(3, at[0]).shape == (3, 1) and posterior.sample(3, at[:2]).shape == (
        2,
        3,
        1,
    )
    assert pickle.loads(pickle.dumps(posterior)).log_prob(fresh[:3], at[:3]) == pytest.approx(
        log_p[:3], abs=1e-5
    )


def test_the_estimator_validates_on_rows_that_trained_no_embedding(monkeypatch):
    seen = {}
    fitted, trained = Fits.fitted, summaries.trained

    def watched(self, training, validation, *rest):
        seen["second"] = np.sort(validation[0][:, 0])
        return fitted(self, training, validation, *rest)

    def first(embedding, theta, x, is_valid, options):
        seen["first"] = np.sort(theta[is_valid, 0])
        return trained(embedding, theta, x, is_valid, options)

    monkeypatch.setattr(Fits, "fitted", watched)
    monkeypatch.setattr(summaries, "trained", first)
    PosteriorEstimator(embedding=nn.Flatten(), **SMALL).fit(*images(50))
    assert (seen["first"] == seen["second"]).all() and len(seen["first"]) == 5


class Noting(nn.Flatten):
    """Notes the first pixel of each image that takes part in a gradient."""

    noted: ClassVar[set[float]] = set()

    def forward(self, x):
        if torch.is_grad_enabled():
            self.noted.update(x[:, 0, 0, 0].tolist())
        return super().forward(x)


def test_an_embedding_is_trained_on_all_rows_but_those_of_validation():
    (theta, x), is_valid = images(50), np.arange(50) < 20
    options = DensityEstimator(**SMALL | {"max_steps": 20})
    summaries.trained(Noting(), theta, x, is_valid, options)
    standardised = (x[~is_valid, 0, 0, 0] - x.mean()) / x.std(ddof=1)
    assert sorted(Noting.noted) == pytest.approx(sorted(standardised), abs=1e-5)


def test_whole_parameters_may_be_on_the_box_and_have_no_gradient(coarse):
    theta, x = boxed(60)
    theta[:, 1] //= 1
    counts = PosteriorEstimator(([-1, 0], [1, 3]), discrete=(1,), **SMALL).fit(theta, x)
    assert set(counts.sample(50, x[0], random_state=0)[:, 1]) <= {0.0, 1.0, 2.0, 3.0}
    assert counts.calibration(theta, x, 5).ranks.shape == (60, 2)
    with pytest.raises(ValueError, match="theta must have no discrete column"):
        counts.grad_log_prob(theta[:1], x[0])


# ── one model of parameters and observations ──────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def joint():
    """Of a linear Gaussian simulator, where 30 % of the entries of x are missing, and some
    simulations failed.
    """
    theta, x = simulated(4000)
    x[np.random.default_rng(1).uniform(size=x.shape) < 0.3] = np.nan
    x[:5] = np.nan
    options = {"max_components": 1, "width": 8, "depth": 1, "max_steps": 0, "random_state": 0}
    with pytest.warns(
        UserWarning, match=r"left out \d+ of 4000 simulations, whose x is NaN throughout"
    ):
        return PosteriorEstimator(STANDARD, estimator=JointDensityEstimator(**options)).fit(
            theta, x
        )


def law_of_some(x):
    """p(θ|x) in closed form where entries of x are missing."""
    there = ~np.isnan(x)
    covariance = np.linalg.inv(np.eye(2) + A[there].T @ A[there] / NOISE**2)
    return multivariate_normal(covariance @ A[there].T @ x[there] / NOISE**2, covariance)


def test_a_posterior_at_missing_entries_is_that_of_the_closed_form(joint):
    x = np.array([[0.5, np.nan, -1.0], [np.nan, np.nan, 2.0], [1.0, 0.0, 0.3]])
    theta = np.array([[0.3, -0.2]])
    for row, draws in zip(x, joint.sample(4000, x, random_state=0), strict=True):
        exact = law_of_some(row)
        assert draws.mean(0) == pytest.approx(exact.mean, abs=0.08)
        assert np.cov(draws.T) == pytest.approx(exact.cov, abs=0.08)
        assert joint.log_prob(theta, row)[0] == pytest.approx(exact.logpdf(theta[0]), abs=0.08)
        assert joint.grad_log_prob(theta, row)[0] == pytest.approx(
            -np.linalg.solve(exact.cov, theta[0] - exact.mean), abs=0.15
        )
    mode, _ = joint.mode(x[1])
    assert mode == pytest.approx(law_of_some(x[1]).mean, abs=0.1)


def test_ranks_are_uniform_where_entries_are_missing(joint):
    theta, x = simulated(400, seed=2)
    x[np.random.default_rng(3).uniform(size=x.shape) < 0.3] = np.nan
    assert joint.calibration(theta, x, n=99).p_value > 0.01


def test_one_model_has_the_likelihood_too(joint):
    theta, x = simulated(50, seed=4)
    exact = norm(theta @ A.T, NOISE).logpdf(x).sum(1)
    assert np.abs(joint.log_likelihood(x, theta) - exact).mean() < 0.1
    x[:, 1] = np.nan
    exact = norm((theta @ A.T)[:, [0, 2]], NOISE).logpdf(x[:, [0, 2]]).sum(1)
    assert np.abs(joint.log_likelihood(x, theta) - exact).mean() < 0.1


JOINT = {"max_components": 2, "width": 8, "depth": 1, "max_steps": 0, "random_state": 0}


def slopes(posterior, theta, row):
    """∂ log p/∂θ by differences of the scores, (d,)."""
    step = 1e-4 * np.eye(len(theta))
    return (posterior.log_prob(theta + step, row) - posterior.log_prob(theta - step, row)) / 2e-4


@pytest.fixture(scope="module")
def mixed():
    """Of θ ~ N(0, 1), and x of a number, a binary one and one that is 0 in many rows, whose odds
    depend on θ.
    """
    numbers = np.random.default_rng(0)
    theta = numbers.normal(size=(2000, 1))
    flag = numbers.uniform(size=theta.shape) < 1 / (1 + np.exp(-4 * theta))
    rain = np.where(
        numbers.uniform(size=theta.shape) < 0.4,
        0.0,
        np.exp(theta + 0.3 * numbers.normal(size=theta.shape)),
    )
    x = np.hstack([theta + numbers.normal(size=theta.shape), flag, rain])
    estimator = JointDensityEstimator(
        categories=(2,), spikes={3: 0}, bounds={3: (0, None)}, **JOINT
    )
    return PosteriorEstimator(estimator=estimator).fit(theta, x)


def test_gradients_and_modes_depend_on_categories_and_spikes_of_x(mixed):
    rows = np.array([[0.3, 0.0, 0.0], [0.3, 1.0, 0.0], [0.3, 0.0, 1.2], [0.3, 1.0, 1.2]])
    at = np.array([0.4])
    exact = np.array([slopes(mixed, at, row) for row in rows])
    assert np.abs(np.diff(exact, axis=0)).min() > 0.2
    found = np.array([mixed.grad_log_prob(at, row)[0] for row in rows])
    assert found == pytest.approx(exact, abs=0.02)
    grid = np.linspace(-3, 3, 601)[:, None]
    for row in rows[:2]:
        mode, value = mixed.mode(row)
        log_p = mixed.log_prob(grid, row)
        assert mode == pytest.approx(grid[log_p.argmax()], abs=0.03) and value == pytest.approx(
            log_p.max(), abs=1e-2
        )


def test_a_networks_gradient_knows_categories_and_spikes_of_x(mixed):
    """Of a network that adds something: its log p in steps beside that of the scores, at four kinds
    of x.
    """
    posterior = copy.deepcopy(mixed)
    torch.manual_seed(0)
    torch.nn.init.normal_(posterior.estimator_.model_.score.backbone.mlp.output.weight, std=0.1)
    rows = np.array([[0.3, 0.0, 0.0], [0.3, 1.0, 0.0], [0.3, 0.0, 1.2], [0.3, 1.0, 1.2]])
    at = np.full((4, 1), 0.4)
    value, slope = log_prob_with_gradient(posterior._density, at, rows, 48)
    assert value == pytest.approx(posterior.log_prob(at, rows), abs=0.03)
    assert np.abs(value - mixed.log_prob(at, rows)).max() > 0.1  # the network counts
    sides = [
        log_prob_with_gradient(posterior._density, at + step, rows, 48)[0] for step in (0.01, -0.01)
    ]
    assert slope[:, 0] == pytest.approx((sides[0] - sides[1]) / 0.02, abs=0.02)


def test_a_gradient_of_spiked_parameters_is_of_their_density():
    """The value of which it is the slope has the probability that θ is none of the spikes."""
    numbers = np.random.default_rng(0)
    theta = np.where(numbers.uniform(size=(1000, 1)) < 0.3, 0.0, 1 + numbers.normal(size=(1000, 1)))
    x = theta + numbers.normal(size=theta.shape)
    posterior = PosteriorEstimator(estimator=JointDensityEstimator(spikes={0: 0}, **JOINT)).fit(
        theta, x
    )
    value, slope = log_prob_with_gradient(
        posterior._density, np.array([[0.7], [0.0]]), np.array([[0.5]]), 24
    )
    assert slope[0] == pytest.approx(slopes(posterior, np.array([0.7]), [0.5]), abs=0.02)
    assert value[0] == pytest.approx(posterior.log_prob([0.7], [0.5])[0], abs=0.02)
    assert np.isneginf(value[1]) and np.isnan(slope[1])


@pytest.mark.parametrize("has_gaps", [False, True])
def test_a_constant_entry_of_x_leaves_gradients_and_modes(has_gaps):
    theta, x = simulated(400)
    x[:, 1] = 7.0
    x[:100, 0] = np.where(has_gaps, np.nan, x[:100, 0])
    options = JOINT | {"max_components": 1}
    estimator = None if has_gaps else JointDensityEstimator(**options)
    options = SMALL if has_gaps else {}
    with pytest.warns(UserWarning, match="x has gaps|all have the same value"):
        posterior = PosteriorEstimator(estimator=estimator, **options).fit(theta, x)
    row, at = np.array([0.5, 7.0, -1.0]), np.array([0.3, -0.2])
    exact = np.array([slopes(posterior, at, row)])
    assert posterior.grad_log_prob(at, row) == pytest.approx(exact, abs=0.02)
    covariance = np.linalg.inv(np.eye(2) + A[[0, 2]].T @ A[[0, 2]])
    assert posterior.mode(row)[0] == pytest.approx(covariance @ A[[0, 2]].T @ row[[0, 2]], abs=0.25)


def test_observations_and_parameters_outside_of_their_bounds_have_no_density(mixed):
    outside, theta = np.array([0.3, 1.0, -1.0]), np.array([[0.4]])
    assert (
        np.isneginf(mixed.log_prob(theta, outside))
        and np.isnan(mixed.grad_log_prob(theta, outside)).all()
    )
    for use in (lambda: mixed.sample(3, outside), lambda: mixed.mode(outside)):
        with pytest.raises(ValueError, match="column 3 must be inside of its bounds, got -1"):
            use()
    theta, x = boxed(200)
    posterior = PosteriorEstimator(([-1, 0], [1, 4]), estimator=JointDensityEstimator(**JOINT)).fit(
        theta, x
    )
    at = np.array([[0.5, 1.0], [1.5, 1.0], [-7.0, 1.0], [0.5, -0.1]])
    assert np.isneginf(posterior.log_likelihood(x[0], at)).tolist() == [False, True, True, True]
    assert np.isneginf(posterior.log_prob(at, x[0])).tolist() == [False, True, True, True]


@pytest.mark.filterwarnings("ignore:the network found nothing", "ignore:max_seconds ended")
def test_gaps_choose_one_model_of_both_with_the_options_that_were_given():
    theta, x = simulated(300)
    x[:100, 1] = np.nan
    with pytest.warns(
        UserWarning, match=r"x has gaps \(NaN\): a JointDensityEstimator of theta and x together is"
    ):
        model = PosteriorEstimator(STANDARD, **SMALL | {"max_steps": 20, "depth": 2}).fit(theta, x)
    options = JointDensityEstimator().get_params() | SMALL | {"max_steps": 20, "depth": 2}
    options.pop("n_models")
    assert model.estimator_.get_params() == options | {"bounds": model.prior_.bounds}
    assert model.estimator_.ended_[0] == 20
    row = np.array([0.5, np.nan, -1.0])
    assert model.sample(2000, row, random_state=0).mean(0) == pytest.approx(
        law_of_some(row).mean, abs=0.3
    )
