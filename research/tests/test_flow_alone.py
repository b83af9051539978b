"""A flow alone: TarFlow's noise and its denoising step against closed forms, and the table."""

import math

import pytest
import torch

import indm
from research.records import Records
from research.translation import flow_alone


@pytest.fixture
def model():
    """N(0, I) by the identity, of images of 256 levels."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    return indm.build_model(tables, (1, 4, 4), indm.Scaling.images(256))


def test_samples_of_noisy_data_move_up_their_density(model):
    """∇log p is −x."""
    z = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for sigma in (0.0, 0.5):
        expected = model.scaling.to_data((1 - sigma**2) * z)
        torch.testing.assert_close(flow_alone.samples(model, 50, sigma), expected, rtol=0, atol=1)


def test_the_loss_is_the_likelihood_of_noisy_data(model):
    """Of N(0, I) at x + σn it is ½ (x² + σ²) + ½ log 2π an entry, in the mean."""
    x, sigma = 0.3 * torch.ones(4000, 1, 4, 4), 0.5
    loss, _ = flow_alone.augmented(sigma).loss(model, x, generator=torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(0.5 * (0.09 + sigma**2 + math.log(2 * math.pi)), abs=0.005)


def test_the_table_has_a_column_for_each_mark(tmp_path):
    made = Records(tmp_path / "flow_alone.csv")
    for name, steps in (("coupling, spline", ("100", "200")), ("autoregressive, spline", ("200",))):
        curve = {step: {"frechet": 123.4, "accuracy": 0.25} for step in steps}
        made.at(flow=name).add({"curve": curve, "parameters": 1000})
    lines = [line.strip("| ").split(" | ") for line in flow_alone.table("sneaker-boot", made).splitlines()]
    assert lines[0] == ["flow", "parameters", "100 steps", "200 steps"]
    assert lines[2] == ["coupling, spline", "1,000", "123, 25 %", "123, 25 %"]
    assert "123, 25 %" in flow_alone.table("sneaker-boot", made).splitlines()[3]
