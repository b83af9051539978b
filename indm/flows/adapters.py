"""Flows of other libraries as flows of ours: ``pip install 'indm[zuko]'`` and ``'indm[normflows]'``.

:class:`ZukoAdapter` and :class:`NormflowsAdapter` wrap any flow that has been made. :class:`ZukoFlow` and
:class:`NormflowsFlow` make one from the name of its class, so that a recipe can name it and a saved model can describe
it. To save a model with any other wrapped flow, write a class of your own:

    >>> class Mine(ZukoAdapter):
    ...     def __init__(self, shape, bins: int = 8):
    ...         import zuko
    ...         super().__init__(zuko.flows.NSF(shape[0], bins=bins))
    ...         self.shape, self.bins = tuple(shape), bins
    >>> flow = Mine((3,), bins=4)
    >>> x = flow.inverse(torch.zeros(2, 3))
    >>> flow(x)[0].abs().amax() < 1e-4
    tensor(True)

Every inverse is certified by one pass of h. A stochastic log|det| of another library draws from PyTorch's (or NumPy's)
global random state, not from our generators.

Sources: Rozet et al., "Zuko", https://github.com/probabilists/zuko; Stimper et al. 2023, "normflows: A PyTorch Package
for Normalizing Flows", https://arxiv.org/abs/2302.12014.
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
    """The common part of the adapters.

    Args:
        inverse_is_formula: whether the library's inverse is a formula that autograd can differentiate twice.
    """

    def __init__(self, inverse_is_formula: bool):
        super().__init__()
        self._inverse_is_formula = inverse_is_formula

    @property
    def inverse_is_formula(self) -> bool:
        return self._inverse_is_formula

    @abstractmethod
    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """z = h(x) and log|det ∂z/∂x|, (B,), or one number for all samples."""

    @abstractmethod
    def _decode(self, z: Tensor) -> Tensor:
        """The library's h⁻¹(z)."""

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        """z = h(x) and log|det ∂z/∂x|, nats.

        Raises:
            ValueError: the library lacks the map in this direction, or it changes the shape of x.
        """
        with full_precision(x.device):
            z, log_det = self._encode(_own(x))
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
        x = self._decode(z) if self.inverse_is_formula else self._decode(z.detach()).detach()
        iterations = torch.zeros(len(z), dtype=torch.long, device=z.device)
        x, residual, iterations, converged = measured_certificate(self, x, z, iterations, tol)
        residual = torch.where(finite, residual, math.nan)
        return torch.where(expand_like(finite, x), x, math.nan), residual, iterations, converged & finite


def _own(v: Tensor) -> Tensor:
    """``v`` as another object where it needs no gradient: some flows of normflows ask their input for one in place."""
    return v if v.requires_grad else v.view_as(v)  # detached, it would lose the tangents of forward mode


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

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        transform = self.lazy(self.seen(x))
        z, log_det = _apply(transform, transform.call_and_ladj, x, TO_LATENT)
        return z, log_det.reshape(len(x), -1).sum(1)  # entry by entry for a transform of numbers

    def _decode(self, z: Tensor) -> Tensor:
        transform = self.lazy(self.seen(z))
        return _apply(transform, transform.inv, z, TO_DATA)


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


