"""The laws of joint.md against sums over a grid, and their draws against their densities."""

import math

import pytest
import torch

from research.verdict.joint import LAWS, VARIANTS, Moons, Ring


@pytest.mark.parametrize("law", [Ring(0.2, 1), Moons(0.2)])
def test_a_law_has_mass_one_and_the_entropy_of_its_draws(law):
    axes = [(torch.arange(300).double() + 0.5) / 300 * 7 - 3] * 2
    grid = torch.cartesian_prod(*axes)
    log_prob = law.log_prob(grid)
    area = (7 / 300) ** 2
    assert (log_prob.exp().sum() * area).item() == pytest.approx(1.0, abs=2e-3)
    entropy = -(log_prob.exp() * log_prob).nan_to_num().sum().item() * area
    drawn = law.log_prob(law.draw(20_000, torch.Generator().manual_seed(0)))
    assert abs(-drawn.mean().item() - entropy) < 4 * drawn.std().item() / math.sqrt(20_000)


def test_stages_share_the_seconds_and_every_law_has_columns():
    for _, stages in VARIANTS.values():
        assert sum(stage.share for stage in stages) == 1
    assert {law.columns for law in LAWS.values()} == {2, 8}
