"""Accelerated fixed points against exact ones, and against Banach's iteration that they must never
fall far behind.
"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indm.flows.contraction import fixed_point


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def affine(d, batch, slope, seed=0, symmetric=True):
    """x ↦ A x + b with ‖A‖₂ = slope, a matrix for each sample, and its fixed points."""
    a = torch.randn(batch, d, d, dtype=torch.float64, generator=seeded(seed))
    a = a + a.mT if symmetric else a
    a = slope * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    b = torch.randn(batch, d, dtype=torch.float64, generator=seeded(seed + 1))
    exact = torch.linalg.solve(torch.eye(d, dtype=torch.float64) - a, b)
    return (
        (lambda x, rows: (a[rows] @ x[:, :, None])[:, :, 0] + b[rows]),
        torch.zeros_like(b),
        exact,
    )


def banach(contraction, x, tol, scale):
    rows, count = torch.arange(len(x)), 0
    while ((contraction(x, rows) - x).abs().amax(1) / scale > tol).any():
        x, count = contraction(x, rows), count + 1
    return count


@settings(max_examples=40)
@given(st.integers(1, 12), st.floats(0.0, 0.97), st.integers(0, 1000), st.booleans())
def test_it_finds_the_fixed_point_and_its_residual_is_true(d, slope, seed, symmetric):
    contraction, x, exact = affine(d, 5, slope, seed, symmetric)
    scale = torch.ones(5, dtype=torch.float64)
    solution, residual, evaluations = fixed_point(contraction, x, 1e-9, scale)
    torch.testing.assert_close(
        (contraction(solution, torch.arange(5)) - solution).abs().amax(1), residual
    )
    assert bool((residual <= 1e-9).all()) and bool((evaluations >= 1).all())
    assert (solution - exact).abs().max() <= 1e-9 * math.sqrt(d) / (1 - slope) * 1.01
    bound = math.log(1e-9 / (x.norm() + 1e3)) / math.log(max(slope, 1e-9))
    # two evaluations make at least Banach's progress
    assert int(evaluations.max()) <= 2 * bound + 8


def test_steep_contractions_take_a_fraction_of_banachs_evaluations():
    contraction, x, _ = affine(200, 4, 0.95)
    scale = torch.ones(4, dtype=torch.float64)
    evaluations = fixed_point(contraction, x, 1e-8, scale)[2]
    assert int(evaluations.max()) < banach(contraction, x, 1e-8, scale) / 3


def test_easy_contractions_take_as_many_as_banach():
    contraction, x, _ = affine(50, 4, 0.02)
    scale = torch.ones(4, dtype=torch.float64)
    assert (
        int(fixed_point(contraction, x, 1e-6, scale)[2].max())
        == banach(contraction, x, 1e-6, scale) + 1
    )


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.5, 0.98))
def test_kinks_and_turns_do_not_defeat_it(seed, slope):
    """The slope jumps between ± slope all over: combinations of the past mislead, the safeguard
    holds.
    """
    shift = torch.randn(6, 3, dtype=torch.float64, generator=seeded(seed))

    def contraction(x, rows):
        return slope * (7.0 * x + shift[rows]).sin().abs() / 7.0 + 0.1 * shift[rows]

    solution, residual, _ = fixed_point(
        contraction, torch.zeros_like(shift), 1e-8, torch.ones(6, dtype=torch.float64)
    )
    assert bool((residual <= 1e-8).all())
    assert (contraction(solution, torch.arange(6)) - solution).abs().max() <= 1e-8


def test_a_banach_step_may_raise_the_euclidean_norm():
    """A chain of maps by 0.9 that ends in 100 entries at once: its largest row sum is 0.9, its
    spectral norm is 9.
    """
    for chain in range(4, 12):
        a = 0.9 * torch.eye(chain + 100, dtype=torch.float64).roll(1, 0)
        a[0], a[chain:], a[chain:, chain - 1] = 0.0, 0.0, 0.9
        b = torch.eye(1, chain + 100, dtype=torch.float64)
        exact = torch.linalg.solve(torch.eye(chain + 100, dtype=torch.float64) - a, b[0])
        start, scale = torch.zeros_like(b), torch.ones(1, dtype=torch.float64)
        solution, _, evaluations = fixed_point(
            lambda x, rows, a=a, b=b: x @ a.T + b, start, 1e-9, scale
        )
        torch.testing.assert_close(solution[0], exact, rtol=0, atol=1e-8)
        assert int(evaluations) <= 2 * math.log(1e-9) / math.log(0.9)


def test_a_sample_does_not_depend_on_its_batch():
    contraction, x, _ = affine(6, 5, 0.9)
    scale = torch.ones(5, dtype=torch.float64)
    together, _, counts = fixed_point(contraction, x, 1e-9, scale)
    for i in range(5):
        alone, _, count = fixed_point(
            lambda v, rows, i=i: contraction(v, rows + i), x[i : i + 1], 1e-9, scale[:1]
        )
        torch.testing.assert_close(alone[0], together[i], rtol=1e-8, atol=1e-8)
        assert abs(int(count) - int(counts[i])) <= 1


def test_samples_that_are_no_numbers_are_given_up_and_spare_the_others():
    contraction, x, exact = affine(4, 3, 0.8)
    x[1, 2] = math.nan
    solution, residual, evaluations = fixed_point(
        contraction, x, 1e-9, torch.ones(3, dtype=torch.float64)
    )
    assert not bool(residual[1] <= 1e-9) and int(evaluations[1]) == 1
    torch.testing.assert_close(solution[[0, 2]], exact[[0, 2]], rtol=1e-7, atol=1e-7)
