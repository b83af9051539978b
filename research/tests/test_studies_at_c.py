"""Studies of models of p(x|c), at the c of their data, and of flows that draw a code."""

import json
import math

import numpy as np
import pytest
import torch
from test_conditions import LETTERS, MEANS, MILD, GaussianScore, Stretch, gaussian_flow, labelled, mild_model

import indm
from indm.conditions import Classes
from indm.flows import Identity
from indm.published import ConditionalResidualFlow
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.sample_quality import make_generator, prior_draws
from indm.workbench.training.loop import train
from research.command import main
from research.flow_analysis.__main__ import FlowAnalysis
from research.flow_analysis.analysis import analyse
from research.measurements import MEASUREMENTS
from research.sampling_error.errors import discretization_error, path_error, sampling_errors
from research.sampling_error.transport import transport

SMALL = {
    "flow": "coupling", "flow.depth": 1, "flow.width": 4, "net": "mlp", "net.width": 16, "net.depth": 1,
    "train.steps": 3, "train.seconds": math.inf, "train.batch_size": 16,
}  # fmt: skip


def test_sampling_errors_are_at_the_c_of_the_training_split(monkeypatch):
    """What they give is what an exact score of one class gives, class by class, with the noise of the same rows."""
    data = labelled(torch.arange(60) // 20)
    monkeypatch.setattr("research.sampling_error.errors.BATCH", 20)
    options = {"steps": (3,), "samplers": ("unipc", "euler-maruyama"), "images": 60, "progress": False}
    monkeypatch.setattr("research.sampling_error.errors.CONVERGED_STEPS", 20)
    errors = sampling_errors(mild_model(), data, **options)
    z_T = prior_draws(mild_model(), 60, 0)
    apart, noise = [], make_generator(z_T, 0, 4)
    for number, part in enumerate(z_T.split(20)):
        alone = indm.INDM(Identity(), GaussianScore(MEANS[[number]], MILD[[number]]), shape=(2,))
        exact = gaussian_flow(part, torch.full((20,), number))
        (few,) = discretization_error(alone, part, exact.float(), steps=(3,), progress=False)
        (path,) = path_error(alone, part, steps=(3,), converged_steps=20, generator=noise, progress=False)
        apart.append((few["rms"] ** 2, path["rms"] ** 2))
    for row, squares in zip(errors["discretization"], zip(*apart, strict=True), strict=True):
        assert row["rms"] == pytest.approx(math.sqrt(sum(squares) / 3), rel=5e-3)
    draws = gaussian_flow(z_T, torch.arange(60) // 20)
    z = (data.train.tensor, indm.VPSDE().alpha(torch.ones(1)))
    from_data = gaussian_flow(z[0] * z[1] + z_T * indm.VPSDE().sigma(torch.ones(1)), torch.arange(60) // 20)
    assert errors["prior"]["rms"] == pytest.approx((draws - from_data).square().mean().sqrt().item(), rel=0.02)


def test_a_flow_is_analysed_at_the_c_of_each_example(monkeypatch):
    """In closed form; the probe's x_t near ε is x again only where h and h⁻¹ have the c of the row."""
    probed = []
    monkeypatch.setattr("research.flow_analysis.analysis._linear_accuracy", lambda x, labels: probed.append(x) or 0.5)
    factors, data = torch.tensor([2.0, 0.5, 10.0]), labelled(torch.arange(60) % 2)
    model = indm.INDM(Stretch(factors), GaussianScore(MEANS, MILD), shape=(2,), condition=Classes(LETTERS, flow=True))
    found = analyse(model, data, examples=50, progress=False)
    x, s = data.test.tensor[:50], factors[data.labels["test"][:50]][:, None]
    assert torch.allclose(torch.tensor(found["singular_values"]), s[:16].expand(16, 2))
    moved = ((s - 1) * x).square().sum() / x.square().sum()
    assert found["action"]["size"] == pytest.approx(moved.sqrt().item(), rel=1e-5)
    assert len(probed) == 9
    for split in ("train", "test"):
        assert np.allclose(probed[0][split], getattr(data, split).tensor[:50], atol=0.05)


def test_what_a_flow_does_is_that_at_the_conditions(tmp_path):
    """Where it does not see c, it is what it is without a condition."""
    train(indm.recipe("digits", SMALL | {"condition": "classes"}), tmp_path / "run", progress=False)
    few = ["--examples", "20", "--out", str(tmp_path), "--quiet"]
    assert main(FlowAnalysis, [str(tmp_path / "run"), *few]) == 0
    (found,) = json.loads((tmp_path / "flow.json").read_text())["runs"].values()
    model = indm.INDM.load(tmp_path / "run")
    model.condition = None
    assert found == analyse(model, load_data("digits"), examples=20, progress=False)


def test_a_flow_that_draws_a_code_has_neither_analysis_nor_transport(tmp_path, capsys):
    flow = ConditionalResidualFlow((1, 8, 8), (1,), 4, code_dim=2, encoder_planes=(4,), prior_steps=1, prior_width=4)
    model = indm.INDM(flow, indm.ScoreModel(indm.MLP((1, 8, 8), 8, 1), indm.VPSDE()), shape=(1, 8, 8)).eval()
    x = torch.randn(20, 1, 8, 8)
    for attempt in (lambda: transport(model, x), lambda: analyse(model, load_data("digits"), examples=20)):
        with pytest.raises(ValueError, match="log-determinant of one map"):
            attempt()
    assert [name for name, row in MEASUREMENTS.items() if row.fits(model)] == ["quality", "gap", "errors"]
