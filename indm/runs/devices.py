"""The device on which everything is computed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CHOSEN = "ACCELERATE_TORCH_DEVICE"  # the environment variable of accelerate, which child processes inherit


def device() -> str:
    """Where saved models are evaluated: on what was chosen, else on the GPU where there is one."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return os.environ.get(CHOSEN) or ("cpu" if kind is None else kind.type)


def on_cpu() -> bool:
    """Whether models are trained on the CPU: it was chosen, or there is nothing else."""
    return os.environ.get(CHOSEN) == "cpu" or not torch.accelerator.is_available()


@contextmanager
def computing_on(name: str) -> Iterator[None]:
    """Inside, everything is computed on the device of that name: "cpu", "cuda", "cuda:1", "mps", …

    Raises:
        ValueError: this machine has no such device, or each process has one of its own.
    """
    if name not in (there := names()):
        raise ValueError(f"device must be auto or one that this machine has ({', '.join(there)}), got {name!r}")
    if name != "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"device must be auto or cpu where each process has a device of its own, got {name!r}")
    before = os.environ.get(CHOSEN)
    os.environ[CHOSEN] = name
    try:
        yield
    finally:
        os.environ.pop(CHOSEN)
        os.environ |= {} if before is None else {CHOSEN: before}


def names() -> list[str]:
    """The devices of this machine: "cpu", and its accelerators with and without their number."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()))]
