"""The samplers against exact moments, exact solutions of the probability flow and their orders of
convergence.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from closed_form import EACH_SDE, SDES, GaussianScore, LinearScore, MixtureScore, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import indm
from indm.flows import ActNorm, Identity
from indm.model import INDM
from indm.objective import ancestral_step
from indm.published.ncsnpp import PublishedScore
from indm.sampling import (
    SAMPLERS,
    AdaptiveODE,
    PredictorCorrector,
    Sampler,
    centre_prior,
    deterministic,
    follow_flow,
    log_snr_grid,
    make_sampler,
    reverse_diffusion_step,
    sample,
    uniform_grid,
)
from indm.sampling.base import time_grid
from indm.sampling.deterministic import ExponentialAdams, balance, exponential_weights
from indm.sampling.stochastic import langevin_step
from indm.score import denoise
from indm.sde.linear import VESDE, VPSDE, LogLinearSDE, SubVPSDE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def samplers(holds=lambda sampler: True):
    """The names of the samplers for which this holds."""
    return [name for name in SAMPLERS if holds(make_sampler(name))]


FIXED_STEPS = samplers(lambda sampler: not sampler.stochastic and not sampler.adaptive)
MULTISTEP = samplers(lambda sampler: isinstance(sampler, ExponentialAdams))


class Rippled(torch.nn.Module):
    """A small network with ripples in 999 t, as the published ones have."""

    parameterization = "published"

    def forward(self, z, level):
        ripples = torch.stack([(level * k).sin() for k in (0.05, 0.1)], 1).sum(1)
        return (0.9 + 0.4 * ripples)[:, None] * z.tanh()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the ODE")
def test_few_steps_of_a_network_with_ripples_are_warned_of_and_the_default_resolves_them():
    """Against 3,000 steps from the same z_T."""
    model = INDM(Identity(), PublishedScore(Rippled(), VPSDE(eps=1e-3)), shape=(2,))
    with pytest.warns(
        RuntimeWarning,
        match=r"in 25 steps may .* far from converged .* leave steps out to take 400",
    ):
        few = sample(model, 16, steps=25, generator=seeded(0))
    default, adaptive, exact = (
        sample(model, 16, **options, generator=seeded(0))
        for options in ({}, {"sampler": AdaptiveODE(1e-2)}, {"steps": 3000})
    )
    off, off_by_default, off_by_ode = (
        (x - exact).square().mean().sqrt().item() for x in (few, default, adaptive)
    )
    assert off > 0.05 and off_by_default < off / 20 and off_by_ode < 1e-2


def test_steps_in_time_are_those_of_the_clock_where_they_are_few():
    """Up to 25; of many, a tenth of the way on the clock is left to each tenth of the steps."""
    sde = VPSDE()
    few, clock = time_grid(sde, 25), log_snr_grid(sde, 25)
    torch.testing.assert_close(few, clock, rtol=1e-3, atol=0)
    many = time_grid(sde, 1000)
    along = 0.9 * (many - 1) / (sde.eps - 1) + 0.1 * (sde.log_snr(many) - sde.log_snr(many[0])) / (
        sde.log_snr(many[-1]) - sde.log_snr(many[0])
    )
    torch.testing.assert_close(
        along, torch.linspace(0, 1, 1001, dtype=torch.float64), rtol=0, atol=1e-4
    )


@dataclasses.dataclass(frozen=True)
class Nothing(Sampler):
    """Returns its start, and keeps what it was given."""

    seen: list = dataclasses.field(default_factory=list)

    def solve(self, score, z, *, steps, generator=None, progress=False):
        self.seen.append((score, z, torch.is_grad_enabled(), score.training))
        return z, steps


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


# ── moments ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_a_mixture_is_sampled_with_its_weights():
    means, stds, weights = (
        double([1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]),
        double(0.2, 0.3, 0.1),
        double(0.5, 0.3, 0.2),
    )
    score = MixtureScore(VPSDE(), means, stds, weights)
    n, entropy = 5_000, -score.log_prob(score.sample(100_000, seeded(0))).mean()
    for sampler, steps in (("unipc", 60), ("heun", 60), ("ode", 1), ("euler-maruyama", 500)):
        x = sample(
            INDM(Identity(), score, shape=(2,)), n, sampler=sampler, steps=steps, batch_size=n
        ).double()
        nearest = torch.cdist(x, means).div(stds).argmin(1)
        share = torch.bincount(nearest, minlength=3) / n
        assert (share - weights).abs().max() < 4.5 * 0.5 / math.sqrt(n) + 0.005
        cross = -score.log_prob(x)
        assert (cross.mean() - entropy).abs() < 4.5 * cross.std() / math.sqrt(n) + 0.03


# ── deterministic schemes: order against the exact probability flow ───────────────────────────────


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@functools.cache
def mixture_problem(name):
    """A two-dimensional mixture, points at T, and where the probability flow takes them, by another
    integrator.
    """
    means, stds = double([0.9, 0.3], [-0.6, 0.8], [-0.1, -1.1]), double(0.5, 0.6, 0.4)
    sde = {"vp": VPSDE(eps=1e-3), "subvp": SubVPSDE(eps=1e-2), "ve": VESDE(0.01, 200.0, eps=1e-3)}
    sde = (sde | {"log-linear": LogLinearSDE(8.0, -10.0, eps=1e-3)})[name]
    score = MixtureScore(sde, means, stds, double(0.5, 0.3, 0.2))
    z = sde.prior_sample((24, 2), generator=seeded(0), dtype=torch.float64)

    def field(t, flat):
        state, time = torch.from_numpy(flat).reshape(24, 2), double(t)
        velocity = sde.drift(time) * state - 0.5 * sde.diffusion(time) ** 2 * score(
            state, time.expand(24)
        )
        return velocity.numpy().ravel()

    solution = integrate.solve_ivp(
        field, (1.0, sde.eps), z.numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-11
    )
    return score, z, torch.from_numpy(solution.y[:, -1]).reshape(24, 2)


def gaussian_problem(name):
    score = gaussian(name, eps=1e-3)
    z = score.sde.prior_sample((24, 2), generator=seeded(0), dtype=torch.float64)
    return score, z, score.flow(z, 1.0, score.sde.eps)


@pytest.mark.parametrize("sampler", FIXED_STEPS)
def test_order_on_curved_paths(sampler, name="vp"):
    """The multistep schemes start with a step of first order, at T, where the prediction hardly
    moves.
    """
    score, z, exact = mixture_problem(name)
    scheme, steps = make_sampler(sampler), np.array([80, 140, 250])
    errors = [(scheme.solve(score, z, steps=int(n))[0] - exact).abs().mean().item() for n in steps]
    order = {"heun": 2, "dpm++2m": 2, "unipc": 4}[sampler]
    assert scheme.order == order and order - 0.2 < slope(steps, errors) < order + 0.6
    assert errors[-1] < {2: 2e-3, 3: 1e-4, 4: 2e-5}[order]


@pytest.mark.parametrize("problem", [gaussian_problem, mixture_problem])
def test_adaptive_ode_solves_to_its_tolerance(name, problem):
    """In units of √(α² + σ²) of each sample; without a warning."""
    score, z, exact = problem(name)
    std = score.sde.marginal_std(double(score.sde.eps))
    evaluations = []
    for tol in (1e-2, 1e-4, 1e-6):
        result, nfe = AdaptiveODE(tol).solve(score, z)
        assert ((result - exact) / std).square().mean(1).sqrt().max() < tol
        evaluations.append(nfe)
    assert evaluations[0] < evaluations[1] < evaluations[2] < 1600


@pytest.mark.parametrize("sampler", MULTISTEP)
def test_a_constant_prediction_is_integrated_exactly(name, sampler):
    """Where E[z_0|z_t] is one point m, the solution is z_s = α_s m + σ_s/σ_t (z_t − α_t m), in any
    number of steps.
    """
    sde, point = SDES[name](eps=1e-2), double(0.7, -0.4)
    score, scheme = GaussianScore(sde, point, double(0.0, 0.0)), make_sampler(sampler)
    z = sde.prior_sample((6, 2), generator=seeded(0), dtype=torch.float64)
    for steps in (1, 2, 5, 17):
        torch.testing.assert_close(
            scheme.solve(score, z, steps=steps)[0], score.flow(z, 1.0, 1e-2), rtol=1e-9, atol=1e-9
        )


@settings(max_examples=50)
@given(
    st.integers(1, 4),
    st.floats(-4.0, 4.0),
    st.floats(0.02, 3.0),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_exponential_weights_integrate_polynomials(points, start, step, forward, random):
    """Against Gauss–Legendre quadrature, for nodes that lie apart as those of a multistep method
    do.
    """
    end = start + (step if forward else -step)
    gaps = [0.0, *(random.uniform(0.5, 1.5) for _ in range(points - 1))]
    nodes = (start - (end - start) * np.cumsum(gaps)).tolist()
    powers = np.polynomial.Polynomial([random.uniform(-1, 1) for _ in range(points)])
    u, w = np.polynomial.legendre.leggauss(30)
    node = start + (end - start) * (u + 1) / 2
    expected = ((end - start) / 2 * w * np.exp(node - end) * powers(node)).sum()
    weights = exponential_weights(nodes, start, end)
    result = sum(weight * powers(node) for weight, node in zip(weights, nodes, strict=True))
    assert result == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_grids(name):
    sde = SDES[name]()
    for grid in (log_snr_grid(sde, 13), uniform_grid(sde, 13)):
        assert grid.dtype == torch.float64 and len(grid) == 14
        assert grid[0] == 1.0 and grid[-1] == sde.eps and bool((grid.diff() < 0).all())
    snr = (sde.alpha(log_snr_grid(sde, 13)) / sde.sigma(log_snr_grid(sde, 13))).log()
    torch.testing.assert_close(snr.diff(), snr.diff().mean().expand(13), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        uniform_grid(sde, 13).diff(), double(-(1 - sde.eps) / 13).expand(13), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_latents_that_are_balanced_for_are_carried_in_one_step(name, monkeypatch):
    """N(0, λI) is at rest in the coordinate of its own λ, in both directions."""
    for variances in ("VARIANCES", "OUTWARD_VARIANCES"):
        monkeypatch.setattr(deterministic, variances, (0.03,))
    score = GaussianScore(SDES[name](), torch.zeros(3), torch.full((3,), 0.03))
    z = 0.2 * torch.randn(5, 3, dtype=torch.float64, generator=seeded(0))
    for t, s in ((1e-5, 1.0), (1.0, 1e-5), (0.2, 0.7)):
        found, evaluations = follow_flow(score, z, t, s, steps=1)
        assert evaluations == 2 and torch.allclose(found, score.flow(z, t, s), rtol=1e-6)


def test_the_balance_is_at_rest_at_the_ends_and_its_rate_is_its_derivative():
    clock = torch.linspace(-20, 10, 61, dtype=torch.float64, requires_grad=True)
    log_c, rate = balance(clock, deterministic.VARIANCES)
    (slope,) = torch.autograd.grad(log_c.sum(), clock)
    assert torch.allclose(rate, slope, atol=1e-12)
    assert rate[[0, -1]].abs().max() < 1e-3 and log_c[-1].abs() < 1e-3
    halves = (
        torch.tensor(
            [math.log(value) for value in deterministic.VARIANCES], dtype=torch.float64
        ).mean()
        / 2
    )
    assert log_c[0].item() == pytest.approx(halves.item(), abs=1e-2)
    # of a direction of variance 1e-5
    own = 0.5 * clock.exp() * (1 / (1e-5 + clock.exp()) - 1 / (1 + clock.exp()))
    assert (own - rate).abs().max() < 0.75 * own.abs().max()


# ── Euler–Maruyama ────────────────────────────────────────────────────────────────────────────────


class Ralston(Sampler):
    """Ralston's rule for the probability flow in t, as somebody else would write it."""

    order = 2
    evaluations_per_step = 2

    def grid(self, sde, steps):
        return uniform_grid(sde, steps)

    def step(self, score, z, t, s, generator=None):
        def velocity(z, t):
            return score.sde.drift(t)[:, None] * z - 0.5 * score.sde.diffusion(t)[
                :, None
            ] ** 2 * score(z, t)

        h = (s - t)[:, None]
        first = velocity(z, t)
        return z + h * (first + 3 * velocity(z + 2 / 3 * h * first, t + 2 / 3 * (s - t))) / 4


