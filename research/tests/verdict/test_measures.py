"""The measures of a model against closed forms: Gaussian data with the exact score, and flows that are known."""

import json
import math

import pytest
import torch
from closed_form import GaussianScore
from torch import nn

from indm import INDM, Likelihoods
from indm.flows import ActNorm, ElementwiseFlow, ExactFlow, Identity
from indm.nets import Zero
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde import VPSDE
from research.lab.distances import make_generator, prior_draws, solve
from research.verdict import measures


class Linear(ExactFlow):
    """z = A x for vectors."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.as_tensor(matrix))

    def forward(self, x, *, generator=None):
        return x @ self.matrix.to(x).T, torch.linalg.slogdet(self.matrix.to(x))[1].expand(len(x))

    def inverse_step(self, z):
        return torch.linalg.solve(self.matrix.to(z), z.T).T


class Scaled(nn.Module):
    """A known score times a constant."""

    def __init__(self, score, factor):
        super().__init__()
        self.score, self.sde, self.factor = score, score.sde, factor

    def forward(self, z, t):
        return self.factor * self.score(z, t)


class Sinh(ExactFlow):
    """x = sinh(z)."""

    def forward(self, x, *, generator=None):
        return x.asinh(), -0.5 * x.square().log1p().flatten(1).sum(1)

    def inverse_step(self, z):
        return z.sinh()


class Band(ExactFlow):
    """Every wave of some cycles an image, in every channel, times ``scale``."""

    def __init__(self, side, cycles, scale):
        super().__init__()
        rows = torch.fft.fftfreq(side) * side
        self.gain = torch.where(torch.hypot(rows[:, None], rows).round() == cycles, scale, 1.0)

    def _times(self, x, gain):
        return torch.fft.ifft2(torch.fft.fft2(x) * gain.to(x)).real

    def forward(self, x, *, generator=None):
        return self._times(x, self.gain), self.gain.log().sum().expand(len(x)) * x.shape[1]

    def inverse_step(self, z):
        return self._times(z, 1 / self.gain)


def near(found, expected, name, errors=4.5):
    assert abs(found[name] - expected) < errors * found[f"{name}_standard_error"] + 1e-6, (found[name], expected)


def gaussian_model(variance, shape, beta_max=20.0, factor=1.0, flow=None):
    """The exact score of N(0, variance), times a factor, for continuous data in model units."""
    score = GaussianScore(VPSDE(beta_max=beta_max), torch.zeros(shape), torch.full(shape, variance))
    return INDM(flow or Identity(), Scaled(score, factor) if factor != 1 else score, shape=shape)


def law(model, t):
    """α, σ² of the model's SDE, and the variance of z_t, as numbers."""
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = model.sde.alpha(t).item(), model.sde.sigma(t).item()
    return alpha, sigma**2, alpha**2 * model.score.variance.flatten()[0].item() + sigma**2


def pixels(raw):
    return raw.flatten(1)


def scales(*numbers):
    """The flow that multiplies channels by these numbers."""
    flow = ActNorm(len(numbers))
    flow.log_scale.data.copy_(torch.tensor(numbers).log())
    return flow


# ── Likelihood ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bound_of_gaussian_data_is_above_log_p_by_its_known_gap():
    model = gaussian_model(0.5, (1, 3, 3))
    raw = model.score.sample(400, dtype=torch.float32)
    found, nats = measures.bound(model, raw, 0)
    json.dumps(found, allow_nan=False)
    difference = nats["nelbo_nats"] + model.score.log_prob(raw.double())
    error = difference.std().item() / math.sqrt(400)
    assert abs(difference.mean().item() - model.score.bound_gap()) < 4.5 * error + 1e-3
    assert nats["nelbo_nats"].mean().item() == pytest.approx(found["with_reconstruction"]["nats"])
    score = sum(level["nats"] for level in found["by_level"])
    assert score == pytest.approx(nats["nelbo_levels_nats"].sum(1).mean().item(), rel=1e-6)
    assert score == pytest.approx(found["terms"]["score"]["nats"], rel=1e-6)