class NormflowsAdapter(ForeignFlow):
    """Any flow of normflows: h is its *inverse*, as normflows maps the latent to the data.

    Args:
        flow: a ``normflows.NormalizingFlow``, whose base distribution is not used, or one of ``normflows.flows``. To
            take a single flow in its other direction, wrap it in ``normflows.flows.Reverse``.
        inverse_is_formula: see :class:`ForeignFlow`.

    Example: normflows maps the latent to the data, here by e z + 1; h is the inverse.

        >>> import normflows
        >>> layer = normflows.flows.AffineConstFlow((2,))
        >>> _ = layer.s.data.fill_(1.0), layer.t.data.fill_(1.0)
        >>> z, log_det = NormflowsAdapter(layer, inverse_is_formula=True)(torch.tensor([[1.0, 1.0 + math.e]]))
        >>> torch.allclose(z, torch.tensor([[0.0, 1.0]]), atol=1e-5), log_det.tolist()
        (True, [-2.0])
    """

    def __init__(self, flow: nn.Module, inverse_is_formula: bool = False):
        super().__init__(inverse_is_formula)
        # Summed here, the log-determinant keeps its precision: normflows sums in single precision.
        layers: Any = flow.flows if isinstance(flow, _library("normflows").NormalizingFlow) else [flow]
        self.layers = nn.ModuleList(layers)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        log_det: Tensor | float = 0.0
        for layer in reversed(self.layers):
            x, step = _apply(layer, layer.inverse, x, TO_LATENT)
            log_det = log_det + step
        return x, log_det

    def _decode(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z, _ = _apply(layer, layer, z, TO_DATA)
        return z


class NormflowsFlow(NormflowsAdapter):
    """A chain of flows of normflows by the names of their classes.

    Args:
        shape: event shape.
        kind: a class in ``normflows.flows``, or several from the latent to the data, which together are one step.
        steps: number of steps.
        width: hidden units of the networks, where a class has any.
        options: further arguments, each for the classes that take it.
        inverse_is_formula: see :class:`ForeignFlow`.

    What a class calls its dimension, channels or shape is taken from ``shape``.

    Raises:
        ValueError: without normflows, or for arguments that a class does not take or lacks.

    Example: a spline and a linear map, one step.

        >>> flow, x = NormflowsFlow((2,), steps=1, width=8), torch.randn(5, 2)
        >>> [type(layer).__name__ for layer in flow.layers]
        ['AutoregressiveRationalQuadraticSpline', 'LULinearPermute']
        >>> torch.allclose(flow.inverse(flow.latent(x)), x, atol=1e-3)
        True
    """

    FROM_SHAPE = ("features", "num_input_channels", "num_channels", "channels", "shape")
    FROM_WIDTH = ("hidden_features", "num_hidden_channels", "hidden_channels")

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: str | tuple[str, ...] = ("AutoregressiveRationalQuadraticSpline", "LULinearPermute"),
        steps: int = 2,
        width: int = 64,
        options: Mapping[str, Any] = NOTHING,
        inverse_is_formula: bool = False,
    ):
        shape, kind = tuple(shape), (kind,) if isinstance(kind, str) else tuple(kind)
        library = _library("normflows")
        kinds = _classes(library.flows, library.flows.Flow)
        for name in kind:
            if name not in kinds:
                raise ValueError(f"kind must name classes of normflows.flows, got {name!r}{nearest(name, kinds)}")
        if steps < 1 or not kind:
            raise ValueError(f"kind and steps must make at least one flow, got {kind} and {steps}")
        accepted = {key for name in kind for key in _parameters(kinds[name])}
        for key in options:
            if key not in accepted:
                raise ValueError(f"options has {key!r}, which {' and '.join(kind)} do not take{nearest(key, accepted)}")
        layers = [self._layer(kinds[name], shape, width, options) for _ in range(steps) for name in kind]
        super().__init__(library.NormalizingFlow(None, layers), inverse_is_formula)
        self.shape, self.kind, self.steps, self.width, self.options = shape, kind, steps, width, dict(options)

    def _layer(
        self, family: type[nn.Module], shape: tuple[int, ...], width: int, options: Mapping[str, Any]
    ) -> nn.Module:
        arguments: dict[str, Any] = {"num_blocks": 2} | {name: width for name in self.FROM_WIDTH}
        arguments |= {name: shape if name == "shape" else shape[0] for name in self.FROM_SHAPE}
        accepted = _parameters(family)
        return _made(family, {key: value for key, value in (arguments | _tuples(options)).items() if key in accepted})


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"flow {name!r} needs the library {name}: pip install 'indm[{name}]'") from error


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
