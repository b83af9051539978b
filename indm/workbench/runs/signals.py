"""Ctrl-C and SIGTERM while a run is trained."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)


def end_at_once(number: int, frame: object) -> None:
    """A signal handler that ends the process without any clean-up."""
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal ends the process at once.

    A signal that is ignored stays ignored: a shell script starts ``indm train … &`` with SIGINT ignored, so that the
    Ctrl-C that ends the script does not end the training. SIGTERM does.

    torchrun passes on a signal that the terminal has sent to its processes already, so there the second does nothing:
    they end with the second signal to the launcher.
    """
    import torch.distributed  # which takes seconds to load

    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    launched = torch.distributed.is_torchelastic_launched()

    def stop(number, frame) -> None:
        event.set()
        if not launched:
            for each in before:
                signal.signal(each, end_at_once)

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
