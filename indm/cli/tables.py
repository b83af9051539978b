"""The tables of a recipe on the command line: ``--train.steps 500``, ``--flow coupling``, ``--flow.width 64``.

The keys of [train] and [evaluate] are known: their flags, with help and defaults, are made from the dataclasses in
:mod:`indm.config.options`. The keys of the other tables depend on the part that is named, which may be anybody's class;
they are taken out of the arguments before tyro sees them (:func:`take_tables`), as a parser that does not know an
option cannot tell its value from a positional argument.
"""

import ast
import inspect
import textwrap
from collections.abc import Collection
from dataclasses import field, fields, make_dataclass
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import arg

from indm.config.recipes import literal

METAVARS = {int: "N", float: "NUMBER", bool: "true|false", str: "NAME"}


def help_of(options: type) -> dict[str, str]:
    """The sentence below each field of a dataclass."""
    definition: Any = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]
    return {
        above.target.id: str(below.value.value)
        for above, below in pairwise(definition.body)
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr)
        if isinstance(above.target, ast.Name) and isinstance(below.value, ast.Constant)
    }


def flags_of(options: type, default: str | None = None, about: str = "") -> type:
    """A dataclass with a field for each of ``options``: its TOML text, or None where no value was given.

    Args:
        options: a dataclass with a docstring below each field.
        default: what the help shows as the default of each flag; None shows that of the field.
        about: a sentence for the help below the docstring of ``options``.
    """
    sentences, made = help_of(options), []
    for option in fields(options):
        shown = literal(option.default) if default is None else default
        flag = arg(
            metavar=metavar(option.type),
            help=sentences[option.name],
            help_behavior_hint=f"(default: {shown})",
            aliases=aliases_of(option.type),
        )
        made.append((option.name, Annotated[str | None, flag], field(default=None)))
    return make_dataclass(
        f"{options.__name__}Flags", made, namespace={"__doc__": f"{options.__doc__}\n\n{about}"}, kw_only=True
    )


def aliases_of(hint: Any) -> list[str] | None:
    """Other names of the flag of an option of that type."""
    return next((list(note.aliases) for note in getattr(hint, "__metadata__", ()) if note.aliases), None)


def metavar(hint: Any) -> str:
    """What stands for a value of that type in the help."""
    if get_origin(hint) is Annotated:
        return metavar(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return "|".join(map(metavar, get_args(hint)))
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        return f"[{', '.join([metavar(first), *('…' if other is ... else metavar(other) for other in others)])}]"
    return METAVARS[hint]


def given(flags: object) -> dict[str, str]:
    """The TOML texts that were given."""
    return {key: text for key, text in vars(flags).items() if text is not None}


def take_tables(arguments: list[str], tables: Collection[str], named: bool = True) -> tuple[list[str], dict[str, str]]:
    """Take ``--table.key value`` out of the arguments, and ``--table name`` too where ``named``.

    Returns:
        The other arguments, and the values by ``table.key`` and ``table``.
    """
    others, taken = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        table, dot, _ = name.partition(".")
        if not argument.startswith("--") or table not in tables or not (dot or named):
            others.append(argument)
            continue
        if not equals:
            try:
                value = next(remaining)
            except StopIteration:
                raise ValueError(f"{argument} needs a value") from None
        taken[name] = value
    return others, taken
