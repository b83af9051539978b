"""Pages of the site that are made from the code: the command line, the keys of recipes, and the
examples.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mkdocs.structure.files import File
from tyro.conf import Positional, Suppress

from indm import names
from indm.checks import arguments_of, type_words
from indm.workbench.cli import listing, main
from indm.workbench.recipes.recipe import OPTION_TABLES, bundled, literal
from research.markdown import in_table

ROOT = Path(__file__).parents[1]
POSITIONAL, HIDDEN = (get_args(marker[int])[1] for marker in (Positional, Suppress))
MARKUP = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|``")  # markup of docstrings
# in docs/figures
PICTURES = {"super_resolution": "super-resolution", "posterior": "example-posterior"}


def on_files(files, config, **_):
    """The made pages are files of the site."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def cell(text: object) -> str:
    """A text as the cell of a table. In code, bars stay as they are."""
    line = " ".join(str(text).split())
    return re.sub(r"([|<*])", r"\\\1", line).replace("\\<", "&lt;")


def prose(documented: object) -> str:
    """The docstring of a class, with its commands as code."""
    return re.sub(r'"(indm [^"]+)"', r"`\1`", inspect.getdoc(documented) or "").replace("``", "`")


def options(command: type) -> Iterator[tuple[str, str, str, bool]]:
    """Flag, sentence and default of each option of a command, and whether it is given by its place."""
    hints, sentences = get_type_hints(command, include_extras=True), listing.sentences_of(command)
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        kind = get_args(hint)[0] if notes else hint
        if HIDDEN in notes:
            continue
        if dataclasses.is_dataclass(kind):
            yield from options(kind)  # type: ignore[arg-type]
            continue
        said: dict[str, Any] = {}
        for note in notes:
            said |= {
                key: value
                for key, value in getattr(note, "__dict__", {}).items()
                if value is not None
            }
        metavar = said.get("metavar") or ("" if kind is bool else f"<{type_words(kind)}>")
        name = field.name.replace("_", "-")
        flag = (
            metavar
            if POSITIONAL in notes
            else f"--{'no-' if field.default is True else ''}{name} {metavar}".strip()
        )
        default = said.get("help_behavior_hint")
        if default is None:
            has_one = field.default is not dataclasses.MISSING
            default = (
                "(required)"
                if not has_one
                else ""
                if kind is bool
                else f"(default: {field.default})"
            )
        sentence = said.get("help") or sentences.get(field.name, "")
        yield flag, sentence, str(default), POSITIONAL in notes


def commands_page() -> str:
    """Each command with its description and its options."""
    parts = ["# The command line", "`indm COMMAND --help` shows the same in the terminal."]
    for group, commands in main.GROUPS.items():
        parts.append(f"## {group}")
        for name in commands:
            kind = main.command_of(name)
            rows = sorted(options(kind), key=lambda row: not row[3])
            places = " ".join(flag for flag, _, default, is_place in rows if is_place)
            parts += [f"### indm {name}", f"```text\nindm {name} {places} [OPTIONS]\n```"]
            parts.append(prose(kind))
            if kind.tables:
                keys = ", ".join(f"`--{key}…`" for key in kind.tables)
                parts.append(f"[Keys of recipes](recipes.md) are options, too: {keys}.")
            parts.append(in_table("option", "what it does", rows=[
                (f"`{flag}`", cell(f"{sentence} {default}")) for flag, sentence, default, _ in rows
            ]))  # fmt: skip
    return "\n\n".join(parts)


def explained(part: Callable[..., Any], name: str) -> str:
    """The arguments of a part with their defaults, without the shape, which the data give; its
    docstring and theirs.
    """
    given = [str(p).split(":")[0] + (f"={p.default!r}" if p.default is not p.empty else "")
             for p in arguments_of(part).values() if p.name != "shape"]  # fmt: skip
    # a partial is explained by its function
    text = inspect.getdoc(getattr(part, "func", part)) or "No description."
    said = listing.sentences_of(part).items() if dataclasses.is_dataclass(part) else ()
    text += "".join(
        "\n" + listing.wrapped(f"{key}: {sentence}", 4)
        for key, sentence in said
        if f"{key}:" not in text
    )
    return f"{name}({', '.join(given)})\n\n" + MARKUP.sub(r"\1", text)


def recipes_page() -> str:
    """The recipes that come with the package, the keys of their tables, and the arguments of all
    parts.
    """
    parts = [
        "# Recipes and their keys",
        "A recipe is a TOML file with one table for each part of a run. Each key is also an option of `indm train`: "
        '`--train.steps 500`, `--flow.width 64`, `--net.multipliers "[1, 2]"`. '
        "`indm train RECIPE --dry-run` prints a whole recipe.",
        "## Recipes in the package",
    ]
    for group, command in listing.PURPOSES.items():
        known = [(name, about) for name, about in bundled().items() if about.group == group]
        rows = [
            (f"`{name}`", cell(about.two_cores), cell(about.gpu), cell(about.description))
            for name, about in known
        ]
        table = in_table("recipe", "two cores", "GPU", "what it is", rows=rows)
        parts += [f"### {group.capitalize()}", f"`{command}`", table]
    for name, kind in OPTION_TABLES.items():
        said = listing.sentences_of(kind)
        rows = [
            (f"`{name}.{option.name}`", f"`{literal(option.default)}`", cell(said[option.name]))
            for option in dataclasses.fields(kind)
        ]
        parts += [f"## [{name}]", prose(kind), in_table("key", "default", "meaning", rows=rows)]
    for kind, known in names.BUILT_IN.items():
        parts.append(f"## {kind.capitalize()}")
        for name in known:
            parts += [f"### {name}", f"```text\n{explained(names.find(kind, name), name)}\n```"]
    return "\n\n".join(parts)


def examples_page() -> str:
    """Each file of examples/ with what it says of itself, its picture and its code."""
    parts = [
        "# Examples",
        "Complete programs in `examples/`. Each runs as it stands, and tests run all of them.",
    ]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text("utf-8")
        lines = (ast.get_docstring(ast.parse(code)) or "").split("\n")
        commands = "\n".join(line for line in lines if line.startswith("python "))
        said = "\n".join(line for line in lines if not line.startswith("python "))
        parts += [f"## {path.stem.replace('_', ' ').capitalize()}", said]
        if picture := PICTURES.get(path.stem):
            parts.append(f"![What the example draws](figures/{picture}.png)")
        body = code.split('"""', 2)[2].strip()
        parts += [f"```sh\n{commands}\n```", f"```python\n{body}\n```"]
    return "\n\n".join(parts)


PAGES = {"commands.md": commands_page, "recipes.md": recipes_page, "examples.md": examples_page}
