"""The integrator against exact solutions and its order, the divergence against the autograd
Jacobian.
"""

import math

import numpy as np
import pytest
import torch

from indm import ode
from indm.ode import (
    adams,
    basis,
    converge,
    offsets,
    rademacher,
    solve,
    unresolved,
    unseen,
    value_and_divergence,
)

TURN = torch.tensor([[-0.3, -4.0, 0.1], [4.0, -0.3, 0.2], [0.0, 0.5, -1.0]], dtype=torch.float64)


def linear(t, state):
    return (state[0] @ TURN.T,)


@pytest.mark.parametrize("drift", [None, linear])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_adams(order, drift):
    """The corrector is one order higher than the predictor; started low, at the price of a few
    steps.
    """
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = z @ torch.linalg.matrix_exp(2.0 * TURN).T
    steps = np.array([200, 300, 450])
    errors = [
        (adams(linear, (z,), 0.0, 2.0, steps=int(n), order=order, drift=drift)[0][0] - exact)
        .abs()
        .max()
        .item()
        for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    start = 4 if drift else 3  # the order of the first steps
    assert min(order + 1, start) - 0.25 < slope < order + 1.6


@pytest.mark.parametrize("start, end", [(0.0, 2.0), (2.0, 0.0)])
def test_adams_integrates_polynomials_once_it_has_its_values(start, end):
    """Degree 1 from the first step on, by the trapezoid that the corrector then is; evaluations are
    counted.
    """
    calls = []

    def field(t, state):
        calls.append(t[0].item())
        return (3.0 * t[:, None] + 0 * state[0] + 1.0,)

    (value,), nfe, *_ = adams(field, (torch.zeros(2, 1, dtype=torch.float64),), start, end, steps=7)
    assert value[0, 0].item() == pytest.approx(1.5 * (end**2 - start**2) + end - start, abs=1e-12)
    assert nfe == len(calls) == 8 and calls == pytest.approx(np.linspace(start, end, 8).tolist())


@pytest.mark.parametrize("drift, stable, unstable", [(False, 0.15, 0.18), (True, 0.93, 0.98)])
def test_where_adams_is_stable(drift, stable, unstable):
    """dz/dt = −k z over 1,000 steps of 1: it dies out below the stated k, and grows above."""

    def end(k):
        def decay(t, state):
            return (-k * state[0],)

        options = {"drift": decay} if drift else {}
        return adams(
            decay, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 1000.0, steps=1000, **options
        )[0][0].abs()

    assert end(stable) < 1e-2 and end(unstable) > 1e2


def test_parts_that_nothing_depends_on_are_followed_beside_a_drift():
    """(z, ∫ z) by the drift of z alone; what is watched is that of every point, and contexts are
    rows of samples.
    """
    k = torch.tensor([0.5, 2.0], dtype=torch.float64)
    calls = []

    def drift(t, state, k):
        calls.append(len(state))
        return (-k[:, None] * state[0],)

    def field(t, state, k):
        return -k[:, None] * state[0], state[0][:, 0]

    start = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    (z, integral), nfe, watched, others = adams(
        field,
        start,
        0.0,
        2.0,
        steps=40,
        drift=drift,
        context=(k,),
        watch=lambda state, slope: slope[1],
        between={1: 0.5, 20: 0.25, 40: 0.75},
    )
    exact = (-k * 2).exp()
    torch.testing.assert_close(z[:, 0], exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(integral, (1 - exact) / k, rtol=1e-4, atol=0)
    assert nfe == 84 and len(calls) == 40
    within = torch.tensor([[0.5], [19.25], [39.75]], dtype=torch.float64) / 20
    torch.testing.assert_close(torch.stack(others), (-k * within).exp(), rtol=0, atol=3e-4)
    torch.testing.assert_close(
        torch.stack(watched),
        (-k * torch.linspace(0, 2, 41).double()[:, None]).exp(),
        rtol=0,
        atol=3e-4,
    )


# ── the solver's own error ────────────────────────────────────────────────────────────────────────


def test_unresolved_noise_is_three_of_its_deviations():
    """Σ step·noise has the deviation step·√n; smooth rates have next to none, and rounding is not
    taken for noise.
    """
    step, n = 0.1, 401
    noise = torch.randn(n, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = unresolved(noise, step)
    assert estimate.mean().item() == pytest.approx(3 * step * math.sqrt(n), rel=0.05)
    covered = (step * noise.sum(0)).abs() < estimate
    assert covered.double().mean() > 0.99
    assert unresolved(noise[:64], step).mean().item() == pytest.approx(6 * step * 8, rel=0.08)
    t = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    assert unresolved((-(t**2)).exp(), 0.1) < 1e-4 and unresolved(torch.ones(9, 3), 0.1).eq(0).all()


def rippled(t, state, frequency):
    """A bump, and ripples that are ever quicker, as those of a network that sees sin(999 t) are on
    the clock.
    """
    return (
        0 * state[0]
        + (torch.exp(-(t**2)) + 0.05 * torch.sin(frequency * torch.exp(0.5 * t)))[:, None],
    )


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
    frequency = 100 + 100 * torch.rand(
        400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    solution = solved(frequency, tol=0.0, steps=48, most=48)
    t = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    exact = torch.trapezoid(rippled(t, (torch.zeros(1, 1),), frequency[:, None])[0][:, 0], t)
    off = (solution.state[0][:, 0] - exact).abs()
    assert off.mean() > 5e-3  # there is something to cover
    assert (off <= solution.error).double().mean() > 0.95 and solution.error.mean() < 8 * off.mean()


@pytest.mark.filterwarnings("ignore:the ODE")
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_stated_error_covers_ripples_that_are_as_quick_as_the_steps(turns):
    """sin(kt + φ) with the period of a step, or half or a third of it, is the same number at all
    points, in twice as many steps, too; its integral is known.
    """
    phase = torch.linspace(0.0, 6.0, 40, dtype=torch.float64)[:, None]
    k = 2 * math.pi * turns / (8 / 64)

    def field(t, state, phase):
        return (0 * state[0] + 0.01 * torch.sin(k * t[:, None] + phase),)

    start, options = (
        torch.zeros(40, 1, dtype=torch.float64),
        {"watch": lambda state, slope: slope[0][:, 0]},
    )
    solution = solve(
        field, (start,), -4.0, 4.0, drift=field, context=(phase,), tol=1e-3, most=64, **options
    )
    exact = 0.01 * ((phase - 4 * k).cos() - (phase + 4 * k).cos()) / k
    off = (solution.state[0] - exact)[:, 0].abs()
    assert (
        off.max() > 0.05 and (off <= solution.error).all() and solution.error.max() < 10 * off.max()
    )


def test_what_the_points_show_is_not_counted_again():
    """Smooth rates, and noise of which the points show as much as what lies between them."""
    t = torch.linspace(-4, 4, 65, dtype=torch.float64)
    within = torch.tensor(
        [t[i - 1] + share / 8 for i, share in offsets(64).items()], dtype=torch.float64
    )
    assert len(within) == 8 and (within.diff() > 0).all()
    smooth = [torch.exp(-(times**2))[:, None] for times in (t, within)]
    assert (
        unseen(*smooth, 1 / 8).item() == 0
        and unseen(smooth[0], smooth[1] + 0.1, 1 / 8).item() > 0.1 * 8
    )
    noise = torch.randn(73, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (unseen(noise[:65], noise[65:], 1 / 8) > 0).double().mean() < 0.05


def test_a_smooth_field_is_judged_less_cautiously_where_it_can_be_judged():
    """By the square root of twice the ratio of the deviations; noise has a ratio of ½, and is
    judged alike.
    """

    def both(steps, rates):
        cautious, bold = (unresolved(rates, 8 / steps, smooth=smooth) for smooth in (False, True))
        return (cautious / 2 if steps < 64 else cautious), bold  # six deviations in few steps

    for steps, counts in ((16, False), (24, True), (32, True), (96, True), (128, False)):
        t = torch.linspace(-4, 4, steps + 1, dtype=torch.float64)[:, None]
        cautious, bold = both(steps, torch.exp(-(t**2)))
        fine, coarse = (
            k * (torch.exp(-(v**2)).diff(n=4, dim=0) ** 2).sum().sqrt()
            for k, v in ((1, t), (2, t[::2]))
        )
        assert (bold / cautious).item() == pytest.approx(
            min(1.0, (2 * fine / coarse).item()) ** (0.5 * counts)
        )
    noise = torch.randn(33, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cautious, bold = both(32, noise)
    assert (bold / cautious).mean() > 0.9
    easy = torch.zeros(3, dtype=torch.float64)  # no ripples at all
    assert [int(solved(easy, tol=1e-3, smooth=smooth).nfe[0]) for smooth in (True, False)] == [
        69,
        137,
    ]


def test_the_stated_error_covers_rounding():
    """A field that is resolved, in single precision: what is left is its rounding."""
    shift = torch.linspace(0, 100, 200, dtype=torch.float64)

    def field(t, state, shift):
        return ((shift + torch.sin(t)).to(state[0])[:, None] + 0 * state[0],)

    def solved_in(dtype):
        options = {
            "watch": lambda state, slope: slope[0][:, 0],
            "drift": field,
            "context": (shift,),
        }
        return solve(
            field,
            (torch.zeros(200, 1, dtype=dtype),),
            0.0,
            7.0,
            tol=0.0,
            steps=256,
            most=256,
            **options,
        )

    single, exact = solved_in(torch.float32), solved_in(torch.float64)
    off = (single.state[0] - exact.state[0])[:, 0].abs()
    assert off.max() > 1e-5 and (off <= single.error).all()
    assert single.error.max() < 1e-2 and exact.error.max() < 1e-8


def test_each_sample_is_solved_in_its_own_steps():
    frequency = torch.tensor([0.0, 3.0, 220.0], dtype=torch.float64)
    with pytest.warns(RuntimeWarning) as caught:
        solution = solved(frequency, tol=2e-4)
    assert len(caught) == 1 and str(caught[0].message).endswith(
        "after 410 evaluations, the last of them in 128 steps, and will hardly come below 0.0002 nats for 1 of 2 "
        "samples; up to 256 steps are tried"
    )
    assert solution.steps.tolist() == [64, 128, 256]
    assert solution.nfe.tolist() == [137, 137 + 273, 137 + 273 + 545]
    assert (solution.error[:2] <= 2e-4).all() and solution.error[2] > 2e-4
    alone = solved(frequency[1:2], tol=2e-4)  # without a warning
    assert torch.equal(alone.state[0][0], solution.state[0][1]) and alone.nfe == solution.nfe[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(value):
    with pytest.raises(RuntimeError, match="non-finite in sample 1, in 128 steps"):
        solved(torch.tensor([0.0, value], dtype=torch.float64), tol=1e-3, most=128)


# ── a state to a tolerance ────────────────────────────────────────────────────────────────────────


def turned(tol, start=0.0, end=2.0):
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = converge(linear, (z,), start, end, tol=tol)
    exact = z @ torch.linalg.matrix_exp((end - start) * TURN).T
    return solution, (solution.state[0] - exact).square().mean(1).sqrt()


@pytest.mark.parametrize("start, end", [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5), (0.3, -0.9)])
@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4])
def test_the_state_is_within_its_stated_error_and_that_within_the_tolerance(start, end, tol):
    solution, off = turned(tol, start, end)
    assert (solution.error <= tol).all() and (off <= solution.error).all()
    assert off.max() > tol / 1e4  # no more steps than it takes


@pytest.mark.filterwarnings("ignore:the ODE")
@pytest.mark.parametrize(
    "frequency, least, most", [(3.0, 1.0, 1.0), (10.0, 1.0, 3.0), (137.0, 3.0, 3.0)]
)
def test_the_error_is_the_last_change_and_up_to_three_of_it_where_changes_do_not_shrink(
    frequency, least, most
):
    """By hand from :func:`adams` in 16, 32 and 64 steps."""

    def field(t, state):
        return (torch.sin(frequency * t)[:, None] + 0 * state[0],)

    zero = torch.zeros(1, 1, dtype=torch.float64)
    ends = [adams(field, (zero,), 0.0, 4.0, steps=n)[0][0].item() for n in (16, 32, 64)]
    before, change = np.abs(np.diff(ends))
    solution = converge(field, (zero,), 0.0, 4.0, tol=1e-4 * change, first=16, most=64)
    assert solution.error.item() == pytest.approx(
        change * max(1.0, min(3.0, 6 * change / before)), rel=1e-9
    )
    assert least <= solution.error.item() / change * (
        1 + 1e-9
    ) and solution.error.item() / change <= most * (1 + 1e-9)
    assert (
        solution.state[0].item() == ends[2]
        and solution.steps.item() == 64
        and solution.nfe.item() == 17 + 33 + 65
    )


def test_each_part_of_the_state_meets_the_tolerance():
    """One that rests changes nothing; one of another scale decides."""
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def field(t, state):
        return (
            -3 * state[0] + t.sin()[:, None],
            *(factor * state[0] for factor in (0.0, 1e4)[: len(state) - 1]),
        )

    alone, beside, large = (
        converge(field, (z, *(torch.zeros_like(z),) * others), 0.0, 2.0, tol=1e-4)
        for others in range(3)
    )
    assert torch.equal(alone.state[0], beside.state[0]) and torch.equal(alone.nfe, beside.nfe)
    assert (large.nfe > alone.nfe).all()


def test_keeps_dtype_and_states_no_error_below_its_rounding():
    solution = converge(lambda t, s: (-s[0],), (torch.ones(2, 3),), 0.0, 1.0, tol=1e-6)
    assert (
        solution.state[0].dtype == torch.float32
        and (solution.error == ode.ROUNDING_UNITS * 2.0**-23).all()
    )
    torch.testing.assert_close(
        solution.state[0], torch.full((2, 3), math.exp(-1)), rtol=0, atol=1e-6
    )


def test_a_tolerance_out_of_reach_is_said_early_and_the_steps_end():
    """Ripples far above the steps: warned of at a quarter of the work and at the end; the error
    covers the true one.
    """
    t = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    frequency = torch.tensor([200.0], dtype=torch.float64)
    exact = torch.trapezoid(rippled(t, (torch.zeros(1, 1),), frequency)[0][:, 0], t)

    def field(t, state):
        return rippled(t, state, frequency)

    with pytest.warns(RuntimeWarning) as caught:
        solution = converge(
            field, (torch.zeros(1, 1, dtype=torch.float64),), -4.0, 4.0, tol=1e-6, most=512
        )
    first, last = str(caught[0].message), str(caught[-1].message)
    assert (
        "in 128 steps, and will hardly come below 1e-06 for 1 of 1 samples; up to 512 steps are tried"
        in first
    )
    assert (
        "after 1023 evaluations, the last of them in 512 steps" in last
        and "; these are the most" in last
    )
    assert (
        solution.steps.item() == 512
        and 1e-6 < (solution.state[0][0, 0] - exact).abs() < solution.error
    )


@pytest.mark.filterwarnings("ignore:the ODE")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_said(value):
    with pytest.raises(RuntimeError, match="non-finite in sample 1, in 16 steps"):
        slope = torch.tensor([[0.0], [value]], dtype=torch.float64)
        converge(
            lambda t, s: (slope + s[0],), (torch.ones(2, 1).double(),), 0.0, 1.0, tol=1e-3, most=16
        )


@pytest.mark.filterwarnings("ignore:the ODE")
def test_coarse_steps_may_overflow():
    def steep(t, state):
        return (torch.where(state[0].abs() > 3, math.inf, -40 * state[0]),)

    solution = converge(steep, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 1.0, tol=1e-6)
    assert solution.state[0].item() == pytest.approx(math.exp(-40), abs=1e-6)


# ── divergence ────────────────────────────────────────────────────────────────────────────────────


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
        value, divergence = value_and_divergence(field, z.requires_grad_(), basis(z))
    torch.testing.assert_close(value, field(z))
    torch.testing.assert_close(divergence, trace(z), rtol=1e-10, atol=1e-12)
    assert not value.requires_grad and not divergence.requires_grad


@pytest.mark.parametrize("probes", [1, 2, 16])
def test_rademacher_probes_are_unbiased_with_the_known_variance(probes):
    """Var = Σ_{i≠j} (J + Jᵀ)_ij² / 2 over the number of probes."""
    field, trace = curved((3,))
    n = 40_000
    z = torch.randn(1, 3, dtype=torch.float64)
    many = z.expand(n, 3).contiguous()
    _, estimates = value_and_divergence(
        field, many, rademacher(many, probes, torch.Generator().manual_seed(1))
    )
    jacobian = torch.func.jacrev(lambda one: field(one[None])[0])(z[0])
    off = (jacobian + jacobian.T) / 2
    off = off - off.diag().diag()
    variance = 2 * off.square().sum() / probes
    assert (estimates.mean() - trace(z)[0]).abs() < 4.5 * (variance / n).sqrt()
    assert estimates.var().item() == pytest.approx(variance.item(), rel=0.05)


def test_value_and_divergence_can_be_differentiated():
    """In the point and in the field's parameters, where gradients are on: tanh(W z) has divergence
    Σ W_ii/cosh².
    """
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    value, divergence = value_and_divergence(lambda y: torch.tanh(y @ weight.T), z, basis(z))
    found = torch.autograd.grad(value.sin().sum() + divergence.sum(), (z, weight))
    y = z @ weight.T
    expected = torch.autograd.grad(
        y.tanh().sin().sum() + (weight.diag() / y.cosh() ** 2).sum(), (z, weight)
    )
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert not any(
            part.requires_grad for part in value_and_divergence(lambda y: y @ weight.T, z, basis(z))
        )
