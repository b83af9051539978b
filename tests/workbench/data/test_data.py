"""The loaders on real files, and on generated files in the layouts they read."""

import functools
import hashlib
import pickle
import sys

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from indm.names import trust
from indm.workbench.data import ImageFiles
from indm.workbench.data.base import InMemory, as_data, check_data, load_data, split, stack
from indm.workbench.data.densities import DENSITIES
from indm.workbench.data.examples import loader
from indm.workbench.data.images import read_image

PARTS = ("train", "valid", "test")


def rows(dataset):
    """The items as a sorted list of byte strings, to compare contents irrespective of order."""
    return sorted(item.tobytes() for item in stack(dataset).numpy())


# ── Using data sets


@given(
    n=st.integers(3, 300),
    valid=st.integers(1, 40),
    test=st.integers(0, 40),
    seed=st.integers(0, 2**40),
    limit=st.none(),
)
@settings(max_examples=60)
def test_split_is_a_partition_that_the_seed_determines(n, valid, test, seed, limit):
    if valid + test >= n:
        with pytest.raises(ValueError, match="cannot be split"):
            split(n, valid=valid, test=test, seed=seed, limit=limit)
        return
    parts = split(n, valid=valid, test=test, seed=seed)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(n))
    assert len(parts["valid"]) == valid and len(parts.get("test", ())) == test
    again = split(n, valid=valid, test=test, seed=seed, limit=5)
    assert torch.equal(again["valid"], parts["valid"]) and torch.equal(
        again["train"], parts["train"][:5]
    )


@functools.cache
def whole_data(name):
    return load_data(name)


def test_one_class_keeps_its_place_in_the_splits():
    name = "digits"
    whole, one, few = whole_data(name), load_data(name, label=3), load_data(name, label=3, limit=20)
    for part in ("train", "valid", "test"):
        expected = getattr(whole, part).tensor[whole.labels[part] == 3]
        assert torch.equal(getattr(one, part).tensor, expected) and bool(
            (one.labels[part] == 3).all()
        )
    assert torch.equal(few.train.tensor, one.train.tensor[:20])
    with pytest.raises(
        ValueError,
        match=r"label must be of \[0, 1, .*, 9\], one or a list, got 10",
    ):
        load_data(name, label=10)


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    epoch=st.integers(0, 50),
    drop=st.booleans(),
)
@settings(max_examples=30)
def test_an_epoch_can_be_resumed_at_any_batch(n, batch, seed, epoch, drop):
    dataset = InMemory(torch.arange(n)[:, None])
    first, second = (
        list(loader(dataset, batch, shuffle=True, seed=seed, epoch=epoch, drop_last=drop))
        for _ in range(2)
    )
    torch.rand(1)  # the global state plays no part
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    seen = torch.cat(first).flatten().tolist() if first else []
    assert len(set(seen)) == len(seen) == (n // batch * batch if drop else n)


# ── Names and options


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("digit", {}, "data.name"),
        ("digits", {"sead": 3}, "seed"),
        ("folder", {}, "path"),
        ("digits", {"seed": "0"}, "data.seed"),
        ("digits", {"seed": True}, "data.seed"),
        ("digits", {"centered": 1}, "data.centered"),
        ("array", {"path": 3}, "data.path"),
    ],
)
def test_names_and_options_that_cannot_be(name, options, words):
    with pytest.raises(ValueError, match=words):
        load_data(name, **options)


# ── Densities


@pytest.mark.parametrize("name", DENSITIES)
def test_densities(name):
    small = load_data(name, samples=500, valid_samples=50, test_samples=200, seed=3)
    large = load_data(name, samples=900, valid_samples=50, test_samples=200, seed=3)
    assert [len(getattr(small, part)) for part in PARTS] == [500, 50, 200]
    assert torch.equal(small.test.tensor, large.test.tensor)
    assert not set(rows(small.train)) & (set(rows(small.test)) | set(rows(small.valid)))
    assert small.entropy == DENSITIES[name].entropy() and small.scaling.levels is None
    # entropy in data units is entropy in model units
    assert small.scaling.log_volume(small.shape) == 0.0


