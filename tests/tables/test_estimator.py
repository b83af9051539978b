"""The density estimator: scikit-learn's contract, normalisation, closed forms, invariance, errors."""

import copy
import io
import itertools
import pickle
import time
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from scipy.stats import chi2, multivariate_normal, norm, qmc
from sklearn import config_context
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from indm import INDM, DensityEstimator, JointDensityEstimator, PosteriorEstimator, ScoreModel
from indm.flows.base import Identity
from indm.likelihood import WhitenedFlow
from indm.ode import Solution
from indm.sde.linear import VPSDE
from indm.tables import fit, start
from indm.tables.columns import FAR, Columns
from indm.tables.fit import EPS
from indm.tables.networks import MixtureMLP
from indm.tables.rows import Table
from indm.tables.solve import SAMPLING_ERROR, _solved, at, latent_log_prob, start_log_prob
from indm.tables.start import Fits

pytestmark = pytest.mark.filterwarnings(
    "ignore:the network found nothing", "ignore:max_seconds ended"
)

ONE = Fits(DensityEstimator(max_components=1), np.array([], dtype=int))
SMALL = {
    "n_models": 1,
    "max_components": 2,
    "width": 8,
    "depth": 1,
    "max_steps": 5,
    "random_state": 0,
}
SHIFT, SCALE = np.array([3.0, -1.0]), np.array([10.0, 0.5])


@pytest.fixture(scope="module")
def moons():
    """Two models of two moons in other units, trained a little."""
    X = make_moons(300, noise=0.1, random_state=0)[0] * SCALE + SHIFT
    options = SMALL | {"n_models": 2, "max_steps": 100, "max_components": 3, "learning_rate": 1e-2}
    found = DensityEstimator(**options).fit(X)
    assert not any(model.score.backbone.is_mixture for model in found.models_)
    return found, X


def one_of(model, i):
    """The i-th of the models that are averaged."""
    one = copy.copy(model)
    one.models_ = model.models_[i : i + 1]
    return one


def grid(low, high, n):
    """Points (n², 2) of an even grid, and the area of a cell."""
    axes = [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), np.prod(
        [a[1] - a[0] for a in axes]
    )


def correlated(n, d=3, seed=0):
    numbers = np.random.default_rng(seed)
    root = np.tril(np.random.default_rng(9).normal(size=(d, d)), -1) + np.diag(
        np.arange(1.0, d + 1)
    )
    return numbers.normal(size=(n, d)) @ root.T + 5, root @ root.T


def test_scikit_learns_own_checks(coarse):
    """But for two that ask more of single precision than it has: log p beside other rows is off by
    a last digit.
    """
    invariance = ("check_methods_subset_invariance", "check_methods_sample_order_invariance")
    beyond = dict.fromkeys(invariance, "the ODE is solved in single precision")
    quick = DensityEstimator(**SMALL | {"max_steps": 1, "max_components": 1})
    check_estimator(quick, on_skip=None, on_fail="raise", expected_failed_checks=beyond)


def test_the_density_integrates_to_one_and_samples_follow_it(moons, monkeypatch):
    # its estimate is large where the density is small
    monkeypatch.setattr("indm.tables.solve.SOLVER_ERROR", 0.5)
    model = one_of(moons[0], 0)
    points, cell = grid(SHIFT + SCALE * [-2.0, -1.5], SHIFT + SCALE * [3.0, 2.0], 128)
    mass = np.exp(model.score_samples(points)) * cell
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    samples = model.sample(500, random_state=0)
    for frequency in (1.0, 2.0, 3.0):
        for axis in (0, 1):
            wave = [
                np.sin(frequency * (rows - SHIFT)[:, axis] / SCALE[axis])
                for rows in (points, samples)
            ]
            error = wave[1].std() / np.sqrt(len(samples))
            assert wave[1].mean() == pytest.approx((mass * wave[0]).sum(), abs=3.5 * error)


def test_without_a_step_it_is_the_mixture_in_raw_units():
    X, _ = correlated(200)
    X[:100] += 8
    model = DensityEstimator(**SMALL | {"max_steps": 0}).fit(X)
    net = model.models_[0].score.backbone
    columns = model.columns_
    z, expected = columns.latents(X, np.zeros((len(X), 0))), np.zeros(len(X))
    assert net.components == 3
    for weight, mean, variance, basis in zip(
        net.log_weight, net.mean, net.variance, net.basis, strict=True
    ):
        covariance = (basis * variance @ basis.T).numpy()
        law = multivariate_normal(mean.numpy(), (covariance + covariance.T) / 2)
        expected += weight.exp().item() * law.pdf(z) * np.exp(columns.log_volume(X))
    assert model.score_samples(X) == pytest.approx(np.log(expected), abs=2e-3)


def test_gaussian_rows_have_nearly_their_entropy():
    X, covariance = correlated(2000)
    fresh, _ = correlated(1000, seed=1)
    model = DensityEstimator(**SMALL | {"max_steps": 100}).fit(X)
    truth = multivariate_normal(np.full(3, 5.0), covariance).logpdf(fresh)
    assert 0 <= (truth - model.score_samples(fresh)).mean() < 0.02  # an estimate of the divergence


def test_columns_that_nearly_follow_from_others_have_nearly_their_entropy():
    """y = |x| up to 0.01: the floor of the variances, and the noise at ε, must be less. A row far
    off costs little.
    """
    rng = np.random.default_rng(0)
    x = rng.choice([-5.0, 5.0], 1_000) + rng.normal(size=1_000)
    X = np.stack([x, abs(x) + 0.01 * rng.normal(size=1_000)], 1)
    model = DensityEstimator(**SMALL | {"max_steps": 0}).fit(X[:800])
    assert model.score(X[800:]) == pytest.approx(-np.log(2 * 2 * np.pi * np.e * 0.01), abs=0.1)
    assert model.score([[3.0, 5.0]]) > -12


