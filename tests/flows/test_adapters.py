"""Flows of zuko, and the door for others: directions and signs against autograd and the library's own density."""

import math
import sys

import pytest
import torch
import zuko
from flow_tools import batched_jacobian, perturb

import indm
from indm.flows import Compose, ForeignFlow, ZukoAdapter, ZukoFlow

PRECISE = {"atol": 1e-7, "rtol": 1e-7}  # of the ODE of a continuous flow
FLOWS = {  # how to make one, its event shape, and what its inverse and its log-determinant may be off by
    "naf": (lambda: ZukoFlow((3,), "naf", 1, 8), (3,), 1e-5, 1e-9),
    "unaf": (lambda: ZukoFlow((3,), "UNAF", 1, 8), (3,), 1e-5, 1e-9),
    "sospf": (lambda: ZukoFlow((3,), "sospf", 2, 8), (3,), 1e-5, 1e-9),
    "bpf": (lambda: ZukoFlow((3,), "bpf", 2, 8), (3,), 1e-5, 1e-9),
    "gf": (lambda: ZukoFlow((3,), "gf", 2, 8, {"components": 4}), (3,), 1e-5, 1e-9),
    "cnf": (lambda: ZukoFlow((3,), "cnf", 1, 8, PRECISE), (3,), 1e-5, 1e-4),
    "lazy-transform": (lambda: ZukoAdapter(zuko.flows.MAF(4, transforms=2).transform.inv), (4,), 1e-9, 1e-9),
    "number-by-number": (lambda: ZukoAdapter(zuko.transforms.SoftclipTransform(5.0)), (2, 3), 1e-9, 1e-9),
}  # fmt: skip


@pytest.fixture(params=FLOWS)
def case(request):
    """A flow whose parameters have moved, in double precision, samples, and the two tolerances."""
    build, shape, inverse, log_det = FLOWS[request.param]
    flow, x = build(), torch.randn(3, *shape)
    with torch.no_grad():
        flow(x)
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


def test_an_inverse_that_misses_is_an_error():
    """zuko's bisection looks between −10 and 10 alone."""
    flow = ZukoAdapter(zuko.transforms.MonotonicTransform(lambda x: 2 * x))
    torch.testing.assert_close(flow.inverse(torch.tensor([[3.0], [-18.0]])), torch.tensor([[1.5], [-9.0]]))
    with pytest.raises(RuntimeError, match=r"inverse did not reach tol=5e-05 for 1 of 2 samples \(indices 1;"):
        flow.inverse(torch.tensor([[3.0], [-22.0]]))


class Half(ForeignFlow):
    """Twice x in one direction; the library lacks the other, or gives it another shape."""

    def to_latent(self, x):
        return 2 * x, x.flatten(1).shape[1] * math.log(2)

    def to_data(self, z):
        raise NotImplementedError


def test_a_flow_that_lacks_a_direction_says_which():
    x = torch.randn(2, 3, dtype=torch.float64)
    z, log_det = Half(False)(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(Half(False), x))[1])
    with pytest.raises(ValueError, match=r"Half lacks the one from the latent to the data.*be sampled"):
        Compose([Half(False)]).inverse(z)


def test_a_flow_that_changes_the_shape_is_an_error(monkeypatch):
    monkeypatch.setattr(Half, "to_latent", lambda self, x: (x.reshape(2, 1, 4, 4), 0.0))
    with pytest.raises(ValueError, match=r"keep the shape \(2, 4, 2, 2\), but it makes it \(2, 1, 4, 4\)"):
        Half(False)(torch.zeros(2, 4, 2, 2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ZukoFlow((3,), "nfs"), "kind must be one of .*'nfs'; did you mean 'nsf'"),
        (lambda: ZukoFlow((3,), "gmm"), "kind must be one of"),
        (lambda: ZukoFlow((3,), "ncsf"), "kind must be one of"),
        (lambda: ZukoFlow((3,), options={"no": 1}), "options do not fit zuko.flows.spline.NSF: .*'no'"),
    ],
)
def test_what_cannot_be_made_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ValueError, match=r"needs the library zuko: pip install zuko"):
        ZukoFlow((3,))


@pytest.mark.parametrize(
    "table",
    [
        {"name": "zuko", "kind": "maf", "transforms": 2, "width": 8},  # as recipes had it from the first version on
        {"name": "zuko", "kind": "RealNVP", "width": 8, "options": {"randmask": True, "hidden_features": [4]}},
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
