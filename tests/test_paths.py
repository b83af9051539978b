"""Paths: the same Brownian motion on the data space and on the latent, orders of convergence, laws."""

import math

import pytest
import torch
from closed_form import gaussian, within
from flow_tools import perturb
from own_sde import EachEntry
from test_diffusion import close, make

from indm.diffusion import (
    NonlinearDiffusion,
    brownian_increments,
    forward_path,
    generative_path,
    latent_path,
    paired_paths,
    path_curvature,
    probability_flow_path,
    simulate_forward,
    simulate_generative,
    simulate_probability_flow,
)
from indm.flows import CouplingFlow, InvertibleLinear, ResidualFlow
from indm.model import INDM
from indm.sampling import log_snr_grid, uniform_grid


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
    diffusion, generator = NonlinearDiffusion(model, tol=1e-7), torch.Generator().manual_seed(0)
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
        x, exact = model.flow.inverse(z, 1e-9), model.flow.inverse(end, 1e-9)
    simulate = simulate_generative if backward else simulate_forward
    errors = []
    for count in steps:
        grid, dw = coarsened(times, increments, fine // count)
        errors.append((simulate(diffusion, x, grid, increments=dw)[-1] - exact).square().sum(1).mean().sqrt().item())
    return errors


def order(steps, errors):
    """Minus the slope of log error over log steps."""
    a, b = torch.tensor(steps, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return -(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()).item()


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.long), True])
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
        (simulate_forward, diffusion.drift, [0.3, 0.31]),
        (simulate_generative, diffusion.generative_drift, [0.31, 0.3]),
    ]:
        times = torch.tensor(times, dtype=torch.float64)
        dw = 0.1 * torch.randn(1, *x.shape, dtype=torch.float64)
        t = times[0].expand(3)
        expected = x + drift(x, t) * (times[1] - times[0]) + diffusion.diffusion(x, t) @ dw[0]
        start, end = simulate(diffusion, x, times, increments=dw)
        assert torch.equal(start, x)
        close(end, expected)


@pytest.mark.parametrize("backward", [False, True])
def test_simulated_probability_flow_has_order_two(backward):
    """Against the closed form of the latent's probability flow."""
    model = curved("residual")
    times = torch.linspace(0.05, 1.0, 33, dtype=torch.float64)
    times = times.flip(0) if backward else times
    z = torch.randn(50, 2, dtype=torch.float64)
    x, exact = (model.decode(v) for v in (z, model.score.flow(z, times[0].item(), times[-1].item())))
    steps, diffusion = [8, 16, 32], NonlinearDiffusion(model, tol=1e-10)
    errors = [
        (simulate_probability_flow(diffusion, x, times[:: 32 // count])[-1] - exact).abs().max().item()
        for count in steps
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


@pytest.mark.long
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
    forward = simulate_forward(diffusion, draws["start"], times, generator=generator)[-1]
    back = simulate_generative(diffusion, draws["end"], times.flip(0), generator=generator)[-1]
    assert same_law(forward, draws["other end"], bias=0.02)
    assert same_law(back, draws["other start"], bias=0.02)
    assert not same_law(forward, draws["other start"], bias=0.02), "the two ends should differ"


@pytest.mark.parametrize("name", ["residual-images", "residual"])
def test_paths_see_one_brownian_motion(name):
    model, x, _ = make(name)
    diffusion, sde = NonlinearDiffusion(model, probes=16), model.sde
    times = torch.linspace(0.3, 0.32, 5, dtype=torch.float64)
    paths = paired_paths(diffusion, x, times, generator=torch.Generator().manual_seed(0))
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
    paths = paired_paths(diffusion, x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paths.times, grid.flip(0))
    assert paths.times[0] == model.sde.eps and paths.times[-1] == model.sde.T
    assert (paths.simulated - paths.latent).abs().max() < 0.5
    back = simulate_generative(diffusion, x, generator=torch.Generator().manual_seed(0))
    flowing = simulate_probability_flow(diffusion, x)
    assert back.shape == flowing.shape == (101, *x.shape)
    close(flowing[-1], model.score.flow(x, model.sde.T, model.sde.eps), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "each entry"])
def test_latent_path_has_the_kernel_of_the_sde(name):
    """From z_0 at ε, over uneven steps: mean α_t z_0, variance σ_t², and the covariance of two times."""
    if name == "each entry":
        sde = EachEntry((2,)).double()
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


@pytest.mark.parametrize("name", [pytest.param("spline-images", marks=pytest.mark.long), "residual"])
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
        simulate_forward(NonlinearDiffusion(model), x, log_snr_grid(model.sde, 3).flip(0)),
    ):
        assert path.dtype == torch.float32 and bool(path.isfinite().all())


def test_what_cannot_be_simulated():
    model, x, _ = make("identity")
    diffusion, grid = NonlinearDiffusion(model), log_snr_grid(model.sde, 4)
    for broken, message in [
        (lambda: simulate_forward(diffusion, x, grid), "times must be at least 2 and increase strictly within"),
        (lambda: simulate_generative(diffusion, x, grid.flip(0)), "times must be at least 2 and decrease strictly"),
        (
            lambda: simulate_probability_flow(diffusion, x, grid[:1]),
            "times must be at least 2 and increase or decrease",
        ),
        (lambda: forward_path(model, x, torch.tensor([0.0, 0.5])), r"within \[1e-05, 1\], got \[0.0, 0.5\]"),
        (lambda: forward_path(model, x, torch.tensor([0.5, 0.5])), "increase strictly"),
        (lambda: generative_path(model, x, torch.tensor([0.5, math.nan])), "decrease strictly"),
        (
            lambda: simulate_forward(diffusion, x, grid.flip(0), increments=torch.zeros(3, *x.shape)),
            r"shape \(4, 3, 3\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            broken()


def test_curvature_is_what_a_circle_turns_and_does_not_see_the_speed():
    """An arc that is passed ever faster, in a plane of a space of images; a straight way back and forth turns by π."""
    basis = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    angle = 2.5 * torch.linspace(0, 1, 4000, dtype=torch.float64) ** 2
    arc = (torch.stack([angle.cos(), angle.sin()], 1) @ basis.T).reshape(-1, 1, 3, 4)
    there = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None, None, None] * arc[:1]
    assert path_curvature(7 * arc).item() == pytest.approx(2.5, abs=0.002)
    assert path_curvature(there).item() == pytest.approx(0, abs=1e-6)
    assert path_curvature(torch.cat([there, there.flip(0)])).item() == pytest.approx(0, abs=1e-6), "it rests at the end"
    assert path_curvature(torch.cat([there, there[:-1].flip(0)])).item() == pytest.approx(torch.pi)
