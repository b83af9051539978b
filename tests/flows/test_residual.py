"""Residual flows: estimators, Lipschitz constraint and inverse, against dense matrices and exact
determinants.
"""

import dataclasses
import functools
import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

import indm
from indm.flows import (
    ActNorm,
    Compose,
    ExactLogDet,
    PowerSeries,
    ResidualBlock,
    ResidualFlow,
    use_log_det,
)
from indm.flows.residual import ActivationName, ContractiveLinear, activation_of, convolution_norm

ESTIMATORS = {
    "default": PowerSeries(1, 1.0, share=16),
    "training": PowerSeries(2, 2.0),
    "evaluation": PowerSeries(20, 2.0),
    "all roulette": PowerSeries(0, 4.0),
    "three probes": PowerSeries(1, 3.0, probes=3),
}


def seeded(n):
    return torch.Generator().manual_seed(n)


def randomize(module, scale, seed=0):
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


# ---------------------------------------------------------------- estimators of log|det(I + J)|


class Dense:
    """J(x) = diag(cos x) A for each sample, by matrix products, with a graph to A and x."""

    def __init__(self, d=5, norm=0.7, batch=2):
        a = torch.randn(d, d, dtype=torch.float64, generator=seeded(1))
        self.a = (norm * a / torch.linalg.matrix_norm(a, 2)).requires_grad_()
        self.x = torch.randn(batch, d, dtype=torch.float64, generator=seeded(2)).requires_grad_()

    def jacobian(self):
        return self.x.cos()[:, :, None] * self.a

    def _apply(self, matrices, v):
        batch = len(self.x)
        return torch.einsum("bij,kbj->kbi", matrices, v.reshape(-1, batch, v.shape[1])).reshape(
            v.shape
        )

    def jvp(self, v):
        return self._apply(self.jacobian(), v)

    def vjp(self, u):
        return self._apply(self.jacobian().mT, u)

    def exact(self):
        return torch.linalg.slogdet(
            torch.eye(self.a.shape[0], dtype=torch.float64) + self.jacobian()
        )[1]

    def estimate(self, log_det, generator):
        return log_det(self.jvp, self.vjp, self.x, generator)


def enumerated(monkeypatch, estimator, d, estimate):
    """E over probes and roulette, without sampling, of what ``estimate`` gives for a batch of 2ᵈ
    copies of one sample.

    The copies have all the 2ᵈ probes there are (a further probe of each copy is that of the next
    one), and the numbers of terms come one after the other, weighted by their probabilities, up to
    where no more than 1e-9 is left.
    """
    signs = torch.tensor(list(itertools.product((0, 1), repeat=d)), dtype=torch.int8)
    bits = torch.stack([signs.roll(i, 0) for i in range(estimator.probes)], 1)
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, **_: bits.reshape(shape))
    law = stats.poisson(estimator.further_terms)
    mean = 0.0
    for further in range(int(law.isf(1e-9)) + 1):
        monkeypatch.setattr(
            torch, "poisson", lambda mean, generator=None, n=further: torch.tensor(float(n))
        )
        mean = mean + law.pmf(further) * estimate()
    return mean


