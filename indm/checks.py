"""Words for error messages, and the checker of options and of the arguments of parts.

A failure is a ``ValueError`` that names the option, its value, a value that works, and the nearest
name that exists.
"""

import collections.abc
import contextlib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

LONGEST_VALUE = 200  # characters of a value that a message quotes
MOST_LISTED = 40  # problems that one message lists

# Defaults of likelihoods, where nothing loads PyTorch: commands show them in their help.
NLL_ERROR = 1e-3  # bits/dim, of the solver
TIMES, PROBES = 4, 1  # score evaluations of a NELBO; Hutchinson probes of a divergence
IW_EXAMPLES, REPEATS, BATCH_SIZE = 100, 2, 256

# most distinct values of a column with few; fewest rows per value, on average
FEW_VALUES, ROWS_PER_VALUE = 64, 10


def one_line(text: object) -> str:
    """``text`` on one line, with escape sequences shown.

    Names of files may hold newlines and commands of a terminal.
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def brief(value: object) -> str:
    """The beginning of ``value``, on one line."""
    text = one_line(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def listed(problems: Sequence[object]) -> str:
    """The first :data:`MOST_LISTED` problems, each as in :func:`brief`, and the number of others."""
    more = len(problems) - MOST_LISTED
    return "; ".join(map(brief, problems[:MOST_LISTED])) + (
        f"; and {more} more" if more > 0 else ""
    )


def reason(error: BaseException) -> str:
    """The message of an error on one line, or its type if it has none."""
    message = one_line(error)[:300]
    if isinstance(error, KeyError):
        return f"{message} is missing"
    return message or type(error).__name__


def counted(number: int, thing: str) -> str:
    """«1 step», «2,000 steps»."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """«; did you mean 'x'?» if a known word is near, apart from leading dashes; else ""."""
    names = {str(name).lstrip("-"): str(name) for name in known}
    near = get_close_matches(word.lstrip("-"), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def nearest(word: str, known: Iterable[object]) -> str:
    """:func:`did_you_mean`, or the list of what there is."""
    names = [str(k) for k in known]
    return did_you_mean(word, names) or f" (there are: {', '.join(names)})"


def few_values(columns: Mapping[str, Any]) -> str:
    """A warning that names the columns of few values, each in many rows; "" if there are none."""
    import numpy as np  # not needed by `indm list`, which starts faster without it

    few = [
        name
        for name, values in columns.items()
        if len(np.unique(values)) <= min(FEW_VALUES, len(values) / ROWS_PER_VALUE)
    ]
    more = f" and {len(few) - 3} others" if len(few) > 3 else ""
    named = f"few values, each in many rows, in {', '.join(few[:3])}{more}: the density there is arbitrarily high"
    return named if few else ""


WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "a table",
    list: "a list", tuple: "a list", Path: "a path",
}  # fmt: skip
SEQUENCES = (tuple, list, collections.abc.Sequence)


def check_call(part: Any, argument: str, *names: str) -> None:
    """ValueError unless ``part``, the ``argument`` of a call, takes the arguments ``names``."""
    try:
        signature = inspect.signature(getattr(part, "forward", part))
    except (TypeError, ValueError):  # a function in C, without a signature
        return
    try:
        signature.bind(*names)
    except TypeError as error:
        got = f"{getattr(part, '__name__', type(part).__name__)}{signature}"
        raise ValueError(
            f"{argument} must be callable as {argument}({', '.join(names)}), got {got}: {error}"
        ) from None


def require(condition: bool, key: str, value: object, wanted: str, hint: str = "") -> None:
    """ValueError unless ``condition``: "key must be wanted, got value; hint"."""
    if not condition:
        raise ValueError(f"{key} must be {wanted}, got {brief(repr(value))}{hint and f'; {hint}'}")


def check_counts(**counts: int) -> None:
    """ValueError naming a count below 1."""
    for name, count in counts.items():
        require(count >= 1, name, count, "at least 1")


def check_word(name: str, value: object, known: Collection[str]) -> None:
    """ValueError unless ``value`` of the argument ``name`` is a ``known`` word."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
        )