def test_gap_of_a_score_that_is_a_tenth_too_large():
    """VP, N(0, 1) data, s = −1.1 z: NELBO 1.469 and NLL of the ODE 1.782, nats a dimension."""
    model = gaussian_model(1.0, (1, 2, 2), factor=1.1)
    raw = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found, nats = measures.gap(model, raw, 0)
    assert abs(found["nats"] / 4 + 0.313) < 4.5 * found["nats_standard_error"] / 4 + 1e-3
    assert 0 < found["nats_standard_error"] < 0.2 and found["solver_error_bits_per_dim"] < 1e-3
    assert found["nll_bits_per_dim"] == pytest.approx(1.782 / math.log(2), abs=0.15)
    assert len(nats["nll_coarse_nats"]) == 400
    exact, _ = measures.gap(gaussian_model(1.0, (1, 2, 2)), raw, 0)
    assert abs(exact["nats"]) < 4.5 * exact["nats_standard_error"] + 1e-3


def test_the_error_of_the_gap_is_over_images_and_of_the_correction(monkeypatch):
    nll = {"with_reconstruction": {"nats": 2.0, "bits_per_dim": 1.0}, "added_error": {"nats": 0.3}}
    report = {
        "nelbo": {"with_reconstruction": {"nats": 5.0}},
        "nll": nll | {"solver_error": {"bits_per_dim": 1e-4}},
        "dims": 4,
    }
    nats = {"nelbo": torch.tensor([1.0, 2.0, 3.0]), "nll_coarse": torch.tensor([1.0, 1.0, 1.0])}
    monkeypatch.setattr(measures, "evaluate", lambda *_, **__: Likelihoods(report, nats))
    found, _ = measures.gap(None, torch.zeros(3), 0)
    assert found["nats"] == 3.0 and found["bits_per_dim"] == pytest.approx(3.0 / (4 * math.log(2)))
    assert found["nats_standard_error"] == pytest.approx(math.hypot(1 / math.sqrt(3), 0.3))


# ── Samples ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_few_steps_of_gaussian_data():
    """Samples in 32 evaluations have the law of the data; one step of Euler–Maruyama has a variance in closed form."""
    model = gaussian_model(0.25, (1, 2, 2))
    test = model.score.sample(4000, dtype=torch.float32)
    z_T = prior_draws(model, 4000, 0)
    x, _ = solve(model, z_T[:1000], "ode")
    torch.testing.assert_close(measures.default_samples(model, z_T[:1000], 96), x, rtol=0, atol=2e-4)
    rows = measures.few_steps(model, z_T, x, test, pixels, 0)
    ours, euler = rows[:5], rows[5:]
    assert ours[4]["frechet"] < 4 * 0.002
    assert [row["evaluations"] for row in ours] == [row["evaluations"] for row in euler] == [2, 4, 8, 16, 32]
    assert ours[0]["squared"] > 10 * ours[2]["squared"] > 100 * ours[4]["squared"] > 0
    assert "squared" not in euler[0]

    T, eps = model.sde.T, model.sde.eps
    f, g2 = (fn(torch.tensor(T, dtype=torch.float64)).item() for fn in (model.sde.drift, model.sde.diffusion))
    g2, (alpha, sigma2, variance), length = g2**2, law(model, eps), T - eps
    after = (1 - (f + g2 / law(model, T)[2]) * length) ** 2 + g2 * length
    std = math.sqrt(after) * (1 - sigma2 / variance) / alpha
    assert euler[0]["frechet"] == pytest.approx(4 * (std - 0.5) ** 2, rel=0.05)


def test_default_samples_take_the_evaluations_that_are_asked_for():
    model, calls = gaussian_model(0.25, (1, 2, 2)), []
    model.score.register_forward_hook(lambda *_: calls.append(1))
    measures.default_samples(model, prior_draws(model, 3, 0), 16)
    assert len(calls) == 16


def test_squared_distance_is_the_mean_over_entries():
    found = measures.squared("d", torch.tensor([[1.0, 3.0], [0.0, 2.0], [1.0, 1.0]]))
    assert found["d"] == pytest.approx(8 / 3)
    assert found["d_standard_error"] == pytest.approx(torch.tensor([5.0, 2.0, 1.0]).std().item() / math.sqrt(3))


