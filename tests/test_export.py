"""Exported programs against the model, for other batches than the one that was traced."""

import sys

import jaxtyping
import numpy as np
import pytest
import torch
from own_sde import EachEntry
from torch import nn

import indm
from indm import programs

pytestmark = pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its torch.export fixes the batch size")
CASES = {
    "elementwise-mlp-each-entry": ({"name": "elementwise"}, {"name": EachEntry}, {"name": "mlp", "width": 8}, (3,)),
    "residual-mlp-vp": ({"name": "residual", "blocks": [1, 1], "width": 8}, {"name": "vp"}, {"name": "mlp"}, (2,)),
    "coupling-mlp-vp": (
        {"name": "coupling", "width": 8, "depth": 2},
        {"name": "vp"},
        {"name": "mlp", "width": 8},
        (2,),
    ),
    "coupling-unet-ve": (
        {"name": "coupling", "width": 4, "depth": 1, "levels": 1},
        {"name": "ve"},
        {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": []},
        (1, 8, 8),
    ),
    "elementwise-unet-vp": (
        {"name": "elementwise"},
        {"name": "vp"},
        {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
        (1, 8, 8),
    ),
}
QUICK = "residual-mlp-vp"


@pytest.fixture(autouse=True)
def without_checks():
    """While a program is traced its numbers are symbols, which are no floats."""
    jaxtyping.config.update("jaxtyping_disable", True)


def moved_model(case):
    """A model with noise on every parameter, in evaluation mode, and a batch of it."""
    flow, sde, net, shape = CASES[case]
    model = indm.build_model({"flow": flow, "sde": sde, "net": net}, shape).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, torch.randn(7, *shape), torch.linspace(0.05, 0.95, 7)


def wanted(model, x):
    exact = model.flow.inverse_is_formula
    return model.flow(x) if exact else (model.flow.latent(x),)


@pytest.mark.parametrize("case", [c if c == QUICK else pytest.param(c, marks=pytest.mark.long) for c in CASES])
def test_programs_compute_what_the_model_does(case, tmp_path):
    model, x, t = moved_model(case)
    files = indm.export(model, tmp_path)
    assert [file.name for file in files] == ["score.pt2", "flow.pt2"]
    score, flow = (torch.export.load(file).module() for file in files)
    with torch.no_grad():
        assert torch.equal(score(x, t), model.score(x, t))
        found = flow(x)
        for a, b in zip(found if isinstance(found, tuple) else (found,), wanted(model, x), strict=True):
            assert torch.equal(a, b)


ONNX = ("coupling-mlp-vp", "elementwise-unet-vp", "residual-mlp-vp")  # flows and networks of the recipes


@pytest.mark.long
@pytest.mark.parametrize("case", ONNX)
def test_onnx_computes_what_the_model_does(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, t = moved_model(case)
    files = indm.export(model, tmp_path, onnx=True)
    with torch.no_grad():
        expected = {"score": [model.score(x, t)], "flow": wanted(model, x)}
    assert sorted(file.stem for file in files if file.suffix == ".onnx") == ["flow", "score"]
    for file in files:
        if file.suffix == ".onnx":
            session = onnxruntime.InferenceSession(file)
            inputs = dict(zip([i.name for i in session.get_inputs()], (x.numpy(), t.numpy()), strict=False))
            for a, b in zip(session.run(None, inputs), expected[file.stem], strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("right", [True, False])
def test_onnx_finds_the_place_among_knots_that_are_equal_too(right, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")

    class Place(nn.Module):
        def forward(self, knots, values):
            return torch.searchsorted(knots, values, right=right)

    knots, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]])
    program = torch.export.export(Place(), (knots, values))
    programs._write_onnx(program, tmp_path / "place.onnx", "place")
    session = onnxruntime.InferenceSession(tmp_path / "place.onnx")
    names = [i.name for i in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (knots.numpy(), values.numpy()), strict=True)))
    assert found.tolist() == torch.searchsorted(knots, values, right=right).tolist()


@pytest.mark.long
def test_what_onnx_lacks_is_said(tmp_path):
    pytest.importorskip("onnxscript")

    class Outside(indm.flows.Identity):
        def forward(self, x, *, generator=None):
            return torch.igamma(x.abs(), x.abs()), x.sum(1)

    model, _, _ = moved_model("coupling-mlp-vp")
    model.flow = Outside()
    with pytest.raises(ValueError, match=r"the flow has no form in ONNX: .*igamma"):
        indm.export(model, tmp_path, onnx=True)


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_without_the_packages_of_onnx_one_line_says_how_to_get_them(name, tmp_path, monkeypatch):
    model, _, _ = moved_model("coupling-mlp-vp")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"^export to ONNX needs .*: pip install onnx onnxscript$"):
        indm.export(model, tmp_path / "programs", onnx=True)
    assert not (tmp_path / "programs").exists()


def test_a_flow_with_a_code_is_refused(tmp_path):
    flow = {"name": "conditional-residual", "blocks": [1], "width": 4, "code_dim": 2}
    tables = {"flow": flow, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    with pytest.raises(ValueError, match="export"):
        indm.export(indm.build_model(tables, (3, 8, 8)), tmp_path)
