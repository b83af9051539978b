"""Data sets of other projects, read or made into files, and recipes of such data."""

from collections.abc import Sequence
from typing import Any


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the rows, equally far apart.

    >>> thinned(range(10), 3)
    [0, 3, 6]
    """
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
