"""Several processes make one run, which resumes to the last bit, and none of them hangs. With gloo,
on the CPU.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import FAULTS, InDouble
from processes import fork_group
from small_runs import (
    TINY,
    assert_same,
    change,
    checkpoint,
    largest_difference,
    launch,
    log_of,
    timeless,
)

from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

LAUNCH = str(Path(__file__).with_name("launch.py"))
# 8 samples for each of 4 processes, of which 2 in 32 have a log-determinant; 50 examples in batches
# of 20, the last of them uneven, and one of four processes without any.
WIDE = change(TINY, steps=50, accumulate=1, validate_examples=50, checkpoint_every=20)
WIDE |= {"evaluate": {"batch_size": 20}}
# A batch norm, a code for each sample, and dropout.
CODES = change(TINY, steps=4, accumulate=1, first="both", log_every=2)
ENCODER = {"code_dim": 4, "encoder_planes": [4], "prior_width": 8}
CODES |= {
    "flow": {"name": "conditional-residual", "blocks": [1], "width": 4, **ENCODER},
    "net": {
        "name": "ncsnpp",
        "channels": 8,
        "multipliers": [1],
        "blocks": 1,
        "attention": [],
        "dropout": 0.2,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def wide(folder):
    """The recipe's file, and the run that two processes make of it."""
    (folder / "wide.toml").write_text(recipes.to_toml(WIDE))
    launch(2, LAUNCH, folder / "wide.toml", folder / "two")
    return folder / "wide.toml", folder / "two"


# ── the same run ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_each_process_draws_its_own_numbers_and_all_learn_alike(folder, wide):
    """The bound is that of one process's run, up to the noise of a short training."""
    recipe, two = wide
    launch(1, LAUNCH, recipe, folder / "one")
    states = checkpoint(two)["random"]
    assert len(states) == 2 and not torch.equal(states[0]["cpu"], states[1]["cpu"])
    bounds = [
        json.loads((run / "summary.json").read_text())["valid_nelbo"]
        for run in (two, folder / "one")
    ]
    assert 0 < abs(bounds[0] - bounds[1]) < 0.1 * abs(bounds[1])


@pytest.mark.long
def test_processes_make_the_evaluation_of_one(folder, wide):
    """To the last bit, with an adaptive solver; 3 batches over 4 processes, one of which has
    nothing to do.
    """
    _, run = wide
    few = [
        "--examples",
        "50",
        "--nll-examples",
        "10",
        "--batch-size",
        "20",
        "--quiet",
        "--overwrite",
    ]
    arguments = ["indm", "evaluate", run, *few]
    found = {}
    for processes in (1, 2, 4):
        said = launch(processes, *arguments, module=True).stdout
        report = json.loads((run / "evaluation.json").read_text())
        with np.load(run / "evaluation.npz") as file:
            found[processes] = said, report, {name: file[name].tolist() for name in file.files}
    assert found[2] == found[1] and found[4] == found[1]


@pytest.mark.long
@pytest.mark.parametrize("opening", [{}, {"first": "flow", "alone": 0.75}])
def test_two_processes_that_are_interrupted_go_on_exactly(tmp_path, opening):
    """One of them gets the signal; with accumulation, between two checkpoints. One process goes on,
    too.
    """
    recipe = change(WIDE, steps=12, accumulate=2, **opening)

    def work(name, interrupt=(), resume=False):
        FAULTS["interrupt"] = list(interrupt)  # of this process alone
        train(recipe, tmp_path / name, progress=False, trainer=InDouble, resume=resume)

    fork_group(2, lambda: work("whole"))
    fork_group(2, lambda: work("halved", [1, 7]))
    assert checkpoint(tmp_path / "halved")["step"] == 8
    shutil.copytree(tmp_path / "halved", tmp_path / "other")
    fork_group(2, lambda: work("halved", resume=True))
    assert_same(timeless(checkpoint(tmp_path / "whole")), timeless(checkpoint(tmp_path / "halved")))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halved")

    work("other", resume=True)
    assert checkpoint(tmp_path / "other")["step"] == 12


# ── failures ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_what_is_not_finite_on_one_process_is_left_out_by_all(folder, wide, tmp_path):
    recipe, _ = wide
    launch(4, LAUNCH, recipe, tmp_path / "run", "--nan", 2, 11)
    (line,) = [line for line in read_metrics(tmp_path / "run") if "skipped" in line]
    assert line["step"] == 12 and line["not_finite"] == "denoising"
    state = checkpoint(tmp_path / "run")
    assert state["step"] == 50 and all(v.isfinite().all() for v in state["model"].values())
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} <= {49, *range(1, 18)}


@pytest.mark.long
@pytest.mark.about_time
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_with_an_error_and_nothing_is_lost(wide, tmp_path, rank):
    recipe, two = wide
    started = time.monotonic()
    done = launch(2, LAUNCH, recipe, tmp_path / "run", "--kill", rank, 45, fails=True)
    assert time.monotonic() - started < 60 and "Signal 9" in done.stderr
    assert checkpoint(tmp_path / "run")["step"] == 40
    launch(2, LAUNCH, recipe, tmp_path / "run", "--resume")
    assert largest_difference(two, tmp_path / "run") < 1e-9


# ── other ways to start, and to divide ────────────────────────────────────────────────────────────
