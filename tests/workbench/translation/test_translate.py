"""Files translated between two data sets, through the command line as a user goes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from toys import BY_COUPLING, SMALL, error_of, framed, pixels, toy_folder

from indm.flows import ActNorm
from indm.model import INDM, build_model
from indm.scaling import Scaling
from indm.translation import sdedit, two_models
from indm.workbench.cli.main import main
from indm.workbench.data.base import load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TranslationOptions
from indm.workbench.runs.devices import make_accelerator
from indm.workbench.runs.folder import open_run, read_metrics
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.training.pairs import as_bridge, as_one
from indm.workbench.training.parts import read
from indm.workbench.training.trainer import Trainer
from indm.workbench.translation.routes import TranslationRuns, find_items, open_runs
from indm.workbench.translation.translate import summary, translate_files

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    home = tmp_path_factory.mktemp("toys")
    return toy_folder(home / "red", (250, 40, 20)), toy_folder(home / "blue", (20, 60, 240), seed=1)


@pytest.fixture(scope="module")
def trained(toys, tmp_path_factory):
    """A pair, a bridge, and one model of both of the two folders, of a few steps."""
    home = tmp_path_factory.mktemp("runs")
    folders = [str(folder) for folder in toys]
    options = [
        "--data.size",
        "8",
        "--train.steps",
        "2",
        "--train.batch_size",
        "8",
        *SMALL,
        "--quiet",
    ]
    assert main(["train-pair", *folders, "--out", str(home / "pair"), *options]) == 0
    assert (
        main(["train-bridge", *folders, *BY_COUPLING, "--out", str(home / "bridge"), *options]) == 0
    )
    assert main(["train-bridge", *folders, "--out", str(home / "one"), *options]) == 0
    return home


@pytest.fixture(scope="module")
def few(toys):
    """A pattern of the first four images of A."""
    return toys[0] / "*-0[0-3].png"


def translated(runs, sources, out, *options, status=0):
    """Run the command; its report."""
    runs, sources = (
        value if isinstance(value, list | tuple) else [value] for value in (runs, sources)
    )
    line = ["translate", *runs, *sources, "--out", out, *options, "--quiet"]
    assert main([str(word) for word in line]) == status
    return json.loads((out / "translation.json").read_text())


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pair_is_two_ordinary_runs_that_differ_in_their_data(trained, toys):
    a, b = (recipes.load(trained / "pair" / side) for side in "ab")
    assert recipes.differing_keys(a, b) == ["data.path"]
    assert (a["data"]["path"], b["data"]["path"]) == tuple(map(str, toys)) and a["data"][
        "size"
    ] == 8
    assert a["train"]["terminal"] == 0 and "data_b" not in a
    assert (
        main(
            [
                "evaluate",
                str(trained / "pair" / "b"),
                "--quiet",
                "--examples",
                "2",
                "--nll-examples",
                "0",
            ]
        )
        == 0
    )


def test_a_bridge_logs_both_of_its_terms(trained):
    lines = read_metrics(trained / "bridge")
    assert any("terminal" in line for line in lines)
    summary = json.loads((trained / "bridge" / "summary.json").read_text())
    model, recipe = open_run(trained / "bridge")
    second = load_data(**recipe["data_b"])
    assert {"valid_nelbo", "valid_terminal"} <= summary.keys() and len(second.valid) == 2
    # Independent of the trainer: −log p of B's validation images under h and N(0, I), at the middle
    # of their levels.
    x = model.scaling.centre(torch.stack([second.valid[i] for i in range(2)]))
    z, log_det = model.encode(x)
    nats = 0.5 * (z.square() + np.log(2 * np.pi)).flatten(1).sum(1) - log_det
    bits = np.log2(128) + nats.mean().item() / (3 * 8 * 8 * np.log(2))
    assert summary["valid_terminal"] == pytest.approx(bits, abs=0.02)


# ── Translating ───────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_translated_name_by_name(trained, toys, tmp_path, capsys):
    out = tmp_path / "out"
    report = translated(trained / "pair", toys[0], out, "--cycle", "--steps", 60)
    names = sorted(path.name for path in toys[0].iterdir())
    assert sorted(path.name for path in out.glob("*.png")) == sorted([*names, "sheet.png"])
    assert sorted(path.name for path in (out / "cycle").iterdir()) == names
    assert [row["name"] for row in report["examples"]] == [
        name[:-4] for name in names
    ] and not report["failed"]
    assert max(row["cycle_error_max"] for row in report["examples"]) < 0.5
    for row in report["examples"]:
        source, result = pixels(row["source"]), pixels(out / f"{row['name']}.png")
        assert row["distance_rms"] == pytest.approx(np.sqrt(((source - result) ** 2).mean()))
        assert np.array_equal(pixels(out / "cycle" / f"{row['name']}.png"), source)
    sheet = framed(pixels(out / "sheet.png"), side=8)
    assert len(sheet) == 6
    # source, result and back again below one another
    for band, shown in enumerate((names[:12], names[12:])):
        for row, folder in enumerate((toys[0], out, out / "cycle")):
            assert len(sheet[3 * band + row]) == 12
            for frame, name in zip(sheet[3 * band + row], shown, strict=True):
                assert np.array_equal(frame, pixels(folder / name))
    sides = [trained / "pair" / side for side in "ab"]
    assert report["models"] == [str(side) for side in sides]
    assert report["provenance"]["weights_sha256"] == {
        str(side): weights_hash(side) for side in sides
    }
    shown = capsys.readouterr().out
    assert "24 translated" in shown
    largest = max(row["cycle_error_max"] for row in report["examples"])
    assert (
        f" of 256 grey levels (RMS, mean over examples), error of the cycle at most {largest:.3g} of 256"
        in shown
    )
    report["examples"][0]["cycle_error_max"] = 130.4
    assert "at most 130 of 256 grey levels (more steps make it smaller), " in summary(report)


@pytest.mark.parametrize("kind", ["pair", "bridge", "two runs", "one"])
def test_backward_undoes_forward(kind, trained, toys, tmp_path):
    folders = (
        [trained / "pair" / "a", trained / "pair" / "b"] if kind == "two runs" else [trained / kind]
    )
    model, recipe = open_run(folders[0] / "a" if kind == "pair" else folders[0])
    images = [item.read()[0] for item in find_items([toys[0]], model, recipe["data"])][:4]
    x = model.scaling.centre(torch.stack(images))
    there, back = (
        open_runs(folders, direction).route(steps=60) for direction in ("forward", "backward")
    )
    assert (back.follow(there.follow(x).x).x - x).abs().max() * 128 < 0.5
    if kind != "one":
        assert open_runs(folders, "backward").data["path"] == str(toys[1])


def test_one_model_of_two_folders_knows_them_as_classes_in_their_order(
    trained, toys, few, tmp_path
):
    """ "red" comes after "blue" in the alphabet, and forward is from red to blue."""
    opened, back = (
        open_runs([trained / "one"], direction) for direction in ("forward", "backward")
    )
    assert opened.classes == ("red", "blue") and back.classes == ("blue", "red")
    assert open_runs([trained / "one"], classes=("1", "red")).classes == ("blue", "red")
    assert opened.models[0] is opened.models[1] and opened.models[0].condition.labels == (
        "red",
        "blue",
    )
    report = translated(trained / "one", few, tmp_path / "out", "--cycle", "--steps", 60)
    assert (
        len(report["examples"]) == 4
        and max(row["cycle_error_max"] for row in report["examples"]) < 0.5
    )
    assert (
        main(
            ["evaluate", str(trained / "one"), "--examples", "2", "--nll-examples", "0", "--quiet"]
        )
        == 0
    )


def test_one_model_of_two_sets_of_labels_and_what_cannot_be_one(capsys, tmp_path):
    recipe = as_one(recipes.load("digits-3-8"))
    assert recipe["data"]["label"] == [3, 8] and recipe["condition"]["name"] == "classes"
    assert "data_b" not in recipe and "terminal" not in recipe["train"]
    assert load_data(**recipe["data"]).classes == ("3", "8")
    error = error_of(
        capsys, "train-bridge", "digits-3-8", "--data-b.limit", "9", "--out", tmp_path / "none"
    )
    assert "must be two folders or two labels of one data set for one model of both" in error
    assert "differ in that alone, got ['label', 'limit'] of 'digits'" in error
    arrays = {
        "data": {"name": "array", "path": "a.npy"},
        "data_b": {"name": "array", "path": "b.npy"},
    }
    with pytest.raises(ValueError, match=r"got \['path'\] of 'array'"):
        as_one(recipes.load("digits") | arrays)


def test_errors_of_the_cycle_are_those_of_a_route_that_is_followed(trained, few, tmp_path):
    """Before and after rounding, at a strength at which they are large."""
    rows = translated(trained / "pair", few, tmp_path, "--cycle", "--strength", 0.6, "--steps", 6)[
        "examples"
    ]
    raw = torch.stack([torch.from_numpy(pixels(row["source"])).permute(2, 0, 1) for row in rows])
    x = (raw + 0.5) / 128 - 1
    there = two_models(*open_runs([trained / "pair"]).models, strength=0.6, steps=6)
    back = there.back().follow(there.follow(x).x).x
    rounded = (128 * (back + 1)).floor().clamp(0, 255) - raw
    for key, errors in {
        "cycle_error_max": 128 * (back - x),
        "cycle_error_rounded": rounded,
    }.items():
        expected = errors.flatten(1).abs().amax(1).tolist()
        assert [row[key] for row in rows] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert min(row["cycle_error_max"] for row in rows) > 0


def test_files_patterns_and_arrays_are_taken(trained, toys, tmp_path):
    names = sorted(path.name for path in toys[0].iterdir())
    array = np.stack([np.asarray(Image.open(toys[0] / name)) for name in names[:5]])
    np.savez(tmp_path / "many.npz", samples=array.transpose(0, 3, 1, 2), levels=256)
    np.save(tmp_path / "last.npy", array)
    out = tmp_path / "out"
    sources = [
        tmp_path / "many.npz",
        tmp_path / "last.npy",
        toys[0] / names[0],
        toys[0] / "*-0[12].png",
    ]
    translated(trained / "pair", sources, out, "--steps", 8, "--batch-size", 3)
    one = pixels(out / names[0])
    for name in ("many", "last"):
        with np.load(out / f"{name}.npz") as content:
            assert content["samples"].shape == (5, 3, 8, 8) and content["levels"] == 256
            assert content["rows"].tolist() == [0, 1, 2, 3, 4]
            assert abs(content["samples"][0].transpose(1, 2, 0).astype(int) - one).max() <= 1
    assert sorted(path.name for path in out.glob("2*.png")) == names[:3]
    # what comes out goes in
    translated(trained / "pair", out / "many.npz", tmp_path / "again", "--steps", 4)


@pytest.mark.parametrize(
    ("kind", "options"), [("pair", ["--stochastic", "--strength", "0.5"]), ("bridge", [])]
)
def test_the_same_seed_gives_the_same_noise(kind, options, trained, few, tmp_path):
    """On the way up, or, through a bridge, of grey levels."""
    results = {}
    for name, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        translated(trained / kind, few, tmp_path / name, *options, "--seed", seed, "--steps", 8)
        results[name] = np.stack(
            [pixels(path) for path in sorted((tmp_path / name).glob("2*.png"))]
        )
    assert np.array_equal(results["one"], results["two"]) and not np.array_equal(
        results["one"], results["three"]
    )


def test_other_sizes_and_kinds_are_resized_with_a_note(trained, tmp_path, capsys):
    home = tmp_path / "mixed"
    home.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 12×20, shown 20×12
    Image.new("RGB", (12, 20), (200, 10, 10)).save(home / "wide.jpg", exif=turned)
    Image.new("L", (8, 8), 90).save(home / "grey.png")
    Image.new("L", (8, 8), 40).save(home / "sheet.png")
    (home / "sub").mkdir()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(home / "sub" / "wide.png")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(home / "wide.bmp")
    out = tmp_path / "out"
    report = translated(trained / "pair", home, out, "--steps", 4)
    found = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert found == {
        "wide.jpg.png",
        "wide.bmp.png",
        "grey.png",
        "sub/wide.png",
        "sheet.png.png",
        "sheet.png",
    }
    notes = [row.get("note") for row in report["examples"]]
    assert notes.count("resized from 20×12") == 1 and "1 resized" in capsys.readouterr().out


def test_sources_are_composited_on_the_background_of_the_data(trained, tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    model, recipe = open_run(trained / "bridge")
    for table, colour in (
        (recipe["data"], [255] * 3),
        (recipe["data"] | {"background": "#0a141e"}, [10, 20, 30]),
    ):
        (item,) = find_items([tmp_path / "clear.png"], model, table)
        assert item.read()[0][:, 0, 0].tolist() == colour


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(trained, toys, tmp_path, capsys):
    home = shutil.copytree(toys[0], tmp_path / "damaged")
    broken = home / "250-03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (home / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    capsys.readouterr()
    report = translated(trained / "pair", home, out, "--steps", 4, status=1)
    assert "not translated: 250-03: " in capsys.readouterr().err and list(report["failed"]) == [
        "250-03"
    ]
    assert len(list(out.glob("2*.png"))) == 23 and not (out / broken.name).exists()


def dark(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (20, 20, 20)).save(path)
    return path


def linked(tmp_path, photos):
    (tmp_path / "link").symlink_to(photos)
    return tmp_path / "link"


def linked_result(tmp_path, photos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "250-03.png").symlink_to(photos / "250-03.png")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "where",
    [
        lambda tmp_path, photos: photos,
        lambda tmp_path, photos: photos / ".." / photos.name,
        linked,
        linked_result,
    ],
)
def test_a_source_is_never_written_over(where, trained, toys, tmp_path, capsys):
    photos = shutil.copytree(toys[0], tmp_path / "photos")
    out = where(tmp_path, photos)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    arguments = ["translate", trained / "pair", photos, "--out", out, "--overwrite", "--quiet"]
    for also in ([], ["--cycle"]):
        error = error_of(capsys, *arguments, *also)
        assert "out must be another folder: a result would be written over the source" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


class Stubborn(ActNorm):
    """An affine flow whose inverse does not converge where z is large in its first entry."""

    def solve_inverse(self, z, tol=1e-5):
        x, residual, iterations, converged = super().solve_inverse(z, tol)
        return x, residual, iterations, converged & (z.flatten(1)[:, 0] < 0.5)


def test_an_inverse_that_does_not_converge_is_named_image_by_image(toys, tmp_path):
    tables = {
        "flow": {"name": "actnorm", "channels": 3},
        "sde": {"name": "vp"},
        "net": {"name": "zero"},
    }
    model = build_model(tables, (3, 8, 8), Scaling.images(256)).eval()
    stubborn = INDM(Stubborn(3), model.score, model.scaling, model.shape).eval()
    home = tmp_path / "two"
    home.mkdir()
    Image.new("RGB", (8, 8), (20, 20, 20)).save(home / "dark.png")
    Image.new("RGB", (8, 8), (250, 250, 250)).save(home / "light.png")
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run")
    opened = TranslationRuns((tmp_path / "run",) * 2, (model, stubborn), {}, {})
    options = TranslationOptions(steps=60)
    report = translate_files(opened, [home], tmp_path / "out", options, progress=False)
    assert [row["name"] for row in report["examples"]] == ["dark"]
    assert "1 translated, distance from the source 0.0 of 256 grey levels" in summary(report)
    array = np.stack([np.full((3, 8, 8), grey, np.uint8) for grey in (250, 20, 30)])
    np.savez(tmp_path / "three.npz", samples=array)
    again = translate_files(
        opened, [tmp_path / "three.npz"], tmp_path / "arrays", options, progress=False
    )
    with np.load(tmp_path / "arrays" / "three.npz") as content:
        assert content["rows"].tolist() == [1, 2] and list(again["failed"]) == ["three-00000"]
    assert (
        "inverse did not reach" in report["failed"]["light"]
        and not (tmp_path / "out" / "light.png").exists()
    )


def test_vectors_are_translated_as_arrays(tmp_path):
    options = [
        "--net.width=8",
        "--flow.width=8",
        "--train.steps=3",
        "--train.batch_size=64",
        "--quiet",
    ]
    options += ["--data.samples=300", "--data.valid_samples=20", "--data.test_samples=50"]
    options += ["--train.validate_examples=20"]
    for name in ("two-spirals", "eight-gaussians"):
        assert main(["train", name, "--out", str(tmp_path / name), *options]) == 0
    points = load_data(
        "two-spirals", samples=1, valid_samples=1, test_samples=40
    ).test.tensor.numpy()
    np.savetxt(tmp_path / "points.csv", points, delimiter=",", header="x,y", comments="")
    folders, out = (
        [tmp_path / name for name in ("two-spirals", "eight-gaussians")],
        tmp_path / "out",
    )
    report = translated(folders, tmp_path / "points.csv", out, "--cycle")
    with np.load(out / "points.npz") as content:
        assert content["samples"].shape == (40, 2) and content["levels"] == 0
    assert max(row["cycle_error_max"] for row in report["examples"]) < 0.01
    assert (out / "sheet.png").exists() and report["options"]["steps"] == 120


@pytest.mark.long
def test_a_bridge_that_learned_its_ends_with_noise_takes_it_away(toys, few, tmp_path, capsys):
    """Validated with that noise, and known to what translates."""
    options = [
        "--data.size",
        "8",
        "--train.steps",
        "2",
        "--train.batch_size",
        "8",
        *SMALL,
        "--quiet",
    ]
    for noise in (0.0, 3.0):
        noises = ["--train.terminal_noise", str(noise), "--train.initial_noise", str(noise / 2)]
        arguments = [*map(str, toys), *BY_COUPLING, *noises]
        assert (
            main(["train-bridge", *arguments, "--out", str(tmp_path / str(noise)), *options]) == 0
        )
    assert f"indm translate {tmp_path / '3.0'} IMAGES --out FOLDER" in capsys.readouterr().out
    runs = [open_runs([tmp_path / str(noise)]) for noise in (0.0, 3.0)]
    assert [opened.route().noise for opened in runs] == [(0.0, 0.0), (1.5, 3.0)]
    assert open_runs([tmp_path / "3.0"], "backward").route().noise == (1.5, 3.0)
    errors = {}
    for seed in ("0", "1"):
        options = ["--cycle", "--steps", 30, "--seed", seed]
        rows = translated(tmp_path / "3.0", few, tmp_path / f"out-{seed}", *options)["examples"]
        errors[seed] = [row["cycle_error_max"] for row in rows]
        assert max(errors[seed]) < 1, "the way back begins before the noise was taken away"
    assert errors["0"] != errors["1"], "the noise is that of the seed"
    clean, noisy = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("0.0", "3.0")
    )
    assert noisy["valid_terminal"] > clean["valid_terminal"] + 1
    assert noisy["valid_nelbo"] > clean["valid_nelbo"] + 0.5
    backward = ["--direction", "backward", *options]
    rows = translated(tmp_path / "3.0", toys[1] / "*-0[0-3].png", tmp_path / "back", *backward)[
        "examples"
    ]
    assert max(row["cycle_error_max"] for row in rows) < 1
    assert (
        max(row["cycle_error_rounded"] for row in rows)
        <= 1
        < max(row["distance_rms"] for row in rows)
    )
    for name in ("terminal_noise", "initial_noise"):
        error = error_of(
            capsys, "train", "digits", f"--train.{name}", "0.1", "--out", tmp_path / "none"
        )
        assert f"train.{name} must be 0 where there is no train.terminal, got 0.1" in error


@pytest.mark.parametrize("noise", ["initial_noise", "terminal_noise"])
def test_a_bridge_trains_and_validates_each_end_with_its_own_noise(noise):
    table = {
        "steps": 2,
        "batch_size": 8,
        "terminal": 1.0,
        "terminal_noise": 0.0,
        "flow_update_every": 1,
    }
    recipe = as_bridge(recipes.load("digits-3-8")) | {
        "flow": {"name": "coupling", "depth": 2, "width": 8}
    }
    values = []
    for deviation in (0.0, 2.0):
        own = recipes.resolve(recipe | {"train": recipe["train"] | table | {noise: deviation}})
        trainer = Trainer(read(own, make_accelerator(own.train))[1])
        values.append(trainer.validate())
        assert trainer.network.noise == (deviation if noise == "initial_noise" else 0.0)
    changed = {key for key in ("valid_nelbo", "valid_terminal") if values[0][key] != values[1][key]}
    assert changed == {{"initial_noise": "valid_nelbo", "terminal_noise": "valid_terminal"}[noise]}


@pytest.mark.long
def test_one_model_of_classes_translates_between_two(trained, toys, tmp_path, capsys, monkeypatch):
    run, out = tmp_path / "classes", tmp_path / "out"
    options = [
        "--condition=classes",
        "--flow=coupling",
        *SMALL,
        "--train.steps=3",
        "--train.batch_size=16",
        "--quiet",
    ]
    assert main(["train", "digits", "--out", str(run), *options]) == 0
    raw = torch.stack([load_data("digits", label=3).test[i] for i in range(30)])
    np.save(tmp_path / "threes.npy", raw[:, 0].numpy())
    arguments = [run, tmp_path / "threes.npy", out, "--condition", "3", "8", "--steps", 20]
    there, back, other = (
        open_runs([run], direction, ("3", b)).route(steps=40)
        for direction, b in (("forward", "8"), ("backward", "8"), ("forward", "1"))
    )
    x = there.models[0].scaling.centre(raw[:8])
    result = there.follow(x).x
    assert (back.follow(result).x - x).abs().max() * 8.5 < 0.5
    assert not torch.equal(result, other.follow(x).x)
    translated(*arguments, "--guidance", "3", "--overwrite")
    farther = open_runs([run], "forward", ("3", "8")).route(steps=20, guidance=3.0)
    expected = farther.follow(farther.models[0].scaling.centre(raw)).x
    with np.load(out / "threes.npz") as written:
        assert np.array_equal(
            written["samples"], farther.models[1].scaling.to_data(expected).numpy()
        )
    for wrong, complaint in (
        ([run, toys[0], "--condition", "3", "dog"], "c must be one of"),
        (
            [trained / "pair", toys[0], "--condition", "3", "8"],
            "condition needs one run, of a model of both classes",
        ),
        ([run, toys[0]], "is not a bridge"),
        (
            [trained / "pair", toys[0], "--guidance", 2],
            "guidance must be 1 without one class-conditional model of A and B, got 2",
        ),
        (
            [trained / "bridge", toys[0], "--guidance", 2],
            "guidance must be 1 without one class-conditional",
        ),
        (
            [trained / "one", toys[0], "--guidance", 2, "--method", "sdedit", "--strength", 0.5],
            "guidance must be 1 without one class-conditional",
        ),
    ):
        assert complaint in error_of(
            capsys, "translate", *wrong, "--out", tmp_path / "none", "--quiet"
        )
        assert not (tmp_path / "none").exists()


def test_sdedit_is_noise_and_the_flow_of_the_other_side_alone(trained, toys, few, tmp_path, capsys):
    names = sorted(path.name for path in toys[0].glob(few.name))
    by_sdedit = ["--method", "sdedit", "--strength", 0.4, "--steps", 10]
    for kind, c in (("pair", None), ("one", "blue")):
        out = tmp_path / kind
        report = translated(trained / kind, few, out, "--seed", 5, *by_sdedit)
        folder = trained / "pair" / "b" if kind == "pair" else trained / "one"
        model, _ = open_run(folder)
        x = model.scaling.centre(
            torch.from_numpy(np.stack([pixels(toys[0] / name) for name in names]))
        ).movedim(-1, 1)
        route = sdedit(model, c=c, strength=0.4, steps=10)
        expected = model.scaling.to_data(
            route.follow(x, generator=torch.Generator().manual_seed(5)).x
        )
        for name, image in zip(names, expected, strict=True):
            assert np.array_equal(pixels(out / name), image.permute(1, 2, 0).numpy())
        assert report["models"] == [str(folder)]
    capsys.readouterr()
    for kind, strength, said in (
        ("bridge", 0.5, "method must be 'flow' for the bridge"),
        ("pair", 1, "strength must be below 1 for sdedit"),
    ):
        arguments = [
            "translate",
            trained / kind,
            toys[0],
            "--out",
            tmp_path / "none",
            "--strength",
            strength,
        ]
        assert said in error_of(capsys, *arguments, "--method", "sdedit")
    arguments = [
        "translate",
        trained / "pair",
        toys[0],
        "--out",
        tmp_path / "none",
        "--strength",
        0.5,
        "--cycle",
    ]
    assert "no way back along noise" in error_of(capsys, *arguments, "--method", "sdedit")
    # The model of B alone does it.
    translated(trained / "pair" / "b", few, tmp_path / "b", "--seed", 5, *by_sdedit)
    for name in names:
        assert np.array_equal(pixels(tmp_path / "b" / name), pixels(tmp_path / "pair" / name))


def test_mistakes(trained, toys, tmp_path, capsys):
    pair, out = trained / "pair", tmp_path / "out"
    for arguments, complaint in (
        ([toys[0]], "a run folder"),
        ([pair], "images after"),
        ([pair / "a", toys[0]], "is not a bridge"),
        ([pair / "a", pair / "b", pair / "a", toys[0]], "run folders"),
        ([pair, tmp_path / "none"], "none"),
        ([pair, toys[0], "--strength", "0"], "strength"),
        ([trained / "bridge", toys[0], "--stochastic", "--direction", "backward"], "stochastic"),
        ([pair, toys[0], "--stochastic", "--cycle"], "no way back along noise"),
        ([pair, toys[0], "--batch-size", "0"], "batch_size"),
        ([pair, toys[0], "--tol", "nan"], "tol"),
    ):
        assert complaint in error_of(capsys, "translate", *arguments, "--out", out, "--quiet")
    (tmp_path / "empty").mkdir()
    assert "no image or array found" in error_of(
        capsys, "translate", pair, tmp_path / "empty", "--out", out
    )
    np.save(tmp_path / "wrong.npy", np.zeros((2, 16, 16, 3), np.uint8))
    error = error_of(capsys, "translate", pair, tmp_path / "wrong.npy", "--out", out)
    assert "must hold events of shape (3, 8, 8), got (3, 16, 16)" in error
    np.save(tmp_path / "floats.npy", np.zeros((2, 5)))
    assert "must hold integers 0 … 255" in error_of(
        capsys, "translate", pair, tmp_path / "floats.npy", "--out", out
    )
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert "--overwrite" in error_of(capsys, "translate", pair, toys[0], "--out", out)
    translated(pair, toys[0], out, "--overwrite", "--steps", 4)
    assert (out / "mine.txt").read_text() == "kept"


def test_results_are_never_written_over_by_one_another(trained, tmp_path, capsys):
    home = tmp_path / "home"
    for name in ("sheet", "a", "b/sheet", "x\ny"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 10, 10)).save(f"{home / name}.png")
    pair, out = trained / "pair", tmp_path / "out"
    translated(pair, home, out, "--steps", 4)
    found = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert found == {"sheet.png", "sheet.png.png", "a.png", "b/sheet.png", "x\ny.png"}
    assert pixels(out / "sheet.png").shape != pixels(out / "sheet.png.png").shape
    (home / "cycle").mkdir()
    Image.new("RGB", (8, 8)).save(home / "cycle" / "a.png")
    error = error_of(
        capsys, "translate", pair, home, "--out", tmp_path / "twice", "--cycle", "--quiet"
    )
    assert "names of results come twice, such as 'cycle/a'" in error
