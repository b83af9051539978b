"""What is published: a wheel and a source archive that build anywhere, install into a clean
environment and work.
"""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"].keys() - {"dev", "docs", "mutants"}
OWN = {"indm", "indm_command"}


def run(*command: object, folder: Path = ROOT) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "file", ["mkdocs.yml", "CITATION.cff", "indm/__init__.py", "indm/workbench/cli/main.py"]
)
def test_one_sentence_says_what_it_is(file):
    assert PROJECT["description"] in (ROOT / file).read_text("utf-8")


def test_what_only_some_commands_need_is_an_extra():
    required = {re.split(r"[<>=~ ]", name)[0] for name in PROJECT["dependencies"]}
    extras = {
        re.split(r"[<>=~ \[]", name)[0]
        for extra, names in PROJECT["optional-dependencies"].items()
        for name in names
        if extra != "dev"
    }
    assert not required & extras


def test_every_package_that_is_imported_is_a_dependency_or_an_extra():
    tables = [
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS),
    ]
    declared = {canonicalize_name(Requirement(text).name) for table in tables for text in table}
    homes = importlib.metadata.packages_distributions()
    for file in (ROOT / "indm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in (
                {module.split(".")[0] for module in modules} - sys.stdlib_module_names - OWN
            ):
                assert {canonicalize_name(home) for home in homes.get(name, [name])} & declared, (
                    f"{file}: {name}"
                )


@pytest.mark.parametrize("address", [None, "https://example.org/a/indm/"])
def test_the_readme_of_the_package_index_has_the_address_where_there_is_one(tmp_path, address):
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    urls = f'[project.urls]\nRepository = "{address}"\n' if address else ""
    (tmp_path / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text("utf-8") + urls, "utf-8"
    )
    metadata = json.loads(run(sys.executable, "-m", "hatchling", "metadata", folder=tmp_path))
    text, source = metadata["readme"]["text"], (ROOT / "README.md").read_text("utf-8")
    assert metadata["readme"]["content-type"] == "text/markdown"
    if address is None:
        assert text == source
        return
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) == len(re.findall(r"\]\(", source))
    assert all(link.startswith(("https://", "#")) for _, link in links)
    assert ("!", "https://example.org/a/indm/raw/HEAD/docs/figures/fruits.png") in links
    assert ("", "https://example.org/a/indm/blob/HEAD/docs/first-hour.md") in links


@pytest.mark.long
def test_wheel_and_sdist_build_from_a_shallow_clone_and_install(tmp_path, monkeypatch):
    """With all that it depends on, as a user does; it needs a package registry."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # nothing of this environment is seen there
    clone, dist, clean = tmp_path / "clone", tmp_path / "dist", tmp_path / "clean"
    run("git", "clone", "--quiet", "--depth", 1, ROOT.as_uri(), clone)
    run("git", "-C", clone, "tag", "v7.8.9")
    run(sys.executable, "-m", "build", "--outdir", dist, clone)  # the wheel from the source archive
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.name == "indm-7.8.9-py3-none-any.whl" and archive.name == "indm-7.8.9.tar.gz"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    run(sys.executable, "-m", "venv", clean)
    python = clean / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel)
    script = "import indm; print(indm.__version__, indm.__file__)"
    version, place = run(python, "-c", script, folder=tmp_path).split()
    assert version == "7.8.9" and Path(place).is_relative_to(clean)
    run(
        clean / "bin" / "indm",
        "train",
        "eight-gaussians",
        "--train.steps",
        2,
        "--out",
        "run",
        folder=tmp_path,
    )
    assert (tmp_path / "run" / "model.safetensors").exists()
    shutil.rmtree(clean)  # 1 to 6 GB, which pytest would keep
