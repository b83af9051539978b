"""Backbones: networks (z, c) → an output of z's shape, where c is the log noise level log(σ/α) of each sample."""

from indm.nets.mlp import MLP
from indm.nets.unet import UNet

__all__ = ["MLP", "UNet"]
