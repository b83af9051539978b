"""Flows of other libraries as flows of ours: zuko's, with ``pip install zuko``, and the door for any other.

:class:`ZukoAdapter` wraps any flow of zuko that has been made. :class:`ZukoFlow` makes one from the name of its class,
so that a recipe can name it and a saved model can describe it. To save a model with any other wrapped flow, write a
class of your own:

    >>> class Mine(ZukoAdapter):
    ...     def __init__(self, shape, bins: int = 8):
    ...         import zuko
    ...         super().__init__(zuko.flows.NSF(shape[0], bins=bins))
    ...         self.shape, self.bins = tuple(shape), bins
    >>> flow = Mine((3,), bins=4)
    >>> x = flow.inverse(torch.zeros(2, 3))
    >>> flow(x)[0].abs().amax() < 1e-4
    tensor(True)

A flow of another library is a subclass of :class:`ForeignFlow`, as in ``examples/normflows_flow.py``.

Source: Rozet et al., "Zuko", https://github.com/probabilists/zuko.
"""

import importlib
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from indm.conditions import Conditioned, features_of
from indm.flows.base import TOLERANCE, Certificate, Flow, measured_certificate
from indm.messages import nearest
from indm.tensors import Batch, PerSample, expand_like, full_precision, zeroed

NOTHING: Mapping[str, Any] = MappingProxyType({})
TO_LATENT, TO_DATA = "the data to the latent", "the latent to the data"


class ForeignFlow(Flow):
    """A flow of another library: a subclass says how that calls the two directions.

    Every inverse is certified by one pass of h. A stochastic log|det| of another library draws from PyTorch's (or
    NumPy's) global random state, not from our generators.

    Args:
        inverse_is_formula: whether the library's inverse is a formula that autograd can differentiate twice.

    Example: a transform of PyTorch's distributions.

        >>> class Transformed(ForeignFlow):
        ...     def __init__(self, transform):
        ...         super().__init__(inverse_is_formula=True)
        ...         self.transform = transform
        ...     def to_latent(self, x):
        ...         z = self.transform(x)
        ...         return z, self.transform.log_abs_det_jacobian(x, z).sum(1)
        ...     def to_data(self, z):
        ...         return self.transform.inv(z)
        >>> flow, x = Transformed(torch.distributions.SigmoidTransform()), torch.randn(5, 3)
        >>> torch.allclose(flow.inverse(flow(x)[0]), x, atol=1e-4)
        True
    """

    def __init__(self, inverse_is_formula: bool):
        super().__init__()
        self._inverse_is_formula = inverse_is_formula

    @property
    def inverse_is_formula(self) -> bool:
        return self._inverse_is_formula

    @abstractmethod
    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """z = h(x) and log|det ∂z/∂x|, (B,), or one number for all samples."""

    @abstractmethod
    def to_data(self, z: Tensor) -> Tensor:
        """The library's h⁻¹(z); NotImplementedError where it has none."""

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        """z = h(x) and log|det ∂z/∂x|, nats.

        Raises:
            ValueError: the library lacks the map in this direction, or it changes the shape of x.
        """
        with full_precision(x.device):
            z, log_det = _apply(self, self.to_latent, x, TO_LATENT)
        if z.shape != x.shape:
            raise ValueError(f"flow must keep the shape {tuple(x.shape)}, but it makes it {tuple(z.shape)}")
        return z, log_det + x.new_zeros(len(x))

    def solve_inverse(self, z: Tensor, tol: float = TOLERANCE) -> Certificate:
        """The library's inverse, and its residual by one pass of h; the library's own iterations are not counted.

        Raises:
            ValueError: the library has no inverse of this flow.
        """
        finite = z.flatten(1).isfinite().all(1)
        z = torch.where(expand_like(finite, z), z, 0.0)  # one sample that is not finite stops some flows for all
        x = _apply(self, self.to_data, z if self.inverse_is_formula else z.detach(), TO_DATA)
        x = x if self.inverse_is_formula else x.detach()
        iterations = torch.zeros(len(z), dtype=torch.long, device=z.device)
        x, residual, iterations, converged = measured_certificate(self, x, z, iterations, tol)
        residual = torch.where(finite, residual, math.nan)
        return torch.where(expand_like(finite, x), x, math.nan), residual, iterations, converged & finite


def _apply(part: object, function: Callable[[Tensor], Any], v: Tensor, direction: str) -> Any:
    """``function(v)``, one of the two directions of ``part``."""
    try:
        return function(v)
    except NotImplementedError as error:
        raise ValueError(
            f"flow must have both directions, but {type(part).__module__}.{type(part).__name__} lacks the one from "
            f"{direction}; without it the model cannot be {'trained' if direction == TO_LATENT else 'sampled'}"
        ) from error