# ── Digits


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    digits = load_data("digits", seed=1)
    assert [len(getattr(digits, part)) for part in PARTS] == [1257, 180, 360]
    pool = torch.cat([stack(getattr(digits, part)) for part in PARTS])
    assert (
        pool.dtype == torch.uint8
        and pool.shape == (1797, 1, 8, 8)
        and (pool.min(), pool.max()) == (0, 16)
    )
    assert sorted(x.tobytes() for x in pool.numpy()) == sorted(
        x.astype(np.uint8).tobytes() for x in images
    )
    # every image keeps its own label
    known = {x.astype(np.uint8).tobytes(): int(y) for x, y in zip(images, labels, strict=True)}
    for part in PARTS:
        items, classes = stack(getattr(digits, part)).numpy(), digits.labels[part].tolist()
        assert [known[x.tobytes()] for x in items] == classes
        shares = np.bincount(classes, minlength=10) / len(classes)
        np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.006)
    assert digits.scaling.levels == 17 and digits.shape == (1, 8, 8)


# ── Fashion-MNIST


def write_fashion_mnist(root, rng):
    """Files in torchvision's layout: IDX without compression."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for part, n in (("train", 40), ("t10k", 12)):
        arrays[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        for name, array in (("images-idx3", arrays[part]), ("labels-idx1", labels)):
            header = np.array([2048 + array.ndim, *array.shape], dtype=">u4").tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    return arrays


def test_fashion_mnist_in_the_layout_of_torchvision(tmp_path, monkeypatch):
    arrays = write_fashion_mnist(tmp_path, np.random.default_rng(0))
    monkeypatch.setenv("INDM_DATA", str(tmp_path))
    for root in (tmp_path, None):
        fashion = load_data("fashion-mnist", root=root, valid=10, download=False)
        assert [len(getattr(fashion, part)) for part in PARTS] == [30, 10, 12]
        assert np.array_equal(fashion.test.tensor[:, 0].numpy(), arrays["t10k"])
        held = rows(fashion.train) + rows(fashion.valid)
        assert sorted(held) == sorted(x.tobytes() for x in arrays["train"])
        assert fashion.labels["test"].tolist() == [i % 10 for i in range(12)]
    for root, options in (
        (tmp_path / "elsewhere", {}),
        (tmp_path, {"valid": 40}),
        (tmp_path, {"size": 7}),
        (tmp_path, {"size": 32}),
    ):
        with pytest.raises(
            ValueError, match=r"fashion-mnist could not be loaded|split|at least|at most"
        ):
            load_data("fashion-mnist", root=root, download=False, **options)


def test_resize_is_an_antialiased_average(tmp_path):
    """28 → 14 by the triangle filter of support 2, written out; borders renormalise."""
    arrays = write_fashion_mnist(tmp_path, np.random.default_rng(1))
    small = load_data("fashion-mnist", root=tmp_path, size=14, valid=1).test.tensor[:, 0].numpy()
    centre = 2 * np.arange(14)[:, None] + 1
    weight = np.clip(1 - np.abs(np.arange(28) + 0.5 - centre) / 2, 0, None)
    weight /= weight.sum(1, keepdims=True)
    expected = weight @ arrays["t10k"] @ weight.T
    assert np.abs(small - expected).max() <= 0.5 + 1e-3


# ── CIFAR-10 and CelebA in torchvision's layout on disk


def test_cifar10_in_the_layout_of_torchvision(tmp_path, monkeypatch):
    rng, base = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"
    base.mkdir()
    images = rng.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 60).tolist()

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    chunks = [slice(10 * i, 10 * i + 10) for i in range(6)]
    batches = [{"data": images[c].reshape(10, -1), "labels": labels[c]} for c in chunks]
    written = [write(name, batch) for name, batch in zip("abcdef", batches, strict=True)]
    meta = write("batches.meta", {"label_names": list("0123456789")})
    known = {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    for name, value in (("train_list", written[:5]), ("test_list", written[5:]), ("meta", known)):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    cifar = load_data("cifar10", root=tmp_path, download=False, valid=12, limit=30)
    assert [len(getattr(cifar, part)) for part in PARTS] == [30, 12, 10]
    assert np.array_equal(cifar.test.tensor.numpy(), images[50:])
    assert (
        cifar.labels["test"].tolist() == labels[50:] and cifar.flip and cifar.shape == (3, 32, 32)
    )
    known = {x.tobytes(): y for x, y in zip(images, labels, strict=True)}
    assert [known[x.tobytes()] for x in cifar.train.tensor.numpy()] == cifar.labels[
        "train"
    ].tolist()
    assert set(rows(cifar.train) + rows(cifar.valid)) <= {x.tobytes() for x in images[:50]}
    assert cifar.scaling.levels == 256 and cifar.notes[0] == "torchvision's CIFAR-10"

    (base / "a").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cifar10 could not be loaded"):
        load_data("cifar10", root=tmp_path, download=False)


def test_celeba_in_the_layout_of_torchvision(tmp_path, monkeypatch):
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 9)]
    for i, name in enumerate(names):
        # white but for the central 140×140 that is to be kept
        picture = np.full((218, 178, 3), 255, np.uint8)
        picture[39:179, 19:159] = 20 * i
        Image.fromarray(picture).save(base / "img_align_celeba" / name, quality=100)
    columns = {
        "identity_CelebA": 1,
        "bbox_celeba": 4,
        "landmarks_align_celeba": 10,
        "list_attr_celeba": 40,
    }
    for stem, width in columns.items():
        head = (
            "" if stem.startswith("identity") else f"8\n{' '.join(f'c{i}' for i in range(width))}\n"
        )
        prefix = "list_" if stem in ("bbox_celeba", "landmarks_align_celeba") else ""
        lines = "".join(f"{name} {' '.join(['1'] * width)}\n" for name in names)
        (base / f"{prefix}{stem}.txt").write_text(head + lines)
    assignment = [0, 0, 1, 2, 0, 1, 2, 0]
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{n} {a}\n" for n, a in zip(names, assignment, strict=True))
    )
    with pytest.raises(ValueError, match="celeba could not be loaded"):
        # the checksums of the real index files do not match
        load_data("celeba", root=tmp_path, download=False)
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda self: True)
    data = load_data("celeba", root=tmp_path, download=False, limit=3)
    assert [len(getattr(data, part)) for part in PARTS] == [3, 2, 2] and data.shape == (3, 64, 64)
    for part, code in (("valid", 1), ("test", 2)):
        chosen = [i for i, a in enumerate(assignment) if a == code]
        for item, i in zip(stack(getattr(data, part)), chosen, strict=True):
            assert item.shape == (3, 64, 64) and item.dtype == torch.uint8
            assert (item.double().mean() - 20 * i).abs() < 3 and item.double().std() < 12


# ── Folders of images


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(i, channels=3, size=(20, 12)):
    rng = np.random.default_rng(i)
    return rng.integers(0, 256, (*size, 3) if channels == 3 else size, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twelve good colour images in nested folders with awkward names and several formats."""
    for i, name in enumerate(
        ["a.png", "b c.jpg", "ünï/ç ö.webp", "deep/er/x.BMP", "deep/y.tif", "z.jpeg"]
    ):
        save(tmp_path / "images" / name, picture(i))
        save(tmp_path / "images" / "more" / name, picture(100 + i))
    return tmp_path / "images"


