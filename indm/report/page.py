"""A self-contained HTML page: headings, paragraphs, tables and pictures in the order in which they are added."""

import base64
import html
from pathlib import Path

from indm.files import atomic

LONG = 40  # characters from which a cell may be broken
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.8em; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; }
td { font-variant-numeric: tabular-nums; } th { background: #f4f4f4; }
figure { margin: 1.5em 0; } img { max-width: 100%; } figcaption { color: #555; font-size: 0.9rem; }
.reproduced, .better, .holds { color: #176b2c; } .opposite, .worse, .violated { color: #a11; }
.undecided, .untested { color: #86600a; }
"""


class Page:
    """Collects what is added and writes it as one file, pictures included.

    Args:
        title: of the page.
    """

    def __init__(self, title: str):
        self.title = title
        self.parts = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        self.parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

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
        data = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        self.parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

    def write(self, path: Path) -> None:
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        body = "\n".join(self.parts)
        atomic.text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def _kind(cell: str) -> str:
    """The class of a table's cell."""
    return "long" if len(cell) > LONG else html.escape(cell, quote=True)
