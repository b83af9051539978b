"""The probability flow as a transport map, against closed forms of Gaussian data."""

import json

import pytest
import torch
from closed_form import SDES, GaussianScore, gaussian
from exact_models import Linear, model_of, near
from hypothesis import given
from hypothesis import strategies as st
from indm.workbench.evaluation.sample_quality import encode_ode, frechet_distance

from indm.sampling import AdaptiveODE
from indm.sde.linear import VPSDE
from research.sampling_error.transport import transport, transport_cost


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
