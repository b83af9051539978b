"""The tensors of a released flow, each taken once, with everything that does not match listed together."""

import re

import torch
from torch import Tensor

from indm.messages import brief, listed

# Entries that are no part of the map: parameters and statistics of the roulette estimator, norms and matrix inverses,
# which are computed from the weights, and whether an ActNorm has seen data (checked elsewhere).
INCIDENTAL = re.compile(r"(^|\.)(geom_p|lamb|last_n_samples|last_firmom|last_secmom|scale|weight_inv|initialized)$")


class Reader:
    """The tensors of a state, each of which must be used; what does not match is collected for one error."""

    def __init__(self, state: dict[str, Tensor]):
        self.state, self.unused, self.problems = state, set(state), list[str]()

    def has(self, prefix: str) -> bool:
        """Whether a key begins with ``prefix``."""
        return any(key.startswith(prefix) for key in self.state)

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow ``prefix`` in the keys, sorted."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)(\.|$)")
        return sorted({int(match[1]) for match in map(pattern.match, self.state) if match})

    def shape(self, key: str, sides: int) -> tuple[int, ...]:
        """The shape of a tensor on which the architecture depends.

        Raises:
            ValueError: it is missing, or its shape has not that many sides.
        """
        if key not in self.state:
            raise ValueError(f"state lacks {key!r}, from which the architecture is read")
        shape = tuple(self.state[key].shape)
        if len(shape) != sides:
            raise ValueError(f"state must hold {sides} sides of {key!r}, got the shape {brief(shape)}")
        return shape

    def take(self, key: str, like: Tensor) -> Tensor | None:
        """The tensor ``key``; None, and a problem noted, where it is missing or not of the shape of ``like``."""
        self.unused.discard(key)
        value = self.state.get(key)
        if value is None:
            self.problems.append(f"{key} is missing")
        elif value.shape != like.shape:
            self.problems.append(f"{key} has shape {tuple(value.shape)} where {tuple(like.shape)} is needed")
            return None
        return value

    @torch.no_grad()
    def copy(self, key: str, target: Tensor) -> None:
        """Copy the tensor ``key`` into ``target``."""
        value = self.take(key, target)
        if value is not None:
            target.copy_(value)

    def weight_norm(self, key: str, like: Tensor) -> Tensor | None:
        """The weight g v/‖v‖ of a layer with weight norm, of the shape of ``like``."""
        g, v = self.take(f"{key}.weight_g", like[:, :1]), self.take(f"{key}.weight_v", like)
        return None if g is None or v is None else g * v / v.norm(dim=1, keepdim=True)

    def finish(self) -> None:
        """ValueError listing everything that did not match, and every tensor that was not used."""
        unknown = sorted(key for key in self.unused if not INCIDENTAL.search(key))
        problems = self.problems + [f"{key} is not understood" for key in unknown]
        if problems:
            raise ValueError(f"state does not fit the architecture that was read from it: {listed(problems)}")
