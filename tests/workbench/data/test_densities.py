"""The densities against quadrature, their own samples, and closed forms that do not use their code."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from indm.workbench.data.densities import DENSITIES, Checkerboard, EightGaussians, TwoSpirals

N = 50_000


@pytest.fixture(scope="module", params=DENSITIES)
def drawn(request):
    density = DENSITIES[request.param]
    x = density.sample(N, generator=torch.Generator().manual_seed(1))
    return density, x


def grid(step, half_width=2.0):
    """Midpoints of a grid of squares that tiles [−half_width, half_width]²."""
    axis = torch.arange(-half_width + step / 2, half_width, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def test_samples_have_the_stated_entropy(drawn):
    density, x = drawn
    surprise = -density.log_prob(x).double()
    assert x.shape == (N, 2) and x.dtype == torch.float32
    error = surprise.std().item() / math.sqrt(N)
    assert abs(surprise.mean().item() - density.entropy()) < 4 * error + 1e-6


@pytest.mark.parametrize("name", DENSITIES)
def test_integrates_to_one(name):
    step = 1 / 64
    assert DENSITIES[name].log_prob(grid(step)).exp().sum().item() * step**2 == pytest.approx(
        1.0, abs=2e-6
    )


def test_histogram_of_samples_follows_the_density(drawn):
    """Pearson's chi-square on cells of side 1/8, the expected mass by 10×10 midpoints a cell."""
    density, x = drawn
    cells, fine = 32, 10
    edges = np.linspace(-2, 2, cells + 1)
    observed = np.histogram2d(*x.double().numpy().T, bins=[edges, edges])[0]
    side = 4 / (cells * fine)
    mass = (
        density.log_prob(grid(side)).exp().reshape(cells, fine, cells, fine).sum((1, 3)).numpy()
        * side**2
    )
    keep = N * mass >= 5
    observed, expected = observed[keep], N * mass[keep]
    observed, expected = (
        np.append(observed, N - observed.sum()),
        np.append(expected, N - expected.sum()),
    )
    observed, expected = observed[expected > 1], expected[expected > 1]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_checkerboard_support_and_border():
    board = Checkerboard()
    x = board.sample(N)
    assert torch.isfinite(board.log_prob(x)).all()
    assert board.entropy() == math.log(2)
    assert board.log_prob(torch.tensor([[-0.9, -0.9]])).item() == pytest.approx(-math.log(2))
    outside = torch.tensor([[-0.9, -0.4], [1.01, 0.9], [0.9, -1.01], [1.0, 1.0]])
    assert torch.isneginf(board.log_prob(outside)).all()


def test_eight_gaussians_entropy_is_close_to_that_of_separate_ones():
    """Separate components would have log 8 + log(2πe s²); overlap can only lower it, and by little."""
    separate = math.log(8) + math.log(2 * math.pi * math.e * 0.1**2)
    assert 0 < separate - EightGaussians().entropy() < 2e-3
    far = EightGaussians(radius=1.5, std=0.05)
    assert far.entropy() == pytest.approx(
        math.log(8) + math.log(2 * math.pi * math.e * 0.05**2), abs=1e-8
    )


def test_spiral_density_against_adaptive_quadrature():
    spiral = TwoSpirals()
    x = torch.cat(
        [spiral.sample(5).double(), torch.tensor([[0.0, 0.0], [1.05, 0.1]], dtype=torch.float64)]
    )

    def along(u, px, py, sign):
        root = math.sqrt(u)
        angle = 2 * math.pi * spiral.turns * root
        square = (px - sign * root * math.cos(angle)) ** 2 + (
            py - sign * root * math.sin(angle)
        ) ** 2
        return math.exp(-square / (2 * spiral.std**2)) / (2 * math.pi * spiral.std**2)

    cuts = np.linspace(0, 1, 101)
    for (px, py), log_p in zip(x.tolist(), spiral.log_prob(x).tolist(), strict=True):
        value = sum(
            integrate.quad(along, a, b, args=(px, py, sign), epsabs=1e-13)[0] / 2
            for sign in (1, -1)
            for a, b in itertools.pairwise(cuts)
        )
        assert log_p == pytest.approx(math.log(value), abs=1e-7)
