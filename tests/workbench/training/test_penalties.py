"""The penalties of the flow, against flows whose Jacobian and terminal law are known."""

import pytest
import torch
from closed_form import within

from indm.flows import ActNorm, Compose, Identity, InvertibleLinear
from indm.model import INDM
from indm.nets import Zero
from indm.objective import Objective, flow_nll
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde.linear import VESDE, VPSDE
from indm.training import FlowUse, TrainingStep
from indm.workbench.data.base import Data, InMemory
from indm.workbench.training.parts import (
    Penalty,
    normal_law,
    terminal_law,
    with_noise,
)


def model_of(flow, sde):
    return INDM(flow, ScoreModel(Zero(), sde))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=3.0)])
def test_terminal_density_of_an_affine_flow_is_gaussian(sde):
    torch.manual_seed(2)
    flow = Compose([ActNorm(3), InvertibleLinear(3, "rotation")]).double()
    with torch.no_grad():
        flow.flows[0].log_scale.copy_(torch.tensor([0.5, -0.2, 0.1]))
        flow.flows[0].shift.copy_(torch.tensor([1.0, 0.0, -2.0]))
    x = torch.randn(7, 3, dtype=torch.float64)
    scale, shift = flow.flows[0].log_scale.exp(), flow.flows[0].shift
    law = torch.distributions.Independent(torch.distributions.Normal(-shift / scale, sde.prior_std / scale), 1)
    torch.testing.assert_close(flow_nll(model_of(flow, sde), x), -law.log_prob(x), rtol=1e-5, atol=1e-5)


def test_normal_law_has_the_moments_of_the_data():
    torch.manual_seed(3)
    mix = torch.randn(6, 6, dtype=torch.float64)
    x = (torch.rand(5000, 6, dtype=torch.float64) @ mix + 1.5).reshape(-1, 2, 3)
    drawn = normal_law(x)(40_000)
    assert drawn.shape == (40_000, 2, 3)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.flatten(1).T.cov(), x.flatten(1).T.cov(), rtol=0.05, atol=0.03)


def test_a_law_with_noise_is_its_convolution_with_a_normal_one():
    """Two points: means stay, and variances are those of the noise about each."""
    torch.manual_seed(5)

    def law(n):
        return (torch.arange(n) % 2).float()[:, None].expand(n, 3)

    draws = with_noise(law, 0.5)(40_000)
    for point in (0, 1):
        about = draws[point::2]
        assert within(about, point) and within((about - point).square(), 0.25)
    assert with_noise(law, 0.0) is law


@pytest.mark.parametrize("flip", [False, True])
def test_the_terminal_law_flips_the_second_data_where_they_allow_it(flip):
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    data = Data("one", *(InMemory(image.repeat(3, 1, 1, 1)),) * 3, Scaling(), (1, 2, 2), flip=flip)
    model = INDM(Identity(), ScoreModel(Zero(), VPSDE()), data.scaling)
    draws = terminal_law(model, data, data, torch.device("cpu"))(400)
    mirrored = (draws == image.flip(-1)).flatten(1).all(1)
    assert torch.equal(draws[~mirrored], image.expand(int((~mirrored).sum()), 1, 2, 2))
    assert mirrored.float().mean().item() == pytest.approx(0.5 if flip else 0.0, abs=0.12 if flip else 0.0)


@pytest.mark.parametrize("in_nats, share", [(False, 1), (True, 4)])
def test_a_penalty_in_nats_enters_the_loss_per_dimension_like_the_bound(in_nats, share):
    model = INDM(Identity(), ScoreModel(Zero(), VPSDE()), shape=(4,))
    objective = Objective(lambda model, x: (torch.tensor(10.0), {"nelbo": torch.tensor(40.0)}))
    penalty = Penalty("bend", 3.0, lambda model, x: torch.tensor(2.0), in_nats)
    loss, terms = TrainingStep(model, objective, [penalty])(torch.zeros(5, 4))
    assert loss.item() == terms["loss"].item() == pytest.approx(10 + 3 * 2 / share)
    assert terms["bend"].item() == 2


@pytest.mark.parametrize("use", [FlowUse.TRAINED, FlowUse.FROZEN])
def test_a_step_sees_data_with_the_noise_of_a_bridge(use):
    model, seen = INDM(Identity(), ScoreModel(Zero(), VPSDE()), shape=(4,)), []
    objective = Objective(lambda model, x: (seen.append(x) or x.square().mean(), {}))
    TrainingStep(model, objective, noise=0.5)(torch.full((20_000, 4), 2.0), flow_use=use)
    off = (seen[0] - 2).flatten()
    assert within(off, 0.0) and within(off.square(), 0.25)
