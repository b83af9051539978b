"""Runs and their data are found from any folder; data that were moved are named, and those of
another run refused.
"""

import json
import os
import shutil
import tomllib

import numpy as np
import pytest

from indm.workbench.cli.main import main
from indm.workbench.runs.folder import recipe_of

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

FEW = ["--examples=4", "--nll-examples=0", "--overwrite", "--quiet"]


def test_a_run_holds_its_paths_absolute(project):
    assert tomllib.loads((project / "runs/a/recipe.toml").read_text())["data"]["path"] == str(
        project / "mine.npy"
    )


def test_a_run_is_evaluated_and_resumed_from_any_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npy").write_text("another file of that name")
    assert main(["evaluate", "project/runs/a", *FEW]) == 0
    assert main(["train", "project/runs/a", "--resume", "--quiet", "--train.steps=3"]) == 0


def test_data_that_were_moved_alone_are_named_on_the_command_line(project, capsys):
    os.rename("mine.npy", "other.npy")
    assert main(["evaluate", "runs/a", *FEW]) == 2
    assert "give data.path, where they are now" in capsys.readouterr().err
    assert main(["evaluate", "runs/a", "--data.path=other.npy", *FEW]) == 0
    evaluated = json.loads((project / "runs/a/evaluation.json").read_text())
    assert (
        evaluated["data"] == {"name": "array", "path": str(project / "other.npy")}
        and not evaluated["data_changed"]
    )
    assert (
        main(["train", "runs/a", "--resume", "--data.path=other.npy", "--train.steps=3", "--quiet"])
        == 0
    )
    assert recipe_of(project / "runs/a")["data"]["path"] == str(project / "other.npy")
    np.save("third.npy", np.zeros((40, 2)))
    assert main(["train", "runs/a", "--resume", "--data.path=third.npy", "--quiet"]) == 2
    assert "it differs in data.path" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_a_folder_of_a_run_that_is_a_link_is_refused(project, name, capsys):
    """Through it a resumed run removed, renamed and overwrote what lies outside."""
    outside = project / "mine"
    if (project / "runs/a" / name).exists():
        shutil.move(project / "runs/a" / name, outside)
    outside.mkdir(exist_ok=True)
    for i in (1, 2, 10**9):
        (outside / f"{i}.pt").write_text("mine")
    (outside / "validation.json").write_text("mine")
    (project / "runs/a" / name).symlink_to(outside)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    for line in (
        ["train", "runs/a", "--resume", "--quiet", "--train.steps=3"],
        ["evaluate", "runs/a", *FEW],
    ):
        assert main(line) == 2
        assert f"runs/a/{name} is a link to a folder outside" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
