"""Forward processes against closed forms: Gaussians and mixtures with the best scores, by quadrature and samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from closed_form import inverse_cdf, normal_log_prob, within
from scipy import integrate
from torch import nn

import indm
from indm.flows import Identity
from indm.rng import randn_like
from indm.sampling import Ancestral, log_snr_grid, make_sampler
from indm.sde import VESDE, VPSDE
from indm.tensors import expand_like
from indm.translation import bridge, two_models
from research.forward import free_volatility, objective
from research.forward.base import LINEAR, ForwardProcess, process_path
from research.forward.learned import Affine
from research.forward.likelihood import log_likelihood
from research.forward.model import ForwardINDM, build_forward, make_forward, solve_latent
from research.forward.objective import (
    _two_errors,
    constant_term,
    denoising_error,
    irreducible_gap,
    mle,
    nelbo,
    prior_term,
    reconstruction_term,
    step_divergence,
)
from research.forward.scores import TwoScores, encoded, flow_score, law_score
from research.forward.sde import LearnedSDE

EPS = 1e-3
DOUBLE = torch.float64


class Scaled(ForwardProcess):
    """M = A(Λ) z_0 and R = B(Λ), with A and B of a wave in the place p on the clock, 1 at both ends."""

    def __init__(self, mean=0.5, spread=0.4):
        super().__init__()
        self.mean, self.spread = mean, spread

    def wave(self, sde, clock):
        """The wave and its derivative."""
        start, end = sde.clock_span()
        angle, share = math.pi * (clock - start) / (end - start), clock.sigmoid()
        wave = angle.sin().square() * share
        return wave, math.pi / (end - start) * (2 * angle).sin() * share + wave * (1 - share)

    def factors(self, sde, clock):
        wave, _ = self.wave(sde, clock)
        return 1 + self.mean * wave, (self.spread * wave).exp()

    def path(self, sde, z):
        def path(clock):
            A, B = (expand_like(v, z) for v in self.factors(sde, clock))
            return A * z, B * torch.ones_like(z)

        return path


class Best(nn.Module):
    """The best scores for mixture data in one dimension of each entry, Σ_k w_k N(m_k, v_k), under a :class:`Scaled`.

    A call gives s_θ = −E[e|z_t]/σ.
    """

    def __init__(self, sde, process, means=(0.3,), variances=(0.6,), weights=(1.0,)):
        super().__init__()
        self.sde, self.process = sde, process
        self.law = [torch.tensor(v, dtype=DOUBLE) for v in (means, variances, weights)]

    def coefficients(self, t):
        """Of the sum e = a z_0 + b n and of z_t = c z_0 + d n, and R; each of the shape of t."""
        t = t.double()
        clock = -self.sde.log_snr(t)
        (A, B), (_, slope) = self.process.factors(self.sde, clock), self.process.wave(self.sde, clock)
        dA, dB = self.process.mean * slope, self.process.spread * slope * B
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return alpha / sigma * dA, 0.5 * B + dB + 0.5 / B, alpha * A, sigma * B, B

    def moments(self, z, t, coefficients=None):
        """E and Var of z_0 given z_t, and ∇log p_t."""
        coefficients = self.coefficients(t) if coefficients is None else coefficients
        _, _, c, d, _ = (v.reshape(-1, *(1 for _ in z.shape[1:]), 1) for v in coefficients)
        m, v, w = self.law
        total = c**2 * v + d**2
        offset = z.double()[..., None] - c * m
        share = (w.log() - 0.5 * (offset**2 / total + total.log())).softmax(-1)
        means, variances = m + c * v / total * offset, v * d**2 / total
        first = (share * means).sum(-1)
        return first, (share * (variances + means**2)).sum(-1) - first**2, -(share * offset / total).sum(-1)

    def forward(self, z, t):
        return self.both(z, t)[0]

    def both(self, z, t):
        coefficients = self.coefficients(t)
        a, b, c, d, _ = (expand_like(v, z) for v in coefficients)
        z_0, _, of_law = self.moments(z, t, coefficients)
        e = a * z_0 + b * (z.double() - c * z_0) / d
        return (-e / expand_like(self.sde.sigma(t), z)).to(z), of_law.to(z)

    @property
    def of_law(self):
        return _View(self, lambda z, t: self.both(z, t)[1])

    @property
    def of_flow(self):
        def flow(z, t):
            drift, of_law = self.both(z, t)
            return 2 * drift - of_law

        return _View(self, flow)

    def sample(self, n, d, generator=None):
        m, v, w = self.law
        k = torch.multinomial(w, n * d, replacement=True, generator=generator).reshape(n, d)
        return m[k] + v[k].sqrt() * torch.randn(n, d, dtype=DOUBLE, generator=generator)

    def log_prob(self, z):
        m, v, w = self.law
        return torch.stack([w[k].log() + normal_log_prob(z, m[k], v[k]) for k in range(len(m))]).logsumexp(0)


class _View(nn.Module):
    def __init__(self, best, function):
        super().__init__()
        self.sde, self.function = best.sde, function

    def forward(self, z, t):
        return self.function(z, t)


MIXTURE = {"means": (-0.9, 0.7), "variances": (0.05, 0.2), "weights": (0.4, 0.6)}
CASES = {
    "linear": (VPSDE(eps=EPS), Scaled(0, 0), {}),
    "mean": (VPSDE(eps=EPS), Scaled(0.5, 0), {}),
    "both": (VPSDE(eps=EPS), Scaled(-0.4, 0.4), {}),
    "mixture": (VPSDE(eps=EPS), Scaled(0.3, -0.3), MIXTURE),
    "variance exploding": (VESDE(0.02, 20, eps=EPS), Scaled(0.3, 0.3), MIXTURE),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long) if name == "mean" else name for name in CASES])
def case(request):
    sde, process, law = CASES[request.param]
    return sde, process, Best(sde, process, **law)


def normal_nodes(count):
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def expectation(best, value, count=48):
    """E of value(z_0, n) over data and noise, by quadrature in each component."""
    nodes, weights = normal_nodes(count)
    total = 0.0
    for m, v, w in zip(*best.law, strict=True):
        z = (m + v.sqrt() * nodes).repeat_interleave(count)[:, None]
        total += (
            w
            * (weights.repeat_interleave(count) * weights.repeat(count) * value(z, nodes.repeat(count)[:, None])).sum()
        )
    return float(total)


def over_clock(sde, value, count=60):
    """∫ value(t) dΛ from ε to T."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    start, end = sde.clock_span()
    clocks = start + (end - start) * (1 + nodes) / 2
    times = sde.time(torch.tensor(-clocks))
    return float(0.5 * (end - start) * sum(w * value(t) for w, t in zip(weights, times, strict=True)))


