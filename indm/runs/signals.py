"""Ctrl-C and SIGTERM while a run is trained."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

ENDING = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0  # seconds that a step has after the first signal
owns_process = False  # set by the command line: as a library, indm ends nobody's process
writing = threading.RLock()
"""Held while a checkpoint is written, and while the process ends by itself."""


def end_at_once(number: int, frame: object) -> None:
    """A signal handler that ends the process without any clean-up."""
    os._exit(128 + number)


def is_torchelastic_launched() -> bool:
    """Whether torchrun started this process."""
    from torch.distributed import is_torchelastic_launched  # PyTorch takes seconds to load

    return is_torchelastic_launched()


class Interrupted(threading.Event):
    """Set by the first signal. Where a step takes too long after it, the process may end: see :func:`interruptible`.

    Args:
        report: what is then printed about the run on standard error.
    """

    def __init__(self, report: Callable[[], str] = str):
        super().__init__()
        self.report, self._over = report, threading.Event()

    def steps_are_over(self) -> None:
        """From now on the process does not end by itself: what is left to do is written."""
        self._over.set()

    def watch(self, pipe: socket.socket) -> None:
        """End the process :data:`GRACE` seconds after the first signal in ``pipe``, or at once with the second."""
        first = _next_signal(pipe, None)
        if first is None:
            return
        self.set()
        second = _next_signal(pipe, time.monotonic() + GRACE)
        if second is not None:
            os._exit(128 + second)
        with writing:
            if not self._over.is_set():
                print(f"indm: {self.report()}", file=sys.stderr, flush=True)
                os._exit(128 + first)


def _next_signal(pipe: socket.socket, deadline: float | None) -> int | None:
    """The next signal that asks to end; None once the pipe is closed, or at the deadline."""
    while True:
        try:
            pipe.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
            number = pipe.recv(1)
        except TimeoutError:
            return None
        if not number or number[0] in ENDING:
            return number[0] if number else None


@contextmanager
def interruptible(report: Callable[[], str] = str) -> Iterator[Interrupted]:
    """An event that SIGINT or SIGTERM sets; the second signal ends the process at once.

    On the command line (:data:`owns_process`) the process does not wait long for a step: where the event has not led to
    :meth:`Interrupted.steps_are_over` in :data:`GRACE` seconds, it prints ``report`` and ends with status 130 or
    143, but not while :data:`writing` is held. A thread sees to that, as PyTorch lets no handler run in the middle of a
    backward pass.

    A signal that is ignored stays ignored: a shell script starts ``indm train … &`` with SIGINT ignored, so that the
    Ctrl-C that ends the script does not end the training. SIGTERM does.

    Under torchrun that is not so, because it passes on a signal that the terminal has sent to its processes already:
    there they end with the second signal to the launcher, which also ends those that take too long.
    """
    event = Interrupted(report)
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    launched = is_torchelastic_launched()

    def stop(number, frame) -> None:
        event.set()
        if not launched:
            for each in before:
                signal.signal(each, end_at_once)

    with _watched(event) if owns_process and not launched else nullcontext():
        for number in before:
            signal.signal(number, stop)
        try:
            yield event
        finally:
            event.steps_are_over()
            for number, handler in before.items():
                signal.signal(number, handler)


_pipes: list[socket.socket] = []  # in which this process gets its signals


@contextmanager
def _watched(event: Interrupted) -> Iterator[None]:
    """Signals reach ``event.watch`` in another thread, whatever the main one does."""
    inside, outside = socket.socketpair()
    outside.setblocking(False)
    former = signal.set_wakeup_fd(outside.fileno(), warn_on_full_buffer=False)
    _pipes.append(outside)
    watcher = threading.Thread(target=event.watch, args=(inside,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        _pipes.remove(outside)
        outside.close()
        watcher.join()
        inside.close()


def _leave_to_parent() -> None:
    """In a new process, such as one that loads data: its signals are not those of the process that trains."""
    if _pipes:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)
