"""What a file of tests leaves open is found, and the file is named."""

import socket
import subprocess
import sys
import threading

import pytest
from limits import nothing_left_open, open_now


def test_sockets_threads_and_processes_are_seen_until_they_end():
    before = open_now()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    waits = [sys.executable, "-c", "input()"]
    with socket.socket(), subprocess.Popen(waits, stdin=subprocess.PIPE) as process:
        thread.start()
        new = open_now() - before
        done.set()
        thread.join()
        process.communicate(b"\n")
    assert sorted(name.split(":")[0].split(" ")[0] for name in new) == [
        "process",
        "socket",
        "thread",
    ]
    assert open_now() <= before


def test_the_file_that_leaves_something_open_is_named():
    with (
        pytest.raises(pytest.fail.Exception, match="test_some leaves"),
        nothing_left_open("test_some"),
    ):
        left = socket.socket()
    left.close()
