"""The instrument against dense circulant matrices of NumPy's transforms, and what its owner reads off it."""

import math

import numpy as np
import pytest
import torch
from flow_tools import batched_jacobian, perturb

from indm import INDM, VPSDE, ScoreModel, flow_loss, train
from indm.flows import InstrumentFlow, check_flow
from indm.nets import Zero

SHAPES = [(1,), (2,), (7,), (8,), (1, 1, 6), (1, 5, 1), (2, 3, 4), (1, 4, 5)]


def moved(shape, **options):
    torch.manual_seed(0)
    return perturb(InstrumentFlow(shape, **options)).double()


def dense(part, channel):
    """The matrix of a filter, from gains at all frequencies of both signs."""
    height, width = part.size
    gain = part.gain()[channel].detach().numpy()
    whole = np.zeros((height, width), complex)
    for k in range(height):
        for j in range(width):
            if j <= width // 2:
                whole[k, j] = gain[k, j]
            else:
                whole[k, j] = gain[-k % height, width - j].conj()
    columns = [
        np.fft.ifft2(np.fft.fft2(unit.reshape(height, width)) * whole).reshape(-1)
        for unit in np.eye(height * width)
    ]
    matrix = np.stack(columns, 1)
    assert np.abs(matrix.imag).max() < 1e-12  # the gains have the symmetry of a real filter
    return matrix.real


@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_is_two_circulant_matrices_around_a_curve(shape):
    flow = moved(shape)
    x = 0.7 * torch.randn(3, *shape, dtype=torch.float64)
    z, log_det = flow(x)
    rows = x.reshape(3, flow.torus[0], -1)
    expected, jacobians = [], []
    for channel in range(flow.torus[0]):
        first, last = (torch.from_numpy(dense(part, channel)) for part in (flow.first, flow.last))
        y = rows[:, channel] @ first.T
        bent, log_slope = flow.spline(y.reshape(1, -1), flow.raw[channel : channel + 1])
        expected.append(bent.reshape(y.shape) @ last.T)
        logs = torch.linalg.slogdet(first)[1] + torch.linalg.slogdet(last)[1]
        jacobians.append(log_slope.reshape(y.shape).sum(1) + logs)
    torch.testing.assert_close(z.reshape(3, -1), torch.stack(expected, 1).flatten(1))
    torch.testing.assert_close(log_det, sum(jacobians))
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1])
    torch.testing.assert_close(flow.inverse(z), x)


@pytest.mark.parametrize("shape", [(7,), (8,), (1, 1, 9), (1, 3, 4)])
def test_every_part_has_a_gradient_at_the_identity(shape):
    """Also the phases, wherever the density of z is not that of a Gaussian."""
    flow, x = InstrumentFlow(shape), torch.randn(50, *shape)
    z, log_det = flow(x)
    torch.testing.assert_close(z, x)
    (
        z.roll(1, -1).abs() * z.exp() - 0.1 * log_det.reshape(-1, *(1 for _ in shape))
    ).sum().backward()
    for name, parameter in flow.named_parameters():
        assert (parameter.grad != 0).any(), name
    inner = flow.raw.grad[:, : 2 * flow.bins]
    assert ((inner != 0).sum(1) > flow.bins).all()


def turned(x, gain, shape):
    size = (1, shape[0]) if len(shape) == 1 else shape[1:]
    folded = x.reshape(len(x), -1, *size)
    return torch.fft.irfft2(
        torch.fft.rfft2(folded) * gain.reshape(-1, *gain.shape[-2:]), size
    ).reshape(x.shape)


@pytest.mark.parametrize("shape", [(7,), (8,), (1, 3, 4), (2, 4, 5)])
def test_gain_and_curve_make_the_inverse_in_their_convention(shape):
    flow, z = moved(shape), torch.randn(3, *shape, dtype=torch.float64)
    gains = flow.gain
    gains = gains if len(shape) == 3 else gains[:, None, None]
    bent = turned(z, gains[0], shape)
    bent = flow.curve(bent.transpose(0, 1)).transpose(0, 1) if len(shape) == 3 else flow.curve(bent)
    torch.testing.assert_close(turned(bent, gains[1], shape), flow.inverse(z))
    size = (1, shape[0]) if len(shape) == 1 else shape[1:]
    for gain in gains:
        whole = torch.fft.fft2(torch.fft.irfft2(gain, size))
        torch.testing.assert_close(
            whole.abs().log().mean((-1, -2)), torch.zeros(len(gain)).double()
        )
        assert (gain[..., 0, 0].real > 0).all()
    response = torch.fft.irfft2(gains[1], size).flatten(1).abs()
    assert (response.argmax(1) == 0).all()


