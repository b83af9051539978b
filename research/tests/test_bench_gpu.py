"""``make gpu`` on the CPU, a hundredth of its size: every part once, named gaps, and nothing twice."""

import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import exit_code, fork

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import gpu
import parts
from parts import Part, do_all


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noise in the files that make gpu-data brings."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    fashion, emoji = (
        root / "fashion-mnist" / "FashionMNIST" / "raw",
        root / "emoji" / "package" / "img" / "google" / "64",
    )
    fashion.mkdir(parents=True)
    emoji.mkdir(parents=True)
    for part, n in (("train", 5060), ("t10k", 40)):
        arrays = {
            "images-idx3": random.integers(0, 256, (n, 28, 28), np.uint8),
            "labels-idx1": np.arange(n, dtype=np.uint8) % 10,
        }
        for name, array in arrays.items():
            header = np.array([2048 + array.ndim, *array.shape], ">u4").tobytes()
            (fashion / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    for i in range(120):
        Image.fromarray(random.integers(0, 256, (64, 64, 4), np.uint8)).save(
            emoji / f"{0x1F400 + i:x}.png"
        )
    return root


@pytest.fixture
def quick(monkeypatch):
    """One test, and nothing compiled."""
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k bfloat16")


def options(out, data=None):
    return parts.Options(out=out, data=data, device="cpu")


def numbers(value):
    if isinstance(value, dict | list):
        return [
            n
            for part in (value.values() if isinstance(value, dict) else value)
            for n in numbers(part)
        ]
    return [value] if isinstance(value, int | float) else []


def check_done(out):
    """Every part is done and gave finite numbers; the summary."""
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == [part.name for part in gpu.PARTS]
    assert {part["status"] for part in summary.values()} == {"done"}, summary
    assert len(numbers(summary)) > 60 and all(map(math.isfinite, numbers(summary)))
    table = (out / "summary.md").read_text()
    assert (
        table.count("| done |") == len(gpu.PARTS)
        and "![folder-sample](folder/samples.png)" in table
    )
    assert (out / "folder" / "samples.png").exists()
    return summary


@pytest.mark.long
def test_every_part_is_done_once_also_where_it_was_killed(tmp_path, data, quick, monkeypatch):
    arguments = ["--data", str(data), "--out", str(tmp_path), "--device", "cpu", "--scale", "0.003"]

    def first():
        os.setsid()
        gpu.main(arguments)

    group = fork(first)
    while not any((tmp_path / "fashion-mnist" / "checkpoints").glob("*.pt")):
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    assert exit_code(group) == -signal.SIGKILL
    before = {path: path.read_text() for path in (tmp_path / "records").glob("*.json")}
    assert (
        json.loads(before.pop(tmp_path / "records" / "fashion-mnist-train.json"))["why"] == "killed"
    )
    assert len(before) == 6

    assert gpu.main(arguments) == 0
    summary = check_done(tmp_path)
    assert all(path.read_text() == text for path, text in before.items()), (
        "what was done is not done again"
    )
    assert "before" in json.loads((tmp_path / "fashion-mnist" / "versions.json").read_text()), (
        "it was resumed"
    )
    monkeypatch.setattr(parts, "do", None)
    assert (
        gpu.main(arguments) == 0 and json.loads((tmp_path / "summary.json").read_text()) == summary
    )


@pytest.mark.long
def test_the_whole_rehearsal(tmp_path, data):
    """The rehearsal runs as a program, with torch.compile and reports."""
    command = [
        sys.executable,
        gpu.__file__,
        "--data",
        data,
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--scale",
        "0.01",
    ]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(parts.ROOT)})
    check_done(tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    assert gpu.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {part["status"] for part in summary.values()} == {"skipped"}
    assert (
        "built without CUDA" in summary["device"]["why"]
        and summary["tests"]["why"] == "device is not done"
    )
    assert summary["folder-train"]["why"] == "device is not done"
    (tmp_path / "out" / "records" / "device.json").write_text('{"status": "done"}')
    trainings = [part for part in gpu.PARTS if part.name.startswith("folder")]
    assert do_all(trainings, options(tmp_path / "out", tmp_path)) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (
        summary["folder-train"]["why"]
        == f"missing data: {tmp_path}/emoji (make gpu-data DATA={tmp_path})"
    )
    assert summary["folder-sample"]["why"] == "folder-train is not done"

    there = importlib.metadata.version

    def version(name):
        if name == "tyro":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name in ("filelock", "scipy") else there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert [text.split(">")[0] for text in parts.missing(frozenset())] == ["filelock", "tyro"]
    assert [text.split(">")[0] for text in parts.missing(parts.SELDOM)] == [
        "filelock",
        "scipy",
        "tyro",
    ]
    why = Part("", print).lacks(options(tmp_path, tmp_path))
    assert why.endswith(
        f" -m pip install --no-index --find-links {tmp_path}/wheels 'filelock>=4.3' 'tyro>=1.0,<2'"
    )


def test_a_part_that_fails_is_tried_again(tmp_path, capsys):
    def work(o):
        (o.out / "tries").open("a").write("x")
        if len((o.out / "tries").read_text()) < 2:
            raise ValueError("too soon")
        return {"rate": 0.5}

    job = [Part("work", work), Part("later", lambda o: {}, after="work")]
    assert do_all(job, options(tmp_path)) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["work"] == {"status": "failed", "why": "ValueError: too soon"}
    assert summary["later"] == {"status": "skipped", "why": "work is not done"}
    assert "Traceback" in (tmp_path / "logs" / "work.txt").read_text()
    assert do_all(job, options(tmp_path)) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["work"]["result"] == {"rate": 0.5}
    assert "work: done" in capsys.readouterr().out and (tmp_path / "tries").read_text() == "xx"


@pytest.mark.long
def test_a_part_hears_of_a_sigterm(tmp_path):
    def work(o):
        signal.signal(signal.SIGTERM, lambda *_: (o.out / "heard").touch() or sys.exit(1))
        (o.out / "started").touch()
        time.sleep(200)

    job = fork(lambda: do_all([Part("work", work)], options(tmp_path)))
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    os.kill(job, signal.SIGTERM)
    assert exit_code(job) and (tmp_path / "heard").exists()
