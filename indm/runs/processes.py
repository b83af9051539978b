"""Several processes: one at a time in a run folder, and decisions of the main one of a training, shared with all."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

T = TypeVar("T")
LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


def by_main_process(decide: Callable[[], T]) -> T:
    """Call ``decide`` in the main process; all processes return its result, or raise its error. Collective."""
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
def run_lock(run: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same ``run``, a folder that is made if need be.

    The lock is released however the process ends; workers that it forks do not hold it. On a file system without locks
    no process is kept out.

    Raises:
        ValueError: another process is inside.
        OSError: ``run`` cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(run / LOCK, timeout=0, preserve_lock_file=True))
        except Timeout:
            raise ValueError(f"another process is at work in {run}: wait for it, or end it first") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
