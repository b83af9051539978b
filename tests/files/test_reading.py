"""Files from strangers: nothing in them is run, and what they claim is checked before memory is
taken.

An `.npy` whose header claims 10¹² numbers was a MemoryError once.
"""

import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import indm
from indm import files
from indm.checks import one_line
from indm.files import untrusted
from indm.model import INDM, build_model
from indm.scaling import Scaling
from indm.workbench.data.base import load_data
from indm.workbench.data.images import read_image
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import peak_memory_mib
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.checkpoints import Checkpoints

HUGE = 10**12


@pytest.fixture(autouse=True)
def _no_memory_is_taken():
    """No test here may need a hundredth of what the files claim."""
    before = peak_memory_mib()
    yield
    assert peak_memory_mib() - before < 300


def test_messages_are_one_line_that_no_terminal_obeys():
    assert one_line("a\nb\t\tc\r d") == "a b c d"
    assert one_line("\x1b[2Jgone \x07 ü – 日本") == "\\x1b[2Jgone \\x07 ü – 日本"
    assert one_line("\udcff") == "\\udcff" and one_line("\u202egpj.exe") == "\\u202egpj.exe"


# ── Arrays


def header(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (header((HUGE,)), "cannot be read"),
        (header((HUGE, HUGE, HUGE)) + bytes(800), "cannot be read"),
        (header((10**6,)) + bytes(800), "cannot be read"),
        (header((-2, 8)) + bytes(800), "cannot be read"),
        (header((2, 2), "|O") + pickle.dumps([1, 2, 3, 4]), "Object arrays cannot be loaded"),
        (header((2,), "|S8") + bytes(16), "must hold floats or integers"),
        (header((2,), [("a", "<f8")]) + bytes(16), "must hold floats or integers"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 1000, "cannot be read"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "cannot be read"),
        (b"\x93NUMPY\x09\x00", "format version"),
        (b"", "cannot be read"),
    ],
)  # fmt: skip
def test_what_an_array_claims_is_checked(tmp_path, content, complaint):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../../a.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_data("array", path=tmp_path / name)
        assert "\n" not in str(caught.value)
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.npz"]
        and not (tmp_path.parent / "a.npy").exists()
    )


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A hundred MB of zeros in a hundred kB are no more than the header says, and read only where
    they fit.
    """
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        member.write(header((HUGE,)))
        for _ in range(100):
            member.write(bytes(2**20))
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"cannot be read as \.npy or \.npz"):
        load_data("array", path=tmp_path / "bomb.npz")
    np.savez_compressed(tmp_path / "large.npz", np.zeros((1000, 1000)))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=23_999_000)
    )
    with pytest.raises(
        ValueError, match=r"claims 24,000,384 bytes, and 23,999,000 bytes of memory are free"
    ):
        load_data("array", path=tmp_path / "large.npz")


PIPES = {
    "versions.json": lambda run: untrusted.json_object(run / "versions.json"),
    "metrics.jsonl": read_metrics,
    "a.npy": lambda folder: load_data("array", path=folder / "a.npy", mmap=True),
    "b.npy": lambda folder: load_data("array", path=folder / "b.npy"),
    "a.parquet": lambda folder: load_data("array", path=folder / "a.parquet"),
    "a.csv": lambda folder: load_data("array", path=folder / "a.csv", c="b"),
    "a.pt": lambda folder: untrusted.checkpoint(folder / "a.pt"),
    "a.png": lambda folder: read_image(folder / "a.png"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", PIPES)
def test_no_pipe_is_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="it is not a file"):
        PIPES[name](tmp_path)


def test_a_log_is_read_as_a_stranger_s_file(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '[]\n1\n"x"\n{"a": 3}\n' + '{"step": 3, "a": ' + 100_000 * "[" + '\n{"step": 4}\n'
    )
    assert read_metrics(tmp_path) == [{"step": 4}]
    log.unlink()
    with log.open("wb") as file:
        file.truncate(files.LARGEST_TEXT + 1)
    with pytest.raises(
        ValueError,
        match=r"metrics\.jsonl cannot be read as lines of JSON: it holds 33,554,433 bytes",
    ):
        read_metrics(tmp_path)


def test_text_has_a_largest_size(tmp_path):
    for name in ("recipe.toml", "versions.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(files.LARGEST_TEXT + 1)
    complaint = (
        r"recipe\.toml is not valid TOML: it holds 33,554,433 bytes, and a text may hold 33,554,432"
    )
    with pytest.raises(ValueError, match=complaint):
        recipes.load(tmp_path)
    with pytest.raises(
        ValueError, match=r"versions\.json cannot be read as JSON: it holds 33,554,433 bytes"
    ):
        untrusted.json_object(tmp_path / "versions.json")


# ── Images


def png(width, height, extra=b""):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(bytes(10**7)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [14_000, 10**6, 2**31 - 1])
def test_an_image_that_claims_much_is_refused_by_its_header(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png(side, side))
    with pytest.raises(ValueError, match="limit of"):
        read_image(tmp_path / "a.png")


def test_only_formats_whose_decoders_run_nothing_are_opened(tmp_path, monkeypatch):
    """PIL would give PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(
        "subprocess.check_call", lambda *_, **__: pytest.fail("a program was started")
    )
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "a.png")


