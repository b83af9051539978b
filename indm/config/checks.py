"""The checks of options: names, types and ranges, each failure a ``ValueError`` that names the option."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args, get_origin, get_type_hints

from indm.messages import brief, nearest

LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # whole numbers that torch takes for a size, and for a seed


def require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{key} must be {wanted}, got {brief(repr(value))}")


def check_each(options: object, table: str, holds: Callable, wanted: str, names: str) -> None:
    for name in names.split():
        require(holds(getattr(options, name)), f"{table}.{name}", getattr(options, name), wanted)


def check_whole_number(key: str, value: object) -> None:
    """ValueError where ``value`` is a whole number that is too large for what it counts, or for a seed."""
    most = LARGEST_SEED if key.endswith("seed") else LARGEST
    if isinstance(value, int):
        require(abs(value) <= most, key, value, f"within ±{most:,}")


def check_whole_numbers(options: object, table: str = "") -> None:
    """:func:`check_whole_number` for the fields of a dataclass that may be whole numbers."""
    for name, hint in get_type_hints(type(options)).items():
        if hint is int or int in get_args(hint):
            check_whole_number(f"{table}{name}", getattr(options, name))


def check_kinds(content: Mapping[str, object], kinds: Mapping[str, object], where: str) -> None:
    """ValueError naming, after ``where``, a value that is not of the type that ``kinds`` has for its key, if any."""
    for key, value in content.items():
        if key in kinds:
            require(_is_a(value, kinds[key]), f"{where}{key}", value, _describe(kinds[key]))


def check_name(word: str, known, what: str, shown: str) -> None:
    if word not in known:
        raise ValueError(f"{shown} is no known {what}{nearest(word, known)}")


def _is_a(value, hint) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        many = len(inner) == 2 and inner[1] is Ellipsis
        return (
            isinstance(value, list | tuple)
            and (many or len(value) == len(inner))
            and all(_is_a(v, inner[0]) for v in value)
        )
    if hint is float:
        hint = int | float  # a whole number is a number
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_describe(get_args(hint)[0])}"
    return {int: "a whole number", bool: "true or false", str: "a string"}.get(hint, "a number")