def entropy(best):
    return -expectation(best, lambda z, n: best.log_prob(z))


def irreducible(best):
    """½∫ E Var(e − n/R | z_t) dΛ: with n = (z_t − c z_0)/d, e − n/R = (a − (b − 1/R) c/d) z_0 + … z_t."""

    def variance(t):
        a, b, c, d, B = best.coefficients(t)
        factor = a - (b - 1 / B) * c / d
        return 0.5 * factor**2 * expectation(best, lambda z, n: best.moments(c * z + d * n, t.expand(len(z)))[1][:, 0])

    return over_clock(best.sde, variance)


def ends(best):
    """What the prior and the Gaussian reconstruction leave of the bound: D(p_T‖π) + E D(p(z_0|z_ε)‖its Gaussian)."""
    sde = best.sde
    eps, T = (torch.tensor([time], dtype=DOUBLE) for time in (sde.eps, sde.T))

    def reconstruction(z, n):  # log p(z_0|z_ε) − log of the model's Gaussian around E[z_0|z_ε]
        alpha, sigma = sde.alpha(eps), sde.sigma(eps)
        z_eps = alpha * z + sigma * n
        exact = best.log_prob(z) + normal_log_prob(z_eps, alpha * z, sigma**2) - log_p(best, z_eps, eps)
        return exact - normal_log_prob(z, best.moments(z_eps, eps.expand(len(z)))[0], (sigma / alpha) ** 2)

    def prior(z, n):
        _, _, c, d, _ = best.coefficients(T)
        z_T = c * z + d * n
        return log_p(best, z_T, T) - sde.prior_log_prob(z_T)

    return expectation(best, reconstruction) + expectation(best, prior)


