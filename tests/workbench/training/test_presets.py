"""Presets: what is taken, for which data, machine and budget; that a run keeps it; budgets as shares."""

import contextlib
import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import indm
from indm.training import learning_rate_factor
from indm.workbench.data.base import as_data
from indm.workbench.data.registry import load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training import loop, presets
from indm.workbench.training.checks import TooLarge
from indm.workbench.training.log import Progress
from indm.workbench.training.loop import is_due, train
from indm.workbench.training.pairs import train_pair

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")
QUICK = {"train.seconds": math.inf, "train.steps": 4, "train.threads": 1, "train.validate_examples": 4}


@pytest.fixture
def step_seconds(monkeypatch):
    """Stands for the measuring: seconds of a step by the channels or width of the network."""
    seconds = {}

    def measured(trainer):
        net = trainer.model.score.backbone
        return seconds[getattr(net, "channels", None) or net.width]

    monkeypatch.setattr(presets, "seconds_of_a_step", measured)
    return seconds


@pytest.fixture
def any_number(monkeypatch):
    """All presets are for any number of examples."""
    monkeypatch.setattr(presets, "FEWEST_EXAMPLES", dict.fromkeys(presets.FEWEST_EXAMPLES, 0))


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32))
    return path


def pictures(folder, n):
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def one_process():
    return Accelerator(cpu=True)


def completed(recipe, data, **parts):
    """An open recipe with the preset for these data, on one process, and the notes on it."""
    return presets.completed(recipe, {"data": as_data(data), **parts}, one_process())


def preset_of(run):
    """The width of the network in a run, which says which preset it has."""
    return recipes.load(run)["net"]["width"]


@pytest.mark.parametrize(
    ("small", "medium", "budget", "width"),
    [
        (0.01, 0.02, {"seconds": 180}, 256),  # 9,000 steps of medium
        (0.01, 0.10, {"seconds": 180}, 128),  # 1,800: not enough
        (0.01, 0.10, {"seconds": 400}, 256),  # better with more
        (1.00, 9.99, {"seconds": 10}, 128),  # the least there is
        (0.01, 1.10, {"steps": 500}, 256),  # 550 of the usual 600 seconds
        (0.01, 1.30, {"steps": 500}, 128),
    ],
)
def test_auto_takes_the_largest_with_enough_steps(any_number, step_seconds, vectors, small, medium, budget, width):
    step_seconds |= {128: small, 256: medium, 512: 1000.0}
    changes = {"data.path": str(vectors), **{f"train.{key}": value for key, value in budget.items()}}
    whole, notes = completed(recipes.recipe("array", changes), load_data("array", path=vectors))
    assert whole["net"]["width"] == width and not whole.is_open
    assert f"small {small:.2g} s a step" in notes[0] and "choose another with --preset" in notes[0]


def test_auto_takes_none_that_memory_does_not_hold(any_number, monkeypatch, step_seconds, vectors):
    tried = []

    def check(*of):
        tried.append(of)
        if len(tried) >= first_too_large:
            raise TooLarge("a step of training takes more than there is")

    step_seconds |= {128: 1e-6, 256: 1e-6, 512: 1e-6}
    monkeypatch.setattr("indm.workbench.training.trainer.check_fits", check)
    recipe, data = recipes.recipe("array", {"data.path": str(vectors)}), load_data("array", path=vectors)
    first_too_large = 3
    whole, notes = completed(recipe, data)
    assert whole["net"]["width"] == 256 and "large is more than memory holds" in notes[0]
    tried.clear()
    first_too_large = 1
    with pytest.raises(TooLarge):
        completed(recipe, data)


def test_what_is_given_stays(any_number, step_seconds, vectors):
    step_seconds |= {64: 1e-6, 128: 1e-6, 256: 1e-6, 512: 1e-6}
    changes = {"data.path": str(vectors), "net.width": 64, "train.lr": 0.5, "flow": "identity"}
    whole, _ = completed(recipes.recipe("array", changes), load_data("array", path=vectors))
    assert whole["net"]["width"] == 64 and whole["train"]["lr"] == 0.5
    assert whole["flow"] == {"name": "identity"}  # no key of the preset's own flow
    assert whole["train"]["flow_lr"] == 5e-4  # that of large