# ── Models and checkpoints


class Code:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


TABLES = {
    "flow": {"name": "residual", "blocks": [1], "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 8, "depth": 1},
}


def saved(folder, **changes):
    model = build_model(TABLES | changes, (2,), Scaling())
    model.save(folder)
    return model


def test_weights_that_claim_more_than_the_file_holds(tmp_path):
    saved(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    claims = json.loads(content[8 : 8 + length])
    name = next(name for name in claims if name.endswith("weight"))
    start = claims[name]["data_offsets"][0]
    for shape, end in (
        ([HUGE], start + 4 * HUGE),
        ([HUGE], claims[name]["data_offsets"][1]),
        ([2**62, 4], start),
    ):
        claims[name] |= {"shape": shape, "data_offsets": [start, end]}
        text = json.dumps(claims).encode()
        (tmp_path / "model.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + content[8 + length :]
        )
        with pytest.raises(ValueError, match="cannot be read"):
            INDM.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + content[8:])
    with pytest.raises(ValueError, match="cannot be read"):
        INDM.load(tmp_path)


@pytest.mark.parametrize("content", [{"model": Code()}, [torch.ones(2), Code()]])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_pickled_code_is_not_run(tmp_path, monkeypatch, content, zipped):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoints" / "00000001.pt"
    path.parent.mkdir()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"more than tensors, .* no pickled code is run"):
        untrusted.checkpoint(path)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(FileNotFoundError, match="no intact checkpoint"),
    ):
        Checkpoints(tmp_path).newest()
    assert not (tmp_path / "run-by-a-pickle").exists()
    torch.load(f"{path}.damaged", weights_only=False)  # as it would have been
    assert (tmp_path / "run-by-a-pickle").exists()


def test_pickles_in_other_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Code()] * 4, object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        load_data("array", path="a.npy")
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="cannot be read"):
        INDM.load(tmp_path)
    assert not (tmp_path / "run-by-a-pickle").exists()


def test_the_source_loads_no_pickle():
    """Of the two functions that could, one is always told not to, the other is not used."""
    for path in sorted(Path(indm.__file__).parent.rglob("*.py")):
        text = path.read_text("utf-8")
        assert not re.search(r"import (pickle\b|\w*dill|joblib)|pickle\.(load|Unpickler)", text), (
            path
        )
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        text = text.replace("np.load(path, allow_pickle=False)", "").replace(
            "return load_file(path", ""
        )
        text = text.replace('numpy.load_file("{name}', "")  # advice
        assert "np.load(" not in text and "load_file(" not in text, path


def test_a_state_of_other_dtypes_is_loaded_or_refused(tmp_path):
    saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v.to(torch.int64) for k, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        INDM.load(tmp_path)
