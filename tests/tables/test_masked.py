"""The network of any question against densities of Gaussian mixtures by scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables.masked import MaskedMixtureMLP

D, K, SIZES = 4, 3, (2, 3)


@pytest.fixture(scope="module")
def law():
    numbers = np.random.default_rng(0)
    root = numbers.normal(size=(K, D, D))
    share = np.concatenate([numbers.dirichlet(np.ones(n), K) for n in SIZES], 1)
    return (
        np.array([0.2, 0.5, 0.3]),
        numbers.normal(size=(K, D)),
        root @ root.swapaxes(1, 2) + np.eye(D),
        share,
    )


@pytest.fixture
def net(law):
    net = MaskedMixtureMLP((D,), SIZES, K, width=8, depth=1)
    weight, mean, covariance, share = map(torch.from_numpy, law)
    net.set_mixture(weight, mean, covariance, share.log())
    return net.double()


def joint(law, values, columns, categories, extra=0.0):
    """The density of ``values`` in ``columns``, to whose variances ``extra`` (d,) is added, and
    ``categories``.
    """
    weight, mean, covariance, share = law
    total, noise = 0.0, np.diag(np.zeros(D) + extra)
    for w, m, matrix, p in zip(weight, mean, covariance, share, strict=True):
        part = (matrix + noise)[np.ix_(columns, columns)]
        density = (
            multivariate_normal(m[columns], part).pdf(values[columns]) if len(columns) else 1.0
        )
        total += w * density * np.prod(p[categories > 0])
    return total


QUESTIONS = {  # asked and given numbers, and the categories that are given
    "all": ([0, 1, 2, 3], [], [0, 0, 0, 0, 0]),
    "some": ([1, 3], [0], [0, 1, 0, 0, 0]),
    "the rest": ([2], [0, 1, 3], [1, 0, 0, 0, 1]),
    "alone": ([0], [], [0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_untrained_network_has_the_score_of_the_mixture_given_what_is_given(law, net, question):
    asked, given, categories = QUESTIONS[question]
    categories = np.array(categories, dtype=float)
    masks = [torch.tensor([[i in part for i in range(D)]]) for part in (asked, given)]
    net = net.asked(
        torch.cat([~masks[0], masks[0]]), torch.cat([torch.zeros(1, D).bool(), masks[1]])
    )
    values = np.random.default_rng(1).normal(size=D)
    sde, t = VPSDE(), torch.tensor([0.3], dtype=torch.double)
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    c = net.condition(
        torch.from_numpy(values)[None], torch.from_numpy(categories)[None], torch.tensor([1])
    )
    z_t = torch.from_numpy(values * alpha)[None]
    found = ScoreModel(net, sde)(z_t, t, torch.cat([c, torch.ones(1, 1)], 1))[0].detach().numpy()
    noise = np.isin(np.arange(D), asked) * (sigma / alpha) ** 2
    for i in asked:
        step = np.eye(D)[i] * 1e-5
        high, low = (
            np.log(joint(law, values + sign * step, [*asked, *given], categories, noise))
            for sign in (1, -1)
        )
        assert found[i] == pytest.approx((high - low) / 2e-5 / alpha, rel=1e-5)
    others = [i for i in range(D) if i not in asked]
    np.testing.assert_allclose(found[others], -z_t[0, others] / (alpha**2 + sigma**2), rtol=1e-10)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_untrained_network_has_the_density_of_the_mixture(law, net, question):
    """log of the density of z_t/α_t, whose columns that are not asked are N(0, 1) before the noise
    r.
    """
    (asked, given, categories), r = QUESTIONS[question], 0.04
    values, categories = np.random.default_rng(3).normal(size=D), np.array(categories, dtype=float)
    net = net.asked(*(torch.tensor([[i in part for i in range(D)]]) for part in (asked, given)))
    z = torch.from_numpy(values)[None]
    c = net.condition(z, torch.from_numpy(categories)[None], torch.tensor([0]))
    level = torch.tensor([0.5 * math.log(r)]).double()
    found = net.mixture_at(
        z / math.sqrt(1 + r), level, torch.cat([c, torch.ones(1, 1)], 1)
    ).log_prob()
    both = joint(law, values, [*asked, *given], categories, r * np.isin(np.arange(D), asked))
    others = norm.logpdf(values[~np.isin(np.arange(D), asked)], scale=math.sqrt(1 + r)).sum()
    expected = np.log(both / joint(law, values, given, categories)) + others
    assert net.is_mixture and found.item() == pytest.approx(expected, rel=1e-7)


def test_an_untrained_network_has_the_probabilities_of_the_mixture(law, net):
    given, known = [0, 2], np.array([0, 1, 0, 0, 0.0])
    net = net.asked(torch.zeros(1, D).bool(), torch.tensor([[i in given for i in range(D)]]))
    values = np.random.default_rng(2).normal(size=D)
    c = net.condition(
        torch.from_numpy(values)[None], torch.from_numpy(known)[None], torch.tensor([0])
    )
    found = net.category_log_prob(c)[0].exp().detach().numpy()
    alone = joint(law, values, given, known)
    expected = [joint(law, values, given, known + np.eye(5)[j]) / alone for j in (2, 3, 4)]
    np.testing.assert_allclose(found[2:], expected, rtol=1e-6)
    assert found[:2].sum() == pytest.approx(1)


def test_what_is_not_asked_does_not_move_and_what_is_left_out_does_not_count(net):
    for layer in (net.mlp.output, net.mlp.condition_embedding.mlp[-1], net.classifier.output):
        torch.nn.init.normal_(layer.weight)
    net = net.asked(
        torch.tensor([[False, True, False, False]]), torch.tensor([[True, False, False, False]])
    )
    z, level, index = (
        torch.randn(2, D).double(),
        torch.zeros(2).double(),
        torch.zeros(2, dtype=torch.long),
    )
    rows = torch.tensor([[1.0, 5.0, 6.0, 7.0], [1.0, -5.0, -6.0, -7.0]]).double()
    c = torch.cat([net.condition(rows, torch.zeros(2, 5), index), torch.ones(2, 1)], 1)
    z[1, 1] = z[0, 1]  # the asked one alone is the same
    output = net(z, level, c)
    torch.testing.assert_close(output[0, 1], output[1, 1], rtol=1e-12, atol=0)
    assert output[0, 1] != 0 and not output[:, [0, 2, 3]].any()
    probability = net.category_log_prob(c)
    torch.testing.assert_close(probability[0], probability[1], rtol=1e-12, atol=0)


def test_two_questions_in_turn_do_not_disturb_each_other(net):
    for layer in (net.mlp.output, net.classifier.output):
        torch.nn.init.normal_(layer.weight)
    z = torch.randn(3, D, dtype=torch.double)
    level = torch.zeros(3, dtype=torch.double)
    masks = [torch.eye(D, dtype=torch.bool)[i : i + 1] for i in range(2)]

    def answers(bound):
        c = bound.condition(z, torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))
        c = torch.cat([c, torch.ones(3, 1)], 1)
        yield bound(z, level, c)
        yield bound.category_log_prob(c)

    first, second = net.asked(masks[0], masks[1]), net.asked(masks[1], masks[0])
    alone = [[*answers(net.asked(*pair))] for pair in (masks, masks[::-1])]
    in_turn = [*zip(answers(first), answers(second), strict=True)]
    for expected, found in zip(alone, zip(*in_turn, strict=True), strict=True):
        assert all(map(torch.equal, expected, found))
    assert not torch.equal(alone[0][0], alone[1][0])
    torch.nn.init.zeros_(net.mlp.output.weight)  # the views share it
    assert first.is_mixture and second.is_mixture
