"""The Gaussian reference against Monte Carlo and quadrature, and as the control variate that it is."""

import math

import pytest
import torch
from closed_form import EACH_SDE, SDES, GaussianScore, LinearScore, gaussian, within
from hypothesis import given, settings
from hypothesis import strategies as st

from indm.flows import Identity
from indm.gaussian import GaussianReference
from indm.model import INDM
from indm.objective import control_variate, denoising_error, nelbo
from indm.score import probability_flow


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def reference_of(score, basis=None):
    return GaussianReference(
        score.mean.flatten().double(), score.variance.flatten().double(), basis
    )


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


def test_excess_is_the_exact_scores_error_above_its_mean(name):
    """Quadratic in the noise, so its mean over ±√d e_i is the mean over the normal law."""
    score, d = gaussian(name, (2, 3)), 6
    z = score.sample(50, seeded(0))
    t = score.sde.sample_time(50, importance=True, generator=seeded(1))[0].double()
    noise = torch.randn(50, 2, 3, dtype=torch.float64, generator=seeded(2))
    points = math.sqrt(d) * torch.cat((torch.eye(d), -torch.eye(d))).double().reshape(-1, 1, 2, 3)
    mean = torch.stack([denoising_error(score, z, t, point.expand_as(z)) for point in points]).mean(
        0
    )
    expected = denoising_error(score, z, t, noise) - mean
    torch.testing.assert_close(reference_of(score).excess(score.sde, z, t, noise), expected)


def test_excess_in_a_rotated_basis(name):
    """A correlated law: the exact score is −Σ_t⁻¹ (z_t − α m). Differences between noises do not
    see the mean.
    """
    sde, d = SDES[name](), 4
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    variance, mean = torch.rand(d, dtype=torch.float64) + 0.01, torch.randn(d, dtype=torch.float64)
    covariance = basis * variance @ basis.T
    z, noises = torch.randn(30, d, dtype=torch.float64), torch.randn(2, 30, d, dtype=torch.float64)
    t = sde.sample_time(30, importance=True)[0].double()
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    marginal = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(d)
    scores = [-torch.linalg.solve(marginal, alpha * (z - mean) + sigma * noise) for noise in noises]
    errors = [0.5 * (n + sigma * s).square().sum(1) for n, s in zip(noises, scores, strict=True)]
    reference = GaussianReference(mean, variance, basis)
    excess = [reference.excess(sde, z, t, noise) for noise in noises]
    torch.testing.assert_close(excess[0] - excess[1], errors[0] - errors[1])


@settings(max_examples=20)
@given(
    st.sampled_from(list(SDES)), st.floats(1e-6, 10.0), st.floats(-5.0, 5.0), st.floats(0.0, 1.0)
)
def test_excess_has_mean_zero(name, variance, offset, u):
    """At ±1 noise a quadratic has its mean over the normal law."""
    sde = SDES[name]()
    reference = GaussianReference(torch.zeros(1).double(), torch.tensor([variance]).double())
    start, end = sde.clock_span()
    t = sde.time(torch.tensor([-(start + u * (end - start))] * 2, dtype=torch.float64))
    z, noise = (
        torch.full((2, 1), offset, dtype=torch.float64),
        torch.tensor([[1.0], [-1.0]]).double(),
    )
    excess = reference.excess(sde, z, t, noise)
    assert excess.sum().item() == pytest.approx(0.0, abs=1e-9 * (1 + excess.abs().max().item()))


def test_whitening_is_undone_and_rests_on_its_own_flow(name):
    """For latents of a correlated Gaussian law the whitened velocity of the exact score vanishes."""
    sde, d = SDES[name](), 4
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    variance, mean = torch.rand(d, dtype=torch.float64) + 0.01, torch.randn(d, dtype=torch.float64)
    reference = GaussianReference(mean, variance, basis)
    covariance = basis * variance @ basis.T

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sde = sde

        def forward(self, z, t):
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            marginal = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(d)
            return -torch.linalg.solve(marginal, z - alpha * mean)

    w = torch.randn(9, d, dtype=torch.float64)
    clock = torch.linspace(*sde.clock_span(), 11, dtype=torch.float64)[1:-1]
    v = reference.whiten(w, clock)
    torch.testing.assert_close(reference.colour(v, clock), w)
    velocity = reference.whitened_velocity(v, w, probability_flow(Exact(), clock)(w), clock)
    assert velocity.abs().max() < 1e-9 * (1 + v.abs().max())


def test_fit_finds_a_correlated_gaussian():
    scales = torch.logspace(-3, 0, 6, dtype=torch.float64)
    root = scales[:, None] * torch.randn(6, 6, dtype=torch.float64, generator=seeded(0))
    mean = torch.randn(6, dtype=torch.float64)
    z = (mean + torch.randn(200_000, 6, dtype=torch.float64, generator=seeded(1)) @ root.T).reshape(
        -1, 1, 2, 3
    )
    reference = GaussianReference.fit(z)
    covariance = reference.basis * reference.variance @ reference.basis.T
    exact, scale = root @ root.T, (root @ root.T).diagonal().sqrt()
    assert ((covariance - exact) / (scale[:, None] * scale)).abs().max() < 0.02
    assert ((reference.mean - mean) / scale).abs().max() < 0.02
    torch.testing.assert_close(reference.basis.T @ reference.basis, torch.eye(6).double())


