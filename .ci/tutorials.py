"""Runs tutorials and keeps their outputs: python .ci/tutorials.py [NAME …]. INDM_TUTORIAL_STEPS makes short runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = ("density", "tables", "images", "classes", "translation", "diffusion")


def read(name: str) -> nbformat.NotebookNode:
    """The notebook."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebooks: Sequence[nbformat.NotebookNode]) -> None:
    """Run the cells of all in one kernel, whose names are forgotten before each. They get their outputs, less what went
    to stderr, which says how far they were."""
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
                output.get("data", {}).pop("image/jpeg", None)  # of what is a PNG, too


def show_end(notebook: nbformat.NotebookNode) -> None:
    """The first cell shows, as its attachment end.png, the picture that the cell with the tag "end" made."""
    (end,) = (cell for cell in notebook.cells if "end" in cell.metadata.get("tags", ()))
    (picture,) = (output.data["image/png"] for output in end.outputs if "image/png" in output.get("data", {}))
    notebook.cells[0].attachments = {"end.png": {"image/png": picture}}


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        notebook = read(name)
        execute([notebook])
        show_end(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
