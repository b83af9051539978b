"""The house by its rooms: floors, sizes, and the rooms that one call walks through.

    python .ci/rooms.py                    # floors of the method and of the house, lines of each room
    python .ci/rooms.py train|evaluate     # the rooms that one small training, one evaluation enters, in order

Of a call it also counts the stays in rooms of the workbench, and the returns to one of them. Methods by which a value
is a container, such as ``__len__``, are no visits.

A room is a folder or module of ``indm/``, of ``workbench/``, of ``tables/`` or of ``published/``. It imports what its
code imports, anywhere in it.
"""

import ast
import functools
import itertools
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1] / "indm"
CONTAINER = re.compile(r"__(len|iter|getitems?|contains|next)__|<\w+>")
HOUSES = ("workbench", "tables", "published")
MODULES = {
    ".".join(("indm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room(module: str) -> str:
    """The room of a module: "sde" of indm.sde.linear, "workbench.data" of indm.workbench.data.folder; "" of indm."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts and parts[0] in HOUSES else parts[:1])


def house(name: str) -> str:
    """ "method", or the house in which a room is."""
    first = name.split(".")[0]
    return first if first in HOUSES else "method"


def exported(package: str) -> dict[str, str]:
    """The module from which each name comes that a package exports, as its stub or its ``__init__.py`` says."""
    stub = MODULES[package].with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else MODULES[package]).read_text())
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [(node, alias.name) for node in froms for alias in node.names if alias.asname == alias.name]
    return {name: ".".join([package] * node.level + [node.module] * bool(node.module)) for node, name in names}


@functools.cache
def imports(module: str) -> frozenset[str]:
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
    return frozenset(found - {module})


ROOMS = sorted({room(module) for module in MODULES} - {"", "__main__"})


@functools.cache
def below(name: str) -> frozenset[str]:
    """The rooms that a room imports."""
    modules = [module for module in MODULES if room(module) == name]
    found = {room(other) for module in modules for other in imports(module)}
    return frozenset(found - {"", name, *HOUSES})


@functools.cache
def floor(name: str) -> int:
    """1 + the highest floor of the rooms that a room imports."""
    return 1 + max(map(floor, below(name)), default=0)


def lines(name: str) -> int:
    return sum(len(path.read_text().splitlines()) for module, path in MODULES.items() if room(module) == name)


def walked(call: Callable[[], object]) -> list[str]:
    """The rooms whose code a call enters, each stay in one of them once, in their order."""
    stays: list[str] = []
    places = {str(path): room(module) for module, path in MODULES.items()}

    def look(frame, event, argument):
        name = places.get(frame.f_code.co_filename) if event == "call" else None
        if name and name not in stays[-1:] and not CONTAINER.fullmatch(frame.f_code.co_name):
            stays.append(name)

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return stays


def training(folder: str, steps: int = 1) -> Callable[[], object]:
    """A small training in a folder."""
    import indm

    changes = {"train.steps": steps, "train.threads": 1, "train.seconds": float("inf")}
    return functools.partial(indm.train, indm.recipe("digits", changes), folder, progress=False)


def returns(stays: list[str]) -> int:
    """How often a walk comes back to a room of the workbench."""
    visits = [name for name, _ in itertools.groupby(name for name in stays if house(name) == "workbench")]
    return len(visits) - len(set(visits))


def main() -> None:
    if len(sys.argv) < 2:
        for height in range(1, max(map(floor, ROOMS)) + 1):
            print(f"{height:3}", *(f"{name}({lines(name)})" for name in ROOMS if floor(name) == height))
        for part in ("method", *HOUSES):
            rooms = [name for name in ROOMS if house(name) == part]
            modules = sum(house(room(module)) == part for module in MODULES)
            print(f"{part}: {sum(map(lines, rooms)):,} lines, {modules} modules, floor {max(map(floor, rooms))}")
        return
    with tempfile.TemporaryDirectory() as folder:
        call = training(folder + "/run")
        if sys.argv[1] != "train":
            from indm.workbench.evaluation.results import evaluate_run

            call()
            call = functools.partial(evaluate_run, Path(folder, "run"))
        stays = walked(call)
    rooms = dict.fromkeys(stays)
    print(len(rooms), *rooms)
    print(f"returns to rooms of the workbench: {returns(stays)}")


if __name__ == "__main__":
    main()
