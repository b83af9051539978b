"""No test waits for ever, and none leaves a process behind.

The limits are in ``pyproject.toml``. Past ``timeout`` a test that waits fails, and the next one starts. A loop in C
code hears no signal: ``faulthandler_timeout`` ends its process, and pytest-xdist starts another for the other tests.
"""

import contextlib
import ctypes
import signal
import sys

import psutil
import pytest

PR_SET_CHILD_SUBREAPER = 36
if sys.platform == "linux":  # what a killed launcher has started becomes a child of this process, in place of init
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """As in a terminal: "nohup make test &" in a script starts the suite, and so its children, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """What is about time may fail where the machine is busy."""
    for item in items:
        if item.get_closest_marker("about_time"):
            item.add_marker(pytest.mark.flaky(reruns=2))


def kill_children():
    """And theirs."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def pytest_exception_interact():
    """After a test that failed."""
    kill_children()


def pytest_unconfigure():
    """When all is over."""
    kill_children()
