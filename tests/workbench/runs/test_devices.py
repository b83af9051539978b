"""The device that is chosen, and a machine that has no such one."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState

from indm.model import INDM
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.runs.devices import (
    CHOSEN,
    computing_on,
    device,
    fast_precision,
    make_accelerator,
    names,
    on_cpu,
)
from indm.workbench.runs.folder import open_model


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


def test_a_device_is_chosen_and_given_back(two_gpus, monkeypatch):
    monkeypatch.delenv(CHOSEN, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert names() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert (device(), on_cpu(), fast_precision()) == ("cuda", False, "bf16")
    with computing_on("cuda:1"):
        assert (device(), on_cpu(), os.environ[CHOSEN]) == ("cuda:1", False, "cuda:1")
        with computing_on("cpu"):
            assert (device(), on_cpu(), fast_precision()) == ("cpu", True, "no")
        assert device() == "cuda:1"
    assert device() == "cuda" and CHOSEN not in os.environ


@pytest.mark.parametrize("name", ["cuda:2", "mps", "gpu", ""])
def test_a_device_that_is_not_there_is_an_error(name, two_gpus):
    complaint = (
        r"device must be auto or one that this machine has \(cpu, cuda, cuda:0, cuda:1\), got "
    )
    with pytest.raises(ValueError, match=complaint), computing_on(name):
        pass


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_models_are_trained_and_evaluated_on_it(name, tmp_path, monkeypatch):
    """The meta device stands for one that this machine may not have."""
    monkeypatch.setattr("indm.workbench.runs.devices.names", lambda: ["cpu", "meta"])
    monkeypatch.setattr(INDM, "load", lambda folder, device: device)
    (tmp_path / "model.json").write_text("{}")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with computing_on(name):
            assert make_accelerator(TrainOptions(mixed_precision="no")).device.type == name
            assert open_model(tmp_path) == name
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