@pytest.mark.parametrize("preactivate", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_expected_value_and_gradient_are_those_of_the_log_det(name, preactivate, monkeypatch):
    """Of a block, by enumeration: log|det(I + J)| with J by autograd, and its gradient to
    parameters and x.
    """
    d, estimator = 4, dataclasses.replace(ESTIMATORS[name], share=1)
    block = ResidualBlock((d,), 8, 2.0, 0.98, preactivate).double()
    randomize(block, 1.0)
    with torch.no_grad():
        for linear in block.maps:
            linear.bias *= 0.03  # near 0, where the activation is steep
    assert name != "default" or block.training_log_det == ESTIMATORS[name]
    use_log_det(block, training=estimator)
    x = (0.03 * torch.randn(1, d, dtype=torch.float64, generator=seeded(3))).requires_grad_()
    leaves = [x, *block.parameters()]

    def with_gradients(log_det):
        gradients = torch.autograd.grad(log_det, leaves, materialize_grads=True)
        return torch.cat([log_det.detach()[None], *(g.flatten() for g in gradients)])

    jacobian = torch.autograd.functional.jacobian(
        lambda v: block.latent(v[None])[0], x[0], create_graph=True
    )
    exact = with_gradients(jacobian.slogdet().logabsdet)
    norm = torch.linalg.matrix_norm(jacobian.detach() - torch.eye(d), 2)
    assert 0.1 < norm < 0.4, (
        f"{norm}: what is left out is of the order of norm¹², and the second power is seen"
    )
    copies = 2**d
    mean = enumerated(
        monkeypatch,
        estimator,
        d,
        lambda: with_gradients(block(x.expand(copies, d), generator=seeded(0))[1].mean()),
    )
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-7)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-0.95, 0.95), min_size=1, max_size=6), st.integers(1, 30), st.integers(1, 3)
)
def test_truncated_series_is_within_its_stated_bound(eigenvalues, terms, probes):
    """For a diagonal J every probe is exact: what is left is the truncation, of value and of
    gradient.
    """
    slopes = torch.tensor([eigenvalues], dtype=torch.float64, requires_grad=True)
    d, bound = len(eigenvalues), max(abs(s) for s in eigenvalues)

    def product(v):
        return (v.reshape(-1, 1, d) * slopes).reshape(v.shape)

    value = PowerSeries(terms, 0.0, probes)(
        product, product, torch.zeros(1, d, dtype=torch.float64)
    )
    (gradient,) = torch.autograd.grad(value.sum(), slopes)
    partial = sum((-1) ** (k + 1) * slopes.detach() ** k / k for k in range(1, terms + 1)).sum()
    neumann = sum((-slopes.detach()) ** k for k in range(terms + 1))
    assert value.item() == pytest.approx(partial.item(), abs=1e-12)
    torch.testing.assert_close(gradient, neumann, rtol=1e-12, atol=1e-12)
    error = abs(value.item() - sum(math.log1p(s) for s in eigenvalues))
    assert error <= d * bound ** (terms + 1) / ((terms + 1) * (1 - bound)) + 1e-12


@settings(max_examples=40)
@given(st.integers(0, 20), st.floats(0.1, 12.0), st.integers(0, 2**31))
def test_roulette_coefficients_are_poisson_survival_probabilities(exact_terms, mean, seed):
    coefficients = PowerSeries(exact_terms, mean).coefficients(seeded(seed))
    assert coefficients[:exact_terms] == [1.0] * exact_terms
    for n, coefficient in enumerate(coefficients[exact_terms:], start=1):
        assert 1 / coefficient == pytest.approx(stats.poisson.sf(n - 1, mean), rel=1e-3)


