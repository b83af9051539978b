"""Backbones: networks (z, c) → an output of z's shape, where c is the log noise level log(σ/α) of each sample.

:class:`NCSNpp`, the published one, has a noise level and an output of its own, which its score knows.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
