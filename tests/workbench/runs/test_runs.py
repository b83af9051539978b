"""The run folder: what damage its files survive, and what is left of them where something new
cannot be written.
"""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from closed_form import GaussianScore
from processes import fork

from indm.flows import Identity
from indm.model import INDM
from indm.sampling import make_sampler, solve_latent
from indm.scaling import Scaling
from indm.sde import VPSDE
from indm.workbench.cli.main import main
from indm.workbench.recipes.recipe import recipe
from indm.workbench.runs.devices import EVALUATION_LOCK, run_lock
from indm.workbench.runs.folder import read_metrics
from indm.workbench.runs.provenance import describe_run
from indm.workbench.runs.samples import change_in_twice_the_steps

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

SMALL = [
    "--flow=coupling", "--flow.depth=1", "--flow.width=4", "--dequantization=uniform",
    "--net.channels=4", "--net.blocks=1", "--net.attention=[]", "--train.steps=2",
    "--train.seconds=inf", "--train.validate_examples=20", "--quiet",
]  # fmt: skip


def test_a_line_of_the_metrics_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 4, "rollback": 1}\n{"step": 5, "ne\n{"step": 9}\n'
    )
    assert read_metrics(tmp_path) == [{"step": 4, "rollback": 1}, {"step": 9}]


def test_every_part_of_a_run_says_what_made_it(tmp_path, monkeypatch):
    for part in ("one", "two", "three"):
        monkeypatch.setattr(sys, "argv", ["indm", part])
        describe_run(tmp_path, recipe("digits"), torch.device("cpu"), [part])
    last = json.loads((tmp_path / "versions.json").read_text())
    before = last.pop("before")
    assert [made_by["command"][1] for made_by in [*before, last]] == ["one", "two", "three"]
    assert [made_by["data"] for made_by in before] == [["one"], ["two"]]
    assert all(made_by.keys() == last.keys() for made_by in before)


# ── One process at a time


@pytest.fixture
def held(tmp_path):
    """A folder that another process has for itself, and what ends that process."""
    folder, (reads, writes) = tmp_path / "held", os.pipe()

    def hold():
        with run_lock(folder):
            os.write(writes, b"in")
            time.sleep(100)

    def end():
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    process = fork(hold)
    os.read(reads, 2)
    return folder, end


def test_two_processes_do_not_train_in_one_folder(held, capsys):
    folder, end = held
    before = content(folder)
    assert main(["train", "digits", *SMALL, "--out", str(folder)]) == 2
    said = f"indm: error: another process is at work in {folder}: wait for it, or end it first\n"
    assert capsys.readouterr().err == said
    assert content(folder) == before
    end()
    assert trained(folder) == folder


def test_two_processes_do_not_evaluate_one_run(run, capsys):
    """Neither fails in the end, and arrays and report stay those of one evaluation."""
    evaluate = [
        "evaluate",
        str(run),
        "--examples",
        "2",
        "--nll-examples",
        "0",
        "--quiet",
        "--overwrite",
    ]
    assert main(evaluate) == 0
    before = content(run)
    reads, writes = os.pipe()

    def hold():
        with run_lock(run, EVALUATION_LOCK):
            os.write(writes, b"in")
            time.sleep(100)

    process = fork(hold)
    os.read(reads, 2)
    capsys.readouterr()
    assert main(evaluate) == 2 and "another process" in capsys.readouterr().err
    assert content(run) == before
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert main(evaluate) == 0


# ── A disk that is read-only


def trained(folder):
    assert main(["train", "digits", *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ── Old results stay until the new are whole


# ── Data that change after a training


def add_row(home, i):
    rows = np.load(home / "a.npy") if i else np.zeros((0, 8, 8), np.uint8)
    np.save(home / "a.npy", np.concatenate([rows, np.full((1, 8, 8), 5 * i, np.uint8)]))


@pytest.mark.long
def test_an_example_that_is_added_after_a_training_is_warned_of(tmp_path):
    home, run = tmp_path / "home", str(tmp_path / "run")
    home.mkdir()
    for i in range(20):
        add_row(home, i)
    options = [
        "--data=array",
        f"--data.path={home / 'a.npy'}",
        "--train.batch_size=4",
        "--out",
        run,
    ]
    train = ["train", "digits", *SMALL, *options]
    evaluate = ["evaluate", run, "--examples", "2", "--nll-examples", "0", "--quiet", "--overwrite"]

    def parts():
        last = json.loads((tmp_path / "run" / "versions.json").read_text())
        return [*last.pop("before", []), last]

    def changed():
        return json.loads((tmp_path / "run" / "evaluation.json").read_text())["data_changed"]

    assert main(train) == 0 and main(evaluate) == 0 and not changed()  # without a warning
    assert main([*train, "--resume", "--train.steps=4"]) == 0
    assert [part["data_examples"] for part in parts()] == [20, 20] and len(
        {p["data_sha256"] for p in parts()}
    ) == 1
    add_row(home, 20)
    said = f"the data of {run} have changed since it was trained, 20 examples then, 21 now: .* from the training to the"
    with pytest.warns(UserWarning, match=said):
        assert main(evaluate) == 0 and changed()
    with pytest.warns(UserWarning, match=said):
        assert main([*train, "--resume", "--train.steps=6"]) == 0
    assert [part["data_examples"] for part in parts()] == [20, 20, 21]
    # its first parts were trained on what was not then for testing
    with pytest.warns(UserWarning, match=said):
        assert main(evaluate) == 0 and changed()


@pytest.mark.parametrize("levels", [None, 256])
def test_the_change_in_twice_the_steps_is_the_error_of_the_steps(levels):
    """Against samples in hundreds of steps, for a law whose score is known."""
    scaling = Scaling() if levels is None else Scaling.images(levels)
    score = GaussianScore(VPSDE(), torch.full((6,), 0.3), torch.full((6,), 0.05))
    model = INDM(Identity(), score, scaling, (6,)).double()
    z_T = model.sde.prior_sample(
        (50, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def solved(steps):
        return solve_latent(model, z_T, make_sampler("heun"), steps)[0]

    x = solved(12)
    change = change_in_twice_the_steps(model, x, z_T, make_sampler("heun"), 12)
    unit = 1.0 if levels is None else levels / 2
    true = unit * (x - solved(800)).square().mean(1).sqrt()
    assert bool((change > 0.5 * true).all()) and bool((change < 1.2 * true).all())
