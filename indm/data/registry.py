"""All data sets by name."""

import functools
import inspect
import typing
from collections.abc import Callable

from indm.config.checks import check_whole_number
from indm.data.arrays import load_array
from indm.data.base import Data
from indm.data.celeba import load_celeba
from indm.data.cifar10 import load_cifar10
from indm.data.densities import DENSITIES
from indm.data.digits import load_digits
from indm.data.fashion_mnist import load_fashion_mnist
from indm.data.folder import load_folder
from indm.data.synthetic import load_density
from indm.messages import nearest

LOADERS: dict[str, Callable[..., Data]] = {name: functools.partial(load_density, name) for name in DENSITIES} | {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "celeba": load_celeba,
    "folder": load_folder,
    "array": load_array,
}


def load_data(name: str, **options: object) -> Data:
    """Load the data set ``name`` with the options of its loader.

    Raises:
        ValueError: what :func:`check_data` raises, and for data that cannot be used.
    """
    check_data(name, **options)
    return LOADERS[name](**options)


def check_data(name: str, **options: object) -> None:
    """See that there is such a data set with such options, without looking for its files.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one), an option of the wrong type, and a
            missing one.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data {name!r}{nearest(name, LOADERS)}")
    parameters = inspect.signature(LOADERS[name]).parameters
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(f"data {name!r} has no option {option!r}{nearest(option, parameters)}")
        expected = parameters[option].annotation
        kinds = typing.get_args(expected) or (expected,)
        if not _fits(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise ValueError(f"option {option!r} of data {name!r} must be {wanted}, got {value!r}")
        check_whole_number(f"data.{option}", value)
    missing = [o for o, p in parameters.items() if p.default is inspect.Parameter.empty and o not in options]
    if missing:
        raise ValueError(f"data {name!r} needs the option {', '.join(missing)}")


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    """``isinstance``, but a bool is no number and an int is a float."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
