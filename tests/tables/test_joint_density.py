"""Mixtures of numbers and categories with missing entries, and the joint density of a table: any
question.
"""

import io
import itertools
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_normal, norm, truncnorm
from sklearn.utils.estimator_checks import check_estimator

from indm import INDM, VPSDE, JointDensityEstimator
from indm.conditions import Vector
from indm.flows import Identity
from indm.score import ScoreModel
from indm.tables import conditional, joint_fit, mixture
from indm.tables.encoding import are_missing
from indm.tables.fit import MIXTURE_SHARE
from indm.tables.joint_fit import JointTraining
from indm.tables.masked import MaskedMixtureMLP
from indm.tables.mixture import JointMixture, best_joint_mixture
from indm.tables.questions import Questions

# In the few steps of SMALL; and where the machine is busy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the network found nothing",
    "ignore:max_seconds ended",
    "ignore:column .* of its rows, where the density",
)

SMALL = {"max_components": 2, "width": 8, "depth": 1, "max_steps": 5, "random_state": 0}
NAMES = ["height", "weight", "smoker", "rain"]


def people(n, seed=0, missing=0.1):
    """Height, weight by height, smoker by weight, and rain that is 0 or by height."""
    numbers = np.random.default_rng(seed)
    height = numbers.normal(size=n)
    weight = height + 0.5 * numbers.normal(size=n)
    smoker = np.where(numbers.uniform(size=n) < 1 / (1 + np.exp(-2 * weight)), "yes", "no")
    rain = np.where(
        numbers.uniform(size=n) < 0.4, 0.0, np.exp(0.5 * height + 0.5 * numbers.normal(size=n))
    )
    rows = np.empty((n, 4), dtype=object)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = height, weight, smoker, rain
    rows[numbers.uniform(size=(n, 4)) < missing] = None
    return rows


@pytest.fixture(scope="module")
def model():
    options = SMALL | {"max_steps": 100, "width": 16, "learning_rate": 1e-2}
    return JointDensityEstimator(spikes={3: 0}, bounds={3: (0, None)}, **options).fit(people(800))


# ── Mixtures ──────────────────────────────────────────────────────────────────────────────────────


def test_expectation_maximisation_climbs_with_missing_entries_and_categories(monkeypatch):
    numbers, values = np.random.default_rng(0), []
    z = numbers.normal(size=(400, 3)) + 3 * numbers.integers(0, 2, (400, 1))
    hot = np.eye(3)[numbers.integers(0, 3, 400)]
    z[numbers.uniform(size=z.shape) < 0.3], hot[::5] = np.nan, 0
    expected = JointMixture._expected
    monkeypatch.setattr(
        JointMixture, "_expected", lambda law, *rows: _kept(values, expected(law, *rows))
    )
    monkeypatch.setattr(mixture, "LEAST_CHANGE", -np.inf)
    monkeypatch.setattr(mixture, "COUNT", 0.0)
    law = JointMixture.fitted(z, hot, (3,), 3, 0.0, 0)
    assert len(values) == mixture.EM_STEPS and np.diff(values).min() > -1e-5
    assert values[-1] <= law.log_prob(z, hot).mean() + 1e-9 < values[-1] + 0.01


def _kept(values, found):
    values.append(found[3])
    return found


@pytest.mark.parametrize("draws", [1, 3])
def test_a_row_far_from_all_others_does_not_choose_a_mixture(draws):
    """The second law is better in all rows but one, which stands ``draws`` times; the third is
    worse in all.
    """
    numbers = np.random.default_rng(0)
    values = numbers.normal(size=(3, 60 * draws)) * 0.1 + [[0.0], [0.2], [-0.2]]
    values[1, : 1 * draws] = -1e9
    laws = [SimpleNamespace(log_prob=lambda value=value: value) for value in values]
    ladder = [(k, 0.0) for k in range(3)]
    assert mixture.best_of(ladder, lambda k, floor: laws[k], (), np.inf, draws) is laws[1]


def test_tails_count_in_a_choice_up_to_ten_nats_a_row():
    gains = np.array([0.5, 1.5, -40.0, 10.0, 99.0, 99.0])
    assert mixture.bounded(gains, 2).tolist() == [1.0, -10.0, 10.0]


def test_shares_of_categories_are_shrunk_towards_those_of_all_rows(monkeypatch):
    """A count of one row of the whole table's shares is added to those of each component, and 1e-3
    to each value.
    """
    z, hot = np.array([[-9.0]] * 20 + [[9.0]] * 20), np.eye(2).repeat(20, 0)
    law = JointMixture.fitted(z, hot, (2,), 2, 1e-2, 0)
    expected = [(20 + 0.5 + 1e-3) / 21.002, (0.5 + 1e-3) / 21.002]
    assert sorted(np.exp(law.log_share).ravel()) == pytest.approx(sorted(expected * 2), rel=1e-6)