def test_theorem_of_gaussian_data():
    """Each part for N(0, v) and its exact score, under a diffusion that ends early, and a prior off its mean by m."""
    model, m = gaussian_model(0.25, (1, 2, 2), beta_max=4.0), 0.2
    model.sde.prior_mean.fill_(m)
    train, test = (model.score.sample(500, torch.Generator().manual_seed(seed), torch.float32) for seed in (1, 2))
    z_T = prior_draws(model, 500, 0)
    x, _ = solve(model, z_T, "ode")
    found = measures.theorem(model, z_T, x, train, test, pixels, 0)
    json.dumps(found, allow_nan=False)

    (alpha, sigma2, after), (alpha_eps, sigma2_eps, before) = law(model, model.sde.T), law(model, model.sde.eps)
    near(found, 4 * 0.5 * (alpha**2 * 0.25 + m**2 + sigma2 - 1 - math.log(sigma2)), "prior_kl")
    back = math.sqrt(before / after) * (1 - sigma2_eps / before) / alpha_eps
    near(found, back**2 * (alpha**2 * 0.25 + m**2 + (math.sqrt(sigma2) - 1) ** 2), "prior_squared")
    assert 0 < found["discretization_squared"] < 0.01 * found["prior_squared"]
    assert found["estimation_frechet"] < 4 * 0.25 * 20 / 500 and found["floor_frechet"] < 4 * 0.25 * 20 / 500
    wrong = gaussian_model(0.25, (1, 2, 2), beta_max=4.0, factor=1.2)
    estimation = measures.theorem(wrong, z_T, x, train, test, pixels, 0)["estimation_frechet"]
    assert estimation > 3 * found["estimation_frechet"]
    near(measures.theorem(model, z_T, x, train + 1, test, pixels, 0), 4.0, "floor_frechet")


# ── The flow ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prior_distance_of_the_identity_is_zero():
    found = measures.prior_distance(gaussian_model(1.0, (1, 4, 4)), 0)
    assert len(found) == 10 and set(found.values()) == {0.0}


def test_prior_distance_of_affine_flows():
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, -0.3], [0.0, 0.0, 0.8]])
    found = measures.prior_distance(gaussian_model(1.0, (3,), flow=Linear(matrix)), 0)
    covariance = torch.linalg.inv(matrix.T @ matrix)
    kl = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(torch.zeros(3), covariance),
        torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    )
    near(found, kl.item() / 3, "kl")
    near(found, kl.item() / 3, "exact_kl")
    near(found, covariance.diagonal().mean().item() - 1, "variance")
    near(found, 0.0, "kurtosis")

    shift = ActNorm(2)
    shift.shift.data.copy_(torch.tensor([0.3, 0.4]))
    found = measures.prior_distance(gaussian_model(1.0, (2,), flow=shift), 0)
    assert found["mean"] == pytest.approx(0.5 / math.sqrt(2), rel=1e-5)
    near(found, 0.5**2 / 4, "kl")


def test_kurtosis_of_the_law_at_the_prior():
    """Of sinh(z): E x² = (e² − 1)/2 and E x⁴ = (e⁸ − 4e² + 3)/8, of z/2 in place of z e^½ and e²."""

    class HalfSinh(Sinh):
        def forward(self, x, *, generator=None):
            z, log_det = super().forward(x)
            return 2 * z, log_det + math.log(2) * x[0].numel()

        def inverse_step(self, z):
            return (0.5 * z).sinh()

    found = measures.prior_distance(gaussian_model(1.0, (10,), flow=HalfSinh()), 0)
    second, fourth = (math.exp(0.5) - 1) / 2, (math.exp(2) - 4 * math.exp(0.5) + 3) / 8
    near(found, second - 1, "variance")
    near(found, fourth / second**2 - 3, "kurtosis")
    z = torch.linspace(-8, 8, 4001).double()
    normal, x = torch.distributions.Normal(0.0, 1.0), (0.5 * z).sinh()
    gain = normal.log_prob(z) + math.log(2) - (0.5 * z).cosh().log() - normal.log_prob(x)
    near(found, torch.trapezoid(normal.log_prob(z).exp() * gain, z).item(), "exact_kl")


def coefficients(flow, shape, t=0.4, n=40):
    model = gaussian_model(1.0, shape, flow=flow)
    x_t = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(t, dtype=torch.float64)
    return measures.coefficients(model, x_t, t, make_generator(x_t, 0, 0)), x_t, model.sde, t


def test_coefficients_of_the_identity_are_those_of_the_linear_diffusion():
    found, x_t, sde, t = coefficients(Identity(), (2, 8, 8))
    assert found["drift"] == pytest.approx(-sde.drift(t).item() * x_t.square().mean().sqrt().item(), rel=1e-5)
    assert found["volatility"] == pytest.approx(sde.diffusion(t).item(), rel=1e-5)
    assert found["noise"] == pytest.approx((sde.sigma(t) / sde.alpha(t)).item(), rel=1e-6)
    assert found["drift_beyond_linear"] < 1e-4 and abs(found["anisotropy"]) < 1e-5
    assert found["spectrum"] == pytest.approx([1.0] * 7, rel=1e-5)


