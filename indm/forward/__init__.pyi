from .base import ForwardProcess as ForwardProcess
from .base import Linear as Linear
from .base import Noised as Noised
from .coded import Coded as Coded
from .learned import Affine as Affine
from .learned import LearnedMean as LearnedMean