def test_units_of_a_column_shift_its_log_density(moons, coarse):
    _, X = moons
    first, second = (DensityEstimator(**SMALL).fit(rows) for rows in (X, X * [4.0, 1.0]))
    assert second.score_samples(X * [4.0, 1.0]) == pytest.approx(
        first.score_samples(X) - np.log(4.0), abs=1e-9
    )


def test_no_row_depends_on_another(moons, monkeypatch, coarse):
    model, X = moons
    together = model.score_samples(X[:2])
    rounding = 2e-6  # of single precision
    assert together == pytest.approx(
        [model.score_samples(row[None])[0] for row in X[:2]], abs=rounding
    )
    monkeypatch.setattr("indm.tables.solve.MOST_EXACT", 1)
    monkeypatch.setattr("indm.tables.solve.PROBES", 2)
    probed = model.score_samples(X[:2])
    assert probed == pytest.approx(
        [model.score_samples(row[None])[0] for row in X[:2]], abs=rounding
    )
    assert probed != pytest.approx(together, abs=1e-4)


def test_the_density_of_a_hundred_columns_has_no_noise_of_probes():
    """Beside the exact divergence by autograd; two probes are off by nats."""
    net = MixtureMLP((100,), 1, 8, 1)
    torch.nn.init.normal_(net.mlp.output.weight, std=0.1)
    model = INDM(Identity(), ScoreModel(net, VPSDE(eps=1e-4)), shape=(100,)).double()
    z = torch.randn(2, 100, dtype=torch.double)
    found, error = latent_log_prob(model, z, 0.05)
    options = {"steps": 24, "generator": torch.Generator().manual_seed(0)}
    exact, probed = (
        model.log_prob(z, **options, **own).detach() for own in ({"exact": True}, {"probes": 2})
    )
    assert (error < 0.05).all() and torch.allclose(found, exact, rtol=0, atol=1e-3)
    assert (probed - exact).abs().max() > 0.5


@pytest.fixture(scope="module")
def discrete():
    """Two columns of whole numbers that depend on each other, and their table of probabilities."""
    law = np.array([[0.4, 0.1], [0.05, 0.15], [0.05, 0.25]])
    cells = np.random.default_rng(0).choice(6, 2000, p=law.ravel())
    X = np.stack(np.unravel_index(cells, law.shape), 1).astype(float)
    options = SMALL | {"max_steps": 150, "max_components": 8, "width": 16}
    return DensityEstimator(discrete=(0, 1), **options).fit(X), law


@pytest.mark.long
def test_discrete_columns_have_probabilities(discrete):
    model, law = discrete
    cells = np.array(list(itertools.product(range(-1, 4), range(-1, 3))), dtype=float)
    probability = np.exp(model.score_samples(cells))
    assert probability.sum() == pytest.approx(1, abs=1e-3)
    inside = (cells >= 0).all(1) & (cells < law.shape).all(1)
    assert 0.5 * np.abs(probability[inside] - law.ravel()).sum() < 0.08  # total variation
    samples = model.sample(1000, random_state=0)
    assert (samples == np.floor(samples)).all()
    share = [(samples == cell).all(1).mean() for cell in cells[inside]]
    assert share == pytest.approx(probability[inside], abs=0.05)


def test_a_probability_is_the_integral_over_its_cell_or_below(discrete, monkeypatch):
    """Two columns are integrated over; by the mean of the log it is less, as it is where the
    integral is not found.
    """
    model, _ = discrete
    cell, n = np.array([[1.0, 1.0]]), 24
    within = (np.stack(np.meshgrid(*2 * [np.arange(n)]), -1).reshape(-1, 2) + 0.5) / n
    log_density, _ = model._log_density(cell + within, np.zeros((n**2, 0)), 0.05)
    exact = np.log(np.exp(log_density).mean())
    assert model.score_samples(cell)[0] == pytest.approx(exact, abs=2e-3)
    with monkeypatch.context() as patch:
        patch.setattr("indm.tables.solve.CONVERGED_CHANGE", 0.0)
        assert model.score_samples(cell)[0] == pytest.approx(log_density.mean(), abs=0.03)
    monkeypatch.setattr("indm.tables.solve.POINTS", ((1,),))
    drawn = qmc.LatinHypercube(2, scramble=False, rng=0).random(model.draws)
    expected = model._log_density(cell + drawn, np.zeros((len(drawn), 0)), 0.05)[0].mean()
    assert model.score_samples(cell)[0] == pytest.approx(expected, abs=1e-9)
    assert log_density.mean() < exact - 0.01


@pytest.mark.parametrize("columns, exact", [(1, True), (3, False)])
def test_the_probabilities_of_constant_columns_sum_to_one_at_most(columns, exact, monkeypatch):
    """Components that are narrower than a cell make the density rough inside; the mean of the log
    allows for it.
    """
    X = np.full((300, columns), 7.0)
    monkeypatch.setattr("indm.tables.solve.SOLVER_ERROR", 0.2)
    options = SMALL | {"max_components": 5, "max_steps": 0}
    model = DensityEstimator(discrete=range(columns), **options).fit(X)
    assert model.models_[0].score.backbone.components > 1
    cells = np.array(list(itertools.product((6.0, 7.0, 8.0), repeat=columns)))
    probability = np.exp(model.score_samples(cells))
    assert probability.sum() <= 1 + 1e-3 and probability.argmax() == len(cells) // 2
    if exact:
        assert probability.sum() == pytest.approx(1, abs=1e-3)


