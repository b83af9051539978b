"""Distances between samples, against their closed forms for normal laws."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from indm.workbench.evaluation.sample_quality import frechet_distance, sliced_wasserstein


def normal(n, mean, std, seed):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def test_sliced_wasserstein_of_shifted_and_scaled_normals():
    """Along a unit direction θ the squared distance is (θ·shift)² + (s − 1)², and E(θ·shift)² = ‖shift‖²/d."""
    a = normal(5000, [0.0, 0, 0], 1.0, 0)
    b = normal(4000, [3.0, 0, -1], 1.5, 1)
    generator = torch.Generator().manual_seed(2)
    found = sliced_wasserstein(a, b, projections=2000, generator=generator)
    assert found == pytest.approx(math.sqrt(10 / 3 + 0.25), rel=0.02)


def test_sliced_wasserstein_of_a_set_with_itself():
    a = normal(300, [0.0, 1.0], 1.0, 0)
    assert sliced_wasserstein(a, a[torch.randperm(300)]) == 0.0
    assert sliced_wasserstein(a, torch.cat([a, a])) == pytest.approx(0.0, abs=1e-12)


def with_moments(n, mean, root, seed):
    """Samples whose mean and covariance are ``mean`` and ``root`` ``root``ᵀ exactly."""
    noise = normal(n, [0.0] * len(mean), 1.0, seed)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(noise.T)), (noise - noise.mean(0)).T, upper=False
    )
    return torch.as_tensor(mean, dtype=torch.float64) + white.T @ torch.as_tensor(root, dtype=torch.float64).T


def test_frechet_distance_of_known_moments():
    """For covariances that commute it is ‖shift‖² + Σ(s_a − s_b)², with s the standard deviations."""
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
