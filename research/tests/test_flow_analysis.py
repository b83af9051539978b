"""What a flow does, for flows of which that is known."""

import math

import pytest
import torch

import indm
from indm.flows import ActNorm, Compose, CouplingFlow, ExactFlow, Identity, InvertibleLinear
from indm.scaling import Scaling
from indm.workbench.data.base import Data, InMemory
from research.flow_analysis import analysis as flow_analysis


class Shift(ExactFlow):
    """x ↦ x + pattern."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern

    def latent(self, x):
        return x + self.pattern

    def forward(self, x, *, generator=None):
        return self.latent(x), x.new_zeros(len(x))

    def inverse_step(self, z):
        return z - self.pattern


def test_singular_values_of_scaling_and_rotation():
    torch.manual_seed(0)
    scale = ActNorm(4).double()
    with torch.no_grad():
        scale.log_scale.copy_(torch.tensor([0.1, -0.3, 0.7, 0.0]))
    x = torch.randn(3, 4, dtype=torch.float64)
    flow = Compose([InvertibleLinear(4, "rotation").double(), scale, InvertibleLinear(4, "rotation").double()])
    expected = scale.log_scale.detach().exp().sort(descending=True).values.expand(3, 4)
    torch.testing.assert_close(flow_analysis.singular_values(flow, x), expected, rtol=1e-6, atol=0)


def test_product_of_singular_values_is_the_determinant():
    torch.manual_seed(0)
    flow, x = CouplingFlow((1, 4, 4), depth=2, width=8).double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = flow(x)[1]
    torch.testing.assert_close(flow_analysis.singular_values(flow, x).log().sum(1), expected)


def test_large_events_have_no_dense_jacobian():
    with pytest.raises(ValueError, match="at most 1024"):
        flow_analysis.singular_values(Identity(), torch.zeros(1, 3, 32, 32))


def test_action_of_known_displacements():
    x = torch.randn(2000, 2, 8, 8)
    ones = torch.ones(2, 8, 8)
    board = ones * (1.0 - 2.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2))
    wave = ones * torch.cos(2 * torch.pi * torch.arange(8) / 8)
    for pattern, where in ((ones, "colour"), (board, "high"), (wave, "low")):
        found = flow_analysis.action(Shift(0.5 * pattern), x)
        assert found["position"] == pytest.approx(1.0, abs=1e-6), where
        assert found[where] == pytest.approx(1.0, abs=1e-6), where
    assert flow_analysis.action(Shift(0.5 * ones), x)["size"] == pytest.approx(0.5, rel=0.01)
    scale = ActNorm(2)
    with torch.no_grad():
        scale.log_scale.fill_(0.2)
    found = flow_analysis.action(scale, x)  # the displacement is a multiple of white x: 1 frequency of 64 is the mean
    assert found["position"] == pytest.approx(1 / 2000, rel=0.5)
    assert found["colour"] == pytest.approx(1 / 64, rel=0.2)
    assert found["colour"] + found["low"] + found["high"] == pytest.approx(1.0)
    assert found["high"] == pytest.approx(found["x_high"])


def two_classes(n):
    labels = torch.arange(n) % 2
    return InMemory((2.0 * labels[:, None] - 1) + 0.2 * torch.randn(n, 3)), labels


def test_class_is_known_at_the_start_and_forgotten_at_the_end():
    torch.manual_seed(0)
    parts = {part: two_classes(1200) for part in ("train", "valid", "test")}
    data = Data(
        name="two", scaling=Scaling(), shape=(3,), labels={part: labels for part, (_, labels) in parts.items()},
        **{part: items for part, (items, _) in parts.items()},
    )  # fmt: skip
    tables = {"flow": {"name": "coupling"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8, "depth": 1}}
    model = indm.build_model(tables, (3,))
    found = flow_analysis.class_information(model, data, times=5, progress=False)
    accuracies = [point["accuracy"] for point in found]
    assert accuracies[0] == 1.0 and abs(accuracies[-1] - 0.5) < 0.06
    # At SNR 1/r the class is the sign of a sum of three entries: Φ(√(3/(0.04 + r))).
    for point in found:
        r = torch.exp(-model.sde.log_snr(torch.tensor(point["t"], dtype=torch.float64)))
        expected = torch.special.ndtr((3 / (0.04 + r)).sqrt()).item()
        assert point["accuracy"] == pytest.approx(expected, abs=0.05)


def test_spectrum_by_frequency_and_channel():
    """One wave in one channel lies in the band of its frequency; all bands together are the energy."""
    side, cycles = 16, 3
    x = torch.zeros(4, 2, side, side, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * cycles * torch.arange(side, dtype=torch.float64) / side)

    pattern = torch.stack([torch.zeros_like(wave), 0.5 * wave])[:, None].expand(2, side, side)
    found = flow_analysis.spectrum(Shift(pattern), x + 1.0)
    assert found["frequency"][cycles] == cycles / side
    moved = torch.tensor(found["moved"])
    assert moved[1, cycles].item() == pytest.approx(0.25 * wave.square().sum().item() * side)
    moved[1, cycles] = 0
    assert moved.abs().max() < 1e-12
    assert torch.tensor(found["x"]).sum().item() == pytest.approx(2 * side**2)
