"""One process at a time in a run folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Inside, no other process is in here for the same ``run``, a folder that is made if need be.

    However a process ends, it is then out. Where the file system has no locks, nobody is kept out.

    Raises:
        ValueError: another process is.
        OSError: ``run`` cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: the workers that it forks have no part
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another process is at work in {run}: wait for it, or end it first") from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        yield