def test_folder_partitions_its_images(folder):
    sets = load_data("folder", path=folder, size=8, seed=4, valid=0.25, test=0.25)
    assert [len(getattr(sets, part)) for part in PARTS] == [6, 3, 3]
    files = [file for part in PARTS for file in getattr(sets, part).files]
    assert sorted(files) == sorted(p for p in folder.rglob("*") if p.is_file())
    again = load_data(
        "folder", path=str(folder), size=8, seed=4, valid=0.25, test=0.25, limit=2, flip=True
    )
    assert list(again.train.files) == list(sets.train.files[:2]) and again.flip
    assert list(again.test.files) == list(sets.test.files)
    other = load_data("folder", path=folder, size=8, seed=5, valid=0.25, test=0.25)
    assert list(other.test.files) != list(sets.test.files)
    assert sets.shape == (3, 8, 8) and sets.scaling.levels == 256
    batch = next(iter(loader(sets.train, 4, shuffle=False)))
    assert (
        batch.shape == (4, 3, 8, 8)
        and batch.dtype == torch.uint8
        and torch.equal(batch, stack(sets.train, 4))
    )


def test_folder_pixels_crop_and_resize(tmp_path):
    array = picture(0, size=(30, 16))
    file = save(tmp_path / "a.png", array)
    whole = array[7:23].transpose(2, 0, 1)
    # largest centred square, no resize
    assert np.array_equal(ImageFiles([file], (3, 16, 16))[0].numpy(), whole)
    assert np.array_equal(ImageFiles([file], (3, 10, 10), crop=10)[0].numpy(), whole[:, 3:13, 3:13])
    assert np.array_equal(ImageFiles([file], (3, 16, 16), crop=99)[0].numpy(), whole)
    box = ImageFiles([file], (3, 8, 8), resize="box")[0].numpy()
    assert np.abs(box - whole.reshape(3, 8, 2, 8, 2).mean((2, 4))).max() <= 1
    squashed = ImageFiles([file], (3, 16, 16), resize="nearest", crop=False)[0].numpy()
    assert np.array_equal(squashed[:, 0], array[0].T) and squashed.shape == (3, 16, 16)
    wide = ImageFiles([file], (3, 8, 16))[0].numpy()  # the largest rectangle of that aspect ratio
    assert np.array_equal(wide, array[11:19].transpose(2, 0, 1))
    half = ImageFiles([file], (3, 8, 16), crop=4, resize="nearest")[0].numpy()
    assert np.array_equal(half[:, ::2, ::2], array[13:17, 4:12].transpose(2, 0, 1))
    luma = ImageFiles([file], (1, 16, 16))[0].numpy()[0]
    assert np.abs(luma - np.einsum("chw,c->hw", whole, [0.299, 0.587, 0.114])).max() <= 1


