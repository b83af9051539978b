"""Multilevel means against laws whose mean and covariance are known."""

import math

import pytest
import torch

from indm.evaluation.mean_nll import PILOT, Mean, multilevel_mean, order, sizes

N, SUBSETS = 1000, (80, 40)


@pytest.fixture(scope="module")
def levels():
    """Y_0, Y_1 and Y_2 of N examples; the differences have standard deviations 1 and 0.6 and
    correlation 0.9.
    """
    generator = torch.Generator().manual_seed(0)
    y, first, other = torch.randn(3, N, generator=generator, dtype=torch.float64)
    second = 0.6 * (0.9 * first + math.sqrt(1 - 0.9**2) * other)
    return 3 * y, 3 * y + 0.5 + first, 3 * y + 0.5 + first + 0.2 + second


def estimate(levels, seed, reuse=False, corrected=2):
    coarse, *finer = levels
    before, differences = coarse, []
    for level, (values, m) in enumerate(zip(finer, SUBSETS, strict=True), start=1):
        rows = order(N, 1 if reuse else level, 1000 * seed)[:m]
        differences.append((values - before)[rows])
        before = values
    return multilevel_mean(coarse, differences[:corrected])


def covered(levels, level, make=estimate, n=400):
    """In how many of ``n`` draws of the subsets the interval holds the mean."""
    mean = levels[-1].mean().item()
    intervals = [make(levels, seed).interval(level) for seed in range(n)]
    return sum(low <= mean <= high for low, high in intervals)


def test_intervals_cover_as_often_as_they_say(levels):
    assert 360 - 3 * 6 < covered(levels, 0.9) < 360 + 3 * 6  # 6: the deviation of a binomial count
    assert covered(levels, 0.99) >= 396 - 3 * 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda levels, seed: estimate(levels, seed, reuse=True),
        lambda levels, seed: estimate(levels, seed, corrected=1),
        lambda levels, seed: Mean(
            *(lambda m: (m.value, m.added_error / 1.5, m.degrees))(estimate(levels, seed))
        ),
    ],
    ids=["a subset used twice", "a missing correction", "a wrong variance"],
)
def test_what_is_wrong_does_not_cover(levels, wrong):
    assert covered(levels, 0.9, wrong) < 360 - 3 * 6


def test_the_estimate_is_unbiased_and_its_error_is_that_of_its_draws(levels):
    found = [estimate(levels, seed) for seed in range(400)]
    values = torch.tensor([mean.value for mean in found])
    assert abs(values.mean() - levels[-1].mean()) < 4 * values.std() / 20
    assert torch.tensor([mean.added_error**2 for mean in found]).mean().sqrt() == pytest.approx(
        values.std().item(), rel=0.1
    )


def test_degrees_of_freedom_are_those_of_the_variances():
    """Of one level m − 1; of several by Welch and Satterthwaite."""
    first, second = torch.arange(40.0), 3 * torch.arange(20.0)
    assert multilevel_mean(torch.zeros(N), [first]).degrees == pytest.approx(39)
    v = [d.double().var().item() / len(d) * (1 - len(d) / N) for d in (first, second)]
    expected = sum(v) ** 2 / (v[0] ** 2 / 39 + v[1] ** 2 / 19)
    assert multilevel_mean(torch.zeros(N), [first, second]).degrees == pytest.approx(expected)


@pytest.mark.parametrize(
    ("variances", "costs", "target"),
    [([1.0, 0.1], [1.0, 9.0], 0.05), ([4.0], [1.0], 0.1), ([1.0, 1e-9], [1.0, 50.0], 0.03)],
)
def test_sizes_reach_the_error_at_the_least_cost(variances, costs, target):
    n = 2000

    def added(m):
        return sum(v / k * (1 - k / n) for v, k in zip(variances, m, strict=True))

    best = sizes(variances, costs, n, target)
    assert added(best) <= target**2 * 1.001 and all(PILOT <= m <= n for m in best)
    # moving examples from one level to another at the same cost is no gain
    for i in range(len(best)):
        for j in range(len(best)):
            if i != j and best[i] > PILOT + 20:
                moved = list(best)
                moved[i], moved[j] = best[i] - 10, best[j] + 10 * costs[i] / costs[j]
                assert added(moved) >= added(best) * 0.999


def test_sizes_are_at_most_all_examples():
    assert sizes([1.0, 2.0], [1.0, 5.0], 100, 0.0) == [100, 100]
    assert sizes([0.0], [1.0], 20, 0.1) == [20]
    assert sizes([100.0, 1e-4], [1.0, 5.0], 200, 0.01)[0] == 200
