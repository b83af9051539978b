"""Runs and models on the hub, by a stand-in for its server, and what their cards say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, served

import indm
from indm.workbench import hub
from indm.workbench.cli.main import main
from indm.workbench.evaluation import card
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.provenance import weights_hash

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

# A process of its own, as the hub's library reads the environment when it is loaded.
SHARED = """
import pathlib, sys, warnings
import numpy as np, torch
import indm
from indm.workbench import hub
from indm.workbench.cli.main import main
warnings.simplefilter("ignore")
def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
pathlib.Path("my-secret-place").mkdir()
np.save("my-secret-place/table.npy", np.random.default_rng(0).normal(size=(60, 2)))
run = pathlib.Path("runs/tiny")
recipe = {"train.steps": 2, "train.batch_size": 8, "net.width": 8, "data.path": "my-secret-place/table.npy"}
indm.train(indm.recipe("array", recipe), run, progress=False)
assert main("push runs/tiny ann/tiny --license apache-2.0".split()) == 0
assert main("sample ann/tiny -n 3 --steps 2 --quiet --out drawn".split()) == 0
assert main("sample ann/tiny -n 3 --steps 2 --quiet".split()) == 0  # of what is there already
mine, x = indm.INDM.load(run), torch.randn(4, 2)
theirs = indm.from_pretrained("ann/tiny")
assert torch.equal(mine.log_prob(x, steps=8), theirs.log_prob(x, steps=8))
print(failure(indm.from_pretrained, "ann/nothing"))
print(failure(indm.from_pretrained, "ann/tiny", revision="nowhere"))
print(failure(indm.from_pretrained, "not a name"))
import os
os.environ["HF_TOKEN"] = "hf_of_somebody_else"
print(failure(hub.push, pathlib.Path("runs/tiny"), "ann/tiny"))
del os.environ["HF_TOKEN"]
print(failure(hub.push, pathlib.Path("runs/tiny"), "ann/tiny"))
"""


def in_process(script: str, folder: Path, **environment: str) -> list[str]:
    whole = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.long
def test_a_run_is_pushed_and_read_back_by_its_name(tmp_path):
    with served() as server:
        *_, missing, revision, name, forbidden, nobody = in_process(
            SHARED, tmp_path, HF_ENDPOINT=server.address, HF_TOKEN=TOKEN
        )
        files = server.models["ann/tiny"]
    assert set(files) == {"README.md", "model.json", "model.safetensors", "recipe.toml"}
    assert [name for name, content in files.items() if b"my-secret-place" in content] == []
    text = files["README.md"].decode()
    assert "license: apache-2.0" in text and 'from_pretrained("ann/tiny")' in text and ", 2 steps of training." in text
    fetched = tmp_path / "runs" / "ann--tiny"
    assert (fetched / "samples.npz").exists() and (tmp_path / "drawn" / "samples.npz").exists()
    assert "the hub has no model ann/nothing" in missing and "not that revision" in revision
    assert "a folder, user/name of the hub, or digits-pretrained, " in name
    for refused in (forbidden, nobody):
        assert "the hub does not let you do that with ann/tiny: log in with" in refused


@pytest.mark.long
def test_without_a_network_it_is_one_line(tmp_path):
    script = """
import indm, pathlib
from indm.workbench import hub
for call in (indm.from_pretrained, lambda name: hub.push(pathlib.Path("."), name)):
    try:
        call("ann/tiny")
    except OSError as error:
        print(str(error))
