"""What the documentation site needs beside Markdown: docstrings in it, formulas, and pages from
outside docs/.

The pages of research/ stand in the site under the same paths, so that links to them work. Generated
pages are those of .ci/docs_pages.py.
"""

import posixpath
import re
import textwrap
import tomllib
from html import unescape
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
MODELS = "indm/pretrained"
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`(~?)([\w.]+)`")
DISPLAY = re.compile(r"^( *)\.\. math:: (.*(?:\n\1  +\S.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
EVIDENCE = "Evidence"  # the entry of the menu that gets the pages of research/
# a name in the index of the reference, with its file
NAMED = re.compile(r"\[`(\S+)`\]\(\.\./\.\./indm/\S+?\)")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


class Docstrings(griffe.Extension):
    """Docstrings become Markdown: roles are links where there is a page, formulas TeX, and examples
    code.
    """

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, obj)
        if obj.is_function:
            for annotated in (obj.returns, *(parameter.annotation for parameter in obj.parameters)):
                keep_shapes(annotated)
        elif obj.is_attribute:
            keep_shapes(obj.annotation)


def keep_shapes(annotation: object) -> None:
    """Back to a string where the shape "batch *event" was read as a product."""
    if not isinstance(annotation, griffe.Expr) or isinstance(annotation, griffe.ExprName):
        return
    if isinstance(annotation, griffe.ExprTuple):
        annotation.elements = [
            f'"{str(part).replace("* ", "*")}"'
            if isinstance(part, griffe.ExprBinOp) and part.operator == "*"
            else part
            for part in annotation.elements
        ]
    for part in annotation.iterate(flat=False):
        keep_shapes(part)


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring of ``obj`` in Markdown."""
    text = EXAMPLE.sub(lambda m: f"```pycon\n{textwrap.dedent(m[0])}\n```", text)
    text = DISPLAY.sub(lambda m: f"{m[1]}\\[{' '.join(m[2].split())}\\]\n", text)
    text = re.sub(r":math:`([^`]*)`", r"\\(\1\\)", text)
    return ROLE.sub(lambda m: reference(m[2], bool(m[1]), obj), text)


def reference(name: str, short: bool, obj: griffe.Object) -> str:
    """A link to the page of ``name``, as it is seen from ``obj``, where it has one."""
    first, dot, rest = name.partition(".")
    try:
        target = name if first == "indm" else obj.resolve(first) + dot + rest
    except griffe.NameResolutionError:
        target = name
    label = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{target}" optional><code>{label}</code></autoref>'


def on_config(config):
    """The repository's address, from the one place where it stands; the menu gets the pages that it
    does not name.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Repository")
    for entry in config.nav or []:
        if EVIDENCE in entry:
            entry[EVIDENCE] += studies(repr(entry))
    return config


def studies(named: str) -> list:
    """Menu entries of the pages of research/ that ``named`` does not have: pages, then a group for
    each folder.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted((ROOT / "research").rglob("*.md")):
        place = path.relative_to(ROOT).as_posix()
        if f"{place!r}" not in named:
            groups.setdefault(path.parent.name, []).append(place)
    single = groups.pop("research", [])
    return single + [{name.replace("_", " ").capitalize(): pages} for name, pages in groups.items()]


def on_files(files, config, **_):
    """Both READMEs, research/'s pages and figures, and pictures of the models in the package are
    files of the site.
    """
    research = [*(ROOT / "research").rglob("*.md"), *(ROOT / "research").rglob("*.png")]
    for path in [
        ROOT / "README.md",
        ROOT / "docs" / "README.md",
        *research,
        *(ROOT / MODELS).rglob("*.png"),
    ]:
        place = place_of(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def place_of(path: str) -> str | None:
    """Where a file of the repository is in the site; None if it is not there."""
    first, _, rest = path.partition("/")
    if first == "docs":
        return "manual.md" if rest == "README.md" else rest
    if path == "README.md":
        return "index.md"
    if first == "research" and path.endswith((".md", ".png")):
        return path
    return path.removeprefix("indm/") if path.startswith(MODELS) and path.endswith(".png") else None


def on_page_markdown(text: str, page, config, **_) -> str:
    """Links and pictures lead to the files of the site, see :func:`place_of`. Links to other files
    lead to the repository; while it has no address, words and the path in it stand in their place.
    Names in the index of the reference lead to their docstrings.
    """
    here = page.file.src_uri
    if here == "reference/index.md":
        text = NAMED.sub(r"[`\1`][indm.\1]", text).replace(
            "][indm.INDM.log_prob]", "][indm.likelihood.log_prob]"
        )
    source = (
        ""
        if here == "index.md"
        else posixpath.dirname(here if here.startswith("research/") else f"docs/{here}")
    )

    def link(match: re.Match) -> str:
        shows, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(source, target))
        if place := place_of(path):
            return f"{shows}[{words}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"
        if shows:
            return match[0]
        if config.repo_url:
            return f"[{words}]({config.repo_url.rstrip('/')}/tree/HEAD/{path}{anchor})"
        return f"`{path}`" if words == path else f"{words} (`{path}`)"

    return LINK.sub(link, text)


def on_page_content(html: str, **_) -> str:
    """Formulas become MathML, which browsers draw by themselves; a number stays beside its error."""
    html = re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", html)
    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, formula, html, flags=re.DOTALL)


def formula(match: re.Match) -> str:
    """A formula in MathML, with a thin space after "log" and the like, as TeX has it."""
    mathml = convert(unescape(match[2]), display="block" if match[1] == "div" else "inline")
    return re.sub(
        r"<mi>(log|exp|erf)</mi>(?!<mo)", r'<mi>\1</mi><mspace width="0.167em" />', mathml
    )
