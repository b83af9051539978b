"""Measures of a model against closed forms: Gaussian data with the exact score, and a mixture's exact score."""

import itertools
import json
import math

import pytest
import torch
from closed_form import SDES, GaussianScore, MixtureScore, gaussian
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from indm import INDM
from indm.data.base import Data, InMemory, stack
from indm.data.densities import DENSITIES, Density
from indm.data.registry import load_data
from indm.evaluation import sample_quality, statistics
from indm.evaluation.distances import frechet_distance
from indm.evaluation.extractor import train_extractor
from indm.evaluation.sampling_error import (
    discretization_error,
    estimation_curve,
    estimation_error,
    latent_quadrature,
    prior_error,
    sampling_errors,
)
from indm.evaluation.transport import encode_ode, transport, transport_cost
from indm.flows import Identity
from indm.flows.base import ExactFlow
from indm.sampling import AdaptiveODE
from indm.scaling import Scaling
from indm.sde.learned import LearnedSDE
from indm.sde.linear import VPSDE


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


class Normal(Density):
    """N(0, std² I) in the plane."""

    def __init__(self, std):
        self.std = std

    def sample(self, n, *, generator=None):
        return self.std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x):
        return -0.5 * (x / self.std).square().sum(1) - math.log(2 * math.pi * self.std**2)


def normal_data(score, n, name="normal"):
    parts = {
        part: InMemory(score.sample(n, torch.Generator().manual_seed(seed), torch.float32))
        for seed, part in enumerate(("train", "valid", "test"))
    }
    return Data(name=name, scaling=Scaling(), shape=tuple(score.mean.shape), **parts)


def model_of(score, flow=None, shape=(2,)):
    return INDM(Identity() if flow is None else flow, score, shape=shape)


def eight_gaussians(sde):
    density = DENSITIES["eight-gaussians"]
    return MixtureScore(sde, density.centres, torch.full((8,), density.std), torch.full((8,), 1 / 8))


def near(found, expected, name, errors=4.5):
    assert abs(found[name] - expected) < errors * found[f"{name}_standard_error"] + 1e-6, (found[name], expected)


# ── Statistics ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jackknife_of_a_mean_and_of_a_variance():
    """Over many draws the square of the error is in the mean the variance of the number."""
    generator, values, errors = torch.Generator().manual_seed(0), [], []
    for _ in range(400):
        a, b = torch.randn(100, generator=generator), 2 * torch.randn(60, generator=generator)
        found = statistics.jackknife(lambda a, b: {"v": (a.mean() + b.mean()).item(), "w": b.var().item()}, a, b)
        values.append([found["v"], found["w"]])
        errors.append([found["v_standard_error"], found["w_standard_error"]])
    squares = torch.tensor(errors).square().mean(0)
    torch.testing.assert_close(squares, torch.tensor([1 / 100 + 4 / 60, 2 * 16 / 59]), rtol=0.15, atol=0)
    torch.testing.assert_close(torch.tensor(values).var(0), squares, rtol=0.25, atol=0)
    with pytest.raises(ValueError, match="at least 20"):
        statistics.jackknife(lambda a: {"v": 0.0}, torch.zeros(19))


