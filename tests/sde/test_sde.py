"""The SDEs against numerical integration of their moment equations, autograd, quadrature and
torch.distributions.
"""

import math

import numpy as np
import pytest
import torch
from closed_form import SDES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from indm.sde.linear import VESDE, VPSDE, SubVPSDE

BETAS = st.tuples(st.floats(0.01, 2.0), st.floats(3.0, 40.0))
VARIANCE_PRESERVING = st.builds(
    lambda kind, betas, eps: kind(*betas, eps=eps),
    st.sampled_from([VPSDE, SubVPSDE]),
    BETAS,
    st.floats(1e-6, 1e-2),
)
VARIANCE_EXPLODING = st.builds(
    VESDE, st.floats(1e-3, 0.1), st.floats(1.0, 100.0), st.floats(1e-6, 1e-2)
)
ANY_SDE = (
    VARIANCE_PRESERVING | VARIANCE_EXPLODING | st.sampled_from([kind() for kind in SDES.values()])
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


def test_published_values():
    """The variance at T and the noise at ε that the published settings are known for."""
    t = double(1e-5, 1.0)
    torch.testing.assert_close(VPSDE().alpha(t)[1], double(math.exp(-10.05 / 2))[0])
    torch.testing.assert_close(VPSDE().sigma(t)[0], double(1.0e-3)[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(SubVPSDE().sigma(t)[0], double(1.0e-6)[0], rtol=2e-3, atol=0)
    torch.testing.assert_close(VESDE().sigma(t), double(0.01, 50.0), rtol=1e-4, atol=0)
    assert VESDE(0.01, 90.0).prior_std == 90.0 and VPSDE().prior_std == SubVPSDE().prior_std == 1.0
    assert VPSDE().log_snr_range() == pytest.approx(
        math.log(math.expm1(10.05)) - math.log(1.000995e-6), abs=1e-4
    )


@pytest.mark.parametrize("t", [1e-5, 1.1e-5, 1e-4, 1e-2, 0.5, 1.0])
def test_float32_is_accurate_down_to_eps(sde, t):
    single, exact = torch.tensor([t]), torch.tensor([t]).double()
    for name in ("alpha", "sigma", "drift", "diffusion", "log_snr"):
        value = getattr(sde, name)(single)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(sde, name)(exact), rtol=3e-6, atol=1e-7)
    # such as VE's: float32 resolves t to 1e-7, not to 1e-7 t
    flat = bool(sde.log_snr(double(0.0)).isfinite())
    inverse = sde.time(sde.log_snr(single)).double()
    torch.testing.assert_close(inverse, exact, rtol=2e-5, atol=2e-7 if flat or t > 0.1 else 0.0)


TESTS = {
    "one": lambda t: np.ones_like(t),
    "t": lambda t: t,
    "wave": lambda t: np.cos(9 * t) + 2,
    "ridge": lambda t: np.sqrt(t),
}


@pytest.mark.parametrize("eps", [None, 0.03])
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("name", TESTS)
def test_weighted_times_integrate(sde, importance, eps, name):
    """E[weight · h(t)] = ∫ h dt on [eps, 1]; under the importance law of the rate times h, where
    that is bounded.
    """
    h, start = TESTS[name], sde.eps if eps is None else eps

    def rate(t):
        return ((sde.diffusion(t) / sde.sigma(t)) ** 2).numpy() if importance else 1.0

    # Importance times serve integrands with the factor g²/σ²; on those they have a bounded
    # variance.
    grid = np.geomspace(start, 1.0, 200_001)
    values = h(grid) * rate(torch.from_numpy(grid)) * grid  # in d log t
    expected = integrate.simpson(values, x=np.log(grid))
    means = []
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        t, weight = sde.sample_time(512, importance=importance, eps=eps, generator=generator)
        t, weight = t.double(), weight.double()
        means.append((weight.numpy() * h(t.numpy()) * rate(t)).mean())
    means = np.array(means)
    assert (
        abs(means.mean() - expected)
        < 5 * means.std(ddof=1) / math.sqrt(len(means)) + 1e-5 * expected
    )
    # stratification makes 512 times integrate to a per cent or better
    assert means.std() < 0.01 * expected


def test_prior_is_the_law_at_T():
    """For unit-variance data the kernel at T is the prior up to e^−10 (VP), and σ_T is its standard
    deviation (VE).
    """
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        variance = (sde.alpha(double(1.0)) ** 2 + sde.sigma(double(1.0)) ** 2).item()
        assert math.sqrt(variance) == pytest.approx(sde.prior_std, rel=3e-4)


@settings(max_examples=25)
@given(ANY_SDE, st.floats(1e-3, 0.9), st.floats(0.01, 0.1))
def test_transition_solves_the_moment_equations_from_t_to_s(sde, t, step):
    """From z_t = 1 of variance 0: dm/du = f m and dV/du = 2 f V + g² end at the ratio and the
    variance.
    """

    def moments(time, state):
        f, g = sde.drift(double(time)).item(), sde.diffusion(double(time)).item()
        return [f * state[0], 2 * f * state[1] + g**2]

    solution = integrate.solve_ivp(
        moments, (t, t + step), [1.0, 0.0], method="DOP853", rtol=1e-11, atol=1e-16
    )
    ratio, std = sde.transition(double(t), double(t + step))
    assert ratio.item() == pytest.approx(solution.y[0, -1], rel=1e-8)
    assert std.item() ** 2 == pytest.approx(solution.y[1, -1], rel=1e-6)


def test_transitions_in_closed_form():
    t, s = double(0.1, 0.4), double(0.2, 0.9)
    ratio, std = VPSDE().transition(t, s)
    grown = VPSDE().integrated_beta(s) - VPSDE().integrated_beta(t)
    torch.testing.assert_close(ratio, (-grown / 2).exp())
    torch.testing.assert_close(std, (1 - (-grown).exp()).sqrt())
    ratio, std = VESDE().transition(t, s)
    torch.testing.assert_close(ratio, torch.ones_like(t))
    torch.testing.assert_close(std, (VESDE().sigma(s) ** 2 - VESDE().sigma(t) ** 2).sqrt())


@pytest.mark.parametrize("kind", SDES.values())
@pytest.mark.parametrize("eps", [0.0, -1e-5, 1.0, 2.0, float("nan")])
def test_eps_must_lie_inside(kind, eps):
    with pytest.raises(ValueError, match="eps must be strictly between 0 and 1"):
        kind(eps=eps)


@pytest.mark.parametrize("kind, number", [(VPSDE, "beta"), (SubVPSDE, "beta"), (VESDE, "sigma")])
@pytest.mark.parametrize("low, high", [(0.0, 20.0), (20.0, 0.1), (-1.0, 1.0)])
def test_betas_and_sigmas_are_checked(kind, number, low, high):
    with pytest.raises(ValueError, match=f"{number}_min and {number}_max"):
        kind(low, high)
