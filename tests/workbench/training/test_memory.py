"""The estimate of a step's memory against what the process takes, and the refusal of what cannot fit."""

import ctypes
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import assert_same

from indm.nets.mlp import MLPBlock
from indm.workbench.cli.main import main
from indm.workbench.data.base import as_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import make_accelerator, peak_memory_mib
from indm.workbench.training import checks
from indm.workbench.training.checks import TooLarge, memory_of_step
from indm.workbench.training.trainer import Trainer

PLAIN = {"train.mixed_precision": "no", "train.steps": 10}
IMAGES = PLAIN | {
    "net.channels": 16, "net.blocks": 1, "net.multipliers": [1, 2], "net.attention": [], "train.batch_size": 48,
}  # fmt: skip
VECTORS = PLAIN | {"flow": "identity", "net.width": 1500, "net.depth": 2, "train.batch_size": 300}


def peak_of_step(recipe, data):
    """The bytes that making a trainer and two of its steps add to the resident memory at its peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = peak_memory_mib()
    trainer = Trainer(recipe, data, make_accelerator(recipe.train))
    batches = trainer.batches()
    for _ in range(2):
        trainer.train_step(batches)
    return (peak_memory_mib() - before) * 2**20


def trainer_of(recipe, data):
    return Trainer(recipe, data, make_accelerator(recipe.train))


@pytest.mark.long
def test_an_estimate_is_near_the_peak_of_a_step():
    images, vectors = as_data(torch.zeros(100, 3, 32, 32, dtype=torch.uint8)), as_data(torch.randn(500, 40))
    peak_of_step(
        recipes.recipe("digits", IMAGES | {"net.channels": 4, "train.batch_size": 2}), images
    )  # loads libraries
    for name, changes, data in (("digits", IMAGES, images), ("eight-gaussians", VECTORS, vectors)):
        recipe = recipes.recipe(name, changes)
        trainer = trainer_of(recipe, data)
        guess = sum(memory_of_step(trainer.model, recipe["train"]["batch_size"], trainer.accelerator))
        del trainer
        assert guess > 80 * 2**20 and guess / 1.5 < peak_of_step(recipe, data) < guess * 1.5


@pytest.mark.parametrize("flow", ["coupling", "residual", "autoregressive", "conditional-residual"])
def test_an_estimate_counts_five_copies_of_the_weights_and_every_example(monkeypatch, flow):
    """What a pass of the model keeps without its log-determinant, counted at that batch."""
    monkeypatch.setattr(checks, "suppress", lambda error: nullcontext())
    trainer = trainer_of(
        recipes.recipe("digits", {"flow": flow, "train.batch_size": 16, "train.mixed_precision": "no"}),
        as_data(torch.zeros(32, 1, 8, 8, dtype=torch.uint8)),
    )
    weights, kept = memory_of_step(trainer.model, 12, trainer.accelerator)
    assert weights == 5 * 4 * sum(p.numel() for p in trainer.model.parameters())
    counted = checks._kept(trainer.model, 12)
    assert counted > 2**20 and kept == pytest.approx(counted, rel=0.01)


def test_the_look_leaves_no_trace(monkeypatch):
    """Nor does it in parts that a first pass changes, such as an ActNorm, and in what is drawn afterwards."""
    recipe = recipes.recipe("digits", {"flow": "coupling", "net.dropout": 0.1, "train.batch_size": 16})
    data, states = as_data(torch.zeros(32, 1, 8, 8, dtype=torch.uint8)), []
    for check in (checks.check_fits, lambda *of: None):
        monkeypatch.setattr("indm.workbench.training.trainer.check_fits", check)
        trainer = trainer_of(recipe, data)
        terms = trainer.train_step(trainer.batches())
        states.append((trainer.model.state_dict(), terms, torch.get_rng_state()))
    assert_same(*states)


def test_what_cannot_fit_is_refused_with_the_numbers(tmp_path, monkeypatch, capsys):
    for i in range(12):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    line = ["train", "folder", "--data.path", str(tmp_path), "--out", str(tmp_path / "run"), "--train.batch_size=4"]
    monkeypatch.setattr("indm.workbench.data.folder.list_files", None)  # the files are not looked at
    assert main([*line, "--data.size=1000000"]) == 2
    assert "1000000×1000000 pixels take 17,695.1 GiB, and there are" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(checks, "most_memory", lambda: 2**27)
    assert main([*line, "--data.size=128", "--net.channels=32"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"a step of training takes [\d.]+ [GM]iB \(\d+ MiB for the weights and their optimizer, [\d.]+ [GM]iB", error
    )
    assert "are 128 MiB of memory: lower train.batch_size, " in error and error.count("\n") == 1
    assert "or raise train.accumulate" in error and not (tmp_path / "run").exists()


def test_what_cannot_fit_is_counted_while_it_is_built(monkeypatch):
    changes = {"net.width": 1000, "net.depth": 30, "train.batch_size": 9}
    recipe, built = recipes.recipe("eight-gaussians", PLAIN | changes), []
    monkeypatch.setattr(checks, "most_memory", lambda: 2**29)  # the weights take 480 MB, a step five times that
    make = MLPBlock.__init__
    monkeypatch.setattr(MLPBlock, "__init__", lambda *args: (built.append(1), make(*args))[1])
    with pytest.raises(TooLarge, match=r"more than the 512 MiB of memory: lower the size of flow and network"):
        trainer_of(recipe, as_data(torch.randn(500, 2)))
    assert 2 <= len(built) < 10
