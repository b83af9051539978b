"""Fitted samplers: what they are before the fit, what the fit gains on flows known in closed form, and its gradient."""

import dataclasses
import json
import math

import pytest
import torch
from closed_form import EACH_SDE, GaussianScore, MixtureScore
from own_sde import EachEntry

import indm
from indm.fitting import (
    FittedSampler,
    _Coordinates,
    _squared_distance,
    fit_sampler,
)
from indm.flows import Identity
from indm.model import INDM
from indm.sampling import AdaptiveODE, DPMSolver2M, DPMSolver3M, UniPC, make_sampler, sample, solve_latent
from indm.sde.linear import VESDE, VPSDE, LogLinearSDE, SubVPSDE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


def mixture(name="vp"):
    """Three Gaussians in the plane, to an ε at which their spread and not the noise decides."""
    sde = {"vp": VPSDE(eps=1e-3), "subvp": SubVPSDE(eps=1e-2), "ve": VESDE(0.01, 50.0, eps=1e-3)}
    sde = (sde | {"log-linear": LogLinearSDE(8.0, -10.0, eps=1e-3)})[name]
    means, stds = double([0.9, 0.3], [-0.6, 0.8], [-0.1, -1.1]), double(0.5, 0.6, 0.4)
    return INDM(Identity(), MixtureScore(sde, means, stds, double(0.5, 0.3, 0.2)), shape=(2,))


# ── before the fit ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", [UniPC(), DPMSolver2M(), DPMSolver3M()])
def test_an_unfitted_sampler_is_its_rule_to_rounding(name, rule):
    """Also of a curved flow, where the predictions depend on all states before them."""
    score = mixture(name).score
    z = score.sde.prior_sample((20, 2), generator=seeded(0), dtype=torch.float64)
    for steps in (1, 2, 5, 12):
        sampler = FittedSampler.of_rule(rule, score.sde, steps)
        assert sampler.times[0] == 1.0 and sampler.times[-1] == score.sde.eps and sampler.steps == steps
        torch.testing.assert_close(
            sampler.solve(score, z)[0], rule.solve(score, z, steps=steps)[0], rtol=1e-9, atol=1e-11
        )


def test_evaluations_are_counted_and_no_denoising_follows():
    class Counts(GaussianScore):
        calls = 0

        def forward(self, z, t):
            self.calls += 1
            return super().forward(z, t)

    model = INDM(Identity(), Counts(VPSDE(), double(0.3), double(0.5)), shape=(1,))
    sampler = FittedSampler.of_rule(UniPC(), model.sde, 4)
    z_0, nfe = solve_latent(model, torch.randn(3, 1, generator=seeded(0)), sampler)
    assert nfe == 4 == model.score.calls
    alpha = model.sde.alpha(double(model.sde.eps))
    z_eps, _ = sampler.solve(model.score, torch.randn(3, 1, generator=seeded(0)))
    torch.testing.assert_close(z_0, (z_eps / alpha).float())


def test_a_start_before_T_scales_z_T():
    """With no weight on any prediction, the state is noise of the σ of its time."""
    score = mixture("ve").score
    z = score.sde.prior_sample((5, 2), generator=seeded(0), dtype=torch.float64)
    sampler = FittedSampler((0.6, score.sde.eps), ((0.0,),))
    sigma = score.sde.sigma(double(1.0, score.sde.eps))
    torch.testing.assert_close(sampler.solve(score, z)[0], z * sigma[1] / sigma[0])
    seen = []
    score.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    sampler.solve(score, z)
    torch.testing.assert_close(seen[0][0], z * score.sde.sigma(double(0.6)) / sigma[0])
    assert seen[0][1].tolist() == [0.6] * 5


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────────


def off(model, sampler, z_T, exact, steps=None):
    return (solve_latent(model, z_T, sampler, steps)[0] - exact).square().mean().sqrt().item()


def test_a_fit_of_a_mixture_is_far_nearer_on_fresh_draws(name):
    """In float64, against the flow solved to 1e-5; the last denoising of today's rules is one of their evaluations."""
    model = mixture(name)
    fit = fit_sampler(model, 4, samples=128, iterations=40, batch_size=128, generator=seeded(0))
    z_T = model.sde.prior_sample((200, 2), generator=seeded(1), dtype=torch.float64)
    exact, _ = solve_latent(model, z_T, AdaptiveODE(1e-5))
    before = min(off(model, make_sampler(rule), z_T, exact, 3) for rule in ("unipc", "dpm++2m", "dpm++3m"))
    after = off(model, fit.sampler, z_T, exact)
    assert after < before / 4 and fit.rms < fit.rms_before / 3
    assert after == pytest.approx(fit.rms, rel=0.5)


def test_a_gaussian_flow_is_linear_and_fitted_to_the_tolerance_of_its_trajectories():
    """z_0 = E[z_0|z_ε] is affine in z_T, entry by entry, with as many factors as there are variances."""
    score = GaussianScore(VPSDE(eps=1e-3), double(0.5, -0.3), double(0.1, 1.5))
    model = INDM(Identity(), score, shape=(2,))
    fit = fit_sampler(model, 3, samples=64, iterations=100, generator=seeded(0))
    z_T = torch.randn(300, 2, generator=seeded(1), dtype=torch.float64)
    z_eps = score.flow(z_T, 1.0, score.sde.eps)
    alpha, sigma = (of(double(score.sde.eps)) for of in (score.sde.alpha, score.sde.sigma))
    precision = 1 / score.variance + alpha**2 / sigma**2
    exact = (score.mean / score.variance + alpha * z_eps / sigma**2) / precision
    assert off(model, fit.sampler, z_T, exact) < 2e-3 < off(model, UniPC(), z_T, exact, 2) / 10


