"""The measures of a model against closed forms: Gaussian data with the exact score, and flows that
are known.
"""

import math

import pytest
import torch
from closed_form import GaussianScore

from indm import INDM
from indm.flows import ActNorm, ExactFlow, Identity
from indm.sde import VPSDE
from research.verdict import measures


class Linear(ExactFlow):
    """z = A x for vectors."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.as_tensor(matrix))

    def forward(self, x, *, generator=None):
        return x @ self.matrix.to(x).T, torch.linalg.slogdet(self.matrix.to(x))[1].expand(len(x))

    def inverse_step(self, z):
        return torch.linalg.solve(self.matrix.to(z), z.T).T


class Sinh(ExactFlow):
    """x = sinh(z)."""

    def forward(self, x, *, generator=None):
        return x.asinh(), -0.5 * x.square().log1p().flatten(1).sum(1)

    def inverse_step(self, z):
        return z.sinh()


class Band(ExactFlow):
    """Every wave of some cycles an image, in every channel, times ``scale``."""

    def __init__(self, side, cycles, scale):
        super().__init__()
        rows = torch.fft.fftfreq(side) * side
        self.gain = torch.where(torch.hypot(rows[:, None], rows).round() == cycles, scale, 1.0)

    def _times(self, x, gain):
        return torch.fft.ifft2(torch.fft.fft2(x) * gain.to(x)).real

    def forward(self, x, *, generator=None):
        return self._times(x, self.gain), self.gain.log().sum().expand(len(x)) * x.shape[1]

    def inverse_step(self, z):
        return self._times(z, 1 / self.gain)


def gaussian_model(variance, shape, flow=None):
    """The exact score of N(0, variance), for continuous data in model units."""
    score = GaussianScore(VPSDE(), torch.zeros(shape), torch.full(shape, variance))
    return INDM(flow or Identity(), score, shape=shape)


def law(model, t):
    """α, σ² of the model's SDE, and the variance of z_t, as numbers."""
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = model.sde.alpha(t).item(), model.sde.sigma(t).item()
    return alpha, sigma**2, alpha**2 * model.score.variance.flatten()[0].item() + sigma**2


def scales(*numbers):
    """The flow that multiplies channels by these numbers."""
    flow = ActNorm(len(numbers))
    flow.log_scale.data.copy_(torch.tensor(numbers).log())
    return flow


def coefficients(flow, shape, t=0.4, n=40):
    model = gaussian_model(1.0, shape, flow=flow)
    x_t = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(t, dtype=torch.float64)
    return (
        measures.coefficients(model, x_t, t, measures.make_generator(x_t, 0, 0)),
        x_t,
        model.sde,
        t,
    )


def test_coefficients_of_the_identity_are_those_of_the_linear_diffusion():
    found, x_t, sde, t = coefficients(Identity(), (2, 8, 8))
    assert found["drift"] == pytest.approx(
        -sde.drift(t).item() * x_t.square().mean().sqrt().item(), rel=1e-5
    )
    assert found["volatility"] == pytest.approx(sde.diffusion(t).item(), rel=1e-5)
    assert found["noise"] == pytest.approx((sde.sigma(t) / sde.alpha(t)).item(), rel=1e-6)
    assert found["drift_beyond_linear"] < 1e-4 and abs(found["anisotropy"]) < 1e-5
    assert found["spectrum"] == pytest.approx([1.0] * 7, rel=1e-5)


def test_coefficients_of_scaled_channels_and_a_shift():
    flow = scales(2.0, 0.5)
    flow.shift.data.fill_(0.6)
    found, _, sde, t = coefficients(flow, (2, 8, 8))
    squares = torch.tensor([0.25, 4.0])  # squared singular values of J
    assert found["volatility"] == pytest.approx(
        sde.diffusion(t).item() * squares.mean().sqrt().item(), rel=1e-5
    )
    assert found["anisotropy"] == pytest.approx(
        (squares.var(correction=0) / squares.mean() ** 2).item(), rel=1e-4
    )
    bias = flow.latent(torch.zeros(1, 2, 8, 8))
    beyond = (bias * torch.tensor([0.5, 2.0]).reshape(1, 2, 1, 1)).square().mean().sqrt().item()
    assert found["drift_beyond_linear"] == pytest.approx(-sde.drift(t).item() * beyond, rel=1e-4)


def test_drift_of_a_curved_flow():
    """x = sinh(z): J = √(1 + x²) and Δh⁻¹ = x."""
    found, x_t, sde, t = coefficients(Sinh(), (1, 8, 8))
    f, g2 = sde.drift(t).item(), sde.diffusion(t).item() ** 2
    drift = f * (1 + x_t.square()).sqrt() * x_t.asinh() + 0.5 * g2 * x_t
    assert found["drift"] == pytest.approx(drift.square().mean().sqrt().item(), rel=1e-4)
    assert found["drift_beyond_linear"] == pytest.approx(
        (drift - f * x_t).square().mean().sqrt().item(), rel=1e-4
    )


def test_spectrum_of_the_volatility_of_a_scaled_band():
    found, *_ = coefficients(Band(8, 2, 0.5), (2, 8, 8))
    expected = [1.0] * 7
    expected[2] = 4.0
    assert found["spectrum"] == pytest.approx(expected, rel=1e-4)


def test_behaviour_has_a_row_for_each_level():
    """Behind z = 2x the path is x_t = α x + σ n/2, its drift f x_t and its volatility g/2."""
    model = gaussian_model(1.0, (1, 8, 8), flow=scales(2.0))
    rows = measures.behaviour(
        model, torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0
    )
    assert [row["noise"] for row in rows] == pytest.approx(measures.NOISES, rel=1e-5)
    for row, t in zip(rows, measures.times_at(model.sde, measures.NOISES), strict=True):
        alpha, sigma, f, g = (
            getattr(model.sde, name)(t).item() for name in ("alpha", "sigma", "drift", "diffusion")
        )
        assert row["drift"] == pytest.approx(-f * math.hypot(alpha, sigma / 2), rel=0.05)
        assert row["volatility"] == pytest.approx(g / 2, rel=1e-4)


def test_displacement_of_a_scaled_band():
    model = gaussian_model(1.0, (2, 8, 8), flow=Band(8, 3, 1.5))
    found = measures.displacement(
        model, torch.randn(300, 2, 8, 8, generator=torch.Generator().manual_seed(0)), 0
    )
    moved, energy = torch.tensor(found["moved"]), torch.tensor(found["x"])
    torch.testing.assert_close(moved[:, 3], 0.25 * energy[:, 3])
    assert moved.sum().item() == pytest.approx(moved[:, 3].sum().item(), rel=1e-5)
    assert found["frequency"][3] == 3 / 8
    assert found["size"] == pytest.approx((moved.sum() / energy.sum()).sqrt().item())
    assert found["constant"] < 0.02
    # White noise has as much energy as there are waves: 2·8·8 in all.
    assert energy.sum().item() == pytest.approx(128, rel=0.02)


def test_a_displacement_of_all_images_alike_is_constant():
    shift = ActNorm(2)
    shift.shift.data.copy_(torch.tensor([0.3, 0.0]))
    model = gaussian_model(1.0, (2, 8, 8), flow=shift)
    found = measures.displacement(model, torch.randn(50, 2, 8, 8), 0)
    assert found["constant"] == pytest.approx(1.0, rel=1e-5)
    assert found["moved"][0][0] == pytest.approx(64 * 0.09, rel=1e-4)
    none = measures.displacement(gaussian_model(1.0, (2, 8, 8)), torch.randn(50, 2, 8, 8), 0)
    assert none["size"] == none["constant"] == 0.0