def test_exact_log_det_has_exact_gradients():
    problem = Dense()
    value, exact = problem.estimate(ExactLogDet(), None), problem.exact()
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        *(torch.autograd.grad(v.sum(), [problem.a, problem.x]) for v in (value, exact)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_generator_makes_it_repeatable_and_leaves_the_global_state_alone():
    flow = randomize(ResidualFlow((1, 8, 8), (1, 1), 8), 0.3)
    use_log_det(flow, evaluation=PowerSeries(2, 2.0))
    flow.eval()
    x, state = torch.randn(2, 1, 8, 8), torch.get_rng_state()
    first, again, other = (flow(x, generator=seeded(s))[1] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_are_exact_where_that_is_cheap():
    kinds = {}
    for shape in [(3,), (4,), (1, 8, 8), (65,)]:
        block = ResidualFlow(shape, (1,), 8).flows[0]
        kinds[shape] = (type(block.training_log_det), type(block.evaluation_log_det))
    assert kinds[(3,)] == (ExactLogDet, ExactLogDet)
    assert kinds[(4,)] == kinds[(1, 8, 8)] == (PowerSeries, ExactLogDet)
    assert kinds[(65,)] == (PowerSeries, PowerSeries)


@pytest.mark.parametrize("shape", [(5,), pytest.param((2, 4, 4), marks=pytest.mark.long)], ids=str)
def test_a_shared_log_det_is_unbiased_for_every_sample(shape):
    """Fifteen copies of each sample stand at places of all three kinds, so a draw has five
    estimates of each.
    """
    block = block_of(shape).double().train()
    x = torch.randn(6, *shape, dtype=torch.float64)
    use_log_det(block, training=ExactLogDet())
    exact = block(x)[1].detach()
    use_log_det(block, training=PowerSeries(8, 1.0, probes=4, share=3))
    index = (torch.arange(6) + torch.arange(15)[:, None]) % 6
    with torch.no_grad():
        draws = torch.stack([block(x[index.flatten()], generator=seeded(i))[1] for i in range(250)])
    assert ((draws != 0).sum(1) == 30).all()
    # in all draws together, each place is as likely as the others
    chosen = (draws[:, :3] != 0).double()
    assert bool(((chosen.mean(0) - 1 / 3).abs() < 4.5 * math.sqrt(2 / 9 / len(draws))).all())
    means = torch.stack([draws[:, index.flatten() == i].mean(1) for i in range(6)], dim=1)
    error = means.std(0) / math.sqrt(len(means))
    assert bool((error < 0.1 * exact.abs().max()).all()) and bool(
        ((means.mean(0) - exact).abs() < 4.5 * error).all()
    )


@pytest.mark.parametrize("shape", [(5,), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("preactivate", [False, True])
def test_a_block_is_its_formula(shape, preactivate):
    """x + W₃ φ W₂ φ W₁ (φ), written out; inside, the factors of φ are taken into the weights."""
    block = ResidualBlock(shape, 16, 2.0, 0.9, preactivate).double()
    randomize(block, 0.5)
    x = torch.randn(4, *shape, dtype=torch.float64)
    h = x
    for i, linear in enumerate(block.maps):
        h = torch.sin(2 * math.pi * h) / (2 * math.pi) if i > 0 or preactivate else h
        h = linear.apply_weight(h, linear.constrained_weight(), linear.bias)
    torch.testing.assert_close(block(x)[0], x + h)
    torch.testing.assert_close(block.latent(x), x + h)


def test_use_log_det_leaves_the_other_mode_as_it_is():
    flow = Compose([ActNorm(5), ResidualFlow((5,), (1, 2), 8)])
    before = [b.evaluation_log_det for b in flow.modules() if isinstance(b, ResidualBlock)]
    use_log_det(flow, training=PowerSeries(7, 0.0))
    blocks = [b for b in flow.modules() if isinstance(b, ResidualBlock)]
    assert len(blocks) == 3 and all(b.training_log_det == PowerSeries(7, 0.0) for b in blocks)
    assert [b.evaluation_log_det for b in blocks] == before


# ---------------------------------------------------------------- the norm of a convolution


def random_weight(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def spectral_norm(matrix):
    """By the eigenvalues of the smaller Gram matrix."""
    small = matrix if matrix.shape[0] > matrix.shape[1] else matrix.T
    return math.sqrt(torch.linalg.eigvalsh(small.T @ small)[-1].clamp_min(0).item())


def dense_convolution(weight, height, width, mode="constant"):
    """The matrix of a convolution on images, by applying it to the basis; ``mode`` is that of the
    padding.
    """
    inputs, pad = weight.shape[1], weight.shape[-1] // 2
    d = inputs * height * width
    basis = torch.eye(d, dtype=weight.dtype).reshape(d, inputs, height, width)
    return (
        torch.nn.functional.conv2d(torch.nn.functional.pad(basis, (pad,) * 4, mode), weight)
        .reshape(d, -1)
        .T
    )


def norm_at_every_frequency(weight, frequencies):
    return torch.linalg.svdvals(torch.fft.fft2(weight, s=(frequencies,) * 2).permute(2, 3, 0, 1))[
        ..., 0
    ].amax()


def rotating_weight(kernel=3, angle=math.pi / 32):
    """2→2 channels as complex numbers: the symbol peaks midway between two frequencies of the grid,
    on both axes.
    """
    taps = angle * torch.arange(kernel, dtype=torch.float64)
    turn = taps[:, None] + taps
    return torch.stack(
        [torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])]
    )


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(2, 16),
    st.integers(2, 16),
)
def test_zero_padded_norms_are_bounded(seed, outputs, inputs, height, width):
    inputs = inputs if height * width <= 100 else 1
    weight = random_weight(outputs, inputs, 3, 3, seed=seed)
    assert spectral_norm(dense_convolution(weight, height, width)) <= convolution_norm(
        weight
    ).item() * (1 + 1e-12)


@pytest.mark.parametrize("inputs, outputs", [(1, 2), (2, 3)])
def test_convolution_norm_is_that_of_a_periodic_image_of_the_grids_size(inputs, outputs):
    weight = random_weight(outputs, inputs, 3, 3)
    matrix = csr_array(dense_convolution(weight, 32, 32, "circular").numpy())
    start = torch.randn(matrix.shape[1], dtype=torch.float64).numpy()
    expected = math.sqrt(eigsh(matrix.T @ matrix, 1, v0=start, return_eigenvectors=False)[0])
    assert convolution_norm(weight).item() == pytest.approx(expected, rel=1e-9)


def test_between_the_frequencies_the_norm_is_less_than_two_percent_larger():
    worst = 0.0
    for weight in [
        rotating_weight(),
        *(random_weight(2, 1 + seed % 2, 3, 3, seed=seed) for seed in range(12)),
    ]:
        ratio = (norm_at_every_frequency(weight, 256) / convolution_norm(weight)).item()
        assert 1 - 1e-12 <= ratio < 1.02
        worst = max(worst, ratio)
    assert worst > 1.005, "a case between the frequencies is among them"


@settings(max_examples=80)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (12, 7), (16, 16)]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-4, 4),
    st.sampled_from(["dense", "sparse", "rank one", "one tap", "one output"]),
)
def test_no_frequency_is_overlooked(seed, channels, kernel, dtype, exponent, kind):
    """Against singular values at every frequency: leaving out those that cannot lead loses nothing."""
    weight = random_weight(*channels, kernel, kernel, seed=seed)
    if kind == "sparse":
        weight *= torch.rand(weight.shape, generator=seeded(seed)) < 0.1
    elif kind == "rank one":
        weight = weight[:, :1] * weight[:1]
    elif kind == "one tap":
        weight.flatten(2)[..., 1:] = 0
    elif kind == "one output":
        weight[1:] = 0
    weight = (10**exponent * weight).to(dtype)
    expected = norm_at_every_frequency(weight.double(), 32).item()
    precision = 1e-5 if dtype == torch.float32 else 1e-11
    assert convolution_norm(weight).item() == pytest.approx(expected, rel=precision, abs=0)


