"""Images in data sets of the hub and in tar files, against the same images in a folder; arrays that
are mapped.
"""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from indm.workbench.data import load_data
from indm.workbench.data.base import SPLITS, stack

datasets = pytest.importorskip("datasets")
pytest.importorskip("pyarrow")
CLASSES = ("circle", "square")
SIZES = [(12, 9), (8, 8), (20, 30)]  # width and height
HALF = 14  # members of the first tar file
OPTIONS = {"size": "8x10", "seed": 3, "valid": 0.2, "test": 0.2}


def pictures() -> list[Image.Image]:
    numbers = np.random.default_rng(0)
    return [
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES
        for _ in range(5)
    ]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """The images as files, in the order of their names."""
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(pictures()):
        image.save(tmp_path / "folder" / f"{i:02d}.png")
    return load_data("folder", path=tmp_path / "folder", **OPTIONS)


def shards(place, members):
    """Two tar files with ``members``, name → bytes, in their order."""
    place.mkdir()
    for k in range(2):
        with tarfile.open(place / f"part-{k}.tar", "w") as tar:
            for name, content in list(members.items())[k * HALF :][: HALF if k == 0 else None]:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return place


def test_shards_hold_what_a_folder_holds(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    members = {}
    for i, image in enumerate(pictures()):
        members |= {f"{i:02d}.png": png(image), f"{i:02d}.cls": str(i % 2).encode()}
    data = load_data(
        "datasets", path=shards(tmp_path / "shards", members), x="png", c="cls", **OPTIONS
    )
    assert data.shape == (3, 8, 10) and data.classes == ("0", "1")
    for part in SPLITS:
        assert torch.equal(stack(getattr(data, part)), stack(getattr(folder, part)))
    assert data.labels["train"].tolist() == [int(path.stem) % 2 for path in folder.train.files]


def test_a_data_set_of_images_holds_what_a_folder_holds(tmp_path, folder, monkeypatch):
    labels = [i % 2 for i in range(len(pictures()))]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = datasets.Dataset.from_dict({"image": pictures(), "label": labels}, features=features)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changed = datasets.Dataset.from_dict(
        {"image": pictures()[::-1], "label": labels}, features=features
    )
    without = datasets.Dataset.from_dict(
        {"image": pictures(), "label": [-1, *labels[1:]]}, features=features
    )
    for name, table in (("tables", rows), ("changed", changed), ("without", without)):
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "train.parquet")
    data, again, other = (
        load_data("datasets", path=tmp_path / name, c="label", **OPTIONS)
        for name in ("tables", "tables", "changed")
    )
    assert torch.equal(stack(data.train), stack(folder.train)) and data.classes == CLASSES
    assert data.labels["train"].tolist() == [int(path.stem) % 2 for path in folder.train.files]
    assert data.fingerprint == again.fingerprint != other.fingerprint
    with pytest.raises(ValueError, match="'label'"):
        load_data("datasets", path=tmp_path / "without", c="label", **OPTIONS)
    for path, x in (("tables", "label"), ("tables", "picture"), ("none", "image")):
        with pytest.raises(ValueError, match=r"data\.x|picture|none"):
            load_data("datasets", path=tmp_path / path, x=x, **OPTIONS)


def test_a_data_set_of_the_hub_is_asked_for_by_its_name(folder, tmp_path, monkeypatch):
    """In place of the hub stands what its library would find there."""
    monkeypatch.chdir(tmp_path)
    there, asked = datasets.Dataset.from_dict({"image": pictures()}), []

    def load_dataset(*arguments, split, download_config):
        asked.append((arguments, split, download_config.local_files_only))
        return there

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for download in (True, False):
        data = load_data(
            "datasets", path="ann/pictures", config="small", download=download, **OPTIONS
        )
        assert torch.equal(stack(data.train), stack(folder.train))
    assert asked == [(("ann/pictures", "small"), "train", local) for local in (False, True)]


@pytest.mark.parametrize("kind", ["floats", "images"])
def test_a_mapped_array_is_the_array(tmp_path, kind):
    numbers = np.random.default_rng(0)
    array = (
        numbers.normal(5, 3, (200, 4))
        if kind == "floats"
        else numbers.integers(0, 256, (50, 8, 9, 3), np.uint8)
    )
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "c.npy", numbers.normal(size=(len(array), 2)))
    read, mapped = (
        load_data("array", path=tmp_path / "x.npy", c="c.npy", seed=2, mmap=mmap)
        for mmap in (False, True)
    )
    assert isinstance(mapped.train.source, np.memmap)
    for part in SPLITS:
        assert torch.equal(stack(getattr(mapped, part)), stack(getattr(read, part)))
        assert torch.equal(mapped.conditions[part], read.conditions[part])
    torch.testing.assert_close(mapped.scaling.scale, read.scaling.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(mapped.scaling.shift, read.scaling.shift, rtol=1e-6, atol=1e-7)


def test_what_cannot_be_mapped_is_said(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"x\.npz cannot be mapped into memory"):
        load_data("array", path=tmp_path / "x.npz", mmap=True)
    np.save(tmp_path / "x.npy", np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match="hold NaN or inf"):
        load_data("array", path=tmp_path / "x.npy", mmap=True)
