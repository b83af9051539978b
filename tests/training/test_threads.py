"""Who decides on the number of threads, that measuring it leaves no trace, and when steps are called slow."""

import contextlib
import copy
import dataclasses
import json
import random
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_reliability import CONDITIONAL, TINY, compare_runs, trainer_of
from test_training import assert_same, change
from torch import nn

from indm.cli.parsing import parse
from indm.config import recipes
from indm.config.options import Training
from indm.data.registry import load_data
from indm.objective import Objective, mle_loss
from indm.runs.provenance import threads_of
from indm.training import loop, threads
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
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    monkeypatch.setattr(loop, "time", threads.time)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return machine


def passes(machine, cost):
    """Stand-in for the passes of a step, which take ``cost(threads)`` seconds; and the threads of each."""
    calls = []

    def run_pass():
        calls.append(machine.threads)
        machine.now += cost(machine.threads)

    return run_pass, calls


def as_measured(monkeypatch, machine, cost):
    """Let the passes of any training take ``cost[threads]`` seconds; returns the threads of each pass."""
    run_pass, calls = passes(machine, cost.__getitem__)
    monkeypatch.setattr(threads, "passes_without_trace", lambda trainer: contextlib.nullcontext(run_pass))
    return calls


# ── Which number


@pytest.mark.parametrize(
    "cost, best",
    [({1: 0.01, 2: 0.02, 4: 0.03}, 1), ({1: 0.03, 2: 0.01, 4: 0.02}, 2), ({1: 3.0, 2: 2.0, 4: 1.0}, 4)],
)
def test_the_fastest_number_is_taken_and_what_was_measured_is_recorded(machine, monkeypatch, cost, best):
    as_measured(monkeypatch, machine, cost)
    choice = threads.choose(trainer_of(change(TINY, steps=100_000)))
    assert choice.threads == best and choice.seconds == pytest.approx(cost)
    assert machine.threads == 4, "as before"
    assert choice.record() == {"threads": best, "seconds_by_threads": choice.seconds}
    assert str(choice).startswith(f"threads: {best} (0.") or best == 4
    assert f"--threads {best} " in str(choice) and "\n" not in str(choice)


def test_a_load_that_comes_and_goes_meets_all_numbers_alike(machine):
    """Nine times the cost for one second of three: measured one after the other, the middle one would be the last."""
    cost = {1: 0.013, 2: 0.01, 4: 0.016}
    run_pass, _ = passes(machine, lambda n: cost[n] * (9 if 1.0 < machine.now < 2.0 else 1))
    assert threads.measure(run_pass, [1, 2, 4], 1e9, 1e9) == pytest.approx(cost)
    assert 2.9 < machine.now < 3.5, "a second for each"


@pytest.mark.parametrize(
    "steps, seconds, most", [(1, 1e9, 0), (threads.FEWEST_STEPS - 1, 1e9, 0), (1e9, 0.5, 3),
    (threads.FEWEST_STEPS, 1e9, 8), (1e9, 5.0, 15)],
)  # fmt: skip
def test_a_run_is_not_slowed_by_measuring(machine, monkeypatch, steps, seconds, most):
    calls = as_measured(monkeypatch, machine, dict.fromkeys([1, 2, 4], 0.01))
    choice = threads.choose(trainer_of(change(TINY, steps=steps, seconds=seconds)))
    assert len(calls) <= most and bool(choice.seconds) == (most > 3)
    assert choice.seconds or choice.threads == 4


def test_a_short_run_on_a_busy_machine_takes_one_thread(machine, monkeypatch):
    calls = as_measured(monkeypatch, machine, {1: 0.5, 2: 4.0, 4: 5.0})
    choice = threads.choose(trainer_of(change(TINY, steps=1e9, seconds=100.0)))
    assert choice.threads == 1 and choice.seconds == pytest.approx({1: 0.5, 4: 5.0}) and len(calls) == 3


def test_the_command_line_environment_and_earlier_parts_decide_before_the_clock(machine, monkeypatch, tmp_path):
    calls = as_measured(monkeypatch, machine, {1: 1.0, 2: 2.0, 4: 4.0})
    trainer = trainer_of(change(TINY, steps=100_000))
    (tmp_path / "versions.json").write_text(json.dumps({"threads": 2, "before": [{"threads": 3}]}))
    cpu = trainer.accelerator

    def chosen(wanted="auto", environment="", resumed=None, device="cpu", processes=1):
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
        trainer.options = dataclasses.replace(trainer.options, threads=wanted)
        trainer.accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
        calls.clear()
        choice = threads.choose(trainer, resumed)
        assert bool(calls) == bool(choice.seconds)
        return choice.threads, bool(choice.seconds)

    assert chosen() == (1, True)
    assert chosen(wanted=3) == chosen(wanted=3, environment="4", resumed=tmp_path) == (3, False)
    assert chosen(environment="4") == chosen(environment="4", resumed=tmp_path) == (4, False)
    assert chosen(device="cuda") == chosen(processes=2) == chosen(processes=2, resumed=tmp_path) == (4, False)
    assert chosen(resumed=tmp_path) == (2, False)
    machine.threads = 1
    with pytest.warns(UserWarning, match="trained on 2 threads, and there are 1 here"):
        assert chosen(resumed=tmp_path) == (1, False)
    assert chosen() == (1, False), "nothing to choose from"
    trainer.accelerator = cpu


