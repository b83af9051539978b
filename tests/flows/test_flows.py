"""What single flows and the checks of flows do; what all flows have in common is in
tests/contracts.
"""

import math
import re

import pytest
import torch
from flow_tools import perturb
from torch import nn

from indm.flows import (
    ActNorm,
    Compose,
    CouplingFlow,
    ExactFlow,
    Flow,
    Frozen,
    Identity,
    ResidualFlow,
    SecondHalf,
    Squeeze,
    Unsqueeze,
    check_flow,
)


class Outside(Flow):
    """A composition by somebody else, whose parts do not lie where ours do."""

    def __init__(self, *flows):
        super().__init__()
        self.stages = nn.ModuleDict(
            {f"stage{i}": nn.Sequential(flow) for i, flow in enumerate(flows)}
        )

    def forward(self, x, *, generator=None):
        raise AssertionError("check needs no pass")

    def solve_inverse(self, z, tol=0.0):
        raise AssertionError("check needs no pass")


@pytest.mark.parametrize(
    "wrap, name",
    [
        (lambda flow: flow, ""),
        (lambda flow: Compose([Identity(), flow]), "flows.1."),
        (Frozen, "flow."),
        (SecondHalf, "flow."),
        (lambda flow: Outside(Identity(), flow), "stages.stage1.0."),
        (lambda flow: Outside(Compose([flow])), "stages.stage0.0.flows.0."),
    ],
)
def test_a_flow_checks_its_parts_and_names_the_one_that_fails(wrap, name):
    residual = ResidualFlow((4,), (1, 1), 8)
    flow = wrap(residual)
    flow.check()
    with torch.no_grad():
        residual.flows[1].maps[2].weight[0, 0] = math.inf
    with pytest.raises(
        RuntimeError, match=rf"^{re.escape(name)}flows\.1\.maps\.2\.weight has norm nan"
    ):
        flow.check()


def test_what_cannot_be_squeezed():
    for flow, x in [
        (Squeeze(), torch.zeros(2, 3, 5, 4)),
        (Squeeze(), torch.zeros(2, 3, 4, 5)),
        (Squeeze(), torch.zeros(2, 6)),
        (Unsqueeze(), torch.zeros(2, 6)),
        (Unsqueeze(), torch.zeros(2, 6, 3, 3)),
    ]:
        with pytest.raises(RuntimeError, match="shuffle"):  # PyTorch's own
            flow(x)


def test_compose_meets_the_data_in_the_order_given():
    double, shift = ActNorm(1), ActNorm(1)
    with torch.no_grad():
        double.log_scale.fill_(math.log(2))
        shift.shift.fill_(1.0)
    x = torch.tensor([[3.0]])
    assert Compose([double, shift])(x)[0].item() == pytest.approx(7)
    assert Compose([shift, double])(x)[0].item() == pytest.approx(8)
    assert Compose([shift, double]).inverse(torch.tensor([[8.0]])).item() == pytest.approx(3)


class Bent(ExactFlow):
    """z = eˢ x + tanh of the entry before, with an error where one is asked for."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x, *, generator=None):
        z = self.log_scale.exp() * x
        z = torch.cat([z[:, :1], z[:, 1:] + z[:, :-1].tanh()], 1)
        log_det = 0 * self.log_scale.sum() if self.wrong == "log_det" else self.log_scale.sum()
        return z, log_det.expand(len(x))

    def inverse_step(self, z):
        entries = [z[:, 0]]
        for i in (1, 2):
            entries.append(z[:, i] - (0 if self.wrong == "inverse" else entries[-1].tanh()))
        return torch.stack(entries, 1) * (-self.log_scale).exp()


def test_check_flow_finds_a_wrong_log_det_and_a_wrong_inverse():
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    check_flow(Bent(), x)
    assert torch.equal(torch.get_rng_state(), state), "it leaves the random state alone"
    wrong = Bent("log_det")
    assert wrong(x)[1].abs().max() == 0, "at its start it is right by luck"
    with pytest.raises(
        ValueError, match=r"Bent gives log\|det ∂z/∂x\| = 0 nats where its Jacobian has -?0\.\d+"
    ):
        check_flow(wrong, x)
    with pytest.raises(
        ValueError, match=r"Bent does not invert itself: h\(h⁻¹\(z\)\) is off from z by \d"
    ):
        check_flow(Bent("inverse"), x)
    assert wrong.log_scale.abs().max() == 0 and wrong.log_scale.dtype == torch.float32, (
        "it is left as it was"
    )


@pytest.mark.parametrize(
    "flow",
    [CouplingFlow((1, 4, 4), depth=1, width=8), ResidualFlow((5,))],
    ids=lambda flow: type(flow).__name__,
)
def test_check_flow_passes_right_flows(flow):
    check_flow(perturb(flow), torch.randn(2, *flow.shape))


class Noisy(Flow):
    """x and a draw, as the flow of a code: repeatable with a generator alone."""

    def forward(self, x, *, generator=None):
        return x + torch.randn(x.shape, generator=generator), x.new_zeros(len(x))

    def solve_inverse(self, z, tol=1e-5):
        raise NotImplementedError


def test_the_latent_of_a_composition_is_repeatable_with_a_generator():
    flow, x = Compose([Noisy(), Noisy()]), torch.zeros(3, 2)
    first, again = (flow.latent(x, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, flow(x, generator=torch.Generator().manual_seed(0))[0])


def test_a_frozen_identity_is_an_identity():
    assert Frozen(Identity()).is_identity and not Frozen(ActNorm(3)).is_identity
