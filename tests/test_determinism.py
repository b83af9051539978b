"""The same seed gives the same bytes in another process, and every output says what it was made by."""

import json
import os
import subprocess
import sys

import pytest
import torch

import indm
from indm.files import untrusted
from indm.workbench.runs.provenance import weights_hash

WORK = """
import shutil
from indm.workbench.cli.main import main

small = [
    "--flow=coupling", "--flow.depth=1", "--flow.width=4", "--dequantization=uniform",
    "--net.channels=4", "--net.blocks=1", "--net.attention=[]", "--train.steps=4",
    "--train.seconds=inf", "--train.log_every=1", "--train.validate_every=2", "--train.validate_examples=20",
]
for command in (
    ["train", "digits", *small, "--out", "run"],
    ["evaluate", "run", "--examples", "20", "--nll-examples", "3", "--steps", "8"],
    ["sample", "run", "-n", "4", "--steps", "3", "--seed", "5"],
    ["sample", "run", "-n", "4", "--steps", "3", "--sampler", "euler-maruyama", "--out", "noisy"],
    ["translate", "run", "run", "run/samples.npz", "--out", "translated", "--stochastic", "--steps", "8"],
):
    assert main([*command, "--quiet"]) == 0, command
shutil.copytree("run", "twin")
assert main(["compare", "run", "twin", "--out", "compared"]) == 0
"""
TIMES = {"seconds", "seconds_per_example", "peak_memory_mib"}
JSONS = {
    "run/versions.json": 0, "run/evaluation.json": 0, "run/samples.json": 5, "noisy/samples.json": 0,
    "translated/translation.json": 0, "compared/comparison.json": None,
}  # fmt: skip


def timeless(value):
    """Without what a clock has measured."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    if isinstance(value, torch.Tensor):
        return value.shape, value.numpy().tobytes()
    return [timeless(part) for part in value] if isinstance(value, list) else value


def content(path):
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".pt":
        return timeless(untrusted.checkpoint(path))
    return path.read_bytes()


@pytest.mark.long
def test_two_processes_write_the_same_bytes_and_say_what_made_them(tmp_path, monkeypatch):
    """This one, and one whose sets and dictionaries have another order."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    monkeypatch.setattr(sys, "argv", ["-c"])
    exec(WORK, {})
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        cwd=folders[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first.keys() == second.keys() and len(first) > 15
    for name, path in first.items():
        if name.name != "comparison.png":  # it shows the seconds
            assert content(path) == content(second[name]), name

    weights = weights_hash(folders[0] / "run")
    for name, seed in JSONS.items():
        found = json.loads((folders[0] / name).read_text())
        made_by = found if name == "run/versions.json" else found["provenance"]
        assert (
            made_by["indm"] == indm.__version__
            and made_by["seed"] == seed
            and made_by["threads"] == 1
        ), name
        assert {"torch", "numpy", "python", "git", "command", "device"} <= made_by.keys(), name
        runs = ["run", "twin"] if name == "compared/comparison.json" else ["run"]
        assert name == "run/versions.json" or made_by["weights_sha256"] == dict.fromkeys(
            runs, weights
        ), name
