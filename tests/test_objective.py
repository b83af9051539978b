"""The NELBO and the training losses against quadrature, Monte Carlo, closed forms and autograd of
the plain bound.

The closed forms are those of Gaussian data; the plain bound of a linear score is written out below
term by term, with the noise integrated by hand and the time by quadrature.
"""

import math

import numpy as np
import pytest
import torch
from closed_form import (
    EACH_SDE,
    SDES,
    GaussianScore,
    LinearScore,
    column,
    gaussian,
    normal_log_prob,
    within,
)
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence

from indm.flows import ActNorm, CouplingFlow, Identity
from indm.gaussian import GaussianReference
from indm.likelihood import nll
from indm.model import INDM
from indm.nets import Zero
from indm.objective import (
    LIKELIHOOD_SHARE,
    Objective,
    ancestral_step,
    as_objective,
    constant_term,
    extended_clock,
    fid_loss,
    flow_loss,
    mle_loss,
    nelbo,
    objective_of,
    prior_term,
    reconstruction_term,
    soft_truncation,
    step_divergence,
)
from indm.sampling import log_snr_grid
from indm.scaling import Scaling
from indm.score import ScoreModel, denoise
from indm.sde.linear import VESDE, VPSDE, SubVPSDE
from indm.tensors import expand_like

SHAPES = [(2,), (3, 8, 8)]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def log_panels(start, end, panels=60, nodes=10):
    """Gauss–Legendre nodes and weights for ∫ dt on [start, end], in panels of equal length in log
    t.
    """
    edges = np.linspace(math.log(start), math.log(end), panels + 1)
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * np.diff(edges)
    u = (0.5 * (edges[1:] + edges[:-1]))[:, None] + half[:, None] * x
    t = np.exp(u)
    return torch.from_numpy(t.ravel()), torch.from_numpy((t * half[:, None] * w).ravel())


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


@pytest.fixture
def two_point_noise(monkeypatch):
    """Noise ±1 in place of a normal draw: every expectation of a square of something affine in it
    stays what it was, and most of the variance goes. The bounds of affine scores are such squares.
    """

    def signs(z, generator=None):
        return 2.0 * torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) - 1

    monkeypatch.setattr("indm.objective.randn_like", signs)


def two_point_data(score, n, seed):
    """mean ± standard deviation at random: the moments of the data up to the second, and a density
    of e^−entropy.
    """
    signs = 2.0 * torch.randint(0, 2, (n, *score.mean.shape), generator=seeded(seed)).double() - 1
    return score.mean + score.variance.sqrt() * signs


# ── the terms ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("eps", [None, 0.2])
def test_constant_term_is_the_integral(name, eps):
    sde, z = SDES[name](), torch.zeros(2, 3, 5, dtype=torch.float64)
    t, w = log_panels(sde.eps if eps is None else eps, 1.0)
    integral = (w * (sde.diffusion(t) ** 2 * 15 / sde.sigma(t) ** 2 + 2 * 15 * sde.drift(t))).sum()
    value = constant_term(sde, z) if eps is None else constant_term(sde, z, z.new_full((2,), eps))
    torch.testing.assert_close(value, (-0.5 * integral).expand(2), rtol=1e-8, atol=0)


