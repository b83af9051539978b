"""Examples that are alike stay in one split, and errors are over their groups."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import indm
from indm.evaluation.statistics import mean_and_error
from indm.files import untrusted
from indm.workbench.data.base import SPLITS, load_data, split_groups, stack
from indm.workbench.evaluation.results import evaluate_run


def films(folder, **frames):
    """``frames["apple"]`` frames of each film of a class; the frames of a film are of a level of
    their own.
    """
    levels = itertools.count(1)
    for name, counts in frames.items():
        for film, count in enumerate(counts):
            (folder / name / f"film {film}").mkdir(parents=True)
            level = next(levels)
            for frame in range(count):
                Image.new("L", (8, 8), level).save(folder / name / f"film {film}" / f"{frame}.png")
    return folder


def levels_of(data):
    return {part: stack(getattr(data, part))[:, 0, 0, 0] for part in SPLITS}


def test_no_group_is_in_two_splits_and_every_class_that_can_has_one_held_out(tmp_path):
    frames = {"apple": [5] * 10, "fig": [4, 9], "kiwi": [7], "pear": [3] * 4}
    folder = films(tmp_path / "fruits", **frames)
    options = {"path": folder, "size": 8, "classes": True, "groups": "subfolder"}
    for seed in range(5):
        data = load_data("folder", **options, seed=seed)
        levels = levels_of(data)
        films_of = {part: set(found.tolist()) for part, found in levels.items()}
        assert sorted(itertools.chain(*films_of.values())) == list(range(1, 18)), (
            "each film is in one split"
        )
        held = films_of["valid"] | films_of["test"]
        of_class = {
            "apple": range(1, 11),
            "fig": range(11, 13),
            "kiwi": range(13, 14),
            "pear": range(14, 18),
        }
        assert {name: len(held & set(of)) for name, of in of_class.items()} == {
            "apple": 2, "fig": 1, "kiwi": 0, "pear": 1,
        }  # fmt: skip
        assert films_of["valid"] and films_of["test"]
        for part in SPLITS:  # groups are numbered in the order of their paths, as the levels are
            assert torch.equal(data.groups[part], levels[part].long() - 1)
            names = [data.classes[label] for label in data.labels[part].tolist()]
            assert all(
                level in of_class[name]
                for level, name in zip(levels[part].tolist(), names, strict=True)
            )
        assert "split of 17 groups by seed" in data.notes[-1]
    again = load_data("folder", **options, seed=4, limit=3)
    assert torch.equal(levels_of(again)["train"], levels["train"][:3])
    assert len(set(levels["train"][:10].tolist())) > 2, "shuffled"


def test_of_one_class_groups_make_up_the_fractions(tmp_path):
    groups = np.repeat(np.arange(100), np.random.default_rng(0).integers(1, 20, 100))
    parts = split_groups(
        groups.astype(str).tolist(), valid=round(0.1 * len(groups)), test=round(0.2 * len(groups))
    )
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(len(groups)))
    assert len(parts["test"]) == pytest.approx(0.2 * len(groups), rel=0.15)
    assert len(parts["valid"]) == pytest.approx(0.1 * len(groups), rel=0.2)
    assert sum(len(np.unique(groups[index])) for index in parts.values()) == 100
    five = split_groups([name for name in "abcde" for _ in range(10)], valid=5, test=5)
    assert {part: len(index) for part, index in five.items()} == {
        "train": 30,
        "valid": 10,
        "test": 10,
    }


def test_a_prefix_is_one_group_in_all_classes(tmp_path):
    """The same thing drawn by three hands: it is in one split, whoever drew it."""
    for hand, thing in itertools.product(("ann", "bob", "eve"), range(20)):
        (tmp_path / hand).mkdir(exist_ok=True)
        for take in ("", "_a", "_b_2"):
            Image.new("L", (8, 8), thing).save(tmp_path / hand / f"thing{thing}{take}.png")
    data = load_data("folder", path=tmp_path, size=8, classes=True, groups="prefix")
    sizes = {part: found.unique(return_counts=True) for part, found in levels_of(data).items()}
    assert [len(things) for things, _ in sizes.values()] == [16, 2, 2]
    assert all(bool((counts == 9).all()) for _, counts in sizes.values())


@pytest.mark.filterwarnings("ignore:the run ended after")
def test_errors_of_a_run_are_over_groups(tmp_path):
    folder, run = films(tmp_path / "fruits", a=[3] * 20, b=[3] * 20), tmp_path / "run"
    recipe = {
        "data": {"name": "folder", "path": str(folder), "size": 8, "classes": True, "groups": "subfolder"},
        "flow": {"name": "elementwise"}, "sde": {"name": "vp"}, "net": {"name": "zero"},
        "train": {"steps": 1, "batch_size": 8, "validate_examples": 4}, "evaluate": {"nll_examples": 0},
    }  # fmt: skip
    indm.train(recipe, run, progress=False)
    result, nats = evaluate_run(run, progress=False), untrusted.arrays(run / "evaluation.npz")
    assert result["groups"] == 4 and result["images"]["nelbo"] == 12
    _, error = mean_and_error(torch.from_numpy(nats["nelbo"]), torch.from_numpy(nats["groups"]))
    assert result["nelbo"]["with_reconstruction"]["nats_standard_error"] == pytest.approx(error)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (
            {"a": [3], "b": [3]},
            {"classes": True},
            "groups must be three or more.*got 2 groups, as a/film 0, b/film 0",
        ),
        (
            {"a": [2, 2], "b": [2]},
            {"classes": True, "groups": "prefix"},
            "three or more.*got 2 groups, as 0, 1",
        ),
        (
            {"a": [3, 3]},
            {"path": "a/film 0"},
            r"each image in a folder of its group: '0\.png' is in none",
        ),
        (
            {"a": [3, 3]},
            {"classes": True, "path": "a"},
            r"in that of its class: 'film 0/0\.png' is in none",
        ),
        ({"a": [3, 3]}, {"groups": "folder"}, "data.groups must be"),
    ],
)
def test_groups_that_cannot_be_split(tmp_path, frames, options, message):
    films(tmp_path, **frames)
    chosen = {"groups": "subfolder"} | options | {"path": tmp_path / options.get("path", "")}
    with pytest.raises(ValueError, match=message):
        load_data("folder", size=8, **chosen)
