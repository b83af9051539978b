"""Weights: k̂ beside ArviZ, intervals that cover, refusals, and faults that are found."""

import math

import numpy as np
import pytest
import torch
from torch import distributions

import indm
from indm.evaluation.weights import Interval, Weights, largest_shape, reweight, tail_of

REPETITIONS = 60


def normal(scale, dims=2, mean=0.0):
    """N(mean, scale² I)."""
    return distributions.Independent(
        distributions.Normal(torch.full((dims,), float(mean)), scale), 1
    )


def of_normals(scale, n, dims=2, **options):
    """Weights for N(0, I) + log 2 from draws of N(0, scale² I); the tail has k = 1 − scale²."""
    q, p = normal(scale, dims), normal(1.0, dims)

    def log_target(x):
        return p.log_prob(x) + math.log(2)

    return reweight(log_target, draws=q.sample((n,)), log_q=q.log_prob, progress=False, **options)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_is_that_of_arviz(k):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    rng = np.random.default_rng(1)
    log_values = k * rng.exponential(size=2000)
    assert tail_of(log_values, rng).shape == pytest.approx(
        float(stats.psislw(-log_values)[1]), abs=1e-6
    )


@pytest.mark.parametrize("scale", [1.3, 0.9, 0.8, 0.7])
def test_intervals_cover_and_a_pilot_does_not_overstate(scale):
    """log Z = log 2, E‖x‖² = 2 and the share, which is 0 where the weights have no second moment."""
    torch.manual_seed(0)
    share = scale**2 * (2 * scale**2 - 1) ** -1 * scale**2 if 2 * scale**2 > 1 else math.inf
    share = 1 / share if math.isfinite(share) else 0.0
    inside = {"log_z": [], "mean": [], "ess": []}
    stated = []
    for _ in range(REPETITIONS):
        found = of_normals(scale, 1000)
        numbers = {
            "log_z": found.log_z,
            "mean": found.mean(lambda x: x.square().sum(1)),
            "ess": found.ess,
        }
        for (name, number), truth in zip(numbers.items(), (math.log(2), 2.0, share), strict=True):
            if not number.refused:
                inside[name].append(number.low <= truth <= number.high)
        stated += [] if found.ess.refused else [found.ess.value]
    for name, cases in inside.items():
        assert len(cases) < 20 or np.mean(cases) >= 0.9, name
    assert len(inside["log_z"]) > 40
    if share:
        assert np.median(stated) <= 1.2 * share


def test_weights_without_a_mean_are_refused_and_named():
    torch.manual_seed(0)
    heavy = reweight(
        lambda x: distributions.StudentT(2.0).log_prob(x[:, 0]),
        draws=normal(1.0, 1).sample((2000,)),
        log_q=normal(1.0, 1).log_prob,
        progress=False,
    )
    assert heavy.k > largest_shape(2000)
    assert heavy.log_z.refused and heavy.ess.refused and heavy.mean(lambda x: x[:, 0]).refused
    assert "refused" in heavy.verdict
    with pytest.raises(ValueError, match="k̂"):
        heavy.resample(10)
    assert heavy.effective < 2000


def test_the_interval_of_a_heavy_tail_is_wider_than_the_normal_one():
    """At k = 0.64 the normal interval of log Z covers three of four times at best."""
    torch.manual_seed(1)
    covers, normal_covers = [], []
    for _ in range(3 * REPETITIONS):
        found = of_normals(0.6, 400, dims=1)
        if found.log_z.refused:
            continue
        w = found.log_weights - math.log(2)
        covers.append(found.log_z.low <= math.log(2) <= found.log_z.high)
        mean, error = np.exp(w).mean(), np.exp(w).std() / math.sqrt(len(w))
        normal_covers.append(abs(mean - 1) <= 1.96 * error)
    assert len(covers) > 20
    assert np.mean(covers) >= 0.9
    assert np.mean(normal_covers) < 0.85


def two_modes():
    parts = distributions.Independent(distributions.Normal(torch.tensor([[-5.0], [5.0]]), 1.0), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(torch.ones(2)), parts)