class ZukoAdapter(Conditioned, ForeignFlow):
    """Any flow or transform of zuko: h is the transform, from the data to the base distribution, which is not used.

    Args:
        flow: a ``zuko.flows.Flow``, a ``zuko.lazy.LazyTransform`` or a transform.
        inverse_is_formula: see :class:`ForeignFlow`; not for NAF, UNAF, SOSPF, BPF, GF (bisection) and CNF (an ODE).
        features: numbers of its context, which it sees of a condition.

    Example: a transform of zuko, z = 2x + 1.

        >>> import zuko
        >>> flow = ZukoAdapter(zuko.transforms.AffineTransform(1.0, 2.0), inverse_is_formula=True)
        >>> z, log_det = flow(torch.tensor([[3.0, 4.0]]))
        >>> z.tolist(), round(log_det.item(), 4)  # 2 log 2
        ([[7.0, 9.0]], 1.3863)
    """

    def __init__(self, flow: Any, inverse_is_formula: bool = False, features: int = 0):
        super().__init__(inverse_is_formula)
        flow = getattr(flow, "transform", flow) if isinstance(flow, nn.Module) else flow
        self.lazy, self.features = flow if isinstance(flow, nn.Module) else _Constant(flow), features

    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        transform = self.lazy(self.seen(x))
        z, log_det = transform.call_and_ladj(x)
        return z, log_det.reshape(len(x), -1).sum(1)  # entry by entry for a transform of numbers

    def to_data(self, z: Tensor) -> Tensor:
        return self.lazy(self.seen(z)).inv(z)


class _Constant(nn.Module):
    """A transform without parameters as zuko's lazy transforms are: called with a context, it gives the transform."""

    def __init__(self, transform: Any):
        super().__init__()
        self.transform = transform

    def forward(self, context: Tensor | None) -> Any:
        return self.transform


class ZukoFlow(ZukoAdapter):
    """A flow of zuko by the name of its class, for vectors; the affine and spline ones and CNF start at the identity.

    Args:
        shape: event shape, (D,).
        kind: a class in ``zuko.flows``, in either case: "nsf" (splines), "maf", "realnvp", "nice" (affine), "naf",
            "unaf", "sospf", "bpf", "gf" (for data within ±10), or "cnf" (with its default tolerances, its log|det| is
            off by some thousandths of a nat).
        transforms: number of transforms; "cnf" has one.
        width: hidden units of each of the two hidden layers.
        options: further arguments of that class.
        condition: (features,) that it sees of a condition, its context; () for none.

    Raises:
        ValueError: without zuko, for images, or for arguments that the class does not take.

    Example: splines, at the identity before training.

        >>> flow, x = ZukoFlow((3,), "nsf", transforms=2, width=8), torch.randn(5, 3)
        >>> z, log_det = flow(x)
        >>> torch.allclose(z, x, atol=1e-3), torch.allclose(flow.inverse(z), x, atol=1e-3)
        (True, True)
    """

    FORMULAS = ("maf", "nsf", "nice", "realnvp")  # those whose inverse is a formula

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: str = "nsf",
        transforms: int = 3,
        width: int = 64,
        options: Mapping[str, Any] = NOTHING,
        condition: tuple[int, ...] = (),
    ):
        shape, features = tuple(shape), features_of(condition)
        flows = _library("zuko").flows
        # NCSF is for angles: it is no bijection of the numbers.
        kinds = {name.lower(): value for name, value in _classes(flows, flows.Flow).items() if name != "NCSF"}
        if kind.lower() not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}{nearest(kind.lower(), kinds)}")
        if len(shape) != 1:
            raise ValueError(f"shape must be (D,), zuko's flows are for vectors, got {shape}; use 'coupling'")
        family = kinds[kind.lower()]
        arguments = {"features": shape[0], "transforms": transforms, "hidden_features": (width, width)}
        if "transforms" not in _parameters(family):
            del arguments["transforms"]
        arguments |= {"context": features} if features else {}
        super().__init__(_made(family, arguments | _tuples(options)), kind.lower() in self.FORMULAS, features)
        self.shape, self.kind, self.transforms, self.width = shape, kind, transforms, width
        self.options, self.condition = dict(options), tuple(condition)
        for module in self.lazy.modules():
            network = getattr(module, "hyper", getattr(module, "ode", None))
            if isinstance(network, nn.Module):
                zeroed([layer for layer in network.modules() if isinstance(getattr(layer, "weight", None), Tensor)][-1])


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"flow {name!r} needs the library {name}: pip install {name}") from error


def _classes(module: ModuleType, base: type) -> dict[str, type[nn.Module]]:
    """The public classes of ``module`` that are flows, by name: nothing else can be asked for by a name in a file."""

    def public() -> Iterator[tuple[str, type]]:
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, base) and value is not base and not name.startswith("_"):
                yield name, value

    return dict(public())


def _parameters(family: type[nn.Module]) -> set[str]:
    """The arguments of a class, with those that it passes on to the classes that it extends."""
    names: set[str] = set()
    for base in family.__mro__[:-1]:
        parameters = inspect.signature(base).parameters
        names |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _made(family: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return family(**arguments)
    except (TypeError, AssertionError, AttributeError) as error:
        raise ValueError(f"options do not fit {family.__module__}.{family.__name__}: {error}") from error


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with tuples where a file has lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
