"""python -m research.flow_analysis, on tiny runs of digits."""

import json
import math

from PIL import Image

import indm
from indm.workbench.training.loop import train
from research.command import main
from research.flow_analysis.__main__ import FlowAnalysis

SMALL = {
    "flow": "coupling", "flow.depth": 1, "flow.width": 4, "net": "mlp", "net.width": 16, "net.depth": 1,
    "train.steps": 3, "train.seconds": math.inf, "train.batch_size": 16,
}  # fmt: skip


def run_of(folder, **changes):
    train(indm.recipe("digits", SMALL | changes), folder, progress=False)
    return folder


def test_it_writes_what_the_flow_does(tmp_path, capsys):
    run = run_of(tmp_path / "run")
    command = [str(run), "--examples", "300", "--out", str(tmp_path), "--quiet"]
    assert main(FlowAnalysis, command) == 0
    found = json.loads((tmp_path / "flow.json").read_text())["runs"][str(run)]
    assert len(found["singular_values"]) == 16 and len(found["singular_values"][0]) == 64
    accuracies = [point["accuracy"] for point in found["probe"]]
    assert accuracies[0] > 0.8 and accuracies[-1] < 0.25
    assert Image.open(tmp_path / "flow.png").size[0] > 1000
    assert "position" in capsys.readouterr().out
    for line, said in (
        (command, "add --overwrite to write that anew"),
        ([], "run folders must be at least one, got none"),
        ([str(run), "--examples", "0", "--out", str(tmp_path / "new")], "examples must be at least"),
        ([str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert main(FlowAnalysis, line) == 2
        shown = capsys.readouterr().err
        assert said in shown and shown.startswith("research.flow_analysis: error: ") and shown.count("\n") == 1
