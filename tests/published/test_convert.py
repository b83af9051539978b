"""Converted checkpoints: the stored networks, random ones in the original's layout, the files, mistakes."""

import json

import numpy as np
import pytest
import torch
from original import checkpoint, drawn, fixture, tables_of
from PIL import Image

from indm import INDM, PublishedScore
from indm.flows import ActNorm, Identity
from indm.published.checkpoint import read_checkpoint
from indm.published.network import architecture, infer
from indm.sde.linear import VESDE
from indm.workbench.cli.main import main
from indm.workbench.convert import convert, score_of_checkpoint
from indm.workbench.recipes import recipe as recipes

SMALL = ["ddpmpp_vp", "ncsnpp_ve"]


def relative_error(score, reference):
    """The largest error of a sample over its largest entry."""
    error = (score - reference).flatten(1).abs().amax(1)
    return (error / reference.flatten(1).abs().amax(1)).max().item()


def converted(settings, state, given=None):
    tables = tables_of(settings if given is None else given)
    found = architecture(state, tables, {}, settings["image_size"])
    return score_of_checkpoint(state, found.sde, found.net, found.shape)


# ── The network ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SMALL)
def test_scores_of_the_stored_networks(name):
    settings, state, arrays = fixture(name)
    with torch.no_grad():
        score = converted(settings, state)(arrays["input/z_t"], arrays["input/t"])
    assert relative_error(score, arrays["output/score"]) < 1e-5


