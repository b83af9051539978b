"""``indm list``: recipes, parts, and the keys of a table; also options of a table as flags."""

import functools
import inspect
import textwrap
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any

import docstring_parser
from tyro.conf import Positional, arg

from indm import names
from indm.checks import check_name, type_words
from indm.workbench.cli.common import DONE, Common
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import default
from indm.workbench.recipes.recipe import OPTION_TABLES

WIDEST = 100  # columns of a line
PURPOSES = {  # what a bundled recipe is for → the command that trains it
    "own images": "indm train folder --data.path FOLDER",
    "own numbers": "indm train array --data.path FILE",
    "translation": "indm train-pair RECIPE, indm train-bridge RECIPE",
    "trying it out": "indm train RECIPE",
    "the paper": "indm train RECIPE",
}
NOTE = """Times are the recipes' budgets; --train.seconds and --train.steps change them. "indm train RECIPE --dry-run"
measures a step on this machine. Memory is that of the whole process."""


@dataclass
class List(Common):
    """List recipes and parts, or the keys of a table.

    "indm list" lists all recipes and parts, "indm list flow" the flows, and "indm list train"
    explains the keys of a recipe's [train] table.
    """

    what: Annotated[Positional[str | None], arg(metavar="KIND"), default("all")] = None
    """recipes, train, evaluate, sample, or a kind of parts: flow, sde, net, data, sampler, …"""

    def run(self) -> int:
        if self.what is not None:
            known = ["recipes", *OPTION_TABLES, *names.BUILT_IN]
            check_name(self.what, known, "kind of parts", self.what)
        if self.what in (None, "recipes"):
            print(of_recipes())
        if self.what in OPTION_TABLES:
            print(of_table(self.what))
        for kind in names.BUILT_IN if self.what is None else {self.what} & {*names.BUILT_IN}:
            known = [*names.BUILT_IN[kind], *names.installed(kind)]
            print(wrapped(f"{kind}: {', '.join(known)}", 2))
        return DONE


def of_recipes() -> str:
    """The recipes of this package by their purpose, with time and memory."""
    lines = [row("", "two cores", "GPU", "")]
    for group, command in PURPOSES.items():
        lines.append(f"{group[0].upper()}{group[1:]}: {command}")
        known = [(name, about) for name, about in recipes.bundled().items() if about.group == group]
        lines += [row(name, about.two_cores, about.gpu, about.description) for name, about in known]
        lines.append("")
    return "\n".join([*lines, NOTE, ""])


def row(name: str, two_cores: str, gpu: str, description: str) -> str:
    return f"  {name:19}{two_cores:20}{gpu:12}{description}".rstrip()


def of_table(table: str) -> str:
    """The keys of [train], [evaluate] or [sample], each with its sentence and its default."""
    options = OPTION_TABLES[table]
    sentences = sentences_of(options)
    lines = [wrapped(options.__doc__ or "")]
    for option in fields(options):
        value = "none" if option.default is None else recipes.literal(option.default)
        words = wrapped(f"{sentences[option.name]} (default: {value})", 4, first=4)
        lines += [f"--{table}.{option.name} <{type_words(option.type)}>", words]
    return "\n".join(lines)


def sentences_of(declared: Any) -> dict[str, str]:
    """The descriptions of arguments, or of fields of a dataclass and its bases, from docstrings."""
    function = declared.func if isinstance(declared, functools.partial) else declared
    bases = inspect.getmro(function)[::-1] if isinstance(function, type) else ()
    kinds: list[Any] = [base for base in bases if is_dataclass(base)]
    found: dict[str, str] = {}
    for kind in kinds or [function]:
        style = docstring_parser.DocstringStyle.GOOGLE
        for line in docstring_parser.parse_from_object(kind, style).params:
            names_of_line = map(str.strip, line.arg_name.split(","))
            found |= dict.fromkeys(names_of_line, str(line.description))
    return found


def flags_of(options: type, default_of_all: str) -> type:
    """A dataclass with the fields of ``options`` as TOML texts, or None if a flag is not given.

    The help shows ``default_of_all`` as the default of each flag.
    """
    sentences, made = sentences_of(options), []
    for option in fields(options):
        words = " ".join(sentences[option.name].split())
        flag = arg(metavar=f"<{type_words(option.type)}>", help=words)
        kind = Annotated[str | None, flag, default(default_of_all)]
        made.append((option.name, kind, field(default=None)))
    space = {"__doc__": options.__doc__}
    return make_dataclass(f"{options.__name__}Flags", made, namespace=space, kw_only=True)


def wrapped(text: str, indent: int = 0, first: int = 0) -> str:
    """``text`` in lines of at most :data:`WIDEST` columns."""
    return textwrap.fill(
        " ".join(text.split()), WIDEST, initial_indent=" " * first, subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )  # fmt: skip
