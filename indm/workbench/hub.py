"""Names of models on the Hugging Face hub, and the models that come with this package."""

import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED = Path(__file__).parents[1] / "pretrained"


def is_name(text: str) -> bool:
    """Whether ``text`` has the form user/name."""
    return NAME.fullmatch(text) is not None


def shipped(name: str) -> Path | None:
    """The folder of a model of this package, such as "digits-pretrained"; None if there is none."""
    return SHIPPED / name if name in shipped_names() else None


def shipped_names() -> list[str]:
    """The names of the models that come with this package."""
    return sorted(folder.name for folder in SHIPPED.iterdir())
