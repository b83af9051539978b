"""Properties that every SDE of the table of parts must have."""

import copy

import pytest
import torch
from contract_parts import constructions
from scipy import stats

import indm
from indm.model import build, describe
from indm.sde import check_sde
from indm.sde.linear import VPSDE, truncated

TABLE = constructions("sde")
SHAPE = (3,)


def made(table, shape):
    """The SDE in double precision."""
    return build(table, "sde", shape).double()


@pytest.fixture(params=TABLE)
def sde(request):
    return made(*TABLE[request.param])


def times(sde, n=24):
    """Uniform on the clock from ε to T, but for both ends."""
    ends = sde.log_snr(torch.tensor([sde.eps, sde.T], dtype=torch.float64))
    return sde.time(torch.lerp(*ends, torch.linspace(0.013, 0.987, n, dtype=torch.float64)))


def slope(value, t):
    """d/dt at each time."""
    return torch.autograd.grad(value.sum(), t, retain_graph=True)[0]


def test_kernel_solves_the_moment_equations(sde):
    """d log α/dt = f and dσ²/dt = 2 f σ² + g², by autograd in t."""
    t = times(sde).requires_grad_()
    f, g, sigma = sde.drift(t), sde.diffusion(t), sde.sigma(t)
    log_alpha = sde.log_alpha(t)
    moved = slope(log_alpha, t) if log_alpha.requires_grad else torch.zeros_like(f)
    torch.testing.assert_close(moved, f, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        slope(sde.sigma(t) ** 2, t), 2 * f * sigma**2 + g**2, rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(sde.alpha(t), log_alpha.exp())


def test_its_own_check_passes_it_and_finds_each_wrong_method(sde):
    check_sde(sde)
    for name in ("drift", "diffusion", "time"):
        wrong, right = copy.deepcopy(sde), getattr(sde, name)
        setattr(wrong, name, lambda v, right=right: 1.01 * right(v) + 0.01)
        with pytest.raises(ValueError, match=f"{name} of {type(sde).__name__} must be .* at t = 0"):
            check_sde(wrong)


def test_a_truncated_one_is_made_anew_from_its_description(sde):
    view = truncated(sde, 0.3)
    anew = build(describe(view, "sde"), "sde", SHAPE).double()
    anew.load_state_dict(view.state_dict())
    t = torch.tensor([0.3, 0.7, 1.0], dtype=torch.float64)
    assert anew.eps == 0.3
    torch.testing.assert_close(anew.log_snr(t), view.log_snr(t))


def test_clock(sde):
    """``time`` inverts the log-SNR, which falls at the rate g²/σ²."""
    t = times(sde).requires_grad_()
    torch.testing.assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        sde.log_snr(t), 2 * (sde.log_alpha(t) - sde.sigma(t).log()), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        slope(-sde.log_snr(t), t), (sde.diffusion(t) / sde.sigma(t)) ** 2, rtol=1e-6, atol=0
    )
    ends = (-sde.log_snr(torch.tensor([sde.eps, sde.T], dtype=torch.float64))).tolist()
    assert sde.clock_span() == pytest.approx(ends, rel=1e-12) and ends[0] < ends[1]
    assert sde.log_snr_range() == pytest.approx(ends[1] - ends[0], rel=1e-12)


