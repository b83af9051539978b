"""What a step costs: measured in turns by a clock that the test moves, kept, and made a budget."""

import math
import statistics

import pytest
import torch

from indm.training import FlowUse
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import read_metrics, recipe_of
from indm.workbench.training import costs
from indm.workbench.training.costs import have_equal_steps, interleaved_seconds
from indm.workbench.training.loop import train
from indm.workbench.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

TINY = {
    "data": {"name": "eight-gaussians", "samples": 500},
    "flow": {"name": "coupling", "depth": 1, "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 8, "depth": 1},
    "train": {"steps": 12, "batch_size": 32, "validate_examples": 20, "flow_update_every": 3},
}
LINEAR = TINY | {"flow": {"name": "identity"}}


def changed(recipe, **train):
    return recipe | {"train": recipe["train"] | train}


@pytest.fixture
def clock(monkeypatch):
    """Time passes only in steps: 3 s where the flow is trained (2 s alone), 1 s where it is not,
    and five times as much while the machine has a neighbour, which comes and goes.
    """
    now, taken = [0.0], []

    def train_step(self, batches):
        neighbour = 5.0 if len(taken) % 40 > 20 else 1.0
        seconds = (
            {FlowUse.TRAINED: 3.0, FlowUse.ALONE: 2.0}
            if self.schedule.flow_update_every > 1
            else {}
        )
        now[0] += neighbour * seconds.get(self.schedule.flow_use(self.step), 1.0)
        taken.append(torch.get_num_threads())
        self.step += 1
        return {"skipped": torch.zeros(())}

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    return taken


@pytest.mark.parametrize(
    ("opening", "of_indm"),
    [
        ({}, 5 / 3),
        ({"first": "score", "alone": 0.25}, 1.5),
        ({"first": "flow", "alone": 0.25}, 1.75),
    ],
)
def test_a_neighbour_does_not_change_what_a_step_costs_beside_another(clock, opening, of_indm):
    """A cycle of three steps with one of the flow takes 5 s; before the flow is in, 3 s; with the
    flow alone, 6 s.
    """
    trainers = {"linear": costs.trainer_of(recipes.resolve(changed(LINEAR, flow_update_every=1))),
                "indm": costs.trainer_of(recipes.resolve(changed(TINY, **opening)))}  # fmt: skip
    own = torch.get_num_threads()
    seconds = interleaved_seconds(
        trainers, {"linear": own, "indm": own + 1}, rounds=9, steps=4, progress=False
    )
    assert {len(values) for values in seconds.values()} == {9} and min(seconds["linear"]) < max(
        seconds["linear"]
    )
    assert (
        trainers["linear"].step == 2 + 9 * 4
        and set(clock) == {own, own + 1}
        and torch.get_num_threads() == own
    )
    assert trainers["indm"].step == (2 * 3 + 9 * 6) * (2 if opening else 1)  # whole cycles
    ratios = [a / b for a, b in zip(seconds["indm"], seconds["linear"], strict=True)]
    assert statistics.median(ratios) == pytest.approx(of_indm)


def test_recipes_whose_steps_cost_the_same():
    usual = recipes.resolve(TINY)
    alike = [
        # the last is the default
        changed(TINY, steps=90, seconds=5, seed=3, log_every=7, threads=4, lr=1e-3),
        TINY | {"evaluate": {"times": 9}},
        {table: TINY[table] for table in reversed(TINY)},
    ]
    others = [
        LINEAR,
        changed(TINY, batch_size=16),
        changed(TINY, flow_update_every=2),
        changed(TINY, terminal=1.0),
    ]
    for recipe in alike:
        assert have_equal_steps(recipes.resolve(recipe), usual)
    for recipe in others:
        assert not have_equal_steps(recipes.resolve(recipe), usual)


@pytest.fixture(scope="module")
def indm_run(tmp_path_factory):
    """A run of twelve steps."""
    folder = tmp_path_factory.mktemp("costs") / "indm"
    train(TINY, folder, progress=False)
    return folder


def times(monkeypatch, like, own):
    """A step of the first trainer takes ``like`` seconds, one of the other ``own``; the threads
    that were asked for.
    """
    asked = []

    def interleaved_seconds(trainers, threads, **_):
        asked.append(list(threads.values()))
        assert all(trainer.progress < 1e-6 for trainer in trainers.values())
        return {name: [seconds] * 2 for name, seconds in zip(trainers, (like, own), strict=True)}

    monkeypatch.setattr(costs, "interleaved_seconds", interleaved_seconds)
    return asked


def test_a_run_like_another_makes_the_steps_that_cost_the_same(
    indm_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(costs, "threads_for", lambda run: 1)
    asked = times(monkeypatch, like=0.3, own=0.2)
    torch.manual_seed(5)
    train(changed(LINEAR, steps=math.inf, seconds=1000), tmp_path / "linear", like=indm_run)
    assert asked == [[1, 1]] and read_metrics(tmp_path / "linear")[-1]["step"] == 18
    trained = recipe_of(tmp_path / "linear")["train"]
    assert (trained["steps"], trained["seconds"], trained["threads"]) == (18, math.inf, 1)
    assert (
        f"18 steps, which cost the 12 of {indm_run}: a step costs 0.667 of one there"
        in capsys.readouterr().err
    )

    # what was measured changes nothing
    train(changed(LINEAR, steps=18), tmp_path / "same", progress=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("linear", "same")]
    assert weights[0] == weights[1]

    train(changed(TINY, seed=1, steps=500), tmp_path / "seed", like=indm_run, progress=False)
    # a step costs the same
    assert len(asked) == 1 and recipe_of(tmp_path / "seed")["train"]["steps"] == 12
