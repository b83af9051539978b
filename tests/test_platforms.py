"""What other machines lack: a process without what Windows does not have, and one whose device has no float64.

Both are stand-ins (tests/windows.py, tests/single_precision.py). The first is Linux still: it shows that nothing is
used that is not there, not how Windows behaves. The second is arithmetic of the CPU: it shows that no float64 reaches
the device and that nothing mixes two devices, not what Apple's kernels compute.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indm.workbench.cli.main import main

TINY = "digits --train.steps 3 --train.batch_size 8 --net.channels 8"
LITTLE = "--examples 2 --steps 8 --times 1 --repeats 2"
ROUNDING = 2e-3  # nats of a likelihood in single precision, of some 200


def run(stand_in: str, folder: Path, *commands: str) -> None:
    """The indm ``commands`` in one process that is like another machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", stand_in, *" --debug , ".join(commands).split(), "--debug"]
    done = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(here.parent), str(here))))


@pytest.mark.long
def test_a_process_without_what_windows_lacks_trains_resumes_evaluates_and_samples(tmp_path):
    run(
        "windows",
        tmp_path,
        f"train {TINY} --out a",
        "train a --resume --train.steps 5",
        f"evaluate a {LITTLE}",
        "sample a -n 2 --steps 2",
    )
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["steps"] == 5
    assert np.load(tmp_path / "a" / "samples.npz")["samples"].shape == (2, 1, 8, 8)


@pytest.mark.long
def test_the_stand_in_for_windows_says_what_would_fail_there(tmp_path):
    script = """
import os
import windows
windows.become()
def fails(error, call, *arguments):
    try:
        call(*arguments)
    except error:
        return True
open("a", "w").close(), open("b", "w").close()
with open("a", "rb") as file:
    assert fails(OSError, os.fsync, file.fileno()) and fails(PermissionError, os.replace, "b", "a")
os.replace("b", "a")
assert fails(ImportError, __import__, "resource") and not hasattr(os, "sysconf")
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


@pytest.mark.long
def test_a_device_without_float64_trains_resumes_evaluates_and_samples_as_the_cpu_does(tmp_path, monkeypatch):
    run(
        "single_precision",
        tmp_path,
        f"train {TINY} --device single --out a",
        "train a --resume --train.steps 4 --device single",
        f"evaluate a {LITTLE} --device single",
        "sample a -n 2 --steps 2 --device single --out single",
    )
    on_device = np.load(tmp_path / "a" / "evaluation.npz")
    monkeypatch.chdir(tmp_path)
    assert main(f"evaluate a {LITTLE} --device cpu --overwrite".split()) == 0
    assert main(["sample", "a", "-n", "2", "--steps", "2", "--device", "cpu", "--out", "cpu"]) == 0
    on_cpu = np.load(tmp_path / "a" / "evaluation.npz")
    np.testing.assert_allclose(on_device["nll"], on_cpu["nll"], atol=ROUNDING)
    assert np.isfinite(on_device["nelbo"]).all()  # at other times: they are drawn in the device's own precision
    samples = [np.load(tmp_path / device / "samples.npz")["samples"].astype(int) for device in ("single", "cpu")]
    assert abs(samples[0] - samples[1]).max() <= 1


PARTS = """
import sys, warnings
import torch
import single_precision
single_precision.register()
import indm
from indm.flows.base import check_flow
from indm.diffusion import forward_path
from indm.translation import without_noise
warnings.simplefilter("ignore")
DEVICE = torch.device("single")

def model(device, **tables):
    torch.manual_seed(0)
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}} | tables
    made = indm.build_model(tables, (3,))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.to(device)

x, losses = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), (indm.mle_loss, indm.fid_loss)
for tables in ({}, {"flow": {"name": "residual"}}, {"flow": {"name": "coupling"}}):
    results = []
    for device in (torch.device("cpu"), DEVICE):
        here = model(device, **tables)
        rows = x.to(device).requires_grad_()
        log_prob = here.log_prob(rows, steps=3)
        gradient, = torch.autograd.grad(log_prob.sum(), rows)
        for loss in losses:
            loss(here, rows.detach())[0].backward()
        report = indm.log_likelihood(here, rows.detach(), steps=8, generator=torch.Generator(device).manual_seed(0))
        samples = indm.sample(here, 2, sampler="heun", steps=2, generator=torch.Generator(device).manual_seed(0))
        assert report.nats().device == samples.device == rows.device, (report.nats().device, device)
        results.append((log_prob, gradient, report.nats(), report.solver_error, samples))
    for cpu, single in zip(*results):
        torch.testing.assert_close(single.detach().cpu().to(cpu.dtype), cpu.detach(), atol=2e-4, rtol=1e-4)
here = model(DEVICE)
for end in (here.sde.eps, here.sde.T):
    assert without_noise(here, x.to(DEVICE), 0.1, end).device.type == DEVICE.type
check_flow(model(DEVICE, flow={"name": "coupling"}).flow, x[:2].to(DEVICE))
assert forward_path(here, x.to(DEVICE), torch.tensor([0.1, 0.5, 0.9])).device.type == DEVICE.type
"""


@pytest.mark.long
def test_likelihoods_gradients_losses_and_samplers_need_no_float64_on_the_device(tmp_path):
    done = subprocess.run([sys.executable, "-c", PARTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
