"""Translations whose truth is known: between Gaussians, where two exact models give the optimal map only if covariances
commute, and from digits to their negatives."""

import math

import pytest
import torch

from indm.translation import two_models
from indm.workbench.data.base import load_data
from research.translation.truth import covariances, distances, drawn, exact_models, maps


@pytest.mark.parametrize("angle", [0.0, math.pi / 4, math.pi / 2])
def test_two_exact_models_of_gaussians_are_the_optimal_map_only_where_covariances_commute(angle):
    a, b = covariances(angle)
    model, optimal = maps(a, b)
    # Both carry A to B; the optimal map alone is the gradient of a convex function: symmetric and positive.
    for matrix in (model, optimal):
        assert torch.allclose(matrix @ a @ matrix.T, b)
    assert torch.allclose(optimal, optimal.T) and (torch.linalg.eigvalsh(optimal) > 0).all()
    assert torch.allclose(model, optimal) == torch.allclose(a @ b, b @ a) == (angle != math.pi / 4)
    x = drawn(a, 200, 0)
    y = two_models(*exact_models(a, b)).follow(x).x
    found = distances(x, y, a, b)
    assert found["from M"] < 5e-4
    # The mean square of (M − O) x under N(0, Σ_A) in closed form.
    expected = ((model - optimal) @ a @ (model - optimal).T).trace().sqrt().item()
    assert found["from O"] == pytest.approx(expected, rel=0.15, abs=1e-3)


def test_negatives_of_digits_are_each_the_counterpart_of_its_digit():
    for label in (None, 3):
        data, other = (load_data("digits", label=label, negative=negative) for negative in (False, True))
        for part in ("train", "valid", "test"):
            assert (getattr(data, part).tensor + getattr(other, part).tensor == 16).all()
