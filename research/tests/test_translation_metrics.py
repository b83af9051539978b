"""Two sides as one data set, and how often a translation is found nearest to its true counterpart."""

import numpy as np
import pytest
import torch

from indm.workbench.data.base import load_data, stack
from research.lab.statistics import share_error
from research.translation.metrics import recall, two_classes


@pytest.fixture(scope="module")
def sides():
    return load_data("digits", label=3), load_data("digits", label=8)


def test_two_classes_keep_every_image_under_its_label(sides):
    both = two_classes(*sides)
    for part in ("train", "valid", "test"):
        for label, side in enumerate(sides):
            own = stack(getattr(side, part))
            kept = getattr(both, part).tensor[both.labels[part] == label]
            assert sorted(map(tuple, kept.flatten(1).tolist())) == sorted(
                map(tuple, own.flatten(1).tolist())
            )
    assert both.labels["train"][:40].float().mean() not in (0, 1)  # mixed, not one class first


def test_recall_is_that_of_a_count_and_a_tie_finds_nothing():
    numbers = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (40, 5), generator=numbers).double()
    result = truth + 60 * torch.randn(truth.shape, generator=numbers, dtype=torch.float64)
    apart = np.linalg.norm(result[:, None].numpy() - truth[None].numpy(), axis=2)
    place = np.array([np.argsort(row).tolist().index(i) for i, row in enumerate(apart)])
    found = recall(result, truth)
    for k in (1, 5, 10):
        share = (place < k).mean()
        assert found[f"recall_{k}"] == pytest.approx(share) and 0 < share < 1
        assert found[f"recall_{k}_standard_error"] == pytest.approx(
            (share * (1 - share) / 40) ** 0.5
        )
    assert (
        recall(truth.roll(1, 0), truth)["recall_1"] == 0 and recall(truth, truth)["recall_1"] == 1
    )
    alike = recall(truth[:9], truth[:1].expand(9, -1))
    assert [alike[f"recall_{k}"] for k in (1, 5, 10)] == [0, 0, 1]


def test_the_error_of_a_share():
    assert share_error(0.25, 48) == pytest.approx(1 / 16) and share_error(1.0, 10) == 0.0
