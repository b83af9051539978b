"""Tables in Markdown, and pages that hold them between markers.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->`` on lines of their own, a single
number between ``<!-- value NAME -->`` and ``<!-- end -->`` inside a line.
"""

import math
import re
from collections.abc import Callable, Sequence

MARKED = re.compile(r"<!-- (table|value) (\S+) -->(.*?)<!-- end -->", re.DOTALL)
ERROR = re.compile(r"±\s*[\d.]")  # a number's


def in_table(*columns: str, rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_error(mean: float, error: float, form: str) -> str:
    """A number and its error, which is left out where it is NaN: of a single seed.

    >>> with_error(0.5, 0.25, "+.2f"), with_error(0.5, math.nan, ".2f")
    ('+0.50 ± 0.25', '0.50')
    """
    return f"{mean:{form}}" + ("" if math.isnan(error) else f" ± {error:{form.lstrip('+')}}")


def with_tables(page: str, made: Callable[[str], str]) -> str:
    """``page`` with what ``made`` gives for each name between the markers."""

    def marked(match: re.Match) -> str:
        kind, name, _ = match.groups()
        text = made(name)
        return (
            f"<!-- {kind} {name} -->"
            + (f"\n{text.strip()}\n" if kind == "table" else text)
            + "<!-- end -->"
        )

    return MARKED.sub(marked, page)


def errors_outside(page: str) -> list[str]:
    """Lines with an error of a number (± 0.1) that stands outside markers.

    >>> errors_outside("1 ± 0.1\\n\\n<!-- value x -->2 ± 0.2<!-- end --> at ±τ")
    ['1 ± 0.1']
    """
    return [line for line in MARKED.sub("", page).splitlines() if ERROR.search(line)]
