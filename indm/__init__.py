"""Implicit nonlinear diffusion models: likelihood-based generative modelling with learned diffusions."""

import importlib.metadata

from indm.config.parts import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

try:
    __version__ = importlib.metadata.version("indm")
except importlib.metadata.PackageNotFoundError:  # the source alone, on PYTHONPATH
    __version__ = "0.0.0+unknown"
