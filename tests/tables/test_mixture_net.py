"""The mixture's denoiser against autograd of the noised mixture's log-density, written out by
torch.distributions.
"""

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


def test_what_is_learned_fades_with_the_distance_of_mahalanobis_from_the_nearest_component():
    """The MLP adds 1/2 near the mixture with noise of variance 0.25, and nothing at 10 deviations
    more than √3.
    """
    torch.manual_seed(0)
    root, mean = (
        torch.randn(2, 2, 3, 3, dtype=torch.float64)[0],
        torch.randn(2, 3, dtype=torch.float64),
    )
    covariance, r = root @ root.mT + 0.1 * torch.eye(3), 0.3
    z = torch.randn(60, 3, dtype=torch.float64) * torch.linspace(0, 15, 60)[:, None]
    net = MixtureMLP((3,), components=2, width=8, depth=1).double()
    net.set_mixture(torch.tensor([0.2, 0.8]).double(), mean, covariance)
    level = torch.full((60,), 0.5 * math.log(r), dtype=torch.float64)
    w = z / math.sqrt(1 + r)
    of_mixture = net(w, level)
    torch.nn.init.constant_(net.mlp.output.bias, 0.5)
    share = 2 * (net(w, level) - of_mixture)
    offset, noised = z[:, None] - mean, covariance + (r + 0.25) * torch.eye(3)
    square = torch.einsum("bki,kij,bkj->bk", offset, noised.inverse(), offset).amin(1)
    near, far = square < (3**0.5 + 5) ** 2, square > (3**0.5 + 10) ** 2
    between = ~(near | far)
    assert near.sum() > 5 and far.sum() > 5 and between.sum() > 5
    torch.testing.assert_close(share[near], torch.ones_like(share[near]))
    torch.testing.assert_close(share[far], torch.zeros_like(share[far]))
    order = square[between].argsort()
    assert (share[between][order, 0].diff() < 0).all()
    torch.testing.assert_close(share, share[:, :1].expand_as(share))


def test_the_mlp_is_added():
    torch.manual_seed(0)
    net = MixtureMLP((2,), width=8, depth=1)
    with torch.no_grad():
        net.mlp.output.bias.fill_(0.5)
    z, level = torch.randn(4, 2), torch.linspace(-3.0, 3.0, 4)
    torch.testing.assert_close(net(z, level), torch.full((4, 2), 0.5))


def test_the_mlp_of_single_columns_sees_them_at_their_own_scale_and_their_centres():
    """Without noise, what it sees at z/√(1 + r) is the column/√(1 + r), where a column is z @
    unwhitening + centre.
    """
    torch.manual_seed(0)
    net = MixtureMLP((3,), width=8, depth=1, condition=(2,)).double()
    columns = torch.randn(3, 3).double(), torch.randn(3).double(), torch.randn(2, 3).double()
    net.set_columns(*columns)
    z, c, r = (
        torch.randn(4, 3).double(),
        torch.randn(4, 2).double(),
        torch.tensor([0.1, 0.5, 1.0, 3.0]).double(),
    )
    seen = []
    net.columns.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    net(z / (1 + r).sqrt()[:, None], 0.5 * r.log(), c)
    centre = columns[1] + c @ columns[2]
    torch.testing.assert_close(seen[0], (z @ columns[0] + centre) / (1 + r).sqrt()[:, None])
    torch.testing.assert_close(seen[1], centre)


def test_at_a_condition_it_is_the_mixtures_law_of_z_at_c():
    torch.manual_seed(0)
    root = torch.randn(3, 5, 5, dtype=torch.float64)
    weight, mean = torch.tensor([0.2, 0.5, 0.3]).double(), torch.randn(3, 5, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(5)
    net = MixtureMLP((2,), components=3, width=8, depth=1, condition=(4,)).double()
    net.set_mixture(weight, mean, covariance)
    z, c = (
        torch.randn(6, 2, dtype=torch.float64, requires_grad=True),
        torch.randn(6, 3, dtype=torch.float64),
    )
    noise = torch.zeros(5, 5, dtype=torch.float64)
    noise[:2, :2] = 0.3**2 * torch.eye(2)
    joint = MixtureSameFamily(Categorical(weight), MultivariateNormal(mean, covariance + noise))
    (score,) = torch.autograd.grad(joint.log_prob(torch.cat([z, c], 1)).sum(), z)
    level = torch.full((6,), 0.3, dtype=torch.float64).log()
    y, at_c = z / (1 + 0.3**2) ** 0.5, torch.cat([c, torch.ones(6, 1)], 1)
    expected = -0.3 * score - 0.3 * z / (1 + 0.3**2)
    torch.testing.assert_close(net(y, level, at_c), expected, rtol=1e-8, atol=1e-8)
