"""Runs that the first version wrote, under the names of its options, keys and files: they load, evaluate, sample,
translate and resume. ``tests/fixtures/runs/continued.json`` has what each came to when that version resumed it."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from indm.cli.main import main
from indm.evaluation.results import read_evaluation
from indm.files import untrusted
from indm.report.records import groups_of
from indm.runs.folder import read_metrics

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"
CONTINUED = json.loads((RUNS / "continued.json").read_text())


@pytest.fixture
def old(tmp_path):
    """A copy of all old runs, to be written into."""
    shutil.copytree(RUNS, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize("name", CONTINUED)
def test_an_old_run_goes_on_as_it_would_have_then(old, name):
    assert main(["train", str(old / name), "--train.steps", "5", "--resume", "--quiet"]) == 0
    weights = untrusted.weights(next((old / name).glob("*.safetensors")))
    numbers = np.concatenate([v.double().flatten().numpy() for v in weights.values() if v.is_floating_point()])
    wanted = CONTINUED[name]
    assert numbers.sum() == pytest.approx(wanted["sum"], rel=1e-5)
    assert np.abs(numbers).sum() == pytest.approx(wanted["absolute_sum"], rel=1e-5)
    assert [line["step"] for line in read_metrics(old / name)][-1] == 5
    recipe = tomllib.loads((old / name / "recipe.toml").read_text())
    assert recipe["train"]["steps"] == 5 and {"flow_update_every", "snapshot_every", "max_skipped_steps"} <= set(
        recipe["train"]
    )


@pytest.mark.parametrize("name", ["indm", "learned", "bridge", "pair/a"])
def test_an_old_run_is_evaluated(old, name):
    few = ["--examples", "16", "--nll-examples", "2", "--steps", "8", "--quiet"]
    assert main(["evaluate", str(old / name), *few, "--overwrite"]) == 0
    assert read_evaluation(old / name)["nelbo"]["with_reconstruction"]["nats"] < 1000


def test_old_evaluations_and_new_ones_are_compared(old, tmp_path, capsys):
    then = json.loads((RUNS / "indm" / "evaluation.json").read_text())
    again = shutil.copytree(old / "indm", old / "again")
    assert main(["compare", str(old / "indm"), str(again), "--out", str(tmp_path)]) == 0
    assert f"{then['nelbo']['with_reconstruction']['bits_per_dim']:.4f}" in capsys.readouterr().out


def test_old_samples_are_known_as_drawn_just_so(old):
    before = (old / "indm" / "samples.npz").stat().st_mtime_ns
    assert main(["sample", str(old / "indm"), "-n", "4", "--steps", "3", "--quiet"]) == 0
    assert (old / "indm" / "samples.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["pair", "bridge"])
def test_old_models_translate(old, tmp_path, name):
    np.save(tmp_path / "threes.npy", np.zeros((2, 1, 8, 8), np.uint8))
    command = ["translate", str(old / name), str(tmp_path / "threes.npy"), "--steps", "4", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0


def test_runs_that_differ_in_the_names_of_their_options_alone_are_one_group(old):
    assert main(["train", str(old / "indm"), "--train.steps", "5", "--resume", "--quiet"]) == 0
    shutil.copytree(RUNS / "indm", old / "twin" / "0")
    twin = old / "twin" / "0" / "recipe.toml"
    twin.write_text(twin.read_text().replace("seed = 0", "seed = 1"))
    recipe = (old / "indm" / "recipe.toml").read_text()
    (old / "indm" / "recipe.toml").write_text(recipe.replace("steps = 5", "steps = 3"))
    assert len(set(groups_of([old / "indm", old / "twin" / "0"]).values())) == 1
