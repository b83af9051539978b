"""The flow and the score networks of the paper's code, and released checkpoints as run folders.

:class:`NCSNpp` is DDPM++ and NCSN++, with its score, :class:`PublishedScore`;
:class:`ConditionalResidualFlow` is the flow of the paper's code; :mod:`indm.published.checkpoint`
reads what was released. The rest of the package does without this room.
"""

from indm.published.conditional import ConditionalResidualFlow as ConditionalResidualFlow
from indm.published.ncsnpp import NCSNpp as NCSNpp
from indm.published.ncsnpp import PublishedScore as PublishedScore
