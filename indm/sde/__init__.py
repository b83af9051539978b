"""Linear diffusions on the latent."""

from indm.sde.linear import VESDE as VESDE
from indm.sde.linear import VPSDE as VPSDE
from indm.sde.linear import LinearSDE as LinearSDE
from indm.sde.linear import LogLinearSDE as LogLinearSDE
from indm.sde.linear import SubVPSDE as SubVPSDE
from indm.sde.linear import check_sde as check_sde
from indm.sde.linear import truncated as truncated
