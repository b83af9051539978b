"""What every forward process must do."""

import pytest
import torch
from torch import nn

from indm.sde import VESDE, VPSDE
from indm.tensors import expand_like
from research.forward.base import LINEAR, Linear
from research.forward.coded import Coded
from research.forward.learned import Affine, LearnedMean
from research.forward.sde import LearnedSDE

MAKERS = {
    "linear": lambda shape: Linear(),
    "learned-mean": lambda shape: LearnedMean(shape, width=8, terms=4),
    "affine": lambda shape: Affine(shape, width=8),
    "coded": lambda shape: Coded(shape, width=8, code_size=3),
}
TABLE = {f"{name}-{len(shape)}": (make, shape) for name, make in MAKERS.items() for shape in [(3,), (2, 4, 4)]}
DOUBLE = torch.float64


def made(table, shape):
    torch.manual_seed(5)
    return table(shape).double()


@pytest.fixture(params=TABLE)
def case(request):
    """A process with parameters away from their start, latents and noise."""
    table, shape = TABLE[request.param]
    process = made(table, shape)
    for parameter in process.parameters():
        nn.init.normal_(parameter, std=0.3)
    return process, torch.randn(6, *shape, dtype=DOUBLE), torch.randn(6, *shape, dtype=DOUBLE)


def sde_of(kind, process, z):
    """An SDE; of a process with codes that given codes of ``z``, which needs VP."""
    if process.seen_shape:
        return process.sde_at(VPSDE(), process.encoded(z, torch.Generator().manual_seed(3))[0])
    torch.manual_seed(3)
    sde = {"vp": VPSDE, "ve": VESDE, "learned": lambda: LearnedSDE(tuple(z.shape[1:]))}[kind]()
    for parameter in sde.parameters():
        nn.init.normal_(parameter)
    return sde.double()


@pytest.mark.parametrize("kind", ["vp", "ve", "learned"])
def test_targets_are_derivatives_of_the_path(case, kind):
    process, z, noise = case
    sde = sde_of(kind, process, z)
    t = torch.linspace(0.05, 0.95, 6, dtype=DOUBLE)
    step, clock = 1e-5, sde.clock(t)
    noised = process.at(sde, z, t, noise)
    mean, std = process.moments(sde, z, t)
    std = expand_like(std, z)
    assert torch.allclose(noised.z_t, mean + std * noise)
    # y = z_t/α = M + S n moves along each entry's own clock with dM + dS n; the score of its law given z_0 is −n/S.
    (M_0, R_0), (M_1, R_1) = (process.path(sde, z)(clock + sign * step) for sign in (-1, 1))
    times = [sde.time(-(clock + sign * step)) for sign in (-1, 0, 1)]
    ratio_0, ratio, ratio_1 = (expand_like(sde.sigma(time) / sde.alpha(time), z) for time in times)
    slope = (M_1 - M_0 + (ratio_1 * R_1 - ratio_0 * R_0) * noise) / (2 * (ratio_1 / ratio_0).log())
    spread = std / expand_like(sde.alpha(t), z)
    assert torch.allclose(noised.target, slope / ratio + 0.5 * ratio * noise / spread, atol=1e-6)
    assert torch.allclose(noised.noise, noise * ratio / spread)


def test_at_the_start_z_is_that_of_the_linear_diffusion_and_later_it_need_not_be(case):
    process, z, _ = case
    eps, _ = VPSDE().endpoints(z)
    for t, same in ((eps, True), (torch.full_like(eps, 0.4), process.is_tight)):
        (mean, std), (linear_mean, linear_std) = (p.moments(VPSDE(), z, t) for p in (process, LINEAR))
        assert torch.allclose(mean, linear_mean, atol=1e-6) == same
        assert torch.allclose(expand_like(std, z), expand_like(linear_std, z), atol=1e-6) or not same


def test_before_it_is_trained_it_is_the_linear_diffusion(case, request):
    _, z, noise = case
    process = made(*TABLE[request.node.callspec.params["case"]])
    t = torch.linspace(0.05, 0.95, 6, dtype=DOUBLE)
    mine, linear = process.at(sde_of("vp", process, z), z, t, noise), LINEAR.at(VPSDE(), z, t, noise)
    assert torch.allclose(mine.z_t, linear.z_t)
    assert torch.allclose(mine.target, noise) and torch.allclose(mine.noise, noise)


@pytest.mark.parametrize("kind", ["vp", "ve", "learned"])
def test_correlation_is_that_of_the_noise_backwards(case, kind):
    """κ against a fine product of steps of dn = −½ R⁻² n dΛ, with Λ = log σ²/α² of each entry."""
    process, z, _ = case
    sde = sde_of(kind, process, z)
    t, s = torch.full((6,), 0.5, dtype=DOUBLE), torch.full((6,), 0.42, dtype=DOUBLE)
    clocks = torch.linspace(float(sde.clock(s[:1])), float(sde.clock(t[:1])), 101, dtype=DOUBLE)
    times = sde.time(-clocks)[:, None].expand(101, 6)
    own = torch.stack([2 * expand_like(sde.sigma(time) / sde.alpha(time), z).log().expand_as(z) for time in times])
    path, exponent = process.path(sde, z), torch.zeros_like(z)
    for clock, width in zip(0.5 * (clocks[1:] + clocks[:-1]), own.diff(dim=0), strict=True):
        exponent += path(clock.expand(6))[1] ** -2 * width
    kappa = process.correlation(sde, z, t, s)
    assert torch.allclose(kappa, (-0.5 * exponent).exp(), rtol={"vp": 1e-5, "ve": 1e-4, "learned": 1e-3}[kind])
    assert kind != "learned" or kappa[0].std() > 0.01, "each entry has its own clock"
