"""Several processes make one run, which resumes to the last bit, and none of them hangs. With gloo, on the CPU."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from launch import FAULTS, InDouble
from processes import fork_group
from small_runs import (
    ONE_THREAD,
    TINY,
    assert_same,
    change,
    checkpoint,
    command,
    largest_difference,
    launch,
    log_of,
    timeless,
)

from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import run_lock
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training import checkpoints
from indm.workbench.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

LAUNCH = str(Path(__file__).with_name("launch.py"))
# 8 samples for each of 4 processes, of which 2 in 32 have a log-determinant; 50 examples in batches of 20, the last of
# them uneven, and one of four processes without any.
WIDE = change(TINY, steps=50, accumulate=1, validate_examples=50, checkpoint_every=20)
WIDE |= {"evaluate": {"batch_size": 20}}
# A batch norm, a code for each sample, and dropout.
CODES = change(TINY, steps=4, accumulate=1, pretrain=0.0, log_every=2)
ENCODER = {"code_dim": 4, "encoder_planes": [4], "prior_width": 8}
CODES |= {
    "flow": {"name": "conditional-residual", "blocks": [1], "width": 4, **ENCODER},
    "net": {"name": "ncsnpp", "channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "dropout": 0.2},
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


def assert_same_log(one, other):
    logs = log_of(one), log_of(other)
    assert [list(line) for line in logs[0]] == [list(line) for line in logs[1]]
    for a, b in zip(*logs, strict=True):
        differing = [k for k in a if a[k] != b[k]]
        assert [a[k] for k in differing] == pytest.approx([b[k] for k in differing], rel=1e-6)


# ── the same run ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_each_process_draws_its_own_numbers_and_all_learn_alike(folder, wide):
    """The bound is that of one process's run, up to the noise of a short training."""
    recipe, two = wide
    launch(1, LAUNCH, recipe, folder / "one")
    states = checkpoint(two)["random"]
    assert len(states) == 2 and not torch.equal(states[0]["cpu"], states[1]["cpu"])
    bounds = [json.loads((run / "summary.json").read_text())["valid_nelbo"] for run in (two, folder / "one")]
    assert 0 < abs(bounds[0] - bounds[1]) < 0.1 * abs(bounds[1])


@pytest.mark.long
def test_processes_make_the_evaluation_of_one(folder, wide):
    """To the last bit, with an adaptive solver; 3 batches over 4 processes, one of which has nothing to do."""
    _, run = wide
    few = ["--examples", "50", "--nll-examples", "10", "--batch-size", "20", "--quiet", "--overwrite"]
    arguments = ["indm", "evaluate", run, *few]
    found = {}
    for processes in (1, 2, 4):
        said = launch(processes, *arguments, module=True).stdout
        report = json.loads((run / "evaluation.json").read_text())
        with np.load(run / "evaluation.npz") as file:
            found[processes] = said, report, {name: file[name].tolist() for name in file.files}
    assert found[2] == found[1] and found[4] == found[1]


@pytest.mark.long
@pytest.mark.parametrize("opening", [{}, {"pretrain": 0.0, "flow_first": 0.75}])
def test_two_processes_that_are_interrupted_go_on_exactly(tmp_path, opening):
    """One of them gets the signal; with accumulation, between two checkpoints. One process goes on, too."""
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


@pytest.mark.long
@pytest.mark.parametrize("step", [4, 6])
def test_a_process_that_is_interrupted_between_two_steps_leaves_with_all(tmp_path, step):
    """After a validation, and after a checkpoint, of one process alone: the others do one more step, and so does it."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(recipes.to_toml(change(TINY, accumulate=1, checkpoint_every=6)))
    launch(2, LAUNCH, recipe, tmp_path / "run", "--late", 1, step)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["interrupted"] and summary["steps"] == checkpoint(tmp_path / "run")["step"] == step + 1


@pytest.mark.long
def test_all_processes_go_on_from_the_same_state(tmp_path):
    """The main one finds the newest damaged; the other would have read it before it was set aside, or not."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(recipes.to_toml(change(TINY, accumulate=1)))
    launch(2, LAUNCH, recipe, tmp_path / "run", "--interrupt", 0, 7)
    damaged = tmp_path / "run" / "checkpoints" / "8.pt"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    done = launch(2, LAUNCH, recipe, tmp_path / "run", "--resume")
    assert done.stderr.count("8.pt is damaged") == 1 and "6.pt, the newest intact one" in done.stderr
    launch(2, LAUNCH, recipe, tmp_path / "whole")
    whole, run = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    whole.pop("seconds"), run.pop("seconds")
    assert_same(whole, run)