def test_the_bound_of_discrete_columns_counts_their_noise():
    """Bounds of other draws scatter as they say, and are below the score."""
    numbers = np.random.default_rng(0)
    X = np.stack([numbers.poisson(2, 300), numbers.normal(size=300)], 1)
    model = DensityEstimator(discrete=(0,), **SMALL | {"max_steps": 0}).fit(X)
    bounds, errors = np.transpose(
        [model.score_bound(X[:30], pairs=4, random_state=seed) for seed in range(80)]
    )
    assert bounds.std() == pytest.approx(np.sqrt(np.square(errors).mean()), rel=0.3)
    assert bounds.mean() < model.score(X[:30]) - 3 * bounds.std() / np.sqrt(80)
    for pairs in (0, 1, 3_000):
        with pytest.raises(ValueError, match=rf"pairs must be in \[2, 2048\], got {pairs}"):
            model.score_bound(X[:30], pairs=pairs)


@pytest.mark.parametrize("gain, chosen", [(0.05, 0), (0.15, 1)])
def test_another_map_needs_a_gain_above_its_standard_error(gain, chosen, monkeypatch):
    """Gains of 100 rows of deviation 1, each in 8 draws of the noise: the standard error is 0.1."""
    gains = np.resize([1.0, -1.0], 100) + gain
    maps = [
        SimpleNamespace(
            latents=lambda X, c: X, log_volume=lambda X, value=value: np.repeat(value, 8)
        )
        for value in (np.zeros(100), gains)
    ]
    law = SimpleNamespace(log_prob=lambda z, c: np.zeros(len(z)))
    monkeypatch.setattr(start, "best_mixture", lambda *arguments: law)
    monkeypatch.setattr(start, "with_one_gaussian", lambda *arguments: [law])
    train, held = (Table(np.zeros((n, 1)), np.zeros((n, 0))) for n in (50, 800))
    best = ONE.start(train, held, maps, 0, np.inf, 8)
    assert best.columns is maps[chosen]


def test_draws_are_of_all_models_and_log_p_is_of_their_mean():
    X = np.random.default_rng(0).normal(size=(200, 1))
    model = DensityEstimator(**SMALL | {"max_steps": 0, "max_components": 1, "n_models": 2}).fit(X)
    model.models_[1].score.backbone.mean += 8  # deviations
    assert (model.sample(1_000, random_state=0) > 4).mean() == pytest.approx(0.5, abs=0.06)
    alone = one_of(model, 0).score_samples(X[:5])
    assert model.score_samples(X[:5]) == pytest.approx(alone - np.log(2), abs=1e-6)


def test_fractions_are_refused_where_they_are_scored_too(discrete):
    with pytest.raises(
        ValueError, match=r"discrete columns must hold whole numbers, got 1\.5 in column 1"
    ):
        discrete[0].score_samples([[1.0, 1.0], [1.0, 1.5]])


