"""The nonlinear diffusion against dense autograd, the latent's own diffusion, and orders of convergence."""

import math

import pytest
import torch
from closed_form import GaussianScore, gaussian, within
from hypothesis import given
from hypothesis import strategies as st
from test_flows import batched_jacobian, perturb
from torch.func import hessian, jacfwd, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from indm.flows import (
    ActNorm,
    AutoregressiveFlow,
    Compose,
    CouplingFlow,
    Identity,
    InvertibleLinear,
    ResidualFlow,
    ZukoFlow,
)
from indm.model import INDM
from indm.nonlinear import (
    NonlinearDiffusion,
    Operator,
    brownian_increments,
    forward_path,
    generative_path,
    latent_path,
    linearize,
    probability_flow_path,
    second_derivative,
    solve,
)
from indm.sampling import log_snr_grid, uniform_grid
from indm.sde.learned import LearnedSDE

FLOWS = {
    "identity": (Identity, (3,)),
    "actnorm": (lambda: ActNorm(3), (3,)),
    "linear": (lambda: InvertibleLinear(3, "rotation"), (3,)),
    "affine": (lambda: CouplingFlow((3,), depth=2, width=8, transform="affine"), (3,)),
    "spline": (lambda: CouplingFlow((3,), depth=2, width=8), (3,)),
    "spline-images": (lambda: CouplingFlow((1, 4, 4), levels=2, depth=1, width=8), (1, 4, 4)),
    "residual": (lambda: ResidualFlow((3,), (2,), 16, 2.0), (3,)),
    "residual-images": (lambda: ResidualFlow((1, 4, 4), (1, 1), 8, 2.0), (1, 4, 4)),
    "autoregressive": (lambda: AutoregressiveFlow((3,), 2, width=16, layers=1), (3,)),
    "autoregressive-images": (lambda: AutoregressiveFlow((1, 4, 4), 2, width=16, layers=1), (1, 4, 4)),
    "zuko": (lambda: ZukoFlow((3,), "maf", 2, 16), (3,)),
    "composed": (
        lambda: Compose([ActNorm(3), ResidualFlow((3,), (1,), 8), CouplingFlow((3,), depth=1, transform="affine")]),
        (3,),
    ),
}
METHODS = ("drift", "divergence", "score", "generative_drift", "probability_flow")
ITERATIVE = ("residual", "residual-images", "composed")


def make(name, sde="vp"):
    """A random flow in float64 under the exact score of Gaussian latents, and three points at times of their own."""
    build, shape = FLOWS[name]
    torch.manual_seed(3)
    flow = perturb(build()).double().eval()
    model = INDM(flow, gaussian(sde, shape), shape=shape)
    x = 0.7 * torch.randn(3, *shape, dtype=torch.float64)
    return model, x, torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)


@pytest.fixture(params=FLOWS)
def case(request):
    """The diffusion of a random flow, exact but for rounding, with three points and times; and its name."""
    model, x, t = make(request.param)
    return NonlinearDiffusion(model, tol=1e-11, probes=16), x, t, request.param


def columns(v):
    return v.flatten(1).unsqueeze(2)


def dense(diffusion, x, t):
    """G = g [∂h/∂x]⁻¹ by autograd and matrix inversion, (B, d, d)."""
    g = diffusion.model.sde.diffusion(t)
    g = g.flatten(1)[:, None, :] if g.ndim > 1 else g[:, None, None]
    return torch.linalg.inv(batched_jacobian(diffusion.model.flow, x)) * g


def close(actual, expected, rtol=1e-8, atol=1e-8):
    torch.testing.assert_close(actual.detach(), expected.detach().reshape(actual.shape), rtol=rtol, atol=atol)


def test_linearization_is_that_of_autograd(case):
    diffusion, x, _, _ = case
    flow = diffusion.model.flow
    z, A = linearize(flow.latent, x)
    jacobian, v = batched_jacobian(flow, x), torch.randn_like(x)
    close(z, flow.latent(x))
    close(A @ v, jacobian @ columns(v))
    close(A.mT @ v, jacobian.mT @ columns(v))
    close(A.mT.mT @ v, A @ v)