def test_distances_are_in_units_of_the_scaling():
    raw = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    found = sample_quality.distances(raw, raw.flip(0) // 2, Scaling.images(256))
    halves = sample_quality.distances(raw, raw.flip(0) // 2, Scaling(0.0, 256.0))
    assert found["sliced_wasserstein"] == pytest.approx(2 * halves["sliced_wasserstein"], rel=1e-4)
    assert sample_quality.distances(raw, raw, Scaling.images(256))["sliced_wasserstein"] == 0.0
    assert found["frechet"] is None and found["images"] == 60


# ── Quality ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_quality_of_the_exact_score_reaches_the_floor():
    score = gaussian("vp")
    data = normal_data(score, 1200)
    rows = sample_quality.quality(model_of(score), data, steps=(3, 40), images=600, progress=False)
    json.dumps(rows, allow_nan=False)
    assert [row["sampler"] for row in rows[::2]] == ["data", "unipc", "heun", "euler-maruyama"]
    assert [row["nfe"] for row in rows] == [0, 4, 41, 7, 81, 4, 41]
    floor = rows[0]
    assert floor["sets"] == 2 and floor["frechet"] is None
    for row in rows[2::2]:
        assert row["sliced_wasserstein"] < floor["sliced_wasserstein"] + 4 * row["sliced_wasserstein_standard_error"]
    assert rows[5]["sliced_wasserstein"] > 3 * rows[6]["sliced_wasserstein"]


def test_quality_starts_every_number_of_steps_from_the_same_noise():
    """A recorded z_T: the same for all rows, and in batches the same as whole."""
    seen = {}

    class Recording(GaussianScore):
        def forward(self, z, t):
            if bool((t == self.sde.T).all()):
                seen.setdefault(z.shape, []).append(z.clone())
            return super().forward(z, t)

    score = Recording(VPSDE(), torch.zeros(2), torch.ones(2))
    sample_quality.quality(model_of(score), normal_data(score, 300), steps=(5, 10), images=300, progress=False)
    for starts in seen.values():
        assert len(starts) == 6 and all(torch.allclose(starts[0], other) for other in starts)


def test_quality_of_images_has_frechet_distances():
    data = load_data("digits")
    extractor = train_extractor(data, epochs=1, most=500, progress=False)
    raw = data.scaling.to_model(stack(data.train))
    score = GaussianScore(VPSDE(), raw.mean(0), raw.var(0))
    model = INDM(Identity(), score, data.scaling, data.shape)
    floor, row = sample_quality.quality(
        model, data, extractor, samplers=("unipc",), steps=(20,), images=150, progress=False
    )
    assert floor["sets"] == 5 and floor["frechet_spread"] > 0
    assert row["frechet"] > floor["frechet"] + 4 * floor["frechet_spread"]
    samples, _ = sample_quality.solve(model, sample_quality.prior_draws(model, 150, 0), "unipc", 20)
    features = [extractor.features(part) for part in (data.scaling.to_data(samples), stack(data.test, 150))]
    assert row["frechet"] == pytest.approx(frechet_distance(*features), rel=1e-6)


# ── Transport ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SDES)
def test_encoding_and_sampling_by_the_ode_undo_each_other(name):
    score = gaussian(name)
    model, eps = model_of(score), torch.tensor(score.sde.eps)
    z = score.sde.perturb(score.sample(50, dtype=torch.float32), eps, torch.randn(50, 2))
    z_T, nfe = encode_ode(model, z)
    expected = score.flow(z, score.sde.eps, score.sde.T)
    torch.testing.assert_close(z_T, expected, rtol=1e-3, atol=1e-3 * score.sde.prior_std)
    back, _ = AdaptiveODE().solve(score, z_T)
    torch.testing.assert_close(back, z, rtol=1e-3, atol=1e-3)
    assert nfe > 10


def latent_displacement(score):
    """Mean and variance of each entry of z_T − z_0 along the probability flow."""
    sde, like = score.sde, torch.zeros((), dtype=torch.float64)
    eps, T = like + sde.eps, like + sde.T
    ratio = (score.law(T, like)[1] / score.law(eps, like)[1]).sqrt()
    mean = (sde.alpha(T) - 1) * score.mean
    return mean, (ratio * sde.alpha(eps) - 1) ** 2 * score.variance + (ratio * sde.sigma(eps)) ** 2


def test_transport_of_a_gaussian_is_optimal_and_costs_what_it_must():
    """Entry by entry monotone, hence optimal: W₂² of the two Gaussians, but for the noise at ε."""
    score = gaussian("vp")
    x = score.sample(600, torch.Generator().manual_seed(1), torch.float32)
    found = transport(model_of(score), x, progress=False)
    json.dumps(found, allow_nan=False)
    mean, variance = latent_displacement(score)
    for part in ("data", "latent"):
        near(found[part], (mean**2 + variance).sum().item(), "cost")
        assert found[part]["cost_per_dimension"] == pytest.approx(found[part]["cost"] / 2)
        assert 0 <= found[part]["excess"] < 2e-3 * found[part]["cost"]
        assert found[part]["ratio"] == pytest.approx(1.0, abs=3e-3)
    _, end = score.law(torch.tensor(score.sde.T), torch.zeros(()))
    gaussian_optimum = mean.square().sum() + (end.sqrt() - score.variance.sqrt()).square().sum()
    near(found["data"], gaussian_optimum.item(), "optimal")


def test_transport_behind_a_shear_is_not_optimal():
    """x_T − x_0 = A⁻¹(z_T − z_0) is no gradient: the excess is that over W₂² of the two Gaussians of x."""
    shear = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    score = GaussianScore(VPSDE(), torch.tensor([0.3, -0.2]).double(), torch.tensor([0.05, 4.0]).double())
    inverse = torch.linalg.inv(shear)
    x = (score.sample(800, torch.Generator().manual_seed(1)) @ inverse.T).float()
    found = transport(model_of(score, Linear(shear)), x, progress=False)
    mean, variance = latent_displacement(score)
    cost = (inverse @ mean).square().sum() + (inverse.square() @ variance).sum()
    near(found["data"], cost.item(), "cost")
    near(found["latent"], (mean**2 + variance).sum().item(), "cost")
    assert found["latent"]["excess"] < 2e-3 * found["latent"]["cost"]
    end = score.law(torch.tensor(score.sde.T, dtype=torch.float64), mean)
    draws = [score.sample(100_000), end[0] + end[1].sqrt() * torch.randn(100_000, 2, dtype=torch.float64)]
    optimum = frechet_distance(*(draw @ inverse.T for draw in draws))
    assert found["data"]["optimal"] == pytest.approx(optimum, rel=0.1)
    assert found["data"]["excess"] > 10 * found["data"]["excess_standard_error"] > 0
    assert found["data"]["excess"] == pytest.approx(cost.item() - optimum, rel=0.1)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 3.0))
