"""Data sets by name: those of this package, and anybody else's as ``package.module:Name``."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from indm import names
from indm.checks import arguments_of, check_arguments, takes_any_name
from indm.workbench.data.base import Data, Loader, as_data

SHARED = {  # options of as_data, which data sets have that are no Data yet
    name: parameter.annotation
    for name, parameter in inspect.signature(as_data).parameters.items()
    if name not in ("source", "name", "where")
}


def load_data(name: str, **options: object) -> Data:
    """Load the data set ``name``.

    Args:
        name: a built-in name (a row of ``indm.names.BUILT_IN["data"]``), or ``package.module:Name``, a function
            or class that returns a :class:`Data` or anything that :func:`as_data` takes.
        options: keyword arguments of what is called; those that it does not have go to :func:`as_data`.

    Raises:
        Untrusted: code outside this package that is not trusted, see :func:`indm.names.trust`.
        ValueError: what :func:`check_data` raises, and for data that cannot be used.

    Example: samples of a density of known entropy, uniform on 8 of the 16 squares of a board.

        >>> data = load_data("checkerboard", samples=1000, test_samples=100)
        >>> len(data.train), len(data.test), data.shape, round(data.entropy, 4)  # the area is 2, the entropy log 2
        (1000, 100, (2,), 0.6931)
    """
    check_data(name, **options)
    loader = names.find("data", name)
    taken = set(arguments_of(loader))
    if takes_any_name(loader):
        taken |= set(options) - (set(SHARED) if _needs_as_data(loader) else set())
    rest: dict[str, Any] = {option: value for option, value in options.items() if option not in taken}
    source = loader(**{option: value for option, value in options.items() if option in taken})
    source = source.data() if isinstance(source, Loader) else source
    if isinstance(source, Data) and rest:
        raise ValueError(f"data {name!r} has no option {min(rest)!r}: it returns a Data, which is divided and scaled")
    return as_data(source, name=name, where=f"data {name!r}", **rest)


def without_download(table: Mapping[str, Any]) -> dict[str, Any]:
    """The ``[data]`` table of a run for :func:`load_data`, such that nothing is downloaded."""
    own = arguments_of(names.find("data", table["name"]))
    return {**table, "download": False} if "download" in own else dict(table)


def check_data(name: str, **options: object) -> None:
    """See that there is such a data set with such options, without looking for its files."""
    loader = names.find("data", name)
    more = SHARED if _needs_as_data(loader) else {}
    check_arguments(loader, options, table="data", what=f"data {name!r}", more=more)


def _needs_as_data(loader: Callable[..., Any]) -> bool:
    """Whether the result may be no :class:`Data`, by the class or the annotation of ``loader``."""
    is_loader = isinstance(loader, type) and issubclass(loader, Loader)
    return not is_loader and inspect.signature(loader).return_annotation not in (Data, "Data")
