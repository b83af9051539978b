"""Who decides on the number of threads, and when steps are called slow."""

import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_reliability import TINY, trainer_of
from test_training import change

from indm.cli.commands import parse
from indm.config.options import Training
from indm.runs.provenance import threads_of
from indm.training import costs
from indm.training import trainer as trainer_module
from indm.training.loop import train
from indm.training.trainer import Trainer

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


# ── Slow steps


def slow_step_warnings(times, kinds=(frozenset("a"),)):
    """The steps at which something is said, where the step number i of its kind takes times(i, kind) seconds."""
    watch, said = costs.SlowSteps(), {}
    for step in range(400):
        kind = kinds[step % len(kinds)]
        message = watch.notice(step, kind, times(step, kind))
        if message:
            said[step] = message
    return said


@pytest.mark.parametrize("factor, from_step", [(4.0, 130), (3.1, 200)])
def test_a_step_that_takes_three_times_as_long_is_told_once(machine, factor, from_step):
    said = slow_step_warnings(lambda step, kind: 0.4 * (factor if step >= from_step else 1))
    ((step, message),) = said.items()
    assert from_step < step < from_step + 25
    assert f"at step {step}, steps take {0.4 * factor:.2g} s, where 0.4 s were usual" in message
    assert "other processes" in message and "--threads 1 (in Python: " in message
    machine.threads = 1
    (message,) = slow_step_warnings(lambda step, kind: 0.4 * (factor if step >= from_step else 1)).values()
    assert "other processes" in message and "--threads" not in message


@pytest.mark.parametrize(
    "times",
    [
        lambda step, kind: 0.4,
        lambda step, kind: 9.0 if step < 5 else 0.4,  # compiled
        lambda step, kind: 9.0 if step < 12 else 0.4 if step < 200 else 1.1,
        lambda step, kind: 0.01 if step < 45 else 0.4,  # the first ones do next to nothing
        lambda step, kind: 30.0 if step % 20 == 0 else 0.4,  # an epoch begins
        lambda step, kind: 0.4 * (1 + 0.5 * (step % 2)) if step < 200 else 1.1,
        lambda step, kind: 0.001 if step < 300 else 0.004,  # less than a second in all
        lambda step, kind: 2.0 if "b" in kind else 0.2,
        lambda step, kind: 0.2 if step < 200 else 0.4,
    ],
)
def test_what_is_no_slow_run_is_not_called_one(times):
    assert not slow_step_warnings(times, [frozenset("a"), frozenset("a"), frozenset("ab")])


def test_a_training_warns_of_slow_steps_and_not_of_validations(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "WINDOW_STEPS", 2)
    step, seconds = Trainer.train_step, [5, 5, 5, 5, 6, 6, 20, 20, 20, 20]

    def timed_step(self, batches):
        machine.now += seconds[self.step]
        return step(self, batches)

    def timed_validation(self):
        machine.now += 1000
        return {"valid_nelbo": 0.0, "unit": "nats"}

    monkeypatch.setattr(Trainer, "train_step", timed_step)
    monkeypatch.setattr(Trainer, "validate", timed_validation)
    recipe = change(
        TINY, steps=10, accumulate=1, pretrain=0.0, flow_update_every=1, validate_every=2, checkpoint_every=100
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(recipe, tmp_path / "run", progress=False)
    (said,) = [str(warning.message) for warning in caught if "were usual" in str(warning.message)]
    assert said.startswith("at step 8, steps take 20 s, where 5 s were usual")