def test_a_missed_mode_is_found_with_draws_of_the_target_alone():
    torch.manual_seed(0)
    p, q = two_modes(), normal(1.1, 1, mean=-5)
    given = {"draws": q.sample((2000,)), "log_q": q.log_prob, "progress": False}
    blind = reweight(p.log_prob, **given)
    assert blind.log_z.value == pytest.approx(math.log(0.5), abs=0.02)
    assert "nothing can find" in blind.verdict
    found = reweight(p.log_prob, target_draws=p.sample((1000,)), **given)
    assert found.forward.disagrees
    assert found.verdict.startswith("wrong")


@pytest.mark.parametrize("fault", ["jacobian", "draws"])
def test_a_wrong_log_q_and_draws_of_another_law_are_found_with_draws_of_the_target(fault):
    torch.manual_seed(0)
    p, q = normal(1.0), normal(1.2)
    x = (normal(1.0) if fault == "draws" else q).sample((4000,))
    log_q = (lambda x: q.log_prob(x) + 0.3 * x[:, 0]) if fault == "jacobian" else q.log_prob
    target = p.sample((4000,))
    found = reweight(p.log_prob, draws=x, log_q=log_q, target_draws=target, progress=False)
    assert found.forward.disagrees
    right = reweight(
        p.log_prob, draws=q.sample((4000,)), log_q=q.log_prob, target_draws=target, progress=False
    )
    assert not right.forward.disagrees
    assert right.forward.ess.low <= right.ess.high
    assert right.forward.log_z.low <= 0 <= right.forward.log_z.high


def test_noise_and_errors_of_log_q_move_the_numbers_as_stated():
    """Noise of variance v makes log Z v/2 too high and the share exp(−v) too low; a solver's error
    is an interval.
    """
    torch.manual_seed(0)
    p, q = normal(1.0), normal(1.2)
    x = q.sample((20_000,))
    v = 0.08
    log_q = q.log_prob(x) + math.sqrt(v) * torch.randn(len(x))
    plain = reweight(p.log_prob, draws=x, log_q=q.log_prob, progress=False)
    noisy = reweight(p.log_prob, draws=x, log_q=log_q, probe_variance=v, progress=False)
    assert noisy.log_z.value == pytest.approx(plain.log_z.value, abs=0.01)
    assert noisy.ess.value == pytest.approx(plain.ess.value, abs=0.03)
    bounded = reweight(p.log_prob, draws=x, log_q=q.log_prob, solver_error=0.1, progress=False)
    assert bounded.log_z.low == pytest.approx(plain.log_z.low - 0.1)
    assert bounded.ess.low == pytest.approx(plain.ess.low * math.exp(-0.4))
    loud = reweight(p.log_prob, draws=x, log_q=log_q, probe_variance=0.2, progress=False)
    assert loud.log_z.refused and "exact divergence" in loud.log_z.note
    assert not loud.mean(lambda x: x[:, 0]).refused


def test_the_effective_number_in_batches_of_16_is_not_the_share():
    """A planted fault: the mean over batches overstates what all draws together have."""
    torch.manual_seed(0)
    found = of_normals(0.7, 8000)
    w = np.exp(found.log_weights).reshape(-1, 16)
    in_batches = np.mean(w.sum(1) ** 2 / (w**2).sum(1)) / 16
    assert in_batches > 1.5 * found.effective / 8000
    assert found.ess.refused or found.ess.at_most


def test_draws_of_a_model():
    """A model whose density is N(0, I), for a narrower target in the plane."""
    model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
    generator = torch.Generator().manual_seed(0)
    target = math.sqrt(0.5) * torch.randn(500, 2, generator=generator)
    found = indm.reweight(
        lambda x: -x.square().sum(1),
        model,
        n=1000,
        generator=generator,
        progress=False,
        target_draws=target,
    )
    assert found.log_z.low <= math.log(math.pi) <= found.log_z.high
    # (∫p̃)²/∫p̃²/q, with the ratio of two Gaussian integrals
    assert found.ess.low <= 0.75 <= found.ess.high
    assert found.probe_variance < 1e-8
    assert 0 < found.solver_error < 0.01
    assert not found.forward.disagrees


def test_numpy_batches_saving_and_resampling(tmp_path):
    rng = np.random.default_rng(0)
    x = 1.2 * rng.normal(size=(1000, 2))
    sizes = []

    def log_target(rows):
        sizes.append(len(rows))
        return -0.5 * np.square(rows).sum(1)

    log_q = -0.5 * np.square(x / 1.2).sum(1) - math.log(2 * math.pi * 1.2**2)
    found = reweight(log_target, draws=x, log_q=log_q, batch_size=300, progress=False)
    assert sizes == [300, 300, 300, 100]
    assert found.log_z.value == pytest.approx(math.log(2 * math.pi), abs=0.03)
    assert found.resample(50_000).var(0) == pytest.approx(1.0, abs=0.15)
    found.save(tmp_path / "weights.npz")
    again = Weights.load(tmp_path / "weights.npz")
    assert str(again) == str(found)
    assert np.array_equal(again.draws, x)


