"""The tables of a recipe on the command line: ``--train.steps 500``, ``--flow coupling``, ``--flow.width 64``.

Most keys depend on the part that is named, which may be anybody's class. All are taken out of the arguments before tyro
sees them (:func:`take_tables`), as a parser that does not know an option cannot tell its value from a positional
argument; the recipe's checks say what is wrong with one.
"""

import ast
import inspect
import textwrap
from collections.abc import Collection
from dataclasses import field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import arg

from indm.config.checks import SEQUENCES
from indm.config.recipes import NAMED_TABLES, OPTION_TABLES, OPTIONAL_TABLES

METAVARS = {int: "N", float: "NUMBER", bool: "true|false", str: "NAME", Path: "PATH", dict: "TABLE"}


def help_of(options: type) -> dict[str, str]:
    """The sentence below each field of a dataclass."""
    definition: Any = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]
    return {
        above.target.id: str(below.value.value)
        for above, below in pairwise(definition.body)
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr)
        if isinstance(above.target, ast.Name) and isinstance(below.value, ast.Constant)
    }


def flags_of(options: type, default: str) -> type:
    """A dataclass with a field for each of ``options``: its TOML text, or None where no value was given.

    Args:
        options: a dataclass with a docstring below each field.
        default: what the help shows as the default of each flag.
    """
    sentences, made = help_of(options), []
    for option in fields(options):
        flag = arg(
            metavar=metavar(option.type),
            help=" ".join(sentences[option.name].split()),
            help_behavior_hint=f"(default: {default})",
        )
        made.append((option.name, Annotated[str | None, flag], field(default=None)))
    return make_dataclass(f"{options.__name__}Flags", made, namespace={"__doc__": options.__doc__}, kw_only=True)


def aliases_of(hint: Any) -> list[str]:
    """Other names of the flag of an option of that type."""
    return [alias for note in getattr(hint, "__metadata__", ()) for alias in note.aliases or ()]


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
        first, *others = inner
        if origin is not tuple:
            others = [...]
        return f"[{', '.join([metavar(first), *('…' if other is ... else metavar(other) for other in others)])}]"
    return METAVARS.get(origin or hint, "VALUE")


def given(flags: object) -> dict[str, str]:
    """The TOML texts that were given."""
    return {key: text for key, text in vars(flags).items() if text is not None}


def take_tables(arguments: list[str], tables: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Take ``--table.key value`` out of the arguments, ``--table name`` of a part, and other names of keys.

    Returns:
        The other arguments, and the values by ``table.key`` and ``table``.
    """
    others, taken = [], {}
    named = {*tables} & {*NAMED_TABLES, *OPTIONAL_TABLES}
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        name = ALIASES.get(flag, flag.removeprefix("--").replace("-", "_"))
        table, dot, _ = name.partition(".")
        if not flag.startswith("--") or table not in (tables if dot else named):
            others.append(argument)
            continue
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise ValueError(f"{flag} needs a value")
        taken[name] = value
    return others, taken


ALIASES = {
    alias: f"{table}.{option.name}"
    for table, options in OPTION_TABLES.items()
    for option in fields(options)
    for alias in aliases_of(option.type)
}  # of a flag → the key
