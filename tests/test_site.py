"""The documentation site: every public name has its place, every page is reached, and it builds without a warning."""

import ast
import functools
import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import rooms
import yaml
from browsers import NARROW, WIDE, keep, overflow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ENTRY = re.compile(
    r"^::: (\S+)$(?:\n    options: \{members: \[(.*)\]\})?", re.MULTILINE
)  # a name, or a module and some of it
ENTRIES = [(page, *entry) for page in (DOCS / "reference").glob("*.md") for entry in ENTRY.findall(page.read_text())]
REFERENCE = {name: page for page, name, _ in ENTRIES}
MEMBERS = {f"{module}.{name}" for _, module, names in ENTRIES for name in re.findall(r"\w+", names)}
MODULES = {name for _, name, names in ENTRIES if names}
PACKAGES = ("indm", "indm.workbench.data", "indm.flows", "indm.nets", "indm.published", "indm.sde")
WITHOUT_EXAMPLE: set[str] = set()  # names of the reference that still have none
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


class Config(yaml.SafeLoader):
    """mkdocs.yml, without the objects that it names."""


Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: tag)
MENU = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Config)["nav"]


def exported(package: str) -> dict[str, str]:
    """Where the public names of a package are defined, with the name."""
    return {name: f"{module}.{name}" for name, module in rooms.exported(package).items()}


HOMES = {f"{package}.{name}": home for package in PACKAGES for name, home in exported(package).items()}


