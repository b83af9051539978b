"""Recipes of two data sets: two models, or one model of both."""

import functools
import os
from pathlib import Path

from accelerate import PartialState

from indm.workbench.data.base import check_kind, load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import BRIDGE, AnyTables, Recipe, Tables
from indm.workbench.runs.devices import by_main_process, on_cpu
from indm.workbench.runs.folder import check_empty, check_folder, check_no_links, finished, is_run
from indm.workbench.training.loop import train

SIDES = ("a", "b")
OF_BRIDGES = ("terminal", "terminal_noise", "initial_noise")  # keys of [train] for bridges


def is_pair(folder: Path) -> bool:
    """Whether ``folder`` has a run for each side."""
    return all(is_run(folder / side) for side in SIDES)


def is_bridge(recipe: AnyTables) -> bool:
    """Whether a model of ``recipe`` leads from its ``[data]`` to its ``[data_b]``."""
    return "data_b" in recipe and bool(recipe.get("train", {}).get("terminal"))


def noise_of(recipe: Recipe) -> tuple[float, float]:
    """Deviations of the noise with which a bridge has learned its two ends."""
    return recipe.train.initial_noise, recipe.train.terminal_noise


def sides_of(recipe: AnyTables) -> dict[str, Tables]:
    """The recipe of the model of each side; they differ in the data, and have no term of a bridge.

    Raises:
        ValueError: there is no second data set.
    """
    if "data_b" not in recipe:
        raise ValueError(
            "[data_b] is missing: the recipe of a pair needs a second data set, such as data_b digits"
        )
    options = recipe.get("train", {}).items()
    shared = {table: dict(content) for table, content in recipe.items() if table != "data_b"}
    shared["train"] = {key: value for key, value in options if key not in OF_BRIDGES}
    return {"a": shared, "b": shared | {"data": dict(recipe["data_b"])}}


def as_one(recipe: AnyTables) -> Tables:
    """The recipe of one class-conditional model, whose classes are the two data sets.

    Raises:
        ValueError: there is no second data set, or it differs from the first in more than the
            folder or the label.
    """
    shared = sides_of(recipe)["a"]
    a, b = shared["data"], recipe["data_b"]
    other = {key for key in {*a, *b} if a.get(key) != b.get(key)}
    if other == {"label"}:
        data = a | {"label": [a["label"], b["label"]]}
    elif other == {"path"} and a["name"] == "folder":
        folders = [os.path.abspath(os.path.expanduser(table["path"])) for table in (a, b)]
        parent = os.path.commonpath(folders)
        classes = [os.path.relpath(folder, parent) for folder in folders]
        data = a | {"path": parent, "classes": classes}
    else:
        raise ValueError(
            "[data] and [data_b] must be two folders or two labels of one data set for one model of both, and differ "
            f"in that alone, got {sorted(other)} of {a['name']!r}; the form terminal and pairs take any two"
        )
    return shared | {"data": data, "condition": {"name": "classes", **recipe.get("condition", {})}}


def as_bridge(recipe: AnyTables) -> Tables:
    """The recipe of one diffusion from A to B, with the changes in ``[bridge]``.

    A table with a name replaces that part; the keys of other tables replace the recipe's.
    """
    whole = {table: dict(content) for table, content in recipe.items() if table != BRIDGE}
    for table, content in recipe.get(BRIDGE, {}).items():
        whole[table] = dict(content) if "name" in content else {**whole.get(table, {}), **content}
    return whole


def train_pair(
    recipe: AnyTables, out: Path, *, resume: bool = False, progress: bool = True
) -> dict[str, dict]:
    """Train a model of ``[data]`` in ``out/a``, then one of ``[data_b]`` in ``out/b``.

    Each has the whole budget of ``[train]``. With ``resume``, a finished side stays, and an
    interrupted one continues.

    Returns:
        The summaries by side; there is no second if a signal ended the first.

    Raises:
        ValueError: as :func:`indm.workbench.training.loop.train`, or the data sets differ in the
            shape of events or in grey levels.
    """
    processes = PartialState(cpu=on_cpu())
    sides = {side: recipes.resolve(content) for side, content in sides_of(recipe).items()}
    started = by_main_process(functools.partial(_started, out, sides, resume))
    with processes.main_process_first():
        both = [load_data(side.data.name, **side.data.options) for side in sides.values()]
    check_kind(both[1], both[0], "data have", "data_b")
    summaries: dict[str, dict] = {}
    for side, content in sides.items():
        done = by_main_process(functools.partial(finished, out / side, content))
        if done:
            summaries[side] = done
            continue
        summary = train(content, out / side, resume=side in started, progress=progress)
        summaries[side] = summary
        if summary.signal_received:
            break
    return summaries


def _started(out: Path, sides: dict[str, Recipe], resume: bool) -> list[str]:
    """The sides of the pair in ``out`` that have a run; without ``resume`` it must be empty."""
    if not resume:
        check_empty(out)
        return []
    started = [side for side in sides if is_run(out / side)]
    if not started:
        raise FileNotFoundError(f"resume must be false: {out} holds no pair to resume")
    check_no_links(out)
    for side in started:
        check_folder(out / side, sides[side], resume=True)
    return started
