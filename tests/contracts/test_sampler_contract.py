"""What every sampler of the table of parts must do: laws, orders, counts, and independence of the
rows of a batch.

A new row is tested by what it says of itself: its order, whether it draws noise, whether it chooses
its own steps.
"""

import math

import numpy as np
import pytest
import torch
from closed_form import EACH_SDE, SDES, GaussianScore, column, gaussian

from indm.flows import Identity
from indm.model import INDM
from indm.sampling import SAMPLERS, Sampler, intervals, make_sampler, sample
from indm.sde.linear import VPSDE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def samplers(holds):
    """The names of the samplers for which this holds."""
    return [name for name in SAMPLERS if holds(make_sampler(name))]


def loose(name):
    """The sampler with a loose tolerance, where it has one: for what does not depend on its steps."""
    return make_sampler(name, **{"tol": 0.05} if "tol" in make_sampler(name).options() else {})


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


FIXED_STEPS = samplers(lambda sampler: not sampler.stochastic and not sampler.adaptive)
# The published corrector has one step size for a batch, by norms that are averaged over it.
ROW_BY_ROW = [name for name in SAMPLERS if name != "pc"]


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


# ── the law and the order ─────────────────────────────────────────────────────────────────────────

# Steps, and the tolerance on the mean (in standard deviations) and on the covariance (relative)
# beyond 4.5 standard errors of 10,000 samples: the bias of the step, and for pc that of Langevin
# (snr² of the variance, by its direction).
BUDGETS = {
    "ode": (1, 0.005, 0.01),
    "euler-maruyama": (400, 0.01, 0.03),
    "sde-dpm++2m": (100, 0.005, 0.01),
    "pc": (200, 0.01, 0.08),
    "heun": (100, 0.005, 0.01),
    "dpm++2m": (60, 0.005, 0.01),
    "unipc": (25, 0.005, 0.01),
}
NEW = (400, 0.01, 0.03)  # of a new row of the table of parts


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_mean_and_covariance(name, sampler):
    score, n = gaussian(name), 10_000
    steps, mean_bias, covariance_bias = BUDGETS.get(sampler, NEW)
    steps = 1000 if name == "ve" and sampler == "euler-maruyama" else steps
    model = INDM(Identity(), score, shape=(2,))
    x = sample(model, n, sampler=sampler, steps=steps, batch_size=n, generator=seeded(0))
    assert x.shape == (n, 2) and x.dtype == torch.float32
    white = (x.double() - score.mean) / score.variance.sqrt()
    assert white.mean(0).abs().max() < mean_bias + 4.5 / math.sqrt(n)
    covariance = white.T @ white / n
    assert (covariance - torch.eye(2)).abs().max() < covariance_bias + 4.5 * math.sqrt(2 / n)


class MovingPrediction(torch.nn.Module):
    """The score whose E[z_0|z_t] is p(λ) = e^{−(λ − 1)²}, λ = ½ log SNR, whatever z_t is: it rests
    at T and at ε.
    """

    is_smooth = True

    def __init__(self, sde):
        super().__init__()
        self.sde = sde

    def forward(self, z, t):
        prediction = (-((0.5 * self.sde.log_snr(t) - 1) ** 2)).exp()
        return (column(self.sde.alpha(t) * prediction, z) - z) / column(self.sde.sigma(t), z) ** 2

    def at_eps(self, z):
        """z_ε/σ_ε = z_T/σ_T + ∫ e^λ p(λ) dλ, by the error function."""
        eps, T = (self.sde.eps, self.sde.T)
        (low, high), sigma = (
            (0.5 * self.sde.log_snr(double(T, eps))).tolist(),
            self.sde.sigma(double(T, eps)),
        )
        area = (
            0.5 * math.sqrt(math.pi) * math.exp(1.25) * (math.erf(high - 1.5) - math.erf(low - 1.5))
        )
        return sigma[1] * (z / sigma[0] + area)


@pytest.mark.parametrize("sampler", FIXED_STEPS)
def test_order_on_a_prediction_that_moves_in_the_middle(name, sampler):
    """No start and no end blurs the order here: each point more in a multistep formula is one order
    more.
    """
    sde, scheme, steps = SDES[name](eps=1e-3), make_sampler(sampler), np.array([90, 126, 180])
    score, z = MovingPrediction(sde), double([0.3], [-1.2])
    exact = score.at_eps(z)
    errors = [(scheme.solve(score, z, steps=int(n))[0] - exact).abs().max().item() for n in steps]
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.3), errors