def public_names() -> set[str]:
    """Those of indm and of the packages of parts, and what the page on parts of one's own imports."""
    names = set(HOMES)
    for code in re.findall(r"```python.*?\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("indm"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def docstring(home: str) -> str | None:
    """That of a class or function, read and not imported, which takes half a minute where types are checked."""
    if (package := ROOT / home.replace(".", "/")).is_dir():
        return ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8")))
    module, _, name = home.rpartition(".")
    if (ROOT / module.replace(".", "/")).is_dir():
        return docstring(exported(module)[name])
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    definitions = [node for node in tree.body if getattr(node, "name", "") == name]
    return ast.get_docstring(definitions[-1])  # after its overloads


def test_every_public_name_is_in_the_reference_once_and_has_a_docstring():
    documented = [HOMES.get(name, name) for name in REFERENCE if name not in MODULES] + sorted(MEMBERS)
    assert len(set(documented)) == len(documented)
    homes = {HOMES.get(name, name) for name in public_names()}
    assert not homes - {*documented} - rooms.MODULES.keys()  # a package has its parts there, in place of itself
    assert not [name for name in documented if not docstring(name)]


def test_every_name_in_the_reference_has_an_example_that_is_run():
    """But for those that are listed as without one: what has got an example leaves the list."""
    names = REFERENCE.keys() - MODULES
    assert {name for name in names if ">>> " not in (docstring(HOMES.get(name, name)) or "")} == WITHOUT_EXAMPLE


# What research, examples and tutorials use that is not in the reference, by the reason why it is not.
UNDOCUMENTED = {
    "annotations of batches": {"indm.tensors": "Batch PerSample"},
    "a network of a study, made of the U-Net's layers": {
        "indm.nets.embedding": "ConditionOfImages LevelEmbedding seen with_waves",
        "indm.nets.unet": "attend",
    },
    "the inside of tables, which a study changes or measures": {
        "indm.tables.columns": "Columns",
        "indm.tables.estimator": "Training latent_log_prob",
        "indm.tables.fit": "Training paired_error",
        "indm.tables.mixture": "Mixture",
    },
    "the inside of the bound and of the networks of others, which a study measures": {
        "indm.foreign.paths": "path_of",
        "indm.gaussian": "GaussianReference",
        "indm.ode": "rademacher",
        "indm.published.network": "architecture",
        "indm.workbench.convert": "score_of_checkpoint",
    },
    "commands that read and fail as those of the workbench": {
        "indm.checks": "brief counted one_line reason require",
        "indm.files.plain": "check_plain",
        "indm.workbench.cli.common": "Common DONE MISTAKE",
        "indm.workbench.cli.main": "main",
    },
    "loaders of images beside those of the workbench": {
        "indm.files.memory": "check_memory",
        "indm.workbench.data.base": "PARTS describe_split limited",
        "indm.workbench.data.examples": "MIN_SIZE words_of",
        "indm.workbench.data.folder": "Files find_images",
        "indm.workbench.data.images": "ImageOptions RESIZE_MODES data_of_images pixels_of read_image",
        "indm.workbench.data.standard": "CIFAR10",
    },
    "the making of the models that come with the package": {
        "indm.model": "DESCRIPTION WEIGHTS",
        "indm.workbench.evaluation.card": "PICTURE write",
        "indm.workbench.evaluation.fid": "Images score",
        "indm.workbench.hub": "SHIPPED shipped shipped_names",
        "indm.workbench.runs.folder": "RECIPE",
        "indm.workbench.runs.samples": "SAMPLES",
    },
    "trainings of a study, made and continued as those of the trainer": {
        "indm.workbench.recipes.recipe": "resolve",
        "indm.workbench.runs.devices": "make_accelerator",
    },
    "the look of the workbench's figures": {"indm.workbench.figures.plots": "DATA_COLOUR STYLE styled"},
}


def canonical(path: str) -> str:
    """The home of a name: a package may only pass it on."""
    module, _, name = path.rpartition(".")
    is_package = module in rooms.MODULES and rooms.MODULES[module].name == "__init__.py"
    home = exported(module).get(name, path) if is_package else path
    return path if home == path else canonical(home)


def names_used(code: str) -> set[str]:
    """The names of indm that ``code`` imports, or takes from a module that it imports."""
    tree, modules, used = ast.parse(code), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "indm": alias.name for alias in node.names if alias.name == "indm"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "indm":
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                if path in rooms.MODULES:
                    modules[alias.asname or alias.name] = path
                else:
                    used.add(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", dotted := ast.unparse(node)):
            head, *rest = dotted.split(".")
            path = modules.get(head, "")
            while path in rooms.MODULES and rest:
                path += "." + rest.pop(0)
            used |= {path} - {"", *rooms.MODULES}
    return {canonical(path) for path in used}


def code_of(file: Path) -> str:
    """The source of a module, or of a notebook without its commands of the shell."""
    if file.suffix == ".py":
        return file.read_text("utf-8")
    cells = json.loads(file.read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)


def test_research_examples_and_tutorials_use_names_of_the_reference():
    """And no name stays listed as an exception that is used no longer."""
    files = [*(ROOT / "research").rglob("*.py"), *(ROOT / "examples").rglob("*.py"), *DOCS.rglob("*.ipynb")]
    used = set().union(*(names_used(code_of(file)) for file in files))
    known = {canonical(name) for name in REFERENCE} | MEMBERS
    lists = [(module, names) for modules in UNDOCUMENTED.values() for module, names in modules.items()]
    assert used - known == {f"{module}.{name}" for module, names in lists for name in names.split()}


def test_the_index_of_the_reference_links_every_name():
    text = (DOCS / "reference" / "index.md").read_text("utf-8")
    linked = {}
    for page, names in re.findall(r"^\| \[.*?\]\((.*?)\) \| (.*) \|$", text, re.MULTILINE):
        linked |= dict.fromkeys(re.findall(rf"\]\({re.escape(page)}#(.*?)\)", names), page)
    assert linked == {name: page.name for name, page in REFERENCE.items() if name != "indm.flows"}


def test_every_page_is_in_the_menu():
    """Of docs/ and the made ones by mkdocs.yml, of research/ also by the hook."""
    pages = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", repr(MENU)))
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")}
    assert {page for page in pages if not page.startswith("research/")} == files | {
        "index.md", "commands.md", "examples.md", "recipes.md"
    }  # fmt: skip


def test_pages_of_the_manual_are_short():
    """Words of docs/ as it is written, without the reference."""
    words = {path.name: len(path.read_text("utf-8").split()) for path in DOCS.glob("*.md")}
    assert sum(words.values()) <= 19_000 and max(words.values()) <= 1_500, words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_files(page):
    """As the repository shows them; the site's own check, with anchors, is that of the build."""
    assert not [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]


@pytest.fixture(scope="module")
def tools():
    """.ci/docs_site.py."""
    for needed in ("griffe", "latex2mathml", "mkdocs"):
        pytest.importorskip(needed, reason="needs pip install -e '.[docs]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        yield importlib.import_module("docs_site")


def test_a_docstring_becomes_markdown(tools):
    import griffe

    text = r'''r"""Law :math:`\alpha_t x`.

    .. math:: z = \int_0^t
              f \, ds

    See :meth:`B.go` and :func:`~indm.sample`, not :class:`Nowhere`.

    Example: two lines.

        >>> 1 + \
        ... 1
        2
    """
'''
    with griffe.temporary_visited_module(f"class A:\n    {text}\nclass B:\n    def go(self): ...\n") as module:
        result = tools.markdown(module["A"].docstring.value, module["A"])
    link = '<autoref identifier="{}" optional><code>{}</code></autoref>'.format
    assert r"Law \(\alpha_t x\)." in result
    assert "\\[z = \\int_0^t f \\, ds\\]" in result
    assert (
        f"See {link('module.B.go', 'B.go')} and {link('indm.sample', 'sample')}, not {link('Nowhere', 'Nowhere')}"
        in result
    )
    assert "\n```pycon\n>>> 1 + \\\n... 1\n2\n```" in result


def test_shapes_stay_as_they_are(tools):
    import griffe

    code = 'def f(x: Float[Tensor, "batch *event"] | None) -> tuple[Float[Tensor, " batch"], "A"]: ...'
    with griffe.temporary_visited_module(code) as module:
        function = module["f"]
        tools.Docstrings().on_object(obj=function)
        assert str(function.parameters["x"].annotation) == 'Float[Tensor, "batch *event"] | None'
        assert "' batch'" in str(function.returns)


def test_formulas_become_mathml(tools):
    html = tools.on_page_content('<p><span class="arithmatex">\\(a &lt; b_1\\)</span></p>')
    assert "arithmatex" not in html and "<msub>" in html and "<mo>&#x0003C;</mo>" in html
    html = tools.on_page_content('<div class="arithmatex">\\[\\log p + \\log(q)\\]</div>')
    assert re.findall(r"<mi>log</mi>(<mspace|<mo)", html) == ["<mspace", "<mo"]


def test_a_number_and_its_error_stay_in_one_line(tools):
    html = "<td>2.06 ± 0.01 ± 0.02</td><code>{x} ± {y}</code>"
    assert tools.on_page_content(html) == html.replace("6 ± 0.01 ± 0", "6\u00a0±\u00a00.01\u00a0±\u00a00")


def test_links_that_leave_the_pages(tools):
    class Page:
        class file:
            src_uri = "reference/x.md"

    class Known:
        repo_url = "https://example.org/indm/"

    class Unknown:
        repo_url = None

    class Study:
        class file:
            src_uri = "research/tables/x.md"

    text = "[a](../method.md) [b](../../bench/a.py) ![c](../../d.png)"
    assert tools.on_page_markdown(text, Page, Unknown) == "[a](../method.md) b (`bench/a.py`) ![c](../../d.png)"
    text_of_study = "[a](../../docs/faq.md#data) [b](../y.md) [c](../../README.md) ![d](../figures/e.png)"
    shown = "[a](../../faq.md#data) [b](../y.md) [c](../../index.md) ![d](../figures/e.png)"
    assert tools.on_page_markdown(text_of_study, Study, Unknown) == shown
    assert tools.on_page_markdown("[a](../../research/y.md#z)", Page, Unknown) == "[a](../research/y.md#z)"
    assert tools.on_page_markdown("[bench/a.py](../../bench/a.py)", Page, Unknown) == "`bench/a.py`"
    shown = tools.on_page_markdown("![a](../../indm/pretrained/digits-pretrained/samples.png)", Page, Unknown)
    assert shown == "![a](../pretrained/digits-pretrained/samples.png)"
    assert "[b](https://example.org/indm/tree/HEAD/bench/a.py)" in tools.on_page_markdown(text, Page, Known)


def test_the_pages_of_studies_are_in_the_menu_once(tools):
    added = repr(tools.studies("'research/README.md', 'research/speed.md'"))
    assert "research/README.md" not in added and "research/speed.md" not in added
    assert (
        added.count("'research/tables/flows.md'") == added.count("'Tables'") == added.count("'research/talk.md'") == 1
    )


@pytest.fixture(scope="module")
def made():
    """.ci/docs_pages.py."""
    pytest.importorskip("mkdocs", reason="needs pip install -e '.[docs]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        yield importlib.import_module("docs_pages")


def test_the_made_pages_have_every_option_key_and_example(made):
    from indm.workbench.cli.main import COMMANDS, find, flags

    commands, recipes, examples = made.commands_page(), made.recipes_page(), made.examples_page()
    for name in COMMANDS:
        section = commands.partition(f"### indm {name}\n")[2].partition("\n### ")[0]
        shown = section.replace("--no-", "--")
        positional = {flag for flag, *_, is_place in made.options(find(name)) if is_place}
        hidden = {"--table-values", "--sampler-options"}
        missing = [flag for flag in flags(find(name)) if f"`{flag}" not in shown and flag not in hidden]
        assert section and len(missing) == len(positional), (name, missing)
    assert "| `train.lr` | `0.001` | Learning rate of the score. |" in recipes
    assert "### coupling\n" in recipes and "| `digits` |" in recipes
    files = [path.name for path in (ROOT / "examples").glob("*.py")]
    assert "## Zuko flow\n" in examples and examples.count("```python") == len(files)
    index = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert not [name for name in files if f"| [{name}]({name}) |" not in index]
    assert all((DOCS / "figures" / f"{name}.png").is_file() for name in made.PICTURES.values())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for needed in ("mkdocs", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
        pytest.importorskip(needed, reason="needs pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
def test_the_site_builds_without_a_warning(site):
    for name, page in REFERENCE.items():
        html = (site / "reference" / page.stem / "index.html").read_text("utf-8")
        assert name == "indm.flows" or f'id="{name}"' in html, name
        text = re.sub(r"<[^>]*>", "", html)
        assert not re.search(r":(class|func|meth|attr|data|mod|math):|\.\. math::|```|\\\(", text), page
    assert "<math" in (site / "reference" / "sde" / "index.html").read_text("utf-8")
    assert "image/png" in (site / "tutorials" / "density" / "index.html").read_text("utf-8")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(site):
    """The address of the site on this machine."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


# Of each formula: whether its parts have sizes, and stand where they should. An index below α or σ reaches below the
# line only in a font for formulas, where there is one.
FORMULAS = r"""hasFont => [...document.querySelectorAll("math")].map(math => {
  const box = part => part.getBoundingClientRect(), middle = part => (box(part).top + box(part).bottom) / 2;
  const all = (tag, good) => [...math.querySelectorAll(tag)].every(part => good(part, ...part.children));
  return box(math).width > 0 && box(math).height > 0 && all("mi, mn", part => box(part).width > 0)
    && all("mfrac", (_, above, below) => box(above).bottom <= box(below).top + 1)
    && all("msup", (_, base, power) => middle(power) < middle(base))
    && all("msub", (_, base, index) => middle(index) > middle(base)
      && (!hasFont || !/^[\u03b1\u03c3]$/.test(base.textContent) || box(index).bottom > box(base).bottom + 2));
})"""


def has_font():
    """Whether this machine has a font for formulas, as those of Debian's fonts-dejavu-extra."""
    lister = shutil.which("fc-list")
    return lister is not None and " Math" in subprocess.run([lister], capture_output=True, text=True).stdout


# Pages, and how many formulas they have at least; the others have theirs in plain characters.
VISITED = {"": 0, "method/": 4, "reference/sde/": 20, "parts/": 0, "tutorials/density/": 0}


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("place", VISITED)
def test_a_page_of_the_site_fits_its_window_with_its_formulas(served, visit, place, window, scheme):
    page = visit(served + place, viewport=window, color_scheme=scheme)
    page.wait_for_load_state("networkidle")
    assert overflow(page) == 0
    formulas = page.evaluate(FORMULAS, has_font())
    assert len(formulas) >= VISITED[place] and all(formulas)
    assert not re.search(r"\\[\[(]|\\(frac|int|alpha|sigma|theta)\b|\$\$", page.locator("article").inner_text())
    assert page.locator("article img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = max(map(int, re.findall(r"\d+", paper)[:3]))
    assert brightness > 240 if scheme == "light" else brightness < 64
    keep(page, f"site-{place.strip('/').replace('/', '-') or 'index'}-{scheme}")


@pytest.mark.long
def test_the_search_of_the_site_finds_a_page(served, visit):
    page = visit(served)
    page.wait_for_load_state("networkidle")  # the scripts are there
    field = page.get_by_role("textbox", name="Search")
    field.click()
    field.press_sequentially("dequantization")
    found = page.locator(".md-search-result__item a").first
    found.wait_for()
    found.click()
    page.wait_for_url(lambda url: re.split("[?#]", url)[0] != served)
    assert "dequantization" in page.locator("article").inner_text().lower()
