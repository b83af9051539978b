"""Backbones: networks (z, c) → an output of z's shape, where c is the log noise level log(σ/α) of each sample."""

from indm.nets.mlp import MLP
from indm.nets.unet import UNet
from indm.nets.zero import Zero

__all__ = ["MLP", "UNet", "Zero"]
