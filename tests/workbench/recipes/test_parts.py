"""The tables of parts: those that a room adds, and what says where a part has moved."""

import importlib
import re
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
        assert rows.items() <= names.BUILT_IN[kind].items()
        for name, place in rows.items():
            assert place.startswith(f"{room}.")
            assert kind == "data" or names.name_of(kind, names.find(kind, name)) == name


@pytest.mark.parametrize("name", names.MOVED)
def test_what_has_moved_is_pointed_to_in_one_line(name):
    line = re.escape(names.MOVED[name])
    with pytest.raises(ValueError, match=line) as error:
        names.find("net", name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 130
    if name.startswith("indm."):
        package, _, attribute = name.rpartition(".")
        with pytest.raises(ImportError, match=line):
            getattr(importlib.import_module(package), attribute)
