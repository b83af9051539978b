"""The flow and the score networks of the paper's code, and its released checkpoints.

:class:`NCSNpp` is DDPM++ and NCSN++, with its score, :class:`PublishedScore`.
:class:`ConditionalResidualFlow` is the flow of the paper's code. :mod:`indm.published.checkpoint`
reads the released files.
"""

from indm.published.conditional import ConditionalResidualFlow as ConditionalResidualFlow
from indm.published.ncsnpp import NCSNpp as NCSNpp
from indm.published.ncsnpp import PublishedScore as PublishedScore