def test_a_delay_between_the_filters_changes_nothing_that_is_reported():
    flow = moved((7,))
    gain, v = flow.gain, torch.linspace(-2, 2, 9).double()
    curve = flow.curve(v)
    with torch.no_grad():
        turn = 2 * math.pi * 3 * torch.arange(1, 4).double() / 7
        flow.first.phase.add_(turn)
        flow.last.phase.sub_(turn)
    torch.testing.assert_close(flow.gain, gain)
    torch.testing.assert_close(flow.curve(v), curve)


def test_the_likelihood_of_the_flow_alone_does_not_see_the_phases_of_its_last_filter():
    flow = moved((8,)).float()
    model = INDM(flow, ScoreModel(Zero(), VPSDE()), shape=(8,))
    flow_loss(model, torch.randn(20, 8))[0].backward()
    assert flow.last.phase.grad.abs().max() < 1e-6 < flow.first.phase.grad.abs().max()


def test_log_gains_stay_within_their_bound_and_name_the_frequency_that_stands_there():
    flow = InstrumentFlow((2, 4, 6), max_log_gain=2.0)
    assert not flow.at_bounds()
    with torch.no_grad():
        flow.first.log_gain[1, -1] = -30.0
    assert flow.first.logs().abs().max() == 2.0
    (note,) = flow.at_bounds()
    assert "first filter" in note and "max_log_gain=2" in note and "of channel 1" in note
    check_flow(flow, torch.randn(2, 2, 4, 6))


@pytest.mark.parametrize(
    "x, name",
    [
        (torch.zeros(3, 7), "x"),  # seven points have as many frequencies as six
        (torch.zeros(3, 1, 1, 6), "x"),
    ],
)
def test_what_does_not_fit_is_refused(x, name):
    flow = InstrumentFlow((6,))
    for call in (flow, flow.inverse):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            call(x)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"shape": (4, 4)}, "shape"),
        ({"shape": (6,), "bins": 1}, "bins"),
    ],
)
def test_options_that_make_no_flow_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        InstrumentFlow(**options)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda x: np.where(np.arange(9) == 3, np.nan, x), "NaN"),
        (lambda x: x + 1j, "complex128"),
        (np.ones_like, "constant"),
    ],
)
def test_training_refuses_what_has_no_instrument(tmp_path, damage, words):
    np.save(tmp_path / "signals.npy", damage(np.random.default_rng(0).standard_normal((600, 9))))
    recipe = {
        "flow": {"name": "instrument"},
        "sde": {"name": "vp"},
        "net": {"name": "zero"},
        "data": {"name": "array", "path": str(tmp_path / "signals.npy")},
    }
    with pytest.raises(ValueError, match=words):
        train(recipe, tmp_path / "run", progress=False)


def test_training_warns_of_a_frequency_that_the_data_lack(tmp_path):
    """A filter vanishes there, so the likelihood grows with the gain without end."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((600, 8)))
    spectrum[:, 3] *= 1e-3
    np.save(tmp_path / "signals.npy", np.fft.irfft(spectrum, 8))
    recipe = {
        "flow": {"name": "instrument", "max_log_gain": 0.1},
        "sde": {"name": "vp"},
        "net": {"name": "zero"},
        "data": {"name": "array", "path": str(tmp_path / "signals.npy")},
        "train": {"steps": 40, "batch_size": 64, "flow_lr": 0.5, "objective": "flow", "warmup": 5},
    }
    with pytest.warns(UserWarning) as warned:
        train(recipe, tmp_path / "run", progress=False)
    assert any("max_log_gain" in str(warning.message) for warning in warned)