class Tempered(Ralston):
    def __init__(self, eta: float = 0.5):
        self.eta = eta


def test_a_sampler_from_outside_is_its_step_and_its_order():
    score = gaussian("vp", eps=0.1)
    z = score.sde.prior_sample((24, 2), generator=seeded(0), dtype=torch.float64)
    exact, steps = score.flow(z, 1.0, score.sde.eps), np.array([40, 80, 160])
    errors = [
        (make_sampler(Ralston).solve(score, z, steps=int(n))[0] - exact).abs().mean().item()
        for n in steps
    ]
    assert slope(steps, errors) == pytest.approx(Ralston.order, abs=0.15)
    assert make_sampler(Ralston).solve(score, z, steps=3)[1] == 6
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    with indm.trust(__name__):
        by_name = sample(model, 6, sampler=f"{__name__}:Ralston", generator=seeded(0))
    assert torch.equal(by_name, sample(model, 6, sampler=Ralston(), generator=seeded(0)))
    with pytest.raises(indm.names.Untrusted, match=r"indm\.trust"):
        sample(model, 6, sampler=f"{__name__}:Ralston")


# ── predictor–corrector ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t, s", [(0.5, 0.4), (0.9, 0.89), (0.05, 0.02)])
def test_one_step_of_reverse_diffusion(name, t, s):
    """The forward kernel z_t = a z_s + G n by integration of the SDE's moments, the step's own
    moments from it.
    """
    score, n = gaussian(name), 400_000
    sde = score.sde

    def moments(time, state):
        f, g = sde.drift(double(time)).item(), sde.diffusion(double(time)).item()
        return [f * state[0], 2 * f * state[1] + g**2]

    a, variance = integrate.solve_ivp(moments, (s, t), [1.0, 0.0], rtol=1e-10, atol=1e-14).y[:, -1]
    z = double(1.3, -0.7).expand(n, 2)
    result = reverse_diffusion_step(score, z, double(t).expand(n), double(s).expand(n), seeded(0))
    alpha, sigma = sde.alpha(double(t)), sde.sigma(double(t))
    exact_score = (alpha * score.mean - z[0]) / (alpha**2 * score.variance + sigma**2)
    mean = (2 - a) * z[0] + variance * exact_score
    assert ((result.mean(0) - mean) / math.sqrt(variance / n)).abs().max() < 4.5
    assert (result.var(0) / variance - 1).abs().max() < 4.5 * math.sqrt(2 / n)


