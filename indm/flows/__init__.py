"""Normalizing flows h_φ: data → latent, one family a file.

Example: the contract of all of them, z = h(x) with its log-determinant, and the inverse.

    >>> import torch
    >>> from indm.flows import CouplingFlow
    >>> flow, x = CouplingFlow((3,)), torch.randn(5, 3)
    >>> z, log_det = flow(x)
    >>> log_det.shape, torch.allclose(flow.inverse(z), x, atol=1e-4)
    (torch.Size([5]), True)
"""

from indm.config.parts import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
