"""States on disk: damage of every kind is seen, the newest whole one is used, nothing good is lost."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from indm.files import untrusted
from indm.workbench.training.checkpoints import Checkpoints, read


def state(step):
    return {
        "step": step,
        "model": {"weight": torch.full((3, 4), float(step))},
        "seconds": 0.5,
        "best": {},
    }


def written(run, *steps, keep=2):
    for step in steps:
        Checkpoints(run, keep).write(state(step))


def restored(run):
    path, found = Checkpoints(run).newest()
    assert torch.equal(found["model"]["weight"], state(found["step"])["model"]["weight"])
    assert read(path)["step"] == found["step"]
    return found["step"]


def steps_in(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "keep, left", [(1, ["10.pt"]), (2, ["9.pt", "10.pt"]), (9, ["0.pt", "2.pt", "9.pt", "10.pt"])]
)
def test_the_last_few_stay_by_their_steps(tmp_path, keep, left):
    written(tmp_path, 0, 2, 9, 10, keep=keep)
    assert steps_in(tmp_path) == sorted(left) and restored(tmp_path) == 10


@pytest.mark.long
def test_every_flipped_bit_is_seen_or_is_of_no_consequence(tmp_path):
    """One bit in every third byte of a state: what can be read is what was written."""
    written(tmp_path, 1)
    path, damaged, seen = tmp_path / "checkpoints" / "1.pt", tmp_path / "damaged.pt", 0
    content = bytearray(path.read_bytes())
    for i in range(0, len(content), 3):
        content[i] ^= 1 << i % 8
        damaged.write_bytes(content)
        content[i] ^= 1 << i % 8
        try:
            found = read(damaged)
        except Exception:
            seen += 1
            continue
        assert found.keys() == state(1).keys() and found["step"] == 1 and found["seconds"] == 0.5
        assert torch.equal(found["model"]["weight"], state(1)["model"]["weight"])
    assert seen > 0.1 * len(content)  # the rest is padding, dates, and what is said twice


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_the_newest_whole_state_is_used_and_a_truncated_one_set_aside(tmp_path, share):
    written(tmp_path, 10, 20)
    truncate(tmp_path / "checkpoints" / "20.pt", share)
    with pytest.warns(UserWarning, match=r"20\.pt is damaged .* set aside; an older one"):
        assert restored(tmp_path) == 10
    assert steps_in(tmp_path) == ["10.pt", "20.pt.damaged"]
    written(tmp_path, 20)
    assert steps_in(tmp_path) == ["10.pt", "20.pt", "20.pt.damaged"], (
        "no whole state gave way to a damaged one"
    )


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call):
    written(tmp_path, 10, 20)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "link":  # no hard links: a copy will do
            written(tmp_path, 30)
        else:
            with pytest.raises(OSError, match="No space left"):
                written(tmp_path, 30)
    assert restored(tmp_path) == (30 if call == "link" else 20)
    assert not [p for p in tmp_path.rglob(".*")], "nothing half written takes up the disk"


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), RuntimeError("can't allocate memory"), None]
)
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    written(tmp_path, 10, 20)

    def fails(*_):
        raise error

    with (
        monkeypatch.context() as patch,
        pytest.raises(MemoryError if error is None else type(error)),
    ):
        if error is None:  # no memory is free
            patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
        else:
            patch.setattr(untrusted, "checkpoint", fails)
        restored(tmp_path)
    assert steps_in(tmp_path) == ["10.pt", "20.pt"] and restored(tmp_path) == 20
