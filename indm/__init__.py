"""Log-likelihoods of diffusion models, with error bars: yours, or one trained here.

The models trained here are implicit nonlinear diffusion models (INDM): a normalizing flow takes data to a latent, and a
linear diffusion runs there.
"""

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any

_STUB = Path(__file__).with_suffix(".pyi").read_text("utf-8")  # the one list of public names, for type checkers too
_MODULES = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.MULTILINE)}
__all__ = list(_MODULES)

try:
    __version__ = importlib.metadata.version("indm")
except importlib.metadata.PackageNotFoundError:  # the source alone, on PYTHONPATH
    __version__ = "0.0.0+unknown"


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: PyTorch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name] if _MODULES[name] != "." else f".{name}"
    found = importlib.import_module(module, __name__)
    globals()[name] = found if module == f".{name}" else getattr(found, name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
