"""Truncated normal noise against scipy, and as a part that a recipe names."""

import math

import pytest
import torch
from closed_form import within
from scipy import stats

import indm
from research.noise import TruncatedNormal


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_truncated_normal_against_scipy():
    """Density, law, moments, and the closed form of the entropy, d [½ log(2πe s²Z²) − τ e^{−τ²/2}/(Z √(2π))]."""
    for tau in (0.7, 3.0):
        reference = stats.truncnorm(-tau, tau, loc=0.5, scale=1 / (2 * tau))
        u, log_q = TruncatedNormal(tau)(torch.zeros(50_000, 2, dtype=torch.float64), generator=seeded(1))
        torch.testing.assert_close(log_q, torch.from_numpy(reference.logpdf(u.numpy())).sum(1), rtol=1e-8, atol=1e-8)
        assert stats.kstest(u.flatten().numpy(), reference.cdf).pvalue > 1e-3
        assert u.min() > 0 and u.max() < 1
        assert within(u, 0.5) and within((u - 0.5) ** 2, reference.var())
        s, mass = 1 / (2 * tau), math.erf(tau / math.sqrt(2))
        entropy = 0.5 * math.log(2 * math.pi * math.e * (s * mass) ** 2)
        entropy -= tau * math.exp(-(tau**2) / 2) / (mass * math.sqrt(2 * math.pi))
        assert entropy == pytest.approx(float(reference.entropy()), abs=1e-9)
        assert within(log_q, -2 * entropy)


def test_a_model_names_it_and_is_read_back(tmp_path):
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    tables["dequantization"] = {"name": "research.noise:TruncatedNormal", "tau": 2.0}
    with indm.trust("research"):
        indm.build_model(tables, (1, 2, 2), indm.Scaling.images(4)).save(tmp_path)
        model = indm.INDM.load(tmp_path)
    raw = torch.full((50, 1, 2, 2), 1)
    x, log_q = model.from_data(raw, generator=seeded(0))
    assert model.dequantization.tau == 2 and torch.equal(model.scaling.to_data(x).long(), raw)
    nats = indm.nll(model, x, log_q=log_q).nats.mean()
    assert 0 < nats < 40
    with pytest.raises(ValueError, match="log_q must be given for TruncatedNormal noise"):
        indm.nll(model, x)
    for wrong in (0.0, -1.0, 5.0, math.nan):
        with pytest.raises(ValueError, match="tau must be in"):
            TruncatedNormal(wrong)
