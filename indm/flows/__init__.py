"""Normalizing flows h_φ: data → latent, one family a file.

Example: the contract of all of them, z = h(x) with its log-determinant, and the inverse.

    >>> import torch
    >>> from indm.flows import CouplingFlow
    >>> flow, x = CouplingFlow((3,)), torch.randn(5, 3)
    >>> z, log_det = flow(x)
    >>> log_det.shape, torch.allclose(flow.inverse(z), x, atol=1e-4)
    (torch.Size([5]), True)
"""

from indm.flows.adapters import ForeignFlow as ForeignFlow
from indm.flows.base import ActNorm as ActNorm
from indm.flows.base import Compose as Compose
from indm.flows.base import ExactFlow as ExactFlow
from indm.flows.base import Flow as Flow
from indm.flows.base import Frozen as Frozen
from indm.flows.base import Identity as Identity
from indm.flows.base import Squeeze as Squeeze
from indm.flows.base import Unsqueeze as Unsqueeze
from indm.flows.base import check_flow as check_flow
from indm.flows.contraction import ExactLogDet as ExactLogDet
from indm.flows.contraction import PowerSeries as PowerSeries
from indm.flows.coupling import Coupling as Coupling
from indm.flows.coupling import CouplingFlow as CouplingFlow
from indm.flows.coupling import ElementwiseFlow as ElementwiseFlow
from indm.flows.coupling import InvertibleLinear as InvertibleLinear
from indm.flows.coupling import SecondHalf as SecondHalf
from indm.flows.coupling import initialize_actnorms as initialize_actnorms
from indm.flows.instrument import InstrumentFlow as InstrumentFlow
from indm.flows.masked import MaskedFlow as MaskedFlow
from indm.flows.residual import ResidualBlock as ResidualBlock
from indm.flows.residual import ResidualFlow as ResidualFlow
from indm.flows.residual import use_log_det as use_log_det
