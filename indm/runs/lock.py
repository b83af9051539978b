"""One process at a time in a run folder."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


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