def test_prior_term_is_the_mean_under_the_kernel(name):
    sde = SDES[name](*((0.01, 3.0) if name == "ve" else ()))
    sde.prior_mean = torch.randn(3)
    z = 2 * torch.randn(2, 3, dtype=torch.float64)
    T = z.new_ones(100_000)
    for i in range(2):
        z_T = sde.perturb(
            z[i : i + 1].expand(len(T), 3), T, torch.randn(len(T), 3, dtype=torch.float64)
        )
        log_prior = (
            torch.distributions.Normal(sde.prior_mean.double(), sde.prior_std).log_prob(z_T).sum(1)
        )
        assert within(-log_prior, prior_term(sde, z)[i])


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruction_term_is_the_difference_of_two_normals(name, shape):
    """log q(z_ε|z_0) − log p(z_0|z_ε) at one and the same z_ε, written with torch.distributions."""
    sde = SDES[name](eps=0.02)
    score = LinearScore(sde, 0.8, 0.3)
    z, noise = (
        torch.randn(4, *shape, dtype=torch.float64),
        torch.randn(4, *shape, dtype=torch.float64),
    )
    t = z.new_full((4,), sde.eps)
    alpha, sigma = sde.alpha(t)[0], sde.sigma(t)[0]
    z_eps = alpha * z + sigma * noise
    q = torch.distributions.Normal(alpha * z, sigma).log_prob(z_eps).flatten(1).sum(1)
    mean = (z_eps + sigma**2 * score(z_eps, t)) / alpha
    p = torch.distributions.Normal(mean, sigma / alpha).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction_term(score, z, noise), q - p, rtol=1e-8, atol=1e-8)


def test_denoise_is_the_posterior_mean(name):
    """For N(m, v) data, E[z_0|z_t] by conjugacy: precision-weighted m and z_t/α."""
    score = gaussian(name)
    z, t = torch.randn(6, 2, dtype=torch.float64), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    alpha, sigma = column(score.sde.alpha(t), z), column(score.sde.sigma(t), z)
    precision = 1 / score.variance + alpha**2 / sigma**2
    expected = (score.mean / score.variance + alpha * z / sigma**2) / precision
    torch.testing.assert_close(denoise(score, z, t), expected, rtol=1e-9, atol=1e-9)


def test_score_model_of_a_backbone_that_knows_the_noise(name):
    """For N(m, v) data and r = σ/α, E[noise | z_t] = r √(1+r²) (y − m/√(1+r²))/(v + r²) with y =
    z_t/√(α² + σ²).

    The backbone sees no more than y and log r, and adds what v = 1, m = 0 leaves: r y/√(1+r²),
    without it.
    """

    class Knows(nn.Module):
        def __init__(self, mean, variance):
            super().__init__()
            self.mean, self.variance = mean, variance

        def forward(self, y, level):
            self.seen = y, level
            r = column(level.exp(), y)
            root = (1 + r**2).sqrt()
            return r * root * (y - self.mean / root) / (self.variance + r**2) - r * y / root

    sde, t = SDES[name](), torch.linspace(0.001, 1.0, 50, dtype=torch.float64)
    standard = GaussianScore(sde, double(0.0).expand(3, 4, 4), double(1.0).expand(3, 4, 4))
    other = gaussian(name, (3, 4, 4))
    for exact in (standard, other):
        mean, variance = exact.law(t, torch.zeros(50, 3, 4, 4, dtype=torch.float64))
        z_t = mean + variance.sqrt() * torch.randn(50, 3, 4, 4, dtype=torch.float64)
        model = ScoreModel(Knows(exact.mean, exact.variance), sde)
        torch.testing.assert_close(model(z_t, t), exact(z_t, t), rtol=1e-8, atol=1e-10)
        y, level = model.backbone.seen
        torch.testing.assert_close(level, (sde.sigma(t) / sde.alpha(t)).log())
        if exact is standard:
            assert (y.flatten(1).var(1) - 1).abs().max() < 1.0 and y.var().item() == pytest.approx(
                1.0, abs=0.1
            )


# ── the bound at the exact score and off it ───────────────────────────────────────────────────────