def test_transitions_form_a_semigroup_that_carries_the_marginals(sde):
    t, u, s = times(sde).split(8)
    (a, first), (b, second), (whole, std) = (
        sde.transition(*pair) for pair in ((t, u), (u, s), (t, s))
    )
    torch.testing.assert_close(a * b, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close((b * first) ** 2 + second**2, std**2, rtol=1e-8, atol=0)
    torch.testing.assert_close(whole * sde.alpha(t), sde.alpha(s), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        (whole * sde.sigma(t)) ** 2 + std**2, sde.sigma(s) ** 2, rtol=1e-12, atol=0
    )
    ratio, std = sde.transition(t.float(), t.float())
    # not the root of a rounding error below 0
    assert bool((ratio == 1).all()) and bool((std == 0).all())


def test_perturb_and_the_transition_from_eps_have_one_law(sde):
    """z_t = α z_0 + σ n with the kernel's coefficients, for every sample its own time."""
    t, z, noise = times(sde), torch.randn(24, *SHAPE).double(), torch.randn(24, *SHAPE).double()
    z_t = sde.perturb(z, t, noise)
    ratio, std = sde.transition(torch.full_like(t, sde.eps), t)
    mean = (ratio * sde.alpha(torch.full_like(t, sde.eps)))[:, None] * z
    torch.testing.assert_close(sde.perturb(z, t, 0 * noise), mean)
    variance = std**2 + (ratio * sde.sigma(torch.full_like(t, sde.eps))) ** 2
    torch.testing.assert_close((z_t - mean) ** 2, variance[:, None] * noise**2)
    for rows in ([3], [5, 1]):
        torch.testing.assert_close(sde.perturb(z[rows], t[rows], noise[rows]), z_t[rows])


def test_the_kernel_is_alpha_and_sigma(sde):
    kernel = sde.kernel(times(sde))
    torch.testing.assert_close(kernel.alpha, sde.alpha(times(sde)), rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel.sigma, sde.sigma(times(sde)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_dtype(sde, dtype):
    exact, t = times(sde), times(sde).to(dtype)
    for name in ("alpha", "sigma", "drift", "diffusion", "log_snr", "marginal_std"):
        value = getattr(sde, name)(t)
        assert value.dtype == dtype, name
        torch.testing.assert_close(value.double(), getattr(sde, name)(exact), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_prior_is_the_normal_law_that_it_says(sde, shape):
    z = 3 * torch.randn(5, *shape, dtype=torch.float64)
    for centre in (torch.zeros((), dtype=torch.float64), torch.randn(shape, dtype=torch.float64)):
        sde.prior_mean = centre
        law = torch.distributions.Normal(centre.expand(shape), float(sde.prior_std))
        torch.testing.assert_close(sde.prior_log_prob(z), law.log_prob(z).flatten(1).sum(1))
        draws = sde.prior_sample(
            (2000, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        assert (
            stats.kstest(((draws - centre) / sde.prior_std).flatten().numpy(), "norm").pvalue > 1e-4
        )


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("eps", [None, 0.03])
@pytest.mark.parametrize("n", [1, 64])
def test_times_are_drawn_one_in_each_stratum_of_their_law(sde, importance, eps, n):
    generator = torch.Generator().manual_seed(0)
    draws = [
        sde.sample_time(n, importance=importance, eps=eps, generator=generator)
        for _ in range(150 // n + 4)
    ]
    start = sde.eps if eps is None else eps
    for t, weight in draws:
        assert t.shape == weight.shape == (n,)
        t = t.double().clamp(start, sde.T)
        low, high = sde.log_snr(torch.tensor([start, sde.T], dtype=torch.float64))
        u = (low - sde.log_snr(t)) / (low - high) if importance else (t - start) / (sde.T - start)
        assert bool(((u.sort().values * n - torch.arange(n) - 0.5).abs() < 0.5 + 2e-3 * n).all())
        density = (
            -_rate(sde, t) / (high - low) if importance else torch.full_like(t, 1 / (sde.T - start))
        )
        torch.testing.assert_close(weight.double() * density, torch.ones_like(t), rtol=1e-3, atol=0)
    if n == 1:
        positions = torch.cat([t for t, _ in draws]).double()
        u = (
            (low - sde.log_snr(positions)) / (low - high)
            if importance
            else (positions - start) / (sde.T - start)
        )
        assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def _rate(sde, t):
    """d(−log SNR)/dt by autograd."""
    t = t.clone().requires_grad_()
    return torch.autograd.grad(-sde.log_snr(t).sum(), t)[0]


def test_a_truncated_one_is_a_copy(sde):
    before, raised = sde.eps, truncated(sde, 0.2)
    assert raised.eps == 0.2 and raised.endpoints(torch.zeros(2, 3))[0].tolist() == pytest.approx(
        [0.2] * 2
    )
    for importance in (True, False):
        assert raised.sample_time(64, importance=importance)[0].min() > 0.2 - 1e-6
    assert sde.eps == before
    for eps in (before / 2, 1.0, 2.0):
        with pytest.raises(ValueError, match="eps must be in"):
            sde.sample_time(4, importance=True, eps=eps)


@pytest.mark.parametrize("name", TABLE)
def test_saved_and_loaded_it_has_the_same_bits(name, tmp_path):
    table, shape = TABLE[name]
    model = indm.build_model(
        {"flow": {"name": "identity"}, "sde": table, "net": {"name": "zero"}}, shape
    )
    model.sde.prior_mean = torch.randn(shape)
    model.save(tmp_path)
    again, t = indm.INDM.load(tmp_path).sde, torch.linspace(0.01, 1.0, 9)
    assert again.eps == model.sde.eps and torch.equal(again.prior_mean, model.sde.prior_mean)
    for name in ("alpha", "sigma", "drift", "diffusion", "log_snr"):
        assert torch.equal(getattr(again, name)(t), getattr(model.sde, name)(t))


def test_its_own_check_finds_a_wrong_log_snr():
    sde = VPSDE()
    sde.log_snr = lambda t: 1.01 * VPSDE().log_snr(t)
    with pytest.raises(ValueError, match=r"log_snr of VPSDE must be log\(α²/σ²\), got log_snr = "):
        check_sde(sde)


def test_an_sde_with_a_coefficient_for_each_entry_is_refused(sde):
    sde.diffusion = lambda t, right=sde.diffusion: right(t)[:, None].expand(-1, 3)
    with pytest.raises(
        ValueError, match=r"one number for each time, \(24,\), got \(3,\) for each by diffusion"
    ):
        check_sde(sde)
