"""Files that are given for an evaluation alone, in place of the data of the training."""

import json

import numpy as np
import pytest
from PIL import Image

import indm
from indm.workbench.cli.main import main
from indm.workbench.evaluation.results import evaluate_run
from indm.workbench.recipes import recipe as recipes

TABLES = {"flow": "identity", "sde": "vp", "net": "zero"}
QUIET = ["--nll-examples", "0", "--quiet"]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved model of grey 8×8 images, whose data were given in Python, beside a folder of 30
    images of 12×12.
    """
    monkeypatch.chdir(tmp_path)
    indm.build_model(TABLES, (1, 8, 8), indm.Scaling.images(256)).save("saved")
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(f"images/{number}.png")
    np.save("images.npy", pixels[:, :8, :8])
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "data",
    [
        ["--data", "folder", "--data.path", "images"],
        ["--data.path", "images"],
        ["--data.path", "images.npy"],
    ],
)
def test_files_are_used_whole_in_the_size_of_the_model(saved, data, capsys):
    assert main(["evaluate", "saved", *data, *QUIET]) == 0
    found, (*_, verdict) = (
        json.loads((saved / "evaluation.json").read_text()),
        capsys.readouterr().out.splitlines(),
    )
    assert found["images"]["nelbo"] == 30 and found["split"] == "all"
    assert found["baselines"].keys() == {"uniform", "png"}, (
        "the model's own data are not at hand to fit a Gaussian"
    )
    assert "not the data" not in verdict


def test_ctrl_c_prints_what_is_done_and_writes_nothing(saved, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("indm.evaluation.measures.NLL.estimate", stop)
    assert main(["evaluate", "saved", "--data.path", "images", "--quiet"]) == 130
    said = capsys.readouterr()
    assert (
        "NELBO" in said.out and "NLL" not in said.out and said.out.endswith("nothing was written\n")
    )
    assert "Traceback" not in said.err and not (saved / "evaluation.json").exists()


@pytest.mark.filterwarnings("ignore:the run ended")
def test_another_folder_than_that_of_the_training_is_used_whole(saved, tmp_path):
    """The folder of the training keeps its split, also where it was moved to."""
    (tmp_path / "more").mkdir()
    for number in range(40):
        Image.new("L", (8, 8), 6 * number).save(f"more/{number}.png")
    small = {
        "flow": "identity",
        "net": "zero",
        "data": "folder",
        "data.path": "more",
        "data.size": 8,
    }
    small |= {"train.steps": 1, "train.batch_size": 4, "train.threads": 1}
    indm.train(indm.recipe("digits", small), "run", progress=False)
    counts = {}
    (tmp_path / "more").rename("moved")
    for folder in ("moved", "images"):
        table = recipes.recipe("run").data.table() | {"path": folder}
        found = evaluate_run(
            tmp_path / "run", {"nll_examples": 0}, data_table=table, progress=False
        )
        counts[folder] = found["images"]["nelbo"], found["split"]
    assert counts == {"moved": (4, "test"), "images": (30, "all")}
