"""The run folder: when it may be written, and its recipe, model, log and data."""

import shutil
import sys
import tempfile
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
from indm.workbench.runs.devices import LOCK, by_main_process, device, run_lock

RECIPE = "recipe.toml"  # resolved
CONVERSION = "conversion.json"  # record of a converted run
FETCHED = [RECIPE, DESCRIPTION, WEIGHTS]  # files of another person's run that are fetched
# keys that may differ in the continuation of a run: its length, its log and its processors
FREE_ON_RESUME = {
    f"train.{key}"
    for key in (
        "steps", "seconds", "log_every", "validate_every", "checkpoint_every", "workers", "threads",
        "keep_last", "max_skipped_steps",
    )
}  # fmt: skip
# and the rates, which one lowers for a diverging run
RATES = {f"train.{key}" for key in ("lr", "flow_lr", "dequantization_lr", "clip")}


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run folder."""
    return (folder / RECIPE).is_file()


def check_folder(run: Path, recipe: Recipe, resume: bool) -> None:
    """Check that a run can start or resume in a folder.

    A new run needs an empty folder, a resumed one the same recipe. Paths of moved data may differ.

    Raises:
        ValueError: the folder is not empty, or has a run of another recipe.
        FileNotFoundError: it has no run to resume.
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
        keys = ", ".join(differing)
        raise ValueError(
            f"out must be a new folder: {run} is of another recipe, it differs in {keys}"
        )


@contextmanager
def claimed(run: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Keep other processes out of ``run``, after :func:`check_folder`. Collective.

    Raises:
        ValueError: another process is in it, or a mistake that :func:`check_folder` finds.
    """
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(run_lock(run))
            check_folder(run, recipe, resume)

        by_main_process(claim)
        yield


def check_empty(folder: Path, cure: str = "with resume it is continued") -> None:
    """ValueError unless ``folder`` is absent, or has nothing but leftovers of a killed process."""
    is_empty = not folder.exists()
    if folder.is_dir():
        leftovers = (atomic.HALF_WRITTEN, LOCK)
        is_empty = all(any(map(path.match, leftovers)) for path in folder.iterdir())
    if not is_empty:
        raise ValueError(f"out must be a new folder: {folder} exists and is not empty; {cure}")


def finished(run: Path, recipe: Recipe) -> dict | None:
    """The summary of a run that has spent the budget of ``recipe``; None if it has not."""
    budget = recipe.train
    try:
        summary = untrusted.json_object(run / "summary.json")
        spent = summary["steps"] >= budget.steps or summary["seconds"] >= budget.seconds
        return summary if spent and not summary["interrupted"] else None
    except (ValueError, TypeError, KeyError):
        return None


def end_of(run: Path) -> dict:
    """The summary of a finished run; for a converted checkpoint, only its ``steps``.

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
    """Check, before anything is computed, that results can be written into ``folder``.

    Raises:
        ValueError: it has a file of these names already, and may not be overwritten.
        OSError: nothing can be written into ``folder``, or where it would be made.
    """
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"overwrite must be true: {folder} already holds {', '.join(there)}")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def open_model(folder: Path) -> INDM:
    """The model saved in ``folder``, on :func:`device`."""
    return INDM.load(folder, device=device())


def from_pretrained(
    name_or_folder: str | Path, device: str = "cpu", *, revision: str | None = None
) -> INDM:
    """A model from a folder, from the Hugging Face hub or from this package, in evaluation mode.

    Code outside this package is only run inside :func:`indm.trust`. A model of the hub is fetched
    once by ``huggingface_hub.snapshot_download``, and then taken from the cache of that library.

    Args:
        name_or_folder: user/name on the hub; a folder of :meth:`indm.INDM.save` or of a training;
            or the name of a model of this package, such as "digits-pretrained".
        device: where to put it.
        revision: a branch, a tag or a commit on the hub; a commit fixes the weights.

    Raises:
        ValueError: as :meth:`indm.INDM.load`, or there is no such name or folder.
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
        files = [DESCRIPTION, WEIGHTS]
        folder = here or Path(snapshot_download(name, revision=revision, allow_patterns=files))
    return INDM.load(folder, device)


def open_run(run: Path) -> tuple[INDM, Recipe]:
    """The averaged model, on :func:`device`, and the resolved recipe of a run folder."""
    recipe = recipe_of(run)
    return open_model(run), recipe


def recipe_of(run: Path) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        FileNotFoundError: ``run`` is not a run folder.
        ValueError: it has a link to a folder, see :func:`check_no_links`.
    """
    if not run.is_dir():
        runs = [path.parent.as_posix() for path in sorted(Path("runs").glob("*/recipe.toml"))]
        known = [*hub.shipped_names(), *runs]
        near = did_you_mean(run.as_posix(), known) or f"; there are {brief(', '.join(known))}"
        raise FileNotFoundError(f"{run} is not a run folder{near}")
    check_no_links(run)
    return recipes.resolve(recipes.load(run))


def check_no_links(folder: Path) -> None:
    """ValueError if ``folder`` has a link to a folder: files outside of it might be changed."""
    linked = next((path for path in folder.iterdir() if path.is_symlink() and path.is_dir()), None)
    if linked is not None:
        raise ValueError(f"{linked} is a link to a folder outside: move that folder itself there")


def run_folder(source: Path) -> Path:
    """``source``, or the local folder of the run of that name, downloaded if missing.

    A model user/name of the hub goes to runs/user--name, a model of this package to runs/NAME.

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
    """The lines of ``metrics.jsonl`` that have a step; a cut-off line has none."""
    path = run / "metrics.jsonl"
    lines = untrusted.json_lines(path) if path.exists() else []
    return [line for line in lines if isinstance(line.get("step"), int)]


def data_of(run: Path, model: Any, table: dict | None = None) -> Data:
    """The data of a run, or the data of ``table`` in place of its ``[data]``.

    They are downloaded only if ``table`` differs from ``[data]`` and asks for it.

    Raises:
        ValueError: they cannot be loaded, or do not fit the ``model``.
    """
    own = recipe_of(run).data.table()
    table = own if table in (None, own) else fitted_to(model, table)
    downloads = table != own and table.get("download")
    try:
        data = load_data(**(table if downloads else without_download(table)))
    except ValueError as error:
        if table == own and recipes.missing_paths({"data": own}):
            raise ValueError(f"{error}; give data.path, where they are now") from error
        raise
    check_kind(data, model, "the model has", f"data {table['name']!r}")
    return data


def fitted_to(model: Any, table: dict) -> dict:
    """A ``[data]`` table, with size, channels and grey levels of the ``model`` if they are missing."""
    kind: dict[str, Any] = {}
    if len(model.shape) == 3:
        channels, height, width = model.shape
        kind = {"size": height if height == width else [height, width], "channels": channels}
    kind |= {"levels": model.scaling.levels} if model.scaling.levels else {}
    own = arguments_of(find("data", table["name"]))
    return {**{key: value for key, value in kind.items() if key in own}, **table}
