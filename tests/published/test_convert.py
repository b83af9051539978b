"""Converted checkpoints: the stored networks, random ones in the original's layout, the files,
mistakes.
"""

import json

import numpy as np
import pytest
import torch
from original import checkpoint, drawn, fixture, tables_of
from PIL import Image

from indm import INDM
from indm.flows import ActNorm, Identity
from indm.published.checkpoint import read_checkpoint
from indm.workbench.cli.main import main
from indm.workbench.convert import convert, score_of_checkpoint
from indm.workbench.recipes import recipe as recipes

SMALL = ["ddpmpp_vp", "ncsnpp_ve"]


def relative_error(score, reference):
    """The largest error of a sample over its largest entry."""
    error = (score - reference).flatten(1).abs().amax(1)
    return (error / reference.flatten(1).abs().amax(1)).max().item()


def converted(settings, state):
    tables = tables_of(settings)
    shape = (settings["num_channels"], settings["image_size"], settings["image_size"])
    return score_of_checkpoint(state, tables["sde"], tables["net"], shape)


# ── The network ───────────────────────────────────────────────────────────────────────────────────


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
        {
            "ch_mult": [1, 1, 2, 3],
            "nf": 12,
            "num_res_blocks": 2,
            "attn_resolutions": [8, 2],
            "image_size": 16,
        },
        {"ch_mult": [2], "attn_resolutions": [8]},
        VE | {"fir": True, "progressive_input": "residual", "sigma_max": 90, "num_channels": 1},
        VE
        | {
            "progressive_input": "residual",
            "skip_rescale": False,
            "scale_by_sigma": False,
            "num_res_blocks": 2,
        },
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


def test_noise_levels_of_another_recipe_are_refused():
    settings, state, *_ = drawn(**VE | {"sigma_max": 90})
    with pytest.raises(ValueError, match="sigma_max"):
        converted(settings | {"sigma_max": 50}, state)