def test_the_gradient_is_that_of_finite_differences(name):
    model = mixture(name)
    z_T = model.sde.prior_sample((6, 2), generator=seeded(0), dtype=torch.float64)
    z_0, coordinates = torch.randn(6, 2, dtype=torch.float64, generator=seeded(1)), _Coordinates(model.sde, 3)
    numbers = torch.from_numpy(coordinates.encode(FittedSampler.of_rule(UniPC(), model.sde, 3)))
    numbers[0] += 0.3  # T is an end of the times
    numbers += 0.1 * torch.rand(len(numbers), dtype=torch.float64, generator=seeded(2))

    def loss(numbers):
        return _squared_distance(coordinates.decode(numbers), model.score, z_T, z_0)

    assert torch.autograd.gradcheck(loss, numbers.requires_grad_(), eps=1e-5, rtol=1e-4, atol=1e-6)


def test_coordinates_are_of_the_same_sampler(name):
    """Encoded and decoded again; a rule's weights are nearly those of a constant, which sum to 1 in coordinates."""
    sde = mixture(name).sde
    sampler = FittedSampler.of_rule(UniPC(), sde, 6)
    coordinates = _Coordinates(sde, 6)
    numbers = torch.from_numpy(coordinates.encode(sampler))
    for before, after in zip(sampler.numbers(), coordinates.decode(numbers), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-12)
    rows = numbers[6:].split([1, 2, 3, 4, 5, 6])
    assert all(row.sum().item() == pytest.approx(1, abs=1e-9) for row in rows)


def test_the_distance_is_the_mean_square_of_an_entry_summed_over_the_batch():
    model = mixture()
    sampler = FittedSampler.of_rule(UniPC(), model.sde, 2)
    z_T = torch.randn(7, 2, generator=seeded(0), dtype=torch.float64)
    z_0 = torch.randn(7, 2, generator=seeded(1), dtype=torch.float64)
    z, _ = solve_latent(model, z_T, sampler)
    assert _squared_distance(sampler, model.score, z_T, z_0).item() == pytest.approx(
        (z - z_0).square().sum().item() / 2
    )


@pytest.mark.long
def test_a_fit_depends_on_its_generator_alone_and_leaves_the_model_as_it_was():
    net = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}  # smooth in time, so that few steps solve its flow
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net}
    torch.manual_seed(0)
    model = indm.build_model(tables, (2,)).train()
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=seeded(3)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fits = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(fits))
        fits.append(fit_sampler(model, 3, samples=32, iterations=5, batch_size=20, generator=seeded(seed)))
    assert fits[0] == fits[1] and fits[0].sampler != fits[2].sampler
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_what_is_no_better_on_held_out_draws_is_not_returned(monkeypatch):
    model, far = mixture(), FittedSampler((1.0, 0.5, 1e-3), ((0.0,), (0.0, 0.0)))
    monkeypatch.setattr("indm.fitting._descend", lambda *_: far)
    fit = fit_sampler(model, 2, samples=16, generator=seeded(0))
    rules = [FittedSampler.of_rule(rule, model.sde, 2) for rule in (UniPC(), DPMSolver2M())]
    assert fit.sampler in rules and fit.rms == fit.rms_before < 1


def test_a_fit_without_time_is_its_start():
    fit = fit_sampler(mixture(), 4, samples=16, seconds=1e-9, generator=seeded(0))
    assert fit.sampler in [FittedSampler.of_rule(rule, mixture().sde, 4) for rule in (UniPC(), DPMSolver2M())]
    assert fit.rms == fit.rms_before


# ── as a value ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_keeps_every_bit():
    model = mixture()
    sampler = fit_sampler(model, 3, samples=16, iterations=5, generator=seeded(0)).sampler
    again = FittedSampler(**json.loads(json.dumps(sampler.options())))
    assert again == sampler == FittedSampler(**json.loads(json.dumps(dataclasses.asdict(sampler))))
    x, y = (sample(model, 8, sampler=each, generator=seeded(0)) for each in (sampler, again))
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"times": (1.0, 0.5), "weights": ()}, "weights must be rows of 1, 2, … numbers"),
        ({"times": (1.0, 0.5), "weights": ((1.0, 1.0),)}, "got rows of 2 for 2 times"),
        ({"times": (1.0, math.nan), "weights": ((1.0,),)}, "times must be finite numbers"),
        ({"times": (1.0, 0.1), "weights": ((math.inf,),)}, "weights must be finite numbers"),
    ],
)
def test_numbers_that_are_no_sampler(options, message):
    with pytest.raises(ValueError, match=message):
        FittedSampler(**options)


def test_refusals():
    model = mixture()
    sampler = FittedSampler.of_rule(UniPC(), model.sde, 2)
    with pytest.raises(ValueError, match=r"eps must be 0\.001, for which this sampler was fitted, got 0\.1"):
        sample(model, 2, sampler=sampler, eps=0.1)
    with pytest.raises(ValueError, match="last_denoising must be True for FittedSampler"):
        sample(model, 2, sampler=sampler, last_denoising=False)
    for options, message in (
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 51}, "steps must be at most 50, got 51"),
        ({"steps": 2, "samples": 0}, "samples must be at least 1"),
        ({"steps": 2, "seconds": 0}, "seconds must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_sampler(model, **options)
    tables = {"flow": {"name": "identity"}, "sde": {"name": EachEntry}, "net": {"name": "zero"}}
    with pytest.raises(ValueError, match="needs an SDE that all entries of the latent share"):
        fit_sampler(indm.build_model(tables, (2,)), 2)