"""
    lines = in_process(script, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)  # nobody listens there
    said = r"the hub cannot be reached for ann/tiny \(\[Errno \d+\] Connection refused\); "
    others = r"the path of a folder with that model would do", r"'indm push RUN ann/tiny --out FOLDER' writes"
    for line, otherwise in zip(lines, others, strict=True):
        assert re.match(said + otherwise, line)


def test_a_folder_is_loaded_as_it_is(tmp_path):
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    indm.build_model(tables, (2,)).save(tmp_path / "a")
    assert indm.from_pretrained(tmp_path / "a").shape == (2,)
    torch.save({}, tmp_path / "a" / "model.safetensors")  # a pickle is never read
    with pytest.raises(ValueError, match="cannot be read as weights"):
        indm.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("text", ["user", "user/", "/name", "a/b/c", "../up", "user/na me", "runs/../x", ""])
def test_a_name_of_the_hub_is_user_and_name(text):
    assert hub.is_name("user-1/name_2.b") and not hub.is_name(text)


def test_a_card_shows_what_is_of_these_weights_alone(tmp_path):
    """The likelihood is required to be, a picture of other weights is left out."""
    run = shutil.copytree(Path(__file__).parents[1] / "fixtures" / "runs" / "indm", tmp_path / "run")
    (run / "samples.png").write_bytes(b"")
    for weights, shown in ((weights_hash(run), True), ("other", False)):
        (run / "samples.json").write_text(json.dumps({"provenance": {"weights_sha256": {"run": weights}}}))
        card.write(run, tmp_path / weights, "ann/tiny")
        assert (tmp_path / weights / "samples.png").exists() == shown
        assert ("## Samples" in (tmp_path / weights / "README.md").read_text("utf-8")) == shown
    result = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(result | {"weights_sha256": "other"}))
    with pytest.raises(ValueError, match="was evaluated with other weights"):
        card.write(run, tmp_path / "again", "ann/tiny")
    (run / "evaluation.json").unlink()
    card.write(run, tmp_path / "again", "ann/tiny")
    assert "It has not been evaluated." in (tmp_path / "again" / "README.md").read_text("utf-8")


def test_a_card_has_the_sections_that_it_is_given(tmp_path):
    run = Path(__file__).parents[1] / "fixtures" / "runs" / "indm"
    card.write(run, tmp_path, "ann/tiny", more=["## More\n\nand more"])
    assert "\n\n## More\n\nand more\n\n## How to load\n" in (tmp_path / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="license must be an identifier"):
        card.write(run, tmp_path, "ann/tiny", "My licence\ntags: x")


def test_names_of_folders_bring_no_commands_into_a_card(tmp_path):
    """They are labels of classes, and may hold what a terminal obeys."""
    labels = ["cat\x1b[2J\x9b31m", "dog\n# Heading\u202e"]
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
    tables |= {"condition": {"name": "classes", "labels": labels}}
    run = tmp_path / "run"
    indm.build_model(tables, (1, 8, 8)).save(run)
    data = {"name": "folder", "path": "x", "classes": labels}
    (run / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(tables | {"data": data})), "utf-8")
    (run / "summary.json").write_text('{"steps": 1}')
    card.write(run, tmp_path / "shared", "ann/tiny")
    text = (tmp_path / "shared" / "README.md").read_text("utf-8")
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert " of the classes cat\\x1b[2J\\x9b31m, dog # Heading\\u202e, 1 steps" in text


def test_the_lines_of_the_card_of_a_model_of_classes_run(tmp_path, capsys):
    small = {"train.steps": 2, "train.batch_size": 8, "net.channels": 8, "flow": "identity", "condition": "classes"}
    indm.train(indm.recipe("digits", small), tmp_path / "run", progress=False)
    command = ["push", str(tmp_path / "run"), "ann/digits", "--out", str(tmp_path / "shared")]
    assert main(command) == 0 and main(command) == 2
    assert capsys.readouterr().err.endswith("exists and is not empty; give another (--out)\n")
    text = (tmp_path / "shared" / "README.md").read_text("utf-8")
    assert " of the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2 steps of training." in text
    assert "indm sample ann/digits\n" in text
    lines = text.partition("```python\n")[2].partition("```")[0]
    space: dict = {}
    exec(lines.replace("ann/digits", str(tmp_path / "shared")), space)
    assert space["raw"].shape == (16, 1, 8, 8) and ", c=0)" in lines
    for condition, given in (({}, "16))"), ({"condition": {"name": "vector"}}, "16, c=row))")):
        recipe = recipes.resolve(recipes.load("digits") | condition)
        assert given in card.how_to_load("ann/tiny", recipe)
