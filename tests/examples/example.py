"""What the examples define, by name."""

import importlib
import sys
from pathlib import Path

FOLDER = str(Path(__file__).parents[2] / "examples")


def load(module, *names):
    """Those of an example, which can then be named ``module:Name``."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return [getattr(importlib.import_module(module), name) for name in names]
