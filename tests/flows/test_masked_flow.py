"""Masked autoregressive flows: what each number sees. Log-determinant and inverse are in
tests/contracts.
"""

import pytest
import torch
from flow_tools import batched_jacobian, perturb

from indm.conditions import given
from indm.flows import MaskedFlow


@pytest.mark.parametrize("transform", ["affine", "spline"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_number_sees_all_numbers_before_it_and_none_after(step, transform):
    torch.manual_seed(0)
    flow = perturb(MaskedFlow((4,), depth=2, width=16, transform=transform)).double().flows[step]
    jacobian = batched_jacobian(flow, torch.randn(3, 4).double())
    # the second step begins with the last number
    jacobian = jacobian.flip(1, 2) if step else jacobian
    assert not jacobian.triu(1).any()
    assert bool((jacobian.tril(-1).abs().amax(0)[torch.ones(4, 4).tril(-1) > 0] > 1e-6).all())
    assert bool((jacobian.diagonal(dim1=1, dim2=2) > 0).all())


def test_a_single_number_has_a_curve_of_its_own():
    flow = perturb(MaskedFlow((1,), depth=1, width=4)).double()
    x = torch.linspace(-3, 3, 50).double()[:, None]
    assert bool((flow(x)[0].diff(dim=0) > 0).all()) and (flow(x)[0] - x).std() > 1e-3


def test_a_condition_reaches_every_number():
    torch.manual_seed(0)
    flow = perturb(MaskedFlow((3,), depth=1, width=16, condition=(2,))).double()
    x = torch.randn(1, 3).double()
    one, other = (given(flow, torch.tensor([[a, 1.0]]).double())(x)[0] for a in (0.0, 1.0))
    assert bool(((one - other).abs() > 1e-6).all())


@pytest.mark.parametrize(
    "options, named",
    [
        ({"shape": (2, 3)}, "shape"),
        ({"shape": (0,)}, "shape"),
        ({"depth": 0}, "depth"),
        ({"bins": 1}, "bins"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        MaskedFlow(**({"shape": (3,)} | options))
