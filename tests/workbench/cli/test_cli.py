"""The command line: recipes and their changes, the commands end to end, and one line for whatever
is wrong.
"""

import inspect
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import indm
import indm_command
from indm import names
from indm.checks import arguments_of, hints_of
from indm.sampling import PredictorCorrector, centre_prior
from indm.workbench.cli import listing
from indm.workbench.cli.common import run_name
from indm.workbench.cli.main import COMMANDS, command_of, main, take_tables
from indm.workbench.data.base import load_data
from indm.workbench.evaluation import results
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import (
    Drawing,
)
from indm.workbench.runs import samples as samples_module
from indm.workbench.runs.samples import read_samples
from indm.workbench.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

SMALL = (
    "--sde.eps=1e-5 --flow=coupling --flow.depth=1 --flow.width=4 --dequantization=uniform "
    "--net.channels=4 --net.blocks=1 --net.attention=[] --train.steps=5 "
    "--train.seconds=inf --train.log_every=1 --train.validate_every=2 --train.validate_examples=20"
)
SMALL = [f"--{part}" for part in SMALL.removeprefix("--").split(" --")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits run of five steps."""
    folder = tmp_path_factory.mktemp("runs") / "indm"
    assert main(["train", "digits", *SMALL, "--out", str(folder), "--quiet"]) == 0
    return folder


def fails(capsys, *arguments):
    """The complaint about ``arguments``, which is one line, with exit status 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("indm: error: ") and error.endswith("\n") and error.count("\n") == 1, (
        error
    )
    return error


def test_values_of_tables_are_taken_out_of_the_arguments():
    line = "digits --net.batch-size 7 --out a --flow=identity --resume --sde ve --net.depth -1 --train.lr 3"
    rest, values = take_tables(line.split(), ("flow", "sde", "net"))
    assert rest == ["digits", "--out", "a", "--resume", "--train.lr", "3"]
    assert values == {"net.batch_size": "7", "flow": "identity", "sde": "ve", "net.depth": "-1"}
    assert take_tables(line.split(), ("train",))[1] == {"train.lr": "3"}
    assert take_tables(["--sampler", "pc", "--sampler.snr=0.1"], ("sampler",)) == (
        ["--sampler", "pc"], {"sampler.snr": "0.1"},
    )  # fmt: skip
    for line in (["--net.width"], ["--net.width", "--quiet"]):
        with pytest.raises(ValueError, match=r"--net\.width needs a value"):
            take_tables(line, ("net",))


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────


def test_dry_run_prints_a_recipe_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *SMALL, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    resolved = tomllib.loads(shown)
    assert (
        resolved["train"]["steps"] == 5
        and resolved["flow"]["width"] == 4
        and resolved["train"]["clip"] == 1.0
    )
    for fact in (
        "flow parameters",
        "score parameters",
        "event shape: (1, 8, 8)",
        "'train': 1257",
        "seconds per step",
    ):
        assert fact in shown
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.toml").write_text(shown)
    assert main(["train", "mine.toml", "--train.steps", "1", "--quiet"]) == 0
    assert (tmp_path / "runs" / "mine" / "model.safetensors").exists()


def test_evaluate_reports_what_it_stores(run, capsys):
    arguments = [
        "evaluate",
        run,
        "--examples",
        40,
        "--nll-examples",
        4,
        "--nll-error",
        1,
        "--quiet",
    ]
    assert main([*map(str, arguments), "--overwrite"]) == 0
    table = capsys.readouterr().out
    result = json.loads((run / "evaluation.json").read_text())
    with np.load(run / "evaluation.npz") as content:
        nats = dict(content)
    assert (
        len(nats["nelbo"]) == 40
        and len(nats["nll"]) == 4
        and result["images"] == {"nelbo": 40, "nll": 4}
    )
    bits = nats["nelbo"] / (64 * math.log(2))
    found = result["nelbo"]["with_reconstruction"]
    assert found["bits_per_dim"] == pytest.approx(bits.mean())
    assert found["bits_per_dim_standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(40))
    for kind in ("nelbo", "nll"):
        for part in ("with", "without"):
            assert f"{result[kind][f'{part}_reconstruction']['bits_per_dim']:.4f}" in table
    levels = nats["nelbo_by_noise_level"].mean(0) / (64 * math.log(2))
    assert [row["bits_per_dim"] for row in result["nelbo"]["by_noise_level"]] == pytest.approx(
        levels
    )
    assert all(f"  {level:.4f}" in table.split("σ/α")[1] for level in levels)
    assert result["split"] == "test" and "test split; ε = 1e-05" in table


@pytest.mark.filterwarnings("ignore:the data of .* have changed")
def test_evaluate_of_one_group_says_that_the_error_is_unknown(run, tmp_path, monkeypatch, capsys):
    """A folder of five photographs has one in its test split."""
    data_of = results.data_of

    def of_one_group(*arguments):
        data = data_of(*arguments)
        return replace(data, groups={"test": torch.zeros(len(data.test), dtype=torch.long)})

    monkeypatch.setattr(results, "data_of", of_one_group)
    copy = shutil.copytree(run, tmp_path / "copy")
    options = ["--examples", 20, "--nll-examples", 20, "--nll-error", 1, "--quiet", "--overwrite"]
    assert main([str(word) for word in ("evaluate", copy, *options)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"NLL \(ODE\) +20 +[\d.]+ +unknown +", table)
    assert "errors are unknown: all examples are" in table
    result = json.loads((copy / "evaluation.json").read_text())
    assert (
        result["nll"]["with_reconstruction"]["bits_per_dim_standard_error"] is None
        and result["groups"] == 1
    )


def test_samples_are_repeatable_grey_levels_and_drawn_once(run, tmp_path, capsys):
    def draw(name, seed, *more):
        line = [
            "sample",
            str(run),
            "-n",
            "9",
            "--steps",
            "3",
            "--seed",
            seed,
            "--out",
            str(tmp_path / name),
            "--quiet",
        ]
        status = main([*line, *more])
        return status, (tmp_path / name / "samples.npz").stat().st_mtime_ns

    drawn = {name: draw(name, seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))}
    files = [np.load(tmp_path / name / "samples.npz")["samples"] for name in "abc"]
    assert files[0].shape == (9, 1, 8, 8) and files[0].dtype == np.uint8 and files[0].max() <= 16
    assert np.array_equal(files[0], files[1]) and not np.array_equal(files[0], files[2])
    grid = np.asarray(Image.open(tmp_path / "a" / "samples.png"))
    # 8 pixels eight times as large, and lines of six
    assert grid.shape == (3 * 70 + 6, 3 * 70 + 6, 3)
    assert np.array_equal(grid[76:140:8, 6:70:8, 0], (files[0][3, 0] / 16 * 255).round())
    assert draw("a", "1") == draw("a", "2") == (2, drawn["a"][1])
    assert draw("a", "2", "--overwrite")[1] != drawn["a"][1]


def test_samples_from_a_centred_prior(run, tmp_path):
    line = [
        "sample",
        str(run),
        "-n",
        "6",
        "--sampler",
        "pc",
        "--steps",
        "3",
        "--sampler.snr",
        "[0.2,0.1]",
    ]
    assert main([*line, "--latent-mean", "--out", str(tmp_path), "--quiet"]) == 0
    samples, _, made_by = read_samples(tmp_path / "samples.npz")
    assert made_by["latent_mean"] and made_by["sampler_options"] == {"snr": [0.2, 0.1]}
    model, generator = indm.INDM.load(run), torch.Generator().manual_seed(0)
    centre_prior(model, load_data("digits").train.tensor, generator=generator)
    x = indm.sample(
        model, 6, sampler=PredictorCorrector(snr=(0.2, 0.1)), steps=3, generator=generator
    )
    assert torch.equal(model.scaling.to_data(x), samples)


def test_a_picture_of_samples_is_of_those_beside_it(run, tmp_path):
    """Samples that are drawn anew without a picture, as for scores, leave none of the old ones
    behind.
    """
    line = ["sample", str(run), "-n", "4", "--steps", "2", "--out", str(tmp_path), "--quiet"]
    assert main(line) == 0
    old = (tmp_path / "samples.png").read_bytes()
    drawing = Drawing(n=4, steps=2, seed=1)
    with pytest.raises(
        ValueError, match=r"already holds samples\.json, samples\.npz, samples\.png"
    ):
        samples_module.draw(run, drawing, tmp_path, progress=False)
    new = samples_module.draw(run, drawing, tmp_path, overwrite=True, progress=False)[0]
    assert not (tmp_path / "samples.png").exists()
    assert json.loads((tmp_path / "samples.json").read_text())["options"]["seed"] == 1
    assert main([*line, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "samples.png").read_bytes() != old
    assert torch.equal(read_samples(tmp_path / "samples.npz")[0], new)
    (tmp_path / "samples.npz").write_bytes(b"damaged")
    assert main(line) == 2 and (tmp_path / "samples.npz").read_bytes() == b"damaged"


def test_samples_of_a_table_are_a_table_with_its_names(tmp_path):
    table = tmp_path / "table.csv"
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).tolist()
    table.write_text("\n".join(["height, weight,age", *(",".join(map(str, row)) for row in rows)]))
    small = [
        "--net.width=8",
        "--train.steps=1",
        "--train.batch_size=16",
        "--train.seconds=inf",
        "--quiet",
    ]
    out = str(tmp_path / "run")
    assert (
        main(
            [
                "train",
                "array",
                f"--data.path={table}",
                "--data.x",
                '["height", "age"]',
                *small,
                "--out",
                out,
            ]
        )
        == 0
    )
    assert main(["sample", out, "-n", "3", "--steps", "2", "--quiet"]) == 0
    first, *drawn = (tmp_path / "run/samples.csv").read_text().split()
    assert first == "height,age"
    assert np.array_equal(
        np.loadtxt(drawn, delimiter=",", dtype=np.float32),
        read_samples(tmp_path / "run/samples.npz")[0],
    )
    assert samples_module.column_names({"path": str(table), "c": "age"}, 2) == ["height", "weight"]
    assert samples_module.column_names({"path": str(tmp_path / "gone.csv")}, 2) == ["x1", "x2"]


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """A copy of a run that is evaluated, under a name in which matplotlib would see a formula."""
    folder = tmp_path_factory.mktemp("evaluated") / r"a$\x$b"
    shutil.copytree(run, folder)
    assert (
        main(
            [
                "evaluate",
                str(folder),
                "--examples",
                "20",
                "--nll-examples",
                "0",
                "--quiet",
                "--overwrite",
            ]
        )
        == 0
    )
    return folder


DAMAGED = {
    "evaluation.json": [b"[]"],
    "evaluation.npz": [b"PK"],
    "samples.npz": [{"samples": np.zeros((2, 1, 3, 3))}, b"PK"],
}


@pytest.mark.parametrize(
    "name, damage", [(name, d) for name, damages in DAMAGED.items() for d in damages]
)
def test_what_compare_reads_is_whole_or_named(name, damage, evaluated, tmp_path, capsys):
    twin = shutil.copytree(evaluated, tmp_path / "twin")
    np.savez(twin / name, **damage) if isinstance(damage, dict) else (twin / name).write_bytes(
        damage
    )
    assert name in fails(capsys, "compare", evaluated, twin, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")), "nothing half done is left"


def shown_by(capsys, *arguments):
    """What a command prints that shows some help, less boxes and line breaks."""
    capsys.readouterr()
    assert main([*arguments]) == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_all_commands_are_on_one_screen(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 30 and max(map(len, lines)) <= 100
    for name in COMMANDS:
        assert (
            len([line for line in lines if line.startswith(f"  {name} ") and line.endswith(".")])
            == 1
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_there_and_has_no_empty_default(command, capsys):
    shown = shown_by(capsys, command, "--help")
    assert (
        f"usage: indm {command} " in shown
        and str(command_of(command).__doc__).splitlines()[0] in shown
    )
    assert "default: )" not in shown


@pytest.mark.parametrize("kind", names.BUILT_IN)
def test_each_argument_of_every_part_has_a_sentence_and_a_type(kind):
    for name in names.BUILT_IN[kind]:
        part = names.find(kind, name)
        keys = arguments_of(part) if kind != "objective" else {}
        for key, hint in hints_of(part, keys).items():
            assert listing.sentences_of(part).get(key), f"{name} says nothing of {key}"
            is_checked = hint is not inspect.Parameter.empty and not isinstance(hint, str)
            assert is_checked or key == "shape", f"{name} has no type for {key}"


MINE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, shape, width=3):
        super().__init__()
        self.width = width
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, z, level):
        return self.scale * z
"""


@pytest.mark.filterwarnings("ignore:the network may have ripples")
def test_code_from_outside_runs_where_the_user_says_so_and_nowhere_else(
    tmp_path, monkeypatch, capsys
):
    """--net on the command line of a training is enough; what stands in a file needs --trust, and
    so does --resume.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(MINE)
    path = list(sys.path)
    short = [
        "--flow",
        "identity",
        "--train.steps=2",
        "--train.seconds=inf",
        "--train.validate_examples=20",
        "--quiet",
    ]
    train = ["train", "digits", "--net", "my_nets:Net", "--net.width", "5", *short, "--out", "run"]
    assert main(train) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["net"]["width"] == 5
    del sys.modules["my_nets"]
    few = ["--examples", "20", "--nll-examples", "0", "--quiet"]
    refused = {
        "evaluate": ["evaluate", "run", *few],
        "sample": ["sample", "run", "-n", "2", "--steps", "2", "--quiet"],
        "resume": ["train", "run", "--resume", "--train.steps", "3", "--quiet"],
        "resume by name": [*train, "--resume", "--train.steps=3"],
        "from a file": ["train", "run/recipe.toml", *short[2:], "--out", "again"],
    }
    for command in refused.values():
        assert "--trust my_nets" in fails(capsys, *command)
    assert "my_nets" not in sys.modules and not (tmp_path / "again").exists()
    for command in refused.values():
        assert main([*command, "--trust", "my_nets"]) == 0
    assert sys.path == path
    del sys.modules["my_nets"]


@pytest.mark.filterwarnings("ignore:the network may have ripples")
def test_the_short_name_of_an_installed_part_is_trusted_where_the_user_writes_it(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "site" / "my_nets-1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "my_nets-1.dist-info" / "METADATA").write_text(
        "Name: my_nets\nVersion: 1\n"
    )
    (tmp_path / "site" / "my_nets-1.dist-info" / "entry_points.txt").write_text(
        "[indm.parts]\nnet.mine=my_nets:Net\n"
    )
    (tmp_path / "site" / "my_nets.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    short = ["--train.steps=2", "--train.seconds=inf", "--train.validate_examples=20", "--quiet"]
    assert (
        main(["train", "digits", "--net", "mine", "--flow", "identity", *short, "--out", "run"])
        == 0
    )
    del sys.modules["my_nets"]
    few = ["evaluate", "run", "--examples", "20", "--nll-examples", "0", "--quiet"]
    assert "--trust my_nets" in fails(capsys, *few) and "my_nets" not in sys.modules
    assert main([*few, "--trust", "my_nets"]) == 0
    assert "mine" in shown_by(capsys, "list", "net")
    del sys.modules["my_nets"]


# ── Whatever is wrong is one line ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def workplace(run, tmp_path_factory):
    """A folder with a run, damaged ones, recipes that are wrong, and data."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("full", "damaged", "untrained", "pictures"):
        (folder / name).mkdir()
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "a.png")
    (folder / "full" / "precious.txt").write_text("x")
    shutil.copytree(run, folder / "trained")
    for name in ("model.json", "recipe.toml"):
        shutil.copy(run / name, folder / "damaged" / name)
    (folder / "damaged" / "model.safetensors").write_bytes(
        (run / "model.safetensors").read_bytes()[:100]
    )
    np.save(folder / "vectors.npy", np.zeros((50, 2)))
    whole = recipes.to_toml(recipes.load("digits"))
    (folder / "broken.toml").write_text("steps = = 3")
    (folder / "extra.toml").write_text(f"{whole}\n[extra]\na = 1\n")
    (folder / "setps.toml").write_text(whole.replace("[train]", "[train]\nsetps = 30"))
    (folder / "nameless.toml").write_text(whole.replace('name = "elementwise"', ""))
    (folder / "notable.toml").write_text("train = 3\n" + whole[: whole.index("[train]")])
    (folder / "untrained" / "recipe.toml").write_text(whole)
    return folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        # the command and its options
        ("--train", "train"), ("trian digits", "train"), ("train digits --rezume", "--resume"),
        ("train digits --steps 3", "--train.steps"), ("sample full --flow.width 3", "--flow.width"),
        ("train digits --train mle", "--train"), ("train digits --train.steps", "--train.steps"),
        ("train array vectors.npy", "--data.path"), ("list flw", "flow"), ("sample trained -n 0", "n"),
        ("sample trained --out trained/recipe.toml", "trained/recipe.toml"), ("compare", "run folder"),
        # the device, by every command that computes
        *((f"{command} --device cuda:99", "device")
          for command in ("train digits", "train-pair digits-3-8", "train-bridge digits-3-8", "evaluate untrained",
                          "sample untrained", "fid untrained x", "translate a b --out c", "compare untrained")),
        # keys of a recipe: unknown, of another type, out of range
        ("train digits --train.setps 3", "steps"), ("train setps.toml", "steps"),
        ("train digits --train.steps 1.5", "train.steps"), ("train digits --train.betas [0.9]", "train.betas"),
        ("train digits --train.batch_size 0", "train.batch_size"), ("train digits --train.objective nll", "mle"),
        ("evaluate trained --overwrite --repeats 1", "evaluate.repeats"),
        ("evaluate trained --overwrite --eps 1e-6", "eps"), ("sample trained --sampler dmp++", "sampler"),
        ("sample trained --sampler ode --sampler.tol nan", "tol"),
        # parts
        ("train digits --flow coupling --flow.widht 3", "width"), ("train digits --sde pv", "sde.name"),
        ("train digits --flow coupling --flow.width three", "flow.width"), ("train digits --data.limt 9", "limit"),
        ("train digits --flow coupling --flow.widht 3", "flow.widht"),
        ("train digits --net.multipliers 3", "net.multipliers"),
        ("train folder", "path"), ("train folder --out new --data.path nowhere", "path"),
        # files
        ("train digitz", "digits"), ("train pictures", "indm train folder"), ("train broken.toml", "broken.toml"),
        ("train extra.toml", "[extra]"), ("train nameless.toml", "[flow]"), ("train notable.toml", "train"),
        ("train digits --resume --out nowhere", "nowhere"), ("train digits --out full", "full"),
        ("evaluate nowhere", "nowhere"), ("sample untrained", "untrained"), ("sample damaged", "damaged"),
        ("train digits --like trained --train.steps=5", "--like"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it_and_changes_nothing(
    arguments, named, workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    before = {p: p.stat().st_mtime_ns for p in workplace.rglob("*")}
    assert named in fails(capsys, *arguments.split())
    assert {p: p.stat().st_mtime_ns for p in workplace.rglob("*")} == before


# ── Exit statuses, --debug, Ctrl-C, and what is written over


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("a\nb \x1b[2J"), 2, "indm: error: a b \\x1b[2J"),
        (FileNotFoundError(2, "No such file", "x"), 2, "indm: error: [Errno 2] No such file: 'x'"),
        (
            OSError(28, "No space left on device"),
            2,
            "indm: error: [Errno 28] No space left on device",
        ),
        (RuntimeError("the loss became NaN"), 2, "indm: error: the loss became NaN"),
        (MemoryError(), 2, "indm: error: MemoryError"),
        (
            ModuleNotFoundError("No module named 'a_b'", name="a_b"),
            2,
            "indm: error: No module named 'a_b' (pip install a-b)",
        ),
        (type("OfNumPy", (MemoryError,), {})("1.50 GiB"), 2, "indm: error: 1.50 GiB"),
        (
            KeyError("x"),
            3,
            "indm: error: unexpected KeyError: 'x' (the same command with --debug shows where)",
        ),
        (RecursionError("too deep"), 3, "indm: error: unexpected RecursionError: too deep"),
        (AssertionError(), 3, "indm: error: unexpected AssertionError: "),
        (KeyboardInterrupt(), 130, "indm: interrupted"),
    ],
)
def test_every_failure_is_one_line_and_a_status(error, status, said, monkeypatch, capsys):
    def fail(self, *_):
        raise error

    for command in ("train digits", "evaluate r", "translate r a --out o", "list"):
        monkeypatch.setattr(command_of(command.split()[0]), "run", fail)
        assert main(command.split()) == status
        shown = capsys.readouterr().err
        assert shown.startswith(said) and shown.count("\n") == 1
        if status != 130:
            assert main([*command.split(), "--debug"]) == status
            shown = capsys.readouterr().err
            assert (
                "Traceback (most recent call last)" in shown
                and "in fail" in shown
                and said in shown
            )


def test_nothing_is_written_over_unless_told_to(run, tmp_path, capsys):
    few = ["--examples", "20", "--nll-examples", "0", "--quiet"]
    assert main(["evaluate", str(run), *few, "--overwrite"]) == 0
    out, draw = tmp_path / "out", ["-n", "4", "--steps", "2", "--quiet"]
    again = shutil.copytree(run, tmp_path / "again")
    commands = (
        ["evaluate", str(run), *few],
        ["sample", str(run), *draw, "--seed=7", "--out", str(out)],
        ["compare", str(run), str(again), "--out", str(out)],
    )
    for command in commands[1:]:
        assert main(command) == 0
    kept = {p: p.read_bytes() for folder in (run, out) for p in folder.iterdir() if p.is_file()}
    for command in commands:
        assert "(--overwrite)" in fails(capsys, *command)
    assert {p: p.read_bytes() for p in kept} == kept
    assert main([*commands[1], "--overwrite", "--seed=1"]) == 0
    assert (out / "samples.npz").read_bytes() != kept[out / "samples.npz"]


def test_a_run_that_was_ended_before_its_first_step_says_what_to_do(tmp_path, capsys):
    (tmp_path / "early").mkdir()
    error = fails(capsys, "train", tmp_path / "early", "--resume")
    assert "it is empty: give the command that made it, without --resume" in error


@pytest.mark.parametrize(
    "source", ["../up.toml", "...toml", "..", "../../..", "/dev/null", "runs/../x", ".hidden"]
)
def test_the_name_of_a_run_never_leads_out_of_the_folder_of_runs(source):
    assert Path(run_name(source)).name == run_name(source) not in ("", ".", "..")


@pytest.mark.long
def test_a_reader_that_has_enough_is_no_error():
    for given in ("list", "train --help"):
        command = (
            f"{shlex.quote(sys.executable)} -m indm {given} | head -1; echo ${{PIPESTATUS[0]}}"
        )
        slow = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert slow.stderr == "" and slow.stdout.splitlines()[-1] in ("0", "141")


# ── What is loaded ────────────────────────────────────────────────────────────────────────────────


HEAVY = (
    "torch",
    "torchvision",
    "accelerate",
    "matplotlib",
    "sklearn",
    "scipy",
    "numpy",
    "PIL",
    "jaxtyping",
)


def test_nothing_heavy_is_loaded_before_it_is_used():
    lines = [["list"], ["list", "train"]]
    script = "import indm, sys; from indm.workbench.cli.main import main; "
    script += f"[main(line) for line in {lines}]; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.splitlines()[-1].split()) & set(HEAVY)


def test_list_has_all_parts(capsys):
    listed = shown_by(capsys, "list")
    assert all(name in listed for kind in names.BUILT_IN for name in names.BUILT_IN[kind])
    assert "residual" in shown_by(capsys, "list", "flow") and "1797 digits" in shown_by(
        capsys, "list", "recipes"
    )


@pytest.mark.parametrize(
    "given, expected",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_the_command_lets_waiting_threads_sleep_unless_told_otherwise(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("indm.workbench.cli.main.main", lambda: 5)
    assert indm_command.program() == 5 and os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_run_whose_data_were_given_in_python_is_sampled_without_them(tmp_path, capsys):
    options = recipes.recipe(
        "eight-gaussians", {"train.steps": 1, "train.validate_examples": 10, "train.batch_size": 20}
    )
    train(options, tmp_path / "run", data=torch.randn(100, 2), progress=False)
    with pytest.warns(
        UserWarning, match="the picture shows no data .*: data 'given' was given in Python"
    ):
        assert main(["sample", str(tmp_path / "run"), "-n", "4", "--steps", "2", "--quiet"]) == 0
    assert (
        tmp_path / "run" / "samples.png"
    ).is_file() and "samples.png: 4 samples" in capsys.readouterr().out
