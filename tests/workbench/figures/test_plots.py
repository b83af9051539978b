"""Figures and sheets: that images are exact, words inside, and files whole."""

import math

import numpy as np
import pytest
import torch

from indm.workbench.figures import sheets


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_places_enlarged_images_by_rows(channels):
    images = torch.randint(0, 17, (5, channels, 8, 12))
    picture = sheets.grid(images, 17, columns=3)
    # eight times as large, and lines of six pixels
    assert picture.shape == (6 + 2 * 70, 6 + 3 * 102, 3)
    inside = np.zeros(picture.shape[:2], dtype=bool)
    for i, image in enumerate(images.double().numpy() / 16):
        top, left = 6 + 70 * (i // 3), 6 + 102 * (i % 3)
        inside[top : top + 64, left : left + 96] = True
        shown = np.broadcast_to(
            image if channels == 3 else image.mean(0, keepdims=True), (3, 8, 12)
        ).transpose(1, 2, 0)
        assert (
            np.abs(
                picture[top : top + 64, left : left + 96] - 255 * shown.repeat(8, 0).repeat(8, 1)
            ).max()
            <= 0.5
        )
    outside = picture[~inside]
    assert set(np.unique(outside)) <= {0, 153}  # the sixth image is missing
    assert sheets.strip(torch.zeros(2, 1, 8, 8), [1e-5, 0.5]).tops == ["t = 1e-05", "0.5"]
    # large enough as they are
    assert sheets.grid(torch.zeros(4, 1, 64, 64), 2).shape == (146, 146, 3)


def test_a_sheet_has_its_words_inside_and_its_images_exact():
    """Words are ink on white paper that does not touch the edges, and names that are long are
    broken.
    """
    images = torch.randint(0, 2, (6, 1, 8, 8))
    words = {"title": "a/very/long/folder/" * 6 + "$1$_$2$", "rows": ("source", "a longer word")}
    words["tops"] = ("t = 1e-05",) * 3
    paper = sheets.sheet(
        [sheets.Panel(images, 3, **words), sheets.Panel("not drawn yet", 3, "second")], 2, across=2
    )
    edges = np.concatenate([paper[0], paper[-1], paper[:, 0], paper[:, -1]])
    assert (edges == 255).all()
    room = 4 + math.ceil(sheets.FONT.getlength("t = 1e-05"))
    exact = sheets.grid(images, 2, 3, sheets.enlargement(images.shape, room))
    places = [
        (top, left)
        for top in range(len(paper) - len(exact) + 1)
        for left in range(0, paper.shape[1] // 2)
        if (paper[top, left : left + 9] == exact[0, :9]).all()
        and np.array_equal(paper[top : top + len(exact), left : left + exact.shape[1]], exact)
    ]
    ((top, left),) = places
    ink = (paper != 255).any(-1)
    height = len(exact)
    for row in (0, 1):  # a word beside each row
        assert ink[top + row * height // 2 : top + (row + 1) * height // 2, : left - 2].any()
    assert not ink[top:, left - 2 : left].any()
    for column in range(3):
        assert ink[top - sheets.LINE : top, left + column * exact.shape[1] // 3 :][
            :, : exact.shape[1] // 3
        ].any()
    # the title needs several lines
    assert ink[: top - 3 * sheets.LINE, : left + exact.shape[1]].any()
    right = paper[:, left + exact.shape[1] + 2 :]
    assert (right[top + 20 : -20] != 255).any()  # why there are no images
