"""Intervals of a run as steps and as shares, what a run shows, and what it keeps in the end."""

import contextlib
import itertools
import json
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import indm
from indm.training import learning_rate_factor
from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.ending import warn_of_short_run
from indm.workbench.training.loop import train
from indm.workbench.training.schedule import Schedule, is_due

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")
QUICK = {
    "train.steps": 4,
    "train.batch_size": 128,
    "train.threads": 1,
    "train.validate_examples": 4,
}


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32))
    return path


# Budgets as shares


@pytest.mark.parametrize("steps", [7, 10, 30, 1000])
@pytest.mark.parametrize("every", [0.1, 0.05, 0.3, 0.02])
def test_intervals_that_are_shares(steps, every):
    due = [
        step
        for step in range(1, steps + 1)
        if is_due(step, (step - 1) / steps, step / steps, every)
    ]
    ends = {math.ceil(round(k * every * steps, 6)) for k in range(1, int(1 / every + 1e-6) + 1)}
    assert due == sorted(ends)


def test_intervals_of_steps_and_of_seconds():
    assert not any(is_due(step, 0.0, 1.0, math.inf) for step in range(1, 13))
    assert [step for step in range(1, 13) if is_due(step, 0.0, 0.0, 5)] == [5, 10]
    seconds = [0.0, 0.04, 0.11, 0.12, 0.35, 0.41]  # of a run whose steps take different times
    due = [is_due(3, before, after, 0.1) for before, after in itertools.pairwise(seconds)]
    assert due == [False, True, False, True, True]


def test_warmup_that_is_a_share_rises_with_the_run():
    assert [learning_rate_factor(0, progress, 0.1, 0.0) for progress in (0.0, 0.05, 0.1, 0.5)] == [
        0.0,
        0.5,
        1.0,
        1.0,
    ]
    assert learning_rate_factor(0, 0.95, 0.1, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("warmup", "step", "said"),
    [
        (0, 3, r"the run ended after 3 steps.*give it more train\.steps"),
        (5, 3, r"the run ended inside its warm-up of 5 steps"),
        (199, 200, None),
    ],
)
def test_a_run_that_is_too_short_says_so(warmup, step, said):
    trainer = Mock(step=step, schedule=Schedule(steps=step, warmup=warmup))
    with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
        warn_of_short_run(trainer)


@pytest.mark.long
def test_the_final_model_may_be_that_of_the_best_validation(vectors, tmp_path):
    tiny = {"net.width": 8, "net.depth": 1, "flow": "identity", "train.validate_every": 10}
    changes = {
        "data.path": str(vectors),
        **QUICK,
        "train.steps": 60,
        "train.ema": 0.0,
        **tiny,
        "train.lr": 0.3,
    }
    for final in ("best", "last"):
        recipe = recipes.recipe("array", changes | {"train.final": final})
        summary = train(recipe, tmp_path / final, progress=False)
    assert summary["best"]["step"] < 60  # at so large a rate the last is not the best
    weights = {
        run: indm.INDM.load(tmp_path / run).state_dict() for run in ("best", "last", "best/best")
    }
    same = {
        run: all(torch.equal(weights[run][k], weights["best/best"][k]) for k in weights[run])
        for run in weights
    }
    assert same == {"best": True, "last": False, "best/best": True}


@pytest.mark.long
def test_a_run_has_the_threads_of_its_recipe_and_records_them(vectors, tmp_path):
    before, seen = torch.get_num_threads(), []
    recipe = recipes.recipe(
        "array", {"data.path": str(vectors), **QUICK, "train.steps": 1, "train.threads": before + 1}
    )
    train(
        recipe,
        tmp_path / "run",
        callbacks=[lambda *_: seen.append(torch.get_num_threads())],
        progress=False,
    )
    assert seen == [before + 1] and torch.get_num_threads() == before
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["threads"] == before + 1


# Progress


def test_what_a_run_shows(vectors, tmp_path, capsys):
    changes = {"data.path": str(vectors), **QUICK, "train.validate_every": 2}
    changes |= {"train.lr": 0.002, "train.flow_lr": 0.03, "train.warmup": 0}
    with pytest.warns(UserWarning, match="the run ended after 4 steps"):
        train(recipes.recipe("array", changes), tmp_path / "run")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[0].startswith("read from ") and lines[1].startswith("split by seed 0"), lines
    last = lines[-1]  # the rate has fallen
    assert (
        last.startswith("100% ")
        and ", step 4, NELBO " in last
        and ", validation " in last
        and ", rate 0.001" in last
    )
    train(recipes.recipe("array", changes), tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
