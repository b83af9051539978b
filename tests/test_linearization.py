"""The solver for products with an inverse Jacobian, on matrices; second derivatives in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indm.linearization import Operator, second_derivative, solve


def columns(v):
    return v.flatten(1).unsqueeze(2)


@given(st.integers(1, 24), st.floats(0, 3), st.booleans(), st.integers(0, 10**6))
def test_solver_on_any_matrix(d, decades, definite, seed):
    """Singular values over up to 3 decades, from positive definite matrices to pure rotations."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(4, d, d, dtype=torch.float64, generator=generator)
    left, right = torch.linalg.qr(random).Q, torch.linalg.qr(random.mT).Q
    values = 10 ** (-decades * torch.rand(4, d, dtype=torch.float64, generator=generator))
    matrix = (left * values[:, None]) @ (left.mT if definite else right.mT)
    b = torch.randn(4, d, dtype=torch.float64, generator=generator)
    products = []

    def multiply(v):
        products.append(v)
        return (matrix @ columns(v)).squeeze(2)

    y = solve(Operator(multiply, multiply), b, 1e-8)
    assert ((multiply(y) - b).norm(dim=1) <= 1e-8 * b.norm(dim=1)).all()
    assert len(products) <= d + 4, "as many products as dimensions, and one to check"


def test_solver_starts_from_a_guess_and_leaves_zero_alone():
    eye = Operator(lambda v: 2 * v, lambda v: 2 * v)
    calls = []
    guess = Operator(lambda v: calls.append(v) or v / 2, lambda v: v / 2)
    b = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert torch.equal(solve(eye, b, 1e-6, guess), b / 2) and len(calls) == 1
    torch.testing.assert_close(solve(eye, b, 1e-6), b / 2)


def test_samples_that_do_not_converge_are_named():
    """A singular matrix, and a sample that is not a number; the others' solution is not needed to
    say so.
    """
    matrix = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    matrix[2, 1, 1] = 0.0
    A = Operator(
        lambda v: (matrix @ columns(v)).squeeze(2), lambda v: (matrix.mT @ columns(v)).squeeze(2)
    )
    b = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"1 of 4 samples \(indices 2;.*allow a larger tol"):
        solve(A, b, 1e-8)
    b[1] = 0.0
    with pytest.raises(
        RuntimeError, match=r"1 of 4 samples \(indices 2; largest relative residual 0\.58"
    ):
        solve(A, b, 1e-8)  # (0, 1, 0) of (1, 1, 1) is out of reach
    b[0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"2 of 4 samples \(indices 0, 2;"):
        solve(A, b, 1e-8)


def test_an_ill_conditioned_matrix_in_single_precision_is_solved_in_as_many_products_as_dimensions():
    """Condition 1e5: once orthogonalised, directions are not orthogonal enough."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(1, 60, 60, generator=generator)).Q for _ in range(2))
    matrix = (left * torch.logspace(-5, 0, 60)) @ right.mT
    products = []

    def multiply(v):
        products.append(v)
        return (matrix @ columns(v)).squeeze(2)

    b = multiply(torch.randn(1, 60, generator=generator))
    y = solve(Operator(multiply, multiply), b, 1e-4)
    assert (multiply(y) - b).norm() <= 1.1e-4 * b.norm() and len(products) <= 60 + 4


def test_second_derivative_of_a_cubic():
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        second_derivative(lambda x: x**3, x, v), 6 * x * v**2, rtol=1e-8, atol=1e-8
    )