def test_a_gaussian_is_found_where_missing_depends_on_what_is_there(monkeypatch):
    """The second number is missing where the first is above 0: the mean of the others is off by
    half a deviation.
    """
    monkeypatch.setattr(mixture, "LEAST_CHANGE", 0.0)
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(4_000, 1))
    z = np.concatenate([x, x + 0.5 * numbers.normal(size=x.shape)], 1)
    z[z[:, 0] > 0, 1] = np.nan
    law = JointMixture.fitted(z, np.zeros((4_000, 0)), (), 1, 0.0, 0)
    assert law.mean[0] == pytest.approx([0, 0], abs=0.06)
    assert law.covariance[0] == pytest.approx(np.array([[1, 1], [1, 1.25]]), abs=0.1)


@pytest.mark.parametrize(
    "entries", [mixture.LAW_ENTRIES, 40], ids=["one part", "parts of two sets"]
)
def test_expected_values_are_those_of_each_component_alone(entries, monkeypatch):
    """Row by row, by the conditional law of the missing numbers, a row without any and one with all
    among them.
    """
    numbers = np.random.default_rng(0)
    bases = numbers.normal(size=(2, 3, 3))
    covariance = bases @ bases.swapaxes(1, 2) + 0.1 * np.eye(3)
    law = JointMixture(
        np.array([0.3, 0.7]), numbers.normal(size=(2, 3)), covariance, np.zeros((2, 0))
    )
    z = numbers.normal(size=(9, 3))
    z[:8][~np.array(list(itertools.product([False, True], repeat=3)))] = np.nan
    monkeypatch.setattr(mixture, "LAW_ENTRIES", entries)
    parts = mixture.patterns(z, 2)
    assert len(parts) == (4 if entries == 40 else 1)
    share, filled, rest, value = law._expected(z, np.zeros((9, 0)), parts)
    expected, scatter = np.zeros((9, 2)), np.zeros((2, 3, 3))
    for (i, x), (k, mean) in itertools.product(enumerate(z), enumerate(law.mean)):
        m, own = np.isnan(x), covariance[k]
        slope = np.linalg.solve(own[np.ix_(~m, ~m)], own[np.ix_(~m, m)])
        np.testing.assert_allclose(filled[k, i][m], mean[m] + (x - mean)[~m] @ slope)
        scatter[k][np.ix_(m, m)] += share[i, k] * (own[np.ix_(m, m)] - own[np.ix_(m, ~m)] @ slope)
        log_p = (
            multivariate_normal.logpdf(x[~m], mean[~m], own[np.ix_(~m, ~m)]) if not m.all() else 0.0
        )
        expected[i, k] = log_p + np.log(law.weight[k])
    np.testing.assert_allclose(rest, scatter)
    np.testing.assert_allclose(np.exp(expected) / np.exp(expected).sum(1, keepdims=True), share)
    assert value == pytest.approx(np.log(np.exp(expected).sum(1)).mean())


def test_components_of_categories_are_found():
    numbers = np.random.default_rng(0)
    kind = numbers.integers(0, 2, 1_000)
    z = numbers.normal(size=(1_000, 1)) + 6 * kind[:, None]
    hot = np.eye(2)[np.where(numbers.uniform(size=1_000) < 0.9, kind, 1 - kind)]
    law = best_joint_mixture((z[:800], hot[:800]), (z[800:], hot[800:]), (2,), 3, 0, np.inf)
    truth = np.log(0.5) - 0.5 * np.log(2 * np.pi * np.e) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1)
    assert law.log_prob(z[800:], hot[800:]).mean() == pytest.approx(truth, abs=0.1)


# ── The estimator ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:few values", "ignore:log p is off by")  # its data
@pytest.mark.long
def test_scikit_learns_own_checks(coarse):
    check_estimator(
        JointDensityEstimator(**SMALL | {"max_steps": 1, "max_components": 1}), on_skip=None
    )


@pytest.mark.parametrize("solved", [False, True], ids=["closed form", "ODE"])
def test_without_a_step_it_is_the_mixture_of_each_question(solved, monkeypatch):
    if solved:
        monkeypatch.setattr(MaskedMixtureMLP, "is_mixture", False)
    tol = 0.05 if solved else 2e-3
    numbers = np.random.default_rng(0)
    X = numbers.normal(size=(300, 3)) @ numbers.normal(size=(3, 3)) + 5
    X[::4, 1] = np.nan
    fitted = JointDensityEstimator(**SMALL | {"max_steps": 0}).fit(X)
    net, encoding = fitted.model_.score.backbone, fitted.encoding_
    law = JointMixture(
        *(part.numpy() for part in (net.weight, net.mean, net.covariance, net.log_share))
    )
    z, volume, none = encoding.latents(X), encoding.log_volume(X), np.zeros((300, 0))
    expected = law.log_prob(z, none) + np.nansum(volume, 1)
    np.testing.assert_allclose(fitted.score_samples(X[:20]), expected[:20], atol=tol)
    only = np.where([True, False, False], z, np.nan)
    conditional = expected - law.log_prob(only, none) - volume[:, 0]
    np.testing.assert_allclose(fitted.score_samples(X[:20], given=[0]), conditional[:20], atol=tol)


