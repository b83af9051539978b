"""CIFAR-10 of PNG files with one image a row."""

import json

import numpy as np
import pytest
from PIL import Image

from research.command import main
from research.data.cifar10 import Cifar10, Packed, convert

SMALL = {"training": 2, "rows": 10}


@pytest.fixture
def folder(tmp_path):
    """Three files of ten images each, drawn pixel by pixel, with their labels."""
    images, place = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32)), tmp_path / "files"
    place.mkdir()
    for batch in range(3):
        canvas = Image.new("RGB", (1024, 10))
        for row in range(10):
            for y in range(32):
                for x in range(32):
                    canvas.putpixel(
                        (32 * y + x, row), tuple(images[10 * batch + row, :, y, x].tolist())
                    )
        canvas.save(place / f"cifar10_batch_{batch}.png")
    np.save(place / "images.npy", images)
    write_labels(place, [i % 10 for i in range(30)])
    return place


def write_labels(folder, labels):
    (folder / "cifar10_labels.json").write_text(json.dumps({"labels": labels}))


def test_every_pixel_and_label_arrives(folder, tmp_path):
    path = convert(folder, tmp_path / "new" / "out", **SMALL)
    made, images = np.load(path), np.load(folder / "images.npy")
    assert made["x"].dtype == np.uint8 and np.array_equal(made["x"], images)
    assert made["labels"].tolist() == [i % 10 for i in range(30)] and made["sizes"].tolist() == [
        20,
        10,
    ]
    data = Packed(root=path.parent, valid=5).data()
    assert (len(data.train), len(data.valid)) == (15, 5) and np.array_equal(
        data.test.tensor.numpy(), images[20:]
    )
    assert data.labels["test"].tolist() == list(range(10)) and data.notes[0].endswith(
        "first 10 test images"
    )


def test_files_that_do_not_fit(folder, tmp_path):
    def refused(said):
        with pytest.raises(ValueError, match=said) as caught:
            convert(folder, tmp_path / "out", **SMALL)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    batch = folder / "cifar10_batch_1.png"
    pixels = Image.open(batch).copy()
    batch.unlink()
    refused("cifar10_batch_1.png .* there is no such file")
    pixels.crop((0, 0, 1024, 9)).save(batch)
    refused("cifar10_batch_1.png .* must be RGB of 1024×10 pixels, got RGB of 1024×9")
    pixels.convert("L").save(batch)
    refused("cifar10_batch_1.png .* got L of 1024×10")
    pixels.save(batch, "JPEG")  # JPEG would lose the levels
    refused("cifar10_batch_1.png cannot be read")
    pixels.save(batch)
    batch.write_bytes(batch.read_bytes()[:5000])
    refused("cifar10_batch_1.png cannot be read")
    pixels.save(batch)
    for labels, got in (
        ([0] * 29, "29"),
        ([0] * 29 + [10], "10 among them"),
        ([0] * 29 + ["a"], "a among"),
        ("a", "a"),
    ):
        write_labels(folder, labels)
        refused(f'cifar10_labels.json: "labels" must be 30 numbers 0 … 9, one an image, got {got}')
    (folder / "cifar10_labels.json").unlink()
    refused("cifar10_labels.json .* there is no such file")


def test_the_command_says_in_one_line_what_is_wrong(folder, tmp_path, capsys):
    assert main(Cifar10, [str(folder), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "must be 51,000 numbers 0 … 9, one an image, got 30" in shown and shown.count("\n") == 1
