"""The integrator against exact solutions and its order, the divergence against the autograd Jacobian."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indm import ode
from indm.ode import adams, basis, integrate, rademacher, solve, unresolved, value_and_divergence

TURN = torch.tensor([[-0.3, -4.0, 0.1], [4.0, -0.3, 0.2], [0.0, 0.5, -1.0]], dtype=torch.float64)


def linear(t, state):
    return (state[0] @ TURN.T,)


def solve_linear(start, end, rtol, atol=0.0):
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (result,), nfe = integrate(linear, (z,), start, end, rtol=rtol, atol=atol or rtol)
    exact = z @ torch.linalg.matrix_exp((end - start) * TURN).T
    return ((result - exact).abs().max() / exact.abs().max()).item(), nfe.double().mean().item()


@pytest.mark.parametrize("start, end", [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5), (0.3, -0.9)])
@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10])
def test_linear_system_in_both_directions(start, end, rtol):
    error, _ = solve_linear(start, end, rtol)
    assert error < 30 * rtol


def test_the_tableau_is_one_of_fifth_order_with_a_fourth_order_error():
    """Each stage lies at its node; the weights integrate polynomials up to degree 4, their error up to degree 3."""
    nodes, stages, error = np.array(ode._NODES), [np.array(row) for row in ode._STAGES], np.array(ode._ERROR)
    np.testing.assert_allclose([row.sum() for row in stages], nodes[1:], rtol=1e-14)
    weights = stages[-1]
    for k in range(5):
        assert weights @ nodes[:6] ** k == pytest.approx(1 / (k + 1), abs=1e-14)
        assert (abs(error @ nodes**k) < 1e-15) == (k < 4)


def test_error_follows_the_tolerance_and_the_work_its_fifth_root():
    tolerances = 10.0 ** -np.arange(4, 12)
    errors, evaluations = zip(*(solve_linear(0.0, 4.0, tol) for tol in tolerances), strict=True)
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.8 < slope < 1.2
    order = -np.polyfit(np.log(evaluations), np.log(errors), 1)[0]
    assert 4.5 < order < 6.0


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5), st.floats(-2, 2), st.floats(-2, 2))
def test_quadrature_is_exact_for_degree_four(coefficients, start, end):
    """A fifth-order rule integrates polynomials of degree 4 exactly, whatever the steps."""
    powers = np.polynomial.Polynomial(coefficients)

    def field(t, state):
        return (torch.from_numpy(powers(t.numpy()))[:, None] + 0 * state[0],)

    (value,), _ = integrate(field, (torch.zeros(2, 1, dtype=torch.float64),), start, end, rtol=1.0, atol=10.0)
    exact = powers.integ()(end) - powers.integ()(start)
    assert value[0, 0].item() == pytest.approx(exact, abs=1e-11)


def test_degree_five_is_not_exact():
    def field(t, state):
        return (6 * t[:, None] ** 5 + 0 * state[0],)

    (value,), _ = integrate(field, (torch.zeros(1, 1, dtype=torch.float64),), 0.0, 1.0, rtol=1.0, atol=10.0)
    assert 1e-8 < abs(value.item() - 1.0) < 1e-2


def test_count_of_evaluations():
    """One at the start and six a step; a field of degree 3 has no estimated error, so the step grows fivefold:
    1/20, 5/20 and the rest."""
    calls = []

    def field(t, state):
        calls.append(t.item())
        return (t[:, None] ** 3 + 0 * state[0],)

    _, nfe = integrate(field, (torch.zeros(1, 1, dtype=torch.float64),), 0.0, 1.0)
    assert nfe.tolist() == [len(calls)] == [1 + 6 * 3]
    assert min(calls) == 0.0 and max(calls) == pytest.approx(1.0)


def test_several_tensors_are_integrated_together():
    """A state and the integral of its square along the path, as in the likelihood."""
    z = torch.tensor([[1.0], [2.0]], dtype=torch.float64)

    def field(t, state):
        return -state[0], state[0][:, 0] ** 2

    (end, integral), _ = integrate(field, (z, z.new_zeros(2)), 0.0, 3.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(end, z * math.exp(-3), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(integral, z[:, 0] ** 2 * (1 - math.exp(-6)) / 2, rtol=1e-7, atol=1e-8)


def test_a_tensor_that_rests_does_not_loosen_the_tolerance_of_the_others():
    """Each tensor meets the tolerance by itself: one without an error changes neither a step nor a bit."""
    z = torch.randn(5, 3, dtype=torch.float64)

    def field(t, state):
        return (-3 * state[0] + t.sin()[:, None], *(torch.zeros_like(part) for part in state[1:]))

    (alone,), nfe = integrate(field, (z,), 0.0, 2.0)
    (beside, *_), evaluations = integrate(field, (z, torch.ones(5), torch.ones(5, 2)), 0.0, 2.0)
    assert torch.equal(alone, beside) and torch.equal(nfe, evaluations)


def test_a_sample_does_not_depend_on_its_batch():
    """The same solution and the same evaluations alone and among a thousand resting samples, which cost little."""
    z = torch.zeros(1000, 3, dtype=torch.float64)
    z[17] = 1.0
    (among,), nfe = integrate(linear, (z,), 0.0, 2.0, rtol=1e-6, atol=1e-6)
    (alone,), nfe_alone = integrate(linear, (z[17:18],), 0.0, 2.0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(among[17:18], alone, rtol=1e-12, atol=1e-12)
    assert nfe[17] == nfe_alone
    assert nfe[0] == 19 and nfe[17] > 60  # as few steps as the growth of the step allows, see the count above


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 30.0), min_size=1, max_size=6))
def test_samples_of_different_stiffness_and_their_context(rates):
    """dz/dt = −k z with a k of its own for each sample, handed over as context: all arrive, each with its own k."""
    k = torch.tensor(rates, dtype=torch.float64)
    z = torch.ones(len(k), 2, dtype=torch.float64)
    seen = []

    def field(t, state, k):
        seen.append(len(k))
        assert len(t) == len(state[0]) == len(k)
        return (-k[:, None] * state[0],)

    (result,), nfe = integrate(field, (z,), 0.0, 1.0, context=(k,), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(result, torch.exp(-k)[:, None].expand(-1, 2), rtol=1e-6, atol=1e-8)
    assert sum(seen) == nfe.sum()  # nothing is evaluated for samples that have arrived


def test_steps_adapt_to_a_stiff_stretch():
    """A bump of width 1e-3 within [0, 1] is not stepped over once it is met."""

    def field(t, state):
        return (1 / (1e-3 + (t[:, None] - 0.5).abs()) + 0 * state[0],)

    (value,), _ = integrate(field, (torch.zeros(1, 1, dtype=torch.float64),), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert value.item() == pytest.approx(2 * math.log((1e-3 + 0.5) / 1e-3), abs=1e-3)


def test_nothing_to_do():
    z = torch.ones(1, 2)
    (result,), nfe = integrate(linear, (z,), 0.7, 0.7)
    assert torch.equal(result, z) and nfe.tolist() == [0]


def test_keeps_dtype():
    (single,), _ = integrate(lambda t, s: (-s[0],), (torch.ones(2, 3),), 0.0, 1.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, torch.full((2, 3), math.exp(-1)), rtol=1e-4, atol=1e-4)


def test_too_few_steps_are_named():
    with pytest.raises(RuntimeError, match=r"did not reach t = 1 in max_steps = 3 steps"):
        integrate(linear, (torch.ones(1, 3, dtype=torch.float64),), 0.0, 1.0, rtol=1e-8, atol=1e-8, max_steps=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_field_that_is_not_finite_is_named(bad):
    with pytest.raises(RuntimeError, match=r"non-finite near t = 0\.[2-6]"):
        integrate(lambda t, s: (torch.where(t[:, None] > 0.5, bad, s[0]),), (torch.ones(1, 1),), 0.0, 1.0)


def test_a_blow_up_is_named():
    """dz/dt = z² from 1 ends at t = 1: the step shrinks there or the state overflows, and neither is silent."""
    with pytest.raises(RuntimeError, match=r"near t = (1|0\.9)"):
        integrate(lambda t, s: (s[0] ** 2,), (torch.ones(1, 1, dtype=torch.float64),), 0.0, 2.0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("drift", [None, linear])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_adams(order, drift):
    """The corrector is one order higher than the predictor; started low, at the price of a few steps."""
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = z @ torch.linalg.matrix_exp(2.0 * TURN).T
    steps = np.array([200, 300, 450])
    errors = [
        (adams(linear, (z,), 0.0, 2.0, steps=int(n), order=order, drift=drift)[0][0] - exact).abs().max().item()
        for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    start = 4 if drift else 3  # the order of the first steps
    assert min(order + 1, start) - 0.25 < slope < order + 1.6


@pytest.mark.parametrize("start, end", [(0.0, 2.0), (2.0, 0.0)])
def test_adams_integrates_polynomials_once_it_has_its_values(start, end):
    """Degree 1 from the first step on, by the trapezoid that the corrector then is; evaluations are counted."""
    calls = []

    def field(t, state):
        calls.append(t[0].item())
        return (3.0 * t[:, None] + 0 * state[0] + 1.0,)

    (value,), nfe, _ = adams(field, (torch.zeros(2, 1, dtype=torch.float64),), start, end, steps=7)
    assert value[0, 0].item() == pytest.approx(1.5 * (end**2 - start**2) + end - start, abs=1e-12)
    assert nfe == len(calls) == 8 and calls == pytest.approx(np.linspace(start, end, 8).tolist())


@pytest.mark.parametrize("drift, stable, unstable", [(False, 0.15, 0.18), (True, 0.93, 0.98)])
def test_where_adams_is_stable(drift, stable, unstable):
    """dz/dt = −k z over 1,000 steps of 1: it dies out below the stated k, and grows above."""

    def end(k):
        def decay(t, state):
            return (-k * state[0],)

        options = {"drift": decay} if drift else {}
        return adams(decay, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 1000.0, steps=1000, **options)[0][0].abs()

    assert end(stable) < 1e-2 and end(unstable) > 1e2


def test_parts_that_nothing_depends_on_are_followed_beside_a_drift():
    """(z, ∫ z) by the drift of z alone; what is watched is that of every point, and contexts are rows of samples."""
    k = torch.tensor([0.5, 2.0], dtype=torch.float64)
    calls = []

    def drift(t, state, k):
        calls.append(len(state))
        return (-k[:, None] * state[0],)

    def field(t, state, k):
        return -k[:, None] * state[0], state[0][:, 0]

    start = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    (z, integral), nfe, watched = adams(
        field, start, 0.0, 2.0, steps=40, drift=drift, context=(k,), watch=lambda state, slope: slope[1]
    )
    exact = (-k * 2).exp()
    torch.testing.assert_close(z[:, 0], exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(integral, (1 - exact) / k, rtol=1e-4, atol=0)
    assert nfe == 81 and len(calls) == 40
    torch.testing.assert_close(
        torch.stack(watched), (-k * torch.linspace(0, 2, 41).double()[:, None]).exp(), rtol=0, atol=3e-4
    )


# ── the solver's own error ───────────────────────────────────────────────────────────────────────────────────────


def test_unresolved_noise_is_three_of_its_deviations():
    """Σ step·noise has the deviation step·√n; smooth rates have next to none, and rounding is not taken for noise."""
    step, n = 0.1, 401
    noise = torch.randn(n, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = unresolved(noise, step)
    assert estimate.mean().item() == pytest.approx(3 * step * math.sqrt(n), rel=0.05)
    covered = (step * noise.sum(0)).abs() < estimate
    assert covered.double().mean() > 0.99
    t = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    assert unresolved((-(t**2)).exp(), 0.1) < 1e-4 and unresolved(torch.ones(9, 3), 0.1).eq(0).all()


def rippled(t, state, frequency):
    """A bump, and ripples that are ever quicker, as those of a network that sees sin(999 t) are on the clock."""
    return (0 * state[0] + (torch.exp(-(t**2)) + 0.05 * torch.sin(frequency * torch.exp(0.5 * t)))[:, None],)


def solved(frequency, **options):
    start = (torch.zeros(len(frequency), 1, dtype=torch.float64),)
    return solve(
        rippled,
        start,
        -4.0,
        4.0,
        watch=lambda state, slope: slope[0][:, 0],
        drift=rippled,
        context=(frequency,),
        **options,
    )


def test_the_stated_error_covers_ripples_that_are_not_resolved():
    """At frequencies far above that of the steps, against a quadrature that resolves them."""
    frequency = 100 + 100 * torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solved(frequency, tol=0.0, steps=48, most=48)
    t = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    exact = torch.trapezoid(rippled(t, (torch.zeros(1, 1),), frequency[:, None])[0][:, 0], t)
    off = (solution.state[0][:, 0] - exact).abs()
    assert off.mean() > 5e-3  # there is something to cover
    assert (off <= solution.error).double().mean() > 0.95 and solution.error.mean() < 8 * off.mean()


def test_each_sample_is_solved_in_its_own_steps():
    frequency = torch.tensor([0.0, 3.0, 220.0], dtype=torch.float64)
    solution = solved(frequency, tol=2e-4)
    assert solution.steps.tolist() == [64, 128, 256]
    assert solution.nfe.tolist() == [129, 129 + 257, 129 + 257 + 513]
    assert (solution.error[:2] <= 2e-4).all() and solution.error[2] > 2e-4
    alone = solved(frequency[1:2], tol=2e-4)
    assert torch.equal(alone.state[0][0], solution.state[0][1]) and alone.nfe == solution.nfe[1]


def test_what_is_not_finite_is_said():
    with pytest.raises(RuntimeError, match="non-finite in sample 1, in 128 steps"):
        solved(torch.tensor([0.0, math.nan], dtype=torch.float64), tol=1e-3, most=128)


# ── divergence ───────────────────────────────────────────────────────────────────────────────────────────────────


def curved(shape, dtype=torch.float64):
    """A nonlinear field whose Jacobian is dense, its trace by autograd."""
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(d)
    mix, back = torch.randn(2, d, d, dtype=dtype, generator=generator) / math.sqrt(d)

    def field(z):
        return (torch.sin(z.flatten(1) @ mix) @ back + 0.3 * z.flatten(1) ** 2).reshape(z.shape)

    def trace(z):
        jacobian = torch.func.jacrev(lambda one: field(one[None])[0].flatten())
        return torch.stack([jacobian(one).reshape(d, d).trace() for one in z])

    return field, trace


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (3, 2, 2)])
def test_basis_gives_the_trace_of_the_jacobian(shape):
    field, trace = curved(shape)
    z = torch.randn(4, *shape, dtype=torch.float64)
    with torch.no_grad():  # as in the likelihood
        value, divergence = value_and_divergence(field, z, basis(z))
    torch.testing.assert_close(value, field(z))
    torch.testing.assert_close(divergence, trace(z), rtol=1e-10, atol=1e-12)
    assert not value.requires_grad and not divergence.requires_grad and not z.requires_grad


def test_basis_is_the_basis():
    z = torch.zeros(3, 2, 2, 2)
    vectors = basis(z)
    assert vectors.shape == (3, 8, 2, 2, 2)
    for sample in range(3):
        assert torch.equal(vectors[sample].flatten(1), torch.eye(8))


@pytest.mark.parametrize("probes", [1, 2, 16])
def test_rademacher_probes_are_unbiased_with_the_known_variance(probes):
    """Var = Σ_{i≠j} (J + Jᵀ)_ij² / 2 over the number of probes."""
    field, trace = curved((3,))
    n = 40_000
    z = torch.randn(1, 3, dtype=torch.float64)
    many = z.expand(n, 3).contiguous()
    _, estimates = value_and_divergence(field, many, rademacher(many, probes, torch.Generator().manual_seed(1)))
    jacobian = torch.func.jacrev(lambda one: field(one[None])[0])(z[0])
    off = (jacobian + jacobian.T) / 2
    off = off - off.diag().diag()
    variance = 2 * off.square().sum() / probes
    assert (estimates.mean() - trace(z)[0]).abs() < 4.5 * (variance / n).sqrt()
    assert estimates.var().item() == pytest.approx(variance.item(), rel=0.05)


def test_rademacher_is_exact_for_a_diagonal_jacobian():
    z = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    _, divergence = value_and_divergence(lambda y: y**3, z, rademacher(z, 1))
    torch.testing.assert_close(divergence, 3 * z.square().flatten(1).sum(1))


def test_rademacher_entries():
    vectors = rademacher(torch.zeros(500, 7), 4, torch.Generator().manual_seed(0))
    assert vectors.shape == (500, 4, 7) and set(vectors.unique().tolist()) == {-0.5, 0.5}
    assert vectors.mean().abs() < 4.5 * 0.5 / math.sqrt(vectors.numel())
    again = rademacher(torch.zeros(500, 7), 4, torch.Generator().manual_seed(0))
    assert torch.equal(vectors, again)


def test_parameters_of_the_field_get_no_gradient():
    layer = torch.nn.Linear(3, 3)
    z = torch.randn(2, 3)
    value, divergence = value_and_divergence(lambda y: torch.tanh(layer(y)), z, basis(z))
    assert not value.requires_grad and not divergence.requires_grad
    assert layer.weight.grad is None
