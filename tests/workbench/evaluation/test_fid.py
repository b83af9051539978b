"""Scores by torch-fidelity: each against its formula on the same features, where pixels come from, what is kept."""

import hashlib
import importlib.util
import json
import os
import pickle

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from indm.files.plain import cache_folder
from indm.workbench.cli.main import main
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.extractor import SHA256, Extractor, general_features, train_extractor
from indm.workbench.evaluation.fid import (
    INCEPTION_FILE,
    INCEPTION_URL,
    Images,
    add_record,
    find_features,
    fit,
    inception_features,
    open_images,
    score,
    score_table,
)
from indm.workbench.evaluation.sample_quality import frechet_distance, kernel_distance
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.runs.samples import read_samples


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """Of a saved extractor, hardly trained."""
    folder = tmp_path_factory.mktemp("extractor")
    train_extractor(digits, epochs=2, most=400, progress=False).save(folder)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """torch-fidelity looks for its weights under this folder, and features are kept in one beside it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("INDM_DATA", str(tmp_path / "cache"))
    return tmp_path / "torch"


def images(raw, levels=17):
    return Images(raw, levels, {})


@pytest.fixture
def sets(digits, folder):
    """30 samples, 40 images of reference, and the features."""
    return images(stack(digits.test, 30)), images(stack(digits.train, 40)), find_features(folder)


def save_images(folder, raw, mode="L"):
    """Digits as files of 256 grey levels, in an order that sorting keeps."""
    folder.mkdir()
    for i, image in enumerate((raw[:, 0].double() * 255 / 16).round().byte().numpy()):
        Image.fromarray(image).convert(mode).save(folder / f"{i:04}.png")
    return folder


# ── Scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scored(digits, folder, tmp_path_factory):
    """A record, and the features and logits that it was made of, by the extractor itself."""
    samples, reference = stack(digits.test, 120), stack(digits.train, 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INDM_DATA", str(tmp_path_factory.mktemp("cache")))
        record = score(images(samples), images(reference), find_features(folder), progress=False)
    extractor = Extractor.load(folder)
    a, b = (extractor.features(raw) for raw in (samples, reference))
    with torch.no_grad():
        return record, a.double(), b.double(), extractor.head(a).double()


def test_frechet_and_kernel_distance_are_ours(scored):
    """Every subset of the kernel distance is all images."""
    record, a, b, _ = scored
    scores, expected = record["scores"], kernel_distance(a, b)
    assert scores["frechet_distance"] == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert record["settings"]["kid_subset_size"] == len(a) == len(b)
    assert scores["kernel_distance"] == pytest.approx(expected, rel=1e-6)
    assert scores["kernel_distance_std"] == pytest.approx(0, abs=1e-6 * abs(expected))


def test_inception_score_is_the_exponential_of_the_mutual_information(scored):
    record, _, _, logits = scored
    order = np.random.RandomState(record["settings"]["rng_seed"]).permutation(len(logits))
    p = logits.softmax(1).numpy()[order].reshape(record["settings"]["isc_splits"], -1, logits.shape[1])
    entropies = [-(q * np.log(q)).sum(-1) for q in (p.mean(1), p)]
    found = np.exp(entropies[0] - entropies[1].mean(1))
    assert record["scores"]["inception_score"] == pytest.approx(found.mean(), rel=1e-9)
    assert record["scores"]["inception_score_std"] == pytest.approx(found.std(), rel=1e-6)


def test_precision_and_recall_are_shares_within_the_third_neighbour(scored):
    record, a, b, _ = scored

    def share(points, others):
        """Of the points that lie in a ball of the others, each as large as the distance of its third neighbour."""
        radii = [sorted(np.linalg.norm(others - x, axis=1))[3] for x in others]
        inside = [(np.linalg.norm(others - x, axis=1) <= radii).any() for x in points]
        return np.mean(inside)

    a, b = a.numpy(), b.numpy()
    assert record["scores"]["precision"] == pytest.approx(share(a, b), abs=1e-6)
    assert record["scores"]["recall"] == pytest.approx(share(b, a), abs=1e-6)
    assert 0.2 < record["scores"]["recall"] < 1


def test_no_image_is_dropped_whatever_the_batches(digits, folder):
    """65 images are a batch of 64 and one more, which has its part in the mean."""
    raw = stack(digits.test, 65).clone()
    raw[64:] = 16
    features, extractor = find_features(folder), Extractor.load(folder)
    record = score(images(raw), images(stack(digits.train, 70)), features, progress=False)
    expected = frechet_distance(extractor.features(raw), extractor.features(stack(digits.train, 70)))
    assert record["scores"]["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert record["samples"]["images"] == 65 and record["reference"]["images"] == 70


@pytest.fixture
def seen(monkeypatch):
    """How many images the extractor is given, each time."""
    seen, forward = [], Extractor.features
    monkeypatch.setattr(Extractor, "features", lambda self, raw, **o: seen.append(len(raw)) or forward(self, raw, **o))
    return seen


def kept():
    (file,) = (cache_folder() / "features").iterdir()
    return file


def test_the_reference_is_seen_once(digits, sets, seen, home):
    """Its features are kept for its pixels and this extractor, and no other."""
    samples, _, features = sets
    first = score(*sets, progress=False)
    assert sorted(seen) == [30, 40] and kept().suffix == ".safetensors"
    again = score(*sets, progress=False)
    assert sorted(seen) == [30, 30, 40] and again == first
    score(samples, images(stack(digits.valid, 40)), features, progress=False)
    assert sorted(seen) == [30, 30, 30, 40, 40]
    assert not home.exists()


class Code:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


def test_a_pickle_where_features_are_kept_is_not_run(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score(*sets, progress=False)
    kept().write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r"safetensors cannot be read as weights"):
        score(*sets, progress=False)
    assert not (tmp_path / "run-by-a-pickle").exists()


def test_features_that_cannot_be_kept_cost_time_alone(sets, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    first = score(*sets, progress=False)
    monkeypatch.setenv("INDM_DATA", str(tmp_path / "file"))
    assert score(*sets, progress=False) == first


@pytest.mark.parametrize(
    ("change", "number", "complaint"),
    [
        (lambda raw: raw, 19, r"reference must be at least 20 images, .* got 19"),
        (lambda raw: raw.repeat(1, 1, 2, 2), 40, r"one shape, got \(1, 16, 16\) and \(1, 8, 8\)"),
        (lambda raw: raw.expand(-1, 2, -1, -1), 40, r"must have 1 channel\(s\) for the extractor, got 2"),
        (lambda raw: torch.cat([raw, raw, 16 - raw], 1), 40, r"must have 1 channel\(s\) for the extractor, got 3"),
    ],
)
def test_scores_check_their_images(change, number, complaint, digits, folder):
    raw = stack(digits.train, 40)
    with pytest.raises(ValueError, match=complaint):
        score(images(change(raw)), images(raw[:number]), find_features(folder), progress=False)


# ── Where images come from ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_is_its_data_set(digits, folder, tmp_path, mode):
    """Files of 256 levels, grey or grey in RGB, come back as the 17 levels that they were made of."""
    raw, features = stack(digits.test, 50), find_features(folder)
    read = open_images(save_images(tmp_path / "files", raw, mode))
    assert read.levels == 256 and read.raw.shape == (50, 3 if mode == "RGB" else 1, 8, 8)
    assert torch.equal(fit(read, features), raw)
    assert read.provenance["resize"] is None
    record = score(read, images(raw), features, progress=False)
    assert record["samples"]["pixels_sha256"] == record["reference"]["pixels_sha256"]
    assert record["scores"]["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert record["scores"]["precision"] == record["scores"]["recall"] == 1


def test_a_folder_is_resized_only_when_told(digits, tmp_path):
    folder = save_images(tmp_path / "files", stack(digits.test, 30))
    Image.fromarray(np.full((12, 10), 7, dtype=np.uint8)).save(folder / "other.png")
    with pytest.raises(ValueError, match=r"size must be given for .*: its images have sides of 8 to 12"):
        open_images(folder)
    read = open_images(folder, size=9, resize="bicubic")
    assert read.raw.shape == (31, 1, 9, 9) and bool((read.raw[-1] == 7).all())
    assert read.provenance["resize"]["size"] == [9, 9] and read.provenance["resize"]["mode"] == "bicubic"
    with pytest.raises(ValueError, match="unknown resize 'bicubik'; did you mean 'bicubic'"):
        open_images(folder, size=9, resize="bicubik")
    with pytest.raises(ValueError, match="n must be at most the 31 images"):
        read.first(32)
    assert len(read.first(20).raw) == 20 and len(read.first(None).raw) == 31
    whole = (folder / "0000.png").read_bytes()
    (folder / "0000.png").write_bytes(whole[: len(whole) - 30])  # its header is whole
    with pytest.warns(UserWarning, match="skipped 1 of 31 files"):
        rest = open_images(folder, size=9, resize="bicubic")
    assert torch.equal(rest.raw, read.raw[1:]) and "skipped 1 of 31 files" in " ".join(rest.provenance["notes"])


@pytest.mark.parametrize(("split", "parts"), [("train+valid", ["train", "valid"]), ("test", ["test"])])
def test_data_by_name(digits, split, parts):
    read = open_images("digits", split=split)
    assert torch.equal(read.raw, torch.cat([stack(getattr(digits, part)) for part in parts])) and read.levels == 17
    assert read.provenance["data"] == {"name": "digits"} and read.provenance["split"] == split
    assert any("split within classes by seed 0" in note for note in read.provenance["notes"])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("digitz", "no images are found by the name 'digitz'; did you mean 'digits'"),
        ("checkerboard", r"only images with grey levels can be scored, got events of shape \(2,\)"),
        ("none.npz", "none.npz cannot be read as samples that 'indm sample' wrote"),
        (".", "no readable images in '.'"),
    ],
)
def test_what_holds_no_images_says_so(source, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        open_images(source)


@pytest.mark.long
def test_general_features_need_no_labels_and_give_our_distance(digits):
    """Of 20 digits of 17 levels, which the network sees as RGB of 256."""
    raw = [stack(split, 20) for split in (digits.test, digits.train)]
    features = find_features("general")
    record = score(*map(images, raw), features, progress=False)
    network, seen = general_features(), [fit(images(part), features) for part in raw]
    expected = frechet_distance(*(network.features(part) for part in seen))
    assert record["scores"]["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert record["extractor"]["weights_sha256"] == SHA256 and "make no FID" in score_table(record)


# ── Inception ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_inception_weights_say_what_to_fetch(home, tmp_path):
    complaint = rf"fetch {INCEPTION_URL} \(96 MB, SHA-256 6726825d\w{{56}}\) and put it in {home}.*{INCEPTION_FILE}"
    with pytest.raises(ValueError, match=complaint):
        find_features("inception")
    with pytest.raises(ValueError, match=f"put it in {tmp_path}/mine.pth"):
        find_features(tmp_path / "mine.pth")
    (tmp_path / "mine.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"mine\.pth is not https://.*: its SHA-256 is \w{64}, not 6726825d"):
        find_features(tmp_path / "mine.pth")


def test_inception_scores_what_it_sees(digits, home, monkeypatch):
    """torch-fidelity's own network from a local file, here of random weights, on small copies of the images; the
    distance in its layer of 192 features, which is soon computed."""
    network = torch_fidelity.FeatureExtractorInceptionV3
    layers = {"isc": "logits_unbiased", "fid": "192", "kid": "192", "prc": "192"}
    monkeypatch.setattr(network, "INPUT_IMAGE_SIZE", 75)
    monkeypatch.setattr(network, "get_default_feature_layer_for_metric", staticmethod(layers.get))
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *a, **k: None)
        inside = network("inception-v3-compat", ["192"], feature_extractor_weights_path="none")
    file = home / "hub" / "checkpoints" / INCEPTION_FILE
    file.parent.mkdir(parents=True)
    torch.save(inside.state_dict(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr("indm.workbench.evaluation.fid.INCEPTION_SHA256", sha256)

    features = inception_features()
    samples, reference = images(stack(digits.test, 24)), images(stack(digits.train, 20))
    record = score(samples, reference, features, progress=False)
    assert record["extractor"]["weights_sha256"] == sha256 and "299×299" in record["extractor"]["input"]
    pixels = [(x.raw.double() * 255 / 16).round().byte().expand(-1, 3, -1, -1) for x in (samples, reference)]
    with torch.no_grad():
        expected = frechet_distance(*(inside(x)[0] for x in pixels))
    assert expected > 0 and record["scores"]["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    assert record["samples"]["pixels_sha256"] == hashlib.sha256(pixels[0].contiguous().numpy()).hexdigest()
    assert "FID " in score_table(record) and "no FID" not in score_table(record)


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = "--flow identity --net.channels=4 --net.blocks=1 --net.attention=[] --train.steps=2 --train.seconds=inf"
    assert main(["train", "digits", *small.split(), "--out", str(folder), "--quiet"]) == 0
    return folder


def test_scores_of_a_run_with_their_provenance(run, folder, tmp_path, digits, monkeypatch, capsys):
    def scored(*arguments):
        line = ["fid", str(run), "--extractor", str(folder), "-n", "30", "--out", str(tmp_path), "--quiet"]
        assert main([*line, "--steps", "2", "--overwrite", *arguments]) == 0
        return json.loads((tmp_path / "fid.json").read_text())["records"]

    (record,) = scored("--temperature", "1.05")
    shown = capsys.readouterr().out
    assert "30 samples, 1437 reference; features of indm-extractor, which make no FID" in shown
    assert f"frechet distance     {record['scores']['frechet_distance']:.5g}\n" in shown
    drawn = record["samples"]["drawn"]
    assert drawn["temperature"] == 1.05 and drawn["sampler"] == "unipc" and drawn["seed"] == 0 and drawn["steps"] == 2
    assert drawn["weights_sha256"] == weights_hash(run) and drawn["last_denoising"] and drawn["eps"] == 1e-3
    assert record["samples"]["images"] == 30 and record["samples"]["levels"] == 17
    assert record["reference"]["split"] == "train+valid" and record["reference"]["images"] == 1257 + 180
    saved = Extractor.load(folder).provenance
    assert record["extractor"]["weights_sha256"] == saved["weights_sha256"] and record["extractor"]["epochs"] == 2
    assert record["versions"]["torch_fidelity"] == torch_fidelity.__version__
    made_by = record["provenance"]
    assert made_by["seed"] == 0 and made_by["weights_sha256"] == {str(run): weights_hash(run)}
    assert {"indm", "torch", "python", "git", "command", "device", "threads"} <= made_by.keys()
    samples = read_samples(tmp_path / "samples.npz")[0]
    assert record["samples"]["pixels_sha256"] == hashlib.sha256(samples.numpy()).hexdigest()

    assert len(scored()) == 2  # beside that of temperature 1.05, and once however often
    records = scored("--split", "test")
    monkeypatch.setattr("sys.argv", ["another", "command"])
    again = scored("--split", "test")
    assert len(records) == 3 and again[2]["provenance"]["command"] == ["another", "command"]
    assert [r | {"provenance": 0} for r in again] == [r | {"provenance": 0} for r in records]
    assert main(["fid", str(run), "--extractor", str(folder), "-n", "30", "--out", str(tmp_path), "--quiet"]) == 2
    assert "already holds samples.json, samples.npz: add --overwrite" in capsys.readouterr().err
    assert [r["samples"]["drawn"]["temperature"] for r in records] == [1.05, 1.0, 1.0]
    assert records[2]["reference"]["images"] == len(digits.test)


def test_scores_of_files(run, folder, tmp_path, digits, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), "-n", "25", "--steps", "2", "--out", "drawn", "--quiet"]) == 0
    save_images(tmp_path / "files", stack(digits.train, 40))
    line = ["--extractor", str(folder), "--quiet"]
    assert main(["fid", "drawn/samples.npz", "--reference", "digits", *line]) == 0
    assert main(["fid", "files", "--reference", "files", "-n", "30", *line]) == 0
    assert main(["fid", "digits", "--reference", str(run), "--split", "train", *line]) == 0
    records = json.loads((tmp_path / "fid.json").read_text())["records"]
    assert records[0]["samples"]["drawn"]["n"] == 25 and records[0]["samples"]["file"] == "drawn/samples.npz"
    assert (records[1]["samples"]["images"], records[1]["reference"]["images"]) == (30, 40)
    assert (records[2]["samples"]["split"], records[2]["reference"]["split"]) == ("test", "train")
    assert records[2]["scores"]["frechet_distance"] < records[0]["scores"]["frechet_distance"]


def test_an_extractor_is_trained_where_there_is_none(tmp_path, digits, monkeypatch):
    made = []

    def train(folder, data, progress):
        made.append(data.name)
        extractor = train_extractor(data, epochs=1, most=200, progress=False)
        extractor.save(folder)
        return extractor

    monkeypatch.setattr("indm.workbench.evaluation.fid.load_or_train", train)
    for _ in range(2):
        features = find_features(tmp_path / "new", digits, progress=False)
    assert made == ["digits"] and features.provenance["train_images"] == 200
    with pytest.raises(ValueError, match="holds no saved extractor"):
        find_features(tmp_path / "none", None, progress=False)


@pytest.fixture
def unread(run, folder, monkeypatch, capsys):
    """What the command says before it has read any image."""
    monkeypatch.setattr("indm.workbench.evaluation.fid.open_images", lambda *_, **__: pytest.fail("images were read"))

    def said(out):
        assert main(["fid", str(run), "--extractor", str(folder), "--out", str(out), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return said


@pytest.mark.parametrize("text", ["[1]", "5", "{", '{"x": 1}', '{"records": [1]}', '{"records": 5}', '{"records": {}}'])
def test_a_damaged_record_is_said_before_anything_is_computed(unread, text, tmp_path):
    (tmp_path / "fid.json").write_text(text)
    assert f"{tmp_path / 'fid.json'}" in unread(tmp_path)
    with pytest.raises(ValueError, match=r"fid\.json"):
        add_record({}, tmp_path / "fid.json")
    assert (tmp_path / "fid.json").read_text() == text


def test_a_place_where_nothing_can_be_written_is_said_before_anything_is_computed(unread, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{tmp_path / 'file'}: it is no folder" in unread(out)
    (tmp_path / "fid.json").mkdir()
    assert "fid.json cannot be read as JSON: it is no file" in unread(tmp_path)


def test_a_reference_of_too_few_images_is_said_before_samples_are_drawn(run, folder, digits, tmp_path, capsys):
    few = save_images(tmp_path / "few", stack(digits.test, 19))
    line = ["fid", str(run), "--reference", str(few), "--extractor", str(folder), "--out", str(tmp_path), "--quiet"]
    assert main(line) == 2
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
        open_images(tmp_path / "samples.npz")
    content = {"samples": SAMPLES, "levels": 17, "provenance": np.frombuffer(made_by.encode(), np.uint8)}
    np.savez(tmp_path / "samples.npz", **content)
    assert open_images(tmp_path / "samples.npz").provenance["drawn"] == json.loads(made_by)


def test_mistakes_are_one_line(run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    extractor = ("--extractor", folder)

    def fails(*arguments):
        capsys.readouterr()
        assert main(["fid", *map(str, arguments), "--quiet"]) == 2
        return capsys.readouterr().err

    assert "no Inception weights" in fails(run) and not (run / "samples.npz").exists()
    assert "--steps is for samples that are drawn from a run, and digits is no run" in fails("digits", "--steps", 3)
    assert "--reference must be given for digits, which is no run folder" in fails("digits")
    assert "n must be at least 1, got -5" in fails("digits", "--reference", "digits", "-n", -5)
    assert "n must be at least 20 images" in fails(run, "-n", 19) and not (run / "samples.npz").exists()
    assert "n must be at most the 360 images" in fails("digits", "--reference", "digits", "-n", 361, *extractor)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "indm fid needs the library torch-fidelity: pip install torch-fidelity" in fails(run)
