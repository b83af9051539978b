"""Devices, precision, processes of a training, locks of run folders, and signals."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from filelock import FileLock, Timeout

from indm.checks import require
from indm.workbench.recipes.options import TrainOptions

T = TypeVar("T")
LOCK, EVALUATION_LOCK = ".lock", ".evaluation.lock"  # of a training, of an evaluation
# errors of a file system without locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
ENDING = (signal.SIGINT, signal.SIGTERM)  # a training, which saves first
# the environment variable of accelerate, which child processes inherit
CHOSEN = "ACCELERATE_TORCH_DEVICE"


def device() -> str:
    """The device for saved models: the chosen one, else the GPU if there is one."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return os.environ.get(CHOSEN) or ("cpu" if kind is None else kind.type)


def on_cpu() -> bool:
    """Whether models are trained on the CPU, by choice or because there is nothing else."""
    return os.environ.get(CHOSEN) == "cpu" or not torch.accelerator.is_available()


@contextmanager
def computing_on(name: str) -> Iterator[None]:
    """Compute on the device of that name: "cpu", "cuda", "cuda:1", "mps", …

    Raises:
        ValueError: this machine has no such device.
    """
    known = names()
    wanted = f"auto or one that this machine has ({', '.join(known)})"
    require(name in known, "device", name, wanted)
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
    numbers = range(torch.accelerator.device_count())
    return ["cpu", kind.type, *(f"{kind.type}:{number}" for number in numbers)]


def make_accelerator(options: TrainOptions) -> Accelerator:
    """The devices and processes of a training; without GPUs its processes share the CPU."""
    is_auto = options.mixed_precision == "auto"
    precision = fast_precision() if is_auto else options.mixed_precision
    AcceleratorState._reset_state()  # runs of one Python process may differ in precision
    return Accelerator(
        cpu=on_cpu(),
        mixed_precision=precision,
        # some steps do not train the flow
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def fast_precision() -> str:
    """ "bf16" if this machine computes faster in it than in full precision, else "no"."""
    if on_cpu():
        is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:  # nothing is known of GPUs other than CUDA's
        has_cuda = torch.cuda.is_available()
        is_fast = has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_fast else "no"


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
        return int(line.split()[1]) / 2**10
    return psutil.Process().memory_info().rss / 2**20  # elsewhere, the memory now


# ── Several processes


def by_main_process(decide: Callable[[], T]) -> T:
    """The result of ``decide`` in the main process, or its error, in all processes. Collective."""
    outcome: list = [None, None]  # the result, and the error
    if PartialState().is_main_process:
        try:
            outcome = [decide(), None]
        except Exception as error:
            outcome = [None, error]
    broadcast_object_list(outcome)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


@contextmanager
def run_lock(run: Path, name: str = LOCK) -> Iterator[None]:
    """Keep other processes out of the folder ``run``, which is made if needed, for one ``name``.

    The lock is released however the process ends; workers that it forks do not hold it. On a file
    system without locks no process is kept out.

    Raises:
        ValueError: another process is inside.
        OSError: ``run`` cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(run / name, timeout=0, preserve_lock_file=True))
        except Timeout:
            raise ValueError(
                f"another process is at work in {run}: wait for it, or end it first"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


# ── Signals


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal ends the process at once.

    A signal that is ignored stays ignored: a shell script starts ``indm train … &`` with SIGINT
    ignored, so that Ctrl-C ends the script but not the training.

    Under torchrun, processes get each signal from the terminal and again from the launcher, so the
    second does nothing. They end with the second signal to the launcher.
    """
    import torch.distributed  # takes seconds to load

    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = {
        number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN
    }
    launched = torch.distributed.is_torchelastic_launched()

    def stop(number, frame) -> None:
        event.set()
        if not launched:
            for each in before:
                # without any clean-up
                signal.signal(each, lambda number, frame: os._exit(128 + number))

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