def test_diffusion_is_g_times_the_inverse_jacobian(case):
    diffusion, x, t, _ = case
    G, expected = diffusion.diffusion(x, t), dense(diffusion, x, t)
    v, u = torch.randn_like(x), torch.randn_like(x)
    close(G @ v, expected @ columns(v))
    close(G.mT @ u, expected.mT @ columns(u))
    close(diffusion.dense_diffusion(x, t), expected)
    close(((G @ v) * u).flatten(1).sum(1), (v * (G.mT @ u)).flatten(1).sum(1))


def laplacian_of_the_inverse(flow, x, iterative):
    """Δh⁻¹ at h(x): by the autograd Hessian of a formula, or fourth-order differences of a sharp iterative one."""
    z = flow.latent(x).detach()
    d = z[0].numel()
    if not iterative:
        with sdpa_kernel(SDPBackend.MATH):
            hessians = [
                hessian(lambda v: flow.solve_inverse(v.reshape(1, *z.shape[1:]))[0].flatten())(sample.flatten())
                for sample in z
            ]
        return torch.stack([h.diagonal(dim1=1, dim2=2).sum(1) for h in hessians]).reshape(z.shape)
    step, weights = 5e-3, {-2: -1, -1: 16, 0: -30, 1: 16, 2: -1}
    shifts = step * torch.eye(d, dtype=z.dtype).reshape(d, *z.shape[1:])
    with torch.no_grad():
        return torch.stack(
            [sum(w * flow.inverse(sample + k * shifts, 1e-14 * d).sum(0) for k, w in weights.items()) for sample in z]
        ) / (12 * step**2)


def test_drift_has_the_laplacian_of_the_inverse(case):
    diffusion, x, t, name = case
    sde, flow = diffusion.model.sde, diffusion.model.flow
    laplacian = laplacian_of_the_inverse(flow, x, name in ITERATIVE)
    linear = torch.linalg.inv(batched_jacobian(flow, x)) @ columns(flow.latent(x))
    shape = (3, *[1] * (x.ndim - 1))
    f, g = sde.drift(t).reshape(shape), sde.diffusion(t).reshape(shape)
    expected = f * linear.reshape(x.shape) + 0.5 * g**2 * laplacian
    tolerance = 1e-5 if name in ITERATIVE else 1e-8
    close(diffusion.drift(x, t), expected, rtol=tolerance, atol=tolerance)


def autograd_divergence(diffusion, x, t):
    """Σ_j ∂_j (G Gᵀ)_kj of each sample, through the dense inverse Jacobian."""
    flow, g = diffusion.model.flow, diffusion.model.sde.diffusion(t)

    def covariance(v, g):
        jacobian = jacrev(lambda v: flow.latent(v.reshape(1, *x.shape[1:])).flatten())(v)
        G = torch.linalg.inv(jacobian) * g.flatten()
        return G @ G.mT

    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.stack([jacfwd(covariance)(v.flatten(), g_v) for v, g_v in zip(x, g, strict=True)])
    return slopes.diagonal(dim1=2, dim2=3).sum(2).reshape(x.shape)


def test_divergence_is_that_of_the_dense_covariance(case):
    diffusion, x, t, _ = case
    close(diffusion.divergence(x, t), autograd_divergence(diffusion, x, t))


def test_score_is_the_gradient_of_the_log_density(case):
    diffusion, x, t, _ = case
    model = diffusion.model
    x = x.requires_grad_()
    z, log_det = model.flow(x)
    mean, variance = model.score.law(t, z)
    log_density = -0.5 * ((z - mean) ** 2 / variance).sum() + log_det.sum()
    close(diffusion.score(x, t), torch.autograd.grad(log_density, x)[0])


