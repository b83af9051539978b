"""Runs tutorials and keeps their outputs: python .ci/tutorials.py [NAME …]."""

import base64
import copy
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from research.pretrained import in_few_colours

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = (
    "likelihood",
    "from-scratch",
    "tables",
    "simulator",
    "images",
    "classes",
    "translation",
    "diffusion",
)
SHORT = {  # the constants of a short run
    "STEPS": 4,
    "TABLE_STEPS": 2,
    "POSTERIOR_STEPS": 10,
    "PICTURES": 100,
    "POINTS": 20,
    "NLL_POINTS": 2,
    "NLL_PICTURES": 2,
    "SIDE": 5,
    "SOME": 1,
    "DIGITS": 8,
    "TRANSLATED": 4,
    "TIMES": 10,
    "PAIRS": 20,
}
CONSTANT = re.compile(rf"^({'|'.join(SHORT)}) = [\d_]+", re.MULTILINE)


def read(name: str) -> nbformat.NotebookNode:
    """The notebook."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy whose constants are those of ``SHORT``. ValueError if the notebook has none of them."""
    short, replaced = copy.deepcopy(notebook), 0
    for cell in short.cells:
        if cell.cell_type == "code":
            cell.source, found = CONSTANT.subn(
                lambda match: f"{match[1]} = {SHORT[match[1]]}", cell.source
            )
            replaced += found
    if not replaced:
        raise ValueError(f"the notebook sets none of {', '.join(SHORT)}")
    return short


def execute(notebooks: Sequence[nbformat.NotebookNode]) -> None:
    """Run the cells of all in one kernel, whose names are forgotten before each. They get their
    outputs, less what went to stderr, which says how far they were.
    """
    whole = nbformat.v4.new_notebook()
    for notebook in notebooks:
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *notebook.cells]
    NotebookClient(whole, timeout=None, kernel_name="python3", record_timing=False).execute()
    for notebook in notebooks:
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, 1):
            cell.execution_count = number
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                shown = output.get("data", {})
                shown.pop("image/jpeg", None)  # of what is a PNG, too
                if shown.get("text/plain", "").startswith("<Figure"):
                    small = in_few_colours(base64.b64decode(shown["image/png"]))
                    shown["image/png"] = base64.b64encode(small).decode()


def show_end(notebook: nbformat.NotebookNode) -> None:
    """The first cell shows, as its attachment end.png, the picture that the cell with the tag "end"
    made.
    """
    (end,) = (cell for cell in notebook.cells if "end" in cell.metadata.get("tags", ()))
    (picture,) = (
        output.data["image/png"] for output in end.outputs if "image/png" in output.get("data", {})
    )
    notebook.cells[0].attachments = {"end.png": {"image/png": picture}}


def end_of(name: str) -> bytes:
    """The picture at the end of a tutorial, as a PNG file."""
    return base64.b64decode(read(name).cells[0].attachments["end.png"]["image/png"])


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        notebook = read(name)
        execute([notebook])
        show_end(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        if name == "likelihood":
            (FOLDER.parent / "figures" / "likelihood.png").write_bytes(end_of(name))
