"""A folder with data and a run, trained once, for the tests that move it about."""

import os
import shutil

import numpy as np
import pytest

from indm.workbench.cli.main import main

TINY = [
    "--flow", "identity", "--net.width=8", "--net.depth=1", "--train.batch_size=16", "--train.steps=2",
    "--train.seconds=inf", "--train.warmup=0", "--train.validate_examples=4", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory):
    home, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    np.save(home / "mine.npy", np.random.default_rng(0).normal(size=(40, 2)))
    os.chdir(home)
    try:
        assert main(["train", "array", "--data.path=mine.npy", "--out=runs/a", *TINY]) == 0
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def project(trained_project, tmp_path, monkeypatch):
    """A folder with data and a run that was trained in it by a relative path; it is the current
    folder.
    """
    home = shutil.copytree(trained_project, tmp_path / "project")
    recipe = home / "runs/a/recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(trained_project), str(home)))
    monkeypatch.chdir(home)
    return home