@pytest.mark.parametrize(("rows", "width"), [(200, 128), (2600, 256), (26_000, 512)])
def test_few_examples_get_a_small_preset(step_seconds, rows, width):
    step_seconds |= {128: 1e-6, 256: 1e-6, 512: 1e-6}
    data = torch.randn(rows, 2)
    whole, notes = completed(recipes.resolve(recipes.load("array")), data)
    assert whole["net"]["width"] == width and ("medium" in notes[0]) == (rows > 2500)
    asked = recipes.recipe("array", {"data.path": "x.npy", "train.preset": "large"})
    assert completed(asked, data)[0]["net"]["width"] == 512


def test_a_batch_is_capped_by_the_data_with_a_note(vectors):
    recipe = recipes.recipe("array", {"data.path": str(vectors), "train.preset": "small"})
    whole, notes = completed(recipe, load_data("array", path=vectors))
    assert whole["train"]["batch_size"] == 160
    assert notes[0] == "batch size 160 in place of 256: there are no more to train on"
    given = recipes.recipe("array", {"data.path": str(vectors), "train.preset": "small", "train.batch_size": 999})
    whole, _ = completed(given, load_data("array", path=vectors))
    assert whole["train"]["batch_size"] == 999  # which the training refuses
    of_ten = as_data(torch.randn(12, 5))
    tables = {"net": {"name": "mlp"}, "train": {"batch_size": 256}}
    assert presets.fitted(tables, of_ten, together=4)[0]["train"] == {"batch_size": 8}


@pytest.mark.parametrize(
    ("side", "expected", "batch"),
    [(8, [1, 2], 64), (16, [1, 2, 2], 64), (28, [1, 2, 2], 41), (32, [1, 2, 2], 32), (64, [1, 1, 2, 2], 8),
     (128, [1, 1, 2, 2, 2], 8)],
)  # fmt: skip
def test_levels_and_batch_by_the_size_of_images(side, expected, batch):
    images = torch.zeros(100, 3, side, side, dtype=torch.uint8)
    tables = {"net": {"name": "unet"}, "train": {"batch_size": 32}}
    two = presets.fitted(tables, as_data(images), together=2)[0]["train"]["batch_size"]
    assert two % 2 == 0 and 0 <= batch - two < 2
    fitted, _ = presets.fitted(tables, as_data(images))
    assert fitted["net"]["multipliers"] == expected and fitted["train"]["batch_size"] == batch
    lowest = side / 2 ** (len(expected) - 1)
    assert 4 <= lowest <= 8


@pytest.mark.parametrize("name", ["folder", "array", "translate-folders"])
def test_presets_grow(name):
    loaded = recipes.load(name)
    assert list(loaded[recipes.PRESETS]) == list(presets.FEWEST_EXAMPLES) and recipes.resolve(loaded).is_open
    sizes = [preset["net"].get("channels") or preset["net"]["width"] for preset in loaded[recipes.PRESETS].values()]
    rates = [preset["train"]["lr"] for preset in loaded[recipes.PRESETS].values()]
    assert sizes == sorted(sizes) and rates == sorted(rates, reverse=True)


def test_recipes_of_images_are_behind_the_spline():
    """Measured on all of them, it is ahead of the coupling flow; see docs/parts.md."""
    names = ("folder", "digits", "fashion-mnist-16", "fashion-mnist", "emoji-32", "emoji-64")
    assert {recipes.load(name)["flow"]["name"] for name in names} == {"elementwise"}


def test_recipes_of_images_have_the_same_presets_but_for_the_rates_of_their_flows(vectors):
    folder, pair = (recipes.load(name)[recipes.PRESETS] for name in ("folder", "translate-folders"))
    for size in folder:
        assert folder[size]["train"].pop("flow_lr") > pair[size]["train"].pop("flow_lr")
    assert folder == pair
    with pytest.raises(ValueError, match=r"data must be images for the presets .* got events of shape \(5,\)"):
        presets.fitted(folder["small"], load_data("array", path=vectors))


