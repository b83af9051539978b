"""The nonlinear diffusion against dense autograd and closed forms."""

import pytest
import torch
from closed_form import gaussian, within
from flow_tools import batched_jacobian
from random_models import FLOWS, close, make
from torch.func import hessian, jacfwd, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from indm import INDM
from indm.diffusion import NonlinearDiffusion
from indm.flows import CouplingFlow
from indm.linearization import linearize

METHODS = ("drift", "divergence", "score", "generative_drift", "probability_flow")
ITERATIVE = ("residual", "residual-images", "composed")


@pytest.fixture(params=FLOWS)
def case(request):
    """The diffusion of a random flow, exact but for rounding, with three points and times; and its
    name.
    """
    model, x, t = make(request.param)
    return NonlinearDiffusion(model, tol=1e-11, probes=16), x, t, request.param


def columns(v):
    return v.flatten(1).unsqueeze(2)


def dense(diffusion, x, t):
    """G = g [∂h/∂x]⁻¹ by autograd and matrix inversion, (B, d, d)."""
    g = diffusion.model.sde.diffusion(t)
    g = g.flatten(1)[:, None, :] if g.ndim > 1 else g[:, None, None]
    return torch.linalg.inv(batched_jacobian(diffusion.model.flow, x)) * g


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


def curvature(metric, x, h=1e-3):
    """The Gaussian curvature of a metric x ↦ (2, 2) at points (B, 2), by Brioschi's formula and
    central differences.
    """

    def at(du, dv):
        m = metric(x + h * x.new_tensor([du, dv]))
        return torch.stack([m[:, 0, 0], m[:, 0, 1], m[:, 1, 1]])

    E, F, G = at(0, 0)
    Eu, Fu, Gu = (at(1, 0) - at(-1, 0)) / (2 * h)
    Ev, Fv, Gv = (at(0, 1) - at(0, -1)) / (2 * h)
    Evv, Guu = (
        (at(0, 1) - 2 * at(0, 0) + at(0, -1))[0] / h**2,
        (at(1, 0) - 2 * at(0, 0) + at(-1, 0))[2] / h**2,
    )
    Fuv = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))[1] / (4 * h**2)
    zero = torch.zeros_like(E)

    def det(*rows):
        return torch.linalg.det(torch.stack([torch.stack(row, -1) for row in rows], -2))

    first = det(
        (-Evv / 2 + Fuv - Guu / 2, Eu / 2, Fu - Ev / 2), (Fv - Gu / 2, E, F), (Gv / 2, F, G)
    )
    second = det((zero, Ev / 2, Gu / 2), (Ev / 2, E, F), (Gu / 2, F, G))
    return (first - second) / (E * G - F**2) ** 2


def test_the_metric_of_the_volatility_is_flat():
    """So a diffusion whose metric is curved, such as that of a sphere, is out of reach."""
    torch.manual_seed(0)
    flow = CouplingFlow((2,), depth=2, width=8, transform="affine").double().eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    diffusion = NonlinearDiffusion(INDM(flow, gaussian("vp", (2,)), shape=(2,)))
    x, t = 0.7 * torch.randn(3, 2, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)

    def metric(x):
        G = diffusion.dense_diffusion(x, t)
        return diffusion.model.sde.diffusion(t)[:, None, None] ** 2 * torch.linalg.inv(G @ G.mT)

    def sphere(x):
        return torch.diag_embed((4 / (1 + x.square().sum(1)) ** 2)[:, None].expand(-1, 2))

    def bent(x):
        return metric(x) + torch.diag_embed(x.flip(1).square())

    assert torch.allclose(curvature(sphere, x), torch.ones(3).to(x), atol=1e-4)
    assert curvature(bent, x).abs().min() > 0.01
    assert torch.allclose(curvature(metric, x), torch.zeros(3).to(x), atol=1e-4)


def laplacian_of_the_inverse(flow, x, iterative):
    """Δh⁻¹ at h(x): by the autograd Hessian of a formula, or fourth-order differences of a sharp
    iterative one.
    """
    z = flow.latent(x).detach()
    d = z[0].numel()
    if not iterative:
        with sdpa_kernel(SDPBackend.MATH):
            hessians = [
                hessian(lambda v: flow.solve_inverse(v.reshape(1, *z.shape[1:]))[0].flatten())(
                    sample.flatten()
                )
                for sample in z
            ]
        return torch.stack([h.diagonal(dim1=1, dim2=2).sum(1) for h in hessians]).reshape(z.shape)
    step, weights = 5e-3, {-2: -1, -1: 16, 0: -30, 1: 16, 2: -1}
    shifts = step * torch.eye(d, dtype=z.dtype).reshape(d, *z.shape[1:])
    with torch.no_grad():
        return torch.stack(
            [
                sum(
                    w * flow.inverse(sample + k * shifts, 1e-14 * d).sum(0)
                    for k, w in weights.items()
                )
                for sample in z
            ]
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
        slopes = torch.stack(
            [jacfwd(covariance)(v.flatten(), g_v) for v, g_v in zip(x, g, strict=True)]
        )
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


def test_linear_flow_in_closed_form():
    """z = W x: drift f x, volatility g W⁻¹, and the score of a Gaussian with covariance W⁻¹ Σ_t
    W⁻ᵀ.
    """
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
    many = getattr(NonlinearDiffusion(model, tol=1e-8, probes=2), method)(
        x[1:2].expand(n, 1, 4, 4), t[1:2].expand(n)
    )
    assert many.std(0).max() > 1e-3, "an estimate should vary"
    assert within(many, exact[0])


@pytest.mark.parametrize("name", ["spline", "residual"])
def test_single_precision(name):
    model, x, t = make(name)
    sharp, single = (
        NonlinearDiffusion(model, tol=1e-11, probes=16),
        NonlinearDiffusion(model.float(), probes=16),
    )
    values = [getattr(single, method)(x.float(), t.float()) for method in METHODS]
    model.double()
    for value, method in zip(values, METHODS, strict=True):
        close(value.double(), getattr(sharp, method)(x, t), rtol=5e-3, atol=5e-3)


def test_bad_options_are_named():
    model, _, _ = make("identity")
    with pytest.raises(ValueError, match="tol must be positive, got 0"):
        NonlinearDiffusion(model, tol=0.0)
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        NonlinearDiffusion(model, probes=0)
