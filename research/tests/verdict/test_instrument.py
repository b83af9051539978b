"""The laws of instrument.md by enumeration and by autograd, its methods after a step, its tables."""

import itertools
import math

import pytest
import torch

from indm.flows import InstrumentFlow
from research.records import Records
from research.verdict import instrument
from research.verdict.instrument import Chain, Code, Instrument, Telegraph, normal, seeded


def runs_of(levels):
    """The lengths of the runs of a sequence round the circle, one number for a constant one."""
    switches = [t for t in range(len(levels)) if levels[t] != levels[t - 1]]
    if not switches:
        return None
    following = [*switches[1:], switches[0] + len(levels)]
    return [after - before for before, after in zip(switches, following, strict=True)]


def test_the_telegraph_has_the_density_of_all_its_paths():
    law = Telegraph(10)
    u = law.draw(20, seeded(0))
    total, weights = torch.zeros(20).double(), 0.0
    for levels in itertools.product((-1.0, 1.0), repeat=10):
        lengths = runs_of(levels)
        if lengths is None:
            weight = 0.75**10
        elif min(lengths) < 3:
            continue
        else:
            weight = math.prod(0.25 * 0.75 ** (length - 3) for length in lengths)
        weights += weight
        total += weight * normal(u - torch.tensor(levels), 0.3).sum(1).exp()
    torch.testing.assert_close(law.log_prob(u), (total / weights).log())


def test_draws_of_the_telegraph_have_its_entropy_and_hold():
    """An average of log p over draws of a wrong chain would not be stationary round the circle."""
    u = Telegraph().draw(20_000, seeded(1))
    levels = u.sign()
    flips = (levels != levels.roll(1, 1)).double().mean(0)
    assert (flips - flips.mean()).abs().max() < 5 * math.sqrt(0.25 / 20_000)
    clean = Telegraph(10)
    one = torch.cat([clean.draw(4_000, seeded(2)), clean.draw(4_000, seeded(2)).roll(3, 1)])
    torch.testing.assert_close(*clean.log_prob(one).chunk(2))


def test_a_chain_is_a_density():
    torch.manual_seed(0)
    chain = Chain()
    grid = torch.linspace(-8, 8, 241)
    pairs = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        mass = chain.log_prob(pairs).exp().sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_the_code_is_a_mixture_of_gaussian_waves():
    law, u = Code(3), torch.linspace(-2, 2, 6).reshape(2, 3).double()
    wave = torch.fft.fft(torch.eye(3).double(), norm="ortho")
    total = torch.zeros(2).double()
    for scale, chance in ((law.STRONG, law.CHANCE), (law.WEAK, 1 - law.CHANCE)):
        power = torch.tensor([law.WEAK**2, scale**2, scale**2]).double()
        covariance = (wave @ torch.diag(power).to(wave) @ wave.mH).real
        gaussian = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
        total += chance * gaussian.log_prob(u).exp()
    torch.testing.assert_close(law.log_prob(u), total.log())


def test_the_instrument_has_the_density_of_its_jacobian():
    machine = Instrument(1, Telegraph(8), 1.0)
    u = machine.law.draw(3, seeded(3))
    _, log_prob = machine.of(u)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: machine.of(v[None])[0][0], u[i])
        expected = machine.law.log_prob(u[i : i + 1]) - jacobian.slogdet().logabsdet
        torch.testing.assert_close(log_prob[i : i + 1], expected)
    assert machine.draw(3, seeded(3))[1].dtype == torch.float32


def test_whitened_signals_are_white_and_the_density_is_kept():
    x = Instrument(0, Telegraph(), 1.0).draw(4_000, seeded(4))[1]
    z, _ = instrument.whitening(x)(x)
    power = torch.fft.rfft(z, norm="ortho").abs().square().mean(0)
    torch.testing.assert_close(power, torch.ones(17), rtol=1e-3, atol=0)


def test_the_true_instrument_is_recovered_exactly():
    """A flow that is set to the inverse has no errors, up to the spline that fits the curve."""
    machine = Instrument(2, Telegraph(), 1.0)
    flow = InstrumentFlow((32,), max_log_gain=20.0)
    with torch.no_grad():
        for part, gain in ((flow.first, machine.gains[1]), (flow.last, machine.gains[0])):
            logs, phase = -gain.abs().log().float(), -gain.angle().float()
            part.log_gain[0, part.place.flatten()] = 20 * (logs / 20).atanh()
            part.phase[0] = phase[1:-1]
    found = instrument.recovery(flow, machine)
    assert max(found[name] for name in ("a1_log", "a2_log", "a1_phase", "a2_phase")) < 1e-4
    assert found["curve"] > 0.01  # the flow's curve is a line


def test_all_is_made_once_and_shown(tmp_path, monkeypatch):
    search, table = (Records(tmp_path / f"{name}.csv") for name in ("search", "table"))
    small = {
        "SEARCH": search, "TABLE": table, "TUNED": 0.02, "TEST": 32, "VALID": 16, "TIMES": 1,
        "INSTRUMENTS": (0, 1), "SEEDS": (0,), "RATES": (1e-3,), "FLOW_RATES": (1e-2,),
        "VARIANTS": {"60 s": instrument.Variant(seconds=0.04)},
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(instrument, name, value)
    instrument.main("60 s")
    assert len(table.rows()) == 2 * 7 + 5
    monkeypatch.setattr(instrument, "run", lambda *arguments: 1 / 0)
    instrument.main("60 s")
    assert len(instrument.family(table, "60 s").splitlines()) == 2 + 6
    assert "| oracle |" in instrument.markdown(table, "60 s")
    assert "| INDM |" in instrument.recovered(table, "60 s")
    assert instrument.each(table, "60 s").count("| INDM") == 2
    instrument.figure(table)