def test_no_pairing_costs_less_than_the_optimum(seed, dims, scale):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(20, dims, generator=generator), scale * torch.randn(20, dims, generator=generator)
    found = transport_cost(a, b)
    assert found["optimal"] <= found["cost"] + 1e-12 and found["ratio"] >= 1 - 1e-12
    if dims == 1:
        sorted_cost = (a.sort(0).values - b.sort(0).values).double().square().mean().item()
        assert found["optimal"] == pytest.approx(sorted_cost, rel=1e-5)


def test_transport_takes_a_number_of_samples_that_can_be_paired():
    model = model_of(gaussian("vp"))
    for n in (19, 2001):
        with pytest.raises(ValueError, match=f"20 to 2000 samples, got {n}"):
            transport(model, torch.zeros(n, 2))


# ── Prior ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_prior_error_of_gaussian_latents(name):
    """KL of N(α m, α² v + σ²) from π lies at the lower bound; the upper has E(α z − m)² and σ² apart."""
    score = gaussian(name, **({"beta_max": 4.0} if name == "vp" else {"sigma_max": 3.0}))
    sde, z = score.sde, score.sample(2000)
    noisy = sde.perturb(z, z.new_full((len(z),), sde.T), torch.randn_like(z))
    found = prior_error(sde, z.float(), noisy.float())
    T, power = torch.tensor(sde.T, dtype=torch.float64), sde.prior_std**2
    mean, variance = score.law(T, z)
    below = 0.5 * ((variance + mean**2) / power - 1 - (variance / power).log()).sum().item()
    second = (sde.alpha(T) ** 2 * (score.variance + score.mean**2) + sde.sigma(T) ** 2) / power
    above = 0.5 * (second - 1 - (sde.sigma(T) ** 2 / power).log()).sum().item()
    near(found, above, "kl_above")
    assert found["kl_below"] == pytest.approx(below, rel=0.1)
    assert found["kl_below"] < found["kl_above"]


def test_prior_distance_sees_a_shift_above_its_floor():
    sde, z = VPSDE(), torch.zeros(2000, 2)
    z_T = torch.randn(2000, 2) + torch.tensor([1.0, 0.0])
    found = prior_error(sde, z, z_T)
    assert found["sliced_wasserstein"] == pytest.approx(math.sqrt(0.5), rel=0.1)
    assert found["sliced_wasserstein_floor"] < 0.1


