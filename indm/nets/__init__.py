"""Backbones: networks (z, c) → an output of z's shape, where c is the log noise level log(σ/α) of each sample.

:class:`NCSNpp`, the published one, has a noise level and an output of its own, which its score knows.
"""

from indm.nets.mlp import MLP
from indm.nets.ncsnpp import NCSNpp
from indm.nets.unet import UNet
from indm.nets.zero import Zero

__all__ = ["MLP", "NCSNpp", "UNet", "Zero"]
