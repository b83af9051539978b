"""What is said of a translation, on translations whose worth is known."""

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch

from indm.workbench.data.base import load_data, stack
from research.lab.distances import kernel_distance
from research.lab.extractor import train_extractor
from research.translation.metrics import (
    MOST_GENERAL,
    limits,
    structural_similarity,
    translation_metrics,
    two_classes,
)


@pytest.fixture(scope="module")
def sides():
    return load_data("digits", label=3), load_data("digits", label=8)


@pytest.fixture(scope="module")
def extractor(sides):
    return train_extractor(two_classes(*sides), epochs=20, progress=False)


def test_kernel_distance_is_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator) + 1

    def k(x, y):
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    within = [
        sum(k(x, y) for x, y in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (list(a), list(b))
    ]
    across = sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_kernel_distance_is_zero_in_the_mean_for_one_law_and_grows_with_a_shift():
    draws = torch.randn(40, 2, 100, 4, generator=torch.Generator().manual_seed(0))
    same = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert abs(same.mean()) < 4.5 * same.std() / math.sqrt(len(same))
    shifted = [kernel_distance(*draws[0] + torch.tensor([0.0, shift])[:, None, None]) for shift in (0.0, 0.5, 1.0)]
    assert shifted == sorted(shifted)


def test_two_classes_keep_every_image_under_its_label(sides):
    both = two_classes(*sides)
    for part in ("train", "valid", "test"):
        for label, side in enumerate(sides):
            own = stack(getattr(side, part))
            kept = getattr(both, part).tensor[both.labels[part] == label]
            assert sorted(map(tuple, kept.flatten(1).tolist())) == sorted(map(tuple, own.flatten(1).tolist()))
    assert both.labels["train"][:40].float().mean() not in (0, 1)  # mixed, not one class first


def test_true_images_of_the_target_reach_the_floor_and_the_sources_the_ceiling(sides, extractor):
    a, b = sides
    source, test = stack(a.test), stack(b.test)
    n = min(len(source), len(test))
    rows = {"general": lambda raw: raw.float().mean(-1).flatten(1)}  # features of any kind
    true = translation_metrics(source[:n], test[:n], b, extractor, label=1, **rows)
    assert true["frechet"] == pytest.approx(true["frechet_floor"]) and true["kid"] == pytest.approx(true["kid_floor"])
    expected = [kernel_distance(*map(rows["general"], (x[:n], stack(b.train, MOST_GENERAL)))) for x in (test, source)]
    assert [true["general_kid"], true["general_kid_ceiling"]] == pytest.approx(expected) and expected[1] > expected[0]
    assert true["general_kid_floor"] == pytest.approx(expected[0]) and true["general_kid_standard_error"] > 0
    assert true["accuracy"] > 0.9 > 0.2 > true["accuracy_ceiling"]
    assert true["diversity"] == pytest.approx(1)
    copy = translation_metrics(source[:n], source[:n], b, extractor, label=1)
    assert copy["frechet"] == pytest.approx(copy["frechet_ceiling"]) and copy["frechet"] > 5 * true["frechet"]
    assert copy["distance"] == 0 and copy["ssim"] == pytest.approx(1) and copy["accuracy"] < 0.2
    assert copy["general_kid"] is None
    assert true["distance"] > 2 and true["ssim"] < 0.6
    one = translation_metrics(source[:n], test[:1].expand(n, -1, -1, -1), b, extractor, label=1)
    assert one["diversity"] == pytest.approx(0, abs=1e-5) and one["frechet"] > true["frechet"]
    assert list(limits(true)) == ["B's test images", "sources"]


def test_structural_similarity_by_its_formula():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (1, 1, 7, 7), generator=generator, dtype=torch.uint8)
    b = (a.double() * 0.5 + 30).byte()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    padded = [torch.nn.functional.pad(x.double(), (3, 3, 3, 3), mode="reflect")[0, 0].numpy() for x in (a, b)]
    found = []
    for i, j in itertools.product(range(7), repeat=2):
        p, q = (x[i : i + 7, j : j + 7].flatten() for x in padded)
        (vp, cov), (_, vq) = np.cov(p, q, ddof=0)
        luminance = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
        found.append(luminance * (2 * cov + c2) / (vp + vq + c2))
    assert structural_similarity(a, b, 256).item() == pytest.approx(np.mean(found), rel=1e-6)
    assert structural_similarity(a, a, 256).item() == pytest.approx(1)


def test_what_is_not_there_is_left_out(monkeypatch):
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert structural_similarity(x, x, 256) is None