@pytest.mark.long
def test_the_same_random_state_is_the_same_density_and_torch_keeps_its_own(moons, coarse):
    _, X = moons
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, third = (
        DensityEstimator(**SMALL | {"random_state": seed}).fit(X) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert (first.score_samples(X) == second.score_samples(X)).all()
    assert not np.allclose(first.score_samples(X), third.score_samples(X), atol=1e-3)
    assert (first.sample(5, random_state=1) == first.sample(5, random_state=1)).all()


def test_a_network_that_finds_nothing_says_so(moons, capsys):
    _, X = moons
    with pytest.warns(
        UserWarning,
        match=r"the network found nothing that its mixture .* \(.* nats .*, within two errors of .*; 5 steps, ended",
    ):
        model = DensityEstimator(**SMALL | {"learning_rate": 1e-12, "verbose": True}).fit(X)
    assert model.n_steps_[0] <= 5 and abs(model.gains_[0][0]) < 1e-6
    assert "start 3 Gaussians, " in capsys.readouterr().out
    assert model.ended_ == [(5, "max_steps")] and model.ended_by_ == "steps"


@pytest.mark.parametrize("cls", [DensityEstimator, JointDensityEstimator])
def test_a_fit_that_time_ended_at_once_does_not_blame_the_table(cls):
    with pytest.warns(
        UserWarning,
        match=r"^max_seconds ended the fit before its first step: .*; raise max_seconds$",
    ):
        model = cls(max_seconds=1e-9, max_components=1, random_state=0).fit(ROWS)
    assert set(np.ravel(model.ended_)) == {"0", "max_seconds"} and model.ended_by_ == "time"


def test_counts_on_their_bound_are_fitted_without_warnings():
    """Rows without noise are on the bound, where a latent would be infinite."""
    numbers = np.random.default_rng(0)
    X = np.stack([numbers.poisson(2, 100), numbers.normal(size=100)], 1)
    DensityEstimator(**SMALL | {"max_steps": 0}, discrete=(0,), bounds={0: (0, None)}).fit(X)


@pytest.mark.parametrize(
    "rows, seconds, models",
    [(500, 1, 4), (501, 1, 1), (2000, 59, 3), (2000, 600, 4), (2001, 60, 1)],
)
def test_a_table_has_as_many_models_as_rows_and_time_suit(rows, seconds, models):
    assert DensityEstimator(max_seconds=seconds)._models_for(rows) == models
    assert DensityEstimator(max_seconds=seconds, n_models=2)._models_for(rows) == 2


@pytest.mark.long
def test_models_share_the_time(moons, monkeypatch):
    _, X = moons
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    options = SMALL | {"max_seconds": 300.0, "max_steps": 100_000, "n_models": 3}
    begun = []
    fitted = Fits.fitted
    monkeypatch.setattr(Fits, "fitted", lambda *a: (begun.append(next(ticks)), fitted(*a))[1])
    found = DensityEstimator(**options).fit(X)
    assert len(found.models_) == len(found.n_steps_) == len(found.gains_) == 3
    assert [start / 100 for start in begun] == pytest.approx([0, 1, 2], abs=0.2)
    assert next(ticks) < 330


@pytest.mark.long
def test_training_improves_on_the_mixture():
    X = make_moons(1500, noise=0.05, random_state=0)[0]
    train, test = X[:1000], X[1000:]
    options = SMALL | {"max_components": 1, "width": 32}
    before, after = (
        DensityEstimator(**options | {"max_steps": n}).fit(train).score(test) for n in (0, 400)
    )
    assert after > before + 0.3


def test_a_pickle_is_the_same_density(moons, coarse):
    model, X = moons
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    for restored in (pickle.loads(pickle.dumps(model)), joblib.load(file)):
        assert (restored.score_samples(X[:5]) == model.score_samples(X[:5])).all()
        assert not any(p.requires_grad for p in restored.models_[0].parameters())


def test_a_pickle_is_of_what_was_fitted(moons, coarse):
    model, X = moons
    changed = one_of(model, 0).set_params(width=32, depth=3, max_components=1)
    restored = pickle.loads(pickle.dumps(changed))
    assert restored.width == 32
    assert (restored.score_samples(X[:5]) == changed.score_samples(X[:5])).all()


def test_names_of_a_data_frame():
    pandas = pytest.importorskip("pandas")
    numbers = np.random.default_rng(0)
    table = pandas.DataFrame(
        {"age": numbers.integers(20, 60, 100), "height": numbers.normal(170, 10, 100)}
    )
    model = DensityEstimator(discrete="age", **SMALL).fit(table)
    assert model.discrete_.tolist() == [0] and model.feature_names_in_.tolist() == ["age", "height"]
    with pytest.raises(ValueError, match=r"discrete .*age, height.*'weight'"):
        DensityEstimator(discrete=("weight",), **SMALL).fit(table)
    with pytest.raises(ValueError, match=r"column 1 \(height\)"):
        DensityEstimator(discrete=("height",), **SMALL).fit(table)


ROWS = np.random.default_rng(0).normal(size=(30, 2))
ERRORS = {
    "constant": (
        ROWS * 0 + 7,
        {},
        r"Found array with 0 feature\(s\)",
    ),
    "missing": (np.where(ROWS > 1, np.nan, ROWS), {}, "contains NaN"),
    "few": (ROWS[:5], {}, r"5 sample\(s\).*minimum of 10"),
    "discrete": (
        ROWS,
        {"discrete": (5,)},
        r"discrete must hold columns of X \(indices 0 … 1\), got 5",
    ),
    "fractions": (ROWS, {"discrete": (1,)}, "whole numbers, got .* in column 1"),
    "outside": (
        ROWS,
        {"bounds": {1: (0, None)}},
        r"X must be inside of its bounds, got -.* of column 1, whose bounds",
    ),
    "on a bound": (
        np.abs(ROWS).round(),
        {"bounds": {0: (0, 9)}},
        "got 0 in row .* widen them, or declare",
    ),
    "bounds": (
        ROWS,
        {"bounds": {0: (1, 1)}},
        r"bounds must be a lower and a higher number or None, got \(1, 1\)",
    ),
    "no column": (ROWS, {"bounds": {"age": (1, 2)}}, "bounds must hold columns of X .*, got 'age'"),
    "validation": (
        ROWS,
        {"validation_fraction": 0.99},
        "validation_fraction must be above 0 and at most 0.5, got",
    ),
    "rate": (ROWS, {"learning_rate": -1.0}, "Invalid learning rate: -1.0"),
    "dropout": (ROWS, {"dropout": 1.5}, "dropout probability has to be between 0 and 1"),
    "no number of seconds": (
        ROWS,
        {"max_seconds": None},
        "NoneType",
    ),
    "one bound": (
        ROWS,
        {"bounds": {0: 1}},
        "bounds must be a lower and a higher number or None, got 1 of column 0",
    ),
}


@pytest.mark.filterwarnings("ignore:few values", "ignore:left out")
@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_got_and_what_would_do(case):
    X, options, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        DensityEstimator(**SMALL | options).fit(X)


@pytest.mark.parametrize("fitted", [DensityEstimator, JointDensityEstimator])
def test_columns_of_one_name_are_refused(fitted):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="columns of X must have different names, got 'a' twice"):
        fitted(max_steps=0).fit(pandas.DataFrame(ROWS, columns=["a", "a"]))


@pytest.mark.parametrize(
    "entries, got",
    [
        (
            ["Oslo", "Rome"] * 15,
            r"entries of type .* in column 1 \(b\): JointDensityEstimator takes",
        ),
        (
            np.arange(30).astype("datetime64[D]"),
            "entries of type datetime64.* turn dates into numbers",
        ),
        ([1.0, np.nan] * 15, r"missing entries in column 1 \(b\): JointDensityEstimator takes"),
    ],
)
def test_a_column_without_numbers_is_named(entries, got):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=f"X must hold numbers, got {got}"):
        DensityEstimator(**SMALL).fit(pandas.DataFrame({"a": ROWS[:, 0], "b": entries}))


def test_columns_of_conditions_keep_their_order(coarse):
    pandas = pytest.importorskip("pandas")
    c = pandas.DataFrame(ROWS, columns=["u", "v"])
    model = DensityEstimator(**SMALL).fit(ROWS, c=c)
    model.sample(2, c=c[:2])
    with pytest.raises(
        ValueError, match=r"c must have the columns \['u', 'v'\] in this order, .* got \['v', 'u'\]"
    ):
        model.sample(2, c=c[["v", "u"]][:2])


@pytest.mark.parametrize("cls", [DensityEstimator, JointDensityEstimator])
@pytest.mark.long
def test_columns_of_few_values_are_named(cls, recwarn):
    """Not whole numbers that are declared, nor a value that most rows do not have."""
    numbers = np.random.default_rng(0)
    X = np.stack(
        [*numbers.normal(size=(2, 200)), *(numbers.integers(0, 9, (2, 200)) / [[1], [2]])], 1
    )
    X[:20, 1] = 0
    cls(discrete=[2], max_steps=0).fit(X)
    told = [str(warning.message) for warning in recwarn if "few values" in str(warning.message)]
    assert len(told) == 1 and "in column 3: the density" in told[0]


