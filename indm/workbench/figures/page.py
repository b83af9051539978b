"""A self-contained HTML page: a conclusion on top, then what is added.

Tables are sorted and copied, and pictures enlarged, by pointer or keyboard. It can be read on a screen of 400 pixels,
in the light or the dark as the reader's system has it, and without its scripts.
"""

import base64
import html
from pathlib import Path

from indm.files import atomic

LONG = 40  # characters from which a cell may be broken


class Page:
    """Collects what is added and writes it as one file, pictures included; the ``conclusion`` stands on top."""

    def __init__(self, title: str):
        self.title, self.conclusion, self.parts = title, list[str](), list[str]()

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(_paragraph(text))

    def table(self, rows: list[tuple[str, ...]]) -> None:
        """The first row is the header; a cell that is one word ("better", "failed", …) is coloured by it, a long one
        is broken."""
        header, *body = rows
        lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
        for row in body:
            kinds = ["long" if len(cell) > LONG else html.escape(cell, quote=True) for cell in row]
            cells = (f'<td class="{kind}">{html.escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))
            lines.append(f"<tr>{''.join(cells)}</tr>")
        self.parts.append(f'<div class="table"><table>{"".join(lines)}</table></div>')

    def picture(self, path: Path, caption: str) -> None:
        """The PNG at ``path``, embedded."""
        words = html.escape(caption)
        uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        shown = f'<img class="zoomable" src="{uri}" alt="{words}">'
        self.parts.append(f"<figure>{shown}<figcaption>{words}</figcaption></figure>")

    def write(self, path: Path) -> None:
        """Title, conclusion, and what was added."""
        lines = "".join(map(_paragraph, self.conclusion))
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        parts += [f'<section class="conclusion">{lines}</section>'] if lines else []
        meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        style, script = (Path(__file__).with_suffix(suffix).read_text("utf-8") for suffix in (".css", ".js"))
        head = f"{meta}<title>{html.escape(self.title)}</title><style>{style}</style>"
        body = "\n".join([*parts, *self.parts, f"<script>{script}</script>"])
        atomic.text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
