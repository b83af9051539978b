"""Flows of zuko and normflows: directions and signs against autograd and the libraries' own densities."""

import math
import sys

import normflows
import pytest
import torch
import zuko
from flow_tools import batched_jacobian, perturb

import indm
from indm.flows import Compose, NormflowsAdapter, NormflowsFlow, ZukoAdapter, ZukoFlow

PRECISE = {"atol": 1e-7, "rtol": 1e-7}  # of the ODE of a continuous flow


def planar(direction):
    return NormflowsAdapter(direction(normflows.flows.Planar((3,))))


def residual():
    net = normflows.nets.LipschitzMLP([2, 8, 2], init_zeros=False, lipschitz_const=0.7)
    return NormflowsAdapter(normflows.flows.Residual(net, brute_force=True))


FLOWS = {  # how to make one, its event shape, and what its inverse and its log-determinant may be off by
    "naf": (lambda: ZukoFlow((3,), "naf", 1, 8), (3,), 1e-5, 1e-9),
    "unaf": (lambda: ZukoFlow((3,), "UNAF", 1, 8), (3,), 1e-5, 1e-9),
    "sospf": (lambda: ZukoFlow((3,), "sospf", 2, 8), (3,), 1e-5, 1e-9),
    "bpf": (lambda: ZukoFlow((3,), "bpf", 2, 8), (3,), 1e-5, 1e-9),
    "gf": (lambda: ZukoFlow((3,), "gf", 2, 8, {"components": 4}), (3,), 1e-5, 1e-9),
    "cnf": (lambda: ZukoFlow((3,), "cnf", 1, 8, PRECISE), (3,), 1e-5, 1e-4),
    "lazy-transform": (lambda: ZukoAdapter(zuko.flows.MAF(4, transforms=2).transform.inv), (4,), 1e-9, 1e-9),
    "number-by-number": (lambda: ZukoAdapter(zuko.transforms.SoftclipTransform(5.0)), (2, 3), 1e-9, 1e-9),
    "made-density": (
        lambda: NormflowsAdapter(normflows.flows.MaskedAffineAutoregressive(3, 8, num_blocks=1)), (3,), 1e-9, 1e-9,
    ),
    "chain": (lambda: NormflowsFlow((4,), steps=2, width=8), (4,), 1e-6, 1e-6),
    "actnorm": (lambda: NormflowsFlow((4, 2, 2), ("ActNorm",), 1, options={"shape": [4, 1, 1]}), (4, 2, 2), 1e-9, 1e-9),
    "glow": (lambda: NormflowsFlow((4, 2, 2), "GlowBlock", 2, 8), (4, 2, 2), 1e-6, 1e-6),
    "residual": (residual, (2,), 1e-3, 1e-6),
}  # fmt: skip


@pytest.fixture(params=FLOWS)
def case(request):
    """A flow whose parameters have moved, in double precision, samples, and the two tolerances."""
    build, shape, inverse, log_det = FLOWS[request.param]
    flow, x = build(), torch.randn(3, *shape)
    with torch.no_grad():
        flow(x)  # normflows' ActNorm is initialised by the first batch
    return perturb(flow, 0.2).double().eval(), x.double(), inverse, log_det


def test_log_det_is_that_of_the_autograd_jacobian(case):
    flow, x, _, tol = case
    z, log_det = flow(x)
    assert log_det.shape == (3,) and z.dtype == log_det.dtype == torch.float64
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1], rtol=tol, atol=tol)
    assert log_det.abs().max() > 1e-2 and not x.requires_grad


def test_inverse_undoes_the_flow_and_its_certificate_is_measured(case):
    flow, x, tol, _ = case
    with torch.no_grad():
        z = flow.latent(x)
        back, residual, iterations, converged = flow.solve_inverse(z, tol)
    torch.testing.assert_close(back, x, rtol=tol, atol=tol)
    measured = (flow.latent(back) - z).detach().flatten(1).abs().amax(1) / z.flatten(1).abs().amax(1).clamp_min(1)
    assert torch.equal(residual, measured) and bool(converged.all()) and iterations.tolist() == [0, 0, 0]
    assert not back.requires_grad and not flow.inverse_is_formula


def test_density_is_that_of_zuko():
    theirs, x = perturb(zuko.flows.NSF(3, transforms=2, hidden_features=(8,))), torch.randn(5, 3)
    z, log_det = ZukoAdapter(theirs, inverse_is_formula=True)(x)
    log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(log_prob, theirs().log_prob(x), rtol=1e-5, atol=1e-5)


