"""The adapter of zuko: directions and signs against autograd and the library's own density."""

import math

import pytest
import torch
from example import load
from flow_tools import batched_jacobian, perturb

import indm

zuko = pytest.importorskip("zuko")
(ZukoFlow,) = load("zuko_flow", "ZukoFlow")


@pytest.mark.parametrize("kind, formula", [("NSF", True), ("RealNVP", True), ("NAF", False)])
def test_log_det_and_inverse_are_those_of_the_map(kind, formula):
    flow, x = (
        perturb(ZukoFlow((3,), kind, 1, 8), 0.2).double().eval(),
        torch.randn(3, 3, dtype=torch.float64),
    )
    z, log_det = flow(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(flow, x))[1])
    assert log_det.abs().max() > 1e-2 and flow.inverse_is_formula == formula
    torch.testing.assert_close(flow.inverse(z), x, rtol=1e-5, atol=1e-5)


def test_density_is_that_of_zuko():
    flow, theirs, x = (
        ZukoFlow((3,)),
        perturb(zuko.flows.NSF(3, hidden_features=(8,))),
        torch.randn(5, 3),
    )
    flow.lazy = theirs.transform
    z, log_det = flow(x)
    log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(log_prob, theirs().log_prob(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_names_it_is_saved_and_loaded(tmp_path):
    tables = {"flow": {"name": "zuko_flow:ZukoFlow", "kind": "MAF", "width": 8}}
    tables |= {"sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8, "depth": 1}}
    with indm.trust("zuko_flow"):
        model, x = indm.build_model(tables, (4,)), torch.randn(5, 4)
        assert model.description()["flow"].items() >= tables["flow"].items()
        model.save(tmp_path)
        again = indm.INDM.load(tmp_path)
    assert all(map(torch.equal, again.encode(x), model.encode(x)))
    torch.testing.assert_close(again.decode(again.encode(x)[0]), x, rtol=0, atol=1e-4)
