"""Scores by torch-fidelity: each against its formula on the same features, where pixels come from, what is kept."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from PIL import Image

from indm.workbench.cli.main import main
from indm.workbench.data.base import load_data, stack
from indm.workbench.evaluation.fid import Images, as_inception_takes, open_images, score, score_table
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.runs.samples import read_samples

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

PROJECTION = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features(raw):
    """Six random projections of digits."""
    return raw.double().flatten(1) @ PROJECTION


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def images(raw, levels=17):
    return Images(raw, levels, {})


def save_images(folder, raw, mode="L"):
    """Digits as files of 256 grey levels, in an order that sorting keeps."""
    folder.mkdir()
    for i, image in enumerate((raw[:, 0].double() * 255 / 16).round().byte().numpy()):
        Image.fromarray(image).convert(mode).save(folder / f"{i:04}.png")
    return folder


# ── Scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_distance_is_that_of_frechet(digits):
    """Of 65 images, which are a batch of 64 and one more."""
    samples, reference = stack(digits.test, 65).clone(), stack(digits.train, 65)
    samples[64:] = 16
    record = score(images(samples), images(reference), features, progress=False)
    a, b = (features(raw).numpy() for raw in (samples, reference))
    covariances = [np.cov(x.T) for x in (a, b)]
    cross = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * cross)
    assert record["scores"]["frechet_inception_distance"] == pytest.approx(wanted, rel=1e-5)
    assert "isc" not in " ".join(record["scores"]) and "which make no FID" in score_table(record)


@pytest.mark.parametrize(
    ("samples", "reference", "complaint"),
    [
        (torch.zeros(19, 1, 8, 8), torch.zeros(30, 1, 8, 8), "samples must be at least 20 images"),
        (torch.zeros(30, 1, 8, 8), torch.zeros(19, 1, 8, 8), "reference must be at least 20 images"),
        (torch.zeros(30, 1, 8, 8), torch.zeros(30, 1, 9, 8), r"got \(1, 8, 8\) and \(1, 9, 8\); resize a folder"),
    ],
)
def test_scores_check_their_images(samples, reference, complaint):
    with pytest.raises(ValueError, match=complaint):
        score(images(samples), images(reference), features, progress=False)


def test_inception_sees_colours_of_256_levels():
    seen = as_inception_takes(images(torch.tensor([0, 1, 16]).reshape(3, 1, 1, 1)))
    assert seen.dtype == torch.uint8 and seen.tolist() == [[[[v]]] * 3 for v in (0, 16, 255)]
    with pytest.raises(ValueError, match="of 1 or 3 channels for Inception, got 2"):
        as_inception_takes(images(torch.zeros(3, 2, 1, 1)))


# ── Where images come from ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_resized_only_when_told(digits, tmp_path):
    folder = save_images(tmp_path / "files", stack(digits.test, 30))
    Image.fromarray(np.full((12, 10), 7, dtype=np.uint8)).save(folder / "other.png")
    with pytest.raises(ValueError, match=r"size must be given for .*: its images have sides of 8 to 12"):
        open_images(folder)
    read = open_images(folder, size=9)
    assert read.raw.shape == (31, 1, 9, 9) and bool((read.raw[-1] == 7).all())
    assert read.provenance["resized"] == [9, 9]
    whole = (folder / "0000.png").read_bytes()
    (folder / "0000.png").write_bytes(whole[: len(whole) - 30])  # its header is whole
    with pytest.warns(UserWarning, match="skipped 1 of 31 files"):
        rest = open_images(folder, size=9)
    assert torch.equal(rest.raw, read.raw[1:]) and "skipped 1 of 31 files" in " ".join(rest.provenance["notes"])


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────

FEATURES = ("--features", "test_fid:features", "--quiet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = "--flow identity --net.channels=4 --net.blocks=1 --net.attention=[] --train.steps=2 --train.seconds=inf"
    assert main(["train", "digits", *small.split(), "--out", str(folder), "--quiet"]) == 0
    return folder


def test_scores_of_a_run_with_their_provenance(run, tmp_path, capsys):
    line = ["fid", str(run), "-n", "30", "--steps", "2", "--temperature", "1.05", "--out", str(tmp_path), *FEATURES]
    assert main(line) == 0
    record = json.loads((tmp_path / "fid.json").read_text())
    shown = capsys.readouterr().out
    assert "30 samples, 1437 reference; features of test_fid:features, which make no FID" in shown
    assert f"{record['scores']['frechet_inception_distance']:.5g}\n" in shown
    drawn = record["samples"]["drawn"]
    assert drawn["temperature"] == 1.05 and drawn["sampler"] == "unipc" and drawn["seed"] == 0 and drawn["steps"] == 2
    assert record["samples"]["images"] == 30 and record["samples"]["levels"] == 17
    assert record["reference"]["split"] == "train+valid" and record["reference"]["images"] == 1257 + 180
    assert record["torch_fidelity"] == torch_fidelity.__version__
    made_by = record["provenance"]
    assert made_by["seed"] == 0 and made_by["weights_sha256"] == {str(run): weights_hash(run)}
    samples = read_samples(tmp_path / "samples.npz")[0]
    assert record["samples"]["pixels_sha256"] == hashlib.sha256(samples.numpy()).hexdigest()
    assert main(line) == 2 and "already holds fid.json (--overwrite)" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0


@pytest.mark.parametrize(("split", "parts"), [("train+valid", ["train", "valid"]), ("test", ["test"])])
def test_a_run_stands_for_its_data(run, digits, split, parts):
    read = open_images(run, split=split)
    assert torch.equal(read.raw, torch.cat([stack(getattr(digits, part)) for part in parts])) and read.levels == 17
    assert read.provenance["data"]["name"] == "digits" and read.provenance["split"] == split
    assert any("split within classes by seed 0" in note for note in read.provenance["notes"])


def test_scores_of_files(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "files", stack(digits.train, 40))
    assert main(["fid", "files", "--reference", "files", *FEATURES, "--overwrite"]) == 0
    record = json.loads((tmp_path / "fid.json").read_text())
    assert (record["samples"]["images"], record["reference"]["images"]) == (40, 40)
    assert record["scores"]["frechet_inception_distance"] == pytest.approx(0, abs=1e-3)
    assert record["provenance"]["weights_sha256"] == {}


def test_a_reference_of_too_few_images_is_said_before_samples_are_drawn(run, digits, tmp_path, capsys):
    few = save_images(tmp_path / "few", stack(digits.test, 19))
    assert main(["fid", str(run), "--reference", str(few), "--out", str(tmp_path), *FEATURES]) == 2
    assert "reference must be at least 20 images" in capsys.readouterr().err and not (tmp_path / "samples.npz").exists()


SAMPLES = np.zeros((30, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"provenance": "[1]"}, 'its provenance must be an object with a "weights_sha256"'),
        ({"provenance": '"abc"'}, "its provenance must be an object"),
        ({"provenance": '{"x": 1}'}, "its provenance must be an object"),
        ({"provenance": '{"weights_sha256": 1}'}, "its provenance must be an object"),
        ({"provenance": '{"weights_sha256": "a", "tol": NaN}'}, "not JSON compliant"),
        ({"provenance": "{"}, "Expecting property name"),
        ({"levels": 1}, "its levels must be one whole number, 2 or more, or 0 for none, got 1"),
        ({"levels": -17}, "or 0 for none, got -17"),
        ({"levels": [17, 17]}, r"or 0 for none, got \[17 17\]"),
        ({"levels": 16.5}, r"or 0 for none, got 16\.5"),
        ({"samples": SAMPLES + 17}, "its samples must be whole numbers from 0 to 16"),
        ({"samples": SAMPLES - 1.0}, "its samples must be whole numbers from 0 to 16"),
    ],
)
def test_samples_that_are_not_what_they_should_be(changes, complaint, tmp_path):
    made_by = '{"weights_sha256": "a", "seed": 3}'
    content = {"samples": SAMPLES, "levels": 17, "provenance": made_by} | changes
    content["provenance"] = np.frombuffer(content["provenance"].encode(), np.uint8)
    np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(ValueError, match=rf"samples\.npz cannot be read as samples .*{complaint}"):
        read_samples(tmp_path / "samples.npz")
    content = {"samples": SAMPLES, "levels": 17, "provenance": np.frombuffer(made_by.encode(), np.uint8)}
    np.savez(tmp_path / "samples.npz", **content)
    assert read_samples(tmp_path / "samples.npz")[2] == json.loads(made_by)


def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fails(*arguments):
        capsys.readouterr()
        assert main(["fid", *map(str, arguments), "--quiet"]) == 2
        return capsys.readouterr().err

    files = save_images(tmp_path / "files", torch.zeros(30, 1, 8, 8))
    (tmp_path / "none").mkdir()
    assert f"--steps is for samples drawn from a run, and {files} is not a run" in fails(files, "--steps", 3)
    assert f"--reference must be given for {files}, which is not a run folder" in fails(files)
    assert "--n is for samples drawn from a run" in fails(files, "--reference", files, "-n", 300)
    assert "no readable images in 'none'" in fails("none", "--reference", files)
    assert "must be a run folder or a folder of images, got 'digits'" in fails(files, "--reference", "digits")
    assert "n must be at least 20 images" in fails(run, "-n", 19) and not (run / "samples.npz").exists()
    assert "features must be inception or package.module:function" in fails(run, "--features", "incepsion")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "indm fid needs the library torch-fidelity: pip install torch-fidelity" in fails(run)
