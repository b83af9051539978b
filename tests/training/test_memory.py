"""The estimate of a step's memory against what the process takes, and the refusal of what cannot fit."""

import ctypes
import math
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from indm.cli.main import main
from indm.config import recipes
from indm.data.base import as_data
from indm.nets.mlp import MLPBlock
from indm.objective import build_indm
from indm.scaling import Scaling
from indm.tensors import full_precision
from indm.training import memory
from indm.training.devices import make_accelerator, peak_memory_mib
from indm.training.memory import TooLarge, check_fits, estimate
from indm.training.trainer import Trainer

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
    trainer = Trainer(recipe, data, make_accelerator(recipes.options_of(recipe, "train")))
    batches = trainer.batches()
    for _ in range(2):
        trainer.train_step(batches)
    return (peak_memory_mib() - before) * 2**20


def test_an_estimate_is_near_the_peak_of_a_step():
    images, vectors = as_data(torch.zeros(100, 3, 32, 32, dtype=torch.uint8)), as_data(torch.randn(500, 40))
    peak_of_step(
        recipes.recipe("digits", IMAGES | {"net.channels": 4, "train.batch_size": 2}), images
    )  # loads libraries
    for name, changes, data in (("digits", IMAGES, images), ("eight-gaussians", VECTORS, vectors)):
        recipe = recipes.recipe(name, changes)
        guess = estimate(recipe, data.shape, recipe["train"]["batch_size"])
        assert guess > 80 * 2**20 and guess / 1.5 < peak_of_step(recipe, data) < guess * 1.5


def test_an_estimate_counts_five_copies_of_the_weights_and_grows_with_the_batch():
    recipe = recipes.recipe("eight-gaussians")
    model = build_indm(recipe, (5,), Scaling.images(256))
    weights = 4 * sum(p.numel() for p in model.parameters())
    one, two, three = (estimate(recipe, (5,), n * 160) for n in (1, 2, 3))
    assert 5 * weights < one < two and three - two == two - one
    halved = estimate(recipe, (5,), 160, bf16_on="cpu")
    assert 5 * weights < halved < one


@pytest.mark.parametrize(
    ("name", "changes", "shape"),
    [
        ("eight-gaussians", {"sde": "learned"}, (2,)),
        ("digits", {}, (1, 8, 8)),
        ("digits", {"flow": "autoregressive"}, (1, 8, 8)),
        ("cifar10-vp-nll", {"net.channels": 32, "net.blocks": 1, "flow.blocks": [2, 2]}, (3, 32, 32)),
    ],
)
def test_every_part_is_counted(name, changes, shape, monkeypatch):
    """No part raises on the meta device, where what it keeps would be left out silently."""
    monkeypatch.setattr(memory, "suppress", lambda error: nullcontext())
    recipe = recipes.recipe(name, changes)
    weights, one = memory.weights_and_kept(recipe, shape, 16)
    assert weights > 2**18 and one > 4 * 16 * math.prod(shape) * 100


@pytest.mark.parametrize(("device", "norm"), [("cpu", torch.bfloat16), ("cuda", torch.float32)])
def test_casts_are_those_of_autocast(device, norm):
    """On the CPU itself a group norm keeps what it gets; on a GPU it is in float32 (PyTorch's list)."""

    def dtypes(where):
        x, convolution = torch.zeros(2, 4, 8, 8, device=where), torch.nn.Conv2d(4, 4, 3, device=where)
        convolved = convolution(x)
        normed = torch.nn.GroupNorm(2, 4, device=where)(convolved)
        with full_precision(x.device):
            return convolved.dtype, normed.dtype, convolution(x).dtype

    with torch.autocast("cpu", torch.bfloat16):
        with memory.Autocast(device):
            assert dtypes("meta") == (torch.bfloat16, norm, torch.float32)
        if device == "cpu":
            assert dtypes("cpu") == (torch.bfloat16, norm, torch.float32)
    with memory.Autocast(device):
        assert dtypes("meta") == (torch.float32,) * 3


def test_what_cannot_fit_is_refused_with_the_numbers(tmp_path, monkeypatch, capsys):
    for i in range(12):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    line = ["train", "folder", "--data.path", str(tmp_path), "--out", str(tmp_path / "run"), "--train.batch_size=4"]
    monkeypatch.setattr("indm.data.folder.index", None)  # the files are not looked at
    assert main([*line, "--data.size=1000000"]) == 2
    assert "1000000×1000000 pixels take 17,695.1 GiB, and there are" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(memory, "most_memory", lambda: 2**30)
    assert main([*line, "--data.size=512", "--net.channels=32"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"a step of training takes [\d.]+ GiB \(\d+ MiB for the weights and their optimizer, [\d.]+ GiB", error
    )
    assert "are 1.0 GiB of memory: lower train.batch_size (4), data.size (512), " in error
    assert "net.channels (32), or raise train.accumulate" in error and not (tmp_path / "run").exists()


def test_what_cannot_be_looked_at_is_counted_while_it_is_built(monkeypatch):
    """This flow cannot be built without numbers: a network beside it was built, whatever its size."""
    changes = {"flow": "zuko", "flow.kind": "nice", "net.width": 1000, "net.depth": 30, "train.batch_size": 9}
    recipe, built = recipes.recipe("eight-gaussians", PLAIN | changes), []
    monkeypatch.setattr(memory, "most_memory", lambda: 2**29)  # the weights take 480 MB, a step five times that
    monkeypatch.setattr("indm.nets.mlp.MLPBlock.__init__", _counted(MLPBlock.__init__, built))
    with pytest.raises(TooLarge, match=r"more than the 512 MiB of memory: lower .*net\.width \(1000\)"):
        Trainer(recipe, as_data(torch.randn(500, 2)), make_accelerator(recipes.options_of(recipe, "train")))
    assert 2 <= len(built) < 10


def _counted(function, calls):
    return lambda *args: (calls.append(1), function(*args))[1]


def test_what_is_small_is_not_looked_at(monkeypatch):
    """The first look takes a second, which the small recipes need not wait for."""
    monkeypatch.setattr(memory, "most_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(memory, "weights_and_kept", None)
    recipe = recipes.recipe("digits")
    check_fits(recipe, (1, 8, 8), make_accelerator(recipes.options_of(recipe, "train")))
