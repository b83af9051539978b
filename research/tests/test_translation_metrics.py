"""What is said of a translation, on translations whose worth is known."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch

from indm.workbench.data.base import load_data, stack
from research.translation.metrics import structural_similarity, two_classes


@pytest.fixture(scope="module")
def sides():
    return load_data("digits", label=3), load_data("digits", label=8)


def test_two_classes_keep_every_image_under_its_label(sides):
    both = two_classes(*sides)
    for part in ("train", "valid", "test"):
        for label, side in enumerate(sides):
            own = stack(getattr(side, part))
            kept = getattr(both, part).tensor[both.labels[part] == label]
            assert sorted(map(tuple, kept.flatten(1).tolist())) == sorted(map(tuple, own.flatten(1).tolist()))
    assert both.labels["train"][:40].float().mean() not in (0, 1)  # mixed, not one class first


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