# ── Discretization ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("sampler", "order"), [("heun", 2), ("dpm++2m", 2)])
def test_discretization_error_falls_with_the_order_of_the_sampler(sampler, order):
    score = gaussian("vp").double()
    model = model_of(score)
    model.scaling.double()
    z_T = score.sde.prior_sample((100, 2), dtype=torch.float64)
    converged, _ = sample_quality.solve(model, z_T, "ode")
    rows = discretization_error(model, z_T, converged, sampler=sampler, steps=(20, 40, 80), progress=False)
    for coarse, fine in itertools.pairwise(rows):
        assert math.log2(coarse["rms"] / fine["rms"]) == pytest.approx(order, abs=0.5)
        assert 0 < coarse["rms_standard_error"] < 0.2 * coarse["rms"] and coarse["rms_grey_levels"] is None


def test_discretization_error_in_grey_levels_is_scaled():
    score = GaussianScore(VPSDE(), torch.zeros(1, 8, 8), 0.2 * torch.ones(1, 8, 8))
    model = INDM(Identity(), score, Scaling.images(256), (1, 8, 8))
    z_T = sample_quality.prior_draws(model, 30, 0)
    converged, _ = sample_quality.solve(model, z_T, "ode")
    (row,) = discretization_error(model, z_T, converged, steps=(5,), progress=False)
    x, _ = sample_quality.solve(model, z_T, "unipc", 5)
    assert row["rms"] == pytest.approx((x - converged).square().mean().sqrt().item(), rel=1e-5)
    assert row["rms_grey_levels"] == pytest.approx(128 * row["rms"], rel=1e-5)
    assert row["rms_grey_levels_standard_error"] == pytest.approx(128 * row["rms_standard_error"], rel=1e-5)


# ── Estimation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_quadrature_gives_the_exact_score_of_a_mixture(name):
    density, sde = DENSITIES["eight-gaussians"], SDES[name]()
    exact = eight_gaussians(sde)
    quadrature = latent_quadrature(model_of(exact), density, step=0.02)
    assert quadrature.spacing == pytest.approx(0.02, rel=1e-3)
    for clock in torch.linspace(2 * math.log(0.04), sde.clock_span()[1], 6).double():
        t = sde.time(-clock).float()
        each = t.expand(200)
        z_t = sde.perturb(density.sample(200), each, torch.randn(200, 2)).double()
        expected = sde.sigma(t.double()) * exact(z_t, each.double())
        torch.testing.assert_close(quadrature.score(sde, z_t, t), expected, rtol=2e-3, atol=2e-3)


def test_quadrature_behind_a_flow_and_an_sde_of_each_entry():
    """z = A x of a mixture: its score is A⁻ᵀ that of x for equal coefficients; for entries apart, autograd's."""
    density, matrix = DENSITIES["eight-gaussians"], torch.tensor([[1.5, 0.5], [0.0, 0.7]])
    sde = LearnedSDE((2,), knots=3)
    with torch.no_grad():
        sde.log_volatility.add_(0.4 * torch.randn_like(sde.log_volatility))
    model = model_of(eight_gaussians(sde), Linear(matrix))
    quadrature = latent_quadrature(model, density, step=0.02)
    assert quadrature.spacing == pytest.approx(0.02 * matrix.norm(dim=0).max().item(), rel=1e-3)
    t = torch.tensor(0.4)
    alpha, sigma = sde.alpha(t[None].double()).detach()[0], sde.sigma(t[None].double()).detach()[0]
    z_t = torch.randn(20, 2, dtype=torch.float64).requires_grad_()
    carried = density.centres @ matrix.double().T * alpha
    spread = alpha[:, None] * (0.01 * matrix.double() @ matrix.double().T) * alpha + torch.diag(sigma**2)
    parts = torch.distributions.MultivariateNormal(carried, spread).log_prob(z_t[:, None])
    (score,) = torch.autograd.grad(parts.logsumexp(1).sum(), z_t)
    with torch.no_grad():
        torch.testing.assert_close(quadrature.score(sde, z_t, t), sigma * score, rtol=2e-3, atol=2e-3)