@pytest.mark.parametrize("channels", [(1, 1), (2, 3), (7, 4), (1, 5), (12, 12)], ids=str)
def test_gradient_of_a_convolutions_norm(channels):
    weight = random_weight(*channels, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(convolution_norm(weight), weight)
    (expected,) = torch.autograd.grad(norm_at_every_frequency(weight, 32), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    direction = random_weight(*weight.shape, seed=1)
    ahead, behind = (
        convolution_norm(weight.detach() + step * direction).item() for step in (1e-6, -1e-6)
    )
    assert (gradient * direction).sum().item() == pytest.approx(
        (ahead - behind) / 2e-6, rel=1e-5, abs=1e-6
    )


# ---------------------------------------------------------------- the constraint


def true_norm(linear, weight, shape):
    """Of the map on events of ``shape``, by its matrix in double precision; a 1×1 kernel acts on
    one pixel.
    """
    weight = weight.detach().double()
    matrix = weight.flatten(1) if linear.padding == 0 else dense_convolution(weight, *shape[1:])
    return matrix.abs().sum(1).max().item() if linear.norm == math.inf else spectral_norm(matrix)


def maps_of(flow, shape):
    """(block, [(map, its input shape), …]) of a residual flow that takes events of ``shape``."""
    for part in flow.flows:
        if isinstance(part, ResidualBlock):
            hidden = (part.maps[0].weight.shape[0], *shape[1:])
            yield part, list(zip(part.maps, [shape, hidden, hidden], strict=True))
        else:
            with torch.no_grad():
                shape = tuple(part(torch.zeros(1, *shape))[0].shape[1:])


def assert_norms_hold(flow, shape, coeff):
    """Each map that is applied has a true norm of at most ``coeff``, in training and in evaluation
    alike.
    """
    for _, maps in maps_of(flow, shape):
        for linear, event in maps:
            constrained = linear.eval().constrained_weight()
            assert torch.equal(linear.train().constrained_weight(), constrained)
            assert true_norm(linear, constrained, event) <= coeff * (1 + 1e-6)


@pytest.mark.parametrize(
    "shape", [(2,), (5,), (1, 8, 8), (2, 6, 10), (3, 2, 2), (1, 16, 16), (1, 2, 14)], ids=str
)
@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 100.0])
def test_norms_hold_for_any_parameters(shape, norm, scale):
    flow = randomize(ResidualFlow(shape, (1, 1), 6, norm, 0.9), scale)
    assert_norms_hold(flow, shape, 0.9)
    for _, maps in maps_of(flow, shape):
        for linear, event in maps:
            constrained = linear.constrained_weight()
            if linear.induced_norm() <= 0.9:
                assert torch.equal(constrained, linear.weight), (
                    "a map within the bound is left alone"
                )
            elif linear.padding == 0 or (norm == math.inf and min(event[1:]) > 2):
                assert true_norm(linear, constrained, event) >= 0.9 * (1 - 1e-5), (
                    "no tighter than it must be"
                )


