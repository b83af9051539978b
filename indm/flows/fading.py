r"""A flow that fades to the identity along the clock: x_t = h_t⁻¹(z_t) with h_ε = h and h_T the identity.

The bound, samples and the likelihood of a model depend on h_ε alone, so that x_t on the way is a choice. With a flow
that fades, x_T is z_T, which is Gaussian.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from indm.flows.base import Flow
from indm.sde.linear import LinearSDE

Module = TypeVar("Module", bound=nn.Module)


def faded(module: Module, strength: Tensor | float) -> Module:
    """A flow at ``strength`` a: what is 0 where it is the identity is multiplied by a; all else is shared.

    Raises:
        ValueError: the flow has no way to the identity.
    """
    if isinstance(module, Flow) and not module.fades:
        raise ValueError(
            f"flow {type(module).__name__} has no way to the identity; elementwise, residual and autoregressive "
            "flows have, and coupling flows with the option start = identity"
        )
    return _view(module, strength)


def _view(module: Module, strength: Tensor | float) -> Module:
    own = getattr(module, "fading", ())
    parts = {name: part if part is None else _view(part, strength) for name, part in module._modules.items()}
    if not own and all(part is module._modules[name] for name, part in parts.items()):
        return module
    view = copy.copy(module)
    view._modules = parts
    view._parameters = _scaled(module._parameters, own, strength)
    view._buffers = _scaled(module._buffers, own, strength)
    return view


def _scaled(tensors: Mapping[str, Tensor | None], own: Collection[str], strength: Tensor | float) -> dict:
    return {name: strength * v if name in own and v is not None else v for name, v in tensors.items()}


@dataclass(frozen=True)
class Fade:
    r"""The strength of h_t along the clock: :math:`a(p) = (1 - p)^k` at the place p, from 1 at ε to 0 at T.

    Args:
        power: k, 1 or more; a flow with a larger one is gone earlier. Below 1 ∂_t h_t would be infinite at T.

    Example:

        >>> import torch
        >>> from indm.sde import VPSDE
        >>> Fade(2.0)(VPSDE(), torch.tensor([1e-5, 1.0])).round(decimals=3).tolist()
        [1.0, 0.0]
    """

    power: float = 1.0

    def __post_init__(self):
        if not self.power >= 1:
            raise ValueError(f"power must be at least 1, got {self.power}; 1 fades evenly on the clock")

    def __call__(self, sde: LinearSDE, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """a at times ``t``."""
        place = sde.place(sde.clock(t)).clamp(0, 1)
        return ((1 - place) ** self.power).to(t)
