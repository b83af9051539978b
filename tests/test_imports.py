"""The house: every module imports only what stands before it, and nothing is loaded before it is used."""

import ast
import functools
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import indm

ROOT = Path(indm.__file__).parent
# A room or module may import itself and those before it. The method ends at `diffusion`; what follows is the workshop.
ORDER = [
    "messages",
    "tensors",
    "rng",
    "files",
    "config",
    "scaling",
    "conditions",
    "sde",
    "dequantization",
    "flows",
    "variational",
    "nets",
    "score",
    "gaussian",
    "ode",
    "multilevel",
    "objective",
    "likelihood",
    "sampling",
    "model",
    "programs",
    "fitting",
    "translation",
    "linearization",
    "inpainting",
    "diffusion",
    "foreign",
    "data",
    "runs",
    "training",
    "tables",
    "evaluation",
    "translation_of_files",
    "published",
    "app",
    "cli",
]
METHOD = ORDER[: ORDER.index("foreign") + 1]
MODULES = {
    ".".join(("indm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room(module: str) -> str:
    """The place in :data:`ORDER` that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def exported(package: str) -> dict[str, str]:
    """Where the names come from that a package exports, as its stub or its ``__init__.py`` says."""
    stub = MODULES[package].with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else MODULES[package]).read_text())
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: f"{package}." * bool(node.level) + node.module for node in froms for alias in node.names}


@functools.cache
def imports(module: str) -> set[str]:
    """The modules of indm that ``module`` imports, anywhere in it; for an exported name, the module that defines it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            elsewhere = exported(node.module) if MODULES[node.module].name == "__init__.py" else {}
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in MODULES else elsewhere.get(alias.name, node.module))
    return found - {module}


IMPORTED = [module for module in MODULES if not module.endswith("__main__")]


def test_every_module_has_its_place_in_the_order():
    assert {room(module) for module in IMPORTED} - {""} <= set(ORDER)


@pytest.mark.parametrize("module", IMPORTED)
def test_a_module_imports_only_what_stands_before_it(module):
    if room(module):
        later = ORDER[ORDER.index(room(module)) + 1 :]
        assert not [name for name in imports(module) if room(name) in later]


def test_what_is_published_is_needed_by_its_command_alone():
    published = {room(module) for module in IMPORTED for name in imports(module) if room(name) == "published"}
    assert published - {"published", ""} == {"cli"}


@functools.cache
def floor(name: str) -> int:
    """1 + the highest floor of the rooms that a room imports, imports inside functions counted."""
    below = {room(found) for module in IMPORTED if room(module) == name for found in imports(module)}
    return 1 + max((floor(other) for other in below - {"", name}), default=0)


def test_the_house_has_few_floors():
    """``pytest -s`` prints the floor of each room."""
    floors = {name: floor(name) for name in ORDER}
    for height in range(1, max(floors.values()) + 1):
        print(f"{height:3}", *(name for name in ORDER if floors[name] == height))
    assert max(floors.values()) <= 15


def test_no_cycle():
    graph = {module: imports(module) for module in IMPORTED}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the modules of a cycle


def test_every_public_name_is_found_where_the_stub_says():
    assert {name for name in indm.__all__ if not hasattr(indm, name)} == set()


@pytest.fixture(scope="module")
def loaded():
    """What a fresh interpreter has loaded after the method, and after the evaluation without its pictures."""
    pictures = {"plots", "sheets", "figures", "compare", "report"}
    method = [module for module in IMPORTED if room(module) in METHOD]
    rooms = {"evaluation", "translation_of_files"}
    numbers = [m for m in IMPORTED if room(m) in rooms and m.rsplit(".", 1)[-1] not in pictures]
    program = "import importlib, sys\n"
    for names in (method, numbers):
        program += f"for name in {names}: importlib.import_module(name)\nprint(*sys.modules)\n"
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in lines.splitlines()]


def test_the_method_loads_nothing_of_the_workshop(loaded):
    assert not [name for name in loaded[0] if name.startswith("indm.") and room(name) not in METHOD]


def test_modules_for_numbers_load_no_library_for_pictures_or_scores(loaded):
    """What draws, classifies and scores loads matplotlib, scikit-learn and torch-fidelity when it does."""
    assert not {"matplotlib", "sklearn", "torch_fidelity"} & set(loaded[1])