def test_each_question_has_all_probability(model):
    """Numbers by quadrature, categories and spikes one by one."""
    points = np.linspace(-6, 6, 61)
    rows = np.empty((2 * 61, 4), dtype=object)
    rows[:, 1], rows[:, 2] = np.tile(points, 2), np.repeat(["yes", "no"], 61)
    joined = np.exp(model.score_samples(rows)).reshape(2, 61)
    assert (joined.sum() * 0.2) == pytest.approx(1, abs=0.01)
    rows[:, 0] = 0.7
    assert np.exp(model.score_samples(rows, given=[0])).sum() * 0.2 == pytest.approx(1, abs=0.01)
    rain = np.empty((62, 4), dtype=object)
    line = np.linspace(-6, 4, 61)
    rain[:, 0], rain[:, 3] = -0.3, [0.0, *np.exp(line)]
    density = np.exp(model.conditional({0: -0.3}).score_samples(rain))
    assert density[0] + (density[1:] * np.exp(line)).sum() * (line[1] - line[0]) == pytest.approx(
        1, abs=0.01
    )
    assert 0.25 < density[0] < 0.55


def test_a_mask_gives_each_row_its_own_entries(model):
    X = people(6, 1, 0)
    given = np.array([[0, 1, 0, 0], [0, 0, 1, 0]] * 3, dtype=bool)
    found = model.score_samples(X, given=given)
    for rows, column in ((slice(0, None, 2), 1), (slice(1, None, 2), 2)):
        np.testing.assert_allclose(
            found[rows], model.score_samples(X[rows], given=[column]), atol=1e-3
        )
    with pytest.raises(ValueError, match=r"\(2,4\) +and requested shape \(6,4\)"):
        model.score_samples(X, given=given[:2])


def test_draws_follow_the_density_and_keep_what_is_given(model):
    drawn = model.conditional({0: 1.5}).sample(400, 0)
    assert drawn.shape == (400, 4) and (drawn[:, 0] == 1.5).all()
    assert drawn[:, 1].astype(float).mean() == pytest.approx(1.5, abs=0.15)
    assert np.mean(drawn[:, 2] == "yes") > 0.85
    rain = drawn[:, 3].astype(float)
    assert (rain >= 0).all() and 0.25 < np.mean(rain == 0) < 0.55
    assert np.mean(model.conditional({2: "no"}).sample(400, 0)[:, 1].astype(float)) < -0.2


def test_a_smoker_is_as_likely_as_the_probability_says(model):
    rows = np.empty((2, 4), dtype=object)
    rows[:, 1], rows[:, 2] = 1.0, ["yes", "no"]
    yes, no = np.exp(model.score_samples(rows, given=[1]))
    assert yes + no == pytest.approx(1, abs=1e-6) and yes == pytest.approx(
        1 / (1 + np.exp(-2)), abs=0.08
    )


def test_dependent_categories_have_their_joint_law():
    """l is either of two, x is −3 or 3 by l, and L is l in 92 % of the rows: in closed form, and in
    draws.
    """
    numbers = np.random.default_rng(0)
    rows = np.empty((1000, 3), dtype=object)
    left = numbers.uniform(size=1000) < 0.5
    same = numbers.uniform(size=1000) < 0.92
    rows[:, 0] = np.where(left, -3.0, 3.0) + 0.5 * numbers.normal(size=1000)
    rows[:, 1], rows[:, 2] = np.where(left, "l", "r"), np.where(left == same, "L", "R")
    fitted = JointDensityEstimator(**SMALL | {"max_steps": 0}).fit(rows)
    pairs = np.array([[None, a, b] for a in "lr" for b in "LR"], dtype=object)
    assert np.exp(fitted.score_samples(pairs)) == pytest.approx([0.46, 0.04, 0.04, 0.46], abs=0.04)
    assert np.exp(fitted.score_samples(pairs, given=[1])) == pytest.approx(
        [0.92, 0.08, 0.08, 0.92], abs=0.04
    )
    drawn = fitted.sample(400, 0)
    is_left = drawn[:, 1] == "l"
    assert np.mean(is_left == (drawn[:, 2] == "L")) == pytest.approx(0.92, abs=0.06)
    x = drawn[:, 0].astype(float)
    assert (x[is_left].mean(), x[~is_left].mean()) == pytest.approx((-3, 3), abs=0.4)


