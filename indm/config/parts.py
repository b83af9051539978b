"""Parts by name: flows, SDEs, networks and the rest, those of this package and those of anybody else's.

A name is a row of :data:`BUILT_IN`, or ``"package.module:Name"``, code outside this package. A name may stand in a file
from a stranger, so code outside is imported only inside :func:`trust`. Nothing is imported before it is asked for. A
room of this package that no other needs to know names its parts in a file ``parts.toml`` of its own.
"""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import lazy_loader

from indm.messages import brief, did_you_mean, nearest

KINDS = ("flow", "sde", "net")  # the parts of which a model is made
OPTIONAL_KINDS = ("dequantization", "condition")  # those that a model may be without
OWN: Mapping[str, Mapping[str, str]] = {
    "flow": {
        "identity": "indm.flows.base:Identity",
        "residual": "indm.flows.residual:ResidualFlow",
        "coupling": "indm.flows.coupling:CouplingFlow",
        "elementwise": "indm.flows.elementwise:ElementwiseFlow",
        "autoregressive": "indm.flows.autoregressive:AutoregressiveFlow",
        "zuko": "indm.flows.adapters:ZukoFlow",
        "actnorm": "indm.flows.base:ActNorm",
        "linear": "indm.flows.coupling:InvertibleLinear",
        "squeeze": "indm.flows.base:Squeeze",
        "unsqueeze": "indm.flows.base:Unsqueeze",
        "compose": "indm.flows.base:Compose",
    },
    "sde": {
        "vp": "indm.sde.linear:VPSDE",
        "subvp": "indm.sde.linear:SubVPSDE",
        "ve": "indm.sde.linear:VESDE",
    },
    "net": {
        "mlp": "indm.nets.mlp:MLP",
        "mixture": "indm.nets.mixture:MixtureMLP",
        "unet": "indm.nets.unet:UNet",
        "zero": "indm.nets.zero:Zero",
    },
    "dequantization": {
        "uniform": "indm.dequantization:Uniform",
        "variational": "indm.dequantization:Variational",
    },
    "condition": {
        "classes": "indm.conditions:Classes",
        "vector": "indm.conditions:Vector",
        "image": "indm.conditions:Image",
    },
    "model": {
        "indm": "indm.model:INDM",
    },
    "data": {
        "checkerboard": "indm.data.synthetic:load_checkerboard",
        "eight-gaussians": "indm.data.synthetic:load_eight_gaussians",
        "two-spirals": "indm.data.synthetic:load_two_spirals",
        "rings": "indm.data.synthetic:load_rings",
        "pinwheel": "indm.data.synthetic:load_pinwheel",
        "digits": "indm.data.digits:load_digits",
        "fashion-mnist": "indm.data.fashion_mnist:load_fashion_mnist",
        "cifar10": "indm.data.cifar10:load_cifar10",
        "celeba": "indm.data.celeba:load_celeba",
        "emoji": "indm.data.emoji:load_emoji",
        "folder": "indm.data.folder:load_folder",
        "patches": "indm.data.patches:load_patches",
        "array": "indm.data.arrays:load_array",
        "datasets": "indm.data.hub:load_hub",
        "webdataset": "indm.data.shards:load_shards",
    },
    "objective": {
        "mle": "indm.objective:mle_loss",
        "fid": "indm.objective:fid_loss",
        "flow": "indm.objective:flow_loss",
    },
    "sampler": {
        "ode": "indm.sampling:AdaptiveODE",
        "euler-maruyama": "indm.sampling:EulerMaruyama",
        "ancestral": "indm.sampling:Ancestral",
        "pc": "indm.sampling:PredictorCorrector",
        "heun": "indm.sampling:Heun",
        "dpm++2m": "indm.sampling:DPMSolver2M",
        "dpm++3m": "indm.sampling:DPMSolver3M",
        "unipc": "indm.sampling:UniPC",
    },
}
ROOMS = [tomllib.loads(file.read_text("utf-8")) for file in sorted(Path(__file__).parents[1].glob("*/parts.toml"))]
BUILT_IN = {
    kind: dict(rows) | {name: place for room in ROOMS for name, place in room.get(kind, {}).items()}
    for kind, rows in OWN.items()
}
MOVED: Mapping[str, str] = {  # what left its place, and where it is now
    "dit": "research.networks.dit:DiT",
    "diffusers": "examples/diffusers_unet.py",
    "normflows": "examples/normflows_flow.py",
    "indm.flows.NormflowsAdapter": "examples/normflows_flow.py",
    "indm.flows.NormflowsFlow": "examples/normflows_flow.py",
    "indm.nets.DiffusersUNet": "examples/diffusers_unet.py",
    "learned": "research.forward.sde:LearnedSDE",
    "indm.LearnedSDE": "research.forward.sde.LearnedSDE",
    "indm.sde.LearnedSDE": "research.forward.sde.LearnedSDE",
    "forward": "research/forward/README.md",
    "digits-diffenc": "research/forward/recipes/digits-diffenc.toml",
    "digits-mulan": "research/forward/recipes/digits-mulan.toml",
    "digits-nfdm": "research/forward/recipes/digits-nfdm.toml",
    "truncated-normal": "research.forward.noise:TruncatedNormal",
    "indm.TruncatedNormal": "research.forward.noise.TruncatedNormal",
    "indm.nets.DiT": "research.networks.dit.DiT",
    "indm.flows.ConditionalResidualFlow": "indm.published.ConditionalResidualFlow",
    "indm.nets.NCSNpp": "indm.NCSNpp",
    "inspect": "python -m research.flow_analysis",
    "reproduce": "python -m research.claims",
    "vae-conv": "research.claims.coders:ConvCoder",
    "vae-mlp": "research.claims.coders:MLPCoder",
    "elbo": "research.claims.vae:elbo",
    "vae": "research.claims.vae:VAE",
}
GIVEN = "given"  # stands in a run's recipe for what was given in Python and cannot be named
OUTSIDE = re.compile(r"(?P<package>\w+)(\.\w+)*:\w+(\.\w+)*")
Constructors = Mapping[str, Mapping[str, Callable[..., Any]]]  # kind → name → constructor
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


