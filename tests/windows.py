"""A stand-in for Windows, on Linux: what Python does not have there is gone, and files in use cannot be replaced.

    python -m windows train digits …    # indm commands in a process that has only what Windows has; «,» between two

PyTorch and other libraries are loaded before, as they have their own ways on Windows.
"""

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
NAMES = (
    "chown", "chroot", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid",
    "getuid", "killpg", "mkfifo", "mknod", "nice", "pathconf", "posix_fallocate", "posix_spawn", "register_at_fork",
    "sched_getaffinity", "setsid", "statvfs", "sync", "sysconf", "uname", "wait3", "wait4",
)  # fmt: skip
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
FUNCTIONS = ("alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait")


def become() -> None:
    """Make this process like one on Windows."""
    import accelerate
    import filelock
    import matplotlib.pyplot
    import psutil
    import scipy.optimize
    import sklearn.utils
    import torchvision
    import tyro

    assert all((accelerate, filelock, matplotlib, psutil, scipy, sklearn, torchvision, tyro))
    keep = {"flags": fcntl.fcntl, "get": fcntl.F_GETFL, "fsync": os.fsync, "replace": os.replace}

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if keep["flags"](number, keep["get"]) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        keep["fsync"](number)

    def replace(source: Any, target: Any, **options: Any) -> None:
        for path in map(os.path.realpath, (source, target)):
            if path in in_use():
                raise PermissionError(errno.EACCES, "The process cannot access the file because it is in use", path)
        keep["replace"](source, target, **options)

    os.fsync, os.replace, os.rename = fsync, replace, no_rename
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in NAMES:
        delattr(os, name)
    for name in {name for name in dir(signal) if name.startswith("SIG")} - SIGNALS | set(FUNCTIONS):
        delattr(signal, name)


def in_use() -> set[str]:
    """The files that this process has open, or in its memory."""
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    handles = set()
    for handle in Path("/proc/self/fd").iterdir():
        try:
            handles.add(os.readlink(handle))
        except OSError:  # that of this listing
            continue
    return mapped | handles


def no_rename(source: Any, target: Any, **options: Any) -> None:
    """On Windows it does not replace a file, so that nothing should use it."""
    raise FileExistsError(errno.EEXIST, "os.rename is not portable; use os.replace", target)


if __name__ == "__main__":
    become()
    from indm.workbench.cli.main import main

    for command in " ".join(sys.argv[1:]).split(" , "):
        if status := main(command.split()):
            raise SystemExit(status)
