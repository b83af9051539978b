"""Patches of photographs: where they lie, how they are split, and the error of what is measured on them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import indm
from indm.evaluation.statistics import mean_and_error
from indm.workbench.data import stack
from research.data.patches import Patches, load_patches


@pytest.fixture
def photographs(tmp_path):
    """20 photographs, each of one grey level of its own, of sizes and aspect ratios of their own."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(20):
        Image.new("L", (40 + 3 * i, 90 - 2 * i), 10 * i).save(folder / f"{i:02}.png")
    return folder


def test_no_photograph_has_patches_in_two_splits(photographs):
    data = load_patches(path=str(photographs), size=8, patches=5, short=24)
    levels = {part: stack(getattr(data, part)).flatten(1) for part in ("train", "valid", "test")}
    assert all(bool((values == values[:, :1]).all()) for values in levels.values())
    photos = {part: set(values[:, 0].tolist()) for part, values in levels.items()}
    assert sum(map(len, photos.values())) == len(set.union(*photos.values())) == 20
    for part, values in levels.items():
        assert len(values) == 5 * len(photos[part])
        assert torch.equal(values[:, 0].long(), 10 * data.groups[part])  # in sorted order, 10 levels apart
        assert len(set(values[: len(photos[part]), 0].tolist())) == len(photos[part]), "one of each photograph first"


def test_patches_are_pixels_of_the_photograph_reduced_to_its_short_side(tmp_path):
    """A ramp from left to right tells where a patch lies; its slope tells the scale."""
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8), (64, 128))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    corners = torch.tensor([[[0.0, 0.0], [0.999, 0.999], [0.0, 0.5]]])
    patches = stack(Patches([tmp_path / "ramp.png"], (1, 8, 8), corners, short=32))[:, 0].float()
    np.testing.assert_allclose(patches.diff(dim=2)[:, :, 1:-1], 2.0, atol=1)  # half the size: two levels a pixel
    np.testing.assert_allclose(patches[1, :, -1], 127, atol=1.5)  # the last column is reached
    np.testing.assert_allclose(patches[:, 0, 0], [0, 112, 56], atol=2.5)
    whole = stack(Patches([tmp_path / "ramp.png"], (1, 8, 8), corners, short=512))[:, 0].float()
    assert bool((whole.diff(dim=2) == 1).all()), "a smaller photograph is not enlarged"
    enlarged = stack(Patches([tmp_path / "ramp.png"], (1, 96, 96), corners[:, :1]))
    assert enlarged.shape == (1, 1, 96, 96), "unless a patch would not fit"


def test_a_damaged_photograph_is_replaced_by_the_next(photographs):
    content = (photographs / "03.png").read_bytes()
    (photographs / "03.png").write_bytes(content[:-30])
    files = sorted(photographs.iterdir())
    with pytest.warns(UserWarning, match=r"03\.png cannot be read"):
        patches = stack(Patches(files, (1, 8, 8), torch.zeros(20, 1, 2)))
    assert patches[3].unique().tolist() == patches[4].unique().tolist() == [40]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patches": 0}, "patches must be at least 1"),
        ({"short": 7}, "short must be at least the patches' size 8, got 7"),
        ({"test": 1.5}, "test must be a fraction"),
        ({"patches": 2**31 - 1}, "lower data.patches"),
    ],
)
def test_mistakes_name_their_option(photographs, options, words):
    with pytest.raises(ValueError, match=words):
        load_patches(path=str(photographs), **{"size": 8} | options)


def test_the_error_of_a_mean_is_over_groups():
    """The stated error of means of clusters drawn again and again is their deviation, the naive one far below it."""
    random = torch.Generator().manual_seed(0)
    groups = torch.arange(12).repeat(10)
    draws = torch.randn(2000, 12, generator=random).repeat(1, 10) + 0.5 * torch.randn(2000, 120, generator=random)
    stated = np.array([mean_and_error(values, groups)[1] for values in draws])
    truth = draws.mean(1).std().item()
    assert math.sqrt(np.square(stated).mean()) == pytest.approx(truth, rel=0.05)
    assert mean_and_error(draws[0])[1] < 0.5 * truth
    assert math.isnan(mean_and_error(draws[0], torch.zeros(120, dtype=torch.long))[1])


def test_evaluate_states_errors_over_groups():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    x = torch.randn(6, 2).repeat(4, 1)
    groups = torch.arange(6).repeat(4)
    measures = [indm.Bound(), indm.NLL(examples=12)]
    found = indm.evaluate(indm.build_model(tables, (2,)), x, measures, groups=groups, progress=False)
    report, nats = found.report, found.nats
    for kind, n in (("nelbo", 24), ("nll", 12)):
        _, error = mean_and_error(nats[kind], groups[:n])
        assert report.measured[kind].with_reconstruction["nats_standard_error"] == pytest.approx(error)
        assert error > 1.3 * mean_and_error(nats[kind])[1]
