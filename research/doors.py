"""What the programs of the README and the examples print, and the processor time that they take.

    python -m research.doors            # runs those whose text has no row yet
    make records                        # writes the output into the README

A program of the README is a block of Python, or of ``indm`` commands, that a marker
``<!-- table doors:NAME -->`` follows. An example is one whose output ``examples/README.md`` or
``docs/expectations.md`` shows between such markers. A row in ``records/doors.csv`` belongs to the
text of its program: a changed program is run again.
"""

import contextlib
import hashlib
import io
import re
import shlex
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from indm.workbench.cli.main import main as command
from research.records import RECORDS, Records, Row, made_by

ROOT = Path(__file__).parents[1]
README, EXAMPLES = ROOT / "README.md", ROOT / "examples"
PAGES = (EXAMPLES / "README.md", ROOT / "docs" / "expectations.md")
SHOWN = re.compile(r"<!-- table doors:(\w+) -->")
PROGRAM = re.compile(r"```(python|sh)\n([^`]*)```\n\n<!-- table doors:(\w+) -->")
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
WITH_ERROR = re.compile(rf"^(.*?)\s({NUMBER}) ± ({NUMBER})")
BETWEEN = re.compile(rf"^(.*?)\s+({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")
REPORTED = re.compile(rf"^(\S.*?)\s{{2,}}\d+\s+({NUMBER})\s+({NUMBER})(?:\s|$)")

# what "indm evaluate" prints after the rows of its report and before its last sentence
DETAILS = re.compile(r"^test split;.*?(?=^The model)", re.MULTILINE | re.DOTALL)


def programs() -> dict[str, tuple[str, str]]:
    """Language and text of each program of the README, by the name of its door."""
    found = PROGRAM.findall(README.read_text("utf-8"))
    return {name: (language, text) for language, text, name in found}


def examples() -> dict[str, tuple[str, str]]:
    """The same of the examples whose output a page shows."""
    names = [name for page in PAGES for name in SHOWN.findall(page.read_text("utf-8"))]
    return {name: ("example", (EXAMPLES / f"{name}.py").read_text("utf-8")) for name in names}


def row_of(name: str) -> Records:
    return Records(RECORDS / "doors.csv").at(door=name)


def recorded(name: str) -> Row:
    """The row of a program. ValueError if its text was never run."""
    _, text = (programs() | examples())[name]
    (row,) = row_of(name).rows()
    if row["text"] != mark_of(text):
        raise ValueError(f"python -m research.doors runs the new text of {name}")
    return row


def mark_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def output_of(language: str, text: str) -> str:
    """What the program prints, without the spaces at the ends of its lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if language == "python":
            exec(text, {"__name__": "__main__"})
        elif language == "example":
            run_example(text)
        else:
            run_commands(text)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def run_example(text: str) -> None:
    """Call the example's ``main`` with its defaults, into a folder that is removed."""
    given: dict[str, Any] = {"__name__": "example"}
    exec(text, given)
    with tempfile.TemporaryDirectory() as folder:
        given["main"](out=Path(folder) / "run")


def run_commands(text: str) -> None:
    """Run commands of ``indm`` in an empty folder. RuntimeError if one fails."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            if program != "indm" or command(arguments) != 0:
                raise RuntimeError(f"{line} failed")


def values(output: str) -> dict[str, tuple[float, float]]:
    """The numbers of an output that have an error, with it, by the words before them.

    Errors are those after ±, a quarter of a 95 % interval, and the column of a report.

    >>> values("log Z  1.6 (1.2 to 2.0)\\nprice 3.5 ± 0.1\\nNELBO   1000    1.92   0.05")
    {'log Z': (1.6, 0.2), 'price': (3.5, 0.1), 'NELBO': (1.92, 0.05)}
    """
    found = {}
    for line in output.splitlines():
        if match := BETWEEN.match(line):
            low, high = number(match[3]), number(match[4])
            found[match[1].strip()] = (number(match[2]), (high - low) / 4)
        elif match := WITH_ERROR.match(line) or REPORTED.match(line):
            found[match[1].strip()] = (number(match[2]), number(match[3]))
    return found


def number(text: str) -> float:
    return float(text.replace(",", ""))


def shown(name: str) -> str:
    """The recorded output as a block of the page, without the details of a report."""
    output = DETAILS.sub("", recorded(name)["output"])
    return f"```text\n{output}\n```"


def seconds(name: str) -> str:
    """The recorded processor time, for a sentence."""
    return f"{recorded(name)['cpu_seconds']:.0f}"


def measured(language: str, text: str) -> Row:
    torch.set_num_threads(1)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        output = output_of(language, text)
    taken = round(time.process_time() - start)
    return {"text": mark_of(text), "output": output, "cpu_seconds": taken} | made_by(0)


def main() -> None:
    wanted = programs() | examples()
    for name, (language, text) in wanted.items():
        known = row_of(name).rows()
        if not known or known[0]["text"] != mark_of(text):
            row_of(name).add(measured(language, text))
            print(name)


if __name__ == "__main__":
    main()
