"""Backbones: the networks inside :class:`~indm.score.ScoreModel`, one family a file.

The contract: a backbone is a :class:`Backbone`, or a plain module, with ``forward(z, level)`` that
returns a tensor of the shape of ``z``.

- ``z`` (B, *event) is the noisy latent, scaled to unit variance where the latents have unit
  variance.
- ``level`` (B,) is the log noise level log(σ/α) of each sample, from about −8 at ε to 6 at T.
- The output is added to the noise that a standard normal latent would have, so a backbone starts
  best at zero output (:func:`~indm.tensors.zeroed` makes such a last layer).

A backbone that is made by its name is made as ``Class(**options)``, with ``shape`` (the event
shape) too if it has such a parameter, and keeps every argument as an attribute of the same name.
What else a network may say, such as that it takes a condition, are attributes of
:class:`Backbone`.
"""

from indm.nets.base import Backbone as Backbone
from indm.nets.mlp import MLP as MLP
from indm.nets.mlp import Zero as Zero
from indm.nets.unet import UNet as UNet