def by_definition(diffusion, x, t):
    """f_φ − div(G Gᵀ) − G Gᵀ ∇ log p_t."""
    G = diffusion.diffusion(x, t)
    return diffusion.drift(x, t) - diffusion.divergence(x, t) - G @ (G.mT @ diffusion.score(x, t))


def test_generative_drift_is_its_definition(case):
    diffusion, x, t, _ = case
    close(diffusion.generative_drift(x, t), by_definition(diffusion, x, t))


def test_probability_flow_keeps_the_marginals(case):
    """It is f_φ − ½ div(G Gᵀ) − ½ G Gᵀ ∇ log p_t, the mean of forward and generative drift."""
    diffusion, x, t, _ = case
    mean = 0.5 * (diffusion.drift(x, t) + diffusion.generative_drift(x, t))
    close(diffusion.probability_flow(x, t), mean)


@pytest.mark.parametrize("name", ["affine", "spline", "residual"])
def test_coefficients_that_differ_from_entry_to_entry(name):
    """A learned SDE: G = J diag(g), and the Laplacian weighs each direction by its own g²."""
    model, x, t = make(name)
    sde = LearnedSDE((3,), knots=4).double()
    for parameter in sde.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.score = GaussianScore(sde, model.score.mean, model.score.variance)
    diffusion = NonlinearDiffusion(model, tol=1e-11, probes=3)
    g = sde.diffusion(t)
    assert g.std(1).min() > 0.01
    close(diffusion.dense_diffusion(x, t), dense(diffusion, x, t))
    close(diffusion.divergence(x, t), autograd_divergence(diffusion, x, t))
    close(diffusion.generative_drift(x, t), by_definition(diffusion, x, t))
    close(sum((diffusion.drift(x, t), diffusion.generative_drift(x, t))) / 2, diffusion.probability_flow(x, t))


def test_linear_flow_in_closed_form():
    """z = W x: drift f x, volatility g W⁻¹, and the score of a Gaussian with covariance W⁻¹ Σ_t W⁻ᵀ."""
    model, x, t = make("linear")
    diffusion, sde = NonlinearDiffusion(model, tol=1e-12), model.sde
    weight = model.flow.latent(torch.eye(3, dtype=torch.float64)).mT.detach()
    mean, variance = model.score.law(t, x)
    f, g = sde.drift(t)[:, None], sde.diffusion(t)[:, None]
    inverse = torch.linalg.inv(weight)
    precision = weight.mT @ torch.diag_embed(1 / variance) @ weight
    score = -(precision @ columns(x - mean @ inverse.mT)).squeeze(2)
    close(diffusion.drift(x, t), f * x)
    close(diffusion.dense_diffusion(x, t), g[:, :, None] * inverse)
    close(diffusion.divergence(x, t), torch.zeros_like(x))
    close(diffusion.score(x, t), score)
    close(diffusion.generative_drift(x, t), f * x - g**2 * score @ (inverse @ inverse.mT))


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_identity_is_the_linear_diffusion(sde):
    model, x, t = make("identity", sde)
    diffusion = NonlinearDiffusion(model)
    f, g, s = model.sde.drift(t)[:, None], model.sde.diffusion(t)[:, None], model.score(x, t)
    close(diffusion.drift(x, t), f * x)
    close(diffusion.diffusion(x, t) @ x, g * x)
    close(diffusion.score(x, t), s)
    close(diffusion.generative_drift(x, t), f * x - g**2 * s)
    close(diffusion.probability_flow(x, t), f * x - 0.5 * g**2 * s)


@pytest.mark.parametrize("name", ["spline-images", "residual-images"])
@pytest.mark.parametrize("method", ["drift", "divergence", "generative_drift"])
def test_probes_are_unbiased(name, method):
    model, x, t = make(name)
    exact = getattr(NonlinearDiffusion(model, tol=1e-8, probes=16), method)(x[1:2], t[1:2])
    n = 1000
    many = getattr(NonlinearDiffusion(model, tol=1e-8, probes=2), method)(x[1:2].expand(n, 1, 4, 4), t[1:2].expand(n))
    assert many.std(0).max() > 1e-3, "an estimate should vary"
    assert within(many, exact[0])