def test_a_preset_that_a_recipe_has_not(vectors):
    with pytest.raises(ValueError, match=r"train\.preset must be one that the recipe has \(none\), got 'small'"):
        completed(recipes.recipe("digits", {"train.preset": "small"}), torch.randn(20, 2))
    with pytest.raises(ValueError, match=r"train\.preset must be '' or 'auto' or 'small' or 'medium' or 'large'"):
        recipes.recipe("array", {"data.path": str(vectors), "train.preset": "tiny"})


def test_a_run_keeps_its_preset_when_it_continues(step_seconds, vectors, tmp_path, capsys):
    step_seconds |= {128: 0.01, 256: 1000.0, 512: 1000.0}
    recipe = recipes.recipe("array", {"data.path": str(vectors), **QUICK, "train.seconds": 100})
    train(recipe, tmp_path / "run")
    assert preset_of(tmp_path / "run") == 128 and "preset small (small 0.01 s a step" in capsys.readouterr().err
    step_seconds[256] = 1e-9  # a faster machine
    more = recipes.recipe("array", {"data.path": str(vectors), **QUICK, "train.seconds": 100, "train.steps": 6})
    assert train(more, tmp_path / "run", resume=True, progress=False)["steps"] == 6
    with pytest.warns(
        UserWarning, match=r"is not trained on, as it has spent its budget, 6 steps of 6: train\.steps counts"
    ):
        assert train(recipes.load(tmp_path / "run"), tmp_path / "run", resume=True, progress=False)["steps"] == 6
    small, medium = (
        recipes.recipe("array", {"data.path": str(vectors), "train.preset": p}) for p in ("small", "medium")
    )
    assert not recipes.resolve(recipes.as_continued(small, tmp_path / "run")).is_open
    with pytest.raises(ValueError, match=r"got 'medium', whose net\.width is 256 and not 128; leave --preset out"):
        recipes.as_continued(medium, tmp_path / "run")
    other = recipes.recipe("array", {"data.path": str(vectors), **QUICK, "train.lr": 0.7})
    with pytest.raises(ValueError, match=r"another recipe: it differs in train\.lr"):
        train(other, tmp_path / "run", resume=True, progress=False)


def test_both_models_of_a_pair_have_one_preset(step_seconds, tmp_path):
    step_seconds |= {8: 1.0}
    folders = [pictures(tmp_path / name, n) for name, n in (("a", 30), ("b", 12))]
    changes = {"data.path": str(folders[0]), "data_b.path": str(folders[1]), "net.channels": 8, **QUICK}
    recipe = recipes.recipe("translate-folders", changes | {"data.size": 8, "data_b.size": 8})
    train_pair(recipe, tmp_path / "pair", progress=False)
    a, b = (recipes.load(tmp_path / "pair" / side) for side in "ab")
    assert a["train"] == b["train"] and a["net"] == b["net"] and a["train"]["batch_size"] == 10  # of 12, split
    again = train_pair(recipe, tmp_path / "pair", resume=True, progress=False)
    assert [summary["steps"] for summary in again.values()] == [4, 4]


