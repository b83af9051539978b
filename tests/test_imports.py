"""The house: imports only go down, the method knows nothing of its workbench, and nothing is loaded
before its use.
"""

import ast
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import indm

ROOT = Path(indm.__file__).parent
HOUSES = ("workbench", "tables", "published")
OF_ALL = ("indm", "indm.__main__", "indm.parts")  # these know the whole house
MODULES = {
    ".".join(("indm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def house(module):
    """The house of a module: "method", or one of HOUSES; "" for those that know them all."""
    if module in OF_ALL:
        return ""
    folder = module.split(".")[1]
    return folder if folder in HOUSES else "method"


def modules_of(*houses):
    return [module for module in MODULES if house(module) in houses]


@functools.cache
def tree(module):
    return ast.parse(MODULES[module].read_text("utf-8"))


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def loads(module):
    """The modules of indm that a module imports when it runs, and not for annotations alone."""
    for_types = [
        part for node in ast.walk(tree(module)) if is_for_types(node) for part in node.body
    ]
    return imports(module, [node for node in ast.walk(tree(module)) if node not in for_types])


def imports(module, nodes=None):
    """The modules of indm that a module imports, anywhere in its code or in some of its nodes."""
    found = set()
    for node in ast.walk(tree(module)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return (found & MODULES.keys()) - {module, "indm"}


def public_names(module):
    """Names that a module imports from indm itself, which has those of every house."""
    froms = [
        node
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module == "indm"
    ]
    return {
        alias.name for node in froms for alias in node.names if f"indm.{alias.name}" not in MODULES
    }


ALLOWED = {  # house → the houses that it imports
    "method": {"method"},
    "tables": {"method", "tables"},
    "published": {"method", "published"},
    "workbench": {"method", "tables", "published", "workbench"},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_house_imports_only_what_is_below_it(name):
    for module in modules_of(name):
        assert {house(other) for other in imports(module)} <= ALLOWED[name], module
        assert not public_names(module), module


def test_what_is_published_is_needed_by_its_command_alone():
    workbench = modules_of("workbench")
    needs = {
        module
        for module in workbench
        if any(house(other) == "published" for other in imports(module))
    }
    assert needs == {"indm.workbench.convert"}


def test_no_cycle():
    graph = {module: loads(module) for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the modules of a cycle


def test_every_public_name_is_found_where_the_stub_says():
    assert {name for name in indm.__all__ if not hasattr(indm, name)} == set()
    # packages of parts, without an import
    assert {"flows", "nets", "sampling", "sde", "training"} <= {*indm.__all__}


@pytest.fixture(scope="module")
def loaded():
    """The modules in a fresh interpreter after the method is imported, and then after the
    evaluation of runs.
    """
    numbers = [
        module
        for module in modules_of("workbench")
        if module.split(".")[2:3] in (["evaluation"], ["translation"])
        and not module.endswith(".compare")
    ]
    program = "import importlib, sys\n"
    for names in (modules_of("method"), numbers):
        program += f"for name in {names}: importlib.import_module(name)\nprint(*sys.modules)\n"
    lines = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    return [line.split() for line in lines.splitlines()]


def test_the_method_loads_nothing_of_the_workbench(loaded):
    assert not {*loaded[0]} & {*modules_of(*HOUSES)}


def test_modules_for_numbers_load_no_library_for_pictures_or_scores(loaded):
    """What draws, classifies and scores loads matplotlib, scikit-learn and torch-fidelity when it
    does.
    """
    assert not {"matplotlib", "sklearn", "torch_fidelity"} & set(loaded[1])


# ── Words and names ───────────────────────────────────────────────────────────────────────────────

OF_THE_WORKBENCH = re.compile(
    r"--[a-z]|\bindm (train|evaluate|sample|translate|convert|compare|list|app|fid)\b|\brecipes?\b|"
    r"run folder|\b(train|data|evaluate|condition)\.[a-z_]+\b(?!\()|command line|workbench"
)


@pytest.mark.parametrize("module", modules_of("method"))
def test_the_method_says_nothing_of_its_workbench(module):
    """Commands, flags, keys of recipes and run folders, in no string and no docstring."""
    texts = [
        node
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert not [
        (node.lineno, OF_THE_WORKBENCH.search(node.value)[0])
        for node in texts
        if OF_THE_WORKBENCH.search(node.value)
    ]


FLAG = re.compile(r"[\s`\"'(]--[a-z]")  # in a text; an argument of another program begins with it


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("indm.workbench.cli")])
def test_only_the_command_line_names_its_flags(module):
    """A text names arguments, which Python and recipes have as well."""
    texts = [node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and FLAG.search(text)]


def test_no_class_name_twice():
    names = Counter(
        node.name for m in MODULES for node in ast.walk(tree(m)) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("folder", ["indm/workbench", "indm/tables", "indm/published"])
def test_a_customer_of_the_method_uses_no_private_name(folder):
    """Names with an underscore stay in their room."""
    for path in sorted((ROOT.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("indm"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path


@pytest.mark.parametrize("folder", ["bench", "examples", "research", "docs/tutorials"])
def test_names_that_others_import_are_there(folder):
    """Most of these programs run in no test."""
    for path in [p for p in (ROOT.parent / folder).rglob("*") if p.suffix in (".py", ".ipynb")]:
        code = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            code = "\n".join(
                "".join(c["source"]) for c in json.loads(code)["cells"] if c["cell_type"] == "code"
            )
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("indm"):
                exec(compile(ast.Module([node], []), str(path), "exec"))
