"""The tutorials run: with the constants of a short run, and in full."""

import importlib
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def tutorials():
    """.ci/tutorials.py; its kernels find the package here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        )
        yield importlib.import_module("tutorials")


def test_they_run_in_short(tutorials):
    tutorials.execute([tutorials.shortened(tutorials.read(name)) for name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_in_full(tutorials, name):
    tutorials.execute([tutorials.read(name)])
