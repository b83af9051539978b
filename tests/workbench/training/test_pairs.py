"""Pairs and bridges of two data sets, trained through the command line as a user goes."""

import json
import signal
import tomllib

import pytest
from PIL import Image
from toys import SMALL, error_of, toy_folder

from indm.workbench.cli.main import main
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.training import pairs
from indm.workbench.training.pairs import as_bridge, is_bridge, sides_of

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    home = tmp_path_factory.mktemp("toys")
    return toy_folder(home / "red", (250, 40, 20)), toy_folder(home / "blue", (20, 60, 240), seed=1)


@pytest.mark.long
def test_a_pair_that_was_stopped_goes_on(toys, tmp_path, monkeypatch, capsys):
    arguments = [
        "train-pair",
        *map(str, toys),
        "--out",
        str(tmp_path / "pair"),
        "--data.size",
        "8",
        *SMALL,
    ]
    arguments += ["--train.steps", "5", "--train.batch_size", "8", "--quiet"]
    real, calls = pairs.train, []

    def stopped(recipe, out, **options):
        calls.append(out.name)
        if len(calls) == 2:  # in the middle of the second: a signal after its first step
            from indm.workbench.training.trainer import Trainer

            step = Trainer.train_step

            def once(trainer, batches):
                signal.raise_signal(signal.SIGINT)
                return step(trainer, batches)

            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "train_step", once)
                return real(recipe, out, **options)
        return real(recipe, out, **options)

    monkeypatch.setattr(pairs, "train", stopped)
    assert main(arguments) == 130 and calls == ["a", "b"]
    said = "Interrupted in b, at step 1. The same command with --resume continues."
    assert capsys.readouterr().err.endswith(f"{said}\n")
    first = weights_hash(tmp_path / "pair" / "a")
    assert json.loads((tmp_path / "pair" / "b" / "summary.json").read_text())["steps"] == 1
    assert "with resume it is continued (--out)" in error_of(capsys, *arguments)
    assert main([*arguments, "--resume"]) == 0
    assert weights_hash(tmp_path / "pair" / "a") == first
    assert json.loads((tmp_path / "pair" / "b" / "summary.json").read_text())["steps"] == 5


def test_a_pair_is_resumed_only_where_it_is_one_and_the_same(toys, tmp_path, capsys):
    arguments = [
        "train-pair",
        *map(str, toys),
        "--data.size",
        "8",
        *SMALL,
        "--train.steps",
        "2",
        "--quiet",
    ]
    arguments += ["--train.batch_size", "8", "--out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert "holds no pair to resume" in error_of(
        capsys, *arguments, str(tmp_path / "other"), "--resume"
    )
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    pair = tmp_path / "pair"
    assert main([*arguments, str(pair)]) == 0
    said = error_of(capsys, *arguments, str(pair), "--resume", "--train.weight_decay", "0.5")
    assert "differs in train.weight_decay" in said
    assert main([*arguments, str(pair), "--resume", "--train.steps", "3"]) == 0
    assert [json.loads((pair / side / "summary.json").read_text())["steps"] for side in "ab"] == [
        3,
        3,
    ]
    # through a link it would be trained on and its states removed
    outside = (pair / "a").rename(tmp_path / "outside")
    (pair / "a").symlink_to(outside)
    kept = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    said = error_of(capsys, *arguments, str(pair), "--resume", "--train.steps", "4")
    assert "pair/a is a link to a folder outside" in said
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize(
    "name", [name for name in recipes.bundled() if "data_b" in recipes.load(name)]
)
def test_recipes_of_two_data_sets_differ_in_the_one_thing_that_names_them(name):
    a, b = sides_of(recipes.load(name)).values()
    (key,) = recipes.differing_keys(a, b) or ["data.path"]
    assert key in ("data.label", "data.path") and "terminal" not in recipes.load(name)["train"]


@pytest.mark.parametrize(
    "name", [name for name in recipes.bundled() if "data_b" in recipes.load(name)]
)
def test_recipes_say_what_is_other_for_a_bridge(name):
    bridge, pair = as_bridge(recipes.load(name)), recipes.load(name)
    assert (
        bridge["flow"]["name"] == "coupling"
        and pair["flow"] == {"name": "coupling"}
        and "scales" in bridge["flow"]
    )
    other = {"flow_update_every", "terminal", "terminal_noise", "initial_noise", "flow_lr"}
    assert (
        bridge["train"].keys() | other == pair["train"].keys() | other
        and bridge["net"] == pair["net"]
    )
    assert (bridge["train"]["terminal"], bridge["train"]["flow_update_every"]) == (
        100,
        1,
    ) and is_bridge(bridge)


def test_of_a_bridge_the_command_line_decides(capsys):
    command = [
        "train-bridge",
        "digits-3-8",
        "--form",
        "terminal",
        "--train.steps",
        "9",
        "--dry-run",
    ]
    assert main([*command, "--flow", "coupling", "--train.terminal", "3"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (
        shown["flow"] == {"name": "coupling"}
        and shown["train"]["terminal"] == 3
        and "bridge" not in shown
    )


@pytest.mark.long
def test_a_recipe_that_says_nothing_of_a_bridge_needs_the_weight_of_b(tmp_path, capsys):
    own = {
        table: content for table, content in recipes.load("digits-3-8").items() if table != "bridge"
    }
    (tmp_path / "own.toml").write_text(recipes.to_toml(own))
    error = error_of(
        capsys,
        "train-bridge",
        tmp_path / "own.toml",
        "--form",
        "terminal",
        "--out",
        tmp_path / "none",
    )
    assert "train.terminal must be above 0 for --form terminal, got 0" in error
    options = ["--form", "terminal", "--train.terminal", "1", "--train.steps", "9", "--dry-run"]
    assert main(["train-bridge", str(tmp_path / "own.toml"), *options]) == 0


def test_sides_that_do_not_fit_are_errors_before_anything_is_trained(toys, tmp_path, capsys):
    out = tmp_path / "pair"
    grey = toy_folder(tmp_path / "other", (9, 9, 9))
    for file in grey.iterdir():
        Image.open(file).convert("L").save(file)
    error = error_of(
        capsys,
        "train-pair",
        toys[0],
        grey,
        "--out",
        out,
        "--data.size",
        "8",
        "--data-b.channels",
        "1",
    )
    assert (
        "data_b must have events of shape (3, 8, 8), as data have, got (1, 8, 8)" in error
        and not out.exists()
    )
    assert "[data_b]" in error_of(capsys, "train-pair", "digits", "--out", out)
    assert "two image folders or one recipe" in error_of(
        capsys, "train-pair", "a", "b", "c", "--out", out
    )
    assert "must be a folder" in error_of(
        capsys, "train-bridge", toys[0], tmp_path / "none", "--out", out
    )
    (tmp_path / "empty").mkdir()
    assert "path must hold images" in error_of(
        capsys, "train-pair", tmp_path / "empty", toys[1], "--out", out
    )