def test_the_generator_repeats_the_probes():
    model, x, t = make("residual-images")
    diffusion = NonlinearDiffusion(model)
    first, again, other = (diffusion.drift(x, t, generator=torch.Generator().manual_seed(i)) for i in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


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
    """A singular matrix, and a sample that is not a number; the others' solution is not needed to say so."""
    matrix = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    matrix[2, 1, 1] = 0.0
    A = Operator(lambda v: (matrix @ columns(v)).squeeze(2), lambda v: (matrix.mT @ columns(v)).squeeze(2))
    b = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"1 of 4 samples \(indices 2;.*allow a larger tol"):
        solve(A, b, 1e-8)
    b[0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"2 of 4 samples \(indices 0, 2;"):
        solve(A, b, 1e-8)


def test_second_derivative_of_a_cubic():
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    close(second_derivative(lambda x: x**3, x, v), 6 * x * v**2)


@pytest.mark.parametrize("name", ["spline", "residual"])
def test_single_precision(name):
    model, x, t = make(name)
    sharp, single = NonlinearDiffusion(model, tol=1e-11, probes=16), NonlinearDiffusion(model.float(), probes=16)
    values = [getattr(single, method)(x.float(), t.float()) for method in METHODS]
    model.double()
    for value, method in zip(values, METHODS, strict=True):
        close(value.double(), getattr(sharp, method)(x, t), rtol=5e-3, atol=5e-3)


def test_modes_and_gradients_are_left_as_they_were():
    model, x, t = make("residual")
    model.train()
    diffusion = NonlinearDiffusion(model)
    x = x.requires_grad_()
    for method in METHODS:
        assert not getattr(diffusion, method)(x, t).requires_grad
    assert not (diffusion.diffusion(x, t) @ x).requires_grad
    assert all(module.training for module in model.modules()) and x.grad is None
    assert all(p.grad is None for p in model.parameters())


# Simulations: the same Brownian path on the data space and on the latent.


def curved(name):
    """A model of two dimensions whose nonlinearity is strong but smooth, with a VP diffusion of moderate length."""
    build = {
        "affine": lambda: CouplingFlow((2,), depth=2, width=8, transform="affine"),
        "residual": lambda: ResidualFlow((2,), (2,), 16, 2.0),
        "linear": lambda: InvertibleLinear(2),
    }[name]
    torch.manual_seed(3)
    return INDM(perturb(build(), 0.6).double().eval(), gaussian("vp", (2,), beta_max=5.0), shape=(2,))


def coarsened(times, increments, factor):
    return times[::factor], increments.unflatten(0, (-1, factor)).sum(1)


def reverse_latent(model, z, times, increments):
    """Euler–Maruyama for the latent's generative SDE."""
    for t, s, dw in zip(times[:-1], times[1:], increments, strict=True):
        f, g = model.sde.drift(t), model.sde.diffusion(t)
        z = z + (f * z - g**2 * model.score(z, t)) * (s - t) + g * dw
    return z


