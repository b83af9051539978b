"""The tutorials run: all of them with the constants of a short run, and in full, as they are kept."""

import importlib
import os
import re
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "tutorials"


@pytest.fixture(scope="module")
def tutorials():
    """.ci/tutorials.py; its kernels find the package here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        yield importlib.import_module("tutorials")


def seconds_of_children():
    """Of processors, of the processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.fixture(scope="module")
def timed(tutorials):
    """All, by name, after a short run in one kernel, and the seconds of processors that it took."""
    notebooks = {name: tutorials.shortened(tutorials.read(name)) for name in tutorials.NAMES}
    before = seconds_of_children()
    tutorials.execute(list(notebooks.values()))
    return notebooks, seconds_of_children() - before


@pytest.fixture(scope="module")
def short(timed):
    """All, by name, after a short run."""
    return timed[0]


def test_short_runs_of_tutorials_are_quick_enough_for_ci(timed):
    """On two cores 40 seconds of processors are usual."""
    assert timed[1] < 120


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: text or a picture."""
    return {"picture" if "image/png" in output.get("data", {}) else "text" for output in cell.outputs}


def printed(notebook):
    return "".join(o.text for cell in code_of(notebook) for o in cell.outputs if o.output_type == "stream")


def test_they_are_the_notebooks(tutorials):
    assert {f"{name}.ipynb" for name in tutorials.NAMES} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", ["density", "tables", "images", "classes", "translation", "diffusion"])
def test_a_tutorial_runs_and_its_outputs_are_kept(tutorials, short, name):
    """nbclient raises where a cell does. Outputs that are kept are of this code: the same cells show the same kinds."""
    kept = tutorials.read(name)
    assert [kinds(cell) for cell in code_of(kept)] == [kinds(cell) for cell in code_of(short[name])]
    assert [cell.execution_count for cell in code_of(kept)] == list(range(1, len(code_of(kept)) + 1))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 400_000


@pytest.mark.parametrize("name", ["density", "tables", "images", "classes", "translation", "diffusion"])
def test_no_cell_of_a_tutorial_installs_the_package_or_serves_a_short_run(tutorials, name):
    code = "\n".join(cell.source for cell in code_of(tutorials.read(name)))
    assert not re.search(r"%pip|environ|\bif\b.*STEPS|STEPS.*\bif\b|\b(min|max)\(.*STEPS", code)


def test_a_short_run_changes_constants_alone_and_each_is_one_of_a_tutorial(tutorials):
    def notebook(code):
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])

    kept = notebook("STEPS = 8_000  # of all\nOTHER_STEPS = 8_000\nn = 2 * STEPS")
    assert code_of(tutorials.shortened(kept))[0].source == "STEPS = 2  # of all\nOTHER_STEPS = 8_000\nn = 2 * STEPS"
    assert code_of(kept)[0].source.startswith("STEPS = 8_000")
    with pytest.raises(ValueError, match="the notebook sets none of STEPS, "):
        tutorials.shortened(notebook("OTHER_STEPS = 8_000"))
    code = "\n".join(cell.source for name in tutorials.NAMES for cell in code_of(tutorials.read(name)))
    assert {match[1] for match in tutorials.CONSTANT.finditer(code)} == tutorials.SHORT.keys()


@pytest.mark.parametrize("name", ["density", "tables", "images", "classes", "translation", "diffusion"])
def test_a_tutorial_begins_with_the_picture_of_its_end_how_to_install_and_its_time(tutorials, name):
    kept = tutorials.read(name)
    first, shown = kept.cells[0], kept.cells[0].attachments
    tutorials.show_end(kept)
    assert shown == first.attachments and "](attachment:end.png)" in first.source
    assert "Install indm first ([how](../install.md))" in first.source
    assert re.search(r"The tutorial takes \d\sminutes?\son\stwo\scores", first.source)


def number(pattern, text):
    """The first number after ``pattern``."""
    return float(re.search(pattern + r"\D*?(-?[\d.]+\d)", text)[1])


def check_density(text):
    truth = number("truth", text)
    assert number("NELBO", text) == pytest.approx(truth, abs=0.03)
    assert number("NLL", text) == pytest.approx(truth, abs=0.15)
    assert 0 < number("NELBO  − truth:", text) < 0.03
    assert number("INDM is", text) > 1 and number("integral of the density", text) == pytest.approx(1, abs=0.02)
    assert number("less likely than a normal wine in", text) > 90


def check_tables(text):
    assert "sum of probabilities: [1. 1. 1.]" in text
    assert number("right for", text) > 80 and number("the two differ by", text) < 1
    assert number("p =", text) > 0.01  # of the calibration


def check_images(text):
    """Of each row the number after that of its examples."""
    rows = ("NELBO", "a Gaussian with full covariance", "PNG, header included")
    nelbo, gaussian, png = (number(rf"{row}\s+\d+\s", text) for row in rows)
    assert 0 < nelbo < gaussian < png < 8


def check_classes(text):
    assert number("accuracy", text) > 0.8
    assert 1.5 < number("information gain", text) < number("at most log 10 =", text)


def check_translation(text):
    assert number("largest error of the cycle", text) < 1
    assert number("horizontal place  correlation", text) > 0.5


def check_diffusion(text):
    indm, flow, linear = (number(f"{name}:", text) for name in ("INDM", "flow", "linear diffusion"))
    assert indm < linear and abs(indm - flow) < 0.1
    assert number("the longer axis of G is", text) > 4 and int(re.search(r"and (\d+)°", text)[1]) < 20


CHECKS = [check_density, check_tables, check_images, check_classes, check_translation, check_diffusion]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_what_a_kept_tutorial_shows_is_what_it_says(tutorials, check):
    check(printed(tutorials.read(check.__name__.removeprefix("check_"))))


@pytest.mark.long
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_tutorial_in_full(tutorials, check):
    notebook = tutorials.read(check.__name__.removeprefix("check_"))
    tutorials.execute([notebook])
    check(printed(notebook))
