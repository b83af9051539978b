"""Linear diffusions on the latent."""

from indm.config.parts import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
