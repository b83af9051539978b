"""The laws of the dials against closed forms, and the table."""

import itertools
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

from indm import INDM
from indm.flows import Identity
from indm.nets import Zero
from indm.score import ScoreModel
from indm.sde import VPSDE
from research.records import Records
from research.verdict import dial
from research.verdict.dial import Atom, Ridge, Rows, Variant, gaps


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def entropy_of_atoms(law):
    """Nats, by enumeration of which entries are black: H(mask) + E over masks of the entropy of the
    entries in it.
    """
    u, weight = (torch.from_numpy(v) for v in hermegauss(80))
    slope = (u.sigmoid() * (-u).sigmoid()).log() + math.log(1 - law.width)
    log_slope = (weight * slope).sum() / weight.sum()
    total = 0.0
    for mask in itertools.product([False, True], repeat=law.columns):
        smooth = torch.tensor(mask)
        k, covariance = sum(mask), law.covariance[smooth][:, smooth]
        probability = (1 - law.share) ** k * law.share ** (law.columns - k)
        if probability:
            of_smooth = (
                0.5 * (k * math.log(2 * math.pi * math.e) + torch.logdet(covariance))
                + k * log_slope
            )
            total += probability * (
                of_smooth + (law.columns - k) * math.log(law.width) - math.log(probability)
            )
    return float(total)


@pytest.mark.parametrize("law", [Ridge(0.1, 1), Ridge(0.03, 4), Atom(0.0), Atom(0.3), Atom(0.6)])
def test_the_density_has_the_known_entropy(law):
    nats = -law.log_prob(law.draw(100_000, seeded()))
    if isinstance(law, Ridge):
        entropy = law.pairs * (math.log(2 * math.pi * math.e) + math.log(law.sigma))
    else:
        entropy = entropy_of_atoms(law)
    assert nats.mean().item() == pytest.approx(entropy, abs=4 * nats.std().item() / 100_000**0.5)


@pytest.mark.parametrize("law", [Ridge(0.3, 1), Atom(0.3, columns=2)])
def test_the_density_integrates_to_one(law):
    if isinstance(law, Ridge):
        axes = [torch.linspace(-6, 6, 1201).double(), torch.linspace(-4, 4, 801).double()]
    else:  # midpoints of 4 cells a level, so that no cell has an edge of the atom in it
        axes = [(torch.arange(1024).double() + 0.5) / 1024] * 2
    mass = law.log_prob(torch.cartesian_prod(*axes)).exp().sum() * math.prod(
        a[1] - a[0] for a in axes
    )
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def model_with(network, flow=None):
    return INDM(Identity() if flow is None else flow, ScoreModel(network, VPSDE()), shape=(2,))


def test_gaps_of_the_exact_model_are_zero_and_of_another_its_divergence():
    rows = torch.randn(dial.TEST, 2, generator=seeded())
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(rows).sum(1)
    exact = gaps(model_with(Zero()), Rows(rows, rows, log_prob))
    assert abs(exact["nelbo"][0]) < 4 * exact["nelbo"][1] + 1e-3 and abs(exact["flow"][0]) < 1e-5
    half = torch.distributions.Normal(0.0, 0.5)
    narrow = gaps(model_with(Zero()), Rows(rows / 2, rows / 2, half.log_prob(rows / 2).sum(1)))
    divergence = 2 * (math.log(2.0) + 0.125 - 0.5)
    assert narrow["flow"][0] == pytest.approx(divergence, abs=4 * narrow["flow"][1])
    assert narrow["nelbo"][0] == pytest.approx(divergence, abs=0.05)


def test_rows_are_standardised_and_their_density_is_in_those_units():
    law = Ridge(0.1, 1)
    rows = Rows.of(law, 0)
    std = law.draw(dial.TRAIN, seeded()).std(0)
    assert torch.allclose(rows.train.std(0), torch.ones(2), atol=1e-5)
    entropy = math.log(2 * math.pi * math.e * 0.1) - std.log().sum().item()
    assert -rows.log_prob.mean().item() == pytest.approx(entropy, abs=0.06)


def test_a_flow_that_comes_first_stays_and_the_score_behind_it_learns(monkeypatch):
    monkeypatch.setattr(dial, "STEPS", 20)
    costs, x = {"linear": 1.0, "flow alone": 1.0}, torch.randn(200, 2, generator=seeded())
    alone = dial.trained(
        Variant("coupling", dial.flow_loss, [], 1.0), (1e-2, 0.0), x, {**costs, "linear": 0.75}, 0
    )
    first = dial.trained(Variant("coupling", dial.PAIRED, [], 0.75), (1e-2, 1e-2), x, costs, 0)
    assert len(first.state_dict()) > len(alone.state_dict())
    assert bool(first.score.backbone.output.weight.any()) and not torch.equal(first.flow(x)[0], x)


@pytest.mark.parametrize(("name", "steps"), [("INDM", 5), ("spline", 10), ("flow alone", 10)])
def test_a_step_twice_as_dear_is_made_half_as_often(monkeypatch, name, steps):
    counted = []
    monkeypatch.setattr(dial, "STEPS", 10)
    monkeypatch.setattr(
        dial, "gradients", lambda *_: counted.append(1) or {"loss": torch.zeros(())}
    )
    costs = {"linear": 1.0, "spline": 1.0, "flow alone": 1.0, "INDM": 2.0}
    dial.trained(dial.VARIANTS[name], (1e-2, 1e-3), torch.zeros(4, 2), costs, 0)
    assert sum(counted) == steps


def test_a_dial_is_trained_once_at_the_best_rates_and_shown(tmp_path, monkeypatch):
    calls = []

    def made(law, variant, rates, costs, seed):
        calls.append((law, rates))
        return {"gap": law.sigma + rates[0] + rates[1] + seed / 100}

    monkeypatch.setattr(dial, "made", made)
    names = [name for name, variant in dial.VARIANTS.items() if variant.first in (0, 1)]
    monkeypatch.setattr(
        dial, "measured_costs", lambda columns: dict.fromkeys(names, 0.02) | {"linear": 0.01}
    )
    table, costs = Records(tmp_path / "table.csv"), Records(tmp_path / "costs.csv")
    for _ in range(2):
        dial.run("ridge-2", table, costs)
    tried = sum(len(variant.rates) for variant in dial.VARIANTS.values() if len(variant.rates) > 1)
    assert len(calls) == tried + len(dial.SEEDS) * 3 * 5
    assert {rates for law, rates in calls if law.pairs == 1 and rates[0] and not rates[1]} == {
        (1e-2, 0.0)
    }
    first = dial.markdown(table, "ridge-2").splitlines()[2]
    assert first.startswith("| 0.3 | 0.322 ± 0.006 |") and first.endswith("| 3 |")
    assert len(dial.tuning(table).splitlines()) == tried + 2
    assert dial.cost_table(costs).splitlines()[3] == "| spline | 20.0 | 500 | 20.0 | 500 |", (
        "for 8 and 2 columns"
    )
    monkeypatch.setattr(dial, "FIGURE", tmp_path / "figure.png")
    dial.figure(table)
    assert dial.FIGURE.stat().st_size > 10_000
