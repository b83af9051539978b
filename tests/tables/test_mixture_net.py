"""The mixture's denoiser against autograd of the noised mixture's log-density, written out by torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from indm.score import ScoreModel
from indm.sde import VESDE, VPSDE
from indm.tables.networks import MixtureMLP


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_its_score_is_that_of_the_noised_mixture(sde):
    torch.manual_seed(0)
    root = torch.randn(3, 2, 2, dtype=torch.float64)
    weight, mean = torch.tensor([0.2, 0.5, 0.3]).double(), torch.randn(3, 2, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(2)
    net = MixtureMLP((2,), components=3, width=8, depth=1).double()
    net.set_mixture(weight, mean, covariance)
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    for t in (0.01, 0.3, 0.9):
        times = torch.full((6,), t, dtype=torch.float64)
        alpha, sigma = sde.alpha(times)[0], sde.sigma(times)[0]
        noised = MultivariateNormal(alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2))
        log_prob = MixtureSameFamily(Categorical(weight), noised).log_prob(z)
        (score,) = torch.autograd.grad(log_prob.sum(), z)
        torch.testing.assert_close(ScoreModel(net, sde)(z, times), score, rtol=1e-6, atol=1e-6)


def test_the_distance_is_that_of_mahalanobis_to_the_nearest_component():
    torch.manual_seed(0)
    root, mean = torch.randn(2, 2, 3, 3, dtype=torch.float64)[0], torch.randn(2, 3, dtype=torch.float64)
    covariance, z, r = root @ root.mT + 0.1 * torch.eye(3), torch.randn(5, 3, dtype=torch.float64), 0.3
    net = MixtureMLP((3,), components=2, width=8, depth=1).double()
    net.set_mixture(torch.tensor([0.2, 0.8]).double(), mean, covariance)
    level = torch.full((5,), 0.5 * math.log(r), dtype=torch.float64)
    offset, noised = z[:, None] - mean, covariance + r * torch.eye(3)
    expected = torch.einsum("bki,kij,bkj->bk", offset, noised.inverse(), offset).sqrt().amin(1)
    torch.testing.assert_close(net.mixture_at(z / math.sqrt(1 + r), level).distance(), expected)


def test_the_mlp_is_added():
    torch.manual_seed(0)
    net = MixtureMLP((2,), width=8, depth=1)
    with torch.no_grad():
        net.mlp.output.bias.fill_(0.5)
    z, level = torch.randn(4, 2), torch.linspace(-3.0, 3.0, 4)
    torch.testing.assert_close(net(z, level), torch.full((4, 2), 0.5))


def test_at_a_condition_it_is_the_mixtures_law_of_z_at_c():
    torch.manual_seed(0)
    root = torch.randn(3, 5, 5, dtype=torch.float64)
    weight, mean = torch.tensor([0.2, 0.5, 0.3]).double(), torch.randn(3, 5, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(5)
    net = MixtureMLP((2,), components=3, width=8, depth=1, condition=(4,)).double()
    net.set_mixture(weight, mean, covariance)
    z, c = torch.randn(6, 2, dtype=torch.float64, requires_grad=True), torch.randn(6, 3, dtype=torch.float64)
    noise = torch.zeros(5, 5, dtype=torch.float64)
    noise[:2, :2] = 0.3**2 * torch.eye(2)
    joint = MixtureSameFamily(Categorical(weight), MultivariateNormal(mean, covariance + noise))
    (score,) = torch.autograd.grad(joint.log_prob(torch.cat([z, c], 1)).sum(), z)
    level = torch.full((6,), 0.3, dtype=torch.float64).log()
    y, at_c = z / (1 + 0.3**2) ** 0.5, torch.cat([c, torch.ones(6, 1)], 1)
    expected = -0.3 * score - 0.3 * z / (1 + 0.3**2)
    torch.testing.assert_close(net(y, level, at_c), expected, rtol=1e-8, atol=1e-8)