@pytest.fixture(scope="module")
def gaussian():
    """Three dependent numbers, a category that is "high" where the first is above 0, and gaps: in
    closed form.
    """
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(1500, 3)) @ np.array(
        [[1.0, 0.8, 0.5], [0.0, 0.6, -0.4], [0.0, 0.0, 0.7]]
    ) + [5, 0, 0]
    X = np.empty((1500, 4), dtype=object)
    X[:, :3], X[:, 3] = x, np.where(x[:, 1] > 0, "high", "low")
    X[::3, 2], X[::6, 3] = None, None
    options = SMALL | {"max_steps": 0, "max_components": 1}
    return JointDensityEstimator(**options).fit(X[:, :3].astype(float)), JointDensityEstimator(
        **options
    ).fit(X)


def test_each_cell_has_the_law_that_the_rest_of_its_row_leaves(gaussian):
    """Of a Gaussian with precision P that is N(m_i − Σ P_ij (x_j − m_j)/P_ii, 1/P_ii); without the
    third, of two.
    """
    fitted, net = gaussian[0], gaussian[0].model_.score.backbone
    X = np.array([[5.5, 1.0, 0.2], [4.0, 1.5, np.nan], [np.nan, -1.0, -1.0]])
    z, expected = fitted.encoding_.latents(X), fitted.encoding_.log_volume(X)
    for row, there in enumerate(~np.isnan(X)):
        P = np.linalg.inv(net.covariance[0].numpy()[np.ix_(there, there)])
        # P_ii times the distance of each from its conditional mean
        pull = P @ (z[row] - net.mean[0].numpy())[there]
        expected[row, there] += 0.5 * (np.log(np.diag(P) / (2 * np.pi)) - pull**2 / np.diag(P))
    np.testing.assert_allclose(fitted.log_prob_cells(X), expected, atol=2e-3)
    truth = (
        0.5 * np.log(1 / 0.36 / (2 * np.pi)) - 0.5 * (1.5 + 0.8) ** 2 / 0.36
    )  # the second given the first: N(−0.8, 0.36)
    assert fitted.log_prob_cells(X)[1, 1] == pytest.approx(truth, rel=0.1)


def test_an_odd_cell_does_not_make_the_others_odd(gaussian):
    X = np.array([[5.5, 0.4, 0.2]] * 2)
    X[1, 1] = 400.0
    usual, odd = gaussian[0].log_prob_cells(X)
    alone = gaussian[0].log_prob_cells(np.where([True, False, True], X[:1], np.nan))[0]
    assert odd[1] < usual[1] - 1000
    np.testing.assert_allclose(odd[[0, 2]], alone[[0, 2]], atol=1e-3)
    X[1, 2] = np.nan
    filled = [gaussian[0].impute(X[1:], random_state=seed)[0] for seed in range(20)]
    assert (
        np.mean([row[2] for row in filled]) == pytest.approx(0.25, abs=0.6) and filled[0][1] == 400
    )


def test_cells_of_categories_have_probabilities(gaussian):
    X = np.array([[5.0, 0.1, None, "high"], [5.0, 0.1, None, "low"]], dtype=object)
    found = gaussian[1].log_prob_cells(X)
    assert np.exp(found[:, 3]).sum() == pytest.approx(1, abs=1e-6) and np.isnan(found[:, 2]).all()
    np.testing.assert_allclose(
        found[:, 3], gaussian[1].score_samples(X, given=[0, 1, 2]), atol=1e-6
    )


def test_draws_given_a_range_follow_the_truncated_law(gaussian):
    """x in (5.5, 6.5) is a truncated normal number; the second number is 0.8 (x − 5) and noise of
    deviation 0.6.
    """
    drawn = gaussian[0].conditional({0: (5.5, 6.5)}).sample(800, 0)
    x, law = drawn[:, 0], truncnorm(0.5, 1.5, 5.0, 1.0)
    assert drawn.shape == (800, 3) and (x > 5.5).all() and (x < 6.5).all()
    assert kstest(x, law.cdf).pvalue > 1e-3
    assert drawn[:, 1].mean() == pytest.approx(0.8 * (law.mean() - 5), abs=0.12)
    assert (drawn[:, 1] - 0.8 * (x - 5)).std() == pytest.approx(0.6, abs=0.08)
    both = gaussian[1].conditional({1: (0.5, None), 3: "high", 2: (None, 0)}).sample(30, 0)
    assert (both[:, 1] >= 0.5).all() and (both[:, 2] <= 0).all() and (both[:, 3] == "high").all()


def test_draws_with_gaps_have_those_of_the_table(gaussian):
    """A third of the rows lacks the third number, half of these the category, too, and no other row
    does.
    """
    missing = are_missing(gaussian[1].sample(900, 0, gaps=True))
    assert not missing[:, :2].any() and not (missing[:, 3] & ~missing[:, 2]).any()
    assert missing[:, 2].mean() == pytest.approx(1 / 3, abs=0.06)
    assert missing[:, 3].mean() == pytest.approx(1 / 6, abs=0.05)
    given = gaussian[1].conditional({3: "low"}).sample(200, 0, gaps=True)
    assert (given[:, 3] == "low").all() and are_missing(given[:, 2]).any()