@pytest.mark.parametrize("shape", [(5,), (2, 6, 10)], ids=str)
def test_norm_of_rows_divides_each_row_by_its_own_sum(shape):
    flow = randomize(ResidualFlow(shape, (1, 1), 6, "rows", 0.9), 0.3)
    for linear in (m for m in flow.modules() if isinstance(m, ContractiveLinear)):
        with torch.no_grad():
            linear.weight[0] *= 1e-3
        free, bound = linear.weight.flatten(1), linear.constrained_weight().flatten(1)
        sums = free.abs().sum(1)
        torch.testing.assert_close(bound.abs().sum(1), sums.clamp(max=0.9), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            bound * sums[:, None], free * bound.abs().sum(1)[:, None], rtol=1e-5, atol=1e-6
        )
        assert torch.equal(bound[0], free[0]), "a small row is left alone, whatever the others are"


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_activations_have_the_slope_of_autograd_which_is_at_most_one(name):
    phi = activation_of(name).double()
    v = torch.linspace(-6, 6, 2001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(phi(v).sum(), v)
    torch.testing.assert_close(phi.slope(phi.frequency * v), slope, rtol=1e-9, atol=1e-9)
    assert slope.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(5,), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_slope_of_a_block_is_that_of_its_maps(shape, norm):
    block = block_of(shape, scale=100.0, norm=norm).double()
    weights = [linear.constrained_weight().detach() for linear in block.maps]
    x = torch.randn(4, *shape, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: (block.latent(v[None]) - v)[0]))(x)
    jacobian = jacobian.reshape(4, x[0].numel(), -1)
    slope = torch.linalg.svdvals(jacobian).max() if norm == 2 else jacobian.abs().sum(2).max()
    events = [shape, (16, *shape[1:]), (16, *shape[1:])]
    bound = math.prod(map(true_norm, block.maps, weights, events))
    assert 0.005 * bound < slope.item() <= bound * (1 + 1e-9) <= 0.98**3 * (1 + 1e-6)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("shape, out, kernel", [((4,), 6, 3), ((2, 5, 4), 3, 3), ((3, 4, 4), 5, 1)])
