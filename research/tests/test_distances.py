"""Distances between samples, against their closed forms for normal laws."""

import numpy as np
import pytest
import scipy.linalg
import torch

from research.lab.distances import frechet_distance
from research.lab.statistics import jackknife, share_error


def normal(n, mean, std, seed):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def with_moments(n, mean, root, seed):
    """Samples whose mean and covariance are ``mean`` and ``root`` ``root``ᵀ exactly."""
    noise = normal(n, [0.0] * len(mean), 1.0, seed)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(noise.T)), (noise - noise.mean(0)).T, upper=False
    )
    return torch.as_tensor(mean, dtype=torch.float64) + white.T @ torch.as_tensor(root, dtype=torch.float64).T


def test_frechet_distance_of_known_moments():
    """The distance is ‖shift‖² + Σ(s_a − s_b)² if covariances commute, with s the standard deviations."""
    a = with_moments(40, [0.0, 1.0, 2.0], np.diag([1.0, 2.0, 0.5]), 0)
    b = with_moments(50, [3.0, 1.0, 0.0], np.diag([2.0, 0.0, 0.7]), 1)
    assert frechet_distance(a, b) == pytest.approx(13 + 1 + 4 + 0.04, rel=1e-9)
    line = (normal(20, [0.0], 1.0, 2), normal(30, [2.0], 3.0, 3))
    expected = (line[0].mean() - line[1].mean()) ** 2 + (line[0].std() - line[1].std()) ** 2
    assert frechet_distance(*line) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_against_the_matrix_square_root():
    roots = np.random.default_rng(0).normal(size=(2, 4, 4))
    a, b = (with_moments(30, (k + 1) * np.ones(4), root, k) for k, root in enumerate(roots))
    covariances = [np.cov(samples.numpy().T) for samples in (a, b)]
    cross = np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    expected = 4.0 + np.trace(covariances[0] + covariances[1]) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)
    rotation = torch.linalg.qr(normal(4, [0.0] * 4, 1.0, 3))[0]
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_equal_sets_and_of_flat_ones():
    """Fewer samples than features have singular covariances, whose roots are real all the same."""
    a = normal(10, [0.0] * 32, 1.0, 0)
    assert frechet_distance(a, a[torch.randperm(10)]) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a.float(), a.float() + 1.0) == pytest.approx(32.0, rel=1e-5)
    with pytest.raises(ValueError, match="b must hold at least 2 samples"):
        frechet_distance(a, a[:1])


def test_jackknife_of_a_mean_and_of_a_variance():
    """Over many draws the square of the error is in the mean the variance of the number."""
    generator, values, errors = torch.Generator().manual_seed(0), [], []
    for _ in range(400):
        a, b = torch.randn(100, generator=generator), 2 * torch.randn(60, generator=generator)
        found = jackknife(lambda a, b: {"v": (a.mean() + b.mean()).item(), "w": b.var().item()}, a, b)
        values.append([found["v"], found["w"]])
        errors.append([found["v_standard_error"], found["w_standard_error"]])
    squares = torch.tensor(errors).square().mean(0)
    torch.testing.assert_close(squares, torch.tensor([1 / 100 + 4 / 60, 2 * 16 / 59]), rtol=0.15, atol=0)
    torch.testing.assert_close(torch.tensor(values).var(0), squares, rtol=0.25, atol=0)
    with pytest.raises(ValueError, match="at least 20"):
        jackknife(lambda a: {"v": 0.0}, torch.zeros(19))


def test_the_error_of_a_share():
    assert share_error(0.25, 48) == pytest.approx(1 / 16) and share_error(1.0, 10) == 0.0
