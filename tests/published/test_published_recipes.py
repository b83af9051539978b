"""The recipes of the paper's settings: sizes, what they train, two steps of each on generated
images.
"""

import pytest
import torch
from original import tables_of

from indm import PublishedScore, build_model
from indm.model import build, count_parameters
from indm.published import ConditionalResidualFlow
from indm.scaling import Scaling
from indm.sde.linear import VESDE, VPSDE
from indm.workbench.data.base import Data, InMemory
from indm.workbench.recipes import recipe as recipes

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

PUBLISHED = [
    name
    for name, recipe in ((n, recipes.load(n)) for n in recipes.bundled())
    if recipe["net"]["name"] == "ncsnpp"
]
REDUCED = {
    "net.channels": "8", "net.blocks": "1", "flow.width": "4", "flow.blocks": "[1, 1]", "flow.code_dim": "4",
    "flow.encoder_planes": "[4]", "flow.encoder_channels": "1", "flow.prior_width": "4",
}  # fmt: skip


def image_shape(recipe):
    return (3, 32, 32) if recipe["data"]["name"] == "cifar10" else (3, 64, 64)


def generated(recipe):
    """Images of the recipe's size in place of its data."""
    shape, options = image_shape(recipe), recipe["data"]
    draws = torch.Generator().manual_seed(0)
    sets = [
        InMemory(torch.randint(0, 256, (4, *shape), generator=draws, dtype=torch.uint8))
        for _ in range(3)
    ]
    scaling = Scaling.images(256, options.get("centered", True))
    return Data("generated", *sets, scaling=scaling, shape=shape, flip=options["flip"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_at_full_size(name):
    recipe = recipes.load(name)
    with torch.device("meta"):
        net = build(recipe["net"], "net", image_shape(recipe))
        deep = build(recipe["net"] | {"blocks": 8}, "net", image_shape(recipe))
    expected = (62.8, 107.6) if "ve" in name else (61.8, 106.6)
    assert [count_parameters(n) / 1e6 for n in (net, deep)] == pytest.approx(expected, abs=0.05)


# What the authors' configuration files say, under their names. The same flow and optimizer are in
# all of them.
THE_SAME = {
    "dropout": 0.1, "attention": True, "auxiliary_resblock": True, "fourier_feature": False, "name": "ncsnpp",
    "nf": 128, "normalization": "GroupNorm", "nonlinearity": "swish", "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 4, "attn_resolutions": [16], "resamp_with_conv": True, "conditional": True,
    "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan", "progressive": "none",
    "progressive_combine": "sum",
    "attention_type": "ddpm", "init_scale": 0.0, "fourier_scale": 16, "conv_size": 3, "num_channels": 3,
}  # fmt: skip
BY_SDE = {
    "vp": {
        "sde": "vpsde", "beta_min": 0.1, "beta_max": 20.0, "embedding_type": "positional", "fir": False,
        "progressive_input": "none", "scale_by_sigma": False, "centered": True, "ema_rate": 0.9999,
    },
    "ve": {
        "sde": "vesde", "sigma_min": 0.01, "embedding_type": "fourier", "fir": True, "progressive_input": "residual",
        "scale_by_sigma": True, "centered": False, "ema_rate": 0.999,
    },
}  # fmt: skip
BY_DATA = {
    "cifar10": {"image_size": 32, "sigma_max": 50.0},
    "celeba": {"image_size": 64, "sigma_max": 90.0},
}
FLOW = {
    "name": "conditional-residual", "blocks": [16, 16], "width": 512, "norm": "rows", "coeff": 0.98,
    "activation": "sin", "code_dim": 64, "encoder_planes": [48, 96, 96], "encoder_channels": 8,
    "encoder_activation": "elu", "prior_steps": 2, "prior_width": 256, "prior_activation": "elu",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name):
    recipe = recipes.resolve(recipes.load(name))
    options, data = recipe.train, recipe["data"]
    sde = "ve" if "ve" in name else "vp"
    settings = THE_SAME | BY_SDE[sde] | BY_DATA[data["name"]]
    original, shape = tables_of(settings), image_shape(recipe)
    with torch.device("meta"):
        made = build(recipe["net"], "net", shape), build(recipe["sde"], "sde", shape)
    for part, key in zip(made, ("net", "sde"), strict=True):
        for argument, value in original[key].items():
            if argument == "name":
                assert recipe[key]["name"] == value
            else:
                actual = getattr(part, argument)
                assert (
                    tuple(actual) == tuple(value) if isinstance(actual, tuple) else actual == value
                )
    assert shape[1:] == (settings["image_size"],) * 2 and options.ema == settings["ema_rate"]
    assert (options.batch_size, options.lr, options.flow_lr, options.betas) == (
        128,
        2e-4,
        1e-3,
        (0.9, 0.99),
    )
    assert (options.weight_decay, options.flow_weight_decay, options.clip, options.warmup) == (
        0.01,
        0.01,
        1.0,
        0,
    )
    assert options.objective == ("fid" if name.endswith("vp-fid") else "mle")
    assert options.soft_truncation == (1.2 if name.endswith("st") else 0)
    assert options.latent_mean == (name == "cifar10-ve-fid")
    assert data["flip"] and data.get("centered", True) == settings["centered"]
    if data["name"] == "celeba":
        assert (data["size"], data["crop"]) == (64, 140)
    assert recipe["flow"] == FLOW | ({"squeeze": True} if data["name"] == "celeba" else {})
    evaluation = recipe.evaluate
    assert evaluation.split == "test" and evaluation.examples == evaluation.nll_examples
    assert evaluation.examples == (19_962 if data["name"] == "celeba" else 10_000)
    assert (evaluation.repeats, evaluation.nll_error, evaluation.batch_size) == (3, 1e-3, 200)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_models_of_the_published_settings(name):
    recipe = recipes.load(name)
    model = build_model(
        recipes.model_tables(recipes.override(recipe, REDUCED)), image_shape(recipe)
    )
    assert type(model.score) is PublishedScore and type(model.flow) is ConditionalResidualFlow
    assert model.sde.eps == 1e-5 and isinstance(model.sde, VESDE if "ve" in name else VPSDE)
