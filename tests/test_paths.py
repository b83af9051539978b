"""Paths: the diffusion on the data space against that of the latent, laws, and closed forms."""

import itertools
import math

import pytest
import torch
from closed_form import gaussian, within
from flow_tools import perturb
from random_models import close, make

from indm.diffusion import NonlinearDiffusion, forward_path, generative_path, probability_flow_path
from indm.flows import CouplingFlow, InvertibleLinear, ResidualFlow
from indm.model import INDM
from indm.sampling import log_snr_grid


def curved(name):
    """A model of two dimensions whose nonlinearity is strong but smooth, with a VP diffusion of
    moderate length.
    """
    build = {
        "affine": lambda: CouplingFlow((2,), depth=2, width=8, transform="affine"),
        "residual": lambda: ResidualFlow((2,), (2,), 16, 2.0),
        "linear": lambda: InvertibleLinear(2),
    }[name]
    torch.manual_seed(3)
    return INDM(
        perturb(build(), 0.6).double().eval(), gaussian("vp", (2,), beta_max=5.0), shape=(2,)
    )


def simulated(diffusion, x, times, increments, backward):
    """Euler–Maruyama on the data space by the coefficients there."""
    drift = diffusion.generative_drift if backward else diffusion.drift
    for (t, s), dw in zip(itertools.pairwise(times), increments, strict=True):
        now = t.expand(len(x))
        x = x + (s - t) * drift(x, now) + diffusion.diffusion(x, now) @ dw
    return x


def simulated_latent(model, z, times, increments, backward):
    """Euler–Maruyama for the latent's own SDE, forward or generative."""
    for (t, s), dw in zip(itertools.pairwise(times), increments, strict=True):
        f, g = model.sde.drift(t), model.sde.diffusion(t)
        z = z + (f * z - (g**2 * model.score(z, t) if backward else 0)) * (s - t) + g * dw
    return z


