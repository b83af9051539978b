from .conditional import ConditionalResidualFlow as ConditionalResidualFlow
from .ncsnpp import NCSNpp as NCSNpp
from .score import PublishedScore as PublishedScore
