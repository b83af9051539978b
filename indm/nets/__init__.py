"""Backbones: the networks inside :class:`~indm.score.ScoreModel`, one family a file.

A backbone is a :class:`Backbone`, or a plain module, with ``forward(z, level)`` that returns a
tensor of the shape of ``z``.

- ``z`` (B, *event) is the noisy latent, with unit variance if the latents have unit variance.
- ``level`` (B,) is the log noise level log(σ/α) of each sample, from about −8 at ε to 6 at T.
- The output is added to the noise of a standard normal latent, so it should be zero at the start
  (:func:`~indm.tensors.zeroed` makes such a last layer).

A name makes a backbone as ``Class(**options)``, with ``shape`` (the event shape) if there is such a
parameter. Keep every argument as an attribute of the same name. Other properties, such as whether
it takes a condition, are attributes of :class:`Backbone`.
"""

from indm.nets.base import Backbone as Backbone
from indm.nets.mlp import MLP as MLP
from indm.nets.mlp import Zero as Zero
from indm.nets.unet import UNet as UNet
