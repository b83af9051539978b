"""Checks the shape annotations of ``indm`` at run time, and keeps the tests repeatable and on one thread."""

import functools
import itertools
import os
import subprocess
from collections import Counter

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKS = 150  # of calls, in each test: later ones are mostly the same again, and would take a third of all time
by_shape = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float, as type checkers have it
number = itertools.count()
inside: Counter[str] = Counter()  # how often a test has wrapped each function inside another one


def checked(function):
    """Checks calls of ``function`` until a test has had so many; the check is made for the first of them."""
    check = functools.cache(lambda: by_shape(function))

    @functools.wraps(function)
    def counted(*args, **kwargs):
        if next(number) == CHECKS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return check()(*args, **kwargs)

    return counted


def seldom_inside(jaxtyped):
    """Wraps a function inside another one, which is a new one at each call, twice in a test: it takes milliseconds."""

    def wrapping(typechecker):
        def wrapped(function):
            name = getattr(function, "__qualname__", "")
            if "<locals>" in name:
                inside[name] += 1
                if inside[name] > 2 or jaxtyping.config.jaxtyping_disable:
                    return function
            return jaxtyped(function, typechecker=typechecker)

        return wrapped

    return wrapping


if jaxtyping.jaxtyped.__module__ != __name__:  # mutmut starts pytest several times in a process
    jaxtyping.jaxtyped = seldom_inside(jaxtyping.jaxtyped)
    jaxtyping.install_import_hook("indm", f"{__name__}.checked")  # before anything of indm is imported

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

collect_ignore = ["elsewhere.py"]  # changes torch where it is imported

pytest_plugins = ["limits", "browsers"]

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

os.environ["OMP_NUM_THREADS"] = os.environ.get("INDM_TEST_THREADS", "1")  # else each training would measure its own
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_runtest_setup(item):
    """Every test starts from the same global random state and with checked shapes, whatever ran before it."""
    global number
    number = itertools.count()
    inside.clear()
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick_costs():
    """What a step costs is measured in a moment, and badly: no test depends on it."""
    from indm.training import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ROUNDS", 2)
        patch.setattr(costs, "TURN", 0.0)
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
