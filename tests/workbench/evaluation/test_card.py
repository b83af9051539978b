"""Models as others get them, and what their cards say."""

import json
import shutil
from pathlib import Path

import pytest

import indm
from indm.workbench.cli.main import main
from indm.workbench.evaluation import card
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.provenance import weights_hash

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


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
    assert ", classes cat\\x1b[2J\\x9b31m, dog # Heading\\u202e\n- training: 1 step\n" in text


def test_the_lines_of_the_card_of_a_model_of_classes_run(tmp_path, capsys):
    small = {"train.steps": 2, "train.batch_size": 8, "net.channels": 8, "flow": "identity", "condition": "classes"}
    indm.train(indm.recipe("digits", small), tmp_path / "run", progress=False)
    command = ["push", str(tmp_path / "run"), "ann/digits", "--out", str(tmp_path / "shared")]
    assert main(command) == 0 and main(command) == 2
    assert capsys.readouterr().err.endswith("exists and is not empty; give another (--out)\n")
    text = (tmp_path / "shared" / "README.md").read_text("utf-8")
    assert "- data: `digits`, classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n- training: 2 steps\n" in text
    lines = text.partition("```python\n")[2].partition("```")[0]
    space: dict = {}
    exec(lines.replace("ann/digits", str(tmp_path / "shared")), space)
    assert space["raw"].shape == (16, 1, 8, 8) and ", c=0)" in lines
    for condition, given in (({}, "16))"), ({"condition": {"name": "vector"}}, "16, c=row))")):
        recipe = recipes.resolve(recipes.load("digits") | condition)
        assert given in card.how_to_load("ann/tiny", recipe)