def test_tensors_that_do_not_match_are_listed():
    settings, state, _ = fixture("ddpmpp_vp")
    del state["all_modules.6.NIN_1.W"]
    state["all_modules.5.Conv_1.weight"] = torch.zeros(32, 31, 3, 3)
    state["all_modules.6.NIN_3.W"] = torch.zeros(3)
    state["all_modules.99.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as caught:
        converted(settings, state)
    for part in (
        "all_modules.6.NIN_1.W is missing",
        "all_modules.5.Conv_1.weight has shape (32, 31, 3, 3) where (32, 32, 3, 3) is needed",
        "all_modules.6.NIN_3.W has shape (3,) where",
        "all_modules.99.weight is not understood",
    ):
        assert part in str(caught.value)


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────


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
    """Warm-up leaves a learning rate of NumPy's type behind; before version 2 what makes it had
    another name.
    """
    path = checkpoint(
        fixture("ddpmpp_vp")[1], tmp_path / "a.pth", optimizer={"lr": np.float64(2e-4)}
    )
    assert read_checkpoint(path).step == 123
    content = {
        "optimizer": {"lr": np.float64(2e-4)},
        "model": {"module.a": torch.ones(2)},
        "step": 7,
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)  # also the format of old
    for before, after in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        other = tmp_path / "other.pth"
        other.write_bytes(path.read_bytes().replace(before, after))
        read = read_checkpoint(other)
        assert (
            read.step == 7 and torch.equal(read.state["a"], torch.ones(2)) and read.shadow is None
        )


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint in the released format whose averages are the stored network, its last weights
    others; images.
    """
    folder = tmp_path_factory.mktemp("released")
    _, state, _ = fixture("ddpmpp_vp")
    averages = [value.clone() for key, value in state.items() if key != "sigmas"]
    checkpoint(
        {k: v if k == "sigmas" else 0.9 * v for k, v in state.items()},
        folder / "checkpoint_1.pth",
        averages=averages,
    )
    (folder / "images").mkdir()
    for i, image in enumerate(
        np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    ):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    data = {"name": "folder", "path": str(folder / "images"), "size": 16}
    flow = {"name": "residual", "coeff": 0.98}
    tables = tables_of(fixture("ddpmpp_vp")[0])
    recipe = {
        "data": data,
        "flow": flow,
        "sde": tables["sde"],
        "net": {"name": "ncsnpp"} | tables["net"],
    }
    (folder / "small.toml").write_text(recipes.to_toml(recipe))
    return folder


def run_cli(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:the network may have ripples", "ignore:the run ended")
def test_a_converted_run_is_evaluated_and_sampled(released, tmp_path, capsys):
    run, (_, _, arrays) = tmp_path / "run", fixture("ddpmpp_vp")
    assert (
        run_cli(
            "convert",
            released / "checkpoint_1.pth",
            "--recipe",
            released / "small.toml",
            "--out",
            run,
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "passed over in checkpoint_1.pth: optimizer, sigmas\n" in shown
    assert "189,347 parameters" in shown
    model = INDM.load(run)
    with torch.no_grad():
        score = model.score(arrays["input/z_t"], arrays["input/t"])
    assert relative_error(score, arrays["output/score"]) < 1e-5
    assert (
        type(model.flow) is Identity and model.shape == (3, 16, 16) and model.scaling.levels == 256
    )
    made = json.loads((run / "conversion.json").read_text())
    assert made["provenance"]["weights_sha256"] == {
        file["name"]: file["sha256"] for file in made["files"]
    }
    assert (
        made["files"][0]["weights"] == "ema"
        and made["step"] == 123
        and len(made["files"][0]["sha256"]) == 64
    )

    few = ("--examples", 2, "--nll-examples", 0, "--times", 1, "--quiet")
    assert run_cli("evaluate", run, *few) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["nelbo"]["with_reconstruction"]["bits_per_dim"] > 7
    assert run_cli("sample", run, "-n", 2, "--steps", 2, "--quiet") == 0
    assert np.load(run / "samples.npz")["samples"].shape == (2, 3, 16, 16)
    assert (
        run_cli(
            "train",
            run,
            "--train.steps",
            1,
            "--train.batch_size",
            4,
            "--out",
            tmp_path / "more",
            "--quiet",
        )
        == 0
    )


# ── The flow ──────────────────────────────────────────────────────────────────────────────────────


def test_the_flow_is_converted_by_its_own_module(released, tmp_path, monkeypatch):
    """The seam: it gets the flow's last weights, or its averages, the given arguments and the
    images' shape.
    """
    seen = []

    def flow_from_state(state, table, shape):
        seen.append((state, table, shape))
        return ActNorm(shape[0])

    monkeypatch.setattr("indm.workbench.convert.flow_from_state", flow_from_state)
    state = {
        "lamb": torch.tensor(2.0),
        "nnet.0.weight": torch.ones(2),
        "nnet.0.scale": torch.tensor(5.0),
    }
    flow = checkpoint(state, tmp_path / "flow.pth", averages=[torch.tensor(3.0), torch.zeros(2)])
    options = {
        "recipe": released / "small.toml",
        "flow_checkpoint": flow,
        "changes": {"flow.coeff": "0.9"},
    }
    convert(released / "checkpoint_1.pth", tmp_path / "a", **options)
    convert(released / "checkpoint_1.pth", tmp_path / "b", **options, weights="ema")
    raw, averaged = (state for state, *_ in seen)
    assert raw["lamb"] == 2 and averaged["lamb"] == 3 and averaged["nnet.0.scale"] == 5
    assert seen[0][1:] == ({"name": "residual", "coeff": 0.9}, (3, 16, 16))
    assert type(INDM.load(tmp_path / "a").flow) is ActNorm
    assert recipes.load(tmp_path / "a")["flow"]["name"] == "actnorm"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ("missing.pth", "missing.pth"), ("text.pth", "text.pth"), ("cut.pth", "cut.pth"), ("list.pth", "list.pth"),
        ("flow.pth", "all_modules"), ("checkpoint_1.pth --net.blocks 2", "all_modules"),
        ("checkpoint_1.pth --net unet", "net.name"), ("checkpoint_1.pth --net.cantered 1", "cantered"),
        ("checkpoint_1.pth --data.size 15", "shape"), ("checkpoint_1.pth --evaluate.probez 1", "probez"),
        ("checkpoint_1.pth --out full", "full"), ("checkpoint_1.pth --data 5", "data.name"),
        ("checkpoint_1.pth --data.centered false", "data.centered"),
        ("checkpoint_1.pth --sde.beta_max [1]", "sde.beta_max"),
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
    checkpoint({"nnet.0.weight": torch.ones(2)}, tmp_path / "flow.pth")
    before = {path for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert run_cli("convert", *arguments.split(), "--recipe", released / "small.toml") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert {path for path in tmp_path.rglob("*")} == before