@pytest.mark.parametrize(
    "name, t", [("ve", 0.1), ("ve", 0.6), ("ve", 1.0), ("vp", 0.02), ("vp", 0.5), ("vp", 1.0)]
)
def test_langevin_step_is_the_published_one(name, t):
    """η = 2 (snr ‖n‖/‖s‖)² for VE (algorithm 4), times 1 − β_i, the factor of one step and not of
    all, for VP (5).
    """
    score, snr = (
        GaussianScore(SDES[name](), torch.zeros(64).double(), torch.ones(64).double()),
        0.16,
    )
    n, (_, variance) = 4000, score.law(double(t), torch.zeros(1, 1, dtype=torch.float64))
    variance = variance.mean()
    z = variance.sqrt() * torch.randn(n, 64, dtype=torch.float64, generator=seeded(0))
    moved = langevin_step(score, z, double(t).expand(n), snr, seeded(1)) - z
    # ‖n‖/‖s‖ = √V here, so η/V = 2 snr²; the variance of what is added is 2η up to η²/V.
    eta = -(moved * z).mean().item() / z.square().mean().item() * variance.item()
    assert eta / variance.item() == pytest.approx(2 * snr**2, rel=0.1)
    assert moved.var().item() == pytest.approx(2 * eta + eta**2 / variance.item(), rel=0.02)