@pytest.mark.parametrize("sampler", samplers(lambda sampler: sampler.stochastic))
def test_weak_order_of_stochastic_samplers(sampler, monkeypatch):
    """For a Gaussian score a step is affine in z and in its noise: row 0 has neither, row 1 has the
    start alone, and each other row one noise alone, so that one batch holds the exact moments of
    the scheme.
    """
    score, errors, steps = (
        GaussianScore(VPSDE(), double(0.4), double(0.3)),
        [],
        np.array([50, 100, 200]),
    )
    # no corrector to speak of
    scheme = make_sampler(sampler, **{"snr": 1e-9} if sampler == "pc" else {})
    for count in steps:
        drawn = iter(
            torch.eye(2 + scheme.evaluations_per_step * int(count), dtype=torch.float64)[
                2:, :, None
            ]
        )
        monkeypatch.setattr(
            "indm.sampling.stochastic.randn_like",
            lambda z, generator=None, source=drawn: next(source),
        )
        z = torch.eye(2 + scheme.evaluations_per_step * int(count), dtype=torch.float64)[1][:, None]
        z, _ = scheme.solve(score, z, steps=int(count))
        mean, variance = score.law(double(score.sde.eps), torch.zeros(1, 1, dtype=torch.float64))
        moments = torch.stack([z[0] - mean[0], (z[1:] - z[0]).square().sum(0) - variance[0]])
        errors.append(moments.abs().max().item())
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.15) and errors[-1] < 0.05


# ── one batch ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_keeps_dtype_and_shape_for_one_event_of_any_shape(sampler, dtype):
    score = gaussian("vp", (2, 3, 4))
    z = torch.randn(1, 2, 3, 4, dtype=dtype)
    result, _ = make_sampler(sampler).solve(score, z, steps=4, generator=seeded(0))
    assert result.dtype == dtype and result.shape == z.shape and bool(result.isfinite().all())


def test_no_entry_and_no_row_depends_on_the_others(name, sampler_name, monkeypatch):
    """With the noise of each row given: any other rows beside it, or none."""
    score, scheme = gaussian(name), make_sampler(sampler_name)
    z = score.sde.prior_sample((5, 2), generator=seeded(0), dtype=torch.float64)
    noise = torch.randn(20, 5, 2, dtype=torch.float64, generator=seeded(1))

    def solved(rows):
        drawn = iter(noise[:, rows])
        monkeypatch.setattr(
            "indm.sampling.stochastic.randn_like", lambda z, generator=None: next(drawn)
        )
        return scheme.solve(score, z[rows], steps=6)[0]

    whole = solved(slice(None))
    for rows in ([3], [4, 0, 2]):
        torch.testing.assert_close(solved(rows), whole[rows], rtol=1e-9, atol=1e-9)


@pytest.fixture(params=ROW_BY_ROW)
def sampler_name(request):
    return request.param


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_counted(sampler):
    class Counts(GaussianScore):
        calls = 0

        def forward(self, z, t):
            self.calls += 1
            return super().forward(z, t)

    score, scheme = Counts(VPSDE(), double(0.0), double(1.0)), make_sampler(sampler)
    _, nfe = scheme.solve(score, torch.randn(4, 1, dtype=torch.float64), steps=7)
    assert nfe == score.calls
    assert scheme.adaptive or nfe == 7 * scheme.evaluations_per_step


@pytest.mark.parametrize(
    "sampler", samplers(lambda sampler: type(sampler).step is not Sampler.step)
)
def test_one_step_is_what_is_looped_over(sampler):
    """Heun's loop keeps z/α, its step takes z: the same up to rounding."""
    score, scheme = gaussian("vp"), make_sampler(sampler)
    z = score.sde.prior_sample((6, 2), generator=seeded(0), dtype=torch.float64)
    first, second = intervals(scheme.grid(score.sde, 2), z)
    generator = seeded(1)
    by_steps = scheme.step(score, scheme.step(score, z, *first, generator), *second, generator)
    torch.testing.assert_close(by_steps, scheme.solve(score, z, steps=2, generator=seeded(1))[0])


@pytest.mark.parametrize("own", [0.3, 1e-5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_last_denoising_is_the_posterior_mean_at_eps(name, sampler, own):
    """By conjugacy, not by Tweedie's formula, at an ε where it shows: the SDE's own, or a raised
    one.
    """
    score = gaussian(name, eps=own)
    model = INDM(Identity(), score, shape=(2,))
    rough, smooth = (
        sample(
            model,
            40,
            sampler=loose(sampler),
            steps=6,
            eps=0.3,
            last_denoising=on,
            generator=seeded(0),
        )
        for on in (False, True)
    )
    assert score.sde.eps == own
    t = double(0.3)
    alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
    precision = 1 / score.variance + alpha**2 / sigma**2
    # rough is z_ε/α
    expected = (score.mean / score.variance + alpha**2 * rough.double() / sigma**2) / precision
    torch.testing.assert_close(smooth.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_samples(sampler):
    model = INDM(Identity(), gaussian("vp"), shape=(2,))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(draws))
        draws.append(
            sample(model, 6, sampler=loose(sampler), steps=5, batch_size=4, generator=seeded(seed))
        )
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_options_are_attributes_and_unknown_ones_are_refused(sampler):
    scheme = make_sampler(sampler)
    assert make_sampler(sampler, **scheme.options()) == scheme
    with pytest.raises(ValueError, match="no_such_option"):
        make_sampler(sampler, no_such_option=1)
