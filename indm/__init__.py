"""Log-likelihoods of diffusion models, with error bars: yours, or one trained here.

The models trained here are implicit nonlinear diffusion models (INDM): a normalizing flow takes
data to a latent, and a linear diffusion runs there.
"""

import importlib.metadata

import lazy_loader

from indm import parts as parts  # gives the built-in parts their names

# PyTorch takes seconds, so each public name is imported on first use. The stub is the one list of
# them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = importlib.metadata.version("indm")
except importlib.metadata.PackageNotFoundError:  # the source alone, on PYTHONPATH
    __version__ = "0.0.0+unknown"
