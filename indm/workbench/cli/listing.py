"""The keys of a recipe's tables as the help lists them: type, default and sentence of each.

All of it is read off the declarations: the dataclasses in :mod:`indm.workbench.recipes.options`, and the signatures and
docstrings of parts.
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
from tyro.conf import arg

from indm import names
from indm.checks import SEQUENCES, arguments_of, hints_of
from indm.workbench.recipes.options import default
from indm.workbench.recipes.recipe import OPTION_TABLES, TEXT_KEYS, literal

WIDEST, FLAG = 100, 30  # columns of a line, and of the name of an option in it
KINDS = [kind for kind in names.BUILT_IN if kind != "model"]  # of parts that options name
NO_NAME = ("objective",)  # which is a key of [train], and has no options
SECOND = "data_b"  # a second table of a kind
TABLES = (*OPTION_TABLES, *KINDS, SECOND)
ALIASES = {"--threads": "train.threads"}  # other names of keys
METAVARS = {int: "N", float: "NUMBER", bool: "true|false", str: "NAME", Path: "PATH", dict: "TABLE"}
MARKUP = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|``")  # of docstrings
UNLESS = "The defaults hold where neither the recipe nor the command line gives a value."


@dataclass(frozen=True)
class Key:
    """One key of a table: its ``flag`` with what stands for a value, its default in words, and its sentence."""

    name: str
    flag: str
    default: str
    sentence: str


def keys_of_options(table: str) -> list[Key]:
    """The keys of [train] or [evaluate]."""
    options = OPTION_TABLES[table]
    return _keys(table, {option.name: (option.type, option.default) for option in fields(options)}, options)


def keys_of_part(table: str, part: Callable[..., Any]) -> list[Key]:
    """What can be given to a part by name, less the shape, which the data have."""
    parameters = arguments_of(part)
    hints = hints_of(part, parameters)
    return _keys(table, {name: (hints[name], p.default) for name, p in parameters.items() if name != "shape"}, part)


def _keys(table: str, declared: Mapping[str, tuple[Any, Any]], of: Callable[..., Any]) -> list[Key]:
    """The keys that are ``declared``, each with its type and its default, and the sentences ``of`` the declaration."""
    keys, sentences = [], sentences_of(of)
    for name, (hint, value) in declared.items():
        aliases = [alias for alias, key in ALIASES.items() if key == f"{table}.{name}"]
        flag = f"--{table}.{name} {'PATH' if name in TEXT_KEYS else metavar(hint)}"
        keys.append(Key(name, ", ".join([*aliases, flag]), _shown(value), sentences.get(name, "")))
    return keys


def sentences_of(declared: Callable[..., Any]) -> dict[str, str]:
    """What a docstring says of each argument of a class or a function, or the one below each field of a dataclass."""
    function = getattr(declared, "func", declared)  # of a functools.partial
    arguments = docstring_parser.parse_from_object(function, docstring_parser.DocstringStyle.GOOGLE).params
    return {name.strip(): str(line.description) for line in arguments for name in line.arg_name.split(",")}


def flags_of(options: type, default_of_all: str) -> type:
    """A dataclass with a field for each of ``options``: its TOML text, or None where no value was given.

    Args:
        options: a dataclass with a docstring below each field.
        default_of_all: what the help shows as the default of each flag.
    """
    sentences, made = sentences_of(options), []
    for option in fields(options):
        flag = arg(metavar=metavar(option.type), help=" ".join(sentences[option.name].split()))
        made.append((option.name, Annotated[str | None, flag, default(default_of_all)], field(default=None)))
    return make_dataclass(f"{options.__name__}Flags", made, namespace={"__doc__": options.__doc__}, kw_only=True)


def metavar(hint: Any) -> str:
    """What stands for a value of that type in the help."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return metavar(inner[0])
    if origin in (Union, UnionType):
        return "|".join(metavar(part) for part in inner if part is not NoneType)
    if origin is Literal:
        return "|".join(filter(None, inner))
    if origin in SEQUENCES and inner:
        first, *others = inner if origin is tuple else (inner[0], ...)
        return f"[{', '.join([metavar(first), *('…' if other is ... else metavar(other) for other in others)])}]"
    return METAVARS.get(origin or hint, "VALUE")


def of_options(table: str, key: str | None = None) -> str:
    """The keys of [train] or [evaluate], or one of them."""
    about = f"{OPTION_TABLES[table].__doc__} {UNLESS}"
    return "\n".join([*(wrapped(about) if key is None else ()), *_lines(keys_of_options(table), key)])


def of_part(table: str, name: str, key: str | None = None) -> str:
    """The first sentence and the keys of one part, or one of its keys."""
    part = names.find(kind_of(table), name)
    about = wrapped(_docstring(part).partition("\n\n")[0] or "No description.", 2) if key is None else []
    keys = [] if table in NO_NAME else keys_of_part(table, part)
    return "\n".join([f"{name}:", *about, *_lines(keys, key)])


def description(table: str, name: str) -> str:
    """The keys of one part, then its docstring after the first sentence, less that of the arguments."""
    text = _docstring(names.find(kind_of(table), name))
    paragraphs = [MARKUP.sub(r"\1", part) for part in text.split("\n\n")[1:] if not part.startswith("Args:")]
    return "\n\n".join([of_part(table, name), *paragraphs])


def kind_of(table: str) -> str:
    """The kind of the parts that the table names: [data_b] names data, too."""
    return table.removesuffix("_b")


def of_tables(tables: Sequence[str]) -> str:
    """What ``indm COMMAND --help`` says of the tables whose keys the command takes."""
    named = [table for table in tables if table not in (*OPTION_TABLES, SECOND)]
    lines = [f"[{table}]: {of_options(table)}\n" for table in tables if table in OPTION_TABLES]
    for table in named:
        flag = f"--{table} NAME, --{table}.KEY VALUE" if table != "sampler" else "--sampler.KEY VALUE"
        more = [f"{flag.replace(table, other)}: second data" for other in tables if other == f"{table}_b"]
        lines += [f"[{table}]: {'; '.join([flag, *more])}", *wrapped(", ".join(names.BUILT_IN[table]), 2)]
    topics = ", ".join(f'"indm help {table}"' for table in named)
    return "\n".join([*lines, *wrapped(f'Their keys: {topics}; those of one: "indm help {named[-1]} NAME".')])


def wrapped(text: str, indent: int = 0) -> list[str]:
    """The text without the markup of docstrings, in lines that the terminal can show."""
    plain = MARKUP.sub(r"\1", " ".join(text.split()))
    columns = min(WIDEST, max(2 * FLAG, shutil.get_terminal_size().columns))
    margin = " " * indent
    lines = textwrap.wrap(plain, columns, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    return lines or [""]


def _lines(keys: Iterable[Key], only: str | None) -> list[str]:
    """A line for each key, more where its sentence is long."""
    lines = []
    for key in keys:
        if only in (None, key.name):
            flag, (first, *others) = f"  {key.flag} ", wrapped(f"{key.sentence} ({key.default})", FLAG)
            lines += [f"{flag:{FLAG}}{first[FLAG:]}"] if len(flag) <= FLAG else [flag.rstrip(), first]
            lines += others
    return lines


def _shown(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "needed"
    return "optional" if value is None else f"default: {'none' if value == () else literal(value)}"


def _docstring(part: Callable[..., Any]) -> str:
    return inspect.getdoc(getattr(part, "func", part)) or ""  # of a functools.partial, that of its function
