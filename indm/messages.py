"""Words for error messages: values on one line, lists cut short, the nearest known name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST_VALUE = 200  # characters of a value that a message quotes
MOST_LISTED = 40  # problems that one message lists


def one_line(text: object) -> str:
    """``text`` on one line, escape sequences shown: names of files may hold newlines and terminal commands."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def brief(value: object) -> str:
    """The beginning of ``value``, on one line: what a file holds may be of any length."""
    text = one_line(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def listed(problems: Sequence[object]) -> str:
    """The first :data:`MOST_LISTED` of them, each as in :func:`brief`, and how many more there are."""
    more = len(problems) - MOST_LISTED
    return "; ".join(map(brief, problems[:MOST_LISTED])) + (f"; and {more} more" if more > 0 else "")


def reason(error: BaseException) -> str:
    """What went wrong, on one line; decoders raise errors of all kinds, some of them without a message."""
    message = one_line(error)[:300]
    return f"{message} is missing" if isinstance(error, KeyError) else message or type(error).__name__


def counted(number: int, thing: str) -> str:
    """«1 step», «2,000 steps»."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """«; did you mean 'x'?» where a known word is near, leading dashes apart, else nothing."""
    names = {str(name).lstrip("-"): str(name) for name in known}
    return next((f"; did you mean {names[near]!r}?" for near in get_close_matches(word.lstrip("-"), names, n=1)), "")


def nearest(word: str, known: Iterable[object]) -> str:
    """:func:`did_you_mean`, or the list of what there is."""
    names = [str(k) for k in known]
    return did_you_mean(word, names) or f" (there are: {', '.join(names)})"
