"""Keeps the tests repeatable and on one thread; ``INDM_TEST_SHAPES=1`` checks the annotated shapes
of ``indm``, too.
"""

import os
import subprocess

import jaxtyping
from beartype import BeartypeConf, beartype

# a whole number is a float, as type checkers have it
by_shape = beartype(conf=BeartypeConf(is_pep484_tower=True))
if os.environ.get("INDM_TEST_SHAPES"):  # of every call
    # before anything of indm is imported
    jaxtyping.install_import_hook("indm", f"{__name__}.by_shape")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

pytest_plugins = ["limits", "browsers", "repeatable"]

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


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
