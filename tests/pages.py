"""Pages as a browser reads them."""

import base64
from html.parser import HTMLParser


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, text by element, and whether all that is opened
    is closed.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag):
        return [text for where, text in self.texts if where == tag]

    def images(self, kind=None):
        """The bytes of every picture of that class, or of all; they must be in the page."""
        pictures = [attributes for tag, attributes in self.elements if tag == "img"]
        sources = [
            attributes["src"] for attributes in pictures if kind in (None, attributes.get("class"))
        ]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def tables_of(text):
    """The tables of a page as rows of cells."""
    found, cell = [], None
    for part in text.split("<"):
        tag, _, content = part.partition(">")
        if tag == "table":
            found.append([])
        elif tag == "tr":
            found[-1].append([])
        elif tag.split(" ")[0] in ("td", "th"):
            cell = Reader(f"<p>{content}</p>").text("p")
            found[-1][-1].append("".join(cell))
    return found
