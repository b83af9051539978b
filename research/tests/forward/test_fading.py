"""Flows that fade: both ends, ∂_t h_t, and simulations on the data space against h_t⁻¹ of the latent's path."""

import pytest
import torch
from closed_form import gaussian
from flow_tools import perturb

import indm
from indm.diffusion import (
    NonlinearDiffusion,
    brownian_increments,
    latent_path,
    paired_paths,
    path_length,
    simulate_forward,
    simulate_generative,
    simulate_probability_flow,
)
from indm.flows import AutoregressiveFlow, Compose, CouplingFlow, ElementwiseFlow, ResidualFlow
from indm.flows.coupling import InvertibleLinear
from indm.sampling import log_snr_grid
from indm.sde import VPSDE
from research.forward.fading import Fade, FadingDiffusion, choose_fade, faded, fading_path

DOUBLE = torch.float64
FLOWS = {
    "affine": lambda: CouplingFlow((2,), depth=2, width=8, transform="affine"),
    "spline": lambda: CouplingFlow((2,), depth=2, width=8),
    "scales": lambda: CouplingFlow((1, 4, 4), levels=2, depth=2, width=8, transform="affine"),
    "elementwise": lambda: ElementwiseFlow((3,), shared="channel"),
    "residual": lambda: ResidualFlow((1, 4, 4), (1, 1), 8, actnorm=True),
    "plane": lambda: ResidualFlow((2,), (2,), 8),
    "autoregressive": lambda: AutoregressiveFlow((1, 4, 4), blocks=2, width=8, layers=1),
    "tokens": lambda: AutoregressiveFlow((2,), blocks=2, width=8, layers=1, transform="spline"),
    "composed": lambda: Compose([ElementwiseFlow((2,)), CouplingFlow((2,), depth=1, width=8)]),
}


@pytest.fixture(params=FLOWS)
def flow(request):
    torch.manual_seed(0)
    return perturb(FLOWS[request.param](), 0.4).double().eval().requires_grad_(False)


def points(flow, n=5):
    shape = getattr(flow, "shape", (2,))
    return 0.5 * torch.randn(n, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def test_it_goes_from_the_flow_to_the_identity(flow):
    x = points(flow)
    for strength, expected in ((1.0, flow.latent(x)), (0.0, x)):
        z, log_det = faded(flow, strength)(x)
        assert torch.allclose(z, expected, atol=1e-12)
        assert torch.allclose(log_det, flow(x)[1] if strength else torch.zeros(5, dtype=DOUBLE), atol=1e-12)
    half = faded(flow, 0.5)
    z, log_det = half(x)
    assert torch.allclose(half.inverse(z, 1e-11), x, atol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: half.latent(v[None])[0]))(x).reshape(5, x[0].numel(), -1)
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-9)
    assert not torch.allclose(z, x, atol=0.01) and not torch.allclose(z, flow.latent(x), atol=0.01)


def model_of(name="affine", factor=0.5):
    torch.manual_seed(3)
    flow = perturb(FLOWS[name](), factor).double().eval().requires_grad_(False)
    return indm.INDM(flow, gaussian("vp", (2,), beta_max=5.0), shape=(2,))


def test_strength_is_a_power_of_what_is_left_of_the_clock():
    sde = VPSDE()
    start, end = sde.clock_span()
    t = sde.time(torch.tensor(-(start + 0.3 * (end - start)), dtype=DOUBLE))
    assert Fade(1.7)(sde, t).item() == pytest.approx(0.7**1.7, rel=1e-6)