@pytest.mark.long
def test_codes_and_a_batch_norm_in_bfloat16(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(recipes.to_toml(change(CODES, steps=4, mixed_precision="bf16")))
    launch(2, "indm", "train", recipe, "--out", tmp_path / "run", "--quiet", module=True)
    state = checkpoint(tmp_path / "run")["model"]
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def started_apart(recipe, run):
    """Two processes and their launcher, which get no signals of this one."""
    started = command(2, LAUNCH, recipe, run)
    return subprocess.Popen(started, stderr=subprocess.DEVNULL, env=ONE_THREAD, start_new_session=True)


@pytest.mark.long
@pytest.mark.about_time
@pytest.mark.parametrize("send", [lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.killpg(pid, signal.SIGINT)])
def test_a_signal_to_the_launcher_saves(wide, tmp_path, send):
    """To it alone, or, as by Ctrl-C in a terminal, to all of its processes, to which it passes that on once more."""
    recipe, _ = wide
    process = started_apart(recipe, tmp_path / "run")
    while not read_metrics(tmp_path / "run") and process.poll() is None:
        time.sleep(0.1)
    send(process.pid)
    process.wait()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]
    assert checkpoint(tmp_path / "run")["step"] % 20 != 0


@pytest.mark.long
@pytest.mark.about_time
@pytest.mark.parametrize("case", range(9))
def test_a_signal_at_a_random_moment_to_one_of_two_processes_changes_nothing(wide, tmp_path, case):
    """Three of each kind, to either process, from its first step to its last; what was left is done afterwards."""
    recipe, two = wide
    random = Random(case)
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[case % 3]
    process = started_apart(recipe, tmp_path / "run")
    while not checkpoints.has_state(tmp_path / "run") and process.poll() is None:
        time.sleep(0.1)
    time.sleep(random.uniform(0, 8))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if len(workers) == 2:
        os.kill(int(random.choice(workers)), number)
    process.wait()
    launch(2, LAUNCH, recipe, tmp_path / "run", "--resume")
    assert largest_difference(two, tmp_path / "run") < 1e-9
    assert_same_log(two, tmp_path / "run")


@pytest.mark.long
def test_processes_that_find_another_in_the_folder_all_say_so(wide, tmp_path):
    recipe, _ = wide
    with run_lock(tmp_path / "run"):
        done = launch(2, LAUNCH, recipe, tmp_path / "run", fails=True)
    assert "another process is at work in" in done.stderr and not (tmp_path / "run" / "recipe.toml").exists()


# ── other ways to start, and to divide ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_accelerate_launch_makes_one_run(tmp_path):
    (tmp_path / "mine.toml").write_text(recipes.to_toml(change(TINY, steps=4)))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "indm", "train"]
    started = [*launcher, *options, str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(started, capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"steps": 4') == 1 and len(checkpoint(tmp_path / "run")["log"]["totals"]) == 2


@pytest.mark.long
def test_two_launchers_make_one_run(folder, wide):
    """As two machines would: each starts one process, and they meet at an address."""
    recipe, two = wide
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-id", "7", "--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    arguments = [LAUNCH, str(recipe), str(folder / "machines")]
    machines = [subprocess.Popen([*torchrun, *arguments], env=ONE_THREAD) for _ in range(2)]
    assert [machine.wait() for machine in machines] == [0, 0]
    assert largest_difference(two, folder / "machines") < 1e-9
