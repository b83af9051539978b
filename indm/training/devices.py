"""Devices, precision and memory of a training."""

import sys
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from indm.config.options import Training
from indm.runs.devices import on_cpu


def make_accelerator(options: Training, out: Path | None = None) -> Accelerator:
    """The devices and processes to train on; without accelerator the processes share the CPU."""
    AcceleratorState._reset_state()  # runs of one Python process may differ in precision
    return Accelerator(
        cpu=on_cpu(),
        mixed_precision=fast_precision() if options.mixed_precision == "auto" else options.mixed_precision,
        log_with=list(options.trackers) or None,
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # not each step trains the flow
    )


def fast_precision() -> str:
    """ "bf16" where this machine computes in it faster than in full precision, else "no"."""
    if not on_cpu():  # of GPUs that are not CUDA's nothing is known
        is_fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if is_fast else "no"
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, name, bool)() for name in instructions) else "no"


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts from what the parent process held
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