def log_p(best, z_t, t):
    _, _, c, d, _ = best.coefficients(t)
    m, v, w = best.law
    parts = [w[k].log() + normal_log_prob(z_t, c * m[k], c**2 * v[k] + d**2) for k in range(len(m))]
    return torch.stack(parts).logsumexp(0)


def test_the_bound_exceeds_the_entropy_by_the_stated_gap(case):
    sde, process, best = case

    def error(t):
        return expectation(best, lambda z, n: denoising_error(best, z, t.expand(len(z)), n, process=process))

    def rest(z, n):
        end = process.moments(sde, z, sde.endpoints(z)[1])
        terms = constant_term(sde, z, end=end) + prior_term(sde, z, end)
        return terms + reconstruction_term(best, z, n)

    bound = over_clock(sde, error) + expectation(best, rest)
    gap = irreducible(best)
    assert bound - entropy(best) == pytest.approx(gap + ends(best), abs=1e-3)
    assert (gap < 1e-12) == (process.mean == process.spread == 0)


def test_the_measured_gap_is_the_irreducible_one(case):
    _, process, best = case
    model = ForwardINDM(Identity(), best, shape=(1,), process=process)
    generator = torch.Generator().manual_seed(0)
    gap = irreducible_gap(model, best.sample(4000, 1, generator), times=4, generator=generator)
    assert within(gap, irreducible(best))


def test_what_a_free_volatility_takes_away_is_that_of_the_conditional_variances(case):
    """a and n/(2R) are linear in z_0 given z_t: A = f² E Var(z_0|z_t), B = h² E Var(z_0|z_t)."""
    sde, process, best = case

    def rate(t):
        a, b, c, d, R = best.coefficients(t)
        f, h = a - (b - 0.5 / R) * c / d, 0.5 / R * c / d
        variance = expectation(best, lambda z, n: best.moments(c * z + d * n, t.expand(len(z)))[1][:, 0])
        return 0.5 * (f.abs() - h.abs()) ** 2 * variance

    model, generator = ForwardINDM(Identity(), best, shape=(1,), process=process), torch.Generator().manual_seed(0)
    drawn = free_volatility.errors(model, best.sample(4000, 1, generator), 100, generator)
    fall = free_volatility.fall_of_bound(*drawn, sde.log_snr_range())
    assert fall == pytest.approx(over_clock(sde, rate), rel=0.1, abs=1e-9)
    assert (fall < 1e-9) == (process.mean == process.spread == 0)


def test_nelbo_in_eight_dimensions_is_eight_times_that_of_one(case):
    _, process, best = case
    model = ForwardINDM(Identity(), best, shape=(8,), process=process)
    generator = torch.Generator().manual_seed(0)
    x = best.sample(4000, 8, generator)
    log_p_of_x = torch.stack([best.log_prob(column[:, None]) for column in x.T]).sum(0)
    excess = nelbo(model, x, times=8, generator=generator).total + log_p_of_x
    assert within(excess, 8 * (irreducible(best) + ends(best)))


@pytest.mark.parametrize("d", [1, 8])
def test_nll_of_the_probability_flow_is_that_of_the_data(case, d):
    sde, process, best = case
    model = ForwardINDM(Identity(), best, shape=(d,), process=process)
    x = best.sample(16, d, torch.Generator().manual_seed(1))
    # p_ε at z_ε = α_ε x, where the flow carries the law of z_T, not the prior: the difference of the two is known.
    log_prob = model.log_prob(x, steps=64, exact=True)
    eps, T = (torch.tensor([time], dtype=DOUBLE) for time in (sde.eps, sde.T))
    alpha, entries = sde.alpha(eps), x.reshape(-1, 1)
    expected = log_p(best, alpha * entries, eps) + alpha.log()
    z_T = quantile_of_flow(best, alpha * entries)
    expected = expected + sde.prior_log_prob(z_T) - log_p(best, z_T, T)
    assert torch.allclose(log_prob, expected.reshape(x.shape).sum(1), atol=1e-3)


