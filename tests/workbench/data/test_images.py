"""Folders of many images: read one at a time, and a damaged one costs one image."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from indm.workbench.data import images
from indm.workbench.data.base import stack
from indm.workbench.data.examples import loader
from indm.workbench.data.folder import list_images
from indm.workbench.data.images import ImageFiles, count_unreadable, read_image


def many(folder, n, sources=50, below=1000):
    """``n`` names of a few images, in folders of ``below`` each: hard links, so that they take no
    room.
    """
    folder.mkdir()
    for i in range(sources):
        pixels = np.full((8, 8, 3), (i, 2 * i, 3 * i), np.uint8)
        Image.fromarray(pixels).save(folder / f".{i}.png")  # hidden: no image of the folder
    for i in range(n):
        if i % below == 0:
            (folder / f"{i // below:04d}").mkdir()
        os.link(folder / f".{i % sources}.png", folder / f"{i // below:04d}" / f"{i:07d}.png")
    return folder


# ── The list


def test_the_list_is_that_of_the_file_system_in_sorted_order(tmp_path):
    hidden = [".hidden.png", ".h/x.png", "a/.x/y.png"]
    for name in ["b.png", "a/z.png", "a/b/c.png", "a.png", "a-b/x.png", "ü\n ö.png", *hidden]:
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    raw = os.fsencode(tmp_path / "f") + b"/\xff.png"
    with open(raw, "wb") as file:
        file.write((tmp_path / "f" / "b.png").read_bytes())
    os.symlink(tmp_path / "f" / "b.png", tmp_path / "f" / "link.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "f" / "broken.png")
    os.symlink(tmp_path / "f", tmp_path / "f" / "again")  # a loop
    os.mkfifo(tmp_path / "f" / "pipe.png")
    found = list_images(tmp_path / "f")
    below = (p for p in (tmp_path / "f").rglob("*") if p.is_file() and "again" not in p.parts)
    expected = sorted(p for p in below if "/." not in str(p.relative_to(tmp_path)))
    assert list(found) == expected and len(expected) == 8


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_those_of_the_composite(tmp_path, mode):
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([*[value, value // 2, 255 - value][: len(mode) - 1], alpha], -1).astype(
        np.uint8
    )
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png")).reshape(256, 256, -1).astype(int)
    a = pixels[..., -1:] / 255
    assert np.abs(found - (255 * (1 - a) + pixels[..., :-1] * a)).max() <= 0.5 + 1e-9


# ── Damage, and the order of the data


def damaged(folder, *which):
    for i in which:
        file = folder / "0000" / f"{i:07d}.png"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2 + 8])  # the header is whole


def test_a_damaged_image_is_replaced_by_the_next_warned_of_once_and_counted(tmp_path):
    folder = many(tmp_path / "f", 40)
    whole = stack(ImageFiles(list_images(folder), (3, 8, 8)))
    damaged(folder, 7, 20, 21, 39)
    data = ImageFiles(list_images(folder), (3, 8, 8))
    assert len(data) == 40 and count_unreadable(data) == 0
    with pytest.warns(UserWarning, match="0000007.png cannot be read .* takes its place") as warned:
        found = stack(data)
    assert len(warned) == 1 and data.unreadable.nonzero().flatten().tolist() == [7, 20, 21, 39]
    expected = whole.clone()
    expected[[7, 20, 21, 39]] = whole[[8, 22, 22, 0]]
    assert (
        torch.equal(found, expected)
        and torch.equal(stack(data), found)
        and count_unreadable(data) == 4
    )


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_images_are_decoded_once_where_memory_holds_them_all(tmp_path, monkeypatch):
    folder = many(tmp_path / "f", 5)
    files = list_images(folder)
    monkeypatch.setattr(images, "MOST_KEPT", 5 * 3 * 8 * 8)
    kept, again = ImageFiles(files, (3, 8, 8)), ImageFiles(files, (3, 9, 9))
    first, other = stack(kept), stack(again)
    kept[2].zero_()  # a copy
    for file in files:
        file.unlink()
    assert torch.equal(stack(kept), first) and torch.equal(kept[-1], first[-1]) and len(other) == 5
    with pytest.raises(ValueError, match="5 images in a row cannot be read"):
        again[0]


@pytest.mark.filterwarnings("ignore:.*cannot be read", "ignore:This DataLoader will create")
def test_workers_change_neither_the_order_nor_what_stands_for_a_damaged_image(tmp_path):
    folder = many(tmp_path / "f", 60)
    damaged(folder, 3, 30, 31)
    epochs = []
    for workers in (0, 1, 3):
        data = ImageFiles(list_images(folder), (3, 8, 8))
        epochs.append(list(loader(data, 7, shuffle=True, seed=5, epoch=2, workers=workers)))
        assert count_unreadable(data) == 3  # those of the workers, too
    for other in epochs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(epochs[0], other, strict=True))