VE = {"sde": "vesde", "embedding_type": "fourier", "scale_by_sigma": True, "centered": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"sde": "subvpsde", "num_channels": 1},
        {"ch_mult": [1, 1, 2, 3], "nf": 12, "num_res_blocks": 2, "attn_resolutions": [8, 2], "image_size": 16},
        {"ch_mult": [2], "attn_resolutions": [8]},
        VE | {"fir": True, "progressive_input": "residual", "sigma_max": 90, "num_channels": 1},
        VE | {"progressive_input": "residual", "skip_rescale": False, "scale_by_sigma": False, "num_res_blocks": 2},
        {"fir": True, "fir_kernel": [1, 2, 4], "beta_min": 0.2, "beta_max": 12.0},
        {"progressive_input": "residual", "ch_mult": [1, 2, 2], "attention": False},
        {"sde": "vesde"},
        {"embedding_type": "fourier", "scale_by_sigma": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_scores_of_random_networks_in_the_original_layout(changes):
    settings, state, z_t, t, reference = drawn(**changes)
    with torch.no_grad():
        assert relative_error(converted(settings, state)(z_t, t), reference) < 1e-5
        # The same with no more than what the tensors do not tell.
        keys = ("sde", "beta_min", "beta_max", "fir", "fir_kernel", "centered", "scale_by_sigma", "skip_rescale")
        few = {key: settings[key] for key in keys}
        assert relative_error(converted(settings, state, few)(z_t, t), reference) < 1e-5


def test_what_the_tensors_tell():
    _, state, *_ = drawn(ch_mult=[1, 2, 2], num_res_blocks=3, attn_resolutions=[8, 2], num_channels=2)
    found, attends, channels = infer(state)
    assert found == {
        "channels": 8, "multipliers": (1, 2, 2), "blocks": 3, "embedding": "positional", "input_pyramid": "none"
    }  # fmt: skip
    assert attends == [True, False, True] and channels == 2


def test_the_rest_is_as_published_or_a_recipe_s():
    _, state, *_ = drawn(**VE | {"fir": True, "progressive_input": "residual"})
    found = architecture(state, {"sde": {"name": "ve"}}, {}, 8)
    assert found.assumed == {
        "fir": (1, 3, 3, 1), "rescale": True, "centered": False, "scale_by_sigma": True, "dropout": 0.1
    }  # fmt: skip
    assert found.sde == {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    recipe = {"sde": {"name": "ve", "eps": 1e-4}, "net": {"centered": True, "blocks": 1}}
    found = architecture(state, {"net": {"dropout": 0.0}}, recipe, 8)
    assert found.net["centered"] and found.net["dropout"] == 0.0 and found.net["blocks"] == 1
    assert found.sde == {"name": "ve", "sigma_max": 50.0, "eps": 1e-4, "sigma_min": 0.01}  # the tensors say 50
    with pytest.raises(ValueError, match=r"the recipe: blocks is 1, not 7.*sde\.sigma_max is 50\.0, not 90\.0"):
        architecture(state, {"sde": {"sigma_max": 90.0}}, recipe | {"net": {"blocks": 7}}, 8)
    other = architecture(state, {"sde": {"name": "vp"}}, recipe, 8)
    assert other.sde == {"name": "vp"} and other.assumed["fir"] == (1, 3, 3, 1)  # the tensors are a filter's


def test_what_contradicts_the_tensors_is_listed():
    settings, state, _ = fixture("ddpmpp_vp")
    with pytest.raises(ValueError) as caught:
        converted(settings | {"nf": 32, "ch_mult": [1, 2, 2]}, state)
    for part in ("channels is 16, not 32", "multipliers is (1, 2), not [1, 2, 2]"):
        assert part in str(caught.value)


def test_tensors_that_do_not_match_are_listed():
    settings, state, _ = fixture("ddpmpp_vp")
    tables = tables_of(settings)
    found = architecture(state, tables, {}, 16)
    del state["all_modules.6.NIN_1.W"]
    state["all_modules.5.Conv_1.weight"] = torch.zeros(32, 31, 3, 3)
    state["all_modules.6.NIN_3.W"] = torch.zeros(3)
    state["all_modules.99.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as caught:
        score_of_checkpoint(state, found.sde, found.net, found.shape)
    for part in (
        "all_modules.6.NIN_1.W is missing",
        "all_modules.5.Conv_1.weight has shape (32, 31, 3, 3) where (32, 32, 3, 3) is needed",
        "all_modules.6.NIN_3.W has shape (3,) where",
        "all_modules.99.weight is not understood",
    ):
        assert part in str(caught.value)


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SMALL)
def test_averages_are_in_the_order_of_the_trainable_parameters(name, tmp_path):
    _, state, _ = fixture(name)
    trained = [key for key in state if key not in ("sigmas", "all_modules.0.W")]
    averages = [state[key] + i for i, key in enumerate(trained)]
    read = read_checkpoint(checkpoint(state, tmp_path / "a.pth", averages=averages))
    assert read.step == 123
    averaged = read.weights("ema")
    assert list(averaged) == list(state)
    for key, value in read.weights("model").items():
        assert torch.equal(value, state[key])
        assert torch.equal(averaged[key], value + (trained.index(key) if key in trained else 0))


def test_numbers_of_numpy_in_the_optimizer_are_read(tmp_path):
    """Warm-up leaves a learning rate of NumPy's type behind; before version 2 what makes it had another name."""
    path = checkpoint(fixture("ddpmpp_vp")[1], tmp_path / "a.pth", optimizer={"lr": np.float64(2e-4)})
    assert read_checkpoint(path).step == 123
    content = {"optimizer": {"lr": np.float64(2e-4)}, "model": {"module.a": torch.ones(2)}, "step": 7}
    torch.save(content, path, _use_new_zipfile_serialization=False)  # also the format of old
    for before, after in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        other = tmp_path / "other.pth"
        other.write_bytes(path.read_bytes().replace(before, after))
        read = read_checkpoint(other)
        assert read.step == 7 and torch.equal(read.state["a"], torch.ones(2)) and read.shadow is None


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint in the released format whose averages are the stored network, its last weights others; images."""
    folder = tmp_path_factory.mktemp("released")
    _, state, _ = fixture("ddpmpp_vp")
    averages = [value.clone() for key, value in state.items() if key != "sigmas"]
    checkpoint(
        {k: v if k == "sigmas" else 0.9 * v for k, v in state.items()}, folder / "checkpoint_1.pth", averages=averages
    )
    (folder / "images").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    return folder


def run_cli(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:the network may have ripples", "ignore:the run ended")
def test_a_converted_run_is_evaluated_and_sampled(released, tmp_path, capsys):
    run, (_, _, arrays) = tmp_path / "run", fixture("ddpmpp_vp")
    data = ("--data", "folder", "--data.path", released / "images", "--data.size", 16)
    assert run_cli("convert", released / "checkpoint_1.pth", "--sde", "vp", *data, "--out", run) == 0
    shown = capsys.readouterr().out
    assert "passed over in checkpoint_1.pth: optimizer, sigmas\n" in shown
    assert "multipliers = [1, 2]" in shown and "assumed: fir = []" in shown and "189,347 parameters" in shown
    model = INDM.load(run)
    with torch.no_grad():
        score = model.score(arrays["input/z_t"], arrays["input/t"])
    assert relative_error(score, arrays["output/score"]) < 1e-5
    assert type(model.flow) is Identity and model.shape == (3, 16, 16) and model.scaling.levels == 256
    made = json.loads((run / "conversion.json").read_text())
    assert made["provenance"]["weights_sha256"] == {file["name"]: file["sha256"] for file in made["files"]}
    assert made["files"][0]["weights"] == "ema" and made["step"] == 123 and len(made["files"][0]["sha256"]) == 64

    few = ("--examples", 2, "--nll-examples", 0, "--times", 1, "--quiet")
    assert run_cli("evaluate", run, *few) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["nelbo"]["with_reconstruction"]["bits_per_dim"] > 7
    assert run_cli("sample", run, "-n", 2, "--steps", 2, "--quiet") == 0
    assert np.load(run / "samples.npz")["samples"].shape == (2, 3, 16, 16)
    assert (
        run_cli("train", run, "--train.steps", 1, "--train.batch_size", 4, "--out", tmp_path / "more", "--quiet") == 0
    )


def test_a_recipe_says_what_the_tensors_do_not(tmp_path):
    _, state, *_ = drawn(**VE | {"fir": True, "progressive_input": "residual", "image_size": 16, "sigma_max": 90.0})
    path = checkpoint(state, tmp_path / "a.pth")
    changes = {"data.size": "16", "evaluate.examples": "7", "net.channels": "8", "net.multipliers": "[1, 2]"}
    changes |= {"net.blocks": "1", "net.attention": "[]"}
    convert(path, tmp_path / "run", recipe="celeba64-ve-fid", changes=changes)
    model, recipe = INDM.load(tmp_path / "run"), recipes.load(tmp_path / "run")
    assert isinstance(model.sde, VESDE) and model.sde.sigma_max == 90.0 and type(model.score) is PublishedScore
    assert recipe["data"]["name"] == "celeba" and recipe["data"]["centered"] is False
    assert recipe["evaluate"]["examples"] == 7 and recipe["evaluate"]["repeats"] == 3
    assert model.scaling.to_model(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)).max() <= 1
    assert model.scaling.to_model(torch.zeros(1, 3, 16, 16)).min() >= 0


def test_the_side_of_the_images_decides_the_published_data(tmp_path):
    _, state, *_ = drawn(image_size=32)
    path = checkpoint(state, tmp_path / "a.pth")
    made = convert(path, tmp_path / "run", changes={"sde": "vp", "data.size": "32"})
    assert made["data"] == {"name": "cifar10", "centered": True} and made["shape"] == [3, 32, 32]


# ── The flow ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_flow_is_converted_by_its_own_module(released, tmp_path, monkeypatch):
    """The seam: it gets the flow's last weights, or its averages, the given arguments and the images' shape."""
    seen = []

    def flow_from_state(state, given, shape):
        seen.append((state, given, shape))
        return ActNorm(shape[0])

    monkeypatch.setattr("indm.workbench.convert.flow_from_state", flow_from_state)
    state = {"lamb": torch.tensor(2.0), "nnet.0.weight": torch.ones(2), "nnet.0.scale": torch.tensor(5.0)}
    flow = checkpoint(state, tmp_path / "flow.pth", averages=[torch.tensor(3.0), torch.zeros(2)])
    changes = {"sde": "vp", "flow.coeff": "0.9", "data.size": "16"}
    options = {"flow_checkpoint": flow, "changes": changes}
    convert(released / "checkpoint_1.pth", tmp_path / "a", **options)
    convert(released / "checkpoint_1.pth", tmp_path / "b", **options, weights="ema")
    raw, averaged = (state for state, *_ in seen)
    assert raw["lamb"] == 2 and averaged["lamb"] == 3 and averaged["nnet.0.scale"] == 5
    assert seen[0][1:] == ({"coeff": 0.9}, (3, 16, 16))
    assert type(INDM.load(tmp_path / "a").flow) is ActNorm
    assert recipes.load(tmp_path / "a")["flow"]["name"] == "actnorm"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ("checkpoint_1.pth", "sde must be vp, subvp or ve, or a recipe"),
        ("checkpoint_1.pth --sde vp", "data.size must be given, or a recipe"),
        ("checkpoint_1.pth --sde learned --data.size 16", "sde must be vp, subvp or ve"),
        ("missing.pth --sde vp --data.size 16", "missing.pth cannot be read: No such file"),
        ("text.pth --sde vp --data.size 16", "text.pth cannot be read as a checkpoint of torch: it is damaged"),
        ("cut.pth --sde vp --data.size 16", "cut.pth cannot be read as a checkpoint of torch: it is damaged"),
        ("list.pth --sde vp --data.size 16", 'must hold a dict whose "model" is a dict of tensors'),
        ("odd.pth --sde vp --data.size 16", 'odd.pth must hold a list of tensors as "shadow_params"'),
        ("flow.pth --sde vp --data.size 16", "holds no score network (no tensors all_modules.N)"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net.blocks 2", "blocks is 1, not 2"),
        ("checkpoint_1.pth --sde vp --data.size 15", "shape must be (channels, height, width) with sides"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net unet", "net.name must be ncsnpp, whose checkpoint this is"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net.cantered 1", "net 'ncsnpp' has no option 'cantered'"),
        ("checkpoint_1.pth --sde vp --data.size 16 --evaluate.probez 1", "evaluate.probez is no known key"),
        ("checkpoint_1.pth --recipe cifar11", "no recipe or file is called 'cifar11'"),
        ("checkpoint_1.pth --sde vp --data.size 16 --flow.coeff 0.9", "flow must be left out"),
        ("checkpoint_1.pth --sde vp --data.size 16 --out full", "full exists and is not empty"),
        ("checkpoint_1.pth --sde vp --data.size -8", "data.size must be a whole number of pixels"),
        ("checkpoint_1.pth --sde vp --data.size [8]", "data.size must be a whole number of pixels"),
        ("checkpoint_1.pth --sde vp --data.size 16 --data 5", "data.name must be one of checkerboard, "),
        ("checkpoint_1.pth --sde vp --data.size 16 --data.name [5]", "data.name must be one of checkerboard, "),
        ("checkpoint_1.pth --sde vp --data.size 16 --data.flap 5", "data 'folder' has no option 'flap'; did you mean"),
        ("checkpoint_1.pth --sde vp --data.size 16 --data.path \ud800", "is not Unicode text"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net.centered 5", "net.centered must be true or false, got 5"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net.attention 5", "net.attention must be a list of a whole"),
        ("checkpoint_1.pth --sde.name [1] --data.size 16", "which it was, got [1]"),
        ("checkpoint_1.pth --sde vp --data.size 16 --sde.beta_max [1]", "sde.beta_max must be a number, got [1]"),
        ("checkpoint_1.pth --sde vp --data.size 16 --net.dropout x", "net.dropout must be a number, got 'x'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, complaint, released, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = (released / "checkpoint_1.pth").read_bytes()
    (tmp_path / "checkpoint_1.pth").write_bytes(whole)
    (tmp_path / "cut.pth").write_bytes(whole[:5000])
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    torch.save([1, 2], tmp_path / "list.pth")
    checkpoint({"a": torch.ones(2)}, tmp_path / "odd.pth", averages={"a": 1})
    checkpoint({"nnet.0.weight": torch.ones(2)}, tmp_path / "flow.pth")
    before = {path for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert run_cli("convert", *arguments.split()) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert {path for path in tmp_path.rglob("*")} == before