def quantile_of_flow(best, z_eps):
    """z_T with the same probability below it as z_ε: where a flow on a line that keeps the laws carries it."""
    m, v, w = best.law

    def below(z, t):
        _, _, c, d, _ = best.coefficients(torch.tensor([t], dtype=DOUBLE))
        return (w * torch.distributions.Normal(c * m, (c**2 * v + d**2).sqrt()).cdf(z)).sum(-1)

    return inverse_cdf(lambda z: below(z, best.sde.T), below(z_eps, best.sde.eps))


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        pytest.param("euler-maruyama", 400, marks=pytest.mark.long),
        ("ancestral", 200),
        ("heun", 60),
        pytest.param("ode", None, marks=pytest.mark.long),
    ],
)
def test_samples_have_the_moments_of_the_data(sampler, steps):
    sde, process, law = CASES["mixture"]
    best = Best(sde, process, **law)
    model = ForwardINDM(Identity(), best, shape=(1,), process=process)
    generator = torch.Generator().manual_seed(2)
    z_T = sde.prior_sample((20_000, 1), generator=generator, dtype=DOUBLE)
    z, _ = solve_latent(model, z_T, make_sampler(sampler), steps, generator=generator)
    m, v, w = best.law
    assert within(z[:, 0], (w * m).sum(), floor=0.004)
    assert within(z[:, 0] ** 2, (w * (v + m**2)).sum(), floor=0.006)
    assert within(z[:, 0] ** 4, (w * (3 * v**2 + 6 * v * m**2 + m**4)).sum(), floor=0.012)


def bound_of_steps(best, steps):
    """E of the divergences of all steps."""
    grid = best.sde.time(-torch.linspace(*best.sde.clock_span(), steps + 1, dtype=DOUBLE))

    def divergence(t, s):
        return expectation(
            best, lambda z, n: step_divergence(best, z, t.expand(len(z)), s.expand(len(z)), n, best.process), count=32
        )

    return sum(divergence(t, s) for s, t in itertools.pairwise(grid))


def test_the_bound_of_few_steps_falls_to_that_of_the_sde_with_the_step(case):
    sde, process, best = case

    def error(t):
        return expectation(best, lambda z, n: denoising_error(best, z, t.expand(len(z)), n, process=process), count=32)

    limit = over_clock(sde, error)
    excess = [bound_of_steps(best, steps) - limit for steps in (20, 40, 80)]
    assert excess[0] > excess[1] > excess[2] > 0
    assert excess[1] / excess[2] == pytest.approx(2, rel=0.2)  # of first order


def test_a_step_of_the_linear_diffusion_costs_its_denoising_error():
    """KL = (e^ΔΛ − 1) D, Kingma et al. 2021, in which the difference of signal-to-noise ratios is (e^ΔΛ − 1)/σ̃²."""
    sde, generator = VPSDE(), torch.Generator().manual_seed(3)
    net = indm.build_model(
        {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}, (5,)
    )
    nn.init.normal_(net.score.backbone.output.weight, generator=generator)
    score = net.score.double()
    z, noise = (torch.randn(20, 5, dtype=DOUBLE, generator=generator) for _ in range(2))
    t, s = torch.full((20,), 0.6, dtype=DOUBLE), torch.full((20,), 0.4, dtype=DOUBLE)
    factor = (sde.log_snr(s) - sde.log_snr(t)).expm1()
    expected = factor * denoising_error(score, z, t, noise)
    assert torch.allclose(step_divergence(score, z, t, s, noise), expected, rtol=1e-8)


def test_nelbo_draws_the_bound_of_few_steps_without_bias():
    sde, process, law = CASES["both"]
    best = Best(sde, process, **law)
    model = ForwardINDM(Identity(), best, shape=(1,), process=process)
    generator = torch.Generator().manual_seed(4)
    x = best.sample(20_000, 1, generator)
    drawn = nelbo(model, x, times=3, ancestral=7, generator=generator)
    assert within(drawn.score, bound_of_steps(best, 7))