RANGES = {
    "order": (
        {0: (6, 5)},
        r"a range in given must be a lower and a higher number or None, got \(6, 5\) of column 0",
    ),
    "three": ({0: (1, 2, 3)}, "a range in given must be a lower and a higher number"),
    "category": ({3: ("a", "b")}, "column 3 must hold one of high, low, got 'a' in row 0"),
    "numbers of a category": ({3: (0, 1)}, "column 3 must hold one of high, low, got 0 in row 0"),
    "rare": (
        {0: (1000, None)},
        r"0 of \d\d,\d{3} draws in them, too few for n_samples=5; widen them",
    ),
}


@pytest.mark.parametrize("case", RANGES)
def test_ranges_without_draws_are_refused(case, gaussian, monkeypatch):
    monkeypatch.setattr(conditional, "MOST_DRAWN", 20_000)
    given, message = RANGES[case]
    with pytest.raises(ValueError, match=message):
        gaussian[1].conditional(given).sample(5, 0)


def test_a_range_around_a_spike_draws_the_spike(model):
    spikes = model.conditional({3: (-1, 1e-9)}).sample(5, 0)
    assert (spikes[:, 3] == 0).all()
    with pytest.raises(ValueError, match="score_samples needs values in given, not ranges"):
        model.conditional({3: (0, 1)}).score_samples(people(2))


def test_the_mixture_has_its_share_of_the_time(monkeypatch, coarse):
    left, fit = [], joint_fit.best_joint_mixture

    def noted(*arguments):
        left.append(arguments[-1] - time.perf_counter())
        return fit(*arguments)

    monkeypatch.setattr(joint_fit, "best_joint_mixture", noted)
    JointDensityEstimator(**SMALL | {"max_seconds": 50}).fit(people(100))
    assert 0 < left[0] <= 50 * MIXTURE_SHARE


def test_missing_entries_are_filled_and_others_stay(model):
    X = people(60, 3, 0.3)
    missing = are_missing(X)
    tables = model.impute(X, 2, random_state=0)
    assert len(tables) == 2 and not are_missing(tables[0]).any()
    assert (tables[0][~missing] == X[~missing]).all()
    assert (tables[0][missing] != tables[1][missing]).any()
    assert model.impute(X, random_state=0).shape == (60, 4)


def test_no_row_depends_on_another(model):
    X = people(9, 5, 0.4)
    np.testing.assert_allclose(model.score_samples(X[3:5]), model.score_samples(X)[3:5], atol=1e-6)


def test_factorisations_differ_by_little(model):
    """log p of a row beside log p(a) + log p(b|a), for columns a that are drawn for each row."""
    X = people(40, 6, 0.0)
    first = np.random.RandomState(0).uniform(size=X.shape) < 0.5
    alone = np.where(first, X, None)
    chain = model.score_samples(alone) + model.score_samples(X, given=first)
    assert np.sqrt(np.square(model.score_samples(X) - chain).mean()) < 0.5


def test_training_learns_what_the_mixture_lacks():
    numbers = np.random.default_rng(0)
    x = numbers.uniform(-3, 3, (2_000, 1))
    X = np.concatenate([x, np.sin(2 * x) + 0.1 * numbers.normal(size=x.shape)], 1)
    options = SMALL | {"width": 32, "max_steps": 200, "max_components": 1, "learning_rate": 1e-2}
    fitted = JointDensityEstimator(**options).fit(X)
    assert fitted.gain_[0] > 10 * fitted.gain_[1] > 0
    assert fitted.n_steps_ > 0 and not fitted.model_.score.backbone.is_mixture


def test_numbers_are_trained_on_the_categories_that_are_asked_with_them():
    """x ~ N(0, 1) and its sign, both asked: a start at which they are independent lacks log 2 nats."""
    torch.manual_seed(0)
    z = torch.randn(900, 1)
    sign, asked, given = (
        torch.cat([z < 0, z >= 0], 1).float(),
        np.ones((900, 1), bool),
        np.zeros((900, 1), bool),
    )
    questions = Questions(asked, given, asked, given)
    net = MaskedMixtureMLP((1,), (2,), 1, 16, 1)
    model = INDM(
        Identity(), ScoreModel(net, VPSDE(eps=1e-4)), shape=(1,), condition=Vector(net.size)
    )
    own = {"questions": questions[:400], "one_hot": sign[:400]}
    training = JointTraining(model, z[:400], torch.zeros(400, 0), 1e-2, 0.0, **own)
    for _ in range(120):
        rows = torch.randint(400, 900, (128,))
        training.update((z[rows], sign[rows], questions[rows.numpy()]), 1.0)
    assert training.validate() and training.gain()[0] == pytest.approx(np.log(2), abs=0.25)


