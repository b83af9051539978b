"""Parts by name: flows, SDEs, networks and the rest, from this package or any other.

:func:`register` names a part of this package, and the entry points of the group ``indm.parts`` name
parts of installed packages. Any other name is ``"package.module:Name"``. A file that somebody else
wrote may contain names, too, so code outside this package is imported only inside :func:`trust`.
"""

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from indm.checks import brief, did_you_mean, hints_of, nearest, require

PART_KINDS = ("flow", "sde", "net")  # the parts of which a model is made
OPTIONAL_KINDS = ("dequantization", "condition")  # those that a model may be without
KINDS = (*PART_KINDS, *OPTIONAL_KINDS, "data", "objective", "sampler")
# kind → name → place, see register
BUILT_IN: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
# the group in which another package names its parts: "flow.mine" = "package.module:Mine"
ENTRY_POINTS = "indm.parts"
GIVEN = "given"  # stands for what was given in Python and cannot be named
OUTSIDE = re.compile(r"(?P<package>\w+)(\.\w+)*:\w+(\.\w+)*")
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


class Untrusted(ValueError):
    """The error for a name of code in a ``package`` that the user does not trust."""

    def __init__(self, message: str, package: str):
        super().__init__(message)
        self.package = package


@contextmanager
def trust(*packages: str) -> Iterator[None]:
    """Allow names of code in these top-level packages: reading a model can then import and run it.

    >>> with trust("torch"):
    ...     find("net", "torch.nn:Identity").__name__
    'Identity'
    """
    token = _trusted.set(_trusted.get() | set(map(_package, packages)))
    try:
        yield
    finally:
        _trusted.reset(token)


def register(kind: str, name: str, place: str) -> None:
    """Name the part of this package at ``place`` = ``"module:Name"``. It is imported on first use."""
    BUILT_IN[kind][name] = place


def installed(kind: str) -> dict[str, str]:
    """The parts of that kind in the entry points of installed packages, place by name."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    named = [(*entry.name.partition(".")[::2], entry.value) for entry in entries]
    return {name: place for of, name, place in named if of == kind}


def is_outside(name: object) -> bool:
    """Whether ``name`` has the form ``"package.module:Name"``."""
    return isinstance(name, str) and OUTSIDE.fullmatch(name) is not None


def outside_places(name: str) -> list[str]:
    """The places outside this package that ``name`` may stand for, as a part of any kind."""
    if is_outside(name):
        return [name]
    if not name or any(name in known for known in BUILT_IN.values()):
        return []
    return [parts[name] for parts in map(installed, KINDS) if name in parts]


def place_of(kind: str, name: Any) -> Any:
    """The place of an installed part of that kind; any other ``name`` as it is."""
    if not isinstance(name, str) or name in BUILT_IN.get(kind, {}) or is_outside(name):
        return name
    return installed(kind).get(name, name)


def find(kind: str, name: Any) -> Any:
    """The part of that kind, most often a class.

    Args:
        kind: a key of :data:`BUILT_IN`.
        name: a built-in or installed name, ``"package.module:Name"``, or the class itself.

    Raises:
        Untrusted: code outside this package that is not trusted, see :func:`trust`.
        ValueError: an unknown name (with the nearest that exists), or no such module or class.
    """
    if callable(name):
        return name
    if name == GIVEN:
        raise ValueError(
            f"{kind} {GIVEN!r} was given in Python and has no name: give it again, or name another one"
        )
    known = BUILT_IN.get(kind, {})
    if isinstance(name, str) and name in known:
        return _imported(kind, known[name])
    place = place_of(kind, name)
    if not is_outside(place):
        names = [*known, *installed(kind)]
        # what the user wrote the name for
        option = f"{kind}.name" if kind in ("data", *PART_KINDS) else kind
        raise ValueError(
            f"{option} must be one of {', '.join(names)}, or package.module:Name, got {brief(repr(name))}"
            f"{did_you_mean(str(name), names)}"
        )
    _check_trusted(
        _package(place),
        f"{kind} {name!r} is code outside indm, and reading it would import and run",
    )
    part = _imported(kind, place)
    owner = _package(
        str(part.__module__ if hasattr(part, "__qualname__") else type(part).__module__)
    )
    if owner != "indm":
        _check_trusted(owner, f"{kind} {name!r} leads to code of")
    if kind in (*PART_KINDS, *OPTIONAL_KINDS):
        from torch import nn

        check_made(kind, name, part, nn.Module)
    return part


def _package(place: str) -> str:
    """The top-level package of ``"package.module:Name"``."""
    return place.partition(":")[0].partition(".")[0]


def _check_trusted(package: str, why: str) -> None:
    """Untrusted unless ``package`` is trusted; ``why`` begins the message."""
    if package not in _trusted.get():
        so_far = f"; trusted so far: {', '.join(sorted(_trusted.get()))}" if _trusted.get() else ""
        message = f"{why} {package!r}: if you trust that package, allow it by indm.trust({package!r}){so_far}"
        raise Untrusted(message, package)


def check_made(kind: str, name: str, part: Any, *classes: type) -> None:
    """ValueError unless ``part`` is one of the ``classes``, or a function annotated to return one.

    A trusted library may have functions that run any command, and a file gives their arguments.
    """
    made = part if isinstance(part, type) else hints_of(part, ["return"]).get("return")
    each = get_args(made) if get_origin(made) is tuple else [made]
    fits = all(isinstance(one, type) and issubclass(one, classes) for one in each)
    known = " or ".join(f"{one.__module__}.{one.__name__}" for one in classes)
    require(
        fits,
        f"{kind} {name!r}",
        made,
        f"a class, or a function annotated to return one, of {known}",
    )


def name_of(kind: str, part: Any) -> str:
    """The name by which :func:`find` finds ``part``; ValueError if it cannot be imported."""
    module = part.__module__
    if module == "__main__":  # none where Python was started without a script
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = None if file is None else Path(file).stem
    place = f"{module}:{part.__qualname__}"
    names = {place: name for name, place in BUILT_IN[kind].items()}
    if place in names:
        return names[place]
    if module is None or "<" in part.__qualname__:
        where = "an interactive session" if module is None else "a function"
        raise ValueError(
            f"{kind} {part.__qualname__} cannot be named in a file, as it is defined in {where}"
        )
    return place


def _imported(kind: str, place: str) -> Any:
    module, _, path = place.partition(":")
    try:
        part = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind} {place!r} cannot be imported: {error}; install it, or add its folder to "
            "PYTHONPATH"
        ) from error
    for name in path.split("."):
        if not hasattr(part, name):
            public = [known for known in dir(part) if not known.startswith("_")]
            raise ValueError(f"{kind} {place!r}: {module} has no {name!r}{nearest(name, public)}")
        part = getattr(part, name)
        if isinstance(part, ModuleType):  # and from it to whatever it imports
            break
    if not callable(part):
        raise ValueError(
            f"{kind} {place!r} must be a class or a function, got {type(part).__name__}"
        )
    return part
