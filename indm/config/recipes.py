"""Recipes: TOML files that say everything about a run. Read, changed key by key, checked, and written back.

``[data]``, ``[flow]``, ``[sde]`` and ``[net]`` each have a ``name`` and the arguments of what it names (checked where
that is built); ``[train]`` and ``[evaluate]`` are the dataclasses :class:`Training` and :class:`Evaluation`.

A recipe may have presets: ``[presets.small.net]`` holds keys of ``[net]`` for ``train.preset = "small"``. Such a recipe
is open until :mod:`indm.training.presets` has filled them in, for which it needs the data.

One with a second data set may say what is other where a bridge between both is trained: ``[bridge.train]`` holds keys
of ``[train]`` for that, see :func:`indm.training.pairs.as_bridge`.
"""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints, overload

from indm.config import paths
from indm.config.checks import check_name, check_types
from indm.config.options import Evaluation, Training
from indm.config.parts import BUILT_IN, KINDS, OPTIONAL_KINDS, check_is_here
from indm.files import plain
from indm.messages import nearest

NAMED_TABLES = ("data", *KINDS)
BUNDLED = Path(__file__).parent / "bundled"
TEXT_KEYS = paths.KEYS  # also where a folder is called by a number
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
Recipe = dict[str, dict]
OPTION_TABLES = {"train": Training, "evaluate": Evaluation}
GROUPS = {  # what a bundled recipe is for → the command that trains it
    "own images": "indm train folder --data.path FOLDER",
    "own numbers": "indm train array --data.path FILE",
    "translation": "indm train-pair RECIPE, indm train-bridge RECIPE",
    "trying it out": "indm train RECIPE",
    "the paper": "indm train RECIPE",
}
OPTIONAL_TABLES = (*OPTIONAL_KINDS, "data_b")  # a second data set: the law that x_T shall have
TABLES = (*NAMED_TABLES, *OPTIONAL_TABLES, *OPTION_TABLES)
PRESETS, BRIDGE = "presets", "bridge"
CHANGES = (PRESETS, BRIDGE)  # tables of tables that a whole recipe no longer has


@dataclass(frozen=True)
class About:
    """What the first lines of a bundled recipe say of it: its description, then comments such as ``# two cores: 90 s``.

    Attributes:
        description: one line.
        group: one of :data:`GROUPS`, after ``# for:``.
        two_cores, gpu: time and memory of its training; "" where nothing is known.
    """

    description: str
    group: str
    two_cores: str
    gpu: str


def bundled() -> dict[str, About]:
    """The names of the recipes that come with indm, and what they say of themselves."""
    files = sorted(BUNDLED.glob("*.toml"), key=lambda path: path.stem)
    return {path.stem: _about(path.read_text("utf-8")) for path in files}


