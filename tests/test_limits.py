"""A suite that would hang ends, says which test it was, and leaves nothing running."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parent
HANGING = """
import collections, itertools, os, signal, subprocess

import pytest

@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()

def test_children_hear_ctrl_c():
    assert subprocess.run(["sh", "-c", "kill -INT $$"]).returncode == -signal.SIGINT

def test_that_waits(server):
    subprocess.run(["sh", "-c", "sleep 1000 & echo $! > orphan; wait"])

def test_the_fixture_of_both(server):
    assert server.poll() is None

def test_that_loops_in_c():
    subprocess.Popen(["sh", "-c", "echo $$ > left; exec sleep 1000"])
    collections.deque(itertools.repeat(0), maxlen=0)

def test_after_them():
    pass
"""


def is_running(process):
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


@pytest.mark.long
@pytest.mark.about_time
def test_a_test_that_hangs_fails_and_the_others_are_run(tmp_path):
    """In the background of a script, where SIGINT is ignored."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    plugins = [f"-p{name}" for name in ("limits", "pytest_rerunfailures", "pytest_timeout", "xdist.plugin")]
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(tmp_path), "-o", "faulthandler_timeout=5"]
    command = [sys.executable, "-m", "pytest", *plugins, *settings, "--timeout=3", "-n1", "-v", str(tmp_path)]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    ended = {name: result for result, name in re.findall(r"(PASSED|FAILED) test_hanging.py::test_(\w+)", done.stdout)}
    hang = dict.fromkeys(["that_waits", "that_loops_in_c"], "FAILED")
    assert ended == hang | dict.fromkeys(["children_hear_ctrl_c", "the_fixture_of_both", "after_them"], "PASSED")
    assert not any(is_running(int((tmp_path / name).read_text())) for name in ("orphan", "left"))
