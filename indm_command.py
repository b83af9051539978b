"""The ``indm`` command. Ctrl-C ends it at once while Python still loads what it needs, which takes
seconds.

It is a module by itself because importing anything of ``indm`` imports PyTorch first.
"""

import os
import signal

# of a thread of GNU's OpenMP before it sleeps; that reads it when PyTorch is loaded
SPINS = "10000"


def program() -> int:
    """:func:`indm.workbench.cli.main.main`.

    A thread that waits for others spins, by default so long that on a busy machine a training step
    takes ten times as long as with few spins (docs/performance.md). Whoever has set one of the two
    variables decides. What PyTorch does not have for Apple's GPUs is computed on the CPU.
    """
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, end)
    from indm.workbench.cli.main import main

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def end(number: int, frame: object) -> None:
    """A handler of signals: nothing has been begun that would have to be put away."""
    os.write(2, b"indm: interrupted\n")
    os._exit(130)