def test_fit_shrinks_correlations_as_published():
    """Off the diagonal all is multiplied by 1 − ρ, with ρ by eq. 23 of Chen et al. for the sample
    correlation S: ρ = [(1 − 2/d) tr S² + tr² S]/[(n + 1 − 2/d)(tr S² − tr² S/d)].
    """
    n, d = 30, 4
    z = (
        torch.randn(n, d, dtype=torch.float64, generator=seeded(0))
        @ torch.randn(d, d, generator=seeded(1)).double()
    )
    reference, sample = GaussianReference.fit(z), torch.cov(z.T, correction=0)
    S = torch.corrcoef(z.T)
    square, trace = (S @ S).trace(), S.trace()
    rho = ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))
    assert 0.05 < rho < 0.95
    covariance = reference.basis * reference.variance @ reference.basis.T
    torch.testing.assert_close(covariance, (1 - rho) * sample + rho * sample.diagonal().diag())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fit_to_few_latents_shrinks_to_the_diagonal_and_stays_positive(n):
    z = torch.randn(n, 40, generator=seeded(0)) * torch.linspace(0.01, 3, 40)
    reference = GaussianReference.fit(z)
    assert bool((reference.variance > 0).all()) and bool(reference.basis.isfinite().all())
    covariance = reference.basis * reference.variance @ reference.basis.T
    off = covariance - covariance.diagonal().diag()
    assert off.abs().max() <= 0.5 * covariance.diagonal().max()


def test_many_dimensions_use_the_diagonal():
    z = 3 * torch.randn(50, 1, 65, 65, generator=seeded(0))
    reference = GaussianReference.fit(z)
    assert reference.basis is None
    torch.testing.assert_close(reference.variance, z.flatten(1).var(0, correction=0))


def test_the_bound_keeps_its_mean_and_loses_its_noise(name):
    """Off the exact score, with a reference that is not the data's law either, batch by batch of
    200.
    """
    data = gaussian(name, (1, 4, 4))
    model = INDM(Identity(), LinearScore(data.sde, 1.2, 0.1))
    x = data.sample(4, seeded(0)).repeat(50, 1, 1, 1)
    reference = GaussianReference(data.mean.flatten() + 0.1, 0.8 * data.variance.flatten())
    plain, controlled = (
        torch.cat(
            [nelbo(model, x, times=2, reference=r, generator=seeded(i)).total for i in range(30)]
        )
        for r in (None, reference)
    )
    assert within((controlled - plain).reshape(1500, 4), 0.0)
    noise = [total.detach().reshape(1500, 4).var(0).mean() for total in (plain, controlled)]
    assert noise[0] > 4 * noise[1]


def unit(shape):
    """Positions on the clock and excesses."""
    return torch.rand(shape, generator=seeded(0)).double(), torch.randn(
        shape, generator=seeded(1)
    ).double()


def test_control_removes_what_it_knows_and_nothing_else():
    """Errors made of a course over the clock and a multiple of the excess vanish; independent noise
    stays.
    """
    position, excess = unit((3, 200))
    # of mean 0 over the clock
    course = (2 * position - 1) ** 3 - 0.5 * (3 * (2 * position - 1) ** 2 - 1)
    known = 5.0 + course + (0.3 + 0.2 * position) * excess
    torch.testing.assert_close(
        known - control_variate(known, position, excess)[0], torch.full_like(known, 5.0)
    )
    noise = torch.randn(3, 200, generator=seeded(2)).double()
    rest = known + noise - control_variate(known + noise, position, excess)[0] - 5.0
    assert (rest - noise).var() < 0.15 * noise.var()  # 11 coefficients from 300 observations


def test_control_of_one_half_does_not_see_its_own_errors():
    position, excess = unit((2, 200))
    errors = torch.randn(2, 200, generator=seeded(2)).double()
    other = errors.clone()
    other[:, :100] = 0.0
    first, second = (
        control_variate(errors, position, excess)[0],
        control_variate(other, position, excess)[0],
    )
    torch.testing.assert_close(first[:, :100], second[:, :100], rtol=1e-9, atol=1e-9)
    assert (first - second)[:, 100:].abs().max() > 0.1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_errors_that_are_no_numbers_are_left_alone(wrong):
    position, excess = unit((2, 100))
    errors = torch.ones(2, 100).double()
    errors[1, 70] = wrong
    assert control_variate(errors, position, excess)[0].abs().max() == 0.0


def test_single_precision_suffices(name):
    """Variances from 1e-6, as of a constant pixel with its dequantization noise, to 1."""
    variance = torch.logspace(-6, 0, 256)
    data = GaussianScore(SDES[name](), torch.zeros(256), variance)
    x, noise = (
        data.sample(64, seeded(0), dtype=torch.float32),
        torch.randn(64, 256, generator=seeded(1)),
    )
    t = data.sde.sample_time(64, importance=True)[0]
    single = GaussianReference(torch.zeros(256), variance).excess(data.sde, x, t, noise)
    double = reference_of(data).excess(data.sde, x.double(), t.double(), noise.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=2e-2)