# ── sample ────────────────────────────────────────────────────────────────────────────────────────


def affine_model(name="vp", **sde):
    flow = ActNorm(2)
    with torch.no_grad():
        flow.log_scale.copy_(torch.tensor([0.7, -1.2]))
        flow.shift.copy_(torch.tensor([0.4, 3.0]))
    return INDM(flow, gaussian(name, **sde), shape=(2,))


def test_samples_are_decoded():
    model, n = affine_model(), 10_000
    x = sample(model, n, steps=40, generator=seeded(0)).double()
    scale, shift = model.flow.log_scale.exp().double(), model.flow.shift.double()
    mean, variance = (model.score.mean - shift) / scale, model.score.variance / scale**2
    assert ((x.mean(0) - mean) / (variance / n).sqrt()).abs().max() < 5
    assert (x.var(0) / variance - 1).abs().max() < 5 * math.sqrt(2 / n) + 0.01
    assert not x.requires_grad


def test_truncation_is_where_the_reverse_process_ends(name):
    """The law of z_ε/α_ε at a raised ε, by its closed form: N(m, v + σ²/α²)."""
    score, n, eps = gaussian(name), 20_000, 0.4
    options = {
        "steps": 40,
        "eps": eps,
        "last_denoising": False,
        "batch_size": n,
        "generator": seeded(0),
    }
    x = sample(INDM(Identity(), score, shape=(2,)), n, **options).double()
    mean, variance = (
        score.mean,
        score.variance + (score.sde.sigma(double(eps)) / score.sde.alpha(double(eps))) ** 2,
    )
    assert ((x.mean(0) - mean) / variance.sqrt()).abs().max() < 4.5 / math.sqrt(n) + 0.005
    assert (x.var(0) / variance - 1).abs().max() < 4.5 * math.sqrt(2 / n) + 0.01


