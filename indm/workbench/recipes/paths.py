"""Where the files of a data set are, whatever the current folder: the recipe of a run holds absolute paths."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from indm.names import BUILT_IN

KEYS = ("path", "root")  # of a built-in data set
TABLES = ("data", "data_b")
RECORD = "versions.json"  # file in the run folder


def absolute(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """``recipe`` with absolute paths of its data. What code from outside calls a path stays as it is."""
    return _with_paths(recipe, lambda path: os.path.abspath(os.path.expanduser(path)))


def without_places(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """``recipe`` with only the names of what its data are in, not where that is."""
    return _with_paths(recipe, lambda path: Path(path).name)


def _with_paths(recipe: Mapping[str, Mapping[str, Any]], changed: Callable[[str], str]) -> dict[str, dict]:
    tables = {table: dict(content) for table, content in recipe.items()}
    for table, key in _paths_in(tables):
        tables[table][key] = changed(tables[table][key])
    return tables


def gone(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The paths of the data at which nothing is, by dotted key."""
    keys = _paths_in(recipe)
    return {f"{t}.{k}": recipe[t][k] for t, k in keys if not os.path.exists(os.path.expanduser(recipe[t][k]))}


def without_paths(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a data set without the places of its files, which may be moved."""
    places = {key for _, key in _paths_in({"data": table})}
    return {key: value for key, value in table.items() if key not in places}


def _paths_in(recipe: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for table in TABLES:
        content = recipe.get(table, {})
        if str(content.get("name")) in BUILT_IN["data"]:
            yield from ((table, key) for key in KEYS if isinstance(content.get(key), str))