@pytest.mark.parametrize("shape, n", [((2,), 8000), ((3, 8, 8), 100)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_bound_at_the_exact_score_is_the_likelihood_and_its_known_gap(
    name, shape, n, eps, two_point_noise
):
    """E[NELBO + log p(x)] = KL(p_T ‖ π) + E KL(p(z_0|z_ε) ‖ its Gaussian): negligible at ε = 1e-5."""
    score = gaussian(name, shape, eps=eps)
    model, dims, gaps = INDM(Identity(), score), math.prod(shape), []
    for seed in range(32):
        x = two_point_data(score, n, seed)
        torch.testing.assert_close(-score.log_prob(x), torch.full((n,), score.entropy()).double())
        terms = nelbo(model, x, times=4, generator=seeded(100 + seed))
        torch.testing.assert_close(terms.flow, torch.zeros_like(terms.flow))
        torch.testing.assert_close(
            terms.total,
            terms.flow + terms.score + terms.constant + terms.prior + terms.reconstruction,
        )
        torch.testing.assert_close(terms.without_reconstruction, terms.total - terms.reconstruction)
        gaps.append((terms.total - score.entropy()).mean() / dims)
    gaps = torch.stack(gaps)
    assert within(gaps, score.bound_gap() / dims, errors=4)
    assert gaps.std() / math.sqrt(len(gaps)) < 3e-3
    if eps == 1e-5:
        assert score.bound_gap() / dims < 1e-3


def test_bound_under_a_flow_is_in_data_units(name):
    """x of a Gaussian whose whitened latent has the exact score: the NELBO is the entropy of x,
    log-det included.
    """
    mean, std = double(4.0, -2.0), double(0.1, 30.0)
    flow = ActNorm(2).double()
    flow.initialize(mean + std * torch.randn(10, 2, dtype=torch.float64))
    with torch.no_grad():
        scale = flow.log_scale.exp()
        score = GaussianScore(SDES[name](), scale * mean + flow.shift, (scale * std) ** 2)
    entropy = 0.5 * (2 * math.pi * math.e * std**2).log().sum()
    model, bounds = INDM(flow, score), []
    for seed in range(24):
        x = mean + std * torch.randn(2000, 2, dtype=torch.float64, generator=seeded(seed))
        neg_log_prob = -normal_log_prob(x, mean, std**2)
        bounds.append(
            (nelbo(model, x, times=4, generator=seeded(seed)).total - neg_log_prob).detach().mean()
            + entropy
        )
    assert within(torch.stack(bounds), entropy + score.bound_gap(), errors=4)


def test_each_level_has_its_part_of_the_score_term(name):
    """With the exact score of a Gaussian E[D] = ½ Σ v/(v + r) on the clock log r, r = σ²/α²: its
    integral is closed.
    """
    score = gaussian(name)
    z = score.sample(20_000, seeded(0))
    ends = torch.linspace(*score.sde.clock_span(), 9, dtype=torch.float64)
    expected = 0.5 * (ends - (score.variance[:, None] + ends.exp()).log()).sum(0).diff()
    drawn = {}
    for law, reference in (
        (None, None),
        ("standard", GaussianReference.standard(z[:1])),
        ("fit", GaussianReference.fit(z)),
    ):
        bound = nelbo(INDM(Identity(), score), z, times=2, reference=reference, generator=seeded(1))
        drawn[law] = bound.by_noise_level
        torch.testing.assert_close(bound.by_noise_level.sum(1), bound.score, rtol=1e-9, atol=1e-9)
        assert within(bound.by_noise_level, expected) and not within(
            bound.by_noise_level.roll(1, 1), expected
        )
    assert (drawn["fit"].std(0).sum() < 0.5 * drawn[None].std(0).sum()).item()


def test_a_score_that_diverges_shows_in_its_level_alone():
    score = gaussian("vp")
    exact = score.forward
    score.forward = lambda z, t: torch.where(t[:, None] < 1e-4, math.inf, exact(z, t))
    levels = nelbo(
        INDM(Identity(), score), score.sample(400, seeded(0)), times=4, generator=seeded(1)
    ).by_noise_level
    assert levels[:, 0].isinf().any() and levels[:, 4:].isfinite().all()


def test_times_are_checked():
    with pytest.raises(ValueError, match="times must be at least 1"):
        nelbo(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), times=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_step_costs_the_divergence_of_its_two_gaussians(sde):
    """q(z_s|z_t, z_0) by the product of its two Gaussians, against the law of the sampler's step."""
    score, generator = gaussian("vp", (3,)), torch.Generator().manual_seed(0)
    score.sde = sde
    z, noise = torch.randn(2, 20, 3, dtype=torch.float64, generator=generator).unbind(0)
    t, s = torch.full((20,), 0.6, dtype=torch.float64), torch.full((20,), 0.45, dtype=torch.float64)
    alpha, sigma, (r, v) = sde.alpha(s), sde.sigma(s), sde.transition(s, t)
    alpha, sigma, r, v = (expand_like(value, z) for value in (alpha, sigma, r, v))
    z_t = sde.perturb(z, t, noise)
    precision = sigma**-2 + (r / v) ** 2
    exact = Normal((alpha * z / sigma**2 + r * z_t / v**2) / precision, precision**-0.5)
    expected = kl_divergence(exact, Normal(*ancestral_step(score, z_t, t, s))).sum(1)
    torch.testing.assert_close(step_divergence(score, z, t, s, noise), expected, rtol=1e-8, atol=0)


def test_nelbo_draws_the_bound_of_few_steps_without_bias():
    score, generator, steps = gaussian("vp", (2,)), torch.Generator().manual_seed(1), 5
    x = score.sample(20_000, generator)
    bound = nelbo(
        INDM(Identity(), score, shape=(2,)), x, times=2, ancestral=steps, generator=generator
    )
    grid = log_snr_grid(score.sde, steps).expand(len(x), -1)
    noises = (torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(steps))
    each = [
        step_divergence(score, x, grid[:, i], grid[:, i + 1], noise)
        for i, noise in enumerate(noises)
    ]
    assert within(bound.score - torch.stack(each).sum(0), 0.0)


# ── the laws of time ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_extended_clock_has_its_law(name, eps):
    """Of n times a share 1/(R + 1) is ε; the others are uniform in log-SNR; (R+1) E h = ∫ h g²/σ²
    dt + h(ε).
    """
    sde, n = SDES[name](), 40_000
    t, length = extended_clock(sde, n, eps, generator=seeded(0))
    nodes, w = log_panels(eps, 1.0)
    rate = (sde.diffusion(nodes) / sde.sigma(nodes)) ** 2
    R = (w * rate).sum().item()
    assert length == pytest.approx(R + 1, rel=1e-6)
    atoms = t == torch.tensor(eps)
    assert abs(atoms.sum().item() - n / length) <= 2
    rest = t[~atoms].double()
    ends = sde.log_snr(double(eps, 1.0))
    u = ((ends[0] - sde.log_snr(rest)) / (ends[0] - ends[1])).clamp(0, 1)
    # stratified: far closer than independent draws
    assert stats.kstest(u.numpy(), "uniform").statistic < 5 / n
    for h in (torch.sqrt, lambda s: torch.cos(5 * s), lambda s: (-s / 0.01).exp()):
        expected = (w * rate * h(nodes)).sum() + h(double(eps))[0]
        assert length * h(t.double()).mean().item() == pytest.approx(expected.item(), abs=2e-3)
    order = stats.spearmanr(np.arange(n), t.numpy()).statistic
    assert abs(order) < 5 / math.sqrt(n)  # in random order


@pytest.mark.parametrize("k", [0.5, 1.0, 1.2, 3.0])
def test_soft_truncation_law(k):
    sde, generator = VPSDE(eps=1e-4), seeded(0)
    draws = np.array([soft_truncation(sde, k, generator=generator) for _ in range(3000)])
    assert draws.min() >= sde.eps and draws.max() < 1

    def cdf(tau):
        if k == 1.0:
            return np.log(tau / sde.eps) / np.log(1 / sde.eps)
        return (sde.eps ** (1 - k) - tau ** (1 - k)) / (sde.eps ** (1 - k) - 1)

    assert stats.kstest(draws, cdf).pvalue > 1e-3


def test_soft_truncation_checks_k():
    with pytest.raises(ValueError, match="k must be positive"):
        soft_truncation(VPSDE(), 0.0)


# ── the losses ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loss", [mle_loss, fid_loss])
@pytest.mark.parametrize("eps", [None, 0.05, 0.4])
def test_losses_report_the_bound_at_every_truncation(name, loss, eps, two_point_noise):
    """At the exact score the mean is the entropy plus the known gap, which the truncation opens."""
    score = gaussian(name)
    model, values, per_dim = INDM(Identity(), score), [], []
    for seed in range(32):
        x = two_point_data(score, 4000, seed)
        value, terms = loss(model, x, eps=eps, generator=seeded(1000 + seed))
        values.append(terms["nelbo"] - score.entropy())
        per_dim.append((value, terms))
    assert within(torch.stack(values), score.bound_gap(eps), errors=4, floor=1e-5)
    assert torch.stack(values).std() / math.sqrt(32) < 0.07
    if eps == 0.4 and name in ("vp", "subvp"):
        assert score.bound_gap(eps) > 0.02  # the reconstruction at τ is seen
    for value, terms in per_dim:
        assert {"nelbo", "flow", "denoising", "prior"} <= set(terms)
        assert all(v.ndim == 0 and not v.requires_grad for v in terms.values())
        if loss is mle_loss:
            torch.testing.assert_close(value, terms["nelbo"] / 2)


def test_mle_loss_is_the_mean_of_the_bound(name):
    """The same expectation by two routes: separate score and reconstruction terms, and the extended
    clock.
    """
    flow = trained_flow()
    model = INDM(flow, LinearScore(SDES[name](), [0.8, 1.3], [0.3, -0.2]))
    x = torch.randn(2000, 2, dtype=torch.float64)
    with torch.no_grad():
        one = torch.stack([mle_loss(model, x, generator=seeded(i))[1]["nelbo"] for i in range(48)])
        two = torch.stack(
            [nelbo(model, x, times=2, generator=seeded(i)).total.mean() for i in range(48)]
        )
    assert within(one - two, 0.0, errors=4)
    assert within(one, plain_bound(model, x).detach(), errors=4)


def trained_flow():
    flow = ActNorm(2).double()
    with torch.no_grad():
        flow.log_scale.copy_(double(0.3, -0.4))
        flow.shift.copy_(double(0.5, -0.1))
    return flow


def plain_bound(model, x, eps=None):
    """The mean NELBO of an ActNorm and a :class:`LinearScore` at the truncation ``eps``, the noise
    integrated by hand.

    With κ = 1/(α² + σ²), z_t = α z + σ n and s = −κ (w z_t + b), both s + n/σ and the error of the
    reconstruction are affine in n, so that their mean squares are squares of coefficients.
    """
    sde, w, b = model.sde, model.score.weight, model.score.bias
    z = model.flow.log_scale.exp() * x + model.flow.shift
    d = x.shape[1]
    start = double(sde.eps if eps is None else eps)
    flow = -model.flow.log_scale.sum()

    def expected_square(t, of_noise, of_rest):
        """E‖of_noise · n + of_rest · (w α z + b)‖² over n and the batch, for each time."""
        signal = w * column(sde.alpha(t), t[:, None, None]) * z + b  # (times, batch, d)
        return (of_noise**2).sum(-1) + (of_rest[:, None] * signal).square().sum(-1).mean(-1)

    t, weight = log_panels(start.item(), 1.0)
    f, g, sigma, kappa = (
        sde.drift(t),
        sde.diffusion(t),
        sde.sigma(t)[:, None],
        1 / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None],
    )
    score = (
        0.5
        * (weight * g**2 * expected_square(t, 1 / sigma - kappa * w * sigma, -kappa + 0 * w)).sum()
    )
    constant = -0.5 * (weight * (g**2 * d / sigma[:, 0] ** 2 + 2 * d * f)).sum()

    T = double(1.0)
    mean = sde.alpha(T) * z - sde.prior_mean
    prior = 0.5 * d * math.log(2 * math.pi * sde.prior_std**2)
    prior = prior + (mean.square().sum(1).mean() + d * sde.sigma(T)[0] ** 2) / (
        2 * sde.prior_std**2
    )

    alpha, sigma = sde.alpha(start)[0], sde.sigma(start)
    kappa = 1 / (alpha**2 + sigma**2)
    log_q = -0.5 * d * (1 + (2 * math.pi * sigma[0] ** 2).log())
    error = expected_square(
        start,
        (-sigma + sigma**3 * kappa * w)[None] / alpha,
        ((sigma**2 * kappa) + 0 * w)[None] / alpha,
    )
    variance = (sigma[0] / alpha) ** 2
    minus_log_p = 0.5 * d * (2 * math.pi * variance).log() + error[0] / (2 * variance)
    return flow + score + constant + prior + log_q + minus_log_p


def plain_variance_weighted(model, x, eps=None):
    """½ E ‖σ s + n‖² for t uniform on [eps, T]: the loss of the score in FID mode."""
    sde, w, b = model.sde, model.score.weight, model.score.bias
    z = (model.flow.log_scale.exp() * x + model.flow.shift).detach()
    start = sde.eps if eps is None else eps
    t, weight = log_panels(start, 1.0)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    kappa = 1 / (alpha**2 + sigma**2)
    signal = w * column(alpha[:, 0], t[:, None, None]) * z + b
    square = (1 - sigma**2 * kappa * w).square().sum(1) + (
        (sigma * kappa)[:, None] * signal
    ).square().sum(2).mean(1)
    return 0.5 * (weight * square).sum() / (1 - start)


SHORT = {"vp": {"beta_max": 2.0}, "subvp": {"beta_max": 2.0}, "ve": {"sigma_max": 2.0}}


def felt(name):
    """An SDE so short, if it is one of SHORT, that its prior is felt: at the defaults z_T forgets
    the data, and the prior has no gradient.
    """
    sde = SDES[name](**SHORT.get(name, {}))
    sde.prior_mean = torch.tensor([0.4, -0.3])
    return sde


@pytest.mark.parametrize("name", SHORT)
def test_the_prior_is_felt(name):
    model, x = (
        INDM(trained_flow(), LinearScore(felt(name), 1.0, 0.0)),
        torch.randn(200, 2, dtype=torch.float64),
    )
    parameters = list(model.flow.parameters())
    prior = gradients(prior_term(model.sde, model.encode(x)[0]).mean(), parameters)
    assert prior.norm() > 0.1 * gradients(plain_bound(model, x), parameters).norm()


def gradients(value, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def check(draws, exact, sharpness):
    assert within(draws, exact, errors=4.5)
    assert draws.std(0).max() / math.sqrt(len(draws)) < sharpness * exact.abs().max()


@pytest.mark.parametrize("eps", [None, 0.2])
def test_mle_gradients_are_those_of_the_plain_bound(name, eps, two_point_noise):
    model = INDM(trained_flow(), LinearScore(felt(name), [0.8, 1.3], [0.3, -0.2]))
    x = torch.randn(2000, 2, dtype=torch.float64)
    parameters = list(model.parameters())
    exact = gradients(plain_bound(model, x, eps) / 2, parameters)
    draws = [
        gradients(mle_loss(model, x, eps=eps, generator=seeded(i))[0], parameters)
        for i in range(120)
    ]
    check(torch.stack(draws), exact, 0.02)


@pytest.mark.parametrize("eps", [pytest.param(None, marks=pytest.mark.long), 0.2])
def test_fid_gradients_are_each_part_its_own(name, eps, two_point_noise):
    """The flow's from the plain bound; the score's from the variance-weighted loss and its share of
    the bound.
    """
    model = INDM(trained_flow(), LinearScore(felt(name), [0.8, 1.3], [0.3, -0.2]))
    x = torch.randn(1500, 2, dtype=torch.float64)
    flow, score = list(model.flow.parameters()), list(model.score.parameters())
    exact_flow = gradients(plain_bound(model, x, eps) / 2, flow)
    exact_score = plain_variance_weighted(model, x, eps) + LIKELIHOOD_SHARE * plain_bound(
        model, x, eps
    )
    exact_score = gradients(exact_score / 2, score)
    draws = [
        gradients(fid_loss(model, x, eps=eps, generator=seeded(i))[0], flow + score)
        for i in range(160)
    ]
    draws = torch.stack(draws)
    check(draws[:, :4], exact_flow, 0.02)
    check(draws[:, 4:], exact_score, 0.02)


def test_fid_score_sees_its_share_of_the_bound(monkeypatch):
    """On the same draws: with that share and without, the score's loss differs by the share of the
    bound's part.
    """
    model = INDM(trained_flow(), LinearScore(VPSDE(), [0.8, 1.3], [0.3, -0.2]))
    x = torch.randn(50, 2, dtype=torch.float64)
    with_share = fid_loss(model, x, generator=seeded(0))[1]
    monkeypatch.setattr("indm.objective.LIKELIHOOD_SHARE", 0.0)
    without = fid_loss(model, x, generator=seeded(0))[1]
    difference = with_share["variance_weighted"] - without["variance_weighted"]
    torch.testing.assert_close(difference, LIKELIHOOD_SHARE * without["denoising"])


# ── the flow alone ────────────────────────────────────────────────────────────────────────────────


def plain_flow(sde=None, shape=(3,)):
    """A rough coupling flow before the score of N(0, I) latents, in double precision."""
    flow = CouplingFlow(shape, depth=3, width=8)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return INDM(flow.double(), ScoreModel(Zero(), VPSDE() if sde is None else sde))


def plain_nll(flow, x):
    """−log N(h(x); 0, I) − log|det ∂h/∂x|, the determinant from the whole Jacobian."""
    jacobian = [
        torch.autograd.functional.jacobian(flow.latent, x[i : i + 1], create_graph=True)
        for i in range(len(x))
    ]
    log_det = torch.stack([j.reshape(x[0].numel(), -1).slogdet().logabsdet for j in jacobian])
    return (
        -torch.distributions.Normal(0.0, 1.0).log_prob(flow.latent(x)).flatten(1).sum(1) - log_det
    )


@pytest.mark.parametrize("kind", [VPSDE, pytest.param(SubVPSDE, marks=pytest.mark.long)])
def test_bound_and_likelihood_of_a_silent_backbone_are_those_of_the_flow(kind):
    model, x = plain_flow(kind()), 1.3 * torch.randn(40, 3, dtype=torch.float64)
    exact = plain_nll(model.flow, x)
    assert exact.std() > 1  # nats: the flow is far from the identity
    with torch.no_grad():
        draws = torch.stack(
            [nelbo(model, x, times=8, generator=seeded(i)).total for i in range(200)]
        )
    assert within(draws, exact, floor=1e-3)
    assert within(draws.mean(1), exact.mean(), errors=4)
    report = nll(model, x.repeat(8, 1), exact=True, generator=seeded(0))
    found = -report.total.reshape(8, 40).mean(0)
    assert (found + exact).abs().mean() < 3 * 1e-3
    assert report.nfe == 69 and report.solver_error.max() < 1e-9


def test_flow_loss_is_the_plain_likelihood_and_its_gradient():
    model, x = plain_flow(shape=(2,)), torch.randn(20, 2, dtype=torch.float64)
    value, terms = flow_loss(model, x)
    torch.testing.assert_close(value, plain_nll(model.flow, x).mean() / 2)
    torch.testing.assert_close(terms["nelbo"], 2 * value.detach())
    torch.testing.assert_close(terms["nelbo"], terms["flow"] + terms["prior"])
    assert terms["denoising"] == 0 and not any(term.requires_grad for term in terms.values())

    parameters = list(model.parameters())
    torch.testing.assert_close(
        gradients(value, parameters), gradients(plain_nll(model.flow, x).mean() / 2, parameters)
    )


@pytest.mark.parametrize("loss", [mle_loss, fid_loss])
@pytest.mark.parametrize("n", [64, 7])
def test_losses_repeat_with_their_generator(loss, n):
    """All randomness comes from the generator given, whatever the global state."""
    score = gaussian("vp")
    x, values = score.sample(n), []
    for i in range(20):
        torch.manual_seed(i)
        values.append(loss(INDM(Identity(), score), x, generator=seeded(5))[1]["nelbo"].item())
    assert len(set(values)) == 1


@pytest.mark.parametrize("loss", [mle_loss, fid_loss, flow_loss])
@pytest.mark.parametrize("eps", [1e-6, 1.0, 2.0])
def test_truncation_must_lie_inside(loss, eps):
    score = gaussian("vp")
    with pytest.raises(ValueError, match="eps"):
        loss(INDM(Identity(), score), score.sample(8), eps=eps)


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE, VESDE])
def test_losses_are_finite_in_float32(kind):
    """At σ_ε = 1e-6 (sub-VP) the noise drowns in the rounding of z_ε: the terms must not divide by
    it.
    """
    score = GaussianScore(kind(), torch.zeros(3, 8, 8), torch.ones(3, 8, 8))
    x = torch.randn(64, 3, 8, 8)
    model = INDM(Identity(), score)
    for _ in range(10):
        for loss in (mle_loss, fid_loss):
            value, terms = loss(model, x)
            assert value.isfinite() and value.dtype == torch.float32
            assert all(v.isfinite() for v in terms.values())
    mean = torch.stack([nelbo(model, x, times=4).total.mean() for _ in range(20)]).mean() / 192
    reference = 0.5 * math.log(2 * math.pi) + 0.5 * x.square().mean()
    assert mean.item() == pytest.approx(reference.item(), abs=0.02)


