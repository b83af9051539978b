"""The probability flow on the clock against the drift and diffusion that define it, and against a
closed form.
"""

import pytest
import torch
from closed_form import SDES, LinearScore, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

import indm
from indm.flows import Identity
from indm.nets import MLP
from indm.ode import adams
from indm.sampling.base import default_steps
from indm.score import is_smooth, probability_flow

ANY_SDE = st.sampled_from(list(SDES))


@settings(max_examples=30)
@given(ANY_SDE, st.floats(0.0, 1.0), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_velocity_is_that_of_the_definition(name, u, weight, bias):
    """d/dt (z/c) = (f z − ½ g² s)/c − z c'/c², c = √(α² + σ²), and dΛ/dt = g²/σ²."""
    sde = SDES[name]()
    score = LinearScore(sde, weight, bias)
    start, end = sde.clock_span()
    clock = torch.full((4,), start + (0.02 + 0.96 * u) * (end - start), dtype=torch.float64)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = sde.time(-clock).requires_grad_()
    c = sde.marginal_std(t)
    (c_rate,) = torch.autograd.grad(c.sum(), t)
    f, g, sigma = (coefficient(t)[:, None] for coefficient in (sde.drift, sde.diffusion, sde.sigma))
    c, c_rate = c[:, None], c_rate[:, None]
    by_definition = ((f * z - 0.5 * g**2 * score(z, t)) / c - z * c_rate / c**2) / (g / sigma) ** 2
    velocity = probability_flow(score, clock)(z / c)
    torch.testing.assert_close(velocity, by_definition, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", SDES)
def test_it_carries_gaussian_data_to_their_law_at_T(name):
    score = gaussian(name, (5,))
    sde, z = score.sde, score.sample(20, torch.Generator().manual_seed(0))
    eps, T = (sde.marginal_std(t)[:, None] for t in sde.endpoints(z))

    def field(clock, state):
        return (probability_flow(score, clock)(state[0]),)

    (w,), *_ = adams(field, (z / eps,), *sde.clock_span(), steps=300)
    torch.testing.assert_close(w * T, score.flow(z, sde.eps, 1.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SDES)
def test_it_rests_for_standard_normal_latents(name):
    sde = SDES[name]()
    score = LinearScore(sde, 1.0, 0.0)  # −z/(α² + σ²)
    w = torch.randn(5, 2, dtype=torch.float64)
    velocity = probability_flow(score, torch.linspace(*sde.clock_span(), 5, dtype=torch.float64))(w)
    assert velocity.abs().max() < 1e-12


class Plain(torch.nn.Module):
    """A score of somebody's own, which is no ScoreModel, with a network inside."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sde = network, indm.VPSDE()

    def forward(self, z_t, t):
        return -z_t + self.network(z_t, t)


def test_a_plain_score_gets_the_steps_of_its_network_in_a_score_model():
    """A network that says nothing may have ripples, wherever it is."""
    silent = MLP((2,), width=4)
    silent.is_smooth = False
    for network in (MLP((2,), width=4), silent, torch.nn.Bilinear(2, 1, 2)):
        plain, ours = Plain(network), indm.ScoreModel(network, indm.VPSDE())
        assert (
            is_smooth(plain)
            == is_smooth(ours)
            == (network is not silent and isinstance(network, MLP))
        )
        steps = [default_steps(indm.INDM(Identity(), score, shape=(2,))) for score in (plain, ours)]
        assert steps[0] == steps[1] == (25 if is_smooth(plain) else 400)