def test_a_model_from_python_is_not_trained_by_measuring(vectors):
    recipe = recipes.recipe("array", {"data.path": str(vectors), **QUICK})
    data = load_data("array", path=vectors)
    whole, _ = completed(recipe, data)
    model = presets.Trainer(whole, data, one_process()).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, notes = completed(recipe, data, model=model)
    assert re.search(r"small [\d.e-]+ s a step", notes[0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Budgets as shares


@pytest.mark.parametrize("steps", [7, 10, 30, 1000])
@pytest.mark.parametrize("every", [0.1, 0.05, 0.3, 0.02])
def test_intervals_that_are_shares(steps, every):
    due = [step for step in range(1, steps + 1) if is_due(step, (step - 1) / steps, step / steps, every)]
    ends = {math.ceil(round(k * every * steps, 6)) for k in range(1, int(1 / every + 1e-6) + 1)}
    assert due == sorted(ends)


def test_intervals_of_steps_and_of_seconds():
    assert not any(is_due(step, 0.0, 1.0, math.inf) for step in range(1, 13))
    assert [step for step in range(1, 13) if is_due(step, 0.0, 0.0, 5)] == [5, 10]
    seconds = [0.0, 0.04, 0.11, 0.12, 0.35, 0.41]  # of a run whose steps take different times
    due = [is_due(3, before, after, 0.1) for before, after in itertools.pairwise(seconds)]
    assert due == [False, True, False, True, True]


def test_warmup_that_is_a_share_rises_with_the_run():
    assert [learning_rate_factor(0, progress, 0.1, 0.0) for progress in (0.0, 0.05, 0.1, 0.5)] == [0.0, 0.5, 1.0, 1.0]
    assert learning_rate_factor(0, 0.95, 0.1, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("key", ["log_every", "validate_every", "checkpoint_every"])
def test_intervals_are_steps_or_shares(key):
    for wrong in (0, 1.5, -1):
        with pytest.raises(ValueError, match=rf"train\.{key} must be a whole number of steps, or a share of the run"):
            indm.workbench.recipes.options.Training(**{key: wrong})
    for value in (0.25, 7, math.inf):
        assert getattr(indm.workbench.recipes.options.Training(**{key: value}), key) == value


def test_a_run_validates_by_shares(vectors, tmp_path):
    changes = {"data.path": str(vectors), **QUICK, "train.steps": 20, "train.preset": "small", "train.log_every": 0.25}
    train(recipes.recipe("array", changes | {"train.validate_every": 0.5}), tmp_path / "run", progress=False)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "valid_nelbo" in line] == [10, 20]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("warmup", "step", "said"),
    [
        (0, 3, r"the run ended after 3 steps.*give it more train\.steps"),
        (5, 3, r"the run ended inside its warm-up of 5 steps"),
        (199, 200, None),
    ],
)
def test_a_run_that_is_too_short_says_so(warmup, step, said):
    trainer = SimpleNamespace(options=indm.workbench.recipes.options.Training(steps=step, warmup=warmup), step=step)
    with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
        loop.warn_of_short_run(trainer, False)


@pytest.mark.long
def test_the_final_model_may_be_that_of_the_best_validation(vectors, tmp_path):
    tiny = {"net.width": 8, "net.depth": 1, "flow": "identity", "train.preset": "small", "train.validate_every": 10}
    changes = {"data.path": str(vectors), **QUICK, "train.steps": 60, "train.ema": 0.0, **tiny, "train.lr": 0.3}
    for final in ("best", "last"):
        recipe = recipes.recipe("array", changes | {"train.final": final})
        summary = train(recipe, tmp_path / final, progress=False)
    assert summary["best"]["step"] < 60  # at so large a rate the last is not the best
    weights = {run: indm.INDM.load(tmp_path / run).state_dict() for run in ("best", "last", "best/best")}
    same = {run: all(torch.equal(weights[run][k], weights["best/best"][k]) for k in weights[run]) for run in weights}
    assert same == {"best": True, "last": False, "best/best": True}


# Progress


def test_without_a_terminal_progress_is_a_line_every_few_seconds(monkeypatch, capsys):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("indm.workbench.training.log.time", SimpleNamespace(monotonic=lambda: clock.now))
    asked = []
    with Progress(0.0, lambda: asked.append(1) or f"step {len(asked)}") as progress:
        for step in range(1, 41):
            clock.now += 1.0
            progress.update(step / 40)
    shown = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["2%", "15%", "28%", "40%", "52%", "65%", "78%", "90%", "100%"] and len(asked) == len(shown)


def test_disabled_progress_asks_for_nothing(capsys):
    with Progress(0.0, lambda: pytest.fail("asked"), disabled=True) as progress:
        progress.update(0.5)
        progress.update(1.0)
    assert capsys.readouterr() == ("", "")


def test_what_a_run_shows(vectors, tmp_path, capsys):
    changes = {"data.path": str(vectors), **QUICK, "train.preset": "small", "train.validate_every": 2}
    changes |= {"train.lr": 0.002, "train.flow_lr": 0.03, "train.warmup": 0}
    with pytest.warns(UserWarning, match="the run ended after 4 steps"):
        train(recipes.recipe("array", changes), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("batch size 160"), lines
    assert lines[1].startswith("read from ") and lines[2].startswith("split by seed 0"), lines
    assert any(line.startswith(" 25% step 1, NELBO ") and " nats, rate 0.002, " in line for line in lines), lines
    assert any(line.startswith("100% step 4, NELBO ") and ", validation " in line for line in lines)
