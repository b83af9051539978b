"""Who decides on the number of threads."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_reliability import TINY, trainer_of
from test_training import change

from indm.workbench.cli.commands import parse
from indm.workbench.recipes.options import Training
from indm.workbench.runs.provenance import threads_of
from indm.workbench.training import costs
from indm.workbench.training import trainer as trainer_module
from indm.workbench.training.loop import train

OLD_RUNS = Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture
def machine(monkeypatch):
    """A machine of four threads, of which nobody has said how many to use; ``threads`` is what PyTorch has now.

    The clock ``now`` stands still but for what a test adds to it.
    """
    machine = SimpleNamespace(threads=4, now=0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(machine, "threads", n))
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return machine


# ── Which number


@pytest.mark.parametrize("busy, idle", [(0.0, 4), (12.0, 4), (25.0, 3), (50.0, 2), (90.0, 1), (100.0, 1)])
def test_a_run_takes_what_others_leave(machine, monkeypatch, busy, idle):
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds: busy)
    assert costs.choose_threads(trainer_of(TINY)) == idle
    assert machine.threads == 4, "as before"


def test_the_command_line_environment_and_earlier_parts_decide_before_a_look(machine, monkeypatch, tmp_path):
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds: 75.0)
    trainer = trainer_of(change(TINY, steps=100_000))
    (tmp_path / "versions.json").write_text(json.dumps({"threads": 2, "before": [{"threads": 3}]}))
    cpu = trainer.accelerator

    def chosen(wanted="auto", environment="", resumed=None, device="cpu", processes=1):
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
        trainer.options = dataclasses.replace(trainer.options, threads=wanted)
        trainer.accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
        return costs.choose_threads(trainer, resumed)

    assert chosen() == 1
    assert chosen(wanted=3) == chosen(wanted=3, environment="4", resumed=tmp_path) == 3
    assert chosen(environment="4") == chosen(environment="4", resumed=tmp_path) == 4
    assert chosen(device="cuda") == chosen(processes=2) == chosen(processes=2, resumed=tmp_path) == 4
    assert chosen(resumed=tmp_path) == 2
    machine.threads = 1
    with pytest.warns(UserWarning, match="trained on 2 threads, and there are 1 here"):
        assert chosen(resumed=tmp_path) == 1
    assert chosen() == 1, "the least"
    trainer.accelerator = cpu


@pytest.mark.parametrize("damage", ["", "{}", "[3]", '{"threads": 0}', '{"threads": "2"}', '{"threads": true}'])
def test_a_run_without_a_stored_number_goes_on_with_that_of_pytorch(machine, tmp_path, damage):
    (tmp_path / "versions.json").write_text(damage)
    assert threads_of(tmp_path) is None and threads_of(OLD_RUNS / "indm") == 2
    assert costs.choose_threads(trainer_of(TINY), tmp_path) == 4


@pytest.mark.parametrize("command", ["train", "train-pair", "train-bridge"])
def test_the_flag_is_the_option(command):
    assert parse([command, "digits", "--threads", "3"]).table_values == {"train.threads": "3"}
    assert parse([command, "digits", "--train.threads", "auto"]).table_values == {"train.threads": "auto"}
    assert Training().threads == "auto"


def test_a_resumed_run_has_the_threads_it_was_trained_with(machine, tmp_path):
    run, seen = tmp_path / "run", []
    for steps, wanted in enumerate([3, "auto", 2, "auto"], 1):
        recipe = change(TINY, steps=steps, threads=wanted)
        keep = [lambda trainer, terms: seen.append(machine.threads)]
        train(recipe, run, callbacks=keep, resume=run.exists(), progress=False)
    versions = json.loads((run / "versions.json").read_text())
    assert seen == [part["threads"] for part in (*versions["before"], versions)] == [3, 3, 2, 2]
    assert machine.threads == 4, "as before"
