"""Runs and models on the hub, for which a folder stands in."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import indm
from indm.workbench import hub
from indm.workbench.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder to which models are uploaded and from which they are downloaded."""
    store = tmp_path / "hub"

    class Api:
        def __init__(self, library_name):
            assert library_name == "indm"

        def create_repo(self, name, *, private, exist_ok):
            return f"https://example.org/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, store / repo_id)

    def download(name, *, revision, allow_patterns, local_dir):
        if revision is not None or not (store / name).is_dir():
            raise RuntimeError("404 Client Error.\nRepository Not Found")
        folder = Path(local_dir or tmp_path / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            shutil.copyfile(store / name / file, folder / file)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return store


@pytest.mark.filterwarnings("ignore:the picture shows no data")  # whose place is not shared
def test_a_run_is_pushed_and_read_back_by_its_name(store, tmp_path):
    (tmp_path / "my-secret-place").mkdir()
    np.save("my-secret-place/table.npy", np.random.default_rng(0).normal(size=(60, 2)))
    changes = {"train.steps": 2, "train.batch_size": 8, "net.width": 8, "data.path": "my-secret-place/table.npy"}
    indm.train(indm.recipe("array", changes), "runs/tiny", progress=False)
    assert main(["push", "runs/tiny", "ann/tiny", "--license", "apache-2.0"]) == 0
    assert main(["sample", "ann/tiny", "-n", "3", "--steps", "2", "--quiet", "--out", "drawn"]) == 0
    assert main(["sample", "ann/tiny", "-n", "3", "--steps", "2", "--quiet"]) == 0  # of what is there already
    assert (tmp_path / "drawn" / "samples.npz").exists() and (tmp_path / "runs/ann--tiny/samples.npz").exists()
    mine, theirs, x = indm.INDM.load("runs/tiny"), indm.from_pretrained("ann/tiny"), torch.randn(4, 2)
    assert torch.equal(mine.score(x, torch.full((4,), 0.5)), theirs.score(x, torch.full((4,), 0.5)))
    files = {path.name: path.read_bytes() for path in (store / "ann" / "tiny").iterdir()}
    assert set(files) == {"README.md", "model.json", "model.safetensors", "recipe.toml"}
    assert [name for name, content in files.items() if b"my-secret-place" in content] == []
    text = files["README.md"].decode()
    assert "license: apache-2.0" in text and 'from_pretrained("ann/tiny")' in text and "- training: 2 steps\n" in text


def test_what_the_hub_does_not_give_is_one_line(store):
    for name, revision in (("ann/nothing", None), ("ann/nothing", "nowhere")):
        with pytest.raises(OSError, match=r"for ann/nothing, or refuses it: 404 .*Not Found") as said:
            indm.from_pretrained(name, revision=revision)
        assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="a folder, user/name of the hub, or digits-pretrained, "):
        indm.from_pretrained("not a name")


@pytest.mark.parametrize("text", ["user", "user/", "/name", "a/b/c", "../up", "user/na me", "runs/../x", ""])
def test_a_name_of_the_hub_is_user_and_name(text):
    assert hub.is_name("user-1/name_2.b") and not hub.is_name(text)
