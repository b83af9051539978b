"""Data sets of other projects, read or made into files, and recipes of such data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "recipes"


def recipe_file(name: str) -> str:
    """The recipe of that name in this folder, else ``name`` itself: a recipe that comes with indm."""
    file = RECIPES / f"{name}.toml"
    return str(file) if file.is_file() else name


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the rows, equally far apart.

    >>> thinned(range(10), 3)
    [0, 3, 6]
    """
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
