"""The documentation site: every public name has its place and an example, and the site builds
without a warning.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reference
from reference import ENTRY, MODULES, docstring, index

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ENTRIES = [
    (page, *entry)
    for page in (DOCS / "reference").glob("*.md")
    for entry in ENTRY.findall(page.read_text())
]
REFERENCE = {name: page for page, name, _ in ENTRIES}
MEMBERS = {f"{module}.{name}" for _, module, names in ENTRIES for name in re.findall(r"\w+", names)}
WITH_MEMBERS = {name for _, name, names in ENTRIES if names}
PACKAGES = ("indm", "indm.workbench.data", "indm.flows", "indm.nets", "indm.published", "indm.sde")
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def exported(package: str) -> dict[str, str]:
    """Where the public names of a package are defined, with the name."""
    return {name: f"{module}.{name}" for name, module in reference.exported(package).items()}


HOMES = {
    f"{package}.{name}": home for package in PACKAGES for name, home in exported(package).items()
}


def public_names() -> set[str]:
    """Those of indm and of the packages of parts, and what the page on parts of one's own imports."""
    names = set(HOMES)
    for code in re.findall(
        r"```python.*?\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), re.DOTALL
    ):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("indm"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_public_name_is_in_the_reference_once_and_has_a_docstring():
    documented = [HOMES.get(name, name) for name in REFERENCE if name not in WITH_MEMBERS] + sorted(
        MEMBERS
    )
    assert len(set(documented)) == len(documented)
    homes = {HOMES.get(name, name) for name in public_names()}
    # a package has its parts there, in place of itself
    assert not homes - {*documented} - MODULES.keys()
    assert not [name for name in documented if not docstring(name)]


def test_every_name_in_the_reference_has_an_example_that_is_run():
    names = REFERENCE.keys() - WITH_MEMBERS
    assert not {name for name in names if ">>> " not in (docstring(HOMES.get(name, name)) or "")}


def test_the_index_of_the_reference_is_made_from_the_docstrings():
    assert (DOCS / "reference" / "index.md").read_text("utf-8") == index(), (
        "run python .ci/reference.py"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_files(page):
    """As the repository shows them; the site's own check, with anchors, is that of the build."""
    assert not [
        link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()
    ]


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("mkdocs", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
        pytest.importorskip(needed, reason="needs pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
