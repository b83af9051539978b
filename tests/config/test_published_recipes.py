"""The recipes of the paper's settings: sizes, what they train, two steps of each on generated images."""

import json
import math

import pytest
import torch

from indm import INDM, PublishedScore, build_model
from indm.config import recipes
from indm.data.base import Data, InMemory
from indm.model import build, count_parameters
from indm.scaling import Scaling
from indm.sde.linear import VESDE
from indm.training import given
from indm.training.loop import train

PUBLISHED = [
    name for name, recipe in ((n, recipes.load(n)) for n in recipes.bundled()) if recipe["net"]["name"] == "ncsnpp"
]
REDUCED = {"net.channels": "8", "net.blocks": "1", "flow.width": "4", "flow.blocks": "[1, 1]"}
SHORT = {
    "train.steps": "2", "train.batch_size": "2", "train.validate_examples": "2", "train.log_every": "1",
}  # fmt: skip


def image_shape(recipe):
    return (3, 32, 32) if recipe["data"]["name"] == "cifar10" else (3, 64, 64)


def generated(recipe):
    """Images of the recipe's size in place of its data."""
    shape, options = image_shape(recipe), recipe["data"]
    draws = torch.Generator().manual_seed(0)
    sets = [InMemory(torch.randint(0, 256, (4, *shape), generator=draws, dtype=torch.uint8)) for _ in range(3)]
    scaling = Scaling.images(256, options.get("centered", True))
    return Data("generated", *sets, scaling=scaling, shape=shape, flip=options["flip"])


def test_there_are_seven():
    assert sorted(PUBLISHED) == [
        "celeba64-ve-fid", "celeba64-vp-fid", "celeba64-vp-nll",
        "cifar10-ve-fid", "cifar10-vp-fid", "cifar10-vp-nll", "cifar10-vp-st",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_at_full_size(name):
    recipe = recipes.load(name)
    with torch.device("meta"):
        net = build(recipe["net"], "net", image_shape(recipe))
        deep = build(recipe["net"] | {"blocks": 8}, "net", image_shape(recipe))
    expected = (62.8, 107.6) if "ve" in name else (61.8, 106.6)
    assert [count_parameters(n) / 1e6 for n in (net, deep)] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name):
    recipe = recipes.resolve(recipes.load(name))
    options, ve = recipes.options_of(recipe, "train"), "ve" in name
    assert (options.batch_size, options.lr, options.flow_lr, options.betas) == (128, 2e-4, 1e-3, (0.9, 0.99))
    assert (options.weight_decay, options.clip, options.warmup, options.ema) == (0.01, 1.0, 0, 0.999 if ve else 0.9999)
    assert options.objective == ("fid" if name.endswith("vp-fid") else "mle")
    assert options.soft_truncation == (1.2 if name.endswith("st") else 0)
    assert recipe["net"].get("centered", True) == recipe["data"].get("centered", True) == (not ve)
    model = build_model(recipes.model_of(recipes.override(recipe, REDUCED)), image_shape(recipe))
    assert type(model.score) is PublishedScore and model.sde.eps == 1e-5
    if ve:
        assert isinstance(model.sde, VESDE) and model.sde.sigma_max == (90 if "celeba" in name else 50)
    assert recipe["flow"] == {"name": "residual", "blocks": [16, 16], "width": 512}


@pytest.mark.parametrize(
    "name, linear", [*((name, False) for name in PUBLISHED), ("cifar10-vp-nll", True), ("cifar10-ve-fid", True)]
)
def test_two_steps(name, linear, tmp_path, monkeypatch):
    recipe = recipes.load(name)
    data = generated(recipe)
    monkeypatch.setattr(given, "load_data", lambda **options: data)
    changes = REDUCED | SHORT
    if linear:
        changes = {k: v for k, v in changes.items() if not k.startswith("flow.")} | {"flow": "identity"}
    summary = train(recipes.override(recipe, changes), tmp_path / "run", progress=False)
    assert summary["steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    model = INDM.load(tmp_path / "run")
    assert type(model.score) is PublishedScore and model.score.backbone.readouts[-1].conv.weight.any()