def test_ode_sampler_is_the_published_one_to_its_tolerance(name):
    """RK45 in t on the latent itself, at the published rtol = atol = 1e-5, and the last denoising."""
    means, stds = double([1.0, 0.5], [-1.0, 0.2]), double(0.4, 0.6)
    score = MixtureScore(SDES[name](eps=1e-3), means, stds, double(0.5, 0.5))
    sde, n = score.sde, 20
    model = INDM(Identity(), score, shape=(2,))
    z_T = sde.prior_sample((n, 2), generator=seeded(0), dtype=torch.float32).double()

    def field(time, flat):
        z, t = torch.from_numpy(flat.reshape(n, 2)), double(time).expand(n)
        return (
            (sde.drift(t)[:, None] * z - 0.5 * sde.diffusion(t)[:, None] ** 2 * score(z, t))
            .numpy()
            .ravel()
        )

    found = integrate.solve_ivp(
        field, (1.0, sde.eps), z_T.numpy().ravel(), method="RK45", rtol=1e-5, atol=1e-5
    )
    z, t = torch.from_numpy(found.y[:, -1].reshape(n, 2)), double(sde.eps).expand(n)
    expected = (z + sde.sigma(t)[:, None] ** 2 * score(z, t)) / sde.alpha(t)[:, None]
    errors = []
    for sampler in ("ode", AdaptiveODE(1e-4), AdaptiveODE(0.2)):
        x = sample(model, n, sampler=sampler, generator=seeded(0)).double()
        errors.append((x - expected).abs().max().item())
    assert errors[0] == errors[1] < 2e-4 and errors[2] > 10 * errors[1], errors


@pytest.mark.parametrize("snr", [None, 0.17, (0.1, 0.3)])
def test_predictor_corrector_under_ve_is_the_published_loop(snr, monkeypatch):
    """N levels σ_i in geometric progression, from the highest to the lowest: the reverse diffusion
    with variance σ_i² − σ_{i−1}², a Langevin step, and a last predictor without noise (σ_{−1} = 0);
    in NumPy, on the same noise.
    """
    score, levels, n = gaussian("ve"), 50, 6
    mean, variance = score.mean.numpy(), score.variance.numpy()
    noise = torch.randn(2 * levels, n, 2, generator=seeded(1))
    drawn = iter(noise)
    monkeypatch.setattr(
        "indm.sampling.stochastic.randn_like", lambda z, generator=None: next(drawn)
    )
    model = INDM(Identity(), score, shape=(2,))
    sampler = "pc" if snr is None else PredictorCorrector(snr)
    x = sample(model, n, sampler=sampler, steps=levels - 1, generator=seeded(0))

    sigmas = 0.01 * 5000 ** (np.arange(levels) / (levels - 1))
    first, last = snr if isinstance(snr, tuple) else (snr or 0.16, snr or 0.16)
    ratios = np.linspace(last, first, levels)
    z = score.sde.prior_sample((n, 2), generator=seeded(0)).double().numpy()
    drawn = iter(noise.double().numpy())
    for i in range(levels - 1, 0, -1):
        step = sigmas[i] ** 2 - sigmas[i - 1] ** 2
        z = z + step * (mean - z) / (variance + sigmas[i] ** 2) + math.sqrt(step) * next(drawn)
        gradient, normal = (mean - z) / (variance + sigmas[i - 1] ** 2), next(drawn)
        ratio = np.linalg.norm(normal, axis=1).mean() / np.linalg.norm(gradient, axis=1).mean()
        eta = 2 * (ratios[i - 1] * ratio) ** 2
        z = z + eta * gradient + math.sqrt(2 * eta) * normal
    z = z + sigmas[0] ** 2 * (mean - z) / (variance + sigmas[0] ** 2)
    np.testing.assert_allclose(x.numpy(), z, rtol=2e-3, atol=2e-3)