def test_only_files_with_the_names_of_images_are_read(folder):
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    (folder / ".folder").mkdir()
    save(folder / ".folder" / "a.png", picture(0))
    sets = load_data("folder", path=folder, size=8)
    assert sum(len(getattr(sets, part)) for part in PARTS) == 12


def test_mixed_channels(folder):
    grey = save(folder / "grey.png", picture(0, channels=1))
    for asked, channels in ((None, 3), (1, 1), (3, 3)):
        sets = load_data("folder", path=folder, size=12, channels=asked)
        assert sets.shape == stack(sets.train, 1).shape[1:] == (channels, 12, 12)
    assert (ImageFiles([grey], (3, 12, 12))[0] == ImageFiles([grey], (1, 12, 12))[0]).all()
    for i in range(4):
        save(folder.parent / "grey" / f"{i}.png", picture(i, channels=1))
    assert load_data("folder", path=folder.parent / "grey", size=8).shape == (1, 8, 8)


def test_colour_modes_and_orientation(tmp_path):
    grey16 = np.arange(16 * 16, dtype=np.uint16).reshape(16, 16) * 256 + 77
    image = read_image(save(tmp_path / "16.png", grey16))
    assert image.mode == "L" and np.array_equal(np.asarray(image), grey16 // 256)

    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4, :, 3] = 255
    image = read_image(save(tmp_path / "alpha.png", clear))
    assert (
        image.mode == "RGB"
        and (np.asarray(image)[:4] == 0).all()
        and (np.asarray(image)[4:] == 255).all()
    )

    # black at 20 % over white
    half = np.stack([np.zeros((8, 8)), np.full((8, 8), 51)], -1).astype(np.uint8)
    image = read_image(save(tmp_path / "la.png", half))
    assert image.mode == "L" and np.abs(np.asarray(image).astype(int) - 204).max() <= 1

    for background, grey in (("black", 0), ("#646464", 80), ("white", 204)):  # black at 20 %
        assert (
            np.abs(np.asarray(read_image(tmp_path / "la.png", background)).astype(int) - grey).max()
            <= 1
        )
    red = ImageFiles([tmp_path / "alpha.png", tmp_path / "la.png"], (3, 8, 8), background="#ff0000")
    assert red[0][:, 7, 7].tolist() == [255, 0, 0] and red[0][:, 0, 0].tolist() == [0, 0, 0]
    assert (red[1] - torch.tensor([204, 0, 0], dtype=torch.uint8)[:, None, None]).int().max() <= 1

    colours = Image.fromarray(picture(0)).quantize(7)
    colours.save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")
    assert image.mode == "RGB" and np.array_equal(
        np.asarray(image), np.asarray(colours.convert("RGB"))
    )

    Image.fromarray(picture(0)).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.tif")).astype(int) - picture(0)).max() <= 2

    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by 90° clockwise
    image = read_image(save(tmp_path / "turned.png", picture(0), exif=tags))
    assert np.array_equal(np.asarray(image), np.rot90(picture(0), -1))

    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_image(tmp_path / "float.tif")
    # of 32 bits, whose range is not known: 255 would be black as one of 16
    for level in (255, 512):
        Image.fromarray(np.full((8, 8), level, np.int32)).save(tmp_path / f"{level}.tif")
    with pytest.raises(ValueError, match="32-bit pixels that are all below 256"):
        read_image(tmp_path / "255.tif")
    assert np.asarray(read_image(tmp_path / "512.tif")).max() == 2


