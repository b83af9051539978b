"""The run folder: what may be written into it, and what is read from it: its recipe, its model, its
log, its data.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from indm.checks import arguments_of, brief, did_you_mean
from indm.files import atomic, untrusted
from indm.model import DESCRIPTION, INDM, WEIGHTS
from indm.names import find
from indm.workbench import hub
from indm.workbench.data.base import Data, check_kind, load_data, without_download
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import LOCK, by_main_process, check_links, device, run_lock

RECIPE = "recipe.toml"  # resolved
CONVERSION = "conversion.json"  # record of a converted run: its sources and the assumptions
FETCHED = [RECIPE, DESCRIPTION, WEIGHTS]  # files fetched of another person's run
# What may differ between a run and its continuation: how long it is, how it is watched, on which
# processors;
FREE_ON_RESUME = {
    f"train.{key}"
    for key in (
        "steps", "seconds", "log_every", "validate_every", "checkpoint_every", "workers", "threads",
        "keep_last", "max_skipped_steps",
    )
}  # fmt: skip
# and what a diverging run lowers
RATES = {f"train.{key}" for key in ("lr", "flow_lr", "dequantization_lr", "clip")}


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run folder, from the beginning of the run on."""
    return (folder / RECIPE).is_file()


def check_folder(run: Path, recipe: Recipe, resume: bool) -> None:
    """A new run needs an empty folder, a resumed one the recipe it started with; data that were
    moved are the same.

    Raises:
        ValueError: the folder is not empty, or holds a run of another recipe.
        FileNotFoundError: it holds no run to resume.
    """
    if not resume:
        return check_empty(run)
    if not is_run(run):
        raise FileNotFoundError(
            f"resume must be false: {run} holds no run to resume (no {RECIPE} in it)"
        )
    before = recipe_of(run)
    free = FREE_ON_RESUME | RATES | recipes.missing_paths(before)
    others = set(recipes.differing_keys(before, recipes.absolute(recipe))) - free
    differing = sorted(key for key in others if not key.startswith(("evaluate.", "sample.")))
    if differing:
        raise ValueError(
            f"out must be a new folder: {run} is of another recipe, it differs in {', '.join(differing)}"
        )


