"""Recipes: TOML files that describe a run, read, changed by key, checked and written.

A file has :data:`Tables`. ``[data]``, ``[flow]``, ``[sde]`` and ``[net]`` have a ``name`` and the
arguments of that part, which are checked when it is built. ``[train]``, ``[evaluate]`` and
``[sample]`` are :class:`TrainOptions`, :class:`Evaluation` and :class:`SampleOptions`.
:func:`resolve` makes a :class:`Recipe` of the tables.

A file with a second data set may have changes for a bridge between both, such as keys of
``[train]`` in ``[bridge.train]``, see :func:`indm.workbench.training.pairs.as_bridge`.
"""

import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indm import files
from indm.checks import arguments_of, as_tuples, check_name, nearest
from indm.names import BUILT_IN, GIVEN, OPTIONAL_KINDS, PART_KINDS
from indm.workbench.recipes.options import Evaluation, SampleOptions, TrainOptions

NAMED_TABLES = ("data", *PART_KINDS)
BUNDLED = Path(__file__).parent / "bundled"
# tables of data sets; keys of paths in the built-in ones
DATA_TABLES, PATH_KEYS = ("data", "data_b"), ("path", "root")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
Tables = dict[str, dict[str, Any]]  # keys by table, as a file has them
AnyTables = Mapping[str, Mapping[str, Any]]  # these, or a Recipe
OPTION_TABLES = {"train": TrainOptions, "evaluate": Evaluation, "sample": SampleOptions}
OPTIONAL_TABLES = (*OPTIONAL_KINDS, "data_b")  # the last is a second data set
PART_TABLES = (*NAMED_TABLES, *OPTIONAL_TABLES)
TABLES = (*PART_TABLES, *OPTION_TABLES)
BRIDGE = "bridge"  # a table of tables, only in a file


