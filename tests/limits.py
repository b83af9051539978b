"""No test waits for ever, and no file of tests leaves a socket, a thread or a process open.

The limits are in ``pyproject.toml``. Past ``timeout`` a test that waits fails, and the next one
starts. A loop in C code hears no signal: ``faulthandler_timeout`` ends its process, and
pytest-xdist starts another for the other tests.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest
from tqdm import TMonitor

PR_SET_CHILD_SUBREAPER = 36
# what a killed launcher has started becomes a child of this process, in place of init
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


SHARED = ("resource_tracker", "forkserver")  # processes of Python, which end with this one
OPEN_FILES = Path("/proc/self/fd")


def open_now():
    """Return the sockets, threads and child processes that this process has open, in words."""
    links = []
    for file in OPEN_FILES.iterdir() if OPEN_FILES.exists() else ():
        with contextlib.suppress(OSError):  # the file of the folder itself is closed by now
            links.append(os.readlink(file))
    sockets = {link for link in links if link.startswith("socket:")}
    threads = {
        f"thread {one.name}" for one in threading.enumerate() if not isinstance(one, TMonitor)
    }
    processes = set()
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            is_shared = any(name in command for name in SHARED)
            if not is_shared:
                processes.add(f"process {child.pid} {command[:80]}")
    return sockets | threads | processes


@contextlib.contextmanager
def nothing_left_open(name):
    """Fail, with this name, where something is open at the end that was not at the beginning."""
    before = open_now()
    yield
    new = open_now() - before
    if new:
        pytest.fail(f"{name} leaves open: {', '.join(sorted(new))}", pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def nothing_stays_open(request):
    """Name the file that leaves something open: it would be closed, with a warning, in a test of
    another file.
    """
    with nothing_left_open(request.path.name):
        yield


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """As in a terminal: "nohup make test &" in a script starts the suite, and so its children, with
    SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """What is about time may fail where the machine is busy."""
    for item in items:
        if item.get_closest_marker("about_time"):
            item.add_marker(pytest.mark.flaky(reruns=2))


def children():
    """The processes that this one has started, and theirs."""
    # at once where there are none, as in nearly all tests; psutil reads of every process
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()
    return set(psutil.Process().children(recursive=True))


def kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What earlier tests have started is not this one's."""
    item.session.older_children = children()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Nor is what its fixtures have: they may be a module's, and end it themselves."""
    item.session.older_children = children()


def pytest_exception_interact(node):
    """After a test that failed."""
    kill(children() - getattr(node.session, "older_children", set()))


def pytest_unconfigure():
    """When all is over."""
    kill(children())