# ── what the trainer must know of an objective ────────────────────────────────────────────────────


def test_the_flow_loss_says_what_it_does_not_train():
    assert objective_of(mle_loss) == Objective(mle_loss) and objective_of(fid_loss) == Objective(
        fid_loss
    )
    flow = objective_of(flow_loss)
    assert (flow.trains_score, flow.trains_flow, flow.truncates) == (False, True, False)


def test_an_objective_is_a_function_an_objective_or_what_a_class_makes():
    def loss(model, x, *, progress):
        return x.sum() * progress, {}

    class Made:
        def __call__(self, model, x):
            return x.sum(), {}

    plain = objective_of(loss)
    assert plain == Objective(loss) and objective_of(plain) is plain
    assert plain.takes("progress") and not plain.takes("eps")
    assert plain(nn.Identity(), torch.ones(3), progress=2.0)[0] == 6
    made = objective_of(Made)
    assert isinstance(made.loss, Made) and not made.takes("progress")
    assert objective_of(as_objective(trains_flow=False)(loss)) == Objective(loss, trains_flow=False)
    with pytest.raises(ValueError, match=r"objective must be a function .*, got 3"):
        objective_of(3)


def test_the_bound_of_raw_data_counts_their_scale_once():
    """Standardised vectors: nats and bits/dim of the raw data, beside the density of the raw data
    themselves.
    """
    scaling = Scaling(torch.tensor([5.0, -1.0]), torch.tensor([3.0, 0.2]))
    model = INDM(Identity(), ScoreModel(Zero(), VPSDE()), scaling, (2,)).double()
    law = Normal(scaling.shift.double(), scaling.scale.double())
    raw = law.sample((2000,))
    x, log_q = model.from_data(raw)
    exact = -law.log_prob(raw).sum(1)
    for bound in (nelbo(model, x, times=16), nelbo(model, x, times=16, log_q=log_q)):
        assert within(bound.nats - exact, 0)
        assert bound.bits_per_dim == pytest.approx(
            bound.nats.mean().item() / (2 * math.log(2)), rel=1e-9
        )
    # −log 0.6: model units are not the raw ones
    assert abs((bound.total - exact).mean().item()) > 0.4
