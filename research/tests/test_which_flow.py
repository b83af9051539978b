"""The distance that says how near x_T comes to a law, against its closed form."""

import math

import pytest
import torch

from research.which_flow.figures import mmd


def normal(n, mean, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(mean, dtype=torch.float64) + torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def test_mmd_of_shifted_normals():
    """E|N(m, 2)| = 2/√π e^(−m²/4) + m erf(m/2) in one dimension."""
    shift = 1.3
    a, b = normal(4000, [0.0], 0), normal(3000, [shift], 1)
    between = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    assert mmd(a, b) == pytest.approx(between - 2 / math.sqrt(math.pi), rel=0.05)


def test_mmd_has_mean_zero_for_one_law():
    values = torch.tensor([mmd(normal(50, [0.0, 0.0], 2 * i), normal(60, [0.0, 0.0], 2 * i + 1)) for i in range(200)])
    assert abs(values.mean().item()) < 3 * values.std().item() / math.sqrt(200)
    assert values.min() < 0
