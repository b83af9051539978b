"""The sampling error by parts, against closed forms: Gaussian data and a mixture with the exact score."""

import itertools
import json
import math

import pytest
import torch
from closed_form import SDES, GaussianScore, gaussian
from exact_models import Linear, Normal, Scaled, eight_gaussians, model_of, near, normal_data
from own_sde import EachEntry

from indm import INDM
from indm.flows import Identity
from indm.sampling import EulerMaruyama
from indm.scaling import Scaling
from indm.sde.linear import VPSDE
from indm.workbench.data.densities import DENSITIES
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation import sample_quality
from research.sampling_error import errors
from research.sampling_error.errors import (
    discretization_error,
    estimation_curve,
    estimation_error,
    latent_quadrature,
    path_error,
    prior_error,
    samples_of_one_path,
    sampling_errors,
)

# ── Prior ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── Discretization ────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_the_loss_of_a_stochastic_sampler_is_of_strong_order_one_and_of_its_path_alone():
    """g depends on t alone, so Euler–Maruyama is of strong order 1; the converged number of steps loses nothing."""
    score = gaussian("vp", beta_max=4.0).double()
    model = model_of(score)
    model.scaling.double()
    z_T = score.sde.prior_sample((100, 2), dtype=torch.float64)
    rows = path_error(model, z_T, steps=(25, 50, 100, 800), converged_steps=800, progress=False)
    assert [row["nfe"] for row in rows] == [26, 51, 101, 801] and {row["sampler"] for row in rows} == {"euler-maruyama"}
    for coarse, fine in itertools.pairwise(rows[:3]):
        assert math.log2(coarse["rms"] / fine["rms"]) == pytest.approx(1, abs=0.3)
        assert coarse["sliced_wasserstein"] > fine["sliced_wasserstein"] > 0
    assert rows[3]["rms"] == rows[3]["sliced_wasserstein"] == 0.0


def test_along_one_path_a_number_of_steps_has_its_usual_law_and_one_alone_its_usual_samples():
    """Beside finer steps the noise of a step is the sum of theirs; alone it is what the sampler draws."""
    score = gaussian("vp")
    z_T = score.sde.prior_sample((40_000, 2), dtype=torch.float32)
    both = samples_of_one_path(score, z_T, (3, 7), generator=torch.Generator().manual_seed(1))
    alone = samples_of_one_path(score, z_T, (3,), generator=torch.Generator().manual_seed(2))
    usual, _ = EulerMaruyama().solve(score, z_T, steps=3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(alone[3], usual, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[3].mean(0), usual.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(both[3].var(0), usual.var(0), rtol=0.04, atol=0)
    together = torch.corrcoef(torch.stack([both[3][:, 0], both[7][:, 0]]))[0, 1]
    assert together > torch.corrcoef(torch.stack([usual[:, 0], both[7][:, 0]]))[0, 1] + 0.05


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


# ── Estimation ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    sde = EachEntry((2,))
    with torch.no_grad():
        sde.log_rate.add_(0.4 * torch.randn_like(sde.log_rate))
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


# ── All of it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
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


def test_only_samplers_that_follow_a_path_have_a_loss_and_unknown_ones_are_errors(monkeypatch):
    monkeypatch.setattr(errors, "CONVERGED_STEPS", 40)
    model, data = model_of(gaussian("vp")), normal_data(gaussian("vp"), 40)
    with pytest.raises(ValueError, match=r"sampler must be one of .*, got 'euler'"):
        sample_quality.quality(model, data, samplers=("euler",))
    with pytest.raises(ValueError, match=r"sampler must be one of .*, got 'euler'"):
        sampling_errors(model, data, samplers=("euler",))
    few = {"steps": (2, 4), "images": 40, "progress": False}
    found = sampling_errors(model, data, samplers=("euler-maruyama", "pc", "unipc"), **few)
    rows = [(row["sampler"], row["steps"]) for row in found["discretization"]]
    assert rows == [("euler-maruyama", 2), ("euler-maruyama", 4), ("unipc", 2), ("unipc", 4)]
    assert min(row["rms"] for row in found["discretization"]) > 0
    again = sampling_errors(model, data, samplers=("euler-maruyama",), **few)
    assert again["discretization"] == found["discretization"][:2]  # its noise is its own
    raw = torch.stack([data.train[i] for i in range(40)])
    assert found["prior"]["latent_rms"] == pytest.approx(raw.square().mean().sqrt().item())
