"""The house: the method knows nothing of its workbench, and nothing is loaded before it is used."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter

import pytest
import rooms

import indm

IMPORTED = [module for module in rooms.MODULES if not module.endswith("__main__")]
METHOD_FLOORS, FLOORS, RETURNS = 8, 13, 30


@pytest.mark.parametrize("name", [name for name in rooms.ROOMS if rooms.house(name) == "method"])
def test_the_method_imports_nothing_but_the_method(name):
    assert {other for other in rooms.below(name) if rooms.house(other) != "method"} == set()


def test_tables_and_what_is_published_import_the_method_and_themselves():
    for own in ("tables", "published"):
        for name in (name for name in rooms.ROOMS if rooms.house(name) == own):
            assert {rooms.house(other) for other in rooms.below(name)} <= {"method", own}, name


def test_what_is_published_is_needed_by_its_command_alone():
    published = {name for name in rooms.ROOMS for other in rooms.below(name) if rooms.house(other) == "published"}
    assert {name for name in published if rooms.house(name) != "published"} == {"workbench.convert"}


def test_the_house_has_few_floors():
    """``python .ci/rooms.py`` prints the floor of each room."""
    assert max(rooms.floor(name) for name in rooms.ROOMS if rooms.house(name) == "method") <= METHOD_FLOORS
    assert max(map(rooms.floor, rooms.ROOMS)) <= FLOORS


@pytest.mark.filterwarnings("ignore:the run ended")
def test_a_training_walks_through_the_workbench_once(tmp_path):
    """``python .ci/rooms.py train`` counts the returns to its rooms."""
    assert rooms.returns(rooms.walked(rooms.training(str(tmp_path / "run")))) <= RETURNS


def test_no_cycle():
    graph = {module: rooms.imports(module) for module in IMPORTED}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the modules of a cycle


def test_every_public_name_is_found_where_the_stub_says():
    assert {name for name in indm.__all__ if not hasattr(indm, name)} == set()
    assert {"flows", "nets", "sampling", "sde", "training"} <= {*indm.__all__}  # packages of parts, without an import


@pytest.fixture(scope="module")
def loaded():
    """What a fresh interpreter has loaded after the method, and after the evaluation without its pictures."""
    method = [module for module in IMPORTED if rooms.house(rooms.room(module)) == "method"]
    numbers = [
        module
        for module in IMPORTED
        if rooms.room(module) in ("workbench.evaluation", "workbench.translation") and not module.endswith(".compare")
    ]
    program = "import importlib, sys\n"
    for names in (method, numbers):
        program += f"for name in {names}: importlib.import_module(name)\nprint(*sys.modules)\n"
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in lines.splitlines()]


def test_the_method_loads_nothing_of_the_workbench(loaded):
    assert not [name for name in loaded[0] if name in rooms.MODULES and rooms.house(rooms.room(name)) != "method"]


def test_modules_for_numbers_load_no_library_for_pictures_or_scores(loaded):
    """What draws, classifies and scores loads matplotlib, scikit-learn and torch-fidelity when it does."""
    assert not {"matplotlib", "sklearn", "torch_fidelity"} & set(loaded[1])


# ── Words and names ──────────────────────────────────────────────────────────────────────────────────────────────────

OF_THE_WORKBENCH = re.compile(
    r"--[a-z]|\bindm (train|evaluate|sample|translate|convert|compare|list|app|fid)\b|\brecipes?\b|"
    r"run folder|\b(train|data|evaluate|condition)\.[a-z_]+\b(?!\()|command line|workbench"
)
METHOD = [
    m
    for m in rooms.MODULES
    if rooms.house(rooms.room(m)) == "method" and m not in ("indm", "indm.__main__", "indm.parts")
]


def tree(module):
    return ast.parse(rooms.MODULES[module].read_text("utf-8"))


@pytest.mark.parametrize("module", METHOD)
def test_the_method_says_nothing_of_its_workbench(module):
    """Commands, flags, keys of recipes and run folders, in no string and no docstring."""
    texts = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [
        (node.lineno, OF_THE_WORKBENCH.search(node.value)[0]) for node in texts if OF_THE_WORKBENCH.search(node.value)
    ]


FLAG = re.compile(r"[\s`\"'(]--[a-z]")  # in a text; an argument of another program begins with it


@pytest.mark.parametrize("module", [m for m in rooms.MODULES if rooms.room(m) != "workbench.cli"])
def test_only_the_command_line_names_its_flags(module):
    """A text names arguments, which Python and recipes have as well."""
    texts = [node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and FLAG.search(text)]


def test_no_class_name_twice():
    names = Counter(node.name for m in rooms.MODULES for node in ast.walk(tree(m)) if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("folder", ["indm/workbench", "indm/tables", "indm/published"])
def test_a_customer_of_the_method_uses_no_private_name(folder):
    """Names with an underscore stay in their room."""
    for path in sorted((rooms.ROOT.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("indm"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path


@pytest.mark.parametrize("folder", ["bench", "examples", "research", "docs/tutorials"])
def test_names_that_others_import_are_there(folder):
    """Most of these programs run in no test."""
    for path in [p for p in (rooms.ROOT.parent / folder).rglob("*") if p.suffix in (".py", ".ipynb")]:
        code = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            code = "\n".join("".join(c["source"]) for c in json.loads(code)["cells"] if c["cell_type"] == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("indm"):
                exec(compile(ast.Module([node], []), str(path), "exec"))