@pytest.mark.parametrize("name", ["spline", "plane", "tokens"])
def test_the_change_is_the_derivative_along_time(name):
    diffusion = FadingDiffusion(model_of(name), Fade(1.7))
    x, t, step = points(diffusion.model.flow), 0.3, 1e-5
    later, earlier = (diffusion.flow_at(torch.full((5,), t + s, dtype=DOUBLE)).latent(x) for s in (step, -step))
    change = diffusion.change(x, torch.full((5,), t, dtype=DOUBLE))
    assert torch.allclose(change, (later - earlier) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "backward"), [("affine", False), pytest.param("affine", True, marks=pytest.mark.long), ("plane", True)]
)
def test_simulations_on_the_data_space_follow_the_decoded_latent(name, backward):
    model = model_of(name)
    diffusion, generator = FadingDiffusion(model, Fade(1.5), tol=1e-7), torch.Generator().manual_seed(0)
    fine, counts, n = 256, (4, 16), 100
    times = torch.linspace(0.05, 0.95, fine + 1, dtype=DOUBLE)
    times = times.flip(0) if backward else times
    mean, variance = model.score.law(times[0], torch.zeros(1, 2, dtype=DOUBLE))
    z = mean + variance.sqrt() * torch.randn(n, 2, dtype=DOUBLE, generator=generator)
    increments = brownian_increments(times, z, generator=generator)
    end = latent_path(model.sde, z, times, increments)[-1]
    if backward:
        end = z
        for t, s, dw in zip(times[:-1], times[1:], increments, strict=True):
            f, g = model.sde.drift(t), model.sde.diffusion(t)
            end = end + (f * end - g**2 * model.score(end, t)) * (s - t) + g * dw
    x, exact = (diffusion.decode(v, t.expand(n)) for v, t in ((z, times[0]), (end, times[-1])))
    simulate, errors = simulate_generative if backward else simulate_forward, []
    for count in counts:
        dw = increments.unflatten(0, (-1, fine // count)).sum(1)
        path = simulate(diffusion, x, times[:: fine // count], increments=dw)
        errors.append((path[-1] - exact).square().mean().sqrt())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.1
    static = NonlinearDiffusion(model, tol=1e-7)
    wrong = simulate(static, x, times[:: fine // counts[1]], increments=dw)[-1]
    assert (wrong - exact).square().mean().sqrt() > 3 * errors[1]


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_probability_flow_is_that_of_the_latent_decoded(backward):
    model = model_of()
    diffusion = FadingDiffusion(model, Fade(1.5), tol=1e-10)
    z = torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    errors = []
    for count in (10, 20):
        times = torch.linspace(0.05, 0.95, count + 1, dtype=DOUBLE)
        times = times.flip(0) if backward else times
        x = diffusion.decode(z, times[0].expand(5))
        exact = diffusion.decode(model.score.flow(z, float(times[0]), float(times[-1])), times[-1].expand(5))
        errors.append((simulate_probability_flow(diffusion, x, times)[-1] - exact).abs().max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.35)


def test_the_end_of_a_path_is_the_latent_itself():
    model = model_of()
    paths = paired_paths(
        FadingDiffusion(model, Fade()), points(model.flow), torch.tensor([1e-3, 0.5, 1.0], dtype=DOUBLE)
    )
    assert torch.allclose(paths.decoded[-1], paths.latent[-1], atol=1e-12)
    assert not torch.allclose(paths.decoded[0], paths.latent[0], atol=0.01)


def test_paths_that_fade_follow_the_closed_flow_and_have_the_length_of_their_frames():
    model = model_of()
    diffusion, x = FadingDiffusion(model, Fade(1.5)), points(model.flow)
    times = torch.tensor([1e-3, 0.2, 0.7, 1.0], dtype=DOUBLE)
    path = fading_path(model, x, times, diffusion.fade, tol=1e-6)
    z = diffusion.flow_at(times[:1]).latent(x)
    for frame, t in zip(path, times, strict=True):
        expected = diffusion.decode(model.score.flow(z, 1e-3, float(t)), t.expand(5))
        assert torch.allclose(frame, expected, atol=1e-5)
    steps = [(path[i + 1] - path[i]).square().sum(1).sqrt() for i in range(3)]
    assert torch.allclose(path_length(path), sum(steps))


@pytest.mark.parametrize("by", ["length", "isometry"])
def test_the_chosen_fade_has_the_least_criterion(by):
    """The identity keeps lengths, so that the flow that is gone earliest is nearest to an isometry."""
    torch.manual_seed(0)
    model = model_of()
    powers = (1.0, 2.0, 4.0)
    chosen = choose_fade(model, points(model.flow, 20), by=by, powers=powers, frames=8)
    if by == "isometry":
        assert chosen == Fade(4.0)
    else:
        times = log_snr_grid(model.sde, 8).flip(0)
        lengths = {}
        for power in powers:
            path = fading_path(model, points(model.flow, 20), times, Fade(power))
            lengths[power] = path.diff(dim=0).square().sum(2).sqrt().sum(0).mean()
        assert chosen == Fade(min(lengths, key=lengths.get))


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="flow InvertibleLinear has no way to the identity"):
        faded(InvertibleLinear(2), 0.5)
    with pytest.raises(ValueError, match="flow Compose has no way to the identity"):
        faded(Compose([InvertibleLinear(2)]), 0.5)
    with pytest.raises(ValueError, match="flow CouplingFlow has no way"):
        faded(CouplingFlow((2,), start="rotation"), 0.5)
    with pytest.raises(ValueError, match=r"power must be at least 1, got 0\.5"):
        Fade(0.5)
    for wrong in ({"powers": ()}, {"frames": 0}, {"by": "time"}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be "):
            choose_fade(model_of(), torch.zeros(3, 2), **wrong)
    diffusion = FadingDiffusion(model_of(), Fade())
    with pytest.raises(ValueError, match="t must be one time for all points of a flow that fades"):
        diffusion.drift(torch.zeros(2, 2, dtype=DOUBLE), torch.tensor([0.1, 0.2], dtype=DOUBLE))
    assert Fade(1.0)(VPSDE(), torch.tensor(1.0)) == 0