def test_coefficients_of_scaled_channels_and_a_shift():
    flow = scales(2.0, 0.5)
    flow.shift.data.fill_(0.6)
    found, _, sde, t = coefficients(flow, (2, 8, 8))
    squares = torch.tensor([0.25, 4.0])  # of the singular values of J
    assert found["volatility"] == pytest.approx(sde.diffusion(t).item() * squares.mean().sqrt().item(), rel=1e-5)
    assert found["anisotropy"] == pytest.approx((squares.var(correction=0) / squares.mean() ** 2).item(), rel=1e-4)
    bias = flow.latent(torch.zeros(1, 2, 8, 8))
    beyond = (bias * torch.tensor([0.5, 2.0]).reshape(1, 2, 1, 1)).square().mean().sqrt().item()
    assert found["drift_beyond_linear"] == pytest.approx(-sde.drift(t).item() * beyond, rel=1e-4)


def test_drift_of_a_curved_flow():
    """x = sinh(z): J = √(1 + x²) and Δh⁻¹ = x."""
    found, x_t, sde, t = coefficients(Sinh(), (1, 8, 8))
    f, g2 = sde.drift(t).item(), sde.diffusion(t).item() ** 2
    drift = f * (1 + x_t.square()).sqrt() * x_t.asinh() + 0.5 * g2 * x_t
    assert found["drift"] == pytest.approx(drift.square().mean().sqrt().item(), rel=1e-4)
    assert found["drift_beyond_linear"] == pytest.approx((drift - f * x_t).square().mean().sqrt().item(), rel=1e-4)


def test_spectrum_of_the_volatility_of_a_scaled_band():
    found, *_ = coefficients(Band(8, 2, 0.5), (2, 8, 8))
    expected = [1.0] * 7
    expected[2] = 4.0
    assert found["spectrum"] == pytest.approx(expected, rel=1e-4)


def test_behaviour_has_a_row_for_each_level():
    """Behind z = 2x the path is x_t = α x + σ n/2, its drift f x_t and its volatility g/2."""
    model = gaussian_model(1.0, (1, 8, 8), flow=scales(2.0))
    rows = measures.behaviour(model, torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0)
    assert [row["noise"] for row in rows] == pytest.approx(measures.NOISES, rel=1e-5)
    for row, t in zip(rows, measures.times_at(model.sde, measures.NOISES), strict=True):
        alpha, sigma, f, g = (getattr(model.sde, name)(t).item() for name in ("alpha", "sigma", "drift", "diffusion"))
        assert row["drift"] == pytest.approx(-f * math.hypot(alpha, sigma / 2), rel=0.05)
        assert row["volatility"] == pytest.approx(g / 2, rel=1e-4)


def test_displacement_of_a_scaled_band():
    model = gaussian_model(1.0, (2, 8, 8), flow=Band(8, 3, 1.5))
    found = measures.displacement(model, torch.randn(300, 2, 8, 8, generator=torch.Generator().manual_seed(0)), 0)
    moved, energy = torch.tensor(found["moved"]), torch.tensor(found["x"])
    torch.testing.assert_close(moved[:, 3], 0.25 * energy[:, 3])
    assert moved.sum().item() == pytest.approx(moved[:, 3].sum().item(), rel=1e-5)
    assert found["frequency"][3] == 3 / 8
    assert found["size"] == pytest.approx((moved.sum() / energy.sum()).sqrt().item())
    assert found["constant"] < 0.02
    # White noise has as much energy as there are waves: 2·8·8 in all.
    assert energy.sum().item() == pytest.approx(128, rel=0.02)


def test_a_displacement_of_all_images_alike_is_constant():
    shift = ActNorm(2)
    shift.shift.data.copy_(torch.tensor([0.3, 0.0]))
    model = gaussian_model(1.0, (2, 8, 8), flow=shift)
    found = measures.displacement(model, torch.randn(50, 2, 8, 8), 0)
    assert found["constant"] == pytest.approx(1.0, rel=1e-5)
    assert found["moved"][0][0] == pytest.approx(64 * 0.09, rel=1e-4)
    none = measures.displacement(gaussian_model(1.0, (2, 8, 8)), torch.randn(50, 2, 8, 8), 0)
    assert none["size"] == none["constant"] == 0.0


