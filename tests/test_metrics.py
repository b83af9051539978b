"""Distances between samples, against their closed forms for normal laws."""

import math

import pytest
import torch

from indm.metrics import mmd, sliced_wasserstein


def normal(n, mean, std, seed):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def test_sliced_wasserstein_of_shifted_and_scaled_normals():
    """Along a unit direction θ the squared distance is (θ·shift)² + (s − 1)², and E(θ·shift)² = ‖shift‖²/d."""
    a = normal(20_000, [0.0, 0, 0], 1.0, 0)
    b = normal(15_000, [3.0, 0, -1], 1.5, 1)
    generator = torch.Generator().manual_seed(2)
    found = sliced_wasserstein(a, b, projections=4000, generator=generator)
    assert found == pytest.approx(math.sqrt(10 / 3 + 0.25), rel=0.02)


def test_sliced_wasserstein_of_a_set_with_itself():
    a = normal(300, [0.0, 1.0], 1.0, 0)
    assert sliced_wasserstein(a, a[torch.randperm(300)]) == 0.0
    assert sliced_wasserstein(a, torch.cat([a, a])) == pytest.approx(0.0, abs=1e-12)


def test_mmd_of_shifted_normals():
    """E|N(m, 2)| = 2/√π e^(−m²/4) + m erf(m/2) in one dimension."""
    shift = 1.3
    a, b = normal(4000, [0.0], 1.0, 0), normal(3000, [shift], 1.0, 1)
    between = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    assert mmd(a, b) == pytest.approx(between - 2 / math.sqrt(math.pi), rel=0.05)


def test_mmd_has_mean_zero_for_one_law():
    values = torch.tensor(
        [mmd(normal(50, [0.0, 0.0], 1.0, 2 * i), normal(60, [0.0, 0.0], 1.0, 2 * i + 1)) for i in range(200)]
    )
    assert abs(values.mean().item()) < 3 * values.std().item() / math.sqrt(200)
    assert values.min() < 0
