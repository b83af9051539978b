"""The gradient of log p of a network of another library, and draws with their log p, against a
closed form.
"""

import math

import pytest
import torch
from exact import Exact

import indm

WEIGHTS, MEANS, STDS = [0.3, 0.7], [[-1.0, 0.5], [0.8, -0.3]], [0.3, 0.4]
pytestmark = pytest.mark.filterwarnings("ignore:the error of log_prob's ODE")


def log_density(x):
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (WEIGHTS, MEANS, STDS))
    away = (x[:, None] - means).square().sum(2)
    return (weights.log() - 0.5 * away / stds**2 - (2 * math.pi * stds**2).log()).logsumexp(1)


@pytest.fixture(scope="module")
def model():
    network = Exact("velocity", "linear-reversed", WEIGHTS, MEANS, STDS)
    return indm.from_denoiser(
        network, predicts="velocity", path="linear-reversed", shape=(2,)
    ).double()


def gradient(log_prob, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


def test_twice_the_steps_state_the_error_of_the_gradient(model):
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    few, more = (gradient(lambda x, n=n: model.log_prob(x, steps=n), x) for n in (64, 128))
    exact = gradient(log_density, x)
    stated, off = (few - more).abs().max(), (few - exact).abs().max()
    assert off < 0.05 and (more - exact).abs().max() < 5e-3
    assert off <= 1.2 * stated


def test_draws_in_batches_have_their_log_density(model):
    x, log_prob = indm.sample_with_log_prob(
        model, 300, batch_size=64, nll_error=1e-3, generator=torch.Generator().manual_seed(0)
    )
    assert (log_prob - log_density(x)).abs().max() < 2 * math.log(2) * 1e-3
