"""Parts by name: flows, SDEs, networks and the rest, from this package or any other.

The method and each house lists its own in its ``parts.toml``; :data:`BUILT_IN` has all rows. Any other name is
``"package.module:Name"``, code outside this package. Names also stand in files that others wrote, so code outside is
imported only inside :func:`trust`. Nothing is imported before it is asked for.
"""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from indm.checks import brief, did_you_mean, hints_of, nearest, require

PART_KINDS = ("flow", "sde", "net")  # the parts of which a model is made
OPTIONAL_KINDS = ("dequantization", "condition")  # those that a model may be without
HERE = Path(__file__).parent
PART_FILES = [HERE / "parts.toml", *sorted(HERE.glob("*/parts.toml"))]  # the method's, and one of each house
ROOMS = [tomllib.loads(file.read_text("utf-8")) for file in PART_FILES]
BUILT_IN = {  # kind → name → place
    kind: {name: place for room in ROOMS for name, place in room.get(kind, {}).items()}
    for kind in (*PART_KINDS, *OPTIONAL_KINDS, "data", "objective", "sampler")
}
MADE = {kind: places.split(", ") for room in ROOMS for kind, places in room.get("made", {}).items()}  # see _check_made
GIVEN = "given"  # stands for what was given in Python and cannot be named
OUTSIDE = re.compile(r"(?P<package>\w+)(\.\w+)*:\w+(\.\w+)*")
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


class Untrusted(ValueError):
    """A name asks for code of a ``package`` that the user has not said to trust."""

    def __init__(self, message: str, package: str):
        super().__init__(message)
        self.package = package


@contextmanager
def trust(*packages: str) -> Iterator[None]:
    """Inside, names may ask for code of these top-level packages: reading a model can then import and run it.

    >>> with trust("torch"):
    ...     find("net", "torch.nn:Identity").__name__
    'Identity'
    """
    token = _trusted.set(_trusted.get() | {package.split(":")[0].split(".")[0] for package in packages})
    try:
        yield
    finally:
        _trusted.reset(token)


def is_outside(name: object) -> bool:
    """Whether ``name`` has the form ``"package.module:Name"``."""
    return isinstance(name, str) and OUTSIDE.fullmatch(name) is not None


def find(kind: str, name: Any) -> Any:
    """The part of that kind, most often a class, by a built-in name, ``"package.module:Name"``, or as the class itself.

    Raises:
        Untrusted: code outside this package that is not trusted, see :func:`trust`.
        ValueError: an unknown name (with the nearest that exists), or no such module or class.
    """
    if callable(name):
        return name
    known = BUILT_IN.get(kind, {})
    if isinstance(name, str) and name in known:
        return _imported(kind, known[name])
    if name == GIVEN:
        raise ValueError(f"{kind} {GIVEN!r} was given in Python and has no name: give it again, or name another one")
    outside = OUTSIDE.fullmatch(name) if isinstance(name, str) else None
    if outside is None:
        option = f"{kind}.name" if kind in ("data", *PART_KINDS) else kind  # what the user wrote the name for
        raise ValueError(
            f"{option} must be one of {', '.join(known)}, or package.module:Name, got {brief(repr(name))}"
            f"{did_you_mean(str(name), known)}"
        )
    _check_trusted(outside["package"], f"{kind} {name!r} is code outside indm, and reading it would import and run")
    part = _imported(kind, name)
    _check_made(kind, name, part)
    return part


def _check_trusted(package: str, why: str) -> None:
    """Untrusted where ``package`` is not trusted; ``why`` it must be."""
    if package not in _trusted.get():
        so_far = f"; trusted so far: {', '.join(sorted(_trusted.get()))}" if _trusted.get() else ""
        message = f"{why} {package!r}: if you trust that package, allow it by indm.trust({package!r}){so_far}"
        raise Untrusted(message, package)


def _check_made(kind: str, name: str, part: Any) -> None:
    """ValueError unless ``part`` is code of a trusted package, and it makes something of its kind.

    A trusted library may import functions that run any command. So a class must be one of :data:`MADE`, and a function
    must say by its annotation that it returns one. Functions that no file gives arguments, as losses, may return any.
    """
    owner = part.__module__ if hasattr(part, "__qualname__") else type(part).__module__
    if (package := str(owner).partition(".")[0]) != "indm":
        _check_trusted(package, f"{kind} {name!r} leads to code of")
    if kind in MADE:
        made = part if isinstance(part, type) else hints_of(part, ["return"]).get("return")
        places = MADE[kind]
        known = tuple(_imported(kind, place) for place in places)
        each = get_args(made) if get_origin(made) is tuple else [made]
        fits = all(isinstance(one, type) and issubclass(one, known) for one in each)
        wanted = f"a class, or a function annotated to return one, of {' or '.join(places)}"
        require(fits, f"{kind} {name!r}", made, wanted)


def name_of(kind: str, part: Any) -> str:
    """The name by which :func:`find` finds ``part``; ValueError where nothing could import it. Scripts are modules,
    too."""
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
        raise ValueError(f"{kind} {part.__qualname__} cannot be named in a file, as it is defined in {where}")
    return place


def _imported(kind: str, place: str) -> Any:
    import torch

    module, _, path = place.partition(":")
    try:
        with torch.device("cpu"):  # not "meta", on which a model may be built: a module keeps the tensors that it makes
            part = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{kind} {place!r} cannot be imported: {error}") from error
        where = "where Python looks; install it, or add its folder to PYTHONPATH"
        raise ValueError(f"{kind} {place!r}: there is no module {error.name!r} {where}") from error
    for name in path.split("."):
        if not hasattr(part, name):
            public = [known for known in dir(part) if not known.startswith("_")]
            raise ValueError(f"{kind} {place!r}: {module} has no {name!r}{nearest(name, public)}")
        part = getattr(part, name)
        if isinstance(part, ModuleType):  # and from it to whatever it imports
            break
    if not callable(part):
        raise ValueError(f"{kind} {place!r} must be a class or a function, got {type(part).__name__}")
    return part
