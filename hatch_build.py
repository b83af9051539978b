"""The README for the package index, where relative links lead nowhere: they get the address in
``[project.urls]``.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"(!\[[^\]]*\]\()(?!https?:)")
LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)")


def absolute(text: str, repository: str | None) -> str:
    """``text`` with its links to files of the repository; as it is while that has no address."""
    if not repository:
        return text
    text = IMAGE.sub(rf"\g<1>{repository.rstrip('/')}/raw/HEAD/", text)
    return LINK.sub(rf"\g<1>{repository.rstrip('/')}/blob/HEAD/", text)


class Readme(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        text = (Path(self.root) / "README.md").read_text("utf-8")
        address = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, address)}
