"""Recipes: those that come with indm, changes by dotted keys, and what is parsed from the tables of
a file.
"""

import copy
import dataclasses
import math

import pytest
import torch

from indm.model import build_model
from indm.scaling import Scaling
from indm.workbench.cli import listing
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Drawing, TrainOptions, TranslationOptions

NATIVE = {
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "celeba": (3, 64, 64),
}
# of the published ones
REDUCED = {"net.channels": "8", "net.blocks": "1", "flow.width": "4", "flow.blocks": "[1, 1]"}


def test_a_recipe_is_parsed_once_and_is_the_mapping_of_its_tables():
    recipe = recipes.recipe("digits", {"train.steps": 7, "flow": "coupling", "flow.width": 4})
    assert (recipe.train.steps, recipe.flow) == (7, recipes.Part("coupling", {"width": 4}))
    assert recipe["flow"] == {"name": "coupling", "width": 4} and recipe[
        "train"
    ] == dataclasses.asdict(recipe.train)
    assert (
        recipe.condition is None
        and "condition" not in recipe
        and list(recipe)[-3:] == ["train", "evaluate", "sample"]
    )
    changed = recipe | {"sde": recipe["sde"] | {"name": "ve"}}
    assert (changed.sde.name, recipe.sde.name) == ("ve", "vp")
    assert recipes.differing_keys(recipe, changed) == ["sde.name"]
    assert recipes.resolve(recipe) is recipe and recipes.resolve(dict(recipe)) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.flow = recipe.sde


@pytest.mark.parametrize("name", recipes.bundled())
def test_every_recipe_is_complete_and_builds_its_model(name):
    recipe = recipes.resolve(recipes.load(name))
    about_it = recipes.bundled()[name]
    assert (recipes.BUNDLED / f"{name}.toml").read_text().startswith(f"# {about_it.description}\n")
    assert 20 < len(about_it.description) < 100 and about_it.group in listing.PURPOSES
    seconds = recipe["train"]["seconds"]
    if math.isfinite(seconds):  # what the list says is the recipe's budget
        models = "2 × " if about_it.group == "translation" else ""
        for said in (about_it.two_cores.partition(",")[0], about_it.gpu):
            assert said in (f"{models}{seconds:.0f} s", f"{models}{math.ceil(seconds / 60)} min")
    shape = (
        (2,) if recipe["net"]["name"] == "mlp" else NATIVE.get(recipe["data"]["name"], (1, 32, 32))
    )
    shape = (
        (shape[0], recipe["data"]["size"], recipe["data"]["size"])
        if "size" in recipe["data"]
        else shape
    )
    if recipe["net"]["name"] == "ncsnpp":
        recipe = recipes.override(recipe, REDUCED)
    scaling = Scaling.images(256) if len(shape) == 3 else None
    model = build_model(recipes.model_tables(recipe), shape, scaling)
    assert sum(p.numel() for p in model.flow.parameters()) > 0
    x = torch.randn(2, *shape)
    z, log_det = model.eval().encode(x)
    # starts at identity
    assert torch.allclose(z, x, atol=1e-6) and torch.allclose(log_det, torch.zeros(2), atol=1e-4)
    twin = build_model(
        recipes.model_tables(recipes.override(recipe, {"flow": "identity"})), shape, scaling
    )
    assert not list(twin.flow.parameters())


def test_changes_are_toml_or_strings():
    changes = {
        "train.steps": "500", "train.lr": "3e-4", "train.latent_mean": "true", "flow.norm": "inf",
        "data.path": "my imgs", "flow.blocks": "[2, 2]", "data.day": "2024-01-01", "data.number": '"7"',
        "data.root": "2024", "data_b.path": "0x1F", "data_b.root": '"2024"',
    }  # fmt: skip
    changed = recipes.override(
        {"flow": {"name": "residual", "width": 8}, "train": {"lr": 1.0}}, changes
    )
    assert changed["train"] == {"steps": 500, "lr": 3e-4, "latent_mean": True}
    assert changed["flow"] == {"name": "residual", "width": 8, "norm": math.inf, "blocks": [2, 2]}
    assert changed["data"] == {
        "path": "my imgs",
        "day": "2024-01-01",
        "number": "7",
        "root": "2024",
    }
    # a folder may be called by a number
    assert changed["data_b"] == {"path": "0x1F", "root": "2024"}


