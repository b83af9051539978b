"""The data of a run, as its model needs them."""

import warnings
from pathlib import Path
from typing import Any

from indm.config import paths
from indm.config.parts import Untrusted
from indm.data.base import Data, check_kind, flags_of_data
from indm.data.registry import load_data, without_download
from indm.files import untrusted
from indm.runs.folder import recipe_of

CONVERSION = "conversion.json"  # of a run that was converted: what it was made of, and what was assumed


def data_of(run: Path, model: Any, table: dict | None = None) -> Data:
    """The data of a run, or those of ``table`` in place of its ``[data]``.

    They are downloaded only where ``table`` differs from ``[data]`` and says so.

    Warns where nobody named them: the conversion that made the run assumed them.

    Raises:
        ValueError: they cannot be loaded, or are of other events or grey levels than the ``model``.
    """
    own = recipe_of(run)["data"]
    table = own if table is None else table
    assumed = table == own and _were_assumed(run, own)
    others = f'"indm evaluate" and "indm convert" take others, for example {flags_of_data(tuple(model.shape))}'
    try:
        data = load_data(**(table if table != own and table.get("download") else without_download(table)))
    except Untrusted:
        raise
    except ValueError as error:
        if not assumed and table == own and paths.gone({"data": own}):
            raise ValueError(f'{error}; "indm evaluate" takes --data.path, where they are now') from error
        if not assumed:
            raise
        raise ValueError(f'{error}; "indm convert" assumed these data, as none were named; {others}') from error
    try:
        check_kind(data, model, "the model has")
    except ValueError as error:
        raise ValueError(f"{error} of {table['name']!r}; {others}") from error
    if assumed:
        warnings.warn(
            f'the data of {run} were not named: "indm convert" assumed {own["name"]!r}; {others}', stacklevel=2
        )
    return data


def _were_assumed(run: Path, table: dict) -> bool:
    """Whether neither a caller nor a recipe named the data ``table`` of a converted run."""
    try:
        made = untrusted.json_object(run / CONVERSION)
    except (ValueError, OSError):
        return False
    assumed = made.get("assumed")
    if made.get("recipe") is not None or not isinstance(assumed, dict):
        return False
    return ("data.path" if "path" in table else "data.name") in assumed
