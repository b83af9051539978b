"""The index of the reference: each name with the first line of its docstring, read and not imported.

`python .ci/reference.py` writes docs/reference/index.md; tests/test_site.py tests that it is up to date.
"""

import ast
import re
from pathlib import Path

import rooms

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
ENTRY = re.compile(r"^::: (\S+)$(?:\n    options: \{members: \[(.*)\]\})?", re.MULTILINE)  # or a module and some of it
ROLE = re.compile(r":math:`([^`]*)`|:\w+:`~?(?:[\w.]+\.)?(\w+)`|``([^`]*)``")


def docstring(name: str) -> str | None:
    """The docstring of a module, or of a class or function, there or where its package takes it from."""
    if name in rooms.MODULES:
        return ast.get_docstring(ast.parse(rooms.MODULES[name].read_text("utf-8")))
    module, _, last = name.rpartition(".")
    if last in (found := rooms.exported(module)):
        return docstring(f"{found[last]}.{last}")
    definitions = [n for n in ast.parse(rooms.MODULES[module].read_text()).body if getattr(n, "name", "") == last]
    return ast.get_docstring(definitions[-1])  # after its overloads


def index() -> str:
    """The index as Markdown: what stands before its first table, then a table for each page."""
    text = (FOLDER / "index.md").read_text("utf-8").partition("\n## ")[0]
    for page in re.findall(r"- reference/(?!index)(\w+\.md)", (ROOT / "mkdocs.yml").read_text("utf-8")):
        source = (FOLDER / page).read_text("utf-8")
        text += f"\n## [{source.splitlines()[0][2:]}]({page})\n\n| name | in a sentence |\n|---|---|\n"
        for name, members in ENTRY.findall(source):
            for full in [f"{name}.{member}" for member in re.findall(r"\w+", members)] or [name]:
                first = re.split(r"(?<=\.)\s(?![a-z])|\n\n", docstring(full) or "")[0].replace("\n", " ")
                said = ROLE.sub(r"`\1\2\3`", first).replace("|", "\\|")
                text += f"| [`{full.removeprefix('indm.')}`]({page}#{full}) | {said} |\n"
    return text


if __name__ == "__main__":
    (FOLDER / "index.md").write_text(index(), "utf-8")