def strong_errors(name, backward, steps, fine, n):
    """Root mean square distance of the simulations' ends to h⁻¹ of a fine latent path, for each
    number of steps.
    """
    model, generator = curved(name), torch.Generator().manual_seed(0)
    times = torch.linspace(0.05, 1.0, fine + 1, dtype=torch.float64)
    times = times.flip(0) if backward else times
    mean, variance = model.score.law(times[0], torch.zeros(1, 2, dtype=torch.float64))
    z = mean + variance.sqrt() * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    roots = times.diff().abs().sqrt()[:, None, None]
    increments = roots * torch.randn(fine, n, 2, dtype=torch.float64, generator=generator)
    errors, diffusion = [], NonlinearDiffusion(model, tol=1e-7)
    with torch.no_grad():
        end = simulated_latent(model, z, times, increments, backward)
        x, exact = model.flow.inverse(z, 1e-9), model.flow.inverse(end, 1e-9)
    for count in steps:
        dw = increments.unflatten(0, (count, -1)).sum(1)
        end = simulated(diffusion, x, times[:: fine // count], dw, backward)
        errors.append((end - exact).square().sum(1).mean().sqrt().item())
    return errors


def order(steps, errors):
    """Minus the slope of log error over log steps."""
    a, b = (
        torch.tensor(steps, dtype=torch.float64).log(),
        torch.tensor(errors, dtype=torch.float64).log(),
    )
    return -(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()).item()


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_coefficients_on_the_data_make_h_of_the_latent_path(backward):
    """Strong order ½ along one Brownian path."""
    steps = [8, 16, 32, 64]
    errors = strong_errors("residual", backward, steps, fine=1024, n=300)
    assert 0.4 < order(steps, errors) < 0.75, errors
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("backward", [False, True])
def test_of_a_linear_flow_with_strong_order_one(backward):
    """Additive noise: Euler–Maruyama is Milstein's rule."""
    steps = [16, 32, 64]
    errors = strong_errors("linear", backward, steps, fine=2048, n=200)
    assert 0.9 < order(steps, errors) < 1.15, errors


def features(x):
    """Entries and their products, whose means are the first two moments."""
    x = x.flatten(1)
    return torch.cat([x, (x[:, :, None] * x[:, None]).flatten(1)], dim=1)


def same_law(a, b, bias):
    """Whether the first two moments agree within 4.5 standard errors and a ``bias``."""
    a, b = features(a), features(b)
    error = ((a.var(0) / len(a)) + b.var(0) / len(b)).sqrt()
    return bool(((a.mean(0) - b.mean(0)).abs() <= 4.5 * error + bias).all())


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_a_forward_path_has_the_kernel_of_the_sde(name):
    """From x at ε, over uneven steps: mean α_t x, variance σ_t², and the covariance of two times."""
    score = gaussian(name, (2,))
    times, x = (
        torch.tensor([1e-5, 0.2, 0.25, 0.7], dtype=torch.float64),
        torch.tensor([0.8, -0.5]).double(),
    )
    model = INDM(InvertibleLinear(2).double(), score, shape=(2,))
    z_0 = model.flow.latent(x[None])
    with torch.no_grad():
        path = torch.stack(
            [model.flow.latent(v) for v in forward_path(model, x.expand(20000, 2), times)]
        )
        alpha, sigma = (c[:, None] for c in (score.sde.alpha(times), score.sde.sigma(times)))
        residual = (path - alpha[:, None] * z_0) / sigma[:, None]
        for i in range(4):
            assert within(residual[i], 0.0) and within(residual[i] ** 2, 1.0)
        correlation = alpha[3] / alpha[1] * sigma[1] / sigma[3]
        assert within(residual[1] * residual[3], correlation)


@pytest.mark.parametrize(
    "name", [pytest.param("spline-images", marks=pytest.mark.long), "residual"]
)
@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.long), True])
def test_probability_flow_path_in_closed_form(name, backward):
    model, x, _ = make(name)
    times = torch.tensor([1e-5, 0.1, 0.5, 1.0], dtype=torch.float64)
    times = times.flip(0) if backward else times
    path = probability_flow_path(model, x, times, tol=1e-6)
    z = model.flow.latent(x).detach()
    for t, frame in zip(times.tolist(), path, strict=True):
        close(frame, model.decode(model.score.flow(z, times[0].item(), t)), rtol=1e-4, atol=1e-4)


def test_generative_path_ends_in_the_law_of_the_data():
    model, n = curved("residual"), 4000
    generator = torch.Generator().manual_seed(0)
    z = model.score.law(
        torch.tensor(1.0, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    )
    noise, other = (torch.randn(n, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    x = model.decode(z[0] + z[1].sqrt() * noise)
    path = generative_path(model, x, log_snr_grid(model.sde, 80), generator=generator)
    close(path[0], x, rtol=1e-4, atol=1e-4)
    data = model.decode(model.score.mean + model.score.variance.sqrt() * other)
    assert same_law(path[-1], data, bias=0.02)


def test_times_run_one_way_within_the_span_of_the_sde():
    model, x, _ = make("identity")
    grid = log_snr_grid(model.sde, 4)
    for path, times, message in [
        (forward_path, grid, "times must be at least 2 and increase strictly within"),
        (generative_path, grid.flip(0), "times must be at least 2 and decrease strictly"),
        (probability_flow_path, grid[:1], "times must be at least 2 and increase or decrease"),
        (probability_flow_path, torch.tensor([0.1, 0.3, 0.2]), "increase or decrease strictly"),
        (forward_path, torch.tensor([0.0, 0.5]), r"within \[1e-05, 1\], got \[0.0, 0.5\]"),
        (forward_path, torch.tensor([0.5, 0.5]), "increase strictly"),
        (generative_path, torch.tensor([0.5, math.nan]), "decrease strictly"),
    ]:
        with pytest.raises(ValueError, match=message):
            path(model, x, times)