def test_estimation_curve_of_a_scaled_score():
    """s = c·true for p = N(0, v I): ½ E‖σ(s − true)‖² = (c − 1)² σ²/(α² v + σ²) in two dimensions."""
    std, factor = 0.3, 1.2
    exact = GaussianScore(VPSDE(), torch.zeros(2), torch.full((2,), std**2))
    found = estimation_curve(
        model_of(Scaled(exact, factor)), Normal(std), samples=1000, times=8, step=0.02, progress=False
    )
    json.dumps(found, allow_nan=False)
    for point in found["curve"]:
        r = math.exp(point["clock"])
        expected = (factor - 1) ** 2 * r / (std**2 + r)
        assert abs(point["integrand"] - expected) < 4.5 * point["standard_error"], point
    start, end = found["range"]
    assert start == pytest.approx(2 * math.log(0.04), abs=1e-2) and end == found["whole_range"][1]
    integral = (factor - 1) ** 2 * math.log((std**2 + math.exp(end)) / (std**2 + math.exp(start)))
    assert abs(found["integral"] - integral) < 4.5 * found["integral_standard_error"] + 0.02 * integral
    exactly = estimation_curve(model_of(exact), Normal(std), samples=200, times=5, step=0.02, progress=False)
    assert exactly["integral"] < 1e-4


def test_estimation_error_in_nats_is_the_integral_over_the_whole_clock():
    """s = c·true for the eight Gaussians: E[NELBO] − H − KL is (c − 1)² times the integral of ½E‖σ·true‖²."""
    sde, density, factor = VPSDE(eps=1e-3), DENSITIES["eight-gaussians"], 1.1
    exact, raw = eight_gaussians(sde), DENSITIES["eight-gaussians"].sample(2000)
    prior = prior_error(sde, raw, raw)
    found = estimation_error(model_of(Scaled(exact, factor)), density, raw, prior, progress=False)
    curve = estimation_curve(model_of(Scaled(exact, factor)), density, times=12, step=0.02, progress=False)
    # Below the range that is resolved the kernel is far narrower than the data, and E‖σ s‖² = 2 r/(std² + r); what the
    # reconstruction adds at ε is of the order of σ_ε²/std² = 0.01.
    below = (factor - 1) ** 2 * math.log(
        (0.01 + math.exp(curve["range"][0])) / (0.01 + math.exp(curve["whole_range"][0]))
    )
    error = math.hypot(found["standard_error"], curve["integral_standard_error"])
    assert abs(found["nats"] - curve["integral"] - below) < 4.5 * error + 0.02 * curve["integral"]
    assert 0 <= found["nats_uncertainty"] < 1e-4


# ── All of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sampling_errors_of_an_exact_score_are_small():
    data = load_data("eight-gaussians", samples=400, valid_samples=1, test_samples=400)
    found = sampling_errors(model_of(eight_gaussians(VPSDE())), data, images=400, steps=(5, 40), progress=False)
    json.dumps(found, allow_nan=False)
    assert found["prior"]["kl_below"] < found["prior"]["kl_above"] < 1e-3
    five, forty = found["discretization"]
    assert forty["rms"] < 0.1 * five["rms"] and forty["nfe"] == 41
    estimation = found["estimation"]
    # z_T of the data is off the prior's by α_T z_0, of 0.0066 latent units, and the way back stretches little.
    assert 0 < found["prior"]["rms"] < 0.05
    seen = estimation["samples"]
    limit = estimation["floor"]["sliced_wasserstein"] + 6 * seen["sliced_wasserstein_standard_error"]
    assert seen["sliced_wasserstein"] < limit
    assert estimation["curve"]["integral"] < 1e-3
    assert abs(estimation["kl"]["nats"]) < 5 * estimation["kl"]["standard_error"] + 1e-3


def test_sampling_errors_of_data_whose_density_is_unknown_have_no_nats():
    score = gaussian("ve", shape=(3,))
    found = sampling_errors(
        model_of(score, shape=(3,)), normal_data(score, 100), images=5000, steps=(5,), progress=False
    )
    assert found["images"] == 100 and set(found["estimation"]) == {"samples", "floor"}


def test_unknown_and_stochastic_samplers_are_errors():
    model, data = model_of(gaussian("vp")), normal_data(gaussian("vp"), 40)
    with pytest.raises(ValueError, match=r"sampler must be one of .*, got 'euler'"):
        sample_quality.quality(model, data, samplers=("euler",))
    with pytest.raises(ValueError, match="got 'pc'"):
        sampling_errors(model, data, sampler="pc")
