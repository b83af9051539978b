"""Nothing mixes devices: the commands on a device that is not the CPU, see ``elsewhere.py``. A device without float64
runs them in every test run (``test_platforms.py``)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration as registration

PROGRAM = """
import pytest, torch
from elsewhere import DEVICE, Generator
from indm.cli.main import main

with pytest.raises(RuntimeError, match="of tensors on the CPU and elsewhere"):
    torch.ones(2, device=DEVICE) + torch.ones(2)
with pytest.raises(RuntimeError, match="with a generator of cpu"):
    torch.randn(2, device=DEVICE, generator=Generator())
assert torch.equal((torch.arange(3, device=DEVICE) + 1).cpu(), torch.tensor([1, 2, 3]))

torch.set_num_threads(1)
small = [
    "--flow=coupling", "--flow.depth=1", "--flow.width=4", "--net.channels=4", "--net.multipliers=[1,1]",
    "--net.blocks=1", "--train.batch_size=8", "--train.validate_examples=8", "--train.validate_every=2",
    "--train.seconds=inf", "--train.mixed_precision=no",
]
for command in (
    ["train", "digits", *small, "--train.steps=3", "--out", "run"],
    ["train", "run", "--resume", "--train.steps=5"],
    ["evaluate", "run", "--examples=8", "--nll-examples=2", "--steps=8"],
    ["sample", "run", "-n=4", "--steps=4"],
):
    assert main([*command, "--device", "elsewhere", "--quiet", "--debug"]) == 0, command
"""


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices of Python's",
)
def test_the_commands_keep_to_their_device(tmp_path):
    program = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "evaluation.json").exists() and (tmp_path / "run" / "samples.png").exists()