def test_prior_mean_is_where_sampling_starts():
    """One step of nothing: a sampler that returns its start shows the prior, N(prior_mean, σ_max²)
    for VE.
    """
    score = gaussian("ve")
    score.sde.prior_mean = torch.tensor([100.0, -300.0])
    x = sample(
        INDM(Identity(), score, shape=(2,)),
        20_000,
        sampler=Nothing(),
        last_denoising=False,
        generator=seeded(0),
    )
    assert (x.mean(0) - score.sde.prior_mean).abs().max() < 4.5 * 50 / math.sqrt(20_000)
    assert (x.std(0) / 50 - 1).abs().max() < 4.5 / math.sqrt(40_000)


def test_centred_prior_has_the_mean_of_the_noised_data(name):
    """E[z_T] = α_T E[h(x)] for an affine h, so that the prior and the law of z_T part in their
    variance alone.
    """
    model = affine_model(name)
    raw = torch.tensor([2.0, -5.0]) + torch.randn(2000, 2, generator=seeded(0))
    centre_prior(model, raw, batch_size=300)
    alpha, (z, _) = model.sde.alpha(double(1.0)), model.flow(raw)
    torch.testing.assert_close(
        model.sde.prior_mean.double(), alpha * z.double().mean(0), rtol=1e-5, atol=1e-6
    )
    if name == "ve":
        assert model.sde.prior_mean.abs().min() > 1


@pytest.mark.parametrize(
    "n, batch_size, parts", [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 256, [3]), (1, 1, [1])]
)
def test_batches(n, batch_size, parts):
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    for request in (n, (n, 2)):
        sampler = Nothing()
        x = sample(model, request, sampler=sampler, batch_size=batch_size)
        assert (
            [len(z) for _, z, *_ in sampler.seen] == parts
            and x.shape == (n, 2)
            and len(x.unique(dim=0)) == n
        )


def test_the_mode_of_the_model_is_kept():
    model = INDM(Identity(), LinearScore(VPSDE(), 1.0, 0.0), shape=(2,)).train()
    sampler = Nothing()
    sample(model, 2, sampler=sampler)
    assert sampler.seen[0][2:] == (False, False) and model.training and torch.is_grad_enabled()


