"""The learned linear SDE: its kernel against its own drift and volatility, its likelihoods against closed forms."""

import math

import pytest
import torch
from closed_form import GaussianScore

import indm
from indm.flows import Identity
from indm.gaussian import GaussianReference
from indm.objective import fid_loss, nelbo
from indm.sampling import SAMPLERS, AdaptiveODE, make_sampler
from indm.sde.linear import VPSDE, truncated
from research.forward.sde import LearnedSDE

LEARN = ("drift", "volatility", "both")
SHAPE = (2, 3)


def learned(learn, scale=0.5, shape=SHAPE):
    sde = LearnedSDE(shape, learn, knots=5).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in sde.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sde


@pytest.fixture(params=[pytest.param(learn, marks=() if learn == "both" else pytest.mark.long) for learn in LEARN])
def sde(request):
    return learned(request.param)


def times(sde, n=40):
    grid = torch.linspace(0.013, 0.987, n, dtype=torch.float64)  # uniform on the clock, off the knots
    return sde.time(torch.lerp(*sde.log_snr(torch.tensor([sde.eps, sde.T], dtype=torch.float64)), grid))


@pytest.mark.parametrize("learn", LEARN)
def test_starts_at_vp(learn):
    sde, vp = LearnedSDE(SHAPE, learn), VPSDE()
    t = times(sde)
    for name in ("alpha", "sigma", "drift", "diffusion", "clock_rate", "marginal_std"):
        expected = getattr(vp, name)(t).reshape(-1, 1, 1).expand(-1, *SHAPE)
        torch.testing.assert_close(getattr(sde, name)(t), expected, rtol=1e-9, atol=0, msg=name)
    assert sde.clock_span() == vp.clock_span()


def test_drift_and_volatility_bend_the_signal_to_noise_ratio_alike():
    drift, volatility = learned("drift"), learned("volatility")
    with torch.no_grad():
        volatility.log_volatility.copy_(-2 * (drift.log_gain - drift.log_gain[:1]))
    t = times(drift)
    torch.testing.assert_close(drift.sigma(t) / drift.alpha(t), volatility.sigma(t) / volatility.alpha(t))
    assert not torch.allclose(drift.alpha(t), volatility.alpha(t), rtol=1e-2)


def gaussian(sde):
    variance = torch.linspace(0.3, 1.6, math.prod(SHAPE), dtype=torch.float64).reshape(SHAPE)
    score = GaussianScore(sde, torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(SHAPE), variance)
    return score, indm.INDM(Identity(), score, shape=SHAPE).double()


def test_bound_of_the_exact_score_is_the_entropy_and_the_closed_gap(sde):
    """Whatever the entries' paths from ε to T, an exact score leaves only the gaps at the two ends."""
    score, model = gaussian(sde)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = score.sample(40_000, generator)
        total = nelbo(model, x, times=8, reference=GaussianReference.fit(x), generator=generator).total
    error = total.std().item() / math.sqrt(len(total))
    assert error < 0.03
    assert total.mean().item() == pytest.approx(score.entropy() + score.bound_gap(), abs=4 * error)


def test_mle_loss_is_the_same_bound(sde):
    score, model = gaussian(sde)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = score.sample(40_000, generator)
        draws = [indm.mle_loss(model, x, generator=generator)[1]["nelbo"].item() for _ in range(8)]
    assert sum(draws) / 8 == pytest.approx(score.entropy() + score.bound_gap(), abs=0.2)


def test_likelihood_is_that_of_the_closed_flow(sde):
    score, model = gaussian(sde)
    x = score.sample(4, torch.Generator().manual_seed(1))
    result = indm.log_likelihood(model, x, exact=True, steps=200, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    eps, _ = sde.endpoints(x)
    with torch.no_grad():
        expected = score.flow_log_prob(sde.perturb(x, eps, noise)) - result.reconstruction
    torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if make_sampler(name).stochastic])
def test_stochastic_samplers_reach_the_law_above_the_steep_end(sde, name):
    """At ε = 0.2: near 0 a learned drift is steep, and the uniform steps of these samplers are far too few there."""
    score, _ = gaussian(sde)
    score = truncated(score, 0.2)
    generator, none = torch.Generator().manual_seed(0), torch.zeros(1, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        mean, variance = score.law(torch.tensor(1.0, dtype=torch.float64), none)
        z = mean + variance.sqrt() * torch.randn(4_000, *SHAPE, dtype=torch.float64, generator=generator)
        z, _ = make_sampler(name).solve(score, z, steps=100, generator=generator)
        mean, variance = score.law(torch.tensor(0.2, dtype=torch.float64), none)
    torch.testing.assert_close(z.mean(0), mean.reshape(SHAPE), rtol=0, atol=0.1)
    torch.testing.assert_close(z.var(0), variance.reshape(SHAPE), rtol=0.2, atol=0)


@pytest.mark.parametrize("name", ["heun", "ode"])
def test_samplers_reach_the_data(sde, name):
    """The flow of a Gaussian law is affine, so samples whose moments are those of z_T arrive with those of the data."""
    score, _ = gaussian(sde)
    sampler = AdaptiveODE(1e-3) if name == "ode" else make_sampler(name)
    noise = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean(0)) / noise.std(0)
    with torch.no_grad():  # from the law of z_T itself, which need not be the prior
        mean, variance = score.law(torch.tensor(1.0, dtype=torch.float64), torch.zeros(1, *SHAPE, dtype=torch.float64))
        z, _ = sampler.solve(score, mean + variance.sqrt() * noise, steps=60)
    torch.testing.assert_close(z.mean(0), score.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(z.var(0), score.variance, rtol=0.03, atol=0)


def test_what_it_cannot_do_is_said(sde):
    _, model = gaussian(sde)
    with pytest.raises(ValueError, match="sampler must be one of ode, euler-maruyama, ancestral, pc, heun where"):
        indm.sample(model, 2, sampler="unipc")
    generator = torch.Generator()
    default, heun = (indm.sample(model, 2, **o, generator=generator.manual_seed(0)) for o in ({}, {"sampler": "heun"}))
    assert torch.equal(default, heun)
    with pytest.raises(ValueError, match="objective must be 'mle'"):
        fid_loss(model, torch.zeros(2, *SHAPE, dtype=torch.float64))
    with pytest.raises(ValueError, match="learn must be"):
        LearnedSDE(SHAPE, "all")
    with pytest.raises(ValueError, match="knots must be"):
        LearnedSDE(SHAPE, knots=1)


def test_it_is_trained_saved_and_loaded_with_the_model(tmp_path):
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "research.forward.sde:LearnedSDE"},
        "net": {"name": "mlp", "width": 16, "depth": 1},
    }
    with indm.trust("research"):
        model = indm.build_model(tables, (3,))
    loss, _ = indm.mle_loss(model, torch.randn(64, 3))
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in model.sde.parameters())
    with torch.no_grad():
        model.sde.log_volatility.normal_()
    model.save(tmp_path)
    with indm.trust("research"):
        again, t = indm.INDM.load(tmp_path), torch.tensor([0.1, 0.7])
    assert torch.equal(again.sde.sigma(t), model.sde.sigma(t))
