"""Interfaces of networks, scores and models, so that a class of another package needs no base class
of this one.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from indm.scaling import Scaling
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample

if TYPE_CHECKING:  # these modules, or ones that they import, import this one
    from indm.conditions import Condition
    from indm.dequantization import Dequantization
    from indm.flows.base import Flow


@runtime_checkable
class Smooth(Protocol):
    """What says whether it varies slowly in its time or noise level, such as a score of another
    class.
    """

    is_smooth: bool


@runtime_checkable
class TakesCondition(Protocol):
    """What says whether it is called with a condition, such as a score of another class."""

    takes_condition: bool


@runtime_checkable
class Score(Protocol):
    """s_θ(z_t, t) = ∇ log p_t(z_t) on the latents of its ``sde``; a module, such as
    :class:`indm.ScoreModel`.
    """

    @property
    def sde(self) -> LinearSDE: ...

    def __call__(self, z_t: Batch, t: PerSample, /) -> Batch: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle: ...


@runtime_checkable
class Model(Protocol):
    """A model of data, such as :class:`indm.INDM`: a flow, a score of its latents, and how data
    become model units.
    """

    @property
    def scaling(self) -> Scaling: ...

    @property
    def score(self) -> Score: ...

    @property
    def flow(self) -> "Flow": ...

    @property
    def condition(self) -> "Condition": ...

    @property
    def dequantization(self) -> "Dequantization | None": ...

    @property
    def sde(self) -> LinearSDE: ...

    if TYPE_CHECKING:  # isinstance would ask for the shape, which a model need not know

        @property
        def shape(self) -> tuple[int, ...]: ...

    @property
    def has_shape(self) -> bool: ...

    def rows(self, c: Any, n: int) -> Tensor | None: ...

    def given(
        self, c: Any, n: int | None = None, *, rows: Tensor | None = None, guidance: float = 1.0
    ) -> "Model": ...

    def truncated(self, eps: float | None) -> "Model": ...

    def encode(
        self, x: Batch, *, c: Any = None, generator: Any = None
    ) -> tuple[Batch, PerSample]: ...

    def decode(self, z: Batch, *, c: Any = None) -> Batch: ...