def test_frames_come_back_as_frames():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(people(100), columns=NAMES).infer_objects()
    fitted = JointDensityEstimator(spikes={"rain": 0}, **SMALL).fit(table)
    drawn = fitted.conditional({"smoker": "yes"}).sample(3, 0)
    assert (
        list(drawn.columns) == NAMES
        and (drawn["smoker"] == "yes").all()
        and drawn["height"].dtype == float
    )
    filled = fitted.impute(table, random_state=0)
    assert list(filled.columns) == NAMES and not filled.isna().any().any()
    table["married"] = np.arange(100) % 3 == 0
    fitted = JointDensityEstimator(**SMALL).fit(table.convert_dtypes())
    assert fitted.encoding_.sizes == (2, 2) and set(fitted.sample(9, 0)["married"]) <= {True, False}
    with pytest.raises(ValueError, match=r"given must hold columns of X .*, got 'age'"):
        fitted.conditional({"age": 3})


def test_filled_frames_keep_index_and_kinds():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS, np.arange(30) + 100)
    table[1], table[2], table[3] = (
        pandas.Categorical([4, 7] * 15),
        "same",
        pandas.Categorical([1] * 30),
    )
    table.iloc[5, 0] = np.nan
    with pytest.warns(UserWarning, match="column 2, same, column 3, 1"):
        fitted = JointDensityEstimator(**SMALL).fit(table)
    filled = fitted.impute(table, random_state=0)
    assert (filled.index == table.index).all() and filled[0].drop(105).equals(table[0].drop(105))
    drawn = fitted.sample(9, 0)
    assert (
        list(drawn.columns) == [0, 1, 2, 3]
        and set(drawn[1]) == {4, 7}
        and set(drawn[2]) == {"same"}
    )
    assert np.isfinite(fitted.score(table))


def test_frames_keep_the_kinds_of_their_columns():
    """Fractions of a column of integers that is not discrete stay floats; a refit takes the columns
    for the same.
    """
    pandas = pytest.importorskip("pandas")
    numbers = np.random.default_rng(0)
    kinds = {
        "width": "float32",
        "rooms": "Int64",
        "year": "int64",
        "price": "int64",
        "sold": "boolean",
        "zone": "category",
    }
    whole = numbers.integers(1, 9, (60, 3))
    columns = [numbers.normal(size=60), *whole.T, whole[:, 0] > 4, whole[:, 1] % 3]
    frame = pandas.DataFrame(dict(zip(kinds, columns, strict=True))).astype(kinds)
    holes = frame.copy()
    for i, name in enumerate(("width", "rooms", "sold", "zone")):
        holes.loc[i::9, name] = pandas.NA if name in ("rooms", "sold") else np.nan
    fitted = JointDensityEstimator(discrete=("rooms", "year"), **SMALL | {"max_steps": 0}).fit(
        holes
    )
    filled, drawn = fitted.impute(holes, random_state=0), fitted.sample(9, 0)
    expected = kinds | {"zone": frame.dtypes["zone"]}
    assert filled.dtypes.equals(pandas.Series(expected).map(pandas.api.types.pandas_dtype))
    assert (
        drawn.dtypes.drop("price").equals(filled.dtypes.drop("price"))
        and drawn["price"].dtype == float
    )
    assert fitted.fit(filled).encoding_.sizes == (2, 3)


@pytest.mark.parametrize("steps", [0, 60], ids=["closed form", "trained"])
def test_a_table_of_categories_alone_has_their_joint_law(steps):
    """a is either of two, b is the same in 90 % of the rows, and c is missing throughout."""
    numbers = np.random.default_rng(0)
    rows = np.full((1000, 3), None, dtype=object)
    left, same = numbers.uniform(size=(2, 1000)) < [[0.5], [0.9]]
    rows[:, 0], rows[:, 1] = np.where(left, "l", "r"), np.where(left == same, "L", "R")
    rows[::9, 1] = None
    with pytest.warns(
        UserWarning, match="left out of the density, as fewer than two rows have an entry: column 2"
    ):
        fitted = JointDensityEstimator(**SMALL | {"max_steps": steps}).fit(rows)
    pairs = np.array([[a, b, None] for a in "lr" for b in "LR"], dtype=object)
    assert np.exp(fitted.score_samples(pairs)) == pytest.approx([0.45, 0.05, 0.05, 0.45], abs=0.04)
    assert np.exp(fitted.score_samples(pairs)).sum() == pytest.approx(1, abs=1e-6)
    assert np.exp(fitted.score_samples(pairs, given=[0])) == pytest.approx(
        [0.9, 0.1, 0.1, 0.9], abs=0.04
    )
    drawn, filled = fitted.sample(800, 0), fitted.impute(rows, random_state=0)
    for table in (drawn, filled[::9]):
        assert np.mean((table[:, 0] == "l") == (table[:, 1] == "L")) == pytest.approx(0.9, abs=0.09)
        assert are_missing(table).tolist() == [[False, False, True]] * len(table)