def strong_errors(name, backward, steps, fine, n):
    """Root mean square distance of the simulations' ends to h⁻¹(latent path), for each number of steps."""
    model = curved(name)
    diffusion, generator = NonlinearDiffusion(model, tol=1e-10), torch.Generator().manual_seed(0)
    times = torch.linspace(0.05, 1.0, fine + 1, dtype=torch.float64)
    times = times.flip(0) if backward else times
    mean, variance = model.score.law(times[0], torch.zeros(1, 2, dtype=torch.float64))
    z = mean + variance.sqrt() * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    increments = brownian_increments(times, z, generator=generator)
    with torch.no_grad():
        end = (
            reverse_latent(model, z, times, increments)
            if backward
            else latent_path(model.sde, z, times, increments)[-1]
        )
        x, exact = model.flow.inverse(z, 1e-12), model.flow.inverse(end, 1e-12)
    simulate = diffusion.generative_sde if backward else diffusion.forward_sde
    errors = []
    for count in steps:
        grid, dw = coarsened(times, increments, fine // count)
        errors.append((simulate(x, grid, increments=dw)[-1] - exact).square().sum(1).mean().sqrt().item())
    return errors


def order(steps, errors):
    """Minus the slope of log error over log steps."""
    a, b = torch.tensor(steps, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return -(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()).item()


@pytest.mark.parametrize("backward", [False, True])
def test_simulation_has_strong_order_one_half(backward):
    steps = [8, 16, 32, 64]
    errors = strong_errors("residual", backward, steps, fine=1024, n=300)
    assert 0.4 < order(steps, errors) < 0.75, errors
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("backward", [False, True])
def test_simulation_of_a_linear_flow_has_strong_order_one(backward):
    """Additive noise: Euler–Maruyama is Milstein's rule."""
    steps = [16, 32, 64]
    errors = strong_errors("linear", backward, steps, fine=2048, n=200)
    assert 0.9 < order(steps, errors) < 1.15, errors


def test_a_step_is_drift_and_diffusion():
    model, x, _ = make("spline-images")
    diffusion = NonlinearDiffusion(model, tol=1e-11, probes=16)
    for simulate, drift, times in [
        (diffusion.forward_sde, diffusion.drift, [0.3, 0.31]),
        (diffusion.generative_sde, diffusion.generative_drift, [0.31, 0.3]),
    ]:
        times = torch.tensor(times, dtype=torch.float64)
        dw = 0.1 * torch.randn(1, *x.shape, dtype=torch.float64)
        t = times[0].expand(3)
        expected = x + drift(x, t) * (times[1] - times[0]) + diffusion.diffusion(x, t) @ dw[0]
        start, end = simulate(x, times, increments=dw)
        assert torch.equal(start, x)
        close(end, expected)


@pytest.mark.parametrize("backward", [False, True])
def test_probability_flow_ode_has_order_two(backward):
    """Against the closed form of the latent's probability flow."""
    model = curved("residual")
    times = torch.linspace(0.05, 1.0, 33, dtype=torch.float64)
    times = times.flip(0) if backward else times
    z = torch.randn(50, 2, dtype=torch.float64)
    x, exact = (model.decode(v) for v in (z, model.score.flow(z, times[0].item(), times[-1].item())))
    steps, diffusion = [8, 16, 32], NonlinearDiffusion(model, tol=1e-10)
    errors = [
        (diffusion.probability_flow_ode(x, times[:: 32 // count])[-1] - exact).abs().max().item() for count in steps
    ]
    assert 1.8 < order(steps, errors) < 2.5, errors


def features(x):
    """Entries and their products, whose means are the first two moments."""
    x = x.flatten(1)
    return torch.cat([x, (x[:, :, None] * x[:, None]).flatten(1)], dim=1)


def same_law(a, b, bias):
    """Whether the first two moments agree within 4.5 standard errors and a ``bias``."""
    a, b = features(a), features(b)
    error = ((a.var(0) / len(a)) + b.var(0) / len(b)).sqrt()
    return bool(((a.mean(0) - b.mean(0)).abs() <= 4.5 * error + bias).all())


def test_both_ends_have_the_law_of_the_latents():
    """x_T of the forward simulation against h⁻¹ of z_T, and x_ε of the generative one against the data at ε."""
    model, n = curved("residual"), 2000
    diffusion, generator = NonlinearDiffusion(model), torch.Generator().manual_seed(0)
    times = torch.linspace(0.02, 1.0, 33, dtype=torch.float64)
    draws = {}
    for which in ("start", "end", "other start", "other end"):
        mean, variance = model.score.law(times[0 if "start" in which else -1], torch.zeros(1, 2, dtype=torch.float64))
        draws[which] = model.decode(
            mean + variance.sqrt() * torch.randn(n, 2, dtype=torch.float64, generator=generator)
        )
    forward = diffusion.forward_sde(draws["start"], times, generator=generator)[-1]
    back = diffusion.generative_sde(draws["end"], times.flip(0), generator=generator)[-1]
    assert same_law(forward, draws["other end"], bias=0.02)
    assert same_law(back, draws["other start"], bias=0.02)
    assert not same_law(forward, draws["other start"], bias=0.02), "the two ends should differ"


@pytest.mark.parametrize("name", ["residual-images", "residual"])
def test_paths_see_one_brownian_motion(name):
    model, x, _ = make(name)
    diffusion, sde = NonlinearDiffusion(model, probes=16), model.sde
    times = torch.linspace(0.3, 0.32, 5, dtype=torch.float64)
    paths = diffusion.paths(x, times, generator=torch.Generator().manual_seed(0))
    assert paths.latent.shape == paths.decoded.shape == paths.simulated.shape == (5, *x.shape)
    for z, decoded in zip(paths.latent, paths.decoded, strict=True):
        close(model.flow.latent(decoded), z, rtol=1e-4, atol=1e-4)
    assert torch.equal(paths.simulated[0], paths.decoded[0])
    moved = (paths.decoded[-1] - paths.decoded[0]).norm()
    assert (paths.simulated[-1] - paths.decoded[-1]).norm() < 0.1 * moved
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    close(paths.decoded[0], diffusion.perturb(x, times[:1].expand(3), noise))
    close(paths.latent[0], sde.perturb(model.flow.latent(x), times[:1].expand(3), noise))


def test_default_times_run_from_eps_to_the_horizon():
    model, x, _ = make("identity")
    diffusion, grid = NonlinearDiffusion(model), log_snr_grid(model.sde, 100)
    paths = diffusion.paths(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paths.times, grid.flip(0))
    assert paths.times[0] == model.sde.eps and paths.times[-1] == model.sde.T
    assert (paths.simulated - paths.latent).abs().max() < 0.5
    back = diffusion.generative_sde(x, generator=torch.Generator().manual_seed(0))
    flowing = diffusion.probability_flow_ode(x)
    assert back.shape == flowing.shape == (101, *x.shape)
    close(flowing[-1], model.score.flow(x, model.sde.T, model.sde.eps), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "learned"])
def test_latent_path_has_the_kernel_of_the_sde(name):
    """From z_0 at ε, over uneven steps: mean α_t z_0, variance σ_t², and the covariance of two times."""
    if name == "learned":
        sde = LearnedSDE((2,), knots=4).double()
        for parameter in sde.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    else:
        sde = gaussian(name).sde
    times = torch.tensor([1e-5, 0.2, 0.25, 0.7], dtype=torch.float64)
    z_0 = torch.tensor([0.8, -0.5], dtype=torch.float64).expand(20000, 2)
    z = sde.perturb(z_0, times[:1].expand(20000), torch.randn_like(z_0))
    with torch.no_grad():
        path = latent_path(sde, z, times, brownian_increments(times, z))
        alpha, sigma = (c if c.ndim > 1 else c[:, None] for c in (sde.alpha(times), sde.sigma(times)))
        residual = (path - alpha[:, None] * z_0) / sigma[:, None]
        for i in range(4):
            assert within(residual[i], 0.0) and within(residual[i] ** 2, 1.0)
        correlation = alpha[3] / alpha[1] * sigma[1] / sigma[3]
        assert within(residual[1] * residual[3], correlation)


def test_latent_path_follows_the_brownian_motion():
    """Strong order 1: the same increments, summed over longer steps, give nearly the same path."""
    sde = curved("linear").sde
    times = torch.linspace(0.05, 1.0, 2049, dtype=torch.float64)
    z = torch.randn(100, 2, dtype=torch.float64)
    increments = brownian_increments(times, z)
    fine = latent_path(sde, z, times, increments)[-1]
    steps = [16, 32, 64]
    errors = [(latent_path(sde, z, *coarsened(times, increments, 2048 // n))[-1] - fine).norm().item() for n in steps]
    assert 0.9 < order(steps, errors) < 1.15, errors


@pytest.mark.parametrize("name", ["spline-images", "residual"])
def test_forward_path_has_the_kernel_in_every_frame(name):
    model, x, _ = make(name)
    n, times = 1000, torch.tensor([1e-5, 0.1, 0.5], dtype=torch.float64)
    path = forward_path(model, x[:1].expand(n, *x.shape[1:]), times, generator=torch.Generator().manual_seed(0))
    assert path.shape == (3, n, *x.shape[1:])
    z_0 = model.flow.latent(x[:1]).detach()
    for t, frame in zip(times, path, strict=True):
        noise = (model.flow.latent(frame).detach() - model.sde.alpha(t) * z_0) / model.sde.sigma(t)
        floor = 1e-4 / model.sde.sigma(t).item()  # of the iterative inverse
        assert within(noise, 0.0, floor=floor) and within(noise**2, 1.0, floor=2 * floor)


@pytest.mark.parametrize("name", ["spline-images", "residual"])
@pytest.mark.parametrize("backward", [False, True])
def test_probability_flow_path_in_closed_form(name, backward):
    model, x, _ = make(name)
    times = torch.tensor([1e-5, 0.1, 0.5, 1.0], dtype=torch.float64)
    times = times.flip(0) if backward else times
    path = probability_flow_path(model, x, times, tol=1e-8)
    z = model.flow.latent(x).detach()
    for t, frame in zip(times.tolist(), path, strict=True):
        close(frame, model.decode(model.score.flow(z, times[0].item(), t)), rtol=1e-4, atol=1e-4)


def test_generative_path_ends_in_the_law_of_the_data():
    model, n = curved("residual"), 4000
    generator = torch.Generator().manual_seed(0)
    z = model.score.law(torch.tensor(1.0, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    noise, other = (torch.randn(n, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    x = model.decode(z[0] + z[1].sqrt() * noise)
    path = generative_path(model, x, log_snr_grid(model.sde, 80), generator=generator)
    close(path[0], x, rtol=1e-4, atol=1e-4)
    data = model.decode(model.score.mean + model.score.variance.sqrt() * other)
    assert same_law(path[-1], data, bias=0.02)


def test_single_precision_frames():
    """Times in float64 and images in float32, from ε on."""
    model, x, _ = make("residual-images")
    model, x = model.float(), x.float()
    for path in (
        forward_path(model, x, uniform_grid(model.sde, 4).flip(0).float()),
        generative_path(model, x, log_snr_grid(model.sde, 4)),
        probability_flow_path(model, x, log_snr_grid(model.sde, 2).float()),
        NonlinearDiffusion(model).forward_sde(x, log_snr_grid(model.sde, 3).flip(0)),
    ):
        assert path.dtype == torch.float32 and bool(path.isfinite().all())


def test_what_cannot_be_simulated():
    model, x, _ = make("identity")
    diffusion, grid = NonlinearDiffusion(model), log_snr_grid(model.sde, 4)
    for broken, message in [
        (lambda: diffusion.forward_sde(x, grid), "times must be at least 2 and increase strictly within"),
        (lambda: diffusion.generative_sde(x, grid.flip(0)), "times must be at least 2 and decrease strictly"),
        (lambda: diffusion.probability_flow_ode(x, grid[:1]), "times must be at least 2 and increase or decrease"),
        (lambda: forward_path(model, x, torch.tensor([0.0, 0.5])), r"within \[1e-05, 1\], got \[0.0, 0.5\]"),
        (lambda: forward_path(model, x, torch.tensor([0.5, 0.5])), "increase strictly"),
        (lambda: generative_path(model, x, torch.tensor([0.5, math.nan])), "decrease strictly"),
        (lambda: diffusion.forward_sde(x, grid.flip(0), increments=torch.zeros(3, *x.shape)), r"shape \(4, 3, 3\)"),
        (lambda: NonlinearDiffusion(model, tol=0.0), "tol must be positive, got 0"),
        (lambda: NonlinearDiffusion(model, probes=0), "probes must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            broken()