def test_the_error_of_one_row_of_validation_is_unknown(recwarn):
    model = DensityEstimator(**SMALL).fit(ROWS[:10])
    assert model.gains_[0][1] == np.inf and not any(
        "degrees of freedom" in str(w.message) for w in recwarn
    )


def test_other_columns_and_numbers_of_samples_are_refused(moons):
    model, X = moons
    with pytest.raises(ValueError, match="1 features, but DensityEstimator is expecting 2"):
        model.score_samples(X[:, :1])
    assert model.sample(0).shape == (0, 2)


def test_a_solver_that_is_off_warns(moons, coarse, monkeypatch):
    model, X = moons
    monkeypatch.setattr("indm.tables.solve.SOLVER_ERROR", 1e-12)
    with pytest.warns(ConvergenceWarning, match="log p is off by about"):
        model.score_samples(X[:1])


def test_a_rate_that_is_far_too_high_leaves_the_mixture(moons):
    _, X = moons
    model = DensityEstimator(**SMALL | {"learning_rate": 1e6, "max_steps": 60}).fit(X)
    assert np.isfinite(model.score_samples(X[:2])).all()


@pytest.mark.long
def test_a_column_of_any_offset_and_unit_has_its_density(moons, coarse):
    """From 10¹⁵, whose neighbours are an eighth away, to squares that overflow or vanish."""
    X = np.round(moons[1] * [10.0, 100.0])
    log_p = DensityEstimator(**SMALL).fit(X).score_samples(X[:20])
    far = X + np.array([1e15, 0.0])
    assert DensityEstimator(**SMALL).fit(far).score_samples(far[:20]) == pytest.approx(
        log_p, abs=1e-3
    )
    for unit in (1e200, 1e-200):
        model = DensityEstimator(**SMALL).fit(X * unit)
        assert model.score_samples(X[:20] * unit) == pytest.approx(
            log_p - 2 * np.log(unit), abs=1e-6
        )
        assert np.isfinite(model.sample(5, random_state=0)).all()


@pytest.mark.parametrize("discrete", [(), (0,)])
def test_one_row_far_from_all_others_is_named_and_costs_the_others_nothing(discrete, coarse):
    numbers = np.random.default_rng(0)
    scale = 10.0 if discrete else 1.0
    X, fresh = (scale * numbers.normal(size=(n, 1)) for n in (500, 300))
    X[427] = 1e6
    X, fresh = (np.floor(rows) if discrete else rows for rows in (X, fresh))
    with pytest.warns(
        UserWarning,
        match=r"row 427 of X is far from the others: 1e\+06 in column 0, where most rows",
    ):
        model = DensityEstimator(**SMALL | {"max_steps": 0, "discrete": discrete}).fit(X)
    truth = -0.5 * np.log(2 * np.pi * np.e * scale**2)
    assert model.score(fresh) == pytest.approx(truth, abs=0.1)


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


def conditional_table(n, seed=0):
    """x = (2c + noise, −c + noise), noise correlated: a Gaussian at each c."""
    numbers = np.random.default_rng(seed)
    c = numbers.uniform(-3, 5, size=(n, 1))
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    X = c @ [[2.0, -1.0]] + numbers.multivariate_normal([4.0, 0.0], covariance, n)
    log_p = multivariate_normal([0, 0], covariance).logpdf(X - c @ [[2.0, -1.0]] - [4.0, 0.0])
    return X, c, log_p


@pytest.mark.parametrize("solved", [False, True], ids=["closed form", "ODE"])
def test_a_gaussian_at_each_condition(solved, monkeypatch):
    """Linear in c, it is found without a step, and rows of c follow their rows."""
    if solved:
        monkeypatch.setattr(MixtureMLP, "is_mixture", False)
    X, c, _ = conditional_table(2000)
    fresh, at, truth = conditional_table(400, seed=1)
    model = DensityEstimator(**SMALL | {"max_steps": 0}).fit(X, c=c)
    log_prob = model.score_samples(fresh, at)
    assert 0 <= (truth - log_prob).mean() < 0.05
    order = np.random.default_rng(0).permutation(400)
    assert model.score_samples(fresh[order], at[order]) == pytest.approx(log_prob[order], abs=2e-6)
    rows = model.sample(2000, random_state=0, c=[2.0])
    assert rows.mean(0) == pytest.approx([8.0, -2.0], abs=0.1)
    assert np.cov(rows.T) == pytest.approx(np.array([[1.0, 0.6], [0.6, 0.5]]), abs=0.1)


@pytest.mark.long
def test_the_network_learns_what_is_not_linear_in_c(coarse):
    numbers = np.random.default_rng(0)
    c = numbers.uniform(-2, 2, size=(1500, 1))
    X = np.concatenate([np.sin(2 * c), np.cos(2 * c)], 1) + 0.2 * numbers.normal(size=(1500, 2))
    options = SMALL | {"max_components": 3, "width": 32, "learning_rate": 1e-2}
    before, after = (
        DensityEstimator(**options | {"max_steps": n})
        .fit(X[:1200], c=c[:1200])
        .score(X[1200:], c=c[1200:])
        for n in (0, 150)
    )
    assert after > before + 0.4