@pytest.mark.parametrize("bounds", [{}, {"height": (0, None)}])
def test_a_number_far_from_all_others_is_named(bounds, coarse):
    pandas = pytest.importorskip("pandas")
    numbers = np.random.default_rng(0)
    rows = np.exp(numbers.normal(5.0, 0.2, size=(300, 2)))
    frame = pandas.DataFrame(rows, columns=["height", "weight"])
    options = SMALL | {"max_steps": 0, "bounds": bounds}
    JointDensityEstimator(**options).fit(frame)  # without a warning
    frame.loc[7, "height"] = 1e5
    with pytest.warns(
        UserWarning, match=r"row 7 of X is far from the others: 100000 in column 0 \(height\)"
    ):
        JointDensityEstimator(**options).fit(frame)


def test_a_column_of_names_is_named():
    rows = ROWS.astype(object)
    rows[:, 1] = [f"row {i // 1.5:.0f}" for i in range(30)]
    with pytest.warns(
        UserWarning, match="column 1 has 20 categories in 30 rows: leave out a column of names"
    ):
        JointDensityEstimator(**SMALL).fit(rows)


@pytest.mark.parametrize(
    "use, message",
    [
        (
            lambda model: model.conditional({3: -1}),
            "column 3 must be inside of its bounds, got -1 in row 0",
        ),
        (
            lambda model: model.impute([[None, 1.0, "yes", -1.0]]),
            "column 3 must be inside of its bounds",
        ),
        (lambda model: model.conditional(["smoker"]), "dictionary"),
        (
            lambda model: model.conditional({}).sample(2.5),
            "float",
        ),
    ],
)
def test_questions_without_an_answer_are_refused(use, message, model):
    with pytest.raises((ValueError, TypeError), match=message):
        use(model)


def test_where_the_network_gains_nothing_the_density_is_the_mixture_in_closed_form(
    monkeypatch, coarse
):
    """With the probabilities of categories, which have a network of their own."""
    X = people(300, missing=0.0)
    monkeypatch.setattr(JointTraining, "gain", lambda training, start=None, end=None: (0.1, 0.06))
    # each step is kept
    monkeypatch.setattr(JointTraining, "is_lower", lambda training, errors, others: True)
    options = SMALL | {"learning_rate": 1e-2, "spikes": {3: 0}}
    found, start = (
        JointDensityEstimator(**options | {"max_steps": steps}).fit(X) for steps in (5, 0)
    )
    monkeypatch.setattr(
        "indm.tables.solve._solved", lambda *arguments: pytest.fail("an ODE is solved")
    )
    for given in ([], [0, 1]):
        exact = start.score_samples(X[:20], given=given)
        assert found.score_samples(X[:20], given=given) == pytest.approx(exact, abs=1e-9)
    assert found.n_steps_ == 0


def test_numbers_depend_on_the_categories_that_are_asked_with_them():
    """x ~ N(±3, 1) by its category, in closed form: log p(x, k) = log ½ + log N(x; ±3, 1)."""
    numbers = np.random.default_rng(0)
    right = numbers.integers(0, 2, 800)
    x = 6.0 * right - 3 + numbers.normal(size=800)
    X = np.stack([x, np.array(["l", "r"])[right]], 1, dtype=object)
    fitted = JointDensityEstimator(**SMALL | {"max_steps": 0}).fit(X)
    rows = np.array([[-3.5, "l"], [-2.0, "l"], [2.0, "r"], [4.0, "r"]], dtype=object)
    exact = np.log(0.5) + norm.logpdf(np.abs(rows[:, 0].astype(float)), 3, 1)
    assert fitted.score_samples(rows) == pytest.approx(exact, abs=0.15)
    alone = rows.copy()
    alone[:, 1] = None
    assert fitted.score_samples(alone) == pytest.approx(exact, abs=0.15)
    assert fitted.score_samples(rows, given=[1]) == pytest.approx(exact - np.log(0.5), abs=0.15)
    wrong = np.array([[3.0, "l"]], dtype=object)
    assert fitted.score_samples(wrong)[0] < np.log(0.5) + norm.logpdf(0) - 3


def test_a_number_outside_of_its_bounds_has_no_density_asked_or_given():
    """v is in (0, 1), and whole numbers in the other column may be on the lower end."""
    numbers = np.random.default_rng(0)
    v, count = numbers.uniform(size=300), numbers.integers(0, 4, 300)
    X = np.stack([v + 0.1 * numbers.normal(size=300), v, count], 1)
    options = SMALL | {"max_steps": 0}
    fitted = JointDensityEstimator(bounds={1: (0, 1), 2: (0, 4)}, discrete=(2,), **options).fit(X)
    rows = np.array(
        [[0.5, 0.999, 0.0], [0.5, 1.5, 0.0], [0.5, -3.0, 0.0], [0.5, 1.0, 0.0], [0.5, 0.5, -1.0]]
    )
    for given in ([], [0], [1, 2], [1], [0, 1, 2]):
        assert np.isneginf(fitted.score_samples(rows, given=given)).tolist() == [
            False,
            True,
            True,
            True,
            True,
        ]
    left_out = np.array([[np.nan, 0.5, np.nan], [0.5, np.nan, np.nan]])
    assert np.isfinite(fitted.score_samples(left_out, given=[1])).all()
    cells = fitted.log_prob_cells(rows)
    assert (
        np.isneginf(cells).argmax(1).tolist() == [0, 1, 1, 1, 2] and np.isneginf(cells).sum() == 4
    )