@dataclass(frozen=True)
class Part:
    """A part of a run: its name, and the arguments of what it names."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """The part as a table of a file."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe(Mapping[str, dict[str, Any]]):
    """The parts and options of a run, checked; also the mapping of its tables.

    >>> digits = recipe("digits", {"train.steps": 500, "flow": "identity"})
    >>> digits.train.steps, digits.flow.name, digits["flow"]
    (500, 'identity', {'name': 'identity'})
    """

    data: Part
    flow: Part
    sde: Part
    net: Part
    dequantization: Part | None = None
    condition: Part | None = None
    data_b: Part | None = None
    train: TrainOptions
    evaluate: Evaluation
    sample: SampleOptions

    @property
    def labels(self) -> Sequence[str]:
        """The names of the classes of its condition; () if there are none."""
        return () if self.condition is None else self.condition.options.get("labels", ())

    def __getitem__(self, table: str) -> dict[str, Any]:
        found = getattr(self, table) if table in TABLES else None
        if found is None:
            raise KeyError(table)
        if isinstance(found, Part):
            return found.table()
        return {key: value for key, value in asdict(found).items() if value is not None}

    def __iter__(self) -> Iterator[str]:
        return (table for table in TABLES if getattr(self, table) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __or__(self, tables: AnyTables) -> "Recipe":
        """The recipe with these tables in place of its own."""
        return resolve({**self, **tables})


@dataclass(frozen=True)
class About:
    """The first lines of a bundled recipe: its description, then comments like ``# for: images``."""

    description: str
    group: str  # its purpose, "for"
    two_cores: str  # time and memory of its training; "" if they are not known
    gpu: str


def bundled() -> dict[str, About]:
    """The recipes of this package, by name."""
    paths = sorted(BUNDLED.glob("*.toml"), key=lambda path: path.stem)
    return {path.stem: _about(path.read_text("utf-8")) for path in paths}


def _about(text: str) -> About:
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    description, *comments = (line.lstrip("# ") for line in head)
    said = {key: value.strip() for key, _, value in (line.partition(":") for line in comments)}
    return About(description, said["for"], said.get("two cores", ""), said.get("GPU", ""))


def load(source: str | Path) -> Tables:
    """The tables of a bundled name, a TOML file, a run folder or a saved model, without defaults.

    Paths of data in a run folder are absolute.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a recipe.
    """
    path = Path(source)
    if str(source) in bundled() and not (isinstance(source, Path) and source.is_dir()):
        path = BUNDLED / f"{source}.toml"
    elif path.is_dir():
        path = path / "recipe.toml"
        if not path.is_file() and (path.parent / "model.json").is_file():
            return _of_saved_model(path.parent / "model.json")
        if not path.is_file():
            below = sorted(str(file.parent) for file in path.parent.glob("*/recipe.toml"))
            hint = f", but in {', '.join(below[:3])}" if below else ""
            raise FileNotFoundError(
                f"{source} is not a run folder: there is no recipe.toml in it{hint}"
            )
    if not path.is_file():
        near = "" if len(path.parts) > 1 else nearest(str(source), bundled())
        raise FileNotFoundError(f"no recipe or file is called {str(source)!r}{near}")
    try:
        tables = tomllib.loads(files.text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for table, content in tables.items():
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {table} must be a table, [{table}], got {content!r}")
    return absolute(tables) if Path(source).is_dir() else tables


def _of_saved_model(description: Path) -> Tables:
    """The tables of a model that ``INDM.save`` wrote, whose data are not known."""
    from indm.files import untrusted  # needs PyTorch, which takes seconds

    tables = model_tables(untrusted.json_object(description))
    known = {
        table: {k: v for k, v in content.items() if v is not None}
        for table, content in tables.items()
    }
    return known | {"data": {"name": GIVEN}}


def recipe(source: str | Path, changes: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a bundled name, a TOML file or a run folder, with changes.

    Args:
        source: the name, the file or the folder.
        changes: values by dotted key; the name of a table takes another part.

    Returns:
        Its parts and options by attribute, such as ``.flow.name`` and ``.train.steps``; also the
        mapping of its tables.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: an unknown key (with the nearest that exists), or a value of the wrong type.

    >>> recipe("digits", {"train.steps": 500, "flow": "identity"}).train.steps
    500
    """
    given = (changes or {}).items()
    texts = {key: literal(value) if "." in key else str(value) for key, value in given}
    return resolve(override(load(source), texts))


def override(tables: AnyTables, changes: Mapping[str, str]) -> Tables:
    """``tables`` with changes: ``{"train.steps": "9", "flow": "identity"}``.

    A dotted key changes a value, in TOML; any other text is a string, and so are paths. The name of
    a table takes another part in place of the old table. Some keys follow:

    - Another SDE of this package keeps ε, which belongs to the data.
    - A flow in place of the elementwise one gets the learning rate of the score, unless one is
      given: elementwise flows bear rates at which others diverge.
    - A number of steps replaces a budget of seconds alone, unless seconds are given, too.
    """
    changed = {table: dict(content) for table, content in tables.items()}
    for table in (key for key in changes if "." not in key):
        check_name(table, PART_TABLES, "table that can be replaced", table)
        old = changed.get(table, {})
        changed[table] = {"name": changes[table]}
        if table == "sde" and changes[table] in BUILT_IN["sde"] and "eps" in old:
            changed[table]["eps"] = old["eps"]
    for dotted in (key for key in changes if "." in key):
        table, key = dotted.split(".", 1)
        check_name(table, TABLES, "table", dotted)
        value = value_of(changes[dotted])
        is_text = key in PATH_KEYS and not isinstance(value, str)
        changed.setdefault(table, {})[key] = changes[dotted] if is_text else value
    is_by_seconds = tables.get("train", {}).get("steps") == math.inf
    if is_by_seconds and "train.steps" in changes and "train.seconds" not in changes:
        changed["train"]["seconds"] = math.inf
    own, other = tables.get("flow", {}).get("name"), changed.get("flow", {}).get("name")
    is_new = own == "elementwise" and other not in (own, "identity")
    if is_new and "flow_lr" in changed.get("train", {}) and "train.flow_lr" not in changes:
        changed["train"]["flow_lr"] = changed["train"].get("lr", TrainOptions.lr)
    return changed


def as_continued(tables: AnyTables, run: str | Path) -> Tables:
    """``tables`` with what the data decided in ``run``."""
    own, before = {table: dict(content) for table, content in tables.items()}, load(run)
    if "condition" in own:
        decided = before.get("condition", {})
        same = decided.get("name") == own["condition"].get("name")
        own["condition"] = {**(decided if same else {}), **own["condition"]}
    return own


def resolve(tables: AnyTables) -> Recipe:
    """The recipe of these tables, checked and with defaults.

    Raises:
        ValueError: an unknown table or key (with the nearest that exists), a value of the wrong
            type, a missing name.
    """
    if isinstance(tables, Recipe):
        return tables
    for table in tables:
        check_name(table, (*TABLES, BRIDGE), "table", f"[{table}]")
    parts: Any = {
        t: _part(t, tables.get(t, {})) for t in PART_TABLES if t in {*NAMED_TABLES, *tables}
    }
    options: Any = {
        name: kind(**options_of(name, tables.get(name, {}))) for name, kind in OPTION_TABLES.items()
    }
    return Recipe(**parts, **options)


def _part(table: str, content: Mapping[str, Any] | str) -> Part:
    content = {"name": content} if isinstance(content, str) else content
    name = content.get("name")
    if not isinstance(name, str):
        raise ValueError(f'[{table}] needs a name = "…"')
    return Part(name, {key: value for key, value in content.items() if key != "name"})


def model_tables(tables: AnyTables) -> dict[str, Mapping[str, Any]]:
    """The tables that describe the model, as :func:`indm.build_model` takes them."""
    return {table: tables[table] for table in (*PART_KINDS, *OPTIONAL_KINDS) if table in tables}


def options_of(table: str, content: Mapping[str, object]) -> dict[str, Any]:
    """The keys of [train], [evaluate] or [sample] as arguments of its class, which checks values."""
    known = arguments_of(OPTION_TABLES[table])
    for key in content:
        check_name(key, known, f"option of [{table}]", f"{table}.{key}")
    return as_tuples(content)


def differing_keys(old: AnyTables, new: AnyTables) -> list[str]:
    """The dotted keys in which two recipes differ."""
    a, b = tomllib.loads(to_toml(old)), tomllib.loads(to_toml(new))
    keys = [(table, key) for table in TABLES for key in {**a.get(table, {}), **b.get(table, {})}]
    return [f"{t}.{k}" for t, k in keys if a.get(t, {}).get(k) != b.get(t, {}).get(k)]


def to_toml(tables: AnyTables) -> str:
    """The recipe as TOML text."""
    blocks = []
    for table, content in tables.items():
        lines = [f"{_key(key)} = {literal(value)}" for key, value in content.items()]
        blocks.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else literal(key)


def literal(value) -> str:
    """``value`` as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {literal(part)}' for key, part in value.items())}}}"
    return str(value)  # numbers and dates


def value_of(text: str):
    """``text`` as a value in TOML, or as a string if it is not TOML."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


# ── Paths of data


def absolute(tables: AnyTables) -> Tables:
    """``tables`` with absolute paths of its built-in data sets."""
    placed = {table: dict(content) for table, content in tables.items()}
    for table, key in _paths_in(placed):
        placed[table][key] = os.path.abspath(os.path.expanduser(placed[table][key]))
    return placed


def missing_paths(tables: AnyTables) -> set[str]:
    """The dotted keys of paths of the data that do not exist."""
    return {
        f"{t}.{k}"
        for t, k in _paths_in(tables)
        if not os.path.exists(os.path.expanduser(tables[t][k]))
    }


def without_paths(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a data set without the paths of its files, which may be moved."""
    places = {key for _, key in _paths_in({"data": table})}
    return {key: value for key, value in table.items() if key not in places}


def _paths_in(tables: AnyTables) -> Iterator[tuple[str, str]]:
    for table in DATA_TABLES:
        content = tables.get(table, {})
        if str(content.get("name")) in BUILT_IN["data"]:
            yield from ((table, key) for key in PATH_KEYS if isinstance(content.get(key), str))
