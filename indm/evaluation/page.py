"""A self-contained HTML page: a conclusion and contents on top, then headings, paragraphs, tables and pictures in the
order in which they are added. It can be read on a screen of 400 pixels: tables scroll, pictures shrink."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from indm.files import atomic

LONG = 40  # characters from which a cell may be broken
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  overflow-wrap: anywhere; }
.conclusion { border-left: 4px solid #0072b2; padding-left: 1em; } .conclusion p { margin: 0.5em 0; }
nav ul { list-style: none; padding: 0; columns: 18rem; } nav .level3 { padding-left: 1.5em; }
nav .level1 { font-weight: bold; } a { color: #0072b2; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.8em; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; }
td { font-variant-numeric: tabular-nums; } th { background: #f4f4f4; }
figure { margin: 1.5em 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 0.9rem; }
.reproduced, .better, .holds { color: #176b2c; } .opposite, .worse, .violated { color: #a11; }
.undecided, .untested { color: #86600a; }
"""


class Page:
    """Collects what is added and writes it as one file, pictures included.

    Args:
        title: of the page.
        style: rules of its own, after :data:`STYLE`.
    """

    def __init__(self, title: str, style: str = ""):
        self.title, self.style = title, STYLE + style
        self.conclusion: list[str] = []
        self.contents: dict[str, tuple[str, int]] = {}
        self.parts: list[str] = []

    def conclude(self, paragraphs: Sequence[str]) -> None:
        """Add paragraphs to the conclusion, which stands on top."""
        self.conclusion += paragraphs

    def heading(self, text: str, level: int = 2) -> None:
        """Also a line of the contents, which leads here."""
        anchor = base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        number = 1
        while anchor in self.contents:
            number += 1
            anchor = f"{base}-{number}"
        self.contents[anchor] = text, level
        self.parts.append(f'<h{level} id="{anchor}">{html.escape(text)}</h{level}>')

    def text(self, text: str) -> None:
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, rows: list[tuple[str, ...]]) -> None:
        """The first row is the header; a cell that is one word ("better", "failed", …) is coloured by it, a long one
        is broken."""
        header, *body = rows
        lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
        for row in body:
            cells = (f'<td class="{_kind(cell)}">{html.escape(cell)}</td>' for cell in row)
            lines.append(f"<tr>{''.join(cells)}</tr>")
        self.parts.append(f"<table>{''.join(lines)}</table>")

    def picture(self, path: Path, caption: str) -> None:
        """The PNG at ``path``, embedded."""
        caption = html.escape(caption)
        image = f'<img src="{png_uri(path.read_bytes())}" alt="{caption}">'
        self.parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

    def add(self, fragment: str) -> None:
        """HTML as it is."""
        self.parts.append(fragment)

    def _top(self) -> list[str]:
        """Title, conclusion and contents."""
        lines = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in self.conclusion)
        entries = "".join(
            f'<li class="level{level}"><a href="#{anchor}">{html.escape(text)}</a></li>'
            for anchor, (text, level) in self.contents.items()
        )
        top = [f"<h1>{html.escape(self.title)}</h1>"]
        top += [f'<section class="conclusion">{lines}</section>'] if lines else []
        return top + ([f"<nav><ul>{entries}</ul></nav>"] if entries else [])

    def write(self, path: Path) -> None:
        meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        head = f"{meta}<title>{html.escape(self.title)}</title><style>{self.style}</style>"
        body = "\n".join([*self._top(), *self.parts])
        atomic.text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def png_uri(png: bytes) -> str:
    """The bytes of a PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _kind(cell: str) -> str:
    """The class of a table's cell."""
    return "long" if len(cell) > LONG else html.escape(cell, quote=True)