def test_whole_numbers_have_probabilities_that_sum_to_one():
    numbers = np.random.default_rng(0)
    counts = numbers.binomial(3, 0.5, 300).astype(float)
    X = np.stack([counts, counts + numbers.normal(size=300)], 1)
    fitted = JointDensityEstimator(discrete=(0,), bounds={0: (0, 3)}, **SMALL).fit(X)
    rows = np.stack([np.arange(4.0), np.full(4, 2.0)], 1)
    assert np.exp(fitted.score_samples(rows, given=[1])).sum() == pytest.approx(1, abs=0.01)
    drawn = fitted.sample(50, 0)
    assert set(drawn[:, 0]) <= {0, 1, 2, 3}


def test_constant_columns_come_back_and_others_have_no_density():
    X = np.concatenate([np.random.default_rng(0).normal(size=(100, 2)), np.full((100, 1), 7.0)], 1)
    with pytest.warns(UserWarning, match="same value: column 2, 7"):
        fitted = JointDensityEstimator(**SMALL).fit(X)
    assert (fitted.sample(3, 0)[:, 2] == 7).all()
    assert np.isneginf(fitted.score_samples(np.array([[0.0, 0.0, 8.0]])))


def test_a_column_of_spikes_and_one_other_value_has_probabilities():
    """As a number of garages that is 0 or 1, and another that is 0 in all rows."""
    numbers = np.random.default_rng(0)
    garages = (numbers.uniform(size=400) < 0.3).astype(float)
    X = np.stack([garages + 0.3 * numbers.normal(size=400), garages, 0 * garages], 1)
    with pytest.warns(UserWarning, match="same value: column 2, 0"):
        fitted = JointDensityEstimator(spikes={1: 0, 2: 0}, **SMALL | {"max_steps": 0}).fit(X)
    rows = np.array([[np.nan, 0.0, np.nan], [np.nan, 1.0, np.nan], [np.nan, np.nan, 1.0]])
    zero, one, other = np.exp(fitted.score_samples(rows))
    assert (
        zero + one == pytest.approx(1, abs=1e-6)
        and one == pytest.approx(garages.mean(), abs=0.02)
        and other == 0
    )
    drawn = fitted.sample(100, 0)
    assert drawn.dtype == float and set(drawn[:, 1]) == {0.0, 1.0} and not drawn[:, 2].any()


def test_a_missing_entry_of_a_constant_column_says_nothing():
    """It may be one of pandas, which is not comparable."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": np.random.default_rng(0).normal(size=100)})
    table["b"] = pandas.array([True] * 99 + [None], dtype="boolean")
    with pytest.warns(UserWarning, match="same value: column 1 .b., True"):
        fitted = JointDensityEstimator(**SMALL | {"max_steps": 0}).fit(table)
    table.loc[99, "a"] = table.loc[0, "a"]
    found = fitted.score_samples(table)
    assert found[99] == pytest.approx(found[0])


def test_the_same_random_state_is_the_same_density_and_torch_keeps_its_own(coarse):
    X, before = people(100), torch.get_rng_state()
    first, again = (JointDensityEstimator(**SMALL).fit(X) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.score_samples(X[:3]), again.score_samples(X[:3]))


def test_a_pickle_is_the_same_density(coarse):
    X = people(100)
    fitted = JointDensityEstimator(**SMALL).fit(X)
    back = pickle.load(io.BytesIO(pickle.dumps(fitted)))
    np.testing.assert_array_equal(back.score_samples(X[:3]), fitted.score_samples(X[:3]))
    assert (back.sample(2, 0) == fitted.sample(2, 0)).all()


ROWS = np.random.default_rng(0).normal(size=(30, 2))
ERRORS = {
    "constant": (
        np.stack([ROWS[:, 0] * 0, ROWS[:, 1] * np.nan], 1),
        {},
        "X must vary in a column, got one value or none",
    ),
    "few": (ROWS[:5], {}, r"5 sample\(s\).*minimum of 10"),
    "spikes": (ROWS, {"spikes": {4: 0}}, r"spikes must hold columns of X \(indices 0 … 1\), got 4"),
    "bounds": (
        ROWS,
        {"bounds": {1: (1, 1)}},
        r"bounds must be a lower and a higher number or None, got \(1, 1\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_got_and_what_would_do(case):
    X, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        JointDensityEstimator(**SMALL | options).fit(X)
