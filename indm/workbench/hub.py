"""Models on the Hugging Face hub, or on a server with its interface (``HF_ENDPOINT``), and in this package.

Only files of a given list are fetched. They are read like any file of an unknown maker.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from indm.checks import reason

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED = Path(__file__).parents[1] / "pretrained"
LOG_IN = "log in with 'hf auth login' where a model is private"


def is_name(text: str) -> bool:
    """Whether ``text`` has the form user/name."""
    return NAME.fullmatch(text) is not None


def shipped(name: str) -> Path | None:
    """The folder of a model that comes with this package, such as "digits-pretrained"; None where there is none."""
    return SHIPPED / name if name in shipped_names() else None


def shipped_names() -> list[str]:
    """The names of the models that come with this package."""
    return sorted(folder.name for folder in SHIPPED.iterdir())


def check_name(text: str) -> None:
    """ValueError unless ``text`` has the form user/name."""
    if not is_name(text):
        raise ValueError(f"name must be user/name, as the hub calls a model, got {text!r}")


def fetch(name: str, files: Sequence[str], folder: Path | None = None, revision: str | None = None) -> Path:
    """The folder with the ``files`` of a model that the hub has: ``folder``, or one in the cache of the hub's library.

    Raises:
        ValueError: a name of another form.
        OSError: the hub has no such model, asks for a token, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _talking(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_dir=folder))


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload ``folder`` as the model user/name, which is made if need be; the address of the model.

    Raises:
        ValueError: a name of another form.
        OSError: the hub does not let it be written, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="indm")
    with _talking(name):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of indm")
    return str(address)


@contextmanager
def _talking(name: str) -> Iterator[None]:
    """Turn errors inside into one line."""
    check_name(name)
    try:
        yield
    except Exception as error:  # from the hub's library, or its HTTP library
        raise OSError(f"the hub cannot be reached for {name}, or refuses it: {reason(error)}; {LOG_IN}") from error
