"""The tables of parts: those that a room adds, and what says where a part has moved."""

import tomllib
from pathlib import Path

import pytest

import indm
from indm import names

ROOT = Path(indm.__file__).parent
TABLES = sorted(file.relative_to(ROOT) for file in ROOT.glob("**/parts.toml"))


@pytest.mark.parametrize("file", TABLES, ids=str)
def test_each_room_lists_its_own_parts(file):
    room = ".".join(("indm", *file.parent.parts))
    for kind, rows in tomllib.loads((ROOT / file).read_text("utf-8")).items():
        if kind == "made":  # classes that code outside must be
            continue
        assert rows.items() <= names.BUILT_IN[kind].items()
        for name, place in rows.items():
            assert place.startswith(f"{room}.")
            assert kind == "data" or names.name_of(kind, names.find(kind, name)) == name