@pytest.mark.parametrize("damage", ["", "{}", "[3]", '{"threads": 0}', '{"threads": "2"}', '{"threads": true}'])
def test_a_run_without_a_stored_number_goes_on_with_that_of_pytorch(machine, tmp_path, damage):
    (tmp_path / "versions.json").write_text(damage)
    assert threads_of(tmp_path) is None and threads_of(OLD_RUNS / "indm") == 2
    assert threads.choose(trainer_of(TINY), tmp_path).threads == 4


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "none"])
def test_a_number_of_threads_is_auto_or_at_least_1(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"train\.threads must be .*auto"):
        train(change(TINY, threads=wrong), tmp_path / "run", progress=False)


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


# ── Measuring


class Started(nn.Module):
    """What parts of one's own may do in a pass: set a parameter at the first, and replace a buffer at each."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))
        self.is_set = False

    @torch.no_grad()
    def forward(self, x):
        if not self.is_set:
            self.shift.fill_(float(x.mean()) + 1)
            self.is_set = True
        self.mean = 0.9 * self.mean + x.mean()


def noisy_loss(model, x, eps=None):
    """A loss with the randomness that parts of one's own may have."""
    if hasattr(model, "started"):
        model.started(x)
    loss, terms = mle_loss(model, x, eps=eps)
    return loss * (1 + 0.1 * np.random.rand() + 0.1 * random.random()), terms


def state_of(trainer):
    """All that a training continues from, copied."""
    state = {
        "random": (random.getstate(), np.random.get_state()[2], torch.get_rng_state().tolist()),
        "models": (dict(trainer.network.state_dict()), dict(trainer.ema.model.state_dict())),
        "optimizer": trainer.optimizer.state_dict(),
        "gradients": [parameter.grad for parameter in trainer.network.parameters()],
        "started": (trainer.model.started.is_set, list(vars(trainer.model.started))),
        "place": (trainer.step, trainer.seconds, trainer.pretraining, trainer.means.state()),
    }
    return copy.deepcopy(state)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_passes_leave_no_trace(steps_before):
    recipe = recipes.resolve(change(TINY, pretrain=0.5) | {"flow": CONDITIONAL})
    trainer = Trainer(recipe, load_data("digits"), Accelerator(), objective=Objective(noisy_loss))
    batches = trainer.batches()
    for _ in range(steps_before):
        trainer.train_step(batches)
    trainer.model.started = Started()
    before = state_of(trainer)
    with threads.passes_without_trace(trainer) as run_pass:
        run_pass()
        assert all(now != then for now, then in zip(state_of(trainer)["random"], before["random"], strict=True))
        then, now = before["models"][0], trainer.network.state_dict()
        moved = {name.rsplit(".", 1)[-1] for name in now if not torch.equal(now[name], then[name])}
        assert moved >= {"running_mean", "mean", "shift"}
    assert_same(state_of(trainer), before)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {*map(id, held)} <= {*map(id, trainer.network.parameters())}


def test_a_step_of_ones_own_is_what_is_measured():
    """One that takes other conditions, and passes that are not the trainer's."""
    given = []

    class OwnStep(Trainer):
        def conditions(self):
            return {"weight": 2.0}

        def forward_backward(self, batches, conditions):
            given.append((next(batches).shape, conditions))
            return {}

    trainer = OwnStep(recipes.resolve(TINY), load_data("digits"), Accelerator())
    with threads.passes_without_trace(trainer) as run_pass:
        run_pass()
    assert given == [((TINY["train"]["batch_size"] // 2, 1, 8, 8), {"weight": 2.0})]


def test_a_measured_run_is_the_one_that_is_given_its_number(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(threads, "time", time)
    monkeypatch.setattr(threads, "FEWEST_STEPS", 1)
    wanted = "auto"
    for name in ("measured", "given"):
        recipe = change(TINY, steps=2, threads=wanted, pretrain=0.0, flow_update_every=1)
        train(recipe, tmp_path / name, progress=name == "measured")
        versions = json.loads((tmp_path / name / "versions.json").read_text())
        wanted = versions["threads"]
        assert wanted in (1, 2, 4) and ("seconds_by_threads" in versions) == (name == "measured")
    compare_runs(tmp_path / "measured", tmp_path / "given")
    assert capsys.readouterr().err.count(f"threads: {wanted} (") == 1


# ── Slow steps


def slow_step_warnings(times, kinds=(frozenset("a"),)):
    """The steps at which something is said, where the step number i of its kind takes times(i, kind) seconds."""
    watch, said = threads.SlowSteps(), {}
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
    monkeypatch.setattr(threads, "WINDOW_STEPS", 2)
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
