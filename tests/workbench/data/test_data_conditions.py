"""Conditions of data: labels, folders of classes, columns of tables, arrays beside arrays, data
sets of pairs.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from indm.conditions import Classes, Vector
from indm.workbench.data.base import SPLITS, as_data, load_data, stack
from indm.workbench.data.examples import Paired, loader
from indm.workbench.data.standard import CLASSES

N = 50


def rows():
    """Numbers whose condition can be read off them: x = (k, −k), c = k."""
    k = np.arange(N, dtype=np.float32)
    return np.stack([k, -k], 1), k


def assert_together(data, labels=False):
    """In every split the c of each x is its own."""
    for split in SPLITS:
        c = data.c(split, labels=labels).reshape(-1).float()
        assert torch.equal(stack(getattr(data, split))[:, 0].float(), c)


def test_labels_that_data_sets_bring():
    data = load_data("digits")
    assert data.classes == tuple("0123456789") and data.c("test", labels=True).shape == (360,)
    assert len(CLASSES) == 10
    with pytest.raises(ValueError, match="have no numbers for a condition"):
        data.c("train", labels=False)


def test_two_arrays_of_one_file(tmp_path):
    x, c = rows()
    np.savez(tmp_path / "both.npz", x=x, c=c)
    data = load_data("array", path=tmp_path / "both.npz", c="c")
    assert_together(data)
    with pytest.raises(ValueError, match=r"key must be one of .* got 'd'"):
        load_data("array", path=tmp_path / "both.npz", c="d")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_a_table(tmp_path, suffix):
    import pandas

    x, c = rows()
    table = pandas.DataFrame(
        {"a": x[:, 0], "b": x[:, 1], "c": c, "name": [f"n{int(k):02}" for k in c]}
    )
    path = tmp_path / f"table.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    data = load_data("array", path=path, x=("a", "b"), c="c")
    assert_together(data) if suffix == "parquet" else assert_together(data, labels=False)
    words = load_data("array", path=path, x=("a", "b"), c=("name",))
    assert_together(words, labels=True)
    assert words.classes[3] == "n03" and words.shape == (2,)
    both = load_data("array", path=path, x="a", c=("b", "c"))
    assert torch.equal(
        both.c("train", labels=False),
        torch.stack([-stack(both.train)[:, 0], stack(both.train)[:, 0]], 1),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": "cc"}, "no column 'cc'; did you mean 'c'"),
        ({"x": "c", "c": "c"}, "column 'c' cannot be both x and c"),
        (
            {"x": ("a", "word"), "c": "c"},
            "column 'word' must hold finite numbers, got 'w' in row 1",
        ),
        ({"x": "hole", "c": "c"}, "column 'hole' must hold finite numbers, got nan in row 3"),
        (
            {"x": "a", "c": "gap"},
            "column 'gap' is empty in row 2, or has a word that stands for that",
        ),
    ],
)
def test_columns_that_cannot_be(tmp_path, options, message):
    import pandas

    table = {
        "a": [1.0, 2.0, 3.5],
        "c": [1, 2, 3],
        "word": ["w", "1", "2"],
        "hole": [1.0, 2.0, None],
        "gap": ["x", None, "y"],
    }
    pandas.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message):
        load_data("array", path=tmp_path / "t.csv", **options)


def test_a_folder_for_each_class(tmp_path):
    for k, name in enumerate(["cat", "dog"]):
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), 100 * k + i, np.uint8)).save(
                tmp_path / name / "deep" / f"{i}.png"
            )
    data = load_data("folder", path=tmp_path, size=8, classes=True)
    assert data.classes == ("cat", "dog")
    for split in SPLITS:
        grey = stack(getattr(data, split)).float().mean((1, 2, 3))
        assert torch.equal((grey >= 100).long(), data.c(split, labels=True))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"'stray\.png' is in none"):
        load_data("folder", path=tmp_path, size=8, classes=True)


def test_some_folders_are_the_classes_in_the_order_they_are_named(tmp_path):
    for number, name in enumerate(("dog", "cat", "far/bird"), 1):
        (tmp_path / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 10 * number + i).save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = load_data("folder", path=tmp_path, size=8, classes=["far/bird", "dog"])
    assert data.classes == ("far/bird", "dog")
    grey = torch.cat([stack(getattr(data, part)) for part in SPLITS])[:, 0, 0, 0]
    labels = torch.cat([data.labels[part] for part in SPLITS])
    assert labels[grey.argsort()].tolist() == [1] * 8 + [0] * 8  # dogs are darker
    assert (
        data.fingerprint
        != load_data("folder", path=tmp_path, size=8, classes=["far/bird", "cat"]).fingerprint
    )
    with pytest.raises(ValueError, match=r"path must be a folder, got .*cow"):
        load_data("folder", path=tmp_path, size=8, classes=["dog", "cow"])


class Pairs(Dataset):
    def __init__(self, c):
        self.x, self.c = torch.from_numpy(rows()[0]), c

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.x[index], self.c[index]


@pytest.mark.parametrize("kind", ["numbers", "whole numbers", "words", "tensors"])
def test_a_data_set_of_pairs(kind):
    x, c = rows()
    pairs = {
        "numbers": Pairs(c.tolist()),
        "whole numbers": Pairs(c.astype(int).tolist()),
        "words": Pairs([f"{int(k):02}" for k in c]),
        "tensors": TensorDataset(torch.from_numpy(x), torch.from_numpy(c)),
    }[kind]
    assert_together(as_data(pairs, c=True), labels=kind in ("words", "whole numbers"))


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (np.zeros((N, 2, 2)), "must be a row for each example"),
        (np.zeros(N - 5), f"must be {N} rows, got {N - 5}"),
        (np.zeros(N + 1), f"must be {N} rows, got {N + 1}"),
        (np.full(N, np.nan), "must be finite: row 0 is not"),
    ],
)
def test_conditions_that_cannot_be(c, message):
    with pytest.raises(ValueError, match=message):
        as_data(rows()[0], c=c)


def test_images_as_conditions_come_channels_first():
    images = np.arange(N * 4 * 5 * 3).reshape(N, 4, 5, 3).astype(np.uint8)
    data = as_data(rows()[0], c=images)
    assert data.c("train", labels=False).shape[1:] == (3, 4, 5)
    k = int(stack(data.train)[0, 0])
    assert torch.equal(
        data.c("train", labels=False)[0], torch.from_numpy(images[k]).permute(2, 0, 1).float()
    )


def test_classes_are_known_by_name():
    """Data with other numbers for the same names, or with fewer of them, fit a model."""
    x, _ = rows()
    data = as_data(x, c=np.array(["dog", "cat"] * (N // 2)))
    model_has = Classes(("cow", "dog", "cat"))
    names = np.array(model_has.labels)[data.rows(model_has, "train").numpy()]
    even = stack(data.train)[:, 0].numpy() % 2 == 0
    assert (names == np.where(even, "dog", "cat")).all()
    with pytest.raises(
        ValueError, match="the test data do not fit the condition: c must be one of cow, dog"
    ):
        data.rows(Classes(("cow", "dog")), "test")
    with pytest.raises(ValueError, match="have no numbers"):
        data.rows(Vector(1), "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_pairs_belong_together(workers):
    x, c = rows()
    data = as_data(x, c=c)
    for examples in (data.train, [row for row in stack(data.train)]):
        pairs = Paired(examples, data.c("train", labels=False))
        for raw, own in loader(pairs, 7, shuffle=True, epoch=2, workers=workers):
            assert torch.equal(raw[:, :1], own)
