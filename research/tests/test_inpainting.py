"""Measures of drawn pixels against closed forms, and what neighbours draw."""

import dataclasses
import types

import pytest
import torch

from indm.workbench.data.base import as_data
from research import inpainting
from research.records import Records


def test_crps_of_gaussian_draws_is_that_of_their_law():
    """E|X − y| − E|X − X′|/2 = σ(z(2Φ(z) − 1) + 2φ(z) − 1/√π) at z = (y − μ)/σ."""
    generator = torch.Generator().manual_seed(0)
    normal, z = torch.distributions.Normal(0.0, 1.0), torch.tensor(0.7)
    exact = 3 * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - torch.pi**-0.5)
    draws = 5 + 3 * torch.randn(4000, 6, 1, generator=generator)
    found = inpainting.crps(draws, torch.full((4000, 1), 5 + 3 * 0.7))
    assert found.mean().item() == pytest.approx(exact.item(), abs=0.04)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_spread_is_the_ratio_of_the_deviations(scale):
    generator = torch.Generator().manual_seed(0)
    mean, noise = torch.randn(3000, 1, generator=generator), torch.randn(3000, 4, 1, generator=generator)
    truth, draws = mean + torch.randn(3000, 1, generator=generator), mean[:, None] + scale * noise
    expected = (scale**2 * 1.25 / (1 + scale**2 / 4)) ** 0.5
    assert inpainting.spread(draws, truth) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", inpainting.MASKS)
def test_a_mask_hides_all_channels_of_a_pixel(kind):
    mask = inpainting.MASKS[kind]((3, 8, 8))
    assert torch.equal(mask[0], mask[1]) and torch.equal(mask[0], mask[2])
    assert mask.double().mean().item() == pytest.approx({"half": 0.5, "centre": 0.25, "scattered": 0.5}[kind], abs=0.1)


def test_neighbours_agree_in_the_pixels_that_are_there():
    raw = torch.randint(16, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    data, mask = as_data(raw, levels=16), inpainting.half((1, 8, 8))
    train = data.train.tensor
    image = train[:1].clone()
    image[..., 4:, :] = 0
    draws = inpainting.by_neighbours(types.SimpleNamespace(), data, image, mask)
    assert draws.shape == (1, inpainting.DRAWS, 1, 8, 8) and torch.equal(draws[0, 0], train[0])


def test_the_error_of_photographs_is_over_photographs(tmp_path, monkeypatch):
    """Draws of 0 and photographs of one grey level, 0 or 8: a patch has the CRPS of its level. The mean of two
    independent groups of equal size, at 0 and 8, is 4 ± 4."""
    group = torch.arange(inpainting.IMAGES) % 2
    test = (8 * group).byte()[:, None, None, None].expand(-1, 1, 8, 8)
    data = as_data((torch.zeros(20, 1, 8, 8, dtype=torch.uint8), test[:2], test), levels=16)
    data = dataclasses.replace(data, groups={"test": group})
    black = torch.zeros(inpainting.IMAGES, inpainting.DRAWS, 1, 8, 8)
    monkeypatch.setattr(inpainting, "METHODS", dict.fromkeys(inpainting.METHODS, lambda *_: black))
    inpainting.measure(types.SimpleNamespace(shape=(1, 8, 8)), data, "half", Records(tmp_path / "inpainting.csv"))
    for row in Records(tmp_path / "inpainting.csv").rows():
        assert (row["crps"], row["crps_error"]) == pytest.approx((4.0, 4.0))