def test_transpose_and_gradient_of_the_norm(shape, out, kernel, norm):
    linear = randomize(ContractiveLinear(shape, out, kernel, norm, 0.9), 1.0).double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    image = linear.apply_weight(x, linear.weight)
    y = torch.randn_like(image)
    back = linear.apply_transpose(y, linear.weight)
    torch.testing.assert_close((image * y).flatten(1).sum(1), (x * back).flatten(1).sum(1))

    def norm_of(weight):
        linear.weight = torch.nn.Parameter(weight.detach())
        value = linear.induced_norm()
        (slope,) = torch.autograd.grad(value, linear.weight)
        return value.detach(), slope

    weight, direction = linear.weight.detach(), torch.randn_like(linear.weight)
    slope = (norm_of(weight)[1] * direction).sum().item()
    ahead, behind = (norm_of(weight + step * direction)[0].item() for step in (1e-6, -1e-6))
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape, kernel", [((4,), 3), ((2, 4, 4), 1), ((2, 4, 4), 3)])
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_a_zero_map_has_norm_zero_and_a_finite_gradient(shape, kernel, norm):
    linear = randomize(ContractiveLinear(shape, 4, kernel, norm, 0.9), 0.0)
    value = linear.induced_norm()
    value.backward()
    assert value.item() == 0 and bool(linear.weight.grad.isfinite().all())
    linear.weight.grad = None
    linear.constrained_weight().sum().backward()
    assert torch.equal(linear.weight.grad, torch.ones_like(linear.weight))


def test_built_and_used_in_inference_mode():
    with torch.inference_mode():
        flow = randomize(ResidualFlow((5,), (2,), 8), 0.3).eval()
        x = torch.randn(3, 5)
        torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the inverse


def block_of(shape=(5,), seed=0, scale=0.5, norm=2.0):
    return randomize(ResidualBlock(shape, 16, norm, 0.98, True), scale, seed).eval()


def relative_residual(flow, x, z):
    scale = z.flatten(1).abs().amax(1).clamp_min(1.0)
    return (flow(x)[0] - z).flatten(1).abs().amax(1) / scale


@pytest.mark.parametrize("shape", [(5,), (2, 6, 10)], ids=str)
@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@torch.no_grad()
def test_certificate_of_a_block_is_true(shape, norm, dtype, tol):
    block = block_of(shape, norm=norm).to(dtype)
    use_log_det(block, evaluation=ExactLogDet())
    z = 2 * torch.randn(6, *shape, dtype=dtype)
    x, residual, iterations, converged = block.solve_inverse(z, tol)
    assert bool(converged.all()) and bool((residual <= tol).all()) and bool((iterations > 0).all())
    slack = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(relative_residual(block, x, z), residual, rtol=0, atol=slack)


@torch.no_grad()
def test_certificate_of_a_composition_is_that_of_the_whole():
    """Parts are solved to a tenth of the tolerance, and h(x) is compared with z once more."""
    flow = randomize(ResidualFlow((2, 4, 4), (2, 2), 16), 0.5).double().eval()
    use_log_det(flow, evaluation=ExactLogDet())
    z = 3 * torch.randn(6, 2, 4, 4, dtype=torch.float64)
    for tol in (1e-3, 1e-8, 1e-13):
        x, residual, iterations, converged = flow.solve_inverse(z, tol)
        target, steps = z, 0
        for part in reversed(flow.flows):
            target, _, count, _ = part.solve_inverse(target, tol / 10)
            steps = steps + count
        assert torch.equal(target, x) and torch.equal(steps, iterations)
        assert torch.equal(residual, relative_residual(flow, x, z))
        assert bool(converged.all()) and bool((residual <= tol).all())


@torch.no_grad()
def test_too_few_iterations_are_flagged():
    block = block_of()
    z = torch.randn(4, 5)
    z[2] = block(torch.zeros(1, 5))[0][0]
    x, residual, iterations, converged = block.solve_inverse(z, max_iterations=3)
    assert not bool(converged.any()) and iterations.tolist() == [3] * 4
    assert bool((residual > 1e-6).all())
    assert bool((relative_residual(block, x, z) <= residual + 1e-6).all()), (
        "a bound also where it stopped early"
    )


