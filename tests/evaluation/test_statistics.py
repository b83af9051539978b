"""Means and their standard errors, against what many draws show and by hand."""

import math

import numpy as np
import pytest
import torch

from indm.evaluation import statistics
from indm.evaluation.statistics import difference_over_seeds, over_seeds, share_error


def test_jackknife_of_a_mean_and_of_a_variance():
    """Over many draws the square of the error is in the mean the variance of the number."""
    generator, values, errors = torch.Generator().manual_seed(0), [], []
    for _ in range(400):
        a, b = torch.randn(100, generator=generator), 2 * torch.randn(60, generator=generator)
        found = statistics.jackknife(lambda a, b: {"v": (a.mean() + b.mean()).item(), "w": b.var().item()}, a, b)
        values.append([found["v"], found["w"]])
        errors.append([found["v_standard_error"], found["w_standard_error"]])
    squares = torch.tensor(errors).square().mean(0)
    torch.testing.assert_close(squares, torch.tensor([1 / 100 + 4 / 60, 2 * 16 / 59]), rtol=0.15, atol=0)
    torch.testing.assert_close(torch.tensor(values).var(0), squares, rtol=0.25, atol=0)
    with pytest.raises(ValueError, match="at least 20"):
        statistics.jackknife(lambda a: {"v": 0.0}, torch.zeros(19))


def test_means_over_seeds():
    values = [0.3, 0.5, 1.3]
    mean, error = over_seeds(values)
    assert mean == pytest.approx(np.mean(values)) and error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert over_seeds([0.3], 0.1) == (0.3, 0.1) and math.isnan(over_seeds([0.3])[1])


def test_the_larger_error_over_seeds_or_examples_decides_a_difference():
    """Two seeds, three examples, by hand; 2.1 of the larger error is better, 1.9 is a tie, whichever that is."""
    differences = np.array([[-1.0, -2.0, -3.0], [-2.0, -3.0, -7.0]])
    found = difference_over_seeds(differences)
    assert found["difference"] == pytest.approx(-3.0)
    assert found["standard_error_over_seeds"] == pytest.approx(1.0)  # of −2 and −4
    assert found["standard_error_over_examples"] == pytest.approx(math.sqrt(3.25 / 3))  # of −1.5, −2.5 and −5
    for shift, verdict in ((3.0 - 2.1, "better"), (3.0 - 1.9, "tie"), (3.0 + 1.9, "tie"), (3.0 + 2.1, "worse")):
        scaled = differences - differences.mean() + (shift - 3.0) * math.sqrt(3.25 / 3)
        assert difference_over_seeds(scaled)["verdict"] == verdict
    one = difference_over_seeds(differences[:1])
    assert math.isnan(one["standard_error_over_seeds"]) and one["verdict"] == "better"
    assert one["standard_error_over_examples"] == pytest.approx(1 / math.sqrt(3))


def test_the_error_of_a_share():
    assert share_error(0.25, 48) == pytest.approx(1 / 16) and share_error(1.0, 10) == 0.0
