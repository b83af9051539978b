"""The index of the reference: each name with its arguments and the first line of its docstring.

`python .ci/reference.py` writes docs/reference/index.md; tests/test_site.py tests that it is up to
date.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "indm").rglob("*.py"))
}
FOLDER = ROOT / "docs" / "reference"
# or a module and some of it
ENTRY = re.compile(r"^::: (\S+)$(?:\n    options: \{members: \[(.*)\]\})?", re.MULTILINE)
# a heading, and what is below it
SECTION = re.compile(r"^(##? .*)\n((?:(?!##? ).*\n)*)", re.MULTILINE)
METHODS = {  # methods with a row, of classes whose users call them
    "INDM": "log_prob given from_data encode decode save load",
    "DensityEstimator": "fit score_samples score score_bound sample",
    "PosteriorEstimator": "fit sample log_prob mode calibration sample_iid log_likelihood grad_log_prob score",
    "JointDensityEstimator": "fit score_samples score log_prob_cells sample conditional impute",
}
MOST, LONGEST = 6, 12  # arguments of a call that are shown, and letters of a default
ROLE = re.compile(r":math:`([^`]*)`|:\w+:`~?(?:[\w.]+\.)?(\w+)`|``([^`]*)``")


def exported(package: str) -> dict[str, str]:
    """The module from which each name comes that a package exports, as its stub or its
    ``__init__.py`` says.
    """
    stub = MODULES[package].with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else MODULES[package]).read_text("utf-8"))
    homes = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            home = ".".join([package] * node.level + [node.module] * bool(node.module))
            homes |= {alias.name: home for alias in node.names if alias.asname == alias.name}
    return homes


def docstring(name: str) -> str | None:
    """The docstring of a module, or of a class or function, there or where its package takes it
    from.
    """
    if name in MODULES:
        return ast.get_docstring(ast.parse(MODULES[name].read_text("utf-8")))
    module, _, last = name.rpartition(".")
    if module.rpartition(".")[2] in METHODS:
        return inspect.getdoc(named(name))
    if last in (found := exported(module)):
        return docstring(f"{found[last]}.{last}")
    definitions = [
        n for n in ast.parse(MODULES[module].read_text()).body if getattr(n, "name", "") == last
    ]
    return ast.get_docstring(definitions[-1])  # after its overloads


def named(name: str) -> Any:
    """The class, function, protocol or method of a name."""
    home, _, last = name.rpartition(".")
    owner = named(home) if home.rpartition(".")[2] in METHODS else importlib.import_module(home)
    return inspect.unwrap(getattr(owner, last))


def arguments(found: Any, is_method: bool) -> str:
    """What a call takes: names and defaults, the first ones."""
    shown, parameters = [], [*inspect.signature(found).parameters.values()]
    if is_method and not inspect.ismethod(found):  # a method of the class is bound to it
        del parameters[0]
    for parameter in parameters:
        if parameter.kind == parameter.KEYWORD_ONLY and not any(
            name.startswith("*") for name in shown
        ):
            shown.append("*")
        default = repr(parameter.default)
        is_long = parameter.default is not parameter.empty and (
            len(default) > LONGEST or default.startswith("<")
        )
        shown.append(
            f"{parameter.name}=…" if is_long else str(parameter.replace(annotation=parameter.empty))
        )
    shown = [name for name in shown if name not in ("*args", "**kwargs")]  # those of a base class
    return ", ".join(shown if len(shown) <= MOST + 1 else [*shown[:MOST], "…"])


def spelled(name: str, members: str) -> list[str]:
    """The names of an entry: those of its members, if it has some; a class and its :data:`METHODS`."""
    if methods := METHODS.get(name.removeprefix("indm.")):
        return [name, *(f"{name}.{method}" for method in methods.split())]
    return [f"{name}.{member}" for member in re.findall(r"\w+", members)] or [name]


def row(name: str, is_main: bool) -> str:
    """A line of the table: the name, which leads to its code, and what its docstring says first."""
    found = named(name)
    path = Path(inspect.getsourcefile(found) or "").resolve().relative_to(ROOT)
    first = re.split(r"(?<=\.)\s(?![a-z])|\n\n", docstring(name) or "")[0].replace("\n", " ")
    said = ROLE.sub(r"`\1\2\3`", first).replace("|", "\\|")
    is_method = name.split(".")[-2] in METHODS
    call = f"`({arguments(found, is_method)})`" if is_main and callable(found) else ""
    return f"| [`{name.removeprefix('indm.')}`](../../{path.as_posix()}){call} | {said} |\n"


def index() -> str:
    """The index as Markdown: what stands before its first heading, then the tables of each page."""
    text = (FOLDER / "index.md").read_text("utf-8").partition("\n## ")[0]
    for page in re.findall(
        r"- reference/(?!index)(\w+\.md)", (ROOT / "mkdocs.yml").read_text("utf-8")
    ):
        for heading, rest in SECTION.findall((FOLDER / page).read_text("utf-8")):
            text += f"\n#{heading}\n"
            names = [
                full for name, members in ENTRY.findall(rest) for full in spelled(name, members)
            ]
            if names:
                text += "\n| name | in a sentence |\n|---|---|\n"
                text += "".join(row(name, "parts" not in heading) for name in names)
    return text


if __name__ == "__main__":
    (FOLDER / "index.md").write_text(index(), "utf-8")