def test_density_and_samples_are_those_of_normflows():
    layers = [normflows.flows.CoupledRationalQuadraticSpline(4, 1, 8), normflows.flows.LULinearPermute(4)]
    theirs = perturb(normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4, trainable=False), layers))
    flow, x = NormflowsAdapter(theirs), torch.randn(5, 4)
    with torch.no_grad():
        z, log_det = flow(x)
        log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        torch.testing.assert_close(log_prob, theirs.log_prob(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(flow.inverse(z), theirs.forward(z), rtol=0, atol=0)


def test_an_inverse_that_misses_is_an_error():
    """zuko's bisection looks between −10 and 10 alone."""
    flow = ZukoAdapter(zuko.transforms.MonotonicTransform(lambda x: 2 * x))
    torch.testing.assert_close(flow.inverse(torch.tensor([[3.0], [-18.0]])), torch.tensor([[1.5], [-9.0]]))
    with pytest.raises(RuntimeError, match=r"inverse did not reach tol=5e-05 for 1 of 2 samples \(indices 1;"):
        flow.inverse(torch.tensor([[3.0], [-22.0]]))


def test_a_flow_that_lacks_a_direction_says_which():
    with pytest.raises(ValueError, match=r"planar\.Planar lacks the one from the data to the latent.*be trained"):
        planar(lambda flow: flow)(torch.randn(2, 3))
    flow, x = planar(normflows.flows.Reverse).double(), torch.randn(2, 3, dtype=torch.float64)
    z, log_det = flow(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1])
    with pytest.raises(ValueError, match=r"Reverse lacks the one from the latent to the data.*be sampled"):
        Compose([flow]).inverse(z)


def test_a_flow_that_changes_the_shape_is_an_error():
    with pytest.raises(ValueError, match=r"keep the shape \(2, 4, 2, 2\), but it makes it \(2, 1, 4, 4\)"):
        NormflowsAdapter(normflows.flows.Reverse(normflows.flows.Squeeze()))(torch.zeros(2, 4, 2, 2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ZukoFlow((3,), "nfs"), "kind must be one of .*'nfs'; did you mean 'nsf'"),
        (lambda: ZukoFlow((3,), "gmm"), "kind must be one of"),
        (lambda: ZukoFlow((3,), "ncsf"), "kind must be one of"),
        (lambda: ZukoFlow((3,), options={"no": 1}), "options do not fit zuko.flows.spline.NSF: .*'no'"),
        (lambda: NormflowsFlow((3,), "planar"), "kind must name classes of normflows.flows, got 'planar'.*'Planar'"),
        (lambda: NormflowsFlow((3,), "Flow"), "kind must name classes"),
        (lambda: NormflowsFlow((3,), "Residual"), "options do not fit normflows.flows.residual.Residual: .*'net'"),
        (lambda: NormflowsFlow((3,), options={"num_bin": 4}), "options has 'num_bin'.*did you mean 'num_bins'"),
        (lambda: NormflowsFlow((3,), steps=0), "at least one flow"),
    ],
)
def test_what_cannot_be_made_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("build", "name"), [(ZukoFlow, "zuko"), (NormflowsFlow, "normflows")])
def test_a_library_that_is_not_installed_is_named(build, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the library {name}: pip install 'indm\[{name}\]'"):
        build((3,))


@pytest.mark.parametrize(
    "table",
    [
        {"name": "zuko", "kind": "maf", "transforms": 2, "width": 8},  # as recipes had it from the first version on
        {"name": "zuko", "kind": "RealNVP", "width": 8, "options": {"randmask": True, "hidden_features": [4]}},
        {"name": "normflows", "steps": 1, "width": 8, "options": {"num_bins": 4}},
        {"name": "normflows", "kind": ["Permute", "InvertibleAffine"], "inverse_is_formula": True},
    ],
)
def test_flows_by_name_are_saved_and_loaded(table, tmp_path):
    tables = {"flow": table, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8, "depth": 1}}
    model, x = indm.build_model(tables, (4,)), torch.randn(5, 4)
    perturb(model.flow)
    assert model.description()["flow"].items() >= table.items()
    model.save(tmp_path)
    again = indm.INDM.load(tmp_path)
    assert all(map(torch.equal, again.encode(x), model.encode(x)))
    torch.testing.assert_close(again.decode(again.encode(x)[0]), x, rtol=0, atol=1e-4)
