"""The tables of parts: those that a room adds, and what says where a part has moved."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import indm
from indm.config import parts


def test_a_room_names_its_own_parts():
    rows = tomllib.loads((Path(indm.__file__).parent / "published" / "parts.toml").read_text("utf-8"))
    assert rows["net"] == {"ncsnpp": "indm.published.ncsnpp:NCSNpp"}
    for kind, table in rows.items():
        assert table.items() <= parts.BUILT_IN[kind].items() and not table.keys() & parts.OWN[kind].keys()
        for name, place in table.items():
            assert parts.name_of(kind, parts.find(kind, name)) == name and place.startswith("indm.published.")
    assert "indm.published" not in str(parts.OWN)


@pytest.mark.parametrize("name", parts.MOVED)
def test_what_has_moved_is_pointed_to_in_one_line(name):
    line = re.escape(parts.MOVED[name])
    with pytest.raises(ValueError, match=line) as error:
        parts.find("net", name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 130
    if name.startswith("indm."):
        package, _, attribute = name.rpartition(".")
        with pytest.raises(ImportError, match=line):
            getattr(importlib.import_module(package), attribute)
