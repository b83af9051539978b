"""The adapter of normflows: directions and signs against autograd and the library's own densities."""

import math

import pytest
import torch
from example import load
from flow_tools import batched_jacobian, perturb

import indm

normflows = pytest.importorskip("normflows")
NormflowsAdapter, NormflowsFlow = load("normflows_flow", "NormflowsAdapter", "NormflowsFlow")


def residual():
    net = normflows.nets.LipschitzMLP([2, 8, 2], init_zeros=False, lipschitz_const=0.7)
    return NormflowsAdapter(normflows.flows.Residual(net, brute_force=True))


# how to make one, its event shape, and what its inverse and its log-determinant may be off by
FLOWS = {
    "made-density": (
        lambda: NormflowsAdapter(normflows.flows.MaskedAffineAutoregressive(3, 8, num_blocks=1)), (3,), 1e-9, 1e-9,
    ),
    "chain": (lambda: NormflowsFlow((4,), steps=2, width=8), (4,), 1e-6, 1e-6),
    "actnorm": (lambda: NormflowsAdapter(normflows.flows.ActNorm([4, 1, 1])), (4, 2, 2), 1e-9, 1e-9),
    "glow": (lambda: NormflowsAdapter(*(normflows.flows.GlowBlock(4, 8) for _ in "12")), (4, 2, 2), 1e-6, 1e-6),
    "residual": (residual, (2,), 1e-3, 1e-6),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
@pytest.mark.parametrize("name", FLOWS)
def test_log_det_and_inverse_are_those_of_the_map(name):
    build, shape, off, tol = FLOWS[name]
    flow, x = build(), torch.randn(3, *shape)
    with torch.no_grad():
        flow(x)  # ActNorm is initialised by the first batch
    flow, x = perturb(flow, 0.2).double().eval(), x.double()
    z, log_det = flow(x)
    torch.testing.assert_close(
        log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1], rtol=tol, atol=tol
    )
    assert log_det.abs().max() > 1e-2 and not x.requires_grad
    with torch.no_grad():
        back, residual, _, converged = flow.solve_inverse(z, off)
    torch.testing.assert_close(back, x, rtol=off, atol=off)
    measured = (flow.latent(back) - z).detach().flatten(1).abs().amax(1) / z.flatten(1).abs().amax(
        1
    ).clamp_min(1)
    assert torch.equal(residual, measured) and bool(converged.all())


def test_density_and_samples_are_those_of_normflows():
    layers = [
        normflows.flows.CoupledRationalQuadraticSpline(4, 1, 8),
        normflows.flows.LULinearPermute(4),
    ]
    theirs = perturb(
        normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4, trainable=False), layers)
    )
    flow, x = NormflowsAdapter(*theirs.flows), torch.randn(5, 4)
    with torch.no_grad():
        z, log_det = flow(x)
        log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        torch.testing.assert_close(log_prob, theirs.log_prob(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(flow.inverse(z), theirs.forward(z), rtol=0, atol=0)


def test_a_flow_with_one_direction_has_its_log_determinant():
    flow = NormflowsAdapter(normflows.flows.Reverse(normflows.flows.Planar((3,)))).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    _, log_det = flow(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1])


def test_a_model_that_names_it_is_saved_and_loaded(tmp_path):
    tables = {"flow": {"name": "normflows_flow:NormflowsFlow", "steps": 1, "width": 8, "bins": 4}}
    tables |= {"sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8, "depth": 1}}
    with indm.trust("normflows_flow"):
        model, x = indm.build_model(tables, (4,)), torch.randn(5, 4)
        perturb(model.flow)
        assert model.description()["flow"].items() >= tables["flow"].items()
        model.save(tmp_path)
        again = indm.INDM.load(tmp_path)
    assert all(map(torch.equal, again.encode(x), model.encode(x)))
    torch.testing.assert_close(again.decode(again.encode(x)[0]), x, rtol=0, atol=1e-4)
