"""Words for error messages: values on one line, lists cut short, the nearest known name."""

import difflib
from collections.abc import Sequence

LONGEST_VALUE = 200  # characters of what a message quotes from a file
MOST_LISTED = 40  # problems that one message lists


def one_line(text: object) -> str:
    """``text`` on one line, with nothing in it that a terminal would obey: names of files may hold either."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def brief(value: object) -> str:
    """The beginning of ``value`` for a message, on one line: what a file holds may be of any length."""
    text = one_line(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def listed(problems: Sequence[object]) -> str:
    """The first so many of them, see :func:`brief`, and how many more there are."""
    more = len(problems) - MOST_LISTED
    return "; ".join(map(brief, problems[:MOST_LISTED])) + (f"; and {more} more" if more > 0 else "")


def reason(error: Exception) -> str:
    """What went wrong, on one line; decoders raise errors of all kinds, some of them without a word."""
    said = one_line(error)[:300]
    return f"{said} is missing" if isinstance(error, KeyError) else said or type(error).__name__


def nearest(word: str, known) -> str:
    """«; did you mean 'x'?» where some known word is near, else the list of what there is."""
    known = [str(k) for k in known]
    matches = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f" (there are: {', '.join(known)})"
