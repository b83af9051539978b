"""The places of silenced.md against identities and closed forms, and when a method leaves a
network.
"""

import math

import pytest
import torch

from indm.nets import MLP
from indm.score import ScoreModel
from research.verdict import field
from research.verdict.silenced import METHODS, SDE, SITES, Bound, Check, Linear, Scaled, jobs


@pytest.fixture(scope="module")
def fields():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field, "WARM", 100)
        patch.setattr(field, "CHAINS", 1_000)
        return field.Field(6.008).draws(1, 0).flatten(0, 1)


def test_draws_of_a_field_obey_the_identity_of_schwinger_and_dyson(fields):
    """E[Σ φ ∂S/∂φ] is the number of sites, by partial integration, whatever the action."""
    x = fields.requires_grad_()
    (slope,) = torch.autograd.grad(field.Field(6.008).action(x).sum(), x)
    each = (x * slope).flatten(1).sum(1)
    assert abs(each.mean().item() - 64) < 4 * each.std().item() / math.sqrt(len(each))


def test_a_step_changes_the_action_by_what_the_local_part_says():
    law, generator = field.Field(4.5), torch.Generator().manual_seed(0)
    x, proposed = torch.randn(2, 3, 1, 8, 8, generator=generator, dtype=torch.float64)
    around = field.neighbours(x)
    y = x.clone()
    y[:, 0, 2, 5] = proposed[:, 0, 2, 5]
    change = (law._local(proposed, around) - law._local(x, around))[:, 0, 2, 5]
    torch.testing.assert_close(law.action(y) - law.action(x), change)


def test_the_spectrum_is_a_flow_that_whitens(fields):
    x = fields.detach().float()
    flow = field.curve_and_spectrum(x)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-4, rtol=1e-4)
    jacobian = torch.autograd.functional.jacobian(
        lambda row: flow(row[None])[0].flatten(), x[0]
    ).reshape(64, 64)
    assert log_det[0].item() == pytest.approx(jacobian.slogdet()[1].item(), abs=1e-3)
    power = torch.fft.fft2(z, norm="ortho").abs().square().mean((0, 1))
    torch.testing.assert_close(power, torch.ones(8, 8), atol=0.05, rtol=0)


def test_a_whitening_gives_rows_the_unit_covariance():
    x = torch.randn(2_000, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]])
    flow = Linear(x)
    z, log_det = flow(x)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), atol=1e-3, rtol=0)
    assert log_det[0].item() == pytest.approx(-0.5 * x.T.cov().logdet().item(), abs=1e-3)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-4, rtol=0)


class Shrunk(torch.nn.Module):
    """The exact correction of N(0, I) to N(0, v I)."""

    def __init__(self, variance: float):
        super().__init__()
        self.variance = variance

    def forward(self, y, level):
        r = (2 * level).exp()[:, None]
        return r.sqrt() * (1 + r).sqrt() * y * (1 / (self.variance + r) - 1 / (1 + r))


def test_a_gain_is_the_divergence_between_the_laws():
    """From N(0, I) to N(0, 0.25 I), the truth, in two columns: KL = log(1/0.25) − 1 + 0.25 nats."""
    z = 0.5 * torch.randn(4_000, 2, generator=torch.Generator().manual_seed(0))
    gains, size, spread = Bound(z, torch.zeros(len(z), 0), 8_000).gains(
        ScoreModel(Shrunk(0.25), SDE)
    )
    error = gains.std().item() / math.sqrt(len(gains))
    assert gains.mean().item() == pytest.approx(math.log(4) - 0.75, abs=4 * error) and error < 0.05
    assert 0.2 < spread < size


def test_a_constant_has_a_size_and_no_spread():
    class Constant(torch.nn.Module):
        def forward(self, y, level):
            return torch.full_like(y, 0.1)

    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    _, size, spread = Bound(z, torch.zeros(len(z), 0), 200).gains(ScoreModel(Constant(), SDE))
    assert size == pytest.approx(0.1 * math.sqrt(2), rel=1e-4) and spread < 1e-6


def test_a_scale_multiplies_the_network_at_each_level():
    network = MLP((2,), width=8)
    torch.nn.init.normal_(network.output.weight)
    scaled = Scaled(network)
    with torch.no_grad():
        scaled.log_scale.copy_(torch.linspace(-2, 1.5, 8))
    z, level = torch.randn(2, 2), torch.tensor([-8.0, -1.0])
    found = scaled(z, level) / network(z, level)
    torch.testing.assert_close(found, torch.tensor([-2.0, -0.25]).exp()[:, None].expand(2, 2))


def test_a_network_is_left_when_it_is_dead_or_not_heard_in_time():
    heard, silent, dead = (
        Check(0.1, 0.01, 0.1, 0.3, 0.3),
        Check(0.01, 0.01, 0.0, 0.3, 0.3),
        Check(0.0, 0.0, 0.0, 0.03, 1e-5),
    )
    window, restart, plain = METHODS["window"], METHODS["restart"], METHODS["rate 0.004"]
    assert (
        window.is_over(dead, 101, 0.1)
        and restart.is_over(dead, 101, 0.1)
        and not plain.is_over(dead, 101, 0.9)
    )
    assert not restart.is_over(dead, 99, 0.1), "within the warm-up nothing is dead"
    assert window.is_over(silent, 500, 0.25) and not window.is_over(silent, 500, 0.2)
    assert not window.is_over(heard, 500, 0.5) and not restart.is_over(silent, 500, 0.5)


def test_every_job_has_a_place_and_a_method():
    for place, method, _ in jobs():
        assert place in SITES and (method in METHODS or method == "diffusion first")