def test_no_mass_is_weight_0_and_equal_weights_have_no_tail():
    q = normal(1.0)
    torch.manual_seed(0)
    x = q.sample((4000,))
    half = reweight(
        lambda x: torch.where(x[:, 0] > 0, q.log_prob(x), -math.inf),
        draws=x,
        log_q=q.log_prob,
        progress=False,
    )
    assert half.log_z.low <= math.log(0.5) <= half.log_z.high
    assert half.ess.low <= 0.5 <= half.ess.high
    same = reweight(q.log_prob, draws=x, log_q=q.log_prob, progress=False)
    assert same.k == -math.inf
    assert (same.ess.value, same.log_z.value) == (pytest.approx(1.0), pytest.approx(0.0))


def test_zeros_are_no_part_of_the_tail():
    """3 % of the draws have a weight: as many as a tail of all n would hold, whose law is that of
    the rest.
    """
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(REPETITIONS):
        some = rng.random(10_000) < 0.03
        log_weights = np.where(some, rng.normal(0, 0.3, 10_000), -np.inf)
        found = Weights(np.arange(10_000), log_weights)
        truth = math.log(0.03) + 0.3**2 / 2
        inside.append(found.log_z.low <= truth <= found.log_z.high)
        assert abs(found.log_z.value - truth) < 0.3
    assert np.mean(inside) >= 0.9


def test_too_few_weights_are_refused():
    """40 weights of 1,000 draws have no tail that can be fitted."""
    rng = np.random.default_rng(0)
    log_weights = np.where(np.arange(1000) < 40, rng.normal(size=1000), -np.inf)
    found = Weights(np.arange(1000), log_weights)
    assert found.log_z.refused and found.ess.refused and found.mean(np.arange(1000)).refused
    assert "more draws" in found.verdict


def test_a_rare_event_has_the_interval_of_its_count():
    """Ten of 10,000 equal weights: Poisson's interval is 4.8 to 18.4."""
    found = Weights(np.arange(10_000), np.zeros(10_000)).mean(lambda x: x < 10)
    assert found.value == pytest.approx(1e-3)
    assert 3e-4 <= found.low <= 6e-4
    assert 1.5e-3 <= found.high <= 2e-3


def test_a_mean_that_only_weights_of_0_change_is_exact():
    log_weights = np.where(np.arange(200) < 100, 0.0, -np.inf)
    found = Weights(np.arange(200), log_weights).mean(lambda x: x >= 100)
    assert (found.low, found.value, found.high) == (0, 0, 0)


def test_target_draws_where_q_has_no_density():
    """q = U(0, 1) and p = U(0, 2): half of the target is missed. The other way round nothing is."""
    rng = np.random.default_rng(0)

    def uniform(width):
        def log_density(x):
            return np.where(x < width, -math.log(width), -np.inf)

        return log_density

    x, y = rng.random(2000), 2 * rng.random(2000)
    missed = reweight(uniform(2), draws=x, log_q=uniform(1), target_draws=y, progress=False)
    assert missed.forward.disagrees
    assert missed.forward.ess.refused
    found = reweight(uniform(1), draws=y, log_q=uniform(2), target_draws=x, progress=False)
    assert not found.forward.disagrees
    assert found.forward.log_z.low <= 0 <= found.forward.log_z.high
    assert found.forward.ess.low <= 0.5 <= found.forward.ess.high


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_errors_of_log_q_that_are_stated_are_no_disagreement(scale):
    """Noise of variance 0.09, and errors of 0.1 with the sign of a coordinate."""
    torch.manual_seed(0)
    p, q = normal(1.0), normal(scale)
    given = {"draws": q.sample((50_000,)), "target_draws": p.sample((50_000,)), "progress": False}

    def noisy(x):
        return q.log_prob(x) + 0.3 * torch.randn(len(x))

    def biased(x):
        return q.log_prob(x) + 0.1 * x.norm(dim=1).sub(1.1).sign()

    assert reweight(p.log_prob, log_q=noisy, **given).forward.disagrees or scale > 1
    assert not reweight(p.log_prob, log_q=noisy, probe_variance=0.09, **given).forward.disagrees
    assert reweight(p.log_prob, log_q=biased, **given).forward.disagrees
    assert not reweight(p.log_prob, log_q=biased, solver_error=0.1, **given).forward.disagrees


