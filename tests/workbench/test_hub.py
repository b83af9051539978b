"""Models on the hub, for which a folder stands in."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import indm
from indm.workbench import hub
from indm.workbench.cli.main import main


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder from which models are downloaded."""
    store = tmp_path / "hub"

    def snapshot_download(name, *, allow_patterns, local_dir=None, revision=None):
        if not (store / name).is_dir():
            raise FileNotFoundError("404")
        folder = Path(local_dir or tmp_path / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            shutil.copyfile(store / name / file, folder / file)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return store


@pytest.mark.filterwarnings("ignore:the run ended", "ignore:the picture shows no data")
def test_a_run_is_read_by_its_name(store, tmp_path):
    np.save("table.npy", np.random.default_rng(0).normal(size=(60, 2)))
    changes = {"train.steps": 2, "train.batch_size": 8, "net.width": 8, "data.path": "table.npy"}
    indm.train(indm.recipe("array", changes), store / "ann" / "tiny", progress=False)
    (tmp_path / "table.npy").unlink()
    assert main(["sample", "ann/tiny", "-n", "3", "--steps", "2", "--quiet", "--out", "drawn"]) == 0
    # of the folder that is there now
    assert main(["sample", "ann/tiny", "-n", "3", "--steps", "2", "--quiet"]) == 0
    assert (tmp_path / "drawn" / "samples.npz").exists() and (
        tmp_path / "runs/ann--tiny/samples.npz"
    ).exists()
    mine, theirs = indm.INDM.load(store / "ann" / "tiny"), indm.from_pretrained("ann/tiny")
    x = torch.randn(4, 2)
    t = torch.full((4,), 0.5)
    assert torch.equal(mine.score(x, t), theirs.score(x, t))
    with pytest.raises(FileNotFoundError):
        indm.from_pretrained("ann/nothing")
    assert main(["sample", "ann/nothing"]) == 2
    with pytest.raises(ValueError, match="name_or_folder"):
        indm.from_pretrained("not a name")


@pytest.mark.parametrize(
    "text", ["user", "user/", "/name", "a/b/c", "../up", "user/na me", "runs/../x", ""]
)
def test_a_name_of_the_hub_is_user_and_name(text):
    assert hub.is_name("user-1/name_2.b") and not hub.is_name(text)
