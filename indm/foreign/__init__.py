"""Diffusion and flow-matching models of other libraries as INDMs with the identity flow."""

from indm.foreign import check as check
from indm.foreign import denoiser as denoiser
from indm.foreign import paths as paths
