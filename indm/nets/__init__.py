"""Backbones: the networks inside :class:`~indm.score.ScoreModel`, one family a file.

The contract: a backbone is a module with ``forward(z, level)`` that returns a tensor of the shape
of ``z``.

- ``z`` (B, *event) is the noisy latent, scaled to unit variance where the latents have unit
  variance.
- ``level`` (B,) is the log noise level log(σ/α) of each sample, from about −8 at ε to 6 at T.
- The output is added to the noise that a standard normal latent would have, so a backbone starts
  best at zero output (:func:`~indm.tensors.zeroed` makes such a last layer).

A backbone that is made by its name is made as ``Class(**options)``, with ``shape`` (the event
shape) too if it has such a parameter, and keeps every argument as an attribute of the same name.
One that takes another level or gives another output names the subclass of :class:`~indm.ScoreModel`
that goes with it by its attribute ``parameterization``. This subclass overrides ``forward`` and
nothing else: it returns the score, and losses, likelihoods and samples follow from it.
:class:`indm.NCSNpp`, the published network, has such a subclass. One that varies slowly along the
level, without ripples of an embedding, says so by ``is_smooth = True``: likelihoods and samples
then take fewer steps. One that sees a condition is called as forward(z, level, c), and says so by
``takes_condition = True``. One whose divergence in z has a closed form may give it by
``with_divergence(z, level)``, which returns the output and its divergence (B,). One whose slope
along the level jumps says so by ``has_kinks = True``. One that adds to the exact score of another
law than N(0, I) has this law as ``base``, and its ``noise_parts(z, level, c)`` returns the noise
that the law has and N(0, I) has not, and what the network adds.
"""

from indm.nets.mlp import MLP as MLP
from indm.nets.mlp import Zero as Zero
from indm.nets.unet import UNet as UNet