def _about(text: str) -> About:
    description, *comments = (line.lstrip("# ") for line in itertools.takewhile(_is_comment, text.splitlines()))
    said = {key: value.strip() for key, _, value in (line.partition(":") for line in comments)}
    return About(description, said["for"], said.get("two cores", ""), said.get("GPU", ""))


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def load(source: str | Path) -> Recipe:
    """The recipe of a bundled name, a TOML file, or a run folder, as it is written there (defaults not filled in).

    That of a run folder has absolute paths of its data, see :func:`indm.config.paths.located`.
    """
    path = Path(source)
    if str(source) in bundled() and not (isinstance(source, Path) and source.is_dir()):
        path = BUNDLED / f"{source}.toml"
    elif path.is_dir():
        path = path / "recipe.toml"
        if not path.is_file():
            below = sorted(str(file.parent) for file in path.parent.glob("*/recipe.toml"))
            hint = f", but in {', '.join(below[:3])}" if below else ""
            raise FileNotFoundError(f"{source} is no run folder: there is no recipe.toml in it{hint}")
    if not path.is_file():
        check_is_here(str(source))
        near = "" if len(path.parts) > 1 else nearest(str(source), bundled())
        raise FileNotFoundError(f"no recipe or file is called {str(source)!r}{near}")
    try:
        recipe = tomllib.loads(plain.text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for table, content in recipe.items():
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {table} must be a table, [{table}], got {content!r}")
    return paths.located(recipe, Path(source)) if Path(source).is_dir() else recipe


def recipe(source: str | Path, changes: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a bundled name, a TOML file or a run folder, with some of its keys changed, checked and whole.

    Args:
        source: as in :func:`load`.
        changes: values by dotted key; a bare table name puts another part in its place.

    Raises:
        ValueError: an unknown key (with the nearest that exists), or a value of the wrong type.

    >>> changed = recipe("digits", {"train.steps": 500, "flow": "identity"})
    >>> changed["train"]["steps"], changed["flow"]
    (500, {'name': 'identity'})
    """
    texts = {key: literal(value) if "." in key else str(value) for key, value in (changes or {}).items()}
    return resolve(override(load(source), texts))


def override(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """``recipe`` with dotted keys changed, values written as in TOML: ``{"train.steps": "500", "flow": "identity"}``.

    Where the recipe's budget is one of seconds alone, a number of steps replaces it, unless seconds are given too.
    A bare table name puts another thing of that kind in its place and keeps none of the old table. Another SDE of this
    package keeps ε, which belongs to the data. What is not TOML is taken as a string, and so is whatever a ``path`` or
    ``root`` is given as.
    """
    changed = {table: dict(content) for table, content in recipe.items()}
    for table in (key for key in changes if "." not in key):
        check_name(table, (*NAMED_TABLES, *OPTIONAL_TABLES), "table that can be replaced", f"--{table}")
        kept = {"eps"} if table == "sde" and changes[table] in BUILT_IN["sde"] else set()
        changed[table] = {"name": changes[table]} | {k: v for k, v in changed.get(table, {}).items() if k in kept}
    for dotted in (key for key in changes if "." in key):
        table, key = dotted.split(".", 1)
        check_name(table, TABLES, "table", f"--{dotted}")
        value = value_of(changes[dotted])
        is_text = key in TEXT_KEYS and not isinstance(value, str)
        changed.setdefault(table, {})[key] = changes[dotted] if is_text else value
    if "train.steps" in changes and "train.seconds" not in changes and recipe.get("train", {}).get("steps") == math.inf:
        changed["train"]["seconds"] = math.inf
    return changed


def is_open(recipe: Recipe) -> bool:
    """Whether a preset is yet to be filled in."""
    return bool(recipe.get("train", {}).get("preset"))


def with_preset(recipe: Recipe, preset: Recipe) -> Recipe:
    """``recipe`` with the keys of ``preset`` where it has none itself; it is open no more.

    A table of the preset that names a part is for that part alone.
    """
    filled = {table: dict(content) for table, content in recipe.items() if table not in CHANGES}
    del filled["train"]["preset"]
    for table, content in preset.items():
        own = filled.setdefault(table, {})
        if content.get("name") in (None, own.get("name")):
            filled[table] = content | own
    return filled


def as_continued(recipe: Recipe, run: str | Path) -> Recipe:
    """``recipe`` with what the data decided in the run folder ``run``; if it is open, with all keys that it lacks.

    Raises:
        ValueError: it names a preset whose network or flow is another one than the run's.
    """
    if "condition" in recipe:
        own, before = recipe["condition"], load(run).get("condition", {})
        recipe = recipe | {"condition": (before if before.get("name") == own.get("name") else {}) | own}
    if not is_open(recipe):
        return recipe
    name, continued = recipe["train"]["preset"], with_preset(recipe, load(run))
    wanted = with_preset(recipe, recipe.get(PRESETS, {}).get(name, {}))
    for table in ("net", "flow"):
        for key, value in wanted[table].items():
            if continued[table].get(key) != value:
                raise ValueError(
                    f"train.preset must be that of {run} to continue it, got {name!r}, whose {table}.{key} is {value} "
                    f"and not {continued[table].get(key)}; leave --preset out"
                )
    return resolve(continued)


def resolve(recipe: Recipe) -> Recipe:
    """``recipe`` checked and with the defaults of ``[train]`` and ``[evaluate]`` filled in, tables in fixed order.

    An open one is checked alone.
    """
    for table in recipe:
        check_is_here(table)
        check_name(table, (*TABLES, *CHANGES), "table", f"[{table}]")
    optional = [table for table in OPTIONAL_TABLES if table in recipe]
    for table in (*NAMED_TABLES, *optional):
        if not isinstance(recipe.get(table, {}).get("name"), str):
            raise ValueError(f'[{table}] needs a name = "…" that says which {table} is meant')
    options = {"train": asdict(options_of(recipe, "train")), "evaluate": asdict(options_of(recipe, "evaluate"))}
    if is_open(recipe):
        return recipe
    return {table: dict(options.get(table, recipe.get(table, {}))) for table in (*NAMED_TABLES, *optional, *options)}


def model_of(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The tables that describe the model, as :func:`indm.build_model` takes them."""
    return {table: recipe[table] for table in (*KINDS, *OPTIONAL_KINDS) if table in recipe}


@overload
def options_of(recipe: Recipe, table: Literal["train"]) -> Training: ...


@overload
def options_of(recipe: Recipe, table: Literal["evaluate"]) -> Evaluation: ...


def options_of(recipe: Recipe, table: Literal["train", "evaluate"]) -> Training | Evaluation:
    """The options in that table, checked: unknown keys and wrong types are ValueErrors."""
    return OPTION_TABLES[table](**checked(table, recipe.get(table, {})))


def checked(table: Literal["train", "evaluate"], content: Mapping[str, object]) -> dict[str, Any]:
    """The options ``content`` of that table, names and types checked, with lists as tuples."""
    hints = get_type_hints(OPTION_TABLES[table])
    for key in content:
        check_name(key, hints, "key", f"{table}.{key}")
    check_types(content, hints, f"{table}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ."""
    old, new = tomllib.loads(to_toml(old)), tomllib.loads(to_toml(new))
    keys = [(table, key) for table in TABLES for key in {**old.get(table, {}), **new.get(table, {})}]
    return [f"{t}.{k}" for t, k in keys if old.get(t, {}).get(k) != new.get(t, {}).get(k)]


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text."""
    blocks = [
        "\n".join([f"[{table}]", *(f"{_key(key)} = {literal(value)}" for key, value in content.items())])
        for table, content in recipe.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else literal(key)


def literal(value) -> str:
    """``value`` as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{value!r} is no Unicode text, which a recipe must be: rename that file or folder")
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {literal(part)}' for key, part in value.items())}}}"
    return str(value)  # numbers and dates


def value_of(text: str):
    """``text`` as TOML reads a value, or as a string where it is not TOML."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text
