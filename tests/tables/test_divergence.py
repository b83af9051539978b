"""Divergences in closed form, against autograd."""

import pytest
import torch

from indm.tables.masked import MaskedMixtureMLP
from indm.tables.networks import MixtureMLP

ROWS = 5
# times the distance of a row of N(0, I)
FAR = torch.logspace(-1, 3, 60, dtype=torch.float64)[:, None]


def trained(net):
    """``net`` with weights and a mixture that are not those of its start, in double precision."""
    net = net.double().eval().requires_grad_(False)
    for part in net.children():
        for value in part.state_dict().values():
            value += 0.3 * torch.randn_like(value)
    return net


def mixture(components, d):
    root = torch.randn(components, d, d, dtype=torch.float64)
    weight = torch.rand(components, dtype=torch.float64) + 0.1
    identity = torch.eye(d, dtype=torch.float64)
    return (
        weight / weight.sum(),
        torch.randn(components, d, dtype=torch.float64),
        root @ root.mT + 0.1 * identity,
    )


def check(net, z, *given):
    output, divergence = net.with_divergence(z, *given)
    torch.testing.assert_close(output, net(z, *given))
    jacobian = torch.autograd.functional.jacobian(
        lambda z: net(z, *given).flatten(1).sum(0), z
    ).movedim(1, 0)
    expected = jacobian.flatten(2).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("conditions", [0, 2])
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (6,), (2, 2)])
@pytest.mark.parametrize("fourier", [0, 2])
def test_a_mixture_has_its_divergence(fourier, shape, conditions, components):
    torch.manual_seed(0)
    condition = (conditions + 1,) if conditions else ()
    net = trained(
        MixtureMLP(shape, components, width=8, depth=2, fourier=fourier, condition=condition)
    )
    net.set_mixture(*mixture(components, net.mean.shape[1] + conditions))
    k, d = max(conditions, 1), net.mean.shape[1]
    # correlated columns
    net.set_columns(torch.randn(d, d), torch.randn(d), torch.randn(k, d)[:conditions])
    z, level = (
        torch.randn(ROWS, *shape, dtype=torch.float64),
        torch.linspace(-4, 3, ROWS, dtype=torch.float64),
    )
    check(net, z, level)
    far = (FAR * z[0].flatten()).unflatten(1, shape), level[2:3].expand(len(FAR))
    gate = net.mixture_at(*far).gate()
    # where what is learned fades, that is a part of the divergence
    assert ((gate > 0) & (gate < 1)).any()
    check(net, *far)
    if conditions:
        check(net, z, level, torch.randn(ROWS, conditions + 1, dtype=torch.float64))


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("questions", [1, ROWS], ids=["one question", "a question each"])
@pytest.mark.parametrize("d", range(1, 7))
def test_asked_columns_have_their_divergence(d, questions, components):
    torch.manual_seed(0)
    net = trained(MaskedMixtureMLP((d,), (3,), components, width=8, depth=2))
    net.set_mixture(*mixture(components, d), torch.rand(components, 3).log())
    asked = torch.rand(questions, d) < 0.6
    given = (torch.rand(questions, d) < 0.7) & ~asked
    net = net.asked(asked, given)
    index = torch.arange(ROWS) % questions
    one_hot = torch.eye(3, dtype=torch.float64)[torch.arange(ROWS) % 3]
    c = net.condition(torch.randn(ROWS, d, dtype=torch.float64), one_hot, index)
    z, level = (
        torch.randn(ROWS, d, dtype=torch.float64),
        torch.linspace(-4, 3, ROWS, dtype=torch.float64),
    )
    check(net, z, level, c)
    check(net, FAR * z[:1], level[2:3].expand(len(FAR)), c[:1].expand(len(FAR), -1))