def test_bad_arguments_are_named():
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    with pytest.raises(ValueError, match=r"sampler .*'ddim'"):
        sample(model, 4, sampler="ddim")
    with pytest.raises(ValueError, match="steps"):
        sample(model, 4, steps=0)
    with pytest.raises(ValueError, match=r"sampler\.snr"):
        make_sampler("unipc", snr=0.1)
    with pytest.raises(ValueError, match=r"sampler\.snrr .*'snr'"):
        make_sampler("pc", snrr=0.1)
    with pytest.raises(ValueError, match=r"sampler\.eta"):
        make_sampler(Tempered, eta="half")
    with pytest.raises(ValueError, match="snr"):
        make_sampler(PredictorCorrector(), snr=0.1)
    with indm.trust("textwrap"), pytest.raises(ValueError, match=r"sampler .*TextWrapper"):
        sample(model, 4, sampler="textwrap:TextWrapper")
    for snr in (0.0, float("nan"), (0.1, -0.1), (0.1, float("inf")), (0.1, 0.1, 0.1), ()):
        with pytest.raises(ValueError, match="snr"):
            make_sampler("pc", snr=snr)
    for tol in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="tol"):
            make_sampler("ode", tol=tol)
    with pytest.raises(ValueError, match="eps"):
        sample(model, 4, eps=1e-6)
    for temperature in (0, float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            sample(model, 4, temperature=temperature)
    with pytest.raises(ValueError, match="shape"):
        sample(INDM(Identity(), gaussian("vp")), 4)


def test_a_number_of_samples_is_a_whole_number_of_any_library():
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    assert (
        sample(model, np.int64(3), steps=2).shape == sample(model, [3, 2], steps=2).shape == (3, 2)
    )
    with pytest.raises(TypeError, match="float"):
        sample(model, 3.0)


def test_counts_below_one_are_errors():
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    with pytest.raises(ValueError, match="shape_or_n"):
        sample(model, 0)
    with pytest.raises(RuntimeError, match="split_size"):
        sample(model, 4, batch_size=0)


# ── The error of a sampler, in three parts (docs/method.md) ─────────────────────────────────────


def law_of_paths(sde, grid, mean, variance):
    """The Gaussian law of (z_T, …, z_ε) for data N(mean, variance)."""
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    spread = alpha**2 * variance + sigma**2
    later = alpha[:, None] / alpha * spread  # the covariance of z_t with the less noisy z_s
    return torch.distributions.MultivariateNormal(alpha * mean, later.triu() + later.triu(1).T)


def law_of_chain(score, grid):
    """The Gaussian law of the states of the ancestral sampler where the score is affine, by its own steps."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    mean, factor = [zero.squeeze()], torch.zeros(len(grid), len(grid), dtype=torch.float64)
    factor[0, 0] = score.sde.prior_std
    for k, (t, s) in enumerate(itertools.pairwise(grid), start=1):
        offset, std = ancestral_step(score, zero, t[None], s[None])
        slope = ancestral_step(score, zero + 1, t[None], s[None])[0] - offset
        mean.append((slope * mean[-1] + offset).squeeze())
        factor[k] = slope.squeeze() * factor[k - 1]
        factor[k, k] = std.squeeze()
    return torch.distributions.MultivariateNormal(torch.stack(mean), scale_tril=factor)


def end_of(law):
    return torch.distributions.Normal(law.mean[-1], law.variance[-1].sqrt())


def three_parts(score, grid, mean, variance):
    """Prior, discretization and estimation for data N(mean, variance) and an affine score."""
    sde = score.sde
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    spread, ratio = alpha**2 * variance + sigma**2, alpha**2 / sigma**2
    prior = 0.5 * (
        (spread[0] + (alpha[0] * mean) ** 2) / sde.prior_std**2
        - 1
        - (spread[0] / sde.prior_std**2).log()
    )
    held = variance / (1 + variance * ratio[:-1])  # the mean square error of E[z_0|z_t]
    integral = (1 + variance * ratio).log().diff()
    discretization = 0.5 * (held * ratio.diff() - integral).sum()

    true = GaussianScore(sde, [mean], [variance])

    def difference(z):
        states = z.reshape(-1, 1)
        difference = denoise(score, states, grid) - denoise(true, states, grid)
        return difference.squeeze(1)

    centre = difference(alpha * mean)
    slope = difference(alpha * mean + 1) - centre
    errors = (centre**2 + slope**2 * spread)[:-1]
    return prior, discretization, 0.5 * (errors * ratio.diff()).sum()


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 7])
def test_the_error_of_paths_is_that_of_prior_discretization_and_estimation(name, steps):
    sde, mean, variance = SDES[name](), 0.5, 0.3
    score = GaussianScore(sde, [0.2], [0.6])
    grid = make_sampler("ancestral").grid(sde, steps)
    true, chain = law_of_paths(sde, grid, mean, variance), law_of_chain(score, grid)
    parts = three_parts(score, grid, mean, variance)
    divergence = torch.distributions.kl_divergence(true, chain)
    assert min(parts) > 1e-6
    torch.testing.assert_close(divergence, sum(parts), rtol=1e-5, atol=0)
    assert torch.distributions.kl_divergence(end_of(true), end_of(chain)) < divergence


def test_the_part_of_discretization_halves_with_twice_the_steps():
    sde = VPSDE()
    score = GaussianScore(sde, [0.5], [0.3])
    parts = [
        three_parts(score, make_sampler("ancestral").grid(sde, steps), 0.5, 0.3)[1]
        for steps in (200, 400, 800)
    ]
    for more, less in itertools.pairwise(parts):
        assert 1.95 < more / less < 2.05
