"""Translations with known answers: controls against closed forms, marks by counts, and a study of
seconds.
"""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from research.data.unpaired import write
from research.lab import costs, extractor
from research.pages import of
from research.records import Records
from research.translation import answers
from research.translation.answers import colours_transferred, histogram_matched, pixels_of
from research.translation.metrics import recall


def images(n, seed, mean=128.0, spread=20.0):
    """Normal colours with correlated channels, whole levels."""
    noise = np.random.default_rng(seed).normal(size=(n, 3, 24, 24))
    noise[:, 1] = 0.8 * noise[:, 0] + 0.6 * noise[:, 1]
    return torch.from_numpy((mean + spread * noise).round().clip(0, 255).astype(np.uint8))


def test_the_histogram_of_the_result_is_that_of_b_and_order_is_kept():
    a, b = images(20, 0), images(20, 1, 90, 10)
    b[:, 2] = 255 - b[:, 2] // 2
    result = histogram_matched(a, a, b)
    for channel in range(3):
        x, y, wanted = (set_[:, channel].flatten().double() for set_ in (a, result, b))
        for share in (0.02, 0.25, 0.5, 0.75, 0.98):
            assert y.quantile(share) == pytest.approx(wanted.quantile(share).item(), abs=1.5)
        assert (y[x.argsort()].diff() >= 0).all()
    same = histogram_matched(a, a, a)
    assert (same.double() - a.double()).abs().mean() < 0.2


