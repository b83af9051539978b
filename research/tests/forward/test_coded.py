"""Schedules with a code against closed forms: the SDE at given codes, laws of codes, and bounds by quadrature."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from closed_form import inverse_cdf, normal_log_prob, within
from scipy import integrate
from torch import nn

import indm
from indm.flows import Identity
from indm.objective import constant_term, prior_term
from indm.sampling import make_sampler
from indm.sde import VPSDE
from indm.tensors import expand_like
from research.forward.base import gauss_legendre
from research.forward.coded import CODES, Coded, ScheduledVP
from research.forward.likelihood import log_likelihood, log_probability
from research.forward.model import ForwardINDM, make_forward, solve_latent
from research.forward.objective import denoising_error, mle, nelbo, reconstruction_term
from research.forward.scores import CodedScore

DOUBLE = torch.float64
EPS = 1e-2


def made(shape=(2,), std=0.5, **options):
    torch.manual_seed(1)
    process = Coded(shape, width=8, **{"code_size": 3} | options).double()
    for parameter in process.parameters():
        nn.init.normal_(parameter, std=std)
    return process


@pytest.fixture(params=["polynomial", "network"])
def sde(request):
    process = made(slope=request.param)
    return process.sde_at(VPSDE(), torch.randn(5, 3, dtype=DOUBLE))


def test_integrals_of_slopes_are_those_of_an_adaptive_rule():
    """At the largest coefficients that there are."""
    coefficients = torch.tensor([[0.0, 3.0, 3.0], [0.0, 3.0, -3.0], [0.0, -3.0, -3.0]], dtype=DOUBLE)[..., None]
    place = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE)
    share, _ = ScheduledVP(VPSDE(), coefficients, "network")._share(place)

    def part(row, end):
        _, a, b = coefficients[row, :, 0].tolist()

        def slope(u):
            x = 2 * u - 1
            return math.exp(a * x + b * (3 * x**2 - 1) / 2)

        return integrate.quad(slope, 0, end, epsabs=1e-12)[0]

    exact = [part(row, end) / part(row, 1) for row, end in enumerate(place.tolist())]
    assert torch.allclose(share[:, 0], torch.tensor(exact, dtype=DOUBLE), rtol=0, atol=1e-9)


@pytest.mark.parametrize("slope", ["polynomial", "network"])
@pytest.mark.parametrize("terms", [3, 5, 8])
def test_the_bound_at_a_code_is_not_below_minus_log_p(terms, slope):
    """N(0, 1) and its exact score: ½ ∫ E‖n − ε̂‖² dγ = ½ ∫ α² (dγ/dΛ) dΛ is log σ_T/σ_ε for every clock γ, by a rule
    of the common clock that does not know γ, at the largest coefficients."""
    signs = torch.randint(0, 2, (2, terms, 1), generator=torch.Generator().manual_seed(terms)) * 2.0 - 1
    signs[0] = 1
    base, (nodes, weights) = VPSDE(), gauss_legendre(600)
    sde = ScheduledVP(base, 3.0 * signs.double().repeat_interleave(600, 0), slope)
    start, end = base.clock_span()
    kernel = sde.kernel(base.time(-(start + nodes * (end - start))).repeat(2))
    slopes = ((2 * kernel.log_alpha).exp() * kernel.rate).reshape(2, 600)
    bound = 0.5 * (end - start) * (slopes @ weights)
    first, last = (base.sigma(t).log().item() for t in base.endpoints(torch.zeros(1, dtype=DOUBLE)))
    assert torch.allclose(bound, torch.full_like(bound, last - first), rtol=0, atol=1e-5)


def test_coefficients_are_those_of_a_variance_preserving_diffusion(sde):
    t = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98], dtype=DOUBLE)
    step = 1e-6

    def slope(function):
        return (function(t + step) - function(t - step)) / (2 * step)

    f, g = sde.drift(t), sde.diffusion(t)
    assert torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones(5, 2, dtype=DOUBLE))
    assert torch.allclose(slope(sde.log_alpha), f, rtol=1e-6)
    assert torch.allclose(slope(lambda t: sde.sigma(t) ** 2), 2 * f * sde.sigma(t) ** 2 + g**2, rtol=1e-6)

    def own_clock(t):
        return 2 * (sde.sigma(t).log() - sde.log_alpha(t))

    common = slope(lambda t: -sde.log_snr(t))
    assert torch.allclose(slope(own_clock), sde.clock_rate(t) * expand_like(common, f), rtol=1e-6)
    assert (sde.clock_rate(t) > 0).all() and sde.clock_rate(t).std() > 0.1


def test_all_entries_agree_at_both_ends(sde):
    base = VPSDE()
    for t in sde.endpoints(torch.zeros(5, 2, dtype=DOUBLE)):
        assert torch.allclose(sde.log_alpha(t), base.log_alpha(t)[:, None].expand(5, 2), rtol=1e-6)
        assert torch.allclose(sde.sigma(t), base.sigma(t)[:, None].expand(5, 2), rtol=1e-6)


@pytest.mark.parametrize("name", CODES)
def test_laws_of_codes_are_those_of_torch(name):
    torch.manual_seed(2)
    law = CODES[name]((2,), 3, 8).double()
    for parameter in law.parameters():
        nn.init.normal_(parameter, std=0.7)
    numbers = law.posterior(torch.randn(4, 2, dtype=DOUBLE))
    prior = law.prior[:, None].expand_as(numbers)
    code = law.draw(numbers, torch.Generator().manual_seed(0))
    if name == "gaussian":
        q, p = (torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in (numbers, prior))
        value = code
    else:
        q, p = (torch.distributions.Bernoulli(logits=logit) for (logit,) in (numbers, prior))
        assert {*code.flatten().tolist()} <= {-1.0, 1.0}
        value = (code + 1) / 2
    assert torch.allclose(law.kl(numbers), torch.distributions.kl_divergence(q, p).sum(1))
    assert torch.allclose(law.log_prob(code, numbers), q.log_prob(value).sum(1))
    drawn = torch.stack([law.draw(numbers, None).detach() for _ in range(4000)])
    mean = q.mean if name == "gaussian" else 2 * q.mean - 1
    assert within(drawn, mean.detach())


class BestAtCode(nn.Module):
    """The best score at each of some values of a code of one number, for data of a mixture on a line: by quadrature.

    ``values`` of the code have the weights ``share``, 1 for bits: Σ share q(c) = 1.
    """

    def __init__(self, process, values=(-1.0, 1.0), share=1.0, points=176):
        super().__init__()
        self.sde, self.process, self.values, self.share = VPSDE(eps=EPS), process, values, share
        self.points = torch.linspace(-3.5, 3.5, points, dtype=DOUBLE)[:, None]
        self.log_mass = self.log_data(self.points) + math.log(7 / (points - 1))

    @staticmethod
    def log_data(z):
        means, variances = torch.tensor([[-0.9], [0.7]], dtype=DOUBLE), torch.tensor([[0.1], [0.2]], dtype=DOUBLE)
        parts = [math.log(w) + normal_log_prob(z, m, v) for w, m, v in zip((0.4, 0.6), means, variances, strict=True)]
        return torch.stack(parts).logsumexp(0)

    def log_q(self, z, value):
        """log q(c|z_0)."""
        numbers = self.process.law.posterior(z)
        return self.process.law.log_prob(torch.full((len(z), 1), value, dtype=DOUBLE), numbers)

    @functools.cached_property
    def log_q_of_all(self):
        """log q(c) of the aggregate, by value."""
        return {v: (self.log_mass + self.log_q(self.points, v)).logsumexp(0) for v in self.values}

    def forward(self, z, t, c):
        out = torch.empty_like(z, dtype=DOUBLE)
        for value in c[:, 0].unique().tolist():
            rows = c[:, 0] == value
            sde = self.sde_at(value, int(rows.sum()))
            alpha, sigma = sde.alpha(t[rows].double()), sde.sigma(t[rows].double())
            log_joint = (
                self.log_mass + self.log_q(self.points, value) - 0.5 * ((z[rows] - alpha * self.points.T) / sigma) ** 2
            )
            mean = log_joint.softmax(1) @ self.points
            out[rows] = (alpha * mean - z[rows]) / sigma**2
        return out

    def log_prior(self, value):
        """log p(c)."""
        law = self.process.law
        return law.log_prob(torch.tensor([[value]], dtype=DOUBLE), law.prior[:, None])

    def sde_at(self, value, n):
        return self.process.sde_at(VPSDE(eps=EPS), torch.full((n, 1), value, dtype=DOUBLE))


@pytest.fixture(scope="module")
def best():
    return BestAtCode(made((1,), std=1.0, code="binary", code_size=1).requires_grad_(False))


@pytest.fixture(scope="module")
def coarse(best):
    """The same, of fewer points: for integrals over data and noise."""
    return BestAtCode(best.process, points=96)


@functools.cache
def best_of_gaussian():
    """Its code is on a grid that holds q(c) of all data."""
    process = made((1,), std=0.5, code="gaussian", code_size=1).requires_grad_(False)
    process.law.prior[1] = 0.0  # the deviation of p(c) is 1
    mean, log_std = process.law.posterior(torch.linspace(-3, 3, 61, dtype=DOUBLE)[:, None])
    low, high = (mean - 5 * log_std.exp()).min().item(), (mean + 5 * log_std.exp()).max().item()
    count = max(16, math.ceil((high - low) / log_std.exp().min().item()))  # a step is at most one deviation
    grid = torch.linspace(low, high, count, dtype=DOUBLE)
    return BestAtCode(process, grid.tolist(), (grid[1] - grid[0]).item())


@pytest.mark.parametrize("code", ["binary", pytest.param("gaussian", marks=pytest.mark.long)])
@torch.no_grad()
def test_the_bound_exceeds_the_entropy_by_the_divergence_of_the_codes(coarse, code):
    """NELBO − entropy = KL(q(c) ‖ p(c)), with q(c) the law of codes over all data."""
    best = coarse if code == "binary" else best_of_gaussian()
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    nodes, weights = torch.tensor(nodes)[:, None], torch.tensor(weights / weights.sum())
    places, masses = np.polynomial.legendre.leggauss(32)
    data, mass_of_data = best.points, best.log_mass.exp()
    z, noise = data.repeat_interleave(len(nodes), 0), nodes.repeat(len(data), 1)
    both = best.share * (mass_of_data[:, None] * weights).flatten()
    start, end = best.sde.clock_span()
    bound = (mass_of_data * best.process.law.kl(best.process.law.posterior(data))).sum()
    for value in best.values:
        score = CodedScore(best, torch.full((len(z), 1), value, dtype=DOUBLE), best.process)
        sde, weight = score.sde, both * best.log_q(z, value).exp()
        for place, mass in zip(places, masses, strict=True):
            t = best.sde.time(torch.tensor(-(start + (end - start) * (1 + place) / 2))).expand(len(z))
            error = denoising_error(score, z, t, noise, sde.clock_rate(t), best.process)
            bound = bound + 0.5 * (end - start) * mass * (weight * error).sum()
        rest = constant_term(sde, z) + prior_term(sde, z) + reconstruction_term(score, z, noise)
        bound = bound + (weight * rest).sum()
    entropy = -(mass_of_data * best.log_data(best.points)).sum()
    expected = best.share * sum(q.exp() * (q - best.log_prior(value)) for value, q in best.log_q_of_all.items())
    assert float(bound - entropy) == pytest.approx(float(expected), abs=1e-3)
    assert expected > 0.02


@torch.no_grad()
def test_nll_is_that_of_the_data_and_the_code(best):
    """log p(x|c) p(c)/q(c|x) = log p(x) + log p(c)/q(c), whichever code is drawn."""
    model = ForwardINDM(Identity(), best, shape=(1,), process=best.process)
    x = torch.linspace(-1.6, 1.6, 12, dtype=DOUBLE)[:, None]
    report = log_likelihood(model, x, steps=64, generator=torch.Generator().manual_seed(0))
    codes = torch.stack([best.log_prior(value) - log_q for value, log_q in best.log_q_of_all.items()])
    values = best.log_data(x) + codes
    error, which = (report.log_prob - values).abs().min(0)
    assert (error < 0.05).all() and (codes[0] - codes[1]).abs() > 0.2 and {0, 1} == {*which.tolist()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("code", "values", "steps"), [("binary", (-1.0, 1.0), 160), ("gaussian", (-1.14, 1.7, 4.6), 80)]
)
def test_nll_of_the_probability_flow_given_a_code_is_exact(best, code, values, steps):
    """p_ε(z_ε|c) at z_ε = α_ε x, by quadrature, where the flow carries the law of z_T, not the prior."""
    best = best if code == "binary" else best_of_gaussian()
    x = torch.linspace(-1.6, 1.6, 12, dtype=DOUBLE)[:, None]
    for value in values:
        score = CodedScore(best, torch.full((len(x), 1), value, dtype=DOUBLE), best.process)
        log_share = best.log_mass + best.log_q(best.points, value)
        share = (log_share - log_share.logsumexp(0)).exp()  # of the points in p(z_0|c)

        def law(t, sde=score.sde):
            """α, and p(z_t|c) as a normal law of each point."""
            alpha, sigma = (of(torch.full((len(x),), t, dtype=DOUBLE))[:1] for of in (sde.alpha, sde.sigma))
            return alpha, torch.distributions.Normal(alpha * best.points.T, sigma)

        (alpha, first), (_, last) = law(EPS), law(score.sde.T)
        z = alpha * x
        z_T = inverse_cdf(lambda z, last=last, share=share: last.cdf(z) @ share, first.cdf(z) @ share)
        prior = normal_log_prob(z_T, 0.0, 1.0) - (last.log_prob(z_T).exp() @ share).log()
        expected = (first.log_prob(z).exp() @ share).log() + alpha.log()[0] + prior
        log_prob = indm.INDM(Identity(), score, shape=(1,)).log_prob(x, steps=steps, exact=True)
        assert torch.allclose(log_prob, expected, atol=1e-3)


@torch.no_grad()
def test_nll_at_gaussian_codes_is_that_of_the_data_and_the_code(monkeypatch):
    best = best_of_gaussian()
    model, drawn = ForwardINDM(Identity(), best, shape=(1,), process=best.process), []
    law = best.process.law
    draw = law.draw
    monkeypatch.setattr(law, "draw", lambda *of: drawn.append(draw(*of)) or drawn[-1])
    x = torch.linspace(-1.6, 1.6, 6, dtype=DOUBLE)[:, None]
    report = log_likelihood(model, x, steps=64, generator=torch.Generator().manual_seed(0))
    (codes,) = drawn
    log_q = torch.stack([(best.log_mass + best.log_q(best.points, c)).logsumexp(0) for c in codes[:, 0].tolist()])
    expected = best.log_data(x) + torch.cat([best.log_prior(c) for c in codes[:, 0].tolist()]) - log_q
    assert (report.log_prob - expected).abs().max() < 0.05
    assert (expected - best.log_data(x)).std() > 0.1, "the codes do not tell much apart"


class GaussianAtCode(nn.Module):
    """The best score at any code, for data N(0, covariance) whose codes do not depend on them."""

    def __init__(self, process, covariance):
        super().__init__()
        self.sde, self.process, self.covariance = VPSDE(), process, covariance

    def law(self, t, c):
        """The law of z_t at codes, of rows (B,)."""
        sde = self.process.sde_at(VPSDE(), c)
        alpha, sigma = sde.alpha(t).double(), sde.sigma(t).double()
        covariance = alpha[:, :, None] * self.covariance * alpha[:, None] + torch.diag_embed(sigma**2)
        return torch.distributions.MultivariateNormal(torch.zeros_like(alpha), covariance)

    def forward(self, z, t, c):
        return -torch.cholesky_solve(z.double()[:, :, None], self.law(t, c).scale_tril)[:, :, 0].to(z)


@pytest.fixture(scope="module")
def in_eight():
    """Gaussian data in eight dimensions, and two bits, q of which is not p."""
    process = made((8,), std=0.6, code="binary", code_size=2).requires_grad_(False)
    process.law.encoder[-1].weight.zero_()
    process.law.encoder[-1].bias[:] = torch.tensor([1.2, -1.0])
    root = torch.linalg.qr(torch.randn(8, 8, dtype=DOUBLE))[0] * torch.linspace(0.4, 1.3, 8, dtype=DOUBLE)
    return GaussianAtCode(process, root @ root.T)


def all_bits(process):
    """Every code of two bits, with its probability under q and under p."""
    codes = torch.cartesian_prod(*2 * [torch.tensor([-1.0, 1.0], dtype=DOUBLE)])
    numbers = process.law.posterior(torch.zeros(1, 8, dtype=DOUBLE))
    return codes, *(process.law.log_prob(codes, law).exp() for law in (numbers, process.law.prior[:, None]))


@torch.no_grad()
def test_the_bound_exceeds_the_entropy_by_the_divergence_of_the_codes_in_eight_dimensions(in_eight):
    """Errors are quadratic in (z_0, n), whose 16 deviations ±√16 have their exact mean."""
    codes, q, p = all_bits(in_eight.process)
    corners = 4 * torch.cat([torch.eye(16, dtype=DOUBLE), -torch.eye(16, dtype=DOUBLE)])
    data = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=DOUBLE), in_eight.covariance)
    z, noise = corners[:, :8] @ data.scale_tril.T, corners[:, 8:]
    start, end = in_eight.sde.clock_span()
    bound, places = 0.0, np.polynomial.legendre.leggauss(64)
    for code, share in zip(codes, q, strict=True):
        score = CodedScore(in_eight, code.expand(len(z), 2), in_eight.process)
        part = constant_term(score.sde, z) + prior_term(score.sde, z) + reconstruction_term(score, z, noise)
        for place, mass in zip(*places, strict=True):
            t = in_eight.sde.time(torch.tensor(-(start + (end - start) * (1 + place) / 2))).expand(len(z))
            rate = score.sde.clock_rate(t)
            assert rate.std() > 0.1, "all entries have one schedule"
            part = part + 0.5 * (end - start) * mass * denoising_error(score, z, t, noise, rate, in_eight.process)
        bound = bound + share * part.mean()
    divergence = (q * (q / p).log()).sum()
    assert float(bound + in_eight.process.law.kl(in_eight.process.law.posterior(z))[0]) == pytest.approx(
        float(data.entropy() + divergence), abs=1e-3
    )
    assert divergence > 0.1


@torch.no_grad()
def test_nll_given_a_code_is_exact_in_eight_dimensions(in_eight):
    """log p_ε(α_ε x|c) + 8 log α_ε; z_T, whose deviations are off by 2e-5, is taken as normal."""
    codes = all_bits(in_eight.process)[0].repeat(3, 1)
    x = torch.randn(len(codes), 8, dtype=DOUBLE) @ torch.linalg.cholesky(in_eight.covariance).T
    alpha = float(in_eight.sde.alpha(torch.tensor(in_eight.sde.eps, dtype=DOUBLE)))
    at_eps = in_eight.law(torch.full((len(x),), in_eight.sde.eps), codes)
    expected = at_eps.log_prob(alpha * x) + 8 * math.log(alpha)
    model = indm.INDM(Identity(), CodedScore(in_eight, codes, in_eight.process), shape=(8,))
    assert torch.allclose(model.log_prob(x, steps=128, exact=True), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("draws", [1, 2])
def test_the_importance_weighted_bound_is_that_of_codes_drawn_from_q(in_eight, draws):
    """log p(x) + E log mean_k p(c_k)/q(c_k), by enumeration of all codes."""
    codes, q, p = all_bits(in_eight.process)
    each = torch.cartesian_prod(*draws * [torch.arange(len(codes))]).reshape(-1, draws)
    expected = (q[each].prod(1) * (p / q)[each].mean(1).log()).sum()
    x = torch.randn(1, 8, dtype=DOUBLE) @ torch.linalg.cholesky(in_eight.covariance).T
    single = copy.deepcopy(in_eight).float()
    model = ForwardINDM(Identity(), single, shape=(8,), process=single.process)
    options = {"draws": draws, "steps": 48, "batch_size": 4000, "generator": torch.Generator().manual_seed(0)}
    log_p_of_draws = log_probability(model, x.float().expand(400, 8), **options)
    log_p = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=DOUBLE), in_eight.covariance).log_prob(x)
    assert within(log_p_of_draws - log_p, expected, floor=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("ancestral", 200)])
def test_samples_at_codes_of_the_data_follow_the_data(coarse, sampler, steps):
    generator = torch.Generator().manual_seed(3)
    bits = 2.0 * (torch.rand(4000, 1, dtype=DOUBLE, generator=generator) < coarse.log_q_of_all[1.0].exp()) - 1
    z_T = torch.randn(4000, 1, dtype=DOUBLE, generator=generator)
    score = CodedScore(coarse, bits.double(), coarse.process)
    z, _ = make_sampler(sampler).solve(score, z_T, steps=steps, generator=generator)
    for power in (1, 2):
        expected = (coarse.log_mass.exp()[:, None] * coarse.points**power).sum()
        assert within(z[:, 0] ** power, expected, floor=0.01)


@torch.no_grad()
def test_samples_get_codes_from_their_prior():
    process = made(code="binary", code_size=2)
    codes = process.drawn(torch.zeros(4000, 2), torch.Generator().manual_seed(0))
    assert within(codes, 2 * process.law.prior[0].sigmoid() - 1)


def built(tables, **options):
    process = {"process": {"name": "research.forward.coded:Coded"} | options}
    return make_forward(tables | process, (2,))


def test_a_coded_model_is_trained_saved_and_sampled(tmp_path):
    torch.manual_seed(3)
    tables = {"flow": {"name": "coupling"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
    model = built(tables, code_size=4)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    x = torch.randn(50, 2)
    loss, _ = mle(model, x)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.process.parameters())
    model.save(tmp_path)
    loaded = ForwardINDM.load(tmp_path)
    first, second = (nelbo(m.eval(), x, generator=torch.Generator().manual_seed(0)).total for m in (model, loaded))
    assert torch.equal(first, second)
    given = {"steps": 4, "generator": torch.Generator().manual_seed(0)}
    drawn = loaded.sample(7, **given)  # the default sampler takes a clock of each entry
    given["generator"].manual_seed(0)
    assert torch.equal(drawn, loaded.sample(7, sampler="heun", **given))
    assert not loaded.is_scalar
    report = log_likelihood(loaded, x, generator=torch.Generator().manual_seed(0))
    rows = log_likelihood(loaded, x, steps=64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(report.log_prob, rows.log_prob, atol=0.02)  # rows that are solved again keep their codes


def test_what_cannot_be_is_said():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
    with pytest.raises(ValueError, match="sde must be vp for a coded forward process, got SubVPSDE"):
        built(tables | {"sde": {"name": "subvp"}})
    for terms in (1, 17):
        with pytest.raises(ValueError, match=f"terms from 2 to 16, got 16, 32 and {terms}; 16, 32 and 3 are usual"):
            Coded((2,), terms=terms)
    model = built(tables)
    with pytest.raises(ValueError, match=r"eps must be 1e-05, where the forward process Coded begins, got 0\.1"):
        model.log_prob(torch.zeros(1, 2), eps=0.1)
    with pytest.raises(ValueError, match="process must have no code for a probability flow, got Coded"):
        model.log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"sampler must be one of .* where entries have clocks of their own"):
        solve_latent(model, torch.zeros(1, 2), make_sampler("unipc"), 4)
