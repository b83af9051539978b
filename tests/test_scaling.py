"""Scaling against the stated conventions of bits per dimension, and exact round trips of grey
levels.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from indm import scaling as module
from indm.dequantization import from_data
from indm.likelihood import LikelihoodReport
from indm.objective import NELBO
from indm.scaling import MOST_LEVELS, Scaling

LARGEST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # what torch.rand can return


@pytest.mark.parametrize(
    "levels, centered, bits", [(256, True, 7), (256, False, 8), (2, True, 0), (16, False, 4)]
)
def test_bits_of_the_image_conventions(levels, centered, bits):
    scaling, shape = Scaling.images(levels, centered), (3, 8, 8)
    # the noise of a level fills all of it but a margin on both sides
    bits -= math.log2(1 - levels / 2**21)
    assert -scaling.log_volume(shape) / (192 * math.log(2)) == pytest.approx(bits, abs=1e-6)


class UniformOnTheNoise(nn.Module):
    """A model with the density of x where every level has probability 1/levels, spread over its
    noise alone.
    """

    dequantization = None

    def __init__(self, scaling):
        super().__init__()
        self.scaling = scaling

    def density(self, x):
        raw, levels = x.double() * self.scaling.scale + self.scaling.shift, self.scaling.levels
        margin, rounding = levels / 2**22, levels / 2**24
        inside = (
            ((raw - raw.floor() - 0.5).abs() <= 0.5 - margin + rounding)
            & (raw >= 0)
            & (raw < levels)
        )
        return inside * self.scaling.scale.double() / levels / (1 - 2 * margin)

    def bound(self, x, log_q):
        zero = torch.zeros(len(x), dtype=torch.float64)
        return NELBO(flow=-self.density(x).log().flatten(1).sum(1), score=zero, constant=zero, prior=zero,
                     reconstruction=zero, log_q=log_q, dims=x[0].numel())  # fmt: skip


@pytest.mark.parametrize("levels", [2, 17, 256, 4096, 65_536, MOST_LEVELS])
@pytest.mark.parametrize("centered", [True, False])
def test_the_dequantised_bound_is_one(levels, centered):
    """No model's bound is below −log P of the grey levels, and this one's, which is exact, is
    neither above it.

    Its probabilities are 1/levels, so the bound is log₂ levels; were the noise's entropy taken for
    0, it would be less by 1.8e-4 bits/dim at 256 levels and by 1 at 2²⁰.
    """
    raw = torch.randint(0, levels, (50, 1, 4, 4), generator=torch.Generator().manual_seed(levels))
    model = UniformOnTheNoise(Scaling.images(levels, centered))
    x, log_q = from_data(model, raw)
    assert model.bound(x, log_q).bits_per_dim == pytest.approx(math.log2(levels), abs=1e-9)
    nats = -model.density(x).log().flatten(1).sum(1)
    solved = LikelihoodReport(nats, torch.zeros(50), log_q, torch.zeros(50), 1, {}, 16)
    assert solved.bits_per_dim == pytest.approx(math.log2(levels), abs=1e-9)


def test_data_without_any_variance_are_refused():
    with pytest.raises(
        ValueError, match="data must be of one feature that varies, at least, got '3 constant ones'"
    ):
        Scaling.standardise(torch.ones(10, 3))


def test_standardised_vectors():
    """The negative log-density of raw data is that in model units plus Σ log scale; constant
    features keep theirs.
    """
    raw = torch.randn(5000, 3, dtype=torch.float64) * torch.tensor(
        [0.01, 5.0, 300.0]
    ) + torch.tensor([3.0, -7.0, 1e3])
    raw = torch.cat([raw, torch.full((5000, 1), 4.0, dtype=torch.float64)], 1)
    scaling = Scaling.standardise(raw)
    x = scaling.to_model(raw)
    torch.testing.assert_close(x[:, :3].mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x[:, :3].std(0), torch.ones(3), rtol=1e-4, atol=0)
    assert bool((x[:, 3] == 0).all()) and scaling.scale[3] == 1.0
    torch.testing.assert_close(scaling.to_data(x).double(), raw, rtol=1e-6, atol=1e-4)

    std, mean = raw[:, :3].std(0), raw[:, :3].mean(0)
    raw_density = torch.distributions.Normal(mean, std).log_prob(raw[:, :3]).sum(1)
    model_density = torch.distributions.Normal(0.0, 1.0).log_prob(x[:, :3].double()).sum(1)
    nats = -model_density - scaling.log_volume((4,))
    torch.testing.assert_close(nats, -raw_density, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("unit", [1e-9, 1e-30, 1e30])
def test_features_in_any_unit_are_standardised(unit):
    """A feature is constant by its deviation beside its mean, not by its unit."""
    raw = unit * (
        3.0
        + 2.0 * torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    raw[:, 1] = unit * (1 + 1e-12 * torch.arange(200))  # constant but for rounding
    for scaling in (Scaling.standardise(raw), Scaling.standardise_parts(raw.split(50))):
        torch.testing.assert_close(scaling.scale[0].double(), raw[:, 0].std(), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            scaling.to_model(raw)[:, 0].std(), torch.tensor(1.0), rtol=1e-4, atol=0
        )
        assert scaling.scale[1] == 1.0


@pytest.mark.parametrize("shape", [(50, 7), (50, 3, 2)])
def test_vectors_are_standardised_a_part_at_a_time(shape, monkeypatch):
    raw = torch.randn(shape) * 3 + 7
    whole = Scaling.standardise(raw)
    monkeypatch.setattr(module, "AT_ONCE", 100)
    parts = Scaling.standardise(raw)
    torch.testing.assert_close(parts.shift, whole.shift)
    torch.testing.assert_close(parts.scale, whole.scale)


def test_scale_that_broadcasts_counts_once_for_each_dimension():
    scaling = Scaling(torch.zeros(3, 1, 1), torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    assert scaling.log_volume((3, 8, 8)) == pytest.approx(-64 * math.log(8), rel=1e-6)


@settings(max_examples=60)
@given(
    st.sampled_from([2, 3, 16, 17, 100, 255, 256, 1000, 4096, MOST_LEVELS - 1, MOST_LEVELS]),
    st.booleans(),
    st.floats(0.0, LARGEST_BELOW_ONE, width=32),
)
@example(256, True, LARGEST_BELOW_ONE)
@example(17, True, LARGEST_BELOW_ONE)
@example(17, True, 2.0**-24)
@example(100, False, 0.0)
def test_round_trip_of_every_grey_level_for_every_noise(levels, centered, u):
    """Whatever torch.rand returns in [0, 1), the dequantized value still belongs to its grey level."""
    raw = torch.arange(levels)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch.rand", lambda *shape, **_: torch.full(shape[0] if len(shape) == 1 else shape, u)
        )
        x = Scaling.images(levels, centered).to_model(raw)
    assert x.dtype == torch.float32
    moved = (Scaling.images(levels, centered).to_data(x).long() != raw).sum().item()
    assert moved == 0, f"{moved} of {levels} grey levels changed"


def test_round_trip_of_continuous_data_is_the_identity():
    raw = torch.randn(100, 2) * 3
    scaling = Scaling(1.5, 2.0)
    torch.testing.assert_close(scaling.to_model(raw), (raw - 1.5) / 2)
    torch.testing.assert_close(scaling.to_data(scaling.to_model(raw)), raw)


def test_samples_outside_the_range_are_clamped():
    scaling = Scaling.images(17)
    assert scaling.to_data(torch.tensor([-3.0, 3.0, -1.0, 1.0])).tolist() == [0, 16, 0, 16]


@pytest.mark.parametrize("levels", [1, 0, -5, 2.5, MOST_LEVELS + 1, 10**23])
def test_levels_are_checked(levels):
    with pytest.raises(ValueError, match="levels must"):
        Scaling(0.0, 1.0, levels)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_is_checked(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        Scaling(torch.zeros(2), torch.tensor([1.0, scale]))