@torch.no_grad()
def test_inverse_names_the_samples_that_did_not_converge():
    block = block_of()
    for linear in block.maps:
        linear.bias.zero_()
    z = torch.zeros(30, 5)  # zero is a fixed point: solved at once
    z[[3, 7]] = 0.3
    flow = Compose([block])
    block.solve_inverse = functools.partial(block.solve_inverse, max_iterations=2)
    with pytest.raises(
        RuntimeError,
        match=r"2 of 30 samples \(indices 3, 7\); largest residual .* after 2 iterations",
    ):
        flow.inverse(z)
    with pytest.raises(
        RuntimeError, match=r"30 of 30 samples \(indices 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …\);"
    ):
        flow.inverse(torch.full((30, 5), 0.3))
    assert torch.equal(flow.inverse(z[:3]), z[:3])
    assert bool(flow.solve_inverse(z)[3].sum() == 28)


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8)], ids=str)
@torch.no_grad()
def test_far_latents_are_inverted_in_single_precision(shape):
    flow = randomize(ResidualFlow(shape, (2, 2), 16), 0.5).eval()
    z = torch.randn(4, *shape)
    z[1:] *= 200.0
    x, residual, iterations, converged = flow.solve_inverse(z)
    assert bool(converged.all()) and torch.equal(residual, relative_residual(flow, x, z))
    assert int(iterations.max()) < 4 * 200, "rounding keeps no part from its tolerance"


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"norm": 1.0}, "norm"),
        ({"norm": 3.0}, "norm"),
        ({"norm": "spectral"}, "norm"),
        ({"norm": math.nan}, "norm"),
        ({"coeff": 1.0}, "coeff"),
        ({"coeff": 0.0}, "coeff"),
        ({"shape": (3, 8)}, "shape"),
        ({"shape": (1, 6, 8), "blocks": (1, 1, 1)}, "shape"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ResidualFlow(**({"shape": (1, 8, 8)} | arguments))


def test_layout_of_groups_and_preactivation():
    flow = ResidualFlow((1, 8, 8), (2, 1, 1), 8)
    names = [type(f).__name__ for f in flow.flows]
    assert names == [
        *["ResidualBlock"] * 2,
        "Squeeze",
        "ResidualBlock",
        "Squeeze",
        "ResidualBlock",
        *["Unsqueeze"] * 2,
    ]
    blocks = [f for f in flow.flows if isinstance(f, ResidualBlock)]
    assert [b.preactivate for b in blocks] == [False, True, True, True]
    assert [b.maps[0].weight.shape[1] for b in blocks] == [1, 1, 4, 16]
    assert [m.weight.shape[-1] for m in blocks[0].maps] == [3, 1, 3]


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_map_that_does_not_contract_is_found_at_the_next_evaluation(norm, monkeypatch):
    """A flow of any weights passes; one whose constraint is gone, or whose weights are no numbers,
    is named.
    """
    flow = ResidualFlow((1, 8, 8), (1, 1), 4, norm=norm)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    flow.check()
    linear = flow.flows[2].maps[1]
    with monkeypatch.context() as patch:
        patch.setattr(linear, "constrained_weight", lambda: linear.weight)
        with pytest.raises(
            RuntimeError, match=r"^flows\.2\.maps\.1\.weight has norm .* where its bound is 0\.98"
        ):
            flow.check()
    torch.nn.init.constant_(linear.weight, math.nan)
    model = indm.INDM(flow, indm.ScoreModel(indm.MLP((1, 8, 8), width=8, depth=1), indm.VPSDE()))
    with pytest.raises(RuntimeError, match=r"^flows\.2\.maps\.1\.weight has norm nan"):
        indm.evaluate(model, torch.rand(4, 1, 8, 8), progress=False)