@pytest.mark.parametrize("factor", [0.7, 2.0])
def test_a_shrunken_latent_has_the_score_of_its_law(factor):
    """Of N(m, v) in the latent at ``factor``: N(factor m, factor² v)."""
    mean, variance = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
    known = GaussianScore(VPSDE(), mean, variance)
    expected = GaussianScore(VPSDE(), factor * mean, factor**2 * variance)
    z_t, t = (
        torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double(),
        torch.linspace(0.1, 0.9, 6).double(),
    )
    torch.testing.assert_close(measures.Shrunk(known, factor)(z_t, t), expected(z_t, t), rtol=1e-5, atol=1e-5)


def test_a_shrunken_model_has_the_same_density():
    mean, variance = torch.zeros(2, 4, 4), torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.2
    model = INDM(Identity(), GaussianScore(VPSDE(), mean, variance), shape=(2, 4, 4))
    z_T = prior_draws(model, 200, 0)
    own, other = (solve(m, z_T, "unipc", 24)[0] for m in (model, measures.shrunken(model, 0.7)))
    torch.testing.assert_close(own, other, rtol=0.02, atol=0.05)


# ── The class ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def two_classes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    noise = 0.2 * torch.randn(n, 3, 1, 1, generator=generator)
    return (2.0 * labels - 1).reshape(-1, 1, 1, 1) + noise, labels


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_class_is_known_at_the_start_and_forgotten(scale):
    """At the noise r = σ/α the class is the sign of a sum of three entries: Φ(√(3/(0.04 + (r/scale)²)))."""
    model = gaussian_model(1.0, (3, 1, 1), flow=scales(scale, scale, scale))
    (train, of_train), (test, of_test) = two_classes(2000, 0), two_classes(2000, 1)
    found = measures.class_probe(model, train, test, (of_train, of_test), 0)
    json.dumps(found, allow_nan=False)
    assert found[0]["accuracy"] == 1.0 and found[0]["standard_error"] == 0.0
    for row in found:
        expected = torch.special.ndtr(torch.tensor(3 / (0.04 + (row["noise"] / scale) ** 2)).sqrt()).item()
        assert abs(row["accuracy"] - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 2000) + 0.01
        p = row["accuracy"]
        assert row["standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / 2000))


def test_the_control_takes_the_scale_of_the_latent_away():
    """Scaled by 3 the latent keeps its class three times as long, and as long as before in units of its deviation."""
    (train, of_train), (test, of_test) = two_classes(2000, 0), two_classes(2000, 1)
    sets = train, test, (of_train, of_test), 0
    model = gaussian_model(1.0, (3, 1, 1), flow=scales(3.0, 3.0, 3.0))
    plain, control = measures.class_probe(model, *sets), measures.class_control(model, *sets)
    for row in control:
        expected = torch.special.ndtr(torch.tensor(3 / (0.04 + row["noise"] ** 2)).sqrt()).item()
        assert abs(row["accuracy"] - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 2000) + 0.01
    assert [row["noise"] for row in control] == [row["noise"] for row in plain]
    assert control[3]["accuracy"] < plain[3]["accuracy"] - 0.05


def test_a_probe_that_learned_swapped_labels_is_always_wrong():
    (train, of_train), (test, of_test) = two_classes(200, 0), two_classes(200, 1)
    found = measures.class_probe(gaussian_model(1.0, (3, 1, 1)), train, test, (1 - of_train, of_test), 0)
    assert found[0]["accuracy"] == 0.0


# ── All of it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def bright_and_dark(n, seed):
    labels = torch.arange(n) % 2
    raw = torch.randint(100, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return (raw + 100 * labels.reshape(-1, 1, 1, 1)).to(torch.uint8), labels


def test_measure_gives_what_json_can_hold_and_repeats():
    (train, of_train), (test, of_test) = bright_and_dark(500, 0), bright_and_dark(500, 1)
    model = INDM(ElementwiseFlow((1, 8, 8)), ScoreModel(Zero(), VPSDE()), Scaling.images(256), (1, 8, 8))
    row, arrays = measures.measure(model, train, test, (of_train, of_test), 0)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert set(row) - {"seconds"} == {
        "extractor", "bound", "gap", "few_steps", "theorem", "prior_distance", "behaviour", "displacement",
        "class_probe", "class_control",
    }  # fmt: skip
    assert {name: tuple(values.shape) for name, values in arrays.items()} == {
        "nelbo_nats": (500,), "nelbo_without_reconstruction_nats": (500,), "nelbo_levels_nats": (500, 8),
        "nll_coarse_nats": (500,),
    }  # fmt: skip
    again, _ = measures.measure(model, train, test, (of_train, of_test), 0)
    assert {**again, "seconds": None} == {**row, "seconds": None}