def test_folders_and_options_that_cannot_be_used(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        ({"path": tmp_path / "missing", "size": 8}, "path must be a folder"),
        ({"path": folder / "a.png", "size": 8}, "path must be a folder"),
        ({"path": tmp_path / "empty", "size": 8}, "path must hold images"),
        ({"path": folder, "size": 7}, "at least 8 pixels"),
        ({"path": folder, "size": 8, "crop": 0}, "at least 8 pixels"),
        ({"path": folder, "size": 8, "channels": 2}, "data.channels must be 1"),
        ({"path": folder, "size": 8, "resize": "bicubik"}, "data.resize must be .* 'bicubic'"),
        ({"path": folder, "size": 8, "background": "whyte"}, "unknown color specifier: 'whyte'"),
        ({"path": folder, "size": 8, "test": 0.9, "valid": 0.5}, "cannot be split"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load_data("folder", **options)


# ── Arrays


@pytest.mark.filterwarnings("ignore:.* few values, each in many rows, in column 2:UserWarning")
def test_vectors_are_standardised_by_the_training_split(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal([3.0, -5.0, 7.0], [2.0, 0.1, 0.0], (400, 3))
    np.save(tmp_path / "v.npy", vectors)
    array = load_data("array", path=tmp_path / "v.npy", seed=2, valid=0.2, test=0.25)
    assert [len(getattr(array, part)) for part in PARTS] == [220, 80, 100] and array.shape == (3,)
    pool = torch.cat([stack(getattr(array, part)) for part in PARTS])
    assert sorted(map(tuple, pool.tolist())) == sorted(
        map(tuple, vectors.astype(np.float32).tolist())
    )
    x = array.scaling.to_model(array.train.tensor).double()
    torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0)[:2], torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)
    assert array.scaling.levels is None and array.scaling.scale[2] == 1


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_image_arrays_in_every_layout(tmp_path, layout):
    images = np.random.default_rng(0).integers(
        0, 256, (20, 1 if layout == "NHW" else 3, 9, 10), dtype=np.uint8
    )
    stored = {"NHW": images[:, 0], "NHWC": images.transpose(0, 2, 3, 1), "NCHW": images}[layout]
    np.savez(tmp_path / "i.npz", images=stored)
    array = load_data("array", path=tmp_path / "i.npz")
    assert array.shape == images.shape[1:] and array.scaling.levels == 256
    assert sorted(b for part in PARTS for b in rows(getattr(array, part))) == sorted(
        x.tobytes() for x in images
    )


def test_integer_arrays_and_levels(tmp_path):
    np.save(tmp_path / "i.npy", np.random.default_rng(0).integers(0, 1000, (30, 4)))
    array = load_data("array", path=tmp_path / "i.npy", levels=1000, centered=False)
    assert array.scaling.levels == 1000 and array.train.tensor.dtype == torch.int32
    x = array.scaling.to_model(array.train.tensor)
    assert (
        x.min() >= 0 and x.max() <= 1 and torch.equal(array.scaling.to_data(x), array.train.tensor)
    )


# ── Whatever a user has


class Pairs(Dataset):
    """A map-style data set of (x, label) whose items are made when asked for."""

    def __init__(self, items):
        self.items, self.asked = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.items[index], index % 3


def assert_same_data(a, b):
    for part in PARTS:
        x, y = stack(getattr(a, part)), stack(getattr(b, part))
        assert x.dtype == y.dtype and torch.equal(x, y)
    assert a.shape == b.shape and a.scaling.levels == b.scaling.levels and a.flip == b.flip
    assert torch.equal(a.scaling.shift, b.scaling.shift) and torch.equal(
        a.scaling.scale, b.scaling.scale
    )


@pytest.mark.parametrize("kind", ["vectors", "images", "levels"])
@pytest.mark.parametrize("made", [np.asarray, torch.as_tensor])
def test_data_in_memory_are_as_if_read_from_a_file(tmp_path, kind, made):
    rng = np.random.default_rng(0)
    array, options = {
        "vectors": (rng.normal(2, 3, (60, 3)), {}),
        "images": (
            rng.integers(0, 256, (60, 9, 10, 3), dtype=np.uint8),
            {"flip": True, "centered": False},
        ),
        "levels": (rng.integers(0, 1000, (60, 4)), {"levels": 1000}),
    }[kind]
    np.save(tmp_path / "a.npy", array)
    options |= {"seed": 5, "valid": 0.2, "test": 0.15, "limit": 30}
    read, given = (
        load_data("array", path=tmp_path / "a.npy", **options),
        as_data(made(array), **options),
    )
    assert_same_data(read, given)
    assert (
        read.fingerprint == given.fingerprint
        and given.name == "given"
        and read.notes[1:] == given.notes
    )
    assert as_data(given) is given
    held = as_data(InMemory(made(array)) if made is torch.as_tensor else array, **options)
    assert_same_data(held, given)


@pytest.mark.parametrize("kind", ["vectors", "images", "PIL"])
def test_a_data_set_of_tuples_is_that_of_its_first_entries(kind):
    """Split, scaled and laid out as the array of them; items are read when asked for, in worker
    processes too.
    """
    rng = np.random.default_rng(1)
    array = (
        rng.normal(100, 3, (50, 4))
        if kind == "vectors"
        else rng.integers(0, 256, (50, 8, 9, 3), dtype=np.uint8)
    )
    items = Pairs([Image.fromarray(x) for x in array] if kind == "PIL" else array)
    lazy, whole = as_data(items, seed=3, limit=20), as_data(array, seed=3, limit=20)
    few = items.asked[:]
    for part in PARTS:
        assert torch.equal(stack(getattr(lazy, part)), stack(getattr(whole, part)))
        batches = [list(loader(getattr(d, part), 4, shuffle=True)) for d in (lazy, whole)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    torch.testing.assert_close(lazy.scaling.shift, whole.scaling.shift)
    torch.testing.assert_close(lazy.scaling.scale, whole.scaling.scale)
    assert lazy.shape == whole.shape and lazy.scaling.levels == whole.scaling.levels
    if kind != "vectors":  # nothing but the first item was read to know what there is
        assert set(few) == {0}
    assert (
        as_data(Pairs(array[:40])).fingerprint
        != lazy.fingerprint
        == as_data(Pairs(array), seed=4).fingerprint
    )
    tensors = TensorDataset(torch.from_numpy(array), torch.arange(50))
    assert_same_data(as_data(tensors, seed=3, limit=20), whole)
    assert isinstance(as_data(tensors).train, InMemory)  # batches are indexed, not put together


def test_deviations_far_from_zero_do_not_cancel():
    x = 1e6 + torch.randn(200, 2)
    lazy, whole = as_data(Pairs(list(x))).scaling, as_data(x).scaling
    torch.testing.assert_close(lazy.scale, whole.scale, rtol=1e-6, atol=0)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


class Unmeasured(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2)


def test_what_cannot_be_made_into_data():
    x, grey = torch.randn(30, 2), torch.zeros(30, 1, 8, 8, dtype=torch.uint8)
    ragged = as_data(Pairs([np.zeros((8, 8 + (i == 7)), np.uint8) for i in range(30)]))
    cases = [
        (x[:0], {}), (x[:, 0], {}), (x[:2], {}), (x > 0, {}), (x, {"levels": 2}), (x / 0, {}), (x, {"flip": True}),
        (x.long(), {}), (grey + 9, {"levels": 8}), ("digits", {}), ({"x": x}, {}), (7, {}), (Endless(), {}),
        (DataLoader(Pairs(x)), {}), (Unmeasured(), {}), (Pairs([]), {}), (Pairs([{"image": 1}] * 30), {}),
        (Pairs([Image.new("P", (8, 8))] * 30), {}), ((x, x), {}), ((x, x[:, :1], x), {}),
        ((x, (x > 0).to(torch.uint8), x), {}),
    ]  # fmt: skip
    for source, options in cases:
        with pytest.raises((ValueError, TypeError, IndexError)):
            as_data(source, **options)
    with pytest.raises(ValueError, match="item 7"):
        [stack(getattr(ragged, part)) for part in PARTS]


OUTSIDE = """
import torch
from torch.utils.data import Dataset

from indm.workbench.data.base import Data, as_data


class Moons(Dataset):
    def __init__(self, n: int, noise: float = 0.1, seed=0):
        draws = torch.Generator().manual_seed(seed)
        angle = torch.rand(n, generator=draws) * torch.pi
        self.points = torch.stack([angle.cos(), angle.sin()], 1) + noise * torch.randn(n, 2, generator=draws)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index], index


def ready(*, n: int = 40) -> Data:
    return as_data(torch.arange(3.0 * n).reshape(n, 3), name="mine")


def unannotated(n=40):
    return ready(n=n)


def anything(**options) -> torch.Tensor:
    return torch.full((30, 2), options["level"]).long()


def nothing() -> torch.Tensor:
    return None
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "outside_data.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_data", raising=False)


def test_options_of_data_of_another_package(outside):
    cases = [
        ("Moons", {}, "option n"),
        ("Moons", {"n": 2.5}, "data.n"),
        ("Moons", {"n": 50, "nois": 1}, "'noise'"),
        ("Moons", {"n": 50, "vald": 0.2}, "'valid'"),
        ("Moons", {"n": 50, "valid": "a"}, "data.valid"),
        ("ready", {"valid": 0.2}, "data.valid"),
        ("unannotated", {}, "unannotated"),
        ("anything", {"level": 7}, "levels"),
        ("nothing", {}, "NoneType"),
        ("Monns", {}, "'Moons'"),
    ]
    with trust("outside_data"):
        for name, options, message in cases:
            with pytest.raises(ValueError, match=message):
                load_data(f"outside_data:{name}", **options)
        check_data("outside_data:Moons", n=50, seed="any: it has no annotation")


# ── What decides the splits


def test_the_fingerprint_of_a_folder_is_that_of_the_names_of_its_images(folder):
    def found(**options):
        return load_data("folder", path=folder, size=8, **options).fingerprint

    before = found()
    assert len(before) == 64 and found(seed=3, limit=2) == before
    (folder / "notes.txt").write_text("no image, and in no split")
    assert found() == before
    (folder / "notes.txt").unlink()
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    assert load_data("folder", path=elsewhere, size=8).fingerprint == before
    elsewhere.rename(folder)
    fingerprints = {before}
    (folder / "a.png").rename(folder / "b.png")
    fingerprints.add(found())
    (folder / "b.png").rename(folder / "more" / "A.png")
    fingerprints.add(found())
    save(folder / "a.png", picture(50))
    fingerprints.add(found())
    assert len(fingerprints) == 4


def test_the_fingerprint_of_an_array_is_that_of_its_numbers(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)

    def found(array, save=np.save, **options):
        save(tmp_path / "a", array)
        (file,) = tmp_path.iterdir()
        fingerprint = load_data("array", path=file, **options).fingerprint
        file.unlink()
        return fingerprint

    before = found(vectors)
    assert len(before) == 64 and found(vectors, np.savez, seed=3, limit=2) == before
    assert found(np.asfortranarray(vectors)) == found(vectors.astype(float)) == before
    assert len({before, found(vectors[::-1]), found(np.concatenate([vectors, vectors[:1]]))}) == 3
    grey = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    assert found(grey) == found(grey.transpose(0, 3, 1, 2)) != found(grey[::-1])


def test_arrays_that_cannot_be_used(tmp_path):
    rng = np.random.default_rng(0)
    broken = rng.normal(size=(30, 2))
    broken[[3, 7, 7], [0, 1, 0]] = np.nan, np.inf, np.nan
    grey = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    stored = {
        "nan": broken,
        "objects": np.array([{}] * 30, dtype=object),
        "complex": np.zeros((30, 2), complex),
        "floats": np.zeros((30, 8, 8)),
        "integers": np.zeros((30, 2), int),
        "small": grey[:, :7],
        "grey": grey,
        "vectors": rng.normal(size=(30, 2)),
    }
    for name, array in stored.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "two.npz", images=grey, labels=np.zeros(30))
    np.savez(tmp_path / "bare.npz")
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "grey.npy").read_bytes()[:500])
    cases = [
        ("nan.npy", {}), ("objects.npy", {}), ("complex.npy", {}), ("floats.npy", {}), ("integers.npy", {}),
        ("grey.npy", {"levels": 16}),
        ("vectors.npy", {"levels": 256}), ("bare.npz", {}), ("two.npz", {}),
        ("two.npz", {"key": "image"}), ("missing.npy", {}), ("text.npy", {}), ("cut.npy", {}), ("", {}),
    ]  # fmt: skip
    for name, options in cases:
        with pytest.raises(ValueError, match=name or "not a file"):
            load_data("array", path=tmp_path / name, **options)
    with pytest.raises(ValueError, match="flip must be false"):
        load_data("array", path=tmp_path / "vectors.npy", flip=True)
    with pytest.raises(ValueError, match="7×8"):
        load_data("array", path=tmp_path / "small.npy")
    assert load_data("array", path=tmp_path / "two.npz", key="images").shape == (1, 8, 8)