def test_conditions_are_routed_pickled_and_checked(moons, coarse):
    X, c, _ = conditional_table(60)
    model = DensityEstimator(**SMALL).fit(X, c=c)
    restored = pickle.loads(pickle.dumps(model))
    assert (restored.score_samples(X, c) == model.score_samples(X, c)).all()
    assert model.score_samples(X, c[:, 0]) == pytest.approx(model.score_samples(X, c))
    with config_context(enable_metadata_routing=True):
        inner = DensityEstimator(**SMALL).set_fit_request(c=True).set_score_request(c=True)
        piped = make_pipeline(StandardScaler(), inner).fit(X, c=c)
        assert np.isfinite(piped[-1].score(piped[0].transform(X), c=c))
    for use, message in (
        (
            lambda: model.score_samples(X),
            r"c must have 1 columns, as in fit\(X, c=c\), got 0",
        ),
        (
            lambda: moons[0].score_samples(moons[1], c[:1]),
            r"c must have 0 columns, as in fit\(X, c=c\), got 1",
        ),
        (
            lambda: model.score_samples(X, c[:7]),
            r"\(7,1\) +and requested shape \(60,1\)",
        ),
        (
            lambda: model.score_samples(X, c[:59, 0]),
            r"\(59,1\) +and requested shape \(60,1\)",
        ),
        (lambda: model.sample(60, c=c[:59, 0]), r"\(59,1\) +and requested shape \(60,1\)"),
        (lambda: model.score_samples(X, np.c_[c, c]), "c must have 1 columns, .* got 2"),
        (lambda: DensityEstimator(**SMALL).fit(X, c=np.full((60, 1), np.nan)), "c contains NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    "c", [np.arange(59.0), np.arange(59.0)[None], np.ones((1, 1)), np.ones((61, 1))]
)
@pytest.mark.long
def test_as_many_conditions_as_rows_are_fitted(c):
    X, c_fitted, _ = conditional_table(60)
    model = DensityEstimator(**SMALL | {"max_steps": 0})
    for _ in range(2):  # the second time after a fit of two conditions
        with pytest.raises(ValueError, match=rf"inconsistent numbers of samples: \[60, {len(c)}\]"):
            model.fit(X, c=c)
        model.fit(X, c=np.c_[c_fitted, c_fitted**2])
    model.fit(X, c=c_fitted[:, 0])
    assert model.n_conditions_ == 1


# ── bounds and constant columns ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bounded():
    """An exponential and a uniform column, within their bounds."""
    numbers = np.random.default_rng(0)
    X = np.stack([3 + numbers.exponential(2.0, 1_500), numbers.uniform(-1, 1, 1_500)], 1)
    options = SMALL | {"max_components": 8, "max_steps": 50}
    return DensityEstimator(bounds={0: (3, None), 1: (-1, 1)}, **options).fit(X), X


def test_the_density_is_within_the_bounds(bounded, coarse):
    model, X = bounded
    assert (model.score_samples([[2.9, 0.0], [4.0, 1.1], [4.0, -1.0]]) == -np.inf).all()
    points, cell = grid([3.0, -1.0], [20.0, 1.0], 40)
    points += (points[41] - points[0]) / 2  # midpoints
    points, cell = points[(points[:, 0] < 20) & (points[:, 1] < 1)], cell
    assert np.exp(model.score_samples(points)).sum() * cell == pytest.approx(1, abs=0.03)
    draws = model.sample(2_000, random_state=0)
    assert (draws[:, 0] > 3).all() and (np.abs(draws[:, 1]) < 1).all()
    assert draws.mean(0) == pytest.approx(X.mean(0), abs=0.15)
    truth = -1 - np.log(2) - np.log(2)  # minus the entropies
    assert model.score(X[:200]) == pytest.approx(truth, abs=0.15)


def test_whole_numbers_within_bounds_have_all_probability(coarse):
    X = np.random.default_rng(0).choice(3, (400, 1), p=[0.6, 0.3, 0.1]).astype(float)
    model = DensityEstimator(
        discrete=(0,), bounds={0: (0, 2)}, **SMALL | {"max_components": 8}
    ).fit(X)
    probability = np.exp(model.score_samples([[-1.0], [0.0], [1.0], [2.0], [3.0]]))
    assert probability[[0, 4]] == pytest.approx(0) and probability.sum() == pytest.approx(
        1, abs=5e-3
    )
    assert set(model.sample(300, random_state=0)[:, 0]) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize("column", [7 + 0 * ROWS[:, :1], 7 + 1e-15 * ROWS[:, :1]])
def test_a_constant_column_is_left_out_and_comes_back(column, coarse):
    with pytest.warns(
        UserWarning, match="left out of the density, as all rows have the same value: column 1, 7"
    ):
        model = DensityEstimator(**SMALL).fit(np.hstack([ROWS[:, :1], column, ROWS[:, 1:]]))
    alone = DensityEstimator(**SMALL).fit(ROWS)
    X = np.insert(ROWS, 1, 7.0, axis=1)
    assert (model.score_samples(X) == alone.score_samples(ROWS)).all()
    assert model.score_samples(X + np.array([0, 1, 0])).tolist() == [-np.inf] * 30
    assert model.sample(5, random_state=0)[:, 1] == pytest.approx(7)


def test_draws_are_as_near_to_converged_ones_as_stated(bounded):
    model, _ = bounded
    few, many = (
        model._latents(np.zeros((500, 0)), n, np.random.RandomState(1))
        for n in (model.sampling_steps_, 500)
    )
    assert np.sqrt(np.square(few - many).mean()) < 2 * model.sampling_error_ + 1e-4
    assert model.sampling_error_ < SAMPLING_ERROR
    rough = model._latents(np.zeros((500, 0)), 2, np.random.RandomState(1))
    assert np.abs(rough - many).max() > 10 * model.sampling_error_


# ── what a fit decides ────────────────────────────────────────────────────────────────────────────


def test_models_are_validated_on_different_rows(moons, monkeypatch):
    _, X = moons
    validated, fitted = [], Fits.fitted

    def watched(self, training, validation, *rest):
        assert sorted(map(tuple, np.concatenate([training[0], validation[0]]))) == sorted(
            map(tuple, X)
        )
        validated.append(set(map(tuple, validation[0])))
        return fitted(self, training, validation, *rest)

    monkeypatch.setattr(Fits, "fitted", watched)
    DensityEstimator(**SMALL | {"n_models": 3, "max_steps": 0, "validation_fraction": 0.2}).fit(X)
    assert [len(rows) for rows in validated] == [60, 60, 60] and len(set.union(*validated)) == 180


@pytest.mark.parametrize("gain, taken", [(0.09, False), (0.11, True)])
def test_another_start_is_taken_where_its_gain_is_above_its_error(gain, taken, monkeypatch):
    """Gains of deviation 1 over 100 rows have a standard error of 0.1."""
    X, c = np.random.default_rng(0).normal(size=(100, 1)), np.zeros((100, 0))
    first, other = (Columns.fitted(X, c, np.array([], dtype=int)) for _ in range(2))
    values = {id(first): np.zeros(100), id(other): gain + np.tile([1.0, -1.0], 50)}
    monkeypatch.setattr(Columns, "log_volume", lambda self, _: values[id(self)])
    table, deadline = Table(X, c), time.perf_counter() + 500.0
    best = ONE.start(table, table, [first, other], 0, deadline, 1)
    assert best.columns is (other if taken else first)


@pytest.mark.parametrize("error, warned", [(0.04, False), (0.06, True)])
def test_errors_of_the_solver_are_asked_and_told_in_nats_of_a_row(
    error, warned, moons, monkeypatch, recwarn
):
    model, X = moons
    asked = []

    def solved(self, z, end, probe, nll_error, steps):
        asked.append(nll_error * z.shape[1] * np.log(2))  # from bits/dim
        return Solution(
            self.state(z, end), torch.full((len(z),), error).double(), *2 * [torch.ones(len(z))]
        )

    monkeypatch.setattr(WhitenedFlow, "solve", solved)
    model.score_samples(X[:3])
    assert asked == pytest.approx([0.05] * 2)
    told = [str(warning.message) for warning in recwarn]
    assert [message[:38] for message in told] == (
        ["log p is off by about 0.06 nats on ave"] if warned else []
    )


@pytest.mark.long
def test_the_tolerance_of_a_row_is_asked_for(moons):
    model, X = one_of(moons[0], 0), moons[1][:2]
    fine = model.score_samples(X, tol=1e-3)
    assert model.score_samples(X) == pytest.approx(fine, abs=0.05)
    with pytest.warns(ConvergenceWarning, match="log p is off by about"):
        model.score_samples(X, tol=1e-12)


def mixture_of_two(d, variance=1.0):
    """A model of a Gaussian of that variance and a narrow one, whose network adds a little."""
    torch.manual_seed(0)
    net, mean = (
        MixtureMLP((d,), 2, width=8, depth=1),
        torch.stack([torch.zeros(d), torch.ones(d)]).double(),
    )
    net.set_mixture(
        torch.tensor([0.7, 0.3]).double(),
        mean,
        torch.eye(d).double() * torch.tensor([[[variance]], [[0.01]]]),
    )
    torch.nn.init.normal_(net.mlp.output.weight, std=0.02)
    return INDM(Identity(), ScoreModel(net.double(), VPSDE(eps=EPS)), shape=(d,))


def test_rows_beyond_all_that_was_trained_have_the_mixtures_density(monkeypatch):
    """A typo of a thousand deviations needs no ODE."""
    model, solved, solve = mixture_of_two(3), [], WhitenedFlow.solve
    monkeypatch.setattr(
        WhitenedFlow, "solve", lambda flow, z, *rest: solved.append(len(z)) or solve(flow, z, *rest)
    )
    z = torch.tensor([[0.0, 1000.0, 0.5], [1.0, 1.0, 2.5], [-14.0, 0.0, 0.0]], dtype=torch.float64)
    found, error = latent_log_prob(model, z, 0.05)
    variance = 1 + model.sde.sigma(torch.tensor([model.sde.eps]).double()) ** 2
    expected = np.log(0.7) + multivariate_normal.logpdf(z.numpy(), np.zeros(3), variance.item())
    assert sum(solved) == 1 and error[[0, 2]].tolist() == [0.0, 0.0] and 0 < error[1] < 0.05
    assert found[[0, 2]].numpy() == pytest.approx(expected[[0, 2]], rel=1e-3)
    assert abs(found[1] - expected[1]) > 1e-3


def test_what_a_network_extrapolates_does_not_drive_rows_away():
    """Its output grows with the distance, so that without a limit the ODE grows exponentially."""
    model = mixture_of_two(1)
    for parameter in model.score.backbone.mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    z = torch.linspace(-15, 15, 6001, dtype=torch.float64)[:, None]
    found, _ = latent_log_prob(model, z, 0.05)
    assert found.min() > -0.5 * (15**2) - 10
    assert found.exp().sum().item() * 0.005 == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("variance, solved", [(1.0, [2]), (1e-2, [1])])
def test_what_noise_takes_to_a_narrow_component_is_not_beyond(variance, solved, monkeypatch):
    """6 and 9 are 1 + 10 deviations of a Gaussian of variance v + 1/4 from 0 or not; 6 is 50 of a
    narrow one.
    """
    found, solve = [], WhitenedFlow.solve
    monkeypatch.setattr(
        WhitenedFlow, "solve", lambda flow, z, *rest: found.append(len(z)) or solve(flow, z, *rest)
    )
    z = torch.tensor([[6.0], [9.0]], dtype=torch.float64)
    latent_log_prob(mixture_of_two(1, variance), z, 1e9)
    assert found[0] == solved[0]


def test_no_mass_is_beyond_and_the_density_has_mass_one_with_it():
    """A number of √d + 10 deviations of d normal ones: the bound exp(−50) of a function of slope 1."""
    d = np.arange(1, 200)
    assert (chi2.sf((np.sqrt(d) + FAR) ** 2, d) < np.exp(-0.5 * FAR**2)).all()
    z = torch.linspace(-30, 30, 1201, dtype=torch.float64)[:, None]
    found, _ = latent_log_prob(mixture_of_two(1), z, 0.05)
    assert found.exp().sum().item() * 0.05 == pytest.approx(1, abs=3e-3)


def without_solution(monkeypatch, net, least, kinds):
    """Let the field of ``net`` be NaN where a number of z is above ``least`` in one of these
    precisions.
    """
    closed = net.with_divergence

    def broken(self, z, level, *given):
        value, divergence = closed(self, z, level, *given)
        fails = (
            ((z > least).any(1) & (level < -5))
            if z.dtype in kinds
            else torch.zeros(len(z), dtype=torch.bool)
        )
        return value.masked_fill(fails[:, None], torch.nan), divergence

    monkeypatch.setattr(net, "with_divergence", broken)


@pytest.mark.long
def test_a_row_without_a_solution_costs_no_other(moons, monkeypatch):
    model, X = moons
    z, none = model.columns_.latents(X, np.zeros((len(X), 0))), np.zeros((len(X), 0))
    worst, plain = z.max(1), model.score_samples(X)
    least = np.sort(worst)[-4] + 1e-3
    without_solution(monkeypatch, MixtureMLP, least, [torch.float32])
    # the three rows are solved in double precision
    assert model.score_samples(X) == pytest.approx(plain, abs=1e-3)
    without_solution(monkeypatch, MixtureMLP, least, [torch.float32, torch.float64])
    with pytest.warns(ConvergenceWarning, match="no finite solution for 3 of 300 rows") as told:
        found = model.score_samples(X)
    failed = worst > least
    starts = [
        start_log_prob(at(one, torch.from_numpy(none)), torch.from_numpy(z)).numpy()
        for one in model.models_
    ]
    mixture = np.logaddexp(*starts) - np.log(2) + model.columns_.log_volume(X)
    assert len(told) == 1 and failed.sum() == 3
    assert found[failed] == pytest.approx(mixture[failed]) and found[~failed] == pytest.approx(
        plain[~failed], abs=1e-5
    )


@pytest.mark.parametrize("kind", [JointDensityEstimator, DensityEstimator])
@pytest.mark.long
def test_a_row_without_a_solution_costs_no_other_posterior(kind, monkeypatch):
    numbers = np.random.default_rng(0)
    theta = numbers.normal(size=(300, 1))
    x = theta + numbers.normal(size=(300, 1))
    options = {"max_components": 1, "width": 8, "depth": 1, "max_steps": 5, "random_state": 0}
    posterior = PosteriorEstimator(estimator=kind(**options)).fit(theta, x)
    model = (
        posterior.estimator_.model_
        if kind is JointDensityEstimator
        else posterior.estimator_.models_[0]
    )
    torch.nn.init.constant_(model.score.backbone.mlp.output.bias, 1e-3)  # an ODE is solved
    at = np.linspace(-2, 2, 40)[:, None]
    plain = posterior.log_prob(at, [0.5])
    without_solution(monkeypatch, type(model.score.backbone), 1.5, [torch.float32, torch.float64])
    with pytest.warns(ConvergenceWarning, match="no finite solution for [1-9][0-9]? of 40 rows"):
        found = posterior.log_prob(at, [0.5])
    assert found == pytest.approx(plain, abs=0.05) and (found[:20] == plain[:20]).all()


def test_a_typo_among_the_conditions_does_not_decide_the_slope():
    numbers = np.random.default_rng(0)
    c = numbers.normal(size=(600, 1))
    X = c + 0.5 * numbers.normal(size=c.shape)
    c[3] = 500.0
    fitted = DensityEstimator(**SMALL | {"max_steps": 0, "max_components": 1}).fit(X, c=c)
    assert fitted.sample(500, 0, c=[1.5]).mean() == pytest.approx(1.5, abs=0.2)


@pytest.mark.parametrize(
    "deviation", [*(pytest.param(d, marks=pytest.mark.long) for d in (1.0, 1e-1)), 1e-3]
)
@pytest.mark.long
def test_single_precision_is_within_the_stated_error(deviation):
    """Components that are narrow across the columns; of a row that is far from all it is the
    mixture's.
    """
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64))[0]
    root = basis * torch.tensor([deviation, 0.3, 1.0])
    net, mean = MixtureMLP((3,), 2, width=8, depth=1), torch.randn(2, 3, dtype=torch.float64)
    net.set_mixture(torch.tensor([0.3, 0.7]).double(), mean, root @ root.mT)
    model = INDM(Identity(), ScoreModel(net.double(), VPSDE(eps=EPS)), shape=(3,))
    scale = torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None, None, None]
    z = (mean[:, None] + scale * torch.randn(4, 2, 4, 3, dtype=torch.float64) @ root.mT).flatten(
        0, 2
    )
    z = torch.cat([z, torch.full((1, 3), 100.0, dtype=torch.float64)])
    mixture, zero = latent_log_prob(model, z, 0.05)
    torch.nn.init.constant_(net.mlp.output.bias, 1e-30)  # no longer 0, so that the ODE is solved
    found, error = latent_log_prob(model, z, 0.05)
    exact, exact_error = _solved(model.score, z, 0.05)
    left = 0.03  # of the mixture at T, where the ODE has N(0, I)
    assert ((mixture - exact).abs() <= exact_error + left)[:24].all() and not zero.any()
    assert ((found - exact).abs() <= error)[:32].all()
    assert (found - exact)[:24].abs().max() < 1e-3
    assert torch.equal(found[32:], mixture[32:])


def test_sorted_rows_are_fitted_as_others_without_a_limit_of_time(monkeypatch):
    """Of many rows some fit the mixture and some validate it: of a sorted table, too, from all of
    it.
    """
    monkeypatch.setattr(start, "MIXTURE_ROWS", 100)
    monkeypatch.setattr(fit, "VALIDATION_ROWS", 20)
    numbers = np.random.default_rng(0)
    X = np.sort(np.concatenate([numbers.normal(-8, 1, 300), numbers.normal(8, 1, 300)]))[:, None]
    density = DensityEstimator(
        max_steps=0, max_components=2, max_seconds=np.inf, random_state=0
    ).fit(X)
    assert density.score(X) == pytest.approx(
        np.logaddexp(*norm.logpdf(X, [[[-8]], [[8]]])).mean() - np.log(2), abs=0.1
    )