def test_a_solver_error_widens_means():
    """E‖x‖² under weights that are off by ±0.1, the worst case for it."""
    torch.manual_seed(0)
    p = normal(1.0)
    x = p.sample((100_000,))
    square = x.square().sum(1)
    log_q = p.log_prob(x) - 0.1 * (square - 2).sign()
    found = reweight(p.log_prob, draws=x, log_q=log_q, solver_error=0.1, progress=False).mean(
        square
    )
    plain = reweight(p.log_prob, draws=x, log_q=log_q, progress=False).mean(square)
    assert found.low <= 2 <= found.high
    assert not plain.low <= 2 <= plain.high


def test_lists_and_half_precision_are_taken():
    q = normal(1.2)
    torch.manual_seed(0)
    x = q.sample((1000,))
    half = reweight(
        lambda x: normal(1.0).log_prob(x).bfloat16(), draws=x, log_q=q.log_prob(x), progress=False
    )
    assert abs(half.log_z.value) < 0.1
    rows = reweight(
        lambda x: -np.square(x).sum(1),
        draws=x.tolist(),
        log_q=q.log_prob(x).tolist(),
        progress=False,
    )
    assert rows.log_z.value == pytest.approx(math.log(math.pi), abs=0.1)
    assert len(rows.resample(10)) == 10


def test_draws_of_a_conditional_model_at_one_condition():
    classes = {"name": "classes", "labels": ["a", "b"]}
    net = {"name": "mlp", "width": 8, "depth": 1}  # 0 before it is trained
    model = indm.build_model(
        {"flow": "identity", "sde": "vp", "net": net, "condition": classes}, (2,)
    )
    torch.manual_seed(0)
    target = torch.randn(200, 2)
    found = indm.reweight(
        normal(1.0).log_prob, model, n=200, c="a", target_draws=target, exact=True, progress=False
    )
    assert found.log_z.low <= 0 <= found.log_z.high
    assert not found.forward.disagrees


X = torch.randn(200, 2)
RIGHT = {"log_target": lambda x: -x.square().sum(1), "draws": X, "log_q": torch.zeros(200)}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"log_target": lambda x: torch.full((len(x),), -math.inf)}, "log_target"),
        ({"log_target": lambda x: torch.full((len(x),), math.nan)}, "log_target"),
        ({"log_target": lambda x: torch.full((len(x),), math.inf)}, "log_target"),
        ({"log_target": lambda x: x.sum()}, "log_target"),
        ({"log_q": torch.zeros(3)}, "log_q"),
        ({"log_q": torch.full((200,), -math.inf)}, "log_q"),
        ({"log_q": None}, "log_q"),
        ({"draws": X[:1], "log_q": torch.zeros(1)}, "draws"),
        ({"draws": X[:100], "log_q": torch.zeros(100)}, "draws"),
        ({"draws": torch.ones(200, 2)}, "draws"),
        ({"draws": None}, "model or draws"),
        ({"target_draws": X}, "target_log_q"),
        ({"target_draws": X, "target_log_q": torch.full((200,), math.nan)}, "target_log_q"),
    ],
)
def test_bad_input_is_named(changed, named):
    arguments = {**RIGHT, **changed}
    with pytest.raises(ValueError, match=named):
        reweight(arguments.pop("log_target"), progress=False, **arguments)


def test_an_estimate_says_what_it_is():
    assert str(Interval(1.0, 0.5, 1.5)) == "1 (0.5 to 1.5)"
    assert str(Interval(0.4, 0.0, 0.5, at_most=True)) == "at most 0.5"


@pytest.mark.parametrize("n, shape", [(100, 0.5), (1_000, 2 / 3), (100_000, 0.7)])
def test_the_largest_shape_grows_with_the_draws_up_to_seven_tenths(n, shape):
    """min(1 − 1/log₁₀ n, 0.7), see Vehtari et al. 2024."""
    assert largest_shape(n) == pytest.approx(shape)
