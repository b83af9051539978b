"""The law of signals.md against closed forms, its flows against autograd, a short training, and the
tables.
"""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch.distributions import MultivariateNormal

from indm import INDM
from indm.flows import Compose, Identity
from indm.nets import Zero
from indm.score import ScoreModel
from indm.sde import VPSDE
from research.records import Records
from research.verdict import signals
from research.verdict.signals import (
    BEND,
    MODES,
    SPREAD,
    Circulant,
    Convolutions,
    Regimes,
    latent,
    power,
    seeded,
)


class Straightened(Identity):
    def forward(self, x, *, generator=None):
        return latent(x), (SPREAD / BEND * (SPREAD * x).cosh()).log().sum(1)


def test_the_density_is_that_of_two_gaussians_behind_a_curve():
    law, u = (
        Regimes(1.0),
        torch.randn(5, 64, generator=seeded(0), dtype=torch.float64, requires_grad=True),
    )
    lag = torch.arange(64.0).double()[:, None] - torch.arange(64)
    waves = (2 * math.pi / 64 * lag[..., None] * torch.arange(33)).cos()
    parts = [
        MultivariateNormal(u.new_zeros(64), (waves * MODES * of).sum(2) / 64).log_prob(u)
        for of in law.spectra
    ]
    x = (BEND * u).asinh() / SPREAD
    expected = (
        torch.logaddexp(*parts) - math.log(2) - torch.autograd.grad(x.sum(), u)[0].log().sum(1)
    )
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-9, atol=1e-6)


def test_draws_have_the_spectra_and_unit_variance():
    x = Regimes(1.0).draw(40_000, seeded(1))
    assert x.var().item() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(
        power(latent(x)).mean(0), Regimes(1.0).spectra.mean(0), rtol=0.06, atol=0
    )


def test_one_regime_has_the_entropy_of_a_gaussian_and_of_its_curve():
    law, (u, weight) = Regimes(0.0), hermegauss(200)
    of_curve = (weight * np.log(BEND / SPREAD / np.sqrt(1 + (BEND * u) ** 2))).sum() / weight.sum()
    entropy = 0.5 * (MODES * (2 * math.pi * math.e * law.spectra[0]).log()).sum() + 64 * of_curve
    nats = -law.log_prob(law.draw(20_000, seeded(2)))
    assert nats.mean().item() == pytest.approx(
        entropy.item(), abs=4 * nats.std().item() / math.sqrt(20_000)
    )


def test_a_circulant_map_has_the_log_determinant_of_its_jacobian_and_an_inverse():
    flow, x = Circulant(torch.randn(33, generator=seeded(3)).double()), torch.randn(3, 64).double()
    z, log_det = flow(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], x[0])
    torch.testing.assert_close(log_det, jacobian.slogdet().logabsdet.expand(3))
    torch.testing.assert_close(flow.inverse(z), x)
    white, _ = signals.whitening(Regimes(1.0))(Regimes(1.0).draw(20_000, seeded(4)).float())
    torch.testing.assert_close(power(white).mean(0), torch.ones(33), rtol=0.1, atol=0)


def test_the_exact_model_has_no_gap_and_a_false_scale_its_divergence():
    law, exact = Regimes(0.0), -0.5 * Regimes(0.0).spectra[0].log().float()
    for shift, divergence in ((0.0, 0.0), (0.1, 64 * (0.5 * math.exp(0.2) - 0.5 - 0.1))):
        flow = Compose([Straightened(), Circulant(exact + shift)])
        found = signals.gaps(
            INDM(flow, ScoreModel(Zero(), VPSDE()), shape=(64,)), law, law.draw(4_096, seeded(5))
        )
        assert found["gap"] == pytest.approx(divergence, abs=4 * found["error"] + 1e-3)


def test_the_network_turns_with_its_signal():
    net, z, level = Convolutions(width=8), torch.randn(2, 64), torch.zeros(2)
    assert not net(z, level).any()
    torch.nn.init.normal_(net.output.weight)
    torch.testing.assert_close(
        net(z.roll(4, 1), level), net(z, level).roll(4, 1), rtol=1e-4, atol=1e-5
    )


def test_all_is_made_once_and_shown(tmp_path, monkeypatch):
    search, table = (Records(tmp_path / f"{name}.csv") for name in ("search", "table"))
    small = {
        "SECONDS": 0.1,
        "TUNED": 0.05,
        "TEST": 128,
        "VALID": 64,
        "FITTED": 300,
        "TIMES": 2,
        "COMPONENTS": (1, 2),
    }
    for name, value in {"SEARCH": search, "TABLE": table, "SEEDS": {1.0: (1, 2)}, **small}.items():
        monkeypatch.setattr(signals, name, value)
    signals.main()
    assert len(search.rows()) <= 25 and len(table.rows()) == 2 * 9
    steps = {row["method"]: [n > 0 for n in row["steps"]] for row in table.rows() if "steps" in row}
    assert [steps[name] for name in ("INDM (coupling)", "coupling alone")] == [
        [True, True],
        [True, False],
    ]
    monkeypatch.setattr(signals, "run", lambda *arguments: 1 / 0)
    signals.main()
    assert len(signals.family(table).splitlines()) == 2 + 7
    assert "| INDM (coupling) |" in signals.markdown(table)
