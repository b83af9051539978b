"""Models on the Hugging Face hub, or on a server with its interface (``HF_ENDPOINT``), and those of this package.

Only files of a given list are fetched. They are read like any file of an unknown maker.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from indm.checks import reason
from indm.files.memory import causes

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED = Path(__file__).parents[1] / "pretrained"
LOG_IN = "log in with 'hf auth login', or set HF_TOKEN, as one who may"


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

    Args:
        name: user/name.
        files: their names; what else the hub has of the model stays there.
        revision: a branch, a tag or a commit.

    Raises:
        ValueError: the hub has no such model, or it needs a token.
        OSError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _talking(name, "the path of a folder with that model would do in place of its name"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_dir=folder))


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Make the files of ``folder`` those of the model user/name, which is made if need be; the address of the model.

    Raises:
        ValueError: it may not be written: there is no token, or one of somebody else.
        OSError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="indm")
    otherwise = "with out it writes a folder to share instead"
    with _talking(name, otherwise):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of indm")
    return str(address)


@contextmanager
def _talking(name: str, otherwise: str) -> Iterator[None]:
    """Turn errors inside into one line with a cure: ``otherwise`` where there is no network."""
    from huggingface_hub import errors

    check_name(name)
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):  # a gated one is one of the first, too
        raise ValueError(f"the hub has no model {name}, or not that revision, or only for some: {LOG_IN}") from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ValueError(f"the hub does not let you do that with {name}: {LOG_IN}") from None
        raise OSError(f"the hub refuses {name}: {reason(error)}") from error
    except errors.LocalTokenNotFoundError:
        raise ValueError(f"{name} needs a token of the hub: {LOG_IN}") from None
    except Exception as error:  # of its own, or of whatever library it uses for HTTP
        *_, root = causes(error)  # the libraries for HTTP and of the hub say it again, at length
        raise OSError(f"the hub cannot be reached for {name} ({reason(root)}); {otherwise}") from error
