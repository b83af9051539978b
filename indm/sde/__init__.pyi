from .linear import VESDE as VESDE
from .linear import VPSDE as VPSDE
from .linear import LinearSDE as LinearSDE
from .linear import SubVPSDE as SubVPSDE