@pytest.mark.parametrize(
    "key, value",
    [("lr", "a"), ("lr", -1.0), ("batch_size", 1.5), ("batch_size", True), ("betas", (0.9,)), ("betas", (0.9, 2.0)),
     ("noise_levels", "evne"), ("latent_mean", 1), ("steps", 1.5)],
)  # fmt: skip
def test_options_of_a_file_a_change_and_python_are_checked_alike(key, value):
    tables = recipes.load("digits")
    written = tables | {"train": tables["train"] | {key: value}}
    said = set()
    for made in (
        lambda: TrainOptions(**{key: value}),
        lambda: recipes.resolve(written),
        lambda: recipes.recipe("digits", {f"train.{key}": value}),
    ):
        with pytest.raises(ValueError, match=rf"^train\.{key} ") as error:
            made()
        said.add(str(error.value))
    assert len(said) == 1


def test_options_outside_recipes_have_their_types_checked():
    for made, name in (
        (lambda: Drawing(n="3"), "n"),
        (lambda: TranslationOptions(method="flw"), "method"),
    ):
        with pytest.raises(ValueError, match=f"^{name} "):
            made()


VP = {"sde": {"name": "vp", "eps": 1e-3, "beta_max": 9.0}}


@pytest.mark.parametrize(
    ("recipe", "changes", "changed"),
    [
        (VP, {"sde": "subvp"}, {"sde": {"name": "subvp", "eps": 1e-3}}),
        (VP, {"sde": "ve"}, {"sde": {"name": "ve", "eps": 1e-3}}),
        (VP, {"sde": "my_sde:Own"}, {"sde": {"name": "my_sde:Own"}}),  # which may have no ε
        (VP, {"sde": "ve", "sde.eps": "1e-4"}, {"sde": {"name": "ve", "eps": 1e-4}}),
        ({}, {"sde": "ve"}, {"sde": {"name": "ve"}}),
        (
            {"flow": {"blocks": [4]}},
            {"flow.width": "3", "flow": "other"},
            {"flow": {"name": "other", "width": 3}},
        ),
    ],
)
def test_another_part_keeps_nothing_of_the_old_one_but_the_truncation_of_the_data(
    recipe, changes, changed
):
    before = copy.deepcopy(recipe)
    assert recipes.override(recipe, changes) == changed and recipe == before


@pytest.mark.parametrize(
    "name, changes, rate",
    [
        ("folder", {}, 3e-2),
        ("folder", {"flow": "coupling"}, 2e-3),
        ("folder", {"flow": "identity"}, 3e-2),
        ("folder", {"flow": "coupling", "train.lr": "1e-4"}, 1e-4),
        ("folder", {"flow": "coupling", "train.flow_lr": "5e-3"}, 5e-3),
        ("two-spirals", {"flow": "coupling"}, 1e-3),
    ],
)
def test_a_flow_in_place_of_the_elementwise_one_has_the_rate_of_the_score(name, changes, rate):
    loaded = recipes.load(name)
    assert recipes.override(loaded, changes)["train"]["flow_lr"] == rate and loaded == recipes.load(
        name
    )


@pytest.mark.parametrize(
    "name, changes, steps, seconds",
    [
        ("digits", {}, math.inf, 90),
        ("digits", {"train.steps": "150"}, 150, math.inf),
        ("digits", {"train.seconds": "5"}, math.inf, 5),
        ("digits", {"train.steps": "150", "train.seconds": "5"}, 150, 5),
        ("folder", {"train.steps": "150"}, 150, math.inf),
        ("cifar10-vp-nll", {"train.steps": "150"}, 150, None),
    ],
)
def test_a_number_of_steps_replaces_a_budget_of_seconds(name, changes, steps, seconds):
    budget = recipes.override(recipes.load(name), changes)["train"]
    assert (budget["steps"], budget.get("seconds")) == (steps, seconds)