@contextmanager
def claimed(run: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Inside, no other process is in ``run``, and it is as :func:`check_folder` has it. Collective.

    Raises:
        ValueError: another process is in it, and what :func:`check_folder` raises.
    """
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(run_lock(run))
            check_folder(run, recipe, resume)

        by_main_process(claim)
        yield


def check_empty(folder: Path, cure: str = "with resume it is continued") -> None:
    """ValueError where ``folder`` holds more than a process leaves that is killed at once."""
    check_links(folder)
    debris = (atomic.HALF_WRITTEN, LOCK)
    if folder.exists() and (
        not folder.is_dir() or any(not any(map(p.match, debris)) for p in folder.iterdir())
    ):
        raise ValueError(f"out must be a new folder: {folder} exists and is not empty; {cure}")


def finished(run: Path, recipe: Recipe) -> dict | None:
    """The summary of a run that has spent the budget of ``recipe``; None where it has not, or none
    can be read.
    """
    budget = recipe.train
    try:
        summary = untrusted.json_object(run / "summary.json")
        spent = summary["steps"] >= budget.steps or summary["seconds"] >= budget.seconds
        return summary if spent and not summary["interrupted"] else None
    except (ValueError, TypeError, KeyError):
        return None


def end_of(run: Path) -> dict:
    """Summary of a finished run: ``steps``, ``seconds``, …; for a converted checkpoint, ``steps``
    alone.

    Raises:
        ValueError: it was killed and has not been resumed.
    """
    summary, conversion = run / "summary.json", run / CONVERSION
    if not summary.exists() and conversion.exists():
        return {"steps": int(untrusted.json_object(conversion).get("step") or 0)}
    end = untrusted.json_object(summary) if summary.exists() else {}
    if not isinstance(end.get("steps"), int):
        raise ValueError(f"{run} has not come to an end: continue it first")
    return end


def check_absent(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """See, before anything is computed, that the result can be written.

    Raises:
        ValueError: it would be made under the name of a file, or it holds a file of these names
            already, which may not be written over.
        NotADirectoryError: it is a file, or would be in one.
        FileNotFoundError: it is, or would be in, a link to what does not exist.
        PermissionError: nothing can be written into ``folder``, or where it would be made.
    """
    is_file_name = folder.suffix.lower() in (".png", ".npz", ".npy", ".csv", ".json", ".html")
    if is_file_name and not folder.exists():
        raise ValueError(f"out must be a folder, got {folder}, the name of a file")
    check_links(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"overwrite must be true: {folder} already holds {', '.join(there)}")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"nothing can be written into {nearest}: it is not a folder")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(
            f"nothing can be written into {nearest}: it is read-only, or only others may"
        )


def open_model(folder: Path) -> INDM:
    """The model that is saved in ``folder``, on :func:`device`."""
    return INDM.load(folder, device=device())


def from_pretrained(
    name_or_folder: str | Path, device: str = "cpu", *, revision: str | None = None
) -> INDM:
    """The model in a folder, or the one that the Hugging Face hub calls user/name; in evaluation
    mode.

    It is read as :meth:`indm.INDM.load` reads a stranger's: code outside this package only inside
    :func:`indm.trust`. It is fetched once by ``huggingface_hub.snapshot_download``, and then taken
    from that library's cache.

    Args:
        name_or_folder: user/name; a folder that :meth:`indm.INDM.save` or a training wrote; or the
            name of a model that comes with this package, such as "digits-pretrained".
        device: where to put it.
        revision: a branch, a tag or a commit on the hub; a commit makes sure of the very weights.

    Raises:
        ValueError: as :meth:`indm.INDM.load`, or neither is there.
        OSError: the hub has no such model, asks for a token, or cannot be reached.

    Example:

        >>> from_pretrained("digits-pretrained").shape
        (1, 8, 8)
    """
    from huggingface_hub import snapshot_download

    folder, name = Path(name_or_folder), str(name_or_folder)
    if not folder.is_dir():
        here = hub.shipped(name)
        if here is None and not hub.is_name(name):
            known = ", ".join(hub.shipped_names())
            raise ValueError(
                f"name_or_folder must be a folder, user/name of the hub, or {known}, got {name!r}"
            )
        folder = here or Path(
            snapshot_download(name, revision=revision, allow_patterns=[DESCRIPTION, WEIGHTS])
        )
    return INDM.load(folder, device)


def open_run(run: Path) -> tuple[INDM, Recipe]:
    """The averaged model, on :func:`device`, and the resolved recipe of a run folder."""
    recipe = recipe_of(run)
    return open_model(run), recipe


def recipe_of(run: Path) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        FileNotFoundError: ``run`` is not a run folder.
        ValueError: a folder in it is a link, through which files outside would be written over and
            removed.
    """
    if not run.is_dir():
        runs = [path.parent.as_posix() for path in sorted(Path("runs").glob("*/recipe.toml"))]
        known = [*hub.shipped_names(), *runs]
        near = did_you_mean(run.as_posix(), known) or f"; there are {brief(', '.join(known))}"
        raise FileNotFoundError(f"{run} is not a run folder{near}")
    check_no_links(run)
    return recipes.resolve(recipes.load(run))


def check_no_links(folder: Path) -> None:
    """ValueError where ``folder`` holds a link to a folder, through which files outside would be
    changed.
    """
    linked = next((path for path in folder.iterdir() if path.is_symlink() and path.is_dir()), None)
    if linked is not None:
        raise ValueError(
            f"{linked} is a link to a folder outside: move that folder itself to its place, or remove it"
        )


def run_folder(source: Path) -> Path:
    """``source``, or the local folder of the run of that name, downloaded if missing.

    A model user/name of the hub goes to runs/user--name, a model that comes with this package to
    runs/NAME.

    Raises:
        OSError: the hub has none of that name, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name = source.as_posix()
    shipped = None if source.exists() else hub.shipped(name)
    if shipped is None and (source.exists() or source.parent.is_dir() or not hub.is_name(name)):
        return source
    folder = Path("runs") / name.replace("/", "--")
    if is_run(folder):
        return folder
    if shipped is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in FETCHED:
            shutil.copyfile(shipped / file, folder / file)
        print(f"{folder}: the model that comes with indm", file=sys.stderr)
        return folder
    snapshot_download(name, allow_patterns=FETCHED, local_dir=folder)
    print(f"{folder}: fetched from the hub", file=sys.stderr)
    return folder


def read_metrics(run: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` that say their step, so without one that was cut off while it
    was written.
    """
    path = run / "metrics.jsonl"
    lines = untrusted.json_lines(path) if path.exists() else []
    return [line for line in lines if isinstance(line.get("step"), int)]


def data_of(run: Path, model: Any, table: dict | None = None) -> Data:
    """The data of a run, or the data of ``table`` in place of its ``[data]``.

    They are downloaded only where ``table`` differs from ``[data]`` and says so.

    Raises:
        ValueError: they cannot be loaded, or are of other events or grey levels than the ``model``.
    """
    own = recipe_of(run).data.table()
    table = own if table in (None, own) else fitted_to(model, table)
    try:
        data = load_data(
            **(table if table != own and table.get("download") else without_download(table))
        )
    except ValueError as error:
        if table == own and recipes.missing_paths({"data": own}):
            raise ValueError(f"{error}; give data.path, where they are now") from error
        raise
    check_kind(data, model, "the model has", f"data {table['name']!r}")
    return data


def fitted_to(model: Any, table: dict) -> dict:
    """A ``[data]`` table with the size, channels and grey levels of the ``model`` where the data
    set has such options and the table does not say.
    """
    kind: dict[str, Any] = {}
    if len(model.shape) == 3:
        channels, height, width = model.shape
        kind = {"size": height if height == width else [height, width], "channels": channels}
    kind |= {"levels": model.scaling.levels} if model.scaling.levels else {}
    own = arguments_of(find("data", table["name"]))
    return {**{key: value for key, value in kind.items() if key in own}, **table}
