"""Plain English in code: the openings and phrases that docstrings, comments and pages must not have.

`python .ci/english.py [PATH …]` prints each place and what is wrong there; its status is then 1.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS, PAGES = ("indm", "research", "bench", "examples"), ("docs", "research")  # code and prose
OPENING = re.compile(r"(What|How|Which|Whose|That|Those|It|Of)\b")
DANGLING = re.compile(r"#\s*(of|by|that|which|as)\b")
USUAL = r"(?<!\bthan\s)(?<!\bas\s)(?<!\bthere\s)"  # "longer than those of A" and "there is no B" are usual English
TRANSLATED = "is no|are no|would do|will do|that of|those of|is usual|less the|less linear"
PHRASES = re.compile(rf"{USUAL}\b({TRANSLATED})\b".replace(" ", r"\s+"), re.IGNORECASE)
MADE = re.compile(r"```.*?```|<!-- table.*?<!-- end -->|`[^`]*`", re.DOTALL)  # code, and tables from records
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
Fault = tuple[int, str]


def faults_of_prose(text: str, line: int = 1) -> Iterator[Fault]:
    """Phrases in a text that begins at a line."""
    for found in PHRASES.finditer(text):
        yield line + text.count("\n", 0, found.start()), f'a sentence has "{" ".join(found[0].split())}"'


def faults_of_code(source: str) -> Iterator[Fault]:
    """Docstrings that begin with a question word, comments that begin with a preposition, and phrases in docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            if OPENING.match(text):
                yield node.body[0].lineno, f"a docstring begins with {text.split()[0]}"
            yield from faults_of_prose(text, node.body[0].lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (found := DANGLING.match(token.string)):
            yield token.start[0], f'a comment begins with "{found[1]}"'


def main() -> None:
    given = [Path(path) for path in sys.argv[1:]]
    files = given or [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
    files += [] if given else [ROOT / "README.md", *(p for room in PAGES for p in sorted((ROOT / room).rglob("*.md")))]
    count = 0
    for path in files:
        text = path.read_text("utf-8")
        prose = MADE.sub(lambda part: "\n" * part[0].count("\n"), text)
        for line, fault in faults_of_code(text) if path.suffix == ".py" else faults_of_prose(prose):
            print(f"{path}:{line}: {fault}")
            count += 1
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