def test_colours_are_transferred_by_the_optimal_map_of_gaussians():
    a, b = images(20, 0), images(20, 1, 90, 10)
    b[:, 2] = b[:, 0] // 2 + 40
    result = pixels_of(colours_transferred(a, a, b))
    np.testing.assert_allclose(result.mean(0), pixels_of(b).mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(result.T), np.cov(pixels_of(b).T), atol=2)
    cov_a, cov_b = (np.cov(pixels_of(x).T) for x in (a, b))
    root = sqrtm(cov_a).real
    matrix = np.linalg.inv(root) @ sqrtm(root @ cov_b @ root).real @ np.linalg.inv(root)
    expected = (pixels_of(a) - pixels_of(a).mean(0)) @ matrix.T + pixels_of(b).mean(0)
    np.testing.assert_allclose(result, expected, atol=0.51)
    grey = torch.tensor([[[[0, 100], [200, 50]]]], dtype=torch.uint8)
    twice = colours_transferred(grey, grey, grey // 2 + 10)
    torch.testing.assert_close(twice, grey // 2 + 10)


def test_a_share_is_found_again_by_a_count():
    truth = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    result = truth + 0.8 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    apart = np.linalg.norm(result[:, None] - truth[None], axis=2)
    ranks = np.array([np.argsort(row).tolist().index(i) for i, row in enumerate(apart)])
    found = recall(result, truth)
    for k in (1, 5):
        assert (
            found[f"recall_{k}"] == pytest.approx((ranks < k).mean())
            and 0 < found[f"recall_{k}"] < 1
        )


class Bright(extractor.FeatureNetwork):
    """Class 1 for bright images; the features are two pixels."""

    batch_size, provenance = 8, {"test_accuracy": 1.0, "test_accuracy_standard_error": 0.0}

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 2)
        self.head.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        self.head.bias.data = torch.tensor([256.0, 0.0])

    def compute(self, raw):
        return raw[:, 0, 0, :2].float()


def test_marks_of_the_truth_and_of_a_shift():
    dark, bright = images(30, 0, 60), images(30, 1, 200)
    exam = answers.Exam(dark, bright, Bright(), Bright())
    best, shifted = exam.marks(bright), exam.marks(bright - 8)
    assert (
        best["rmse"] == 0
        and best["pixels_recall_1"] == 1
        and best["taken"] == 1
        and best["images"] == 30
    )
    assert shifted["rmse"] == pytest.approx(8) and shifted["rmse_levels"] == pytest.approx([8] * 30)
    copy = exam.marks(dark)
    assert (
        copy["taken"] == 0
        and copy["rmse"] == pytest.approx(np.mean(copy["rmse_levels"]))
        and copy["rmse"] > 100
    )
    assert copy["features_recall_5"] < 1


def test_the_table_has_both_errors_and_the_family_the_better_control(tmp_path):
    made = Records(tmp_path / "answers.csv")
    here = made.at(data="goldenpunks")
    one = {"taken": 0.5, "taken_standard_error": 0.0, "cpu_seconds": 120.0}
    for seed, rmse in enumerate(([10.0, 12.0], [11.0, 15.0])):
        row = {"rmse": sum(rmse) / 2, "rmse_standard_error": 3.0, "rmse_levels": rmse}
        here.at(method="indm", seed=seed).add(one | row)
        here.at(method="linear", seed=seed).add(
            one | row | {"rmse_levels": [r + 2 + seed for r in rmse]}
        )
    for method, level in (("source", 40.0), ("histogram", 20.0), ("colours", 30.0)):
        here.at(method=method, seed=0).add(
            one | {"rmse": level, "rmse_standard_error": 1.0, "rmse_levels": [level] * 2}
        )
    rows = [line.strip("| ").split(" | ") for line in answers.table(here).splitlines()]
    assert rows[2][:4] == ["two INDMs", "2", "2.0", f"12 ± {np.hypot(1, 3):.1g}"]
    assert rows[4][:4] == ["source as it is", "1", "0.0", "40 ± 1"] and rows[4][-1] == "–"
    linear, control = (
        line.strip("| ").split(" | ") for line in answers.family_table(made).splitlines()[2:]
    )
    assert linear[:4] == ["goldenpunks", "two INDMs − two linear diffusions", "2", "-2.50 ± 0.50"]
    assert control[1] == "two INDMs − best control" and control[3].startswith("-8.00")
    assert answers.family_table(of("nothing")).count("\n") == 1


@pytest.fixture
def drawings(tmp_path):
    """A folder of unpaired faces: every face in B is a face of A with other colours."""
    styles = {
        "punks": images(40, 0),
        "goldenpunks": images(40, 0).flip(1),
        "halloweenpunks": 255 - images(40, 0),
    }
    pictures = {
        style: [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in each]
        for style, each in styles.items()
    }
    write(tmp_path / "faces", [f"{i:02}" for i in range(40)], pictures, 8)
    return tmp_path / "faces"


@pytest.mark.filterwarnings("ignore:the run ended after")
def test_a_study_goes_on_where_it_stopped(drawings, tmp_path, monkeypatch, capsys):
    small = {
        "net.channels": 8,
        "net.multipliers": [1],
        "net.attention": [],
        "flow.width": 8,
        "train.batch_size": 4,
    }
    monkeypatch.setattr(answers, "ALIKE", answers.ALIKE | small)
    monkeypatch.setattr(answers, "EVALUATIONS", 4)
    monkeypatch.setattr(answers, "general_features", Bright)
    monkeypatch.setattr(answers, "load_or_train", lambda folder, data, progress: Bright())
    monkeypatch.setattr(costs, "ROUNDS", 4)
    words = [
        "answers",
        "punks",
        str(drawings),
        "--out",
        str(tmp_path / "runs"),
        "--records",
        str(tmp_path / "records"),
    ]
    monkeypatch.setattr(sys, "argv", ["x", *words, "--steps", "2", "--seeds", "1"])
    answers.main()
    said = capsys.readouterr().out
    made = Records(tmp_path / "records" / "translation-answers.csv")
    assert len(made.rows()) == 2 * len(answers.METHODS) and "| one bridge | 1 |" in said
    cycles = {row["method"]: "cycle" in row for row in made.rows()}
    assert cycles == {method: method in ("indm", "linear", "bridge") for method in answers.METHODS}
    runs = sorted(
        path.name for path in (tmp_path / "runs" / "punks" / "runs").iterdir() if path.is_dir()
    )
    assert runs == sorted(
        [
            f"{kind}-{style}-0"
            for kind in ("indm", "linear")
            for style in ("punks", "goldenpunks", "halloweenpunks")
        ]
        + [f"bridge-punks-{style}-0" for style in ("goldenpunks", "halloweenpunks")]
    )
    assert (tmp_path / "runs" / "punks" / "goldenpunks.png").exists()
    monkeypatch.setattr(answers, "translated", None)  # what has a row is not made again
    answers.main()


def test_pairs_are_of_one_name(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "load_or_train", lambda folder, data, progress: Bright())
    next((drawings / "goldenpunks-test").iterdir()).unlink()
    lab = answers.Lab(answers.STUDIES["punks"][0], drawings, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="files of the same names"):
        answers.exam_of(lab)
