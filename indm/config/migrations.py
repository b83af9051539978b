"""What options were called before: the one table of old names.

A run folder is read with today's names (:func:`migrate`). An old name in a recipe of the user's or on the command line
is an error that gives the new one (:func:`check_name_is_current`).
"""

from collections.abc import Mapping
from typing import Any

SAMPLER_OPTIONS = ("tol", "snr")  # of one sampler each, once beside its name and None for the others
RENAMED = {
    "train.flow_every": "train.flow_update_every",
    "train.keep_every": "train.snapshot_every",
    "train.skips": "train.max_skipped_steps",
    "train.rollbacks": "train.max_rollbacks",
    "evaluate.images": "evaluate.examples",
    "evaluate.nll_images": "evaluate.nll_examples",
}
DROPPED = {"evaluate.rtol", "evaluate.atol"}  # tolerances of a solver that now has evaluate.nll_error

RENAMED_FLAGS = {"report --images": "--examples"} | {
    f"{command} --{option}": f"--sampler.{option}" for command in ("sample", "fid") for option in SAMPLER_OPTIONS
}  # those of recipes and of evaluate are in the table above


def migrate(recipe: Mapping[str, Mapping]) -> dict[str, dict]:
    """A recipe that an earlier version wrote, with today's names."""
    return {
        table: {
            RENAMED.get(f"{table}.{key}", f"{table}.{key}").split(".", 1)[1]: value
            for key, value in keys.items()
            if f"{table}.{key}" not in DROPPED
        }
        for table, keys in recipe.items()
    }


def check_name_is_current(name: str) -> None:
    """ValueError where ``name``, "table.key" in a recipe, is an old name of an option."""
    if name in RENAMED:
        raise ValueError(f"{name} is now {RENAMED[name]}")
    if name in DROPPED:
        raise ValueError(f"{name} is gone: evaluate.nll_error is the solver's largest error in bits/dim")


def migrate_drawing(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """How an earlier version says that samples were drawn, as today's :class:`indm.runs.samples.Drawing` has it."""
    if "sampler" in made_by:
        made_by = {"condition": None, "guidance": 1.0, **made_by}
    if not set(SAMPLER_OPTIONS) <= set(made_by):
        return dict(made_by)
    options = {key: made_by[key] for key in SAMPLER_OPTIONS if made_by.get(key) is not None}
    return {key: value for key, value in made_by.items() if key not in SAMPLER_OPTIONS} | {"sampler_options": options}


def check_flag_is_current(command: str, argument: str) -> None:
    """ValueError where ``argument`` of that command is an old name of an option."""
    if not argument.startswith("--"):
        return
    flag = argument.partition("=")[0]
    if command == "evaluate":
        old = f"evaluate.{flag[2:].replace('-', '_')}"
        if old in RENAMED:
            raise ValueError(f"{flag} is now --{RENAMED[old].split('.')[1].replace('_', '-')}")
        if old in DROPPED:
            raise ValueError(f"{flag} is gone: --nll-error is the solver's largest error in bits/dim")
    if f"{command} {flag}" in RENAMED_FLAGS:
        raise ValueError(f"{flag} is now {RENAMED_FLAGS[f'{command} {flag}']}")
    check_name_is_current(flag[2:].replace("-", "_"))
