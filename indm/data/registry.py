"""Data sets by name: those of this package, and anybody else's as ``package.module:Name``."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from indm.config import parts
from indm.config.checks import check_whole_number
from indm.data.base import Data, as_data
from indm.messages import nearest

Parameters = Mapping[str, inspect.Parameter]
SHARED: Parameters = {  # options of as_data, which data sets have that are no Data yet
    name: parameter
    for name, parameter in inspect.signature(as_data).parameters.items()
    if name not in ("source", "name", "where")
}


def load_data(name: str, **options: object) -> Data:
    """Load the data set ``name``.

    Args:
        name: a built-in name (a row of ``indm.config.parts.BUILT_IN["data"]``), or ``package.module:Name``, a function
            or class that returns a :class:`Data` or anything that :func:`as_data` takes.
        options: keyword arguments of what is called; those that it does not have go to :func:`as_data`.

    Raises:
        Untrusted: code outside this package that is not trusted, see :func:`indm.config.parts.trust`.
        ValueError: what :func:`check_data` raises, and for data that cannot be used.
    """
    check_data(name, **options)
    loader = parts.find("data", name)
    own, rest = _divided(loader, options)
    source = loader(**own)
    if isinstance(source, Data) and rest:
        raise ValueError(f"data {name!r} has no option {min(rest)!r}: it returns a Data, which is divided and scaled")
    return as_data(source, name=name, where=f"data {name!r}", **rest)


def check_data(name: str, **options: object) -> None:
    """See that there is such a data set with such options, without looking for its files.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one), an option of the wrong type, and a
            missing one.
    """
    loader = parts.find("data", name)
    own, rest = _divided(loader, options)
    parameters = inspect.signature(loader).parameters
    known = (dict(SHARED) if _needs_as_data(loader) else {}) | _named(parameters)
    for option in rest:
        if option not in known:
            raise ValueError(f"data {name!r} has no option {option!r}{nearest(option, known)}")
    for option, value in options.items():
        if option in known:
            _check_type(f"option {option!r} of data {name!r}", value, known[option].annotation)
        check_whole_number(f"data.{option}", value)
    missing = [o for o, p in _named(parameters).items() if p.default is inspect.Parameter.empty and o not in own]
    if missing:
        raise ValueError(f"data {name!r} needs the option {', '.join(missing)}")


def _named(parameters: Parameters) -> dict[str, inspect.Parameter]:
    """Those that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in kinds}


def _divided(loader: Callable[..., Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that ``loader`` takes, and the others."""
    parameters = inspect.signature(loader).parameters
    taken = set(_named(parameters))
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        taken |= set(options) - (set(SHARED) if _needs_as_data(loader) else set())
    return {o: v for o, v in options.items() if o in taken}, {o: v for o, v in options.items() if o not in taken}


def _needs_as_data(loader: Callable[..., Any]) -> bool:
    """Whether the result may be no :class:`Data`, by the annotation of ``loader``."""
    return inspect.signature(loader).return_annotation not in (Data, "Data")


def _check_type(what: str, value: object, annotation: Any) -> None:
    """ValueError unless ``value`` is of the annotated types, as far as these are plain classes."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if inspect.Parameter.empty in kinds or not all(isinstance(kind, type) for kind in kinds):
        return
    if not _fits(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ValueError(f"{what} must be {wanted}, got {value!r}")


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    """``isinstance``, but a bool is no number and an int is a float."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