class Untrusted(ValueError):
    """A name asks for code outside this package that the user has not said to trust."""


@contextmanager
def trust(*packages: str) -> Iterator[None]:
    """Inside, names may ask for code of these top-level packages: reading a model can then import and run it.

    >>> with trust("textwrap"):
    ...     find("net", "textwrap:TextWrapper").__name__
    'TextWrapper'
    """
    token = _trusted.set(_trusted.get() | {package.split(":")[0].split(".")[0] for package in packages})
    try:
        yield
    finally:
        _trusted.reset(token)


def is_outside(name: object) -> bool:
    """Whether ``name`` has the form ``"package.module:Name"``."""
    return isinstance(name, str) and OUTSIDE.fullmatch(name) is not None


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The lazy names of a package by its stub, and where those are that have moved."""
    lazy, names, exported = lazy_loader.attach_stub(package, file)

    def get(name: str) -> Any:
        if f"{package}.{name}" in MOVED:
            raise ImportError(_pointer(f"{package}.{name}"))
        return lazy(name)

    return get, names, exported


def find(kind: str, name: Any, constructors: Constructors | None = None) -> Any:
    """The part of that kind and name, most often a class.

    Args:
        kind: a key of :data:`BUILT_IN`.
        name: a built-in name, a name in ``constructors``, ``"package.module:Name"``, or the class itself.
        constructors: names beside the built-in ones; what stands there needs no :func:`trust`.

    Raises:
        Untrusted: code outside this package that is not trusted.
        ValueError: an unknown name (with the nearest that exists), or no such module or class.
    """
    if callable(name):
        return name
    own = (constructors or {}).get(kind, {})
    if isinstance(name, str) and name in own:
        return own[name]
    if isinstance(name, str) and name in BUILT_IN[kind]:
        return _imported(kind, BUILT_IN[kind][name])
    if name == GIVEN:
        raise ValueError(
            f"{kind} {GIVEN!r} was given in Python and has no name: give it again, as in indm.train(…, {kind}=…)"
            f"{', or to indm evaluate as --data NAME' if kind == 'data' else ''}"
        )
    outside = OUTSIDE.fullmatch(name) if isinstance(name, str) else None
    check_is_here(name)
    if outside is None:
        known = [*BUILT_IN[kind], *own]
        option = f"{kind}.name" if kind in ("data", *KINDS) else kind  # what the user wrote the name for
        raise ValueError(
            f"{option} must be one of {', '.join(known)}, or package.module:Name, got {brief(repr(name))}"
            f"{did_you_mean(str(name), known)}"
        )
    package = outside["package"]
    if package not in _trusted.get():
        raise Untrusted(
            f"{kind} {name!r} is code outside indm, and reading it would import and run {package!r}: if you trust that "
            f"package, add --trust {package} (in Python: with indm.trust({package!r}):, or constructors=)"
            + (f"; trusted so far: {', '.join(sorted(_trusted.get()))}" if _trusted.get() else "")
        )
    return _imported(kind, name)


def check_is_here(name: object) -> None:
    """ValueError where ``name`` has left its place, which says where it is now."""
    if isinstance(name, str) and name in MOVED:
        raise ValueError(_pointer(name))


def _pointer(name: str) -> str:
    where = MOVED[name]
    if where.startswith("indm."):
        return f"{name} is now {where}"
    room = "examples" if "examples" in where else "research"
    trusted = f", with --trust {room}" if is_outside(where) else ""
    return f"{name} is now in a checkout of the repository: {where}{trusted}"


def name_of(kind: str, part: Any, constructors: Constructors | None = None) -> str:
    """The name by which :func:`find` finds ``part``, a class or a function.

    What a script defines is named after the file of the script, from whose folder it can be imported.

    Raises:
        ValueError: nothing could import it by a name.
    """
    own = {constructor: name for name, constructor in (constructors or {}).get(kind, {}).items()}
    if part in own:
        return own[part]
    module = _script() if part.__module__ == "__main__" else part.__module__
    place = f"{module}:{part.__qualname__}"
    names = {place: name for name, place in BUILT_IN[kind].items()}
    if place in names:
        return names[place]
    if module is None or "<" in part.__qualname__:
        raise ValueError(
            f"{kind} {part.__qualname__} cannot be named in a file, as it is defined in "
            f"{'an interactive session' if module is None else 'a function'}: move it to a module that can be "
            "imported, or pass constructors= with an entry for it"
        )
    return place


def _script() -> str | None:
    """The name by which the running script can be imported; None where Python was started without one."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return None if file is None else Path(file).stem


def _imported(kind: str, place: str) -> Any:
    import torch

    module, _, path = place.partition(":")
    try:
        with torch.device("cpu"):  # not "meta", on which a model may be built: a module keeps the tensors that it makes
            part = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{kind} {place!r} cannot be imported: {error}") from error
        raise ValueError(
            f"{kind} {place!r}: there is no module {error.name!r} where Python looks; install it, or add its folder to "
            "PYTHONPATH"
        ) from error
    for name in path.split("."):
        if not hasattr(part, name):
            raise ValueError(f"{kind} {place!r}: {module} has no {name!r}{nearest(name, _public(part))}")
        part = getattr(part, name)
    if not callable(part):
        raise ValueError(f"{kind} {place!r} must be a class or a function, got {type(part).__name__}")
    return part


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]