class Must(NamedTuple):
    """A requirement on the value of an option, written as a note in the annotation of its field."""

    words: str
    holds: Callable[[Any], bool]


def check_name(word: str, known: Collection[str], what: str, shown: str) -> None:
    """ValueError unless ``word``, which the message calls ``shown``, is a known name of a ``what``."""
    if word not in known:
        raise ValueError(f"{shown} is no known {what}{nearest(word, known)}")


def check_arguments(
    target: Callable[..., Any],
    values: Mapping[str, object],
    *,
    table: str,
    what: str,
    given_later: Collection[str] = (),
    more: Mapping[str, object] = types.MappingProxyType({}),
) -> None:
    """Check the arguments of a call by their annotations.

    Args:
        target: what is called; if it takes ``**options``, any name is accepted.
        values: its arguments by name.
        table, what: names of the values and of the target in messages, such as "flow" and "flow
            'coupling'"; table may be "".
        given_later: parameters that the caller fills in.
        more: further names that are accepted, with their types.

    Raises:
        ValueError: an unknown name, a value that its annotation does not allow, or a missing
            argument.
    """
    parameters = arguments_of(target)
    hints = dict(more) | hints_of(target, parameters)
    any_name = takes_any_name(target)
    for name, value in values.items():
        key = f"{table}.{name}" if table else name
        if not any_name:
            check_name(name, hints, f"option of {what}", key)
        _check_value(key, value, hints.get(name, Any))
    given = {*values, *given_later}
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"{what} needs the option {', '.join(missing)}")


def _check_value(key: str, value: object, hint: Any) -> None:
    """ValueError unless ``value`` is of the type ``hint`` and meets each :class:`Must` in it."""
    require(_is_a(value, hint), key, value, type_words(hint))
    if value is None:
        return
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Must):
            require(note.holds(value), key, value, note.words)


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with lists, as files have them, as tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def arguments_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name; a bare ``nn.Module`` (*args, **kwargs) has none."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in named}


def takes_any_name(target: Callable[..., Any]) -> bool:
    """Whether ``target`` has ``**options``."""
    return any(
        p.kind is inspect.Parameter.VAR_KEYWORD
        for p in inspect.signature(target).parameters.values()
    )


def hints_of(target: Callable[..., Any], parameters: Iterable[str]) -> dict[str, object]:
    """The types of the parameters. Annotations that cannot be resolved stay text."""
    annotations = {name: p.annotation for name, p in inspect.signature(target).parameters.items()}
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    with contextlib.suppress(NameError, TypeError, AttributeError):
        annotations |= get_type_hints(function, include_extras=True)
    return {name: annotations[name] for name in parameters if name in annotations}


def _is_a(value: object, hint: Any) -> bool:
    """Whether ``value`` is of that type; bools are no numbers, and lists may stand for tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_a(value, inner[0])
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in inner)
    if origin is Literal:
        return value in inner
    if origin in SEQUENCES:
        if not isinstance(value, list | tuple):
            return False
        if len(inner) > 1 and inner[-1] is not ...:
            return len(value) == len(inner) and all(map(_is_a, value, inner))
        return all(_is_a(part, inner[0]) for part in value if inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (list, tuple):
        return isinstance(value, list | tuple)
    if hint in (None, types.NoneType):
        return value is None
    return hint not in WORDS or (
        isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    )


def type_words(hint: Any) -> str:
    """The type in words: "a whole number", "'auto' or 'no'", "a list of 2, each a number"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(part) for part in inner if part is not types.NoneType)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in SEQUENCES and inner:
        length = f" of {len(inner)}" if len(inner) > 1 and inner[-1] is not ... else ""
        return f"a list{length}, each {type_words(inner[0])}"
    return WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))
