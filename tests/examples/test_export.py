"""Exported programs against the model, for a batch of another size than the one that was traced."""

import jaxtyping
import numpy as np
import pytest
import torch
from example import load

import indm

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="its torch.export fixes the batch size"
)
(export,) = load("export", "export")
UNET = {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
CASES = {
    "coupling-mlp": (
        {"name": "coupling", "width": 8, "depth": 2},
        {"name": "mlp", "width": 8},
        (2,),
    ),
    "residual-mlp": (
        {"name": "residual", "blocks": [1], "width": 8},
        {"name": "mlp", "width": 8},
        (2,),
    ),
    "elementwise-unet": ({"name": "elementwise"}, UNET, (1, 8, 8)),
}


@pytest.fixture(
    params=[pytest.param(case, marks=pytest.mark.long if "unet" in case else ()) for case in CASES]
)
def exported(request, tmp_path, monkeypatch):
    """The folder of the programs, the model's inputs and its outputs."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # traced numbers are symbols
    flow, net, shape = CASES[request.param]
    model = indm.build_model({"flow": flow, "sde": {"name": "vp"}, "net": net}, shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t = torch.randn(7, *shape), torch.linspace(0.05, 0.95, 7)
        encoded = model.flow(x) if model.flow.inverse_is_formula else (model.flow.latent(x),)
        export(model, tmp_path)
        return (
            tmp_path,
            {"score": (x, t), "flow": (x,)},
            {"score": (model.score(x, t),), "flow": encoded},
        )


def test_programs_compute_what_the_model_does(exported):
    folder, inputs, outputs = exported
    for name, wanted in outputs.items():
        made = torch.export.load(folder / f"{name}.pt2").module()(*inputs[name])
        for a, b in zip(made if isinstance(made, tuple) else (made,), wanted, strict=True):
            assert torch.equal(a, b)


def test_onnx_computes_what_the_model_does(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, inputs, outputs = exported
    for name, wanted in outputs.items():
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        arrays = (x.numpy() for x in inputs[name])
        made = session.run(
            None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True))
        )
        for a, b in zip(made, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)