@pytest.mark.parametrize(
    ("sde", "forward"), [("vp", "linear"), (LearnedSDE, "linear"), (LearnedSDE, "affine"), ("vp", "coded")]
)
def test_the_bound_of_few_steps_is_that_of_what_the_sampler_draws(sde, forward):
    """E of log q(z_ε, …, z_T|z_0) − log p(z_ε, …, z_T, z_0), p of the sampler's own steps, over draws of the path."""
    n, steps = 20_000, 3
    torch.manual_seed(11)
    tables = {"flow": {"name": "identity"}, "sde": {"name": sde, "eps": EPS}, "net": {"name": "mlp", "width": 8}}
    model = built(tables | {"process": {"name": forward}}, (2,)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, generator = torch.tensor([0.4, -0.9], dtype=DOUBLE).expand(n, 2), torch.Generator().manual_seed(1)
    score, _, log_ratio = encoded(model.score, model.process, x, generator)
    sde, process = score.sde, model.process
    grid = log_snr_grid(model.sde, steps).flip(0).to(DOUBLE)
    path = process_path(process, sde, x, grid, generator=generator)

    def moments(t):
        mean, std = process.moments(sde, x, t.expand(n))
        return mean, expand_like(std, x).expand_as(x)

    log_q, noises = log_ratio, []
    for number, (t, z) in enumerate(zip(grid, path, strict=True)):
        mean, std = moments(t)
        noises.append((z - mean) / std)
        kappa = process.correlation(sde, x, t.expand(n), grid[number - 1].expand(n)) if number else torch.zeros_like(x)
        before = noises[number - 1] if number else torch.zeros_like(x)
        own = torch.distributions.Normal(kappa * before, (1 - kappa**2).sqrt())
        log_q = log_q + (own.log_prob(noises[-1]) - std.log()).sum(1)
    log_p = sde.prior_log_prob(path[-1])
    for s, t in itertools.pairwise(range(steps + 1)):
        draws = [Ancestral().step(score, path[t], grid[t].expand(n), grid[s].expand(n), seeded(i)) for i in (0, 1)]
        noise = [randn_like(path[t], seeded(i)) for i in (0, 1)]
        std = (draws[1] - draws[0]) / (noise[1] - noise[0])
        log_p = log_p + torch.distributions.Normal(draws[0] - std * noise[0], std).log_prob(path[s]).sum(1)
    eps, _ = sde.endpoints(x)
    alpha, sigma = (expand_like(v, x) for v in (sde.alpha(eps), sde.sigma(eps)))
    back = (path[0] + sigma**2 * law_score(score)(path[0], eps)) / alpha
    log_p = log_p + torch.distributions.Normal(back, sigma / alpha).log_prob(x).sum(1)
    bound = nelbo(model, x[:4000], times=steps, ancestral=steps, generator=generator).total
    difference = (log_q - log_p).mean() - bound.mean()
    error = math.hypot((log_q - log_p).std().item() / n**0.5, bound.std().item() / len(bound) ** 0.5)
    assert abs(difference) < 4.5 * error, (difference, error)
    assert error < 0.05 * bound.mean().abs()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


PROCESSES = {
    "linear": "base:Linear", "affine": "learned:Affine", "learned-mean": "learned:LearnedMean", "coded": "coded:Coded",
}  # fmt: skip


def built(tables, shape):
    process = tables["process"] | {"name": "research.forward." + PROCESSES[tables["process"]["name"]]}
    with indm.trust("research"):
        return make_forward(tables | {"process": process}, shape)


def test_a_learned_process_goes_with_a_learned_sde():
    z, noise = torch.randn(2, 4, 3, dtype=DOUBLE).unbind(0)
    sde, t = LearnedSDE((3,)), torch.tensor([0.01, 0.3, 0.6, 0.99], dtype=DOUBLE)
    for parameter in sde.parameters():
        nn.init.normal_(parameter, std=0.5)
    mine, linear = Affine((3,)).double().at(sde, z, t, noise), LINEAR.at(sde, z, t, noise)
    assert torch.allclose(mine.z_t, linear.z_t) and torch.allclose(mine.target, noise)  # as both start


# ── two scores ───────────────────────────────────────────────────────────────────────────────────────────────────


def model_of(name, shape=(3,), net="mlp", seed=6, sde="vp", **options):
    torch.manual_seed(seed)
    tables = {"flow": {"name": "coupling"}, "sde": {"name": sde, "eps": EPS}, "net": {"name": net} | options}
    model = built(tables | {"process": {"name": name}}, shape)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.double()


def test_two_scores_of_one_network_have_their_places():
    score = model_of("affine", width=16).score
    assert isinstance(score, TwoScores)
    z, t = torch.randn(5, 3, dtype=DOUBLE), torch.full((5,), 0.3, dtype=DOUBLE)
    drift, law = score.both(z, t)
    assert torch.equal(score(z, t), drift) and torch.equal(law_score(score)(z, t), law)
    assert torch.allclose(flow_score(score)(z, t), 2 * drift - law)
    assert not torch.allclose(drift, law)


@pytest.mark.parametrize("sde", ["vp", LearnedSDE])
def test_fitting_the_second_score_moves_nothing_but_the_network(sde):
    """The gradient of the loss, averaged over which rows are chosen, is that of the bound in all but the network."""
    model = model_of("affine", width=16, sde=sde)
    sde, process = model.sde, model.process
    z = torch.randn(8, 3, dtype=DOUBLE, requires_grad=True)
    noise, t = torch.randn(8, 3, dtype=DOUBLE), torch.linspace(EPS, 0.9, 8, dtype=DOUBLE)
    parameters = [z, *process.parameters(), *sde.parameters()]

    def gradients(value):
        return torch.autograd.grad(value, parameters, allow_unused=True)

    all_rows = torch.ones(8, dtype=torch.bool)
    parts = {}
    for chosen in (True, False):
        noised = process.at(sde, z, t, noise)
        error, fit = _two_errors(model.score, noised, t, noised.kernel.rate, t <= EPS, all_rows & chosen)
        parts[chosen] = gradients(error.sum() + fit.sum())
    rate = sde.clock_rate(t)
    exact = denoising_error(model.score, z, t, noise, rate, process)
    at_end = denoising_error(law_score(model.score), z, t, noise, rate)
    wanted = gradients(torch.where(t <= EPS, at_end, exact).sum())
    for chosen, not_chosen, expected in zip(parts[True], parts[False], wanted, strict=True):
        assert torch.allclose(0.25 * chosen + 0.75 * not_chosen, expected, rtol=1e-9, atol=1e-12)


def test_the_second_score_has_one_rows_weight_in_each_of_its_rows():
    """More would be better for it and worse for the bound: both share a network."""
    model, t = model_of("affine", width=16), torch.linspace(EPS, 0.9, 8, dtype=DOUBLE)
    sde, chosen = model.sde, torch.arange(8) % 4 == 0
    noised = model.process.at(sde, torch.randn(8, 3, dtype=DOUBLE), t, torch.randn(8, 3, dtype=DOUBLE))
    _, fit = _two_errors(model.score, noised, t, torch.ones(8, dtype=DOUBLE), t <= EPS, chosen)
    wrong = noised.noise + sde.sigma(t)[:, None] * law_score(model.score)(noised.z_t, t)
    assert torch.allclose(fit, torch.where(chosen, 0.5 * (wrong**2).sum(1), 0.0), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_at_the_start_the_loss_takes_the_score_of_the_law(dtype, monkeypatch):
    """Times are in float32, also of a model in float64, where ε is another number."""
    model = model_of("affine", width=16).to(dtype)
    both = model.score.both
    monkeypatch.setattr(objective, "extended_clock", lambda *_, **__: (torch.full((8,), EPS), 1.0))
    monkeypatch.setattr(model.score, "both", lambda z, t, **_: (torch.full_like(z, torch.inf), both(z, t)[1]))
    loss, _ = mle(model, torch.randn(8, 3, dtype=dtype))
    assert loss.isfinite()


def test_the_loss_is_the_bound_and_its_parts():
    model = model_of("learned-mean", width=16).eval()
    x = torch.randn(4000, 3, dtype=DOUBLE)
    _, terms = mle(model, x, generator=torch.Generator().manual_seed(0))
    bound = nelbo(model, x, times=4, generator=torch.Generator().manual_seed(1)).total.detach()
    assert within(bound - terms["nelbo"], 0.0, errors=6)


@pytest.mark.parametrize("process", [LINEAR, Scaled()], ids=["linear", "scaled"])
def test_a_path_has_the_kernel_at_every_time_and_the_correlation_between_times(process):
    sde, n, times = VPSDE(), 200_000, torch.tensor([0.02, 0.2, 0.7], dtype=DOUBLE)
    z = torch.full((n, 1), 0.7, dtype=DOUBLE)
    path = process_path(process, sde, z, times, generator=torch.Generator().manual_seed(0))[..., 0]
    A, B = process.factors(sde, sde.clock(times)) if process is not LINEAR else (torch.ones(3), torch.ones(3))
    noise = (path - (0.7 * sde.alpha(times) * A)[:, None]) / (sde.sigma(times) * B)[:, None]

    def rate(clock):
        return 1.0 if process is LINEAR else process.factors(sde, torch.tensor(clock, dtype=DOUBLE))[1].item() ** -2

    clock = sde.clock(times).tolist()
    assert model_of("affine").forward_path(torch.zeros(2, 3, dtype=DOUBLE), times).shape == (3, 2, 3)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        exponent = 0.5 * integrate.quad(rate, clock[i], clock[j])[0]
        assert within(noise[i], 0.0) and within(noise[i] * noise[j], math.exp(-exponent))


def test_models_are_saved_with_their_process(tmp_path):
    model = model_of("affine", (1, 8, 8), net="unet", channels=8).float().eval()
    model.save(tmp_path)
    loaded = ForwardINDM.load(tmp_path)
    assert isinstance(loaded.process, Affine) and isinstance(loaded.score, TwoScores)
    x = torch.randn(3, 1, 8, 8)
    first, second = (nelbo(m, x, generator=torch.Generator().manual_seed(0)).total for m in (model, loaded))
    assert torch.equal(first, second)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="process Affine needs two scores, as TwoScores has them, got ScoreModel"):
        ForwardINDM(Identity(), indm.ScoreModel(indm.MLP((3,)), VPSDE()), shape=(3,), process=Affine((3,)))
    model, x = model_of("affine"), torch.zeros(4, 3, dtype=DOUBLE)
    said = "eps must be 0.001, where the forward process Affine begins, got 0.1"
    for call in (
        lambda: mle(model, x, eps=0.1), lambda: log_likelihood(model, x, eps=0.1), lambda: model.log_prob(x, eps=0.1)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "ncsnpp"}}
    with pytest.raises(ValueError, match="process LearnedMean needs a net that gives noise, got NCSNpp"):
        built(tables | {"process": {"name": "learned-mean"}}, (3, 16, 16))
    with pytest.raises(ValueError, match="process must have no code for a probability flow, got Coded"):
        model_of("coded").along_flow()
    with pytest.raises(ValueError, match="condition must be left out with a forward process"):
        build_forward(tables | {"condition": {"name": "classes"}}, (3, 16, 16), indm.Scaling())


def test_the_core_follows_its_probability_flow():
    """Translations, fitted samplers and log p, by the public functions, of a model with the flow's score."""
    model, x = model_of("learned-mean"), torch.zeros(4, 3, dtype=DOUBLE)
    flow = model.along_flow()
    for route in (two_models(flow, flow), bridge(flow)):
        assert route.follow(x).x.isfinite().all()
    assert torch.allclose(model.log_prob(x, steps=16), flow.log_prob(x, steps=16))
    fit = indm.fit_sampler(flow, 3, samples=8, seconds=1e-9, generator=seeded(0))
    z_T = model.sde.prior_sample((8, 3), generator=seeded(1), dtype=DOUBLE)
    z, _ = solve_latent(model, z_T, fit.sampler, 3, last_denoising=not fit.sampler.denoises)
    assert z.isfinite().all()
